package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// PodHeader names, in a stand-in's HTTP answer, the pod that answered.
const PodHeader = "Podlane-Pod"

// StandIn is a stand-in for an image: a process of a lab.
type StandIn struct {
	Image string
	Pod   string
	Ports []string // "80/tcp", "53/udp"
}

// Run serves the ports until ctx ends; without ports it only waits. It says on
// log what it is.
func (s StandIn) Run(ctx context.Context, log io.Writer) error {
	failed := make(chan error, len(s.Ports))
	for _, p := range s.Ports {
		number, protocol, _ := strings.Cut(p, "/")
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return fmt.Errorf("port %q: want NUMBER/tcp or NUMBER/udp", p)
		}
		serve := s.serveHTTP
		if protocol == "udp" {
			serve = s.serveUDP
		}
		if err := serve(ctx, ":"+strconv.FormatUint(port, 10), failed); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(log, "lab: %s stand-in for pod %s, ports %s\n", s.Image, s.Pod, strings.Join(s.Ports, " "))
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// text is the answer: what answers, which pod, and whom it sees.
func (s StandIn) text(client string) string {
	if a, err := netip.ParseAddrPort(client); err == nil {
		client = netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
	}
	return fmt.Sprintf("lab: %s stand-in\npod: %s\nclient: %s\n", s.Image, s.Pod, client)
}

func (s StandIn) serveHTTP(ctx context.Context, addr string, failed chan<- error) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(PodHeader, s.Pod)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, s.text(r.RemoteAddr))
	})}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { failed <- server.Serve(listener) }()
	return nil
}

func (s StandIn) serveUDP(ctx context.Context, addr string, failed chan<- error) error {
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			_, from, err := conn.ReadFrom(buf)
			if err != nil {
				failed <- err
				return
			}
			_, _ = conn.WriteTo([]byte(s.text(from.String())), from)
		}
	}()
	return nil
}
