package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/podlane/podlane/dns"
	"github.com/podlane/podlane/internal/memory"
)

// dnsServer is a running server with what feeds it.
type dnsServer struct {
	flags     dnsFlags
	server    *dns.Server
	forwarder *dns.Forwarder
	source    dnsSource
	zone      dns.Config
	http      []*httpServer
	log       *slog.Logger
}

// run answers until ctx ends, then drains.
func (d *dnsServer) run(ctx context.Context) error {
	g, rest := errgroup.WithContext(context.WithoutCancel(ctx))
	rest, stop := context.WithCancel(rest)
	serving, end := context.WithCancel(ctx)
	defer end()
	context.AfterFunc(rest, end) // another part failed
	g.Go(func() error { return d.source.Run(rest) })
	g.Go(func() error { d.follow(rest); return nil })
	if d.forwarder != nil {
		g.Go(func() error { return d.forwarder.Run(rest) })
		g.Go(func() error { d.followResolvers(rest); return nil })
	}
	for _, h := range d.http {
		g.Go(func() error { return h.run(rest) })
	}
	g.Go(func() error {
		defer stop()
		return d.server.Run(serving)
	})
	return g.Wait()
}

// follow makes the newest Snapshot the zone.
func (d *dnsServer) follow(ctx context.Context) {
	var z *dns.Zone
	pods := dnsClients{node: d.flags.node}
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-d.source.Snapshots():
			if z == nil {
				d.log.Info("dns: synced", "services", s.Services.Len())
				memory.Started()
			}
			z = dns.Compile(z, s, d.zone)
			d.server.SetZone(z)
			if pods.take(s) {
				d.server.SetClients(maps.Clone(pods.addrs))
			}
		}
	}
}

// httpServer is one address with the pages asked for there.
type httpServer struct {
	listener net.Listener
	mux      *http.ServeMux
}

func (h *httpServer) run(ctx context.Context) error {
	s := &http.Server{Handler: h.mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(h.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("http %s: %w", h.listener.Addr(), err)
	}
	return nil
}

// listenHTTP opens the addresses of --health and --metrics, which may be one.
func (d *dnsServer) listenHTTP(health, metrics string) ([]*httpServer, error) {
	muxes := map[string]*http.ServeMux{}
	mux := func(addr string) *http.ServeMux {
		if muxes[addr] == nil {
			muxes[addr] = http.NewServeMux()
		}
		return muxes[addr]
	}
	if health != "" {
		d.health(mux(health))
		mux(health).HandleFunc("/queries", d.queries)
	}
	if metrics != "" {
		d.metrics(mux(metrics))
	}
	var out []*httpServer
	for addr, m := range muxes {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("dns: listen %s for HTTP: %w", addr, err)
		}
		d.log.Info("dns: http", "addr", l.Addr().String())
		out = append(out, &httpServer{l, m})
	}
	return out, nil
}

func (d *dnsServer) health(mux *http.ServeMux) {
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !d.server.Ready() {
			http.Error(w, "not ready: the cluster has not been read yet, or the server is about to end", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
}

func (d *dnsServer) metrics(mux *http.ServeMux) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(d.server.Collector(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
}
