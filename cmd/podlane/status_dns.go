package main

import (
	"fmt"
	"io"

	"github.com/podlane/podlane/agent"
)

// printDNSStatus says where this node's queries go.
func printDNSStatus(w io.Writer, s *agent.DNSStatus) {
	switch {
	case s == nil:
		return
	case len(s.Addrs) == 0:
		fmt.Fprintf(w, "DNS: there is no Service %s\n", s.Service)
		return
	}
	fmt.Fprintf(w, "DNS %s (%s): %d servers, %d on this node", addrText(s.Addrs), s.Service, s.Servers, s.Here)
	switch {
	case len(s.Silent) > 0:
		fmt.Fprintf(w, "; NO ANSWER from %s here: other nodes' are asked, where there are any", addrText(s.Silent))
	case s.Here > 0 && s.Servers > 1 && !s.SameNode:
		fmt.Fprint(w, "; queries go to all nodes' servers: the Service has no trafficDistribution PreferSameNode, or the API server does not know it (it does from Kubernetes 1.34 on)")
	}
	fmt.Fprintln(w)
}
