package ports

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Server names our answers, so that they are not taken for kube-proxy's.
const Server = "podlane"

// rebind is how often a port that someone else has is tried again.
const rebind = 2 * time.Second

// Addresses are where the proxy answers: host:port, or "" for nowhere.
type Addresses struct {
	Health  string // /healthz, /livez; kube-proxy's is 0.0.0.0:10256
	Metrics string // /metrics, /proxyMode, /configz, /healthz; kube-proxy's is 127.0.0.1:10249
}

// Defaults are the addresses where tools look for kube-proxy, of both families.
var Defaults = Addresses{Health: ":10256", Metrics: "127.0.0.1:10249"}

// Ports are the servers on Addresses. Their fields do not change once they run.
type Ports struct {
	Addresses
	Health  *Health
	Metrics *Metrics
	Mode    string // the backend: "nftables", "iptables"
	Config  any    // what /configz shows
	Log     *slog.Logger
	// On says whether the node's Services are ours: elsewhere another proxy has the
	// ports, and we leave them to it.
	On atomic.Bool
}

// Run serves until ctx ends. An address that is in use is tried again and again,
// since the proxy before us may still be ending; it is never an error.
func (p *Ports) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { p.serve(ctx, p.Addresses.Health, p.healthMux()) })
	wg.Go(func() { p.serve(ctx, p.Addresses.Metrics, p.metricsMux()) })
	wg.Wait()
	return nil
}

func (p *Ports) serve(ctx context.Context, addr string, mux *http.ServeMux) {
	if addr == "" {
		return
	}
	said := false
	for ctx.Err() == nil {
		if p.On.Load() {
			err := p.serveOnce(ctx, addr, mux)
			if err != nil && !said {
				said = true
				p.Log.Warn("port of the service proxy; it is tried again", "addr", addr, "err", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(rebind):
		}
	}
}

func (p *Ports) serveOnce(ctx context.Context, addr string, mux *http.ServeMux) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: named(mux), ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("http %s: %w", addr, err)
	}
	return nil
}

func named(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", Server)
		h.ServeHTTP(w, r)
	})
}

func (p *Ports) healthMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("/healthz", p.Health.serve(true, p.Metrics.countHealthz))
	mux.Handle("/livez", p.Health.serve(false, p.Metrics.countLivez))
	return mux
}

func (p *Ports) metricsMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("/metrics", p.Metrics.Handler())
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		fmt.Fprint(w, p.Mode)
	})
	mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, http.StatusOK, p.Config) })
	return mux
}
