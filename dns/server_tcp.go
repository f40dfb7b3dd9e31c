package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"
)

const (
	// tcpIdle is how long a connection may be without a whole request (RFC 7766,
	// section 6.2.3).
	tcpIdle  = 10 * time.Second
	tcpWrite = 5 * time.Second
)

// serveTCP takes connections until the listener is closed. With as many as are
// allowed, the next ones wait in the kernel's queue.
func (s *Server) serveTCP(reading, working context.Context, l *net.TCPListener) {
	for {
		select {
		case s.conns <- struct{}{}:
		case <-reading.Done():
			return
		}
		c, err := l.Accept()
		if err != nil {
			<-s.conns
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, say
			continue
		}
		s.waiting.Go(func() {
			defer func() { <-s.conns }()
			s.serveConn(reading, working, c)
		})
	}
}

// serveConn answers the requests of one connection, one after the other.
func (s *Server) serveConn(reading, working context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(reading, func() { _ = c.SetReadDeadline(past) })()
	defer context.AfterFunc(working, func() { _ = c.Close() })()
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	w := &worker{stream: true, stats: s.stats.tcp()}
	in := make([]byte, maxRequest)
	for {
		n, err := readRequest(reading, c, in)
		if err != nil {
			return
		}
		start := time.Now()
		switch s.respondGuarded(w, in[:n]) {
		case silence:
			return
		case wait:
			s.completeGuarded(working, w)
		}
		s.observe(w, from, start)
		if writeMessage(c, w.out) != nil {
			return
		}
	}
}

var errTooLong = errors.New("request too long")

func readRequest(reading context.Context, c net.Conn, in []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(tcpIdle))
	if reading.Err() != nil { // looked at after the deadline was set, so none is lost
		_ = c.SetReadDeadline(past)
	}
	if _, err := io.ReadFull(c, in[:2]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(in))
	if n > len(in) {
		return 0, errTooLong
	}
	return io.ReadFull(c, in[:n])
}

func writeMessage(c net.Conn, out []byte) error {
	_ = c.SetWriteDeadline(time.Now().Add(tcpWrite))
	size := binary.BigEndian.AppendUint16(nil, uint16(len(out)))
	bufs := net.Buffers{size, out}
	_, err := bufs.WriteTo(c)
	return err
}
