package qperf

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// Run runs one test. It gives an error when the test did not take place as asked; what was
// lost on the way is part of the result.
func Run(ctx context.Context, test Test, o Options) (*Result, error) {
	o = o.withDefaults()
	if err := o.check(test); err != nil {
		return nil, err
	}
	conn, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	c := &client{conn: conn, test: test, options: o}
	c.path = PathFacts{Control: addrOf(conn.RemoteAddr()), MTU: pathMTU(conn)}
	if c.options.MsgSize == 0 {
		c.options.MsgSize = c.size()
	}
	if test == UDPSearch {
		return search(ctx, c)
	}
	result, err := c.run(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%s to %s: %w", test, o.Server, err)
	}
	return result, nil
}

// connect tries until the server is there or the patience for it ends.
func connect(ctx context.Context, o Options) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: o.Timeout}
	for end := time.Now().Add(o.Wait); ; {
		conn, err := dialer.DialContext(ctx, "tcp", hostPort(o.Server, o.Port))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !time.Now().Before(end) {
			return nil, fmt.Errorf("%s: failed to connect: %w", o.Server, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// A client is one test on one control connection.
type client struct {
	conn    *net.TCPConn
	test    Test
	options Options
	path    PathFacts
	nonce   uint32
	own     bool // the server speaks the extension
	stopped atomic.Bool
}

// size is the test's own: for udp_bw what goes whole through the path, where qperf's 32 KiB would go in fragments.
func (c *client) size() int {
	if c.test != UDPBandwidth && c.test != UDPSearch || c.options.Plain {
		return c.test.DefaultSize()
	}
	return c.path.FittingDatagram()
}

func (c *client) deadline() { deadline(c.conn, c.options.Timeout) }

func (c *client) run(ctx context.Context) (*Result, error) {
	c.deadline()
	if _, err := c.conn.Write(c.request().encode()); err != nil {
		return nil, control("send request", err)
	}
	if c.test == Conf {
		return c.conf(ctx)
	}
	port, err := c.readPort()
	if err != nil {
		return nil, err
	}
	fds, err := c.dialAll(ctx, port)
	defer closeAll(fds)
	switch {
	case err != nil:
		return nil, err
	case !c.own && forms[c.test].own:
		return nil, errNeedsOwn
	case !c.own && (c.options.Time%time.Second != 0 || c.options.Warmup > 0):
		return nil, ErrPlainServer
	}
	return c.measure(ctx, fds, port)
}

func (c *client) request() request {
	o := c.options
	r := request{
		Major: verMaj, Minor: verMin, Inc: verInc, Index: forms[c.test].index,
		MsgSize: uint32(o.MsgSize), Port: uint32(o.DataPort), SockBuf: uint32(o.SockBuf),
		Time: wholeSeconds(o.Time), Timeout: wholeSeconds(o.Timeout),
	}
	if !o.Plain {
		c.nonce = rand.Uint32()
		r.Extension = extension{On: true, Duration: o.Time, Warmup: o.Warmup, Nonce: c.nonce}
		if c.test == TCPStreams {
			r.Extension.Streams = uint32(o.Streams)
		}
		if c.test == UDPOpen {
			r.Extension.Duration += grace // the last ones are answered too
		}
	}
	return r
}

// wholeSeconds rounds up: the wire has no smaller unit, and 0 means no end.
func wholeSeconds(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

func (c *client) conf(ctx context.Context) (*Result, error) {
	b := make([]byte, confSize)
	if n, err := io.ReadFull(c.conn, b); err != nil {
		return nil, c.blame(b[:n], "receive configuration", err)
	}
	r := c.result()
	r.Conf = &Machines{Local: ThisMachine(), Remote: decodeMachine(b)}
	if rest, err := io.ReadAll(io.LimitReader(c.conn, 16<<10)); err == nil && len(rest) > 0 && !c.options.Plain {
		theirs := &Facts{}
		if json.Unmarshal(rest, theirs) == nil {
			ours := ReadFacts(addrOf(c.conn.LocalAddr()).Addr())
			if c.options.Floor {
				ours.Floor = measureFloor(ctx)
			}
			r.Facts, r.Extended = &BothFacts{Local: ours, Remote: *theirs}, true
		}
	}
	return r, nil
}

func (c *client) readPort() (uint16, error) {
	b := make([]byte, portSize)
	if n, err := io.ReadFull(c.conn, b); err != nil {
		return 0, c.blame(b[:n], "receive port", err)
	}
	word := binary.LittleEndian.Uint32(b)
	c.own = !c.options.Plain && word>>16 == portAck
	if word > 65535 && !c.own || word&0xffff == 0 {
		return 0, c.blame(b, "receive port", nil)
	}
	return uint16(word), nil
}

// blame makes an error out of something impossible on the control connection. A qperf that gives
// up writes its reason in the place of the next message, after an out-of-band byte that
// ordinary reads do not see.
func (c *client) blame(got []byte, what string, err error) error {
	deadline(c.conn, time.Second)
	rest, _ := io.ReadAll(io.LimitReader(c.conn, 256))
	if text := append(got, rest...); len(text) > 0 && printable(text) {
		return fmt.Errorf("server: %s", text)
	}
	if err == nil {
		err = errors.New("not the protocol of qperf")
	}
	return control(what, err)
}

func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// dialAll makes the data connections.
func (c *client) dialAll(ctx context.Context, port uint16) (fds []int, err error) {
	streams := 1
	if c.test == TCPStreams {
		streams = c.options.Streams
	}
	for range streams {
		fd, err := c.dialData(ctx, port)
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
		if c.options.Pace > 0 && !c.test.UDP() {
			if err := pace(fd, c.options.Pace/float64(streams)); err != nil {
				return fds, err
			}
		}
	}
	return fds, nil
}

// dialData connects to the very address the control connection reached: resolving the name again, as qperf does, may give another.
func (c *client) dialData(ctx context.Context, port uint16) (int, error) {
	network := "tcp"
	if c.test.UDP() {
		network = "udp"
	}
	dialer := net.Dialer{Timeout: c.options.Timeout}
	conn, err := dialer.DialContext(ctx, network, netip.AddrPortFrom(c.path.Control.Addr(), port).String())
	if err != nil {
		return -1, fmt.Errorf("could not make data connection to server: %w", err)
	}
	c.path.Local, c.path.Data = addrOf(conn.LocalAddr()), addrOf(conn.RemoteAddr())
	if tcp, ok := conn.(*net.TCPConn); ok {
		return blockingTCP(tcp)
	}
	udp := conn.(*net.UDPConn)
	return blocking(udp, udp.Close)
}

var clientLoops = map[Test]func(*flow){
	TCPBandwidth: sendStream, TCPLatency: pingStream, UDPBandwidth: sendDatagrams, UDPLatency: pingDatagrams,
	Rest: rest, TCPConnect: makeConnections, TCPStreams: sendStream, UDPPackets: sendDatagrams, UDPOpen: openDatagrams,
}

// measure runs the loop between the two synchronizations.
func (c *client) measure(ctx context.Context, fds []int, port uint16) (*Result, error) {
	c.deadline()
	drops := countDrops(c.path.Local.Addr())
	if err := c.synchronize(); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { c.stopped.Store(true) })()
	f := &flow{
		fd: fds[0], size: c.options.MsgSize, own: c.own, nonce: c.nonce, stop: &c.stopped, base: time.Now(),
		rate: c.options.Rate, server: c.path.Data, parts: newRecorder(),
	}
	if c.own {
		f.from = c.options.Warmup
	}
	f.until = f.from + c.options.Time
	meter := startMeter(f.from, f.until)
	f.runAll(fds, clientLoops[c.test])
	local, group := meter.stat(f.elapsed())
	local.Sent, local.Received = f.sent, f.received
	c.deadline()
	remote, note, err := c.readStat()
	if err != nil {
		return nil, err
	}
	if _, err := c.conn.Write([]byte(syncAfter)); err != nil {
		return nil, control("send "+syncAfter, err)
	}
	if f.failed != nil {
		return nil, f.failed
	}
	if f.over < f.until {
		return nil, fmt.Errorf("the data connection ended after %s of %s", f.elapsed().Round(time.Millisecond), c.options.Time)
	}
	r := c.result()
	r.Port = int(port)
	r.Local, r.Remote = &local, &remote
	r.learn(f, note, drops.since(c.path.Local.Addr()))
	if note != nil && (group != nil || note.Group != nil) {
		r.Groups = &BothGroups{group, note.Group}
	}
	return r, nil
}

func (c *client) synchronize() error {
	if _, err := c.conn.Write([]byte(syncBefore)); err != nil {
		return control("send "+syncBefore, err)
	}
	b := make([]byte, len(syncBefore))
	if n, err := io.ReadFull(c.conn, b); err != nil || string(b) != syncBefore {
		return c.blame(b[:n], "receive "+syncBefore, err)
	}
	return nil
}

// readStat reads the server's counters and, of a server of our own kind, what it says beside them.
func (c *client) readStat() (Stat, *serverNote, error) {
	b := make([]byte, statSize)
	if n, err := io.ReadFull(c.conn, b); err != nil {
		return Stat{}, nil, c.blame(b[:n], "receive results", err)
	}
	stat, trailer := decodeStat(b)
	if !c.own {
		return stat, nil, nil
	}
	text := make([]byte, min(trailer, 4096))
	if _, err := io.ReadFull(c.conn, text); err != nil {
		return stat, nil, control("receive results", err)
	}
	note := &serverNote{}
	if err := json.Unmarshal(text, note); err != nil {
		return stat, nil, fmt.Errorf("server's results: %w", err)
	}
	return stat, note, nil
}
