package agent

import (
	"errors"
	"net/netip"
	"slices"
	"sync"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/hostport"
	"github.com/podlane/podlane/internal/newest"
	"github.com/podlane/podlane/kernel/conntrack"
)

// portFlows is what is known of the UDP flows to ports of the node that lead to its
// pods. The loop tells of the ports before they are in the kernel, and once more when
// they are; the goroutine of the flows looks at these then.
type portFlows struct {
	applied newest.Chan[published]
	due     published // of the goroutine of the flows: what to look for; the zero value: nothing

	mu    sync.Mutex
	index hostport.Flows
}

// published is a change of the ports and which families the kernel has it of, by
// proxy.Family: one that cannot be brought there does not keep the other one's flows waiting.
type published struct {
	change   int
	has      [2]bool
	snapshot *cluster.Snapshot // the newest then
}

// begin tells of what an agent before this one has left.
func (p *portFlows) begin(ports []hostport.Port, pods []netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index.Begin(ports, pods)
}

// update tells of the ports to come, and gives the number of the change.
func (p *portFlows) update(ports []hostport.Port) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index.Update(ports)
	return p.index.Change()
}

// look says which families' flows are to be looked at, by proxy.Family.
func (p *portFlows) look() [2]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return [2]bool{p.due.has[0] && p.index.Any(false), p.due.has[1] && p.index.Any(true)}
}

func (p *portFlows) begun() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index.Begun()
}

func (p *portFlows) stale(dst, answer netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index.Stale(dst, answer)
}

func (p *portFlows) settled(change int, v6 bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index.Settled(change, v6)
}

// lookPorts forgets the flows to ports of the node that lead elsewhere than the rules, of
// the families that the kernel has. What a Service answers for is the Services' own.
func (f *flows) lookPorts() error {
	if look := f.ports.look(); look != [2]bool{} {
		if err := f.forgetPorts(look); err != nil {
			return err
		}
	}
	f.ports.due = published{}
	return nil
}

func (f *flows) forgetPorts(look [2]bool) error {
	conn, err := conntrack.Dial(0)
	if err != nil {
		return err
	}
	defer conn.Close()
	own, err := ownAddrs()
	if err != nil {
		return err
	}
	served := f.index.Has
	if !f.ports.begun() {
		others := frontends(f.ports.due.snapshot)
		served = func(at netip.AddrPort) bool { return f.index.Has(at) || others(at) }
	}
	stale := func(flow conntrack.Flow) bool {
		dst := flow.Orig.Dst
		return !dst.Addr().IsLoopback() && own(dst.Addr()) && !served(dst) && f.ports.stale(dst, flow.Reply.Src)
	}
	var errs []error
	for i, v6 := range []bool{false, true} {
		if !look[i] {
			continue
		}
		err := f.forgetPortsOf(conn, v6, stale)
		if err == nil {
			f.ports.settled(f.ports.due.change, v6)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// forgetPortsOf looks at the flows of one family.
func (f *flows) forgetPortsOf(conn *conntrack.Conn, v6 bool, stale func(conntrack.Flow) bool) error {
	found, err := find(conn, v6, stale)
	errs, n := []error{err}, 0
	for _, flow := range found {
		if stale(flow) {
			errs = append(errs, conn.Delete(flow))
			n++
		}
	}
	if n > 0 {
		f.log.Info("stale UDP flows to hostPorts forgotten", "flows", n)
	}
	return errors.Join(errs...)
}

// frontends says where a Service may answer over UDP, whoever serves it: an agent that has
// just begun may know of none yet, and other proxies' are never known.
func frontends(s *cluster.Snapshot) func(netip.AddrPort) bool {
	fronts := map[netip.AddrPort]bool{} // without an address: node ports
	for _, svc := range s.Services.All() {
		for _, p := range svc.Ports {
			if p.Protocol != cluster.UDP {
				continue
			}
			fronts[netip.AddrPortFrom(netip.Addr{}, p.NodePort)] = true
			for _, a := range slices.Concat(svc.ClusterIPs, svc.ExternalIPs, svc.LoadBalancerIPs) {
				fronts[netip.AddrPortFrom(a, p.Port)] = true
			}
		}
	}
	return func(at netip.AddrPort) bool {
		return fronts[at] || fronts[netip.AddrPortFrom(netip.Addr{}, at.Port())]
	}
}
