package peer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/miekg/dns"
)

// Server is a running DNS server.
type Server struct {
	*Process
	Name, Addr string
}

// corefile is what kubeadm installs, less what concerns a pod alone (health,
// ready, loop, reload) and, where the order of records matters to nobody,
// loadbalance.
const corefile = `.:%s {
    bind %s
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods %s
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . %s
    %s
}
`

// Setup says what both servers are to do.
type Setup struct {
	Kubeconfig, Upstream, Pods string
	Cache                      bool // CoreDNS's cache plugin, as kubeadm has it
	AllEndpoints               bool // podlane's --endpoint-names all
}

// StartCoreDNS starts CoreDNS and waits until it answers the cluster's names.
func StartCoreDNS(ctx context.Context, program, dir string, s Setup) (*Server, error) {
	addr := FreeAddr()
	host, port, err := splitAddr(addr)
	if err != nil {
		return nil, err
	}
	cache := ""
	if s.Cache {
		cache = "cache 30 {\n disable success cluster.local\n disable denial cluster.local\n }\n prometheus 127.0.0.1:0\n loadbalance"
	}
	path := filepath.Join(dir, "Corefile-"+port)
	text := fmt.Sprintf(corefile, port, host, s.Kubeconfig, s.Pods, s.Upstream, cache)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p, err := Start(program, dir, "-conf", path)
	if err != nil {
		return nil, err
	}
	return await(ctx, &Server{p, "coredns", addr})
}

// StartPodlane starts podlane dns and waits until it answers the cluster's names.
func StartPodlane(ctx context.Context, program, dir string, s Setup) (*Server, error) {
	addr := FreeAddr()
	args := []string{"dns", "--kubeconfig", s.Kubeconfig, "--listen", addr, "--upstream", s.Upstream, "--pods", s.Pods}
	if s.AllEndpoints {
		args = append(args, "--endpoint-names", "all")
	}
	p, err := Start(program, dir, args...)
	if err != nil {
		return nil, err
	}
	return await(ctx, &Server{p, "podlane", addr})
}

func await(ctx context.Context, s *Server) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	m := new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA)
	for {
		r, err := dns.Exchange(m, s.Addr)
		if err == nil && len(r.Answer) == 1 {
			return s, nil
		}
		select {
		case <-s.Ended:
			return nil, fmt.Errorf("%s ended: %s", s.Name, s.Log())
		case <-ctx.Done():
			s.Kill()
			return nil, fmt.Errorf("%s does not answer: %v: %s", s.Name, err, s.Log())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
