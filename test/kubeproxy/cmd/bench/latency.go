package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/test/kubeproxy/internal/node"
)

// latency is how long connect() to a cluster IP takes from a client beside the
// node.
type latency struct {
	Proxy    string  `json:"proxy"`
	Services int     `json:"services"`
	Connect  samples `json:"connect"`
}

// batches is how often the clusters take turns, so that what the machine does
// meanwhile is shared by both.
const batches = 40

// latencies times connections in a small and in a big cluster in turns, and in a
// small one of kube-proxy.
func (o options) latencies(ctx context.Context) ([]latency, error) {
	worlds := []struct {
		proxy    string
		services int
	}{{"podlane", o.latencyFew}, {"podlane", o.latencyN}, {"nftables", o.latencyFew}}
	var runs []*run
	for i, w := range worlds {
		r, err := o.probe(ctx, fmt.Sprint("latency-", i), w.proxy, w.services)
		if r != nil {
			defer r.close()
		}
		if err != nil {
			return nil, fmt.Errorf("%s, %d Services: %w", w.proxy, w.services, err)
		}
		runs = append(runs, r)
	}
	times := make([][]time.Duration, len(runs))
	for range batches {
		for i, r := range runs {
			ts, err := r.connects(o.connections / batches)
			if err != nil {
				return nil, fmt.Errorf("%s, %d Services: %w", r.Proxy, r.Services, err)
			}
			times[i] = append(times[i], ts...)
		}
	}
	var out []latency
	for i, r := range runs {
		out = append(out, latency{r.Proxy, r.Services, summary(times[i])})
	}
	return out, nil
}

func (r *run) close() {
	r.process.Kill()
	r.node.Close()
}

const probeAddr = "10.244.0.2"

// probe is a loaded node with one Service that somebody answers for.
func (o options) probe(ctx context.Context, name, proxy string, services int) (*run, error) {
	n, err := node.New(filepath.Join(o.dir, name))
	if err != nil {
		return nil, err
	}
	r := &run{options: o, cell: &cell{Proxy: proxy, Services: services, Endpoints: 10}, node: n, ours: proxy == "podlane"}
	n.Fill(services, 10)
	n.API.Set("endpointslices", node.Slice(node.ServiceName(services/2), []string{probeAddr}))
	if err := r.cold(ctx); err != nil {
		n.Close()
		return nil, err
	}
	if r.Cold.Not != "" {
		return r, errors.New(r.Cold.Not)
	}
	return r, n.Do(func() error {
		if out, err := exec.Command("ip", "addr", "add", probeAddr+"/32", "dev", "lo").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		l, err := net.Listen("tcp", probeAddr+":8080")
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
			}
		}()
		return nil
	})
}

// connects times connect() by system calls of the client's own thread.
func (r *run) connects(n int) (ts []time.Duration, err error) {
	to := &unix.SockaddrInet4{Addr: netip.MustParseAddr(node.ClusterIP(r.Services / 2)).As4(), Port: 80}
	err = r.node.DoClient(func() error {
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			start := time.Now()
			err = unix.Connect(fd, to)
			took := time.Since(start)
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			_ = unix.Close(fd)
			if err != nil && !errors.Is(err, unix.ECONNRESET) {
				return err
			}
			ts = append(ts, took)
		}
		return nil
	})
	return ts, err
}
