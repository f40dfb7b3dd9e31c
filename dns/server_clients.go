package dns

import (
	"net/netip"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/podlane/podlane/cluster"
)

// maxNamespaces bounds what is counted by namespace; the rest counts as "".
const maxNamespaces = 1000

// clients are the pods that ask, by address.
type clients struct {
	pods map[netip.Addr]*client
	// searched counts by namespace. It only grows, so that counters never go back.
	searched map[string]*atomic.Uint64
}

type client struct {
	pod      cluster.Key
	searched *atomic.Uint64
}

// SetClients says which pods have which addresses: for the query log, and to count
// the search path's questions by namespace. One goroutine calls it.
func (s *Server) SetClients(pods map[netip.Addr]cluster.Key) {
	next := &clients{make(map[netip.Addr]*client, len(pods)), map[string]*atomic.Uint64{}}
	if old := s.clients.Load(); old != nil {
		for ns, n := range old.searched {
			next.searched[ns] = n
		}
	}
	for a, k := range pods {
		next.pods[a] = &client{k, next.counter(k.Namespace)}
	}
	s.clients.Store(next)
}

func (c *clients) counter(ns string) *atomic.Uint64 {
	if c.searched[ns] == nil && len(c.searched) >= maxNamespaces {
		ns = ""
	}
	if c.searched[ns] == nil {
		c.searched[ns] = &atomic.Uint64{}
	}
	return c.searched[ns]
}

func (s *Server) client(a netip.Addr) *client {
	c := s.clients.Load()
	if c == nil {
		return nil
	}
	return c.pods[a.Unmap()]
}

// pod gives the pod of an address, or no key.
func (s *Server) pod(a netip.Addr) cluster.Key {
	if c := s.client(a); c != nil {
		return c.pod
	}
	return cluster.Key{}
}

// searched counts a question that a search path made of another.
func (s *Server) searched(n Name, from netip.Addr) {
	c := s.client(from)
	if c == nil {
		return
	}
	if z := s.zone.Load(); z != nil && z.Searched(n, c.pod.Namespace) {
		c.searched.Add(1)
	}
}

var descSearched = prometheus.NewDesc("podlane_dns_search_path_questions_total",
	"Counter of the questions for names that only a pod's search path (ndots) made, by the pod's namespace.", []string{"namespace"}, nil)

func (s *Server) collectSearched(ch chan<- prometheus.Metric) {
	c := s.clients.Load()
	if c == nil {
		return
	}
	for ns, n := range c.searched {
		ch <- counter(descSearched, n.Load(), ns)
	}
}
