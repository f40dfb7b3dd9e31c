package ports

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

// Checks are the servers on the healthCheckNodePorts: load balancers ask there
// whether this node has endpoints of a Service whose externalTrafficPolicy is
// Local. Each family has a server of its own, which counts its own endpoints, and
// answers where NodePorts do. The methods are for one goroutine.
type Checks struct {
	health  *Health
	log     *slog.Logger
	table   *proxy.Table
	servers map[cluster.Key]*check
	answers atomic.Pointer[[]netip.Prefix] // Table.NodePorts
	// Warn, where it is set, is told once of a port that cannot be opened.
	Warn func(service cluster.Key, reason, message string)
}

// failed is kube-proxy's reason of an Event.
const failed = "FailedToStartServiceHealthcheck"

// NewChecks gives Checks that report the proxy's health too.
func NewChecks(h *Health, log *slog.Logger) *Checks {
	return &Checks{health: h, log: log, table: &proxy.Table{}, servers: map[cluster.Key]*check{}}
}

// check is the servers of one Service.
type check struct {
	key       cluster.Key
	port      uint16
	endpoints [2]atomic.Int64 // by family, as proxy.Family
	servers   []*http.Server
	err       error // why it does not listen
}

// Update follows the Table; it costs what changed. A port that is in use is the
// problem of that Service alone.
func (c *Checks) Update(t *proxy.Table) {
	c.answers.Store(&t.NodePorts)
	for change := range t.Services.Changed(c.table.Services) {
		c.update(change.Key, change.New)
	}
	c.table = t
}

func (c *Checks) update(k cluster.Key, e *proxy.Entry) {
	have := c.servers[k]
	if have != nil && (e == nil || e.HealthCheckNodePort != have.port) {
		have.close()
		delete(c.servers, k)
		have = nil
	}
	if e == nil || e.HealthCheckNodePort == 0 {
		return
	}
	if have == nil {
		have = &check{key: k, port: e.HealthCheckNodePort}
		c.servers[k] = have
		c.listen(have)
	}
	for i, n := range e.LocalReady {
		have.endpoints[i].Store(int64(n))
	}
}

// Retry tries again to listen where that was not possible.
func (c *Checks) Retry() {
	for _, have := range c.servers {
		if have.err != nil {
			c.listen(have)
		}
	}
}

// Close ends all servers.
func (c *Checks) Close() {
	for k, have := range c.servers {
		have.close()
		delete(c.servers, k)
	}
	c.table = &proxy.Table{}
}

// Problems are the ports that could not be opened, sorted by Service.
func (c *Checks) Problems() []cluster.Problem {
	var ps []cluster.Problem
	for k, have := range c.servers {
		if have.err != nil {
			ps = append(ps, cluster.Problem{Kind: "Service", Key: k, Field: "spec.healthCheckNodePort",
				Err: fmt.Sprintf(failed+": %v: load balancers cannot ask this node; free the port", have.err)})
		}
	}
	slices.SortFunc(ps, func(a, b cluster.Problem) int { return a.Key.Compare(b.Key) })
	return ps
}

func (c *Checks) listen(s *check) {
	before := s.err
	s.err = nil
	var listeners []net.Listener
	for i, network := range [...]string{"tcp4", "tcp6"} {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), network, ":"+strconv.Itoa(int(s.port)))
		if err != nil {
			if i == 1 && len(listeners) == 1 && !inUse(err) {
				break // a node without IPv6
			}
			s.err = errors.Join(s.err, err)
			continue
		}
		server := &http.Server{Handler: c.handler(s, i), ReadHeaderTimeout: 5 * time.Second}
		s.servers, listeners = append(s.servers, server), append(listeners, nodePortsOnly{l, c})
	}
	if s.err != nil {
		for _, l := range listeners {
			_ = l.Close()
		}
		s.servers = nil
		if before == nil {
			c.log.Warn(failed, "service", s.key, "err", s.err)
			if c.Warn != nil {
				c.Warn(s.key, failed, fmt.Sprintf("healthCheckNodePort %d: %v", s.port, s.err))
			}
		}
		return
	}
	for i, l := range listeners {
		go s.serve(s.servers[i], l)
	}
}

// nodePortsOnly ends connections to addresses that do not answer to NodePorts.
type nodePortsOnly struct {
	net.Listener
	checks *Checks
}

func (l nodePortsOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if at, ok := conn.LocalAddr().(*net.TCPAddr); !ok || l.checks.answersAt(at.AddrPort().Addr().Unmap()) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

// answersAt says whether an address answers; where no address is known to, all do.
func (c *Checks) answersAt(a netip.Addr) bool {
	of := *c.answers.Load()
	return len(of) == 0 || slices.ContainsFunc(of, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (s *check) serve(server *http.Server, l net.Listener) { _ = server.Serve(l) }

func (s *check) close() {
	for _, server := range s.servers {
		_ = server.Close()
	}
	s.servers = nil
}

// serviceText is kube-proxy's answer.
type serviceText struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int64 `json:"localEndpoints"`
	ServiceProxyHealthy bool  `json:"serviceProxyHealthy"`
}

func (c *Checks) handler(s *check, family int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t := serviceText{LocalEndpoints: s.endpoints[family].Load(), ServiceProxyHealthy: c.health.Healthy()}
		t.Service.Namespace, t.Service.Name = s.key.Namespace, s.key.Name
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(t.LocalEndpoints, 10))
		code := http.StatusServiceUnavailable
		if t.LocalEndpoints > 0 && t.ServiceProxyHealthy {
			code = http.StatusOK
		}
		answerJSON(w, code, t)
	})
}
