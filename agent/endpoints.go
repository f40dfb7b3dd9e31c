package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// mostConnections bounds the connections to the agent's port from outside of the node,
// pods too.
const mostConnections = 64

// endpoints answers the kubelet and Prometheus: /healthz whether the loop turns,
// /metrics, and to the node itself /readyz, whether it can serve pods, and why not.
func (s *serving) endpoints(ctx context.Context, addr string, metrics http.Handler) error {
	if addr == "" {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("probes: %w", err)
	}
	server := &http.Server{Handler: s.mux(metrics), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 8 << 10}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(&bounded{l, make(chan struct{}, mostConnections)}); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("probes: http %s: %w", addr, err)
	}
	return nil
}

func (s *serving) mux(metrics http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", ownNode(s.readyz))
	mux.Handle("GET /metrics", metrics)
	return mux
}

func (s *serving) healthz(w http.ResponseWriter, _ *http.Request) {
	if d := time.Since(time.Unix(0, s.turn.Load())); d > stuckAfter {
		http.Error(w, fmt.Sprintf("the agent's loop is stuck since %s", d.Round(time.Second)), http.StatusInternalServerError)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

func (s *serving) readyz(w http.ResponseWriter, _ *http.Request) {
	if why := cmp.Or(s.unready.Load(), s.pending.Load()); why != nil {
		http.Error(w, "not ready: "+*why, http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// ownNode answers to the node's own loopback address alone: what is wrong with the
// node is not for pods.
func ownNode(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !fromLoopback(r.RemoteAddr) {
			http.Error(w, "for the node itself", http.StatusForbidden)
			return
		}
		f(w, r)
	}
}

func fromLoopback(remote string) bool {
	from, err := netip.ParseAddrPort(remote)
	return err == nil && from.Addr().Unmap().IsLoopback()
}

// bounded holds no more connections of others at once than it has room for. One too
// many is closed, since it must keep nobody waiting, and the node's own are not
// counted: the kubelet asks from there.
type bounded struct {
	net.Listener
	room chan struct{}
}

type boundedConn struct {
	net.Conn
	free func()
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil || fromLoopback(c.RemoteAddr().String()) {
			return c, err
		}
		select {
		case b.room <- struct{}{}:
			return boundedConn{c, sync.OnceFunc(func() { <-b.room })}, nil
		default:
			_ = c.Close()
		}
	}
}

func (c boundedConn) Close() error {
	c.free()
	return c.Conn.Close()
}
