package qperf

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The longest that a client's data connection may take, and the longest for any one step:
// a client that died after asking must not hold its data port against the next.
const (
	maxArrival = 4 * time.Second
	maxTimeout = time.Minute
	maxTest    = 24 * time.Hour
)

// A session is one test of one client on the server.
type session struct {
	server  *Server
	conn    *net.TCPConn
	test    Test
	req     request
	timeout time.Duration
	stopped atomic.Bool
	arrived chan error // the client's synchronization before the test
	left    chan error // and after it
	flow    flow
	group   *GroupTime
	drops   Drops // before the test
}

// serverNote follows STAT when the extension is on.
type serverNote struct {
	Peer       netip.AddrPort `json:"peer"` // the client's data socket as the server saw it
	Local      netip.AddrPort `json:"local"`
	Engine     CPUTime        `json:"engine"` // of the loops' threads
	Group      *GroupTime     `json:"cgroup,omitempty"`
	Drops      Drops          `json:"drops"`
	Unique     uint64         `json:"unique"`
	Duplicates uint64         `json:"duplicates"`
	Reordered  uint64         `json:"reordered"`
	Series     *Series        `json:"series,omitempty"` // where the figure is of what the server received
}

func newSession(s *Server, conn *net.TCPConn, test Test, req request) *session {
	timeout := min(seconds(req.Timeout), maxTimeout)
	if timeout <= 0 {
		timeout = s.config.Timeout
	}
	return &session{
		server: s, conn: conn, test: test, req: req, timeout: timeout,
		arrived: make(chan error, 1), left: make(chan error, 1),
	}
}

// run is the protocol after REQ. The client is read all the time, so that its going away is
// noticed at once, whatever this side is waiting for.
func (ss *session) run(ctx context.Context) error {
	ss.deadline()
	data, port, err := ss.open()
	if err != nil {
		return err
	}
	defer data.Close()
	go ss.follow(data)
	if err := ss.sendPort(port); err != nil {
		return err
	}
	fds, err := data.accept(ss.test, ss.streams())
	defer closeAll(fds)
	if err != nil {
		return cmp.Or(ss.gone(), err)
	}
	setBuffers(fds[0], int(min(ss.req.SockBuf, maxStream)))
	ss.deadline()
	if err := <-ss.arrived; err != nil {
		return err
	}
	ss.deadline()
	_ = ss.conn.SetReadDeadline(time.Time{}) // the next word comes after the test, however long that is
	stat, err := ss.measure(ctx, fds)
	if err != nil {
		return err
	}
	ss.deadline()
	if err := ss.sendStat(stat, data.local); err != nil {
		return err
	}
	return <-ss.left
}

func (ss *session) deadline() { deadline(ss.conn, ss.timeout) }

// follow reads the client's two synchronizations; when it goes away instead, the data
// socket is closed and the loop stopped.
func (ss *session) follow(data *endpoint) {
	err := readSync(ss.conn, syncBefore)
	ss.arrived <- err
	if err == nil {
		err = readSync(ss.conn, syncAfter)
	}
	if err != nil {
		ss.stopped.Store(true)
		_ = data.Close()
	}
	ss.left <- err
}

// gone gives what the client's own connection has to say about a failure, if anything.
func (ss *session) gone() error {
	select {
	case err := <-ss.arrived:
		return err
	default:
		return nil
	}
}

// sendPort tells the data port, and whether the extension was understood.
func (ss *session) sendPort(port uint16) error {
	word := uint32(port)
	if ss.req.Extension.On {
		word |= portAck << 16
	}
	_, err := ss.conn.Write(binary.LittleEndian.AppendUint32(nil, word))
	return control("send port", err)
}

// measure waits for its turn, says that it is ready, and runs the loop. The client's clock starts when it hears so.
func (ss *session) measure(ctx context.Context, fds []int) (Stat, error) {
	select {
	case ss.server.turns <- struct{}{}:
		defer func() { <-ss.server.turns }()
	case <-time.After(ss.timeout * 9 / 10):
		return Stat{}, errors.New("server busy: another measurement is under way")
	case <-ctx.Done():
		return Stat{}, ctx.Err()
	}
	defer context.AfterFunc(ctx, func() { ss.stopped.Store(true) })()
	ss.drops = countDrops(addrOf(ss.conn.LocalAddr()).Addr())
	if _, err := ss.conn.Write([]byte(syncBefore)); err != nil {
		return Stat{}, control("send "+syncBefore, err)
	}
	ss.flow = ss.newFlow(fds[0])
	meter := startMeter(ss.flow.from, ss.flow.until)
	if ss.test == TCPConnect {
		ss.flow.listener = fds[1]
		fds = fds[:1]
	}
	ss.flow.runAll(fds, serverLoops[ss.test])
	stat, group := meter.stat(ss.flow.elapsed())
	ss.group = group
	stat.Sent, stat.Received = ss.flow.sent, ss.flow.received
	return stat, nil
}

