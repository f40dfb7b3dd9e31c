package qperf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// maxSessions bounds the control connections served at once, and with them the memory
// that clients can make the server use.
const maxSessions = 64

// ServerConfig says how to serve.
type ServerConfig struct {
	Addr     netip.Addr    // to listen on; the zero Addr is every address, IPv6 and IPv4
	Port     int           // control port; 0 means DefaultPort, -1 any free one
	Parallel int           // measurements at once; 0 means 1: CPU figures are the whole machine's
	Timeout  time.Duration // for a client's first words; 0 means DefaultTimeout
	Log      *slog.Logger  // nil means slog.Default()
}

// A Server serves qperf clients. Where the real one handles one client after the other and
// waits for ever for a data connection that does not come, this one serves each by itself, puts a
// deadline on every step, and lets measurements, not clients, wait for one another.
type Server struct {
	config   ServerConfig
	listener *net.TCPListener
	sessions chan struct{} // one for each client
	turns    chan struct{} // one for each measurement under way
	all      sync.WaitGroup
}

// Listen opens the control port. Serve must be called, or Close.
func Listen(config ServerConfig) (*Server, error) {
	switch config.Port {
	case 0:
		config.Port = DefaultPort
	case -1:
		config.Port = 0
	}
	config.Parallel = max(config.Parallel, 1)
	if config.Timeout <= 0 {
		config.Timeout = DefaultTimeout
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	l, err := net.ListenTCP("tcp", tcpAddr(config.Addr, config.Port))
	if err != nil {
		return nil, fmt.Errorf("qperf server: %w", err)
	}
	return &Server{
		config: config, listener: l,
		sessions: make(chan struct{}, maxSessions), turns: make(chan struct{}, config.Parallel),
	}, nil
}

// tcpAddr is the address to listen on; without one, every address of both families.
func tcpAddr(a netip.Addr, port int) *net.TCPAddr {
	if !a.IsValid() {
		return &net.TCPAddr{Port: port}
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, uint16(port)))
}

// Addr is the address of the control port.
func (s *Server) Addr() netip.AddrPort { return addrOf(s.listener.Addr()) }

// Close ends a server that was never served.
func (s *Server) Close() error { return s.listener.Close() }

// Serve serves until ctx is done, and gives nil then. What is under way is broken off.
func (s *Server) Serve(ctx context.Context) error {
	defer s.all.Wait()
	defer context.AfterFunc(ctx, func() { _ = s.listener.Close() })()
	for {
		conn, err := s.listener.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("qperf server: %w", err)
		case err != nil: // out of descriptors, a connection gone before we took it
			s.config.Log.Warn("qperf server: accept", "err", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s.all.Go(func() { s.serve(ctx, conn) })
	}
}

// serve is one client, from its first byte to its last.
func (s *Server) serve(ctx context.Context, conn *net.TCPConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	log := s.config.Log.With("client", addrOf(conn.RemoteAddr()).String())
	select {
	case s.sessions <- struct{}{}:
		defer func() { <-s.sessions }()
	default:
		refuse(conn, fmt.Errorf("server busy: %d clients", maxSessions))
		return
	}
	deadline(conn, s.config.Timeout)
	req, err := readRequest(conn)
	switch {
	case errors.Is(err, io.EOF): // a probe: it connects and goes
		log.Debug("qperf server: probe")
		return
	case err == nil:
		err = s.answer(ctx, conn, req, log)
	}
	if err != nil && ctx.Err() == nil {
		log.Info("qperf server: test not completed", "err", err)
		refuse(conn, err)
	}
}

// readRequest gives io.EOF for a client that leaves without a word.
func readRequest(conn net.Conn) (request, error) {
	b := make([]byte, requestSize)
	if _, err := io.ReadFull(conn, b[:versionSize]); err != nil {
		if errors.Is(err, io.EOF) {
			return request{}, err
		}
		return request{}, control("receive request version", err)
	}
	if err := decodeRequest(b).checkVersion(); err != nil {
		return request{}, err
	}
	if _, err := io.ReadFull(conn, b[versionSize:]); err != nil {
		return request{}, control("receive request data", err)
	}
	return decodeRequest(b), nil
}

func (s *Server) answer(ctx context.Context, conn *net.TCPConn, req request, log *slog.Logger) error {
	test, ok := testOf(req.Index)
	if !ok {
		return fmt.Errorf("bad request index: %d", req.Index)
	}
	if test == Conf {
		answer := ThisMachine().encode()
		if req.Extension.On {
			facts, _ := json.Marshal(ReadFacts(addrOf(conn.LocalAddr()).Addr())) // plain fields: cannot fail
			answer = append(answer, facts...)
		}
		_, err := conn.Write(answer)
		return control("send configuration", err)
	}
	if err := test.checkSize(int(req.MsgSize)); err != nil {
		return err
	}
	ss := newSession(s, conn, test, req)
	defer ss.stopped.Store(true)
	if err := ss.run(ctx); err != nil {
		return fmt.Errorf("%s: %w", test, err)
	}
	log.Info("qperf server: test done", "test", string(test), "sent", ss.flow.sent.Messages, "received", ss.flow.received.Messages)
	return nil
}

// refuse tells the client why, in qperf's way: an urgent byte, the text, the end; then it
// reads what still comes, so that closing does not throw the text away.
func refuse(conn *net.TCPConn, why error) {
	text := why.Error()
	if len(text) > 255 {
		text = text[:251] + " ..."
	}
	deadline(conn, 3*time.Second)
	if urgent(conn) != nil {
		return
	}
	if _, err := conn.Write([]byte(text)); err != nil {
		return
	}
	_ = conn.CloseWrite()
	_, _ = io.Copy(io.Discard, conn)
}

// control names the item of the control connection that did not go through, in qperf's words.
func control(what string, err error) error {
	var timeout net.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("failed to %s: timed out", what)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("failed to %s: peer not responding", what)
	}
	return fmt.Errorf("failed to %s: %w", what, err)
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

func hostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
