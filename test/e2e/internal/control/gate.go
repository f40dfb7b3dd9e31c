package control

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Gate is a way to a server that can be shut: it forwards TCP connections.
type Gate struct {
	Addr   string
	target string

	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]bool
}

// NewGate opens a way to target that ends with the test.
func NewGate(t testing.TB, target string) *Gate {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &Gate{Addr: l.Addr().String(), target: target, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		l.Close()
		g.Shut()
	})
	go g.accept(l)
	return g
}

func (g *Gate) accept(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go g.forward(in)
	}
}

func (g *Gate) forward(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp4", g.target)
	if err != nil {
		return
	}
	defer out.Close()
	if !g.enter(in, out) {
		return
	}
	go func() {
		io.Copy(out, in)
		out.Close()
	}()
	io.Copy(in, out)
}

func (g *Gate) enter(conns ...net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		g.conns[c] = true
	}
	return !g.shut
}

// Shut ends all connections, and each new one at once.
func (g *Gate) Shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
	for c := range g.conns {
		c.Close()
	}
	clear(g.conns)
}

// Open lets connections through again.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
}