var serverLoops = map[Test]func(*flow){
	TCPBandwidth: receiveStream, TCPLatency: echoStream, UDPBandwidth: receiveDatagrams, UDPLatency: echoDatagrams,
	Rest: rest, TCPConnect: answerConnections, TCPStreams: receiveStream,
}

// streams is how many data connections the client makes.
func (ss *session) streams() int {
	return max(1, min(int(ss.req.Extension.Streams), MaxStreams))
}

func (ss *session) newFlow(fd int) flow {
	ext := ss.req.Extension
	f := flow{fd: fd, size: int(ss.req.MsgSize), own: ext.On, nonce: ext.Nonce, stop: &ss.stopped, base: time.Now(), parts: newRecorder()}
	length := seconds(ss.req.Time)
	if ext.On {
		f.from, length = min(max(ext.Warmup, 0), maxTest), max(ext.Duration, tick)
	}
	if length > 0 {
		f.until = f.from + min(length, maxTest)
	}
	return f
}

func (ss *session) sendStat(stat Stat, local netip.AddrPort) error {
	var trailer []byte
	if ss.req.Extension.On {
		a := &ss.flow.account
		note := serverNote{Peer: ss.flow.peer.addr(), Local: local, Engine: ss.flow.engine, Group: ss.group, Drops: ss.drops.since(addrOf(ss.conn.LocalAddr()).Addr()),
			Unique: a.unique, Duplicates: a.duplicates, Reordered: a.reordered}
		if !ss.test.UDP() {
			note.Peer = peerOf(ss.flow.fd)
		}
		switch ss.test {
		case TCPBandwidth, TCPStreams, UDPBandwidth:
			note.Series = ss.flow.parts.series()
		}
		trailer, _ = json.Marshal(note) // plain fields: cannot fail
	}
	_, err := ss.conn.Write(append(stat.encode(len(trailer)), trailer...))
	return control("send results", err)
}

func readSync(conn net.Conn, want string) error {
	b := make([]byte, len(want))
	if _, err := io.ReadFull(conn, b); err != nil {
		return control("receive "+want, err)
	}
	if string(b) != want {
		return fmt.Errorf("failed to receive %s: got %q", want, b)
	}
	return nil
}

// An endpoint is the server's data socket before the client has come.
type endpoint struct {
	tcp   *net.TCPListener
	udp   *net.UDPConn
	local netip.AddrPort
}

// open binds the data port. Another test may hold it for the rest of its run: then it is
// tried again until the client's patience ends or the client itself does.
func (ss *session) open() (*endpoint, uint16, error) {
	if ss.req.Port > 65535 {
		return nil, 0, fmt.Errorf("data port %d: no such port", ss.req.Port)
	}
	for end := time.Now().Add(ss.timeout * 9 / 10); ; time.Sleep(20 * time.Millisecond) {
		e, err := ss.bind(addrOf(ss.conn.LocalAddr()).Addr(), ss.req.Port)
		if err == nil {
			return e, e.local.Port(), nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) || hungUp(ss.conn) {
			return nil, 0, fmt.Errorf("data port %d: %w", ss.req.Port, err)
		}
	}
}

// bind binds to the address that the client used for its control connection. A datagram
// socket on the wildcard address of a host with several could answer from another one
// than was asked, which the client's connected socket drops.
func (ss *session) bind(addr netip.Addr, port uint32) (*endpoint, error) {
	at := netip.AddrPortFrom(addr, uint16(port))
	if ss.test.UDP() {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return nil, err
		}
		return &endpoint{udp: c, local: addrOf(c.LocalAddr())}, nil
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	_ = l.SetDeadline(time.Now().Add(min(ss.timeout, maxArrival)))
	return &endpoint{tcp: l, local: addrOf(l.Addr())}, nil
}

// accept gives the blocking descriptors of the data sockets; of streams, after the client
// has connected them all. That of the listener itself comes second for tcp_crr.
func (e *endpoint) accept(test Test, streams int) (fds []int, err error) {
	if e.udp != nil {
		fd, err := blocking(e.udp, e.udp.Close)
		return []int{fd}, err
	}
	defer e.tcp.Close()
	for range streams {
		c, err := e.tcp.AcceptTCP()
		if err != nil {
			return fds, control("receive data connection", err)
		}
		fd, err := blockingTCP(c)
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
	}
	if test != TCPConnect {
		return fds, nil
	}
	fd, err := blocking(e.tcp, e.tcp.Close)
	return append(fds, fd), err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func (e *endpoint) Close() error {
	if e.udp != nil {
		return e.udp.Close()
	}
	return e.tcp.Close()
}
