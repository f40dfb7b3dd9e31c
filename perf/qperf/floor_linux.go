package qperf

import (
	"context"
	"log/slog"
	"net/netip"
	"time"
)

// A Floor is what the engine itself takes where there is no path: tcp_lat over loopback, client and server in one
// process. No path's figure can be below it, and it is part of each.
type Floor struct {
	Latency float64 `json:"latency"` // seconds, one way, the median
	CPU     float64 `json:"cpu"`     // seconds for a message, of both ends' threads
}

// measureFloor is nil where there is no loopback.
func measureFloor(ctx context.Context) *Floor {
	s, err := Listen(ServerConfig{Addr: netip.MustParseAddr("127.0.0.1"), Port: -1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(ctx) }()
	defer func() { stop(); <-served }()
	r, err := Run(ctx, TCPLatency, Options{
		Server: "127.0.0.1", Port: int(s.Addr().Port()), Time: 200 * time.Millisecond, Warmup: tick, Wait: -1})
	if err != nil || r.Latency.Count == 0 || r.Engine == nil {
		return nil
	}
	l, m := r.Engine.Local, r.Engine.Remote
	messages := float64(r.Local.Received.Messages + r.Remote.Received.Messages)
	return &Floor{Latency: r.Latency.P50, CPU: (l.User + l.System + m.User + m.System) / messages}
}
