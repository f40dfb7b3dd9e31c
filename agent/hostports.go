package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/hostport"
	"github.com/podlane/podlane/kernel/nft"
)

// hostPorts keeps the table of the node's ports that lead to its pods.
type hostPorts struct {
	applied map[nft.Family][]hostport.Port // what the kernel has; nil after a doubt
	flows   *flows                         // told of what leads where
	begun   bool                           // what a former agent left is known
	node    string
}

// doubt says that the kernel may have others.
func (h *hostPorts) doubt() { h.applied = nil }

// changed is told of changes of tables by somebody else.
func (h *hostPorts) changed(e nft.Event) {
	if e.Lost || e.Table.Name == hostport.Name {
		h.doubt()
	}
}

// apply brings the pods' ports to the kernel. Without any there is no table.
func (h *hostPorts) apply(conn *nft.Conn, pods []cni.Allocation, s *cluster.Snapshot) error {
	want := portsOf(pods)
	if h.applied == nil {
		h.applied = map[nft.Family][]hostport.Port{}
	}
	if h.has(nft.IPv4, want) && h.has(nft.IPv6, want) {
		return nil
	}
	if !h.begun {
		h.flows.ports.begin(former(conn), podNetworks(s, h.node))
		h.begun = true
	}
	change := h.flows.ports.update(slices.Concat(want[nft.IPv4], want[nft.IPv6]))
	var errs []error
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		if h.has(f, want) {
			continue
		}
		if err := h.applyFamily(conn, f, want[f]); err != nil {
			errs = append(errs, fmt.Errorf("hostPorts, %s: %w", f, err))
		}
	}
	if has := [2]bool{h.has(nft.IPv4, want), h.has(nft.IPv6, want)}; has != [2]bool{} {
		h.flows.ports.applied.Send(published{change, has, s})
	}
	return errors.Join(errs...)
}

// portsOf gives the pods' ports by family.
func portsOf(pods []cni.Allocation) map[nft.Family][]hostport.Port {
	var all []hostport.Port
	for _, a := range pods {
		all = append(all, a.HostPorts()...)
	}
	return map[nft.Family][]hostport.Port{nft.IPv4: hostport.Ports(all, nft.IPv4), nft.IPv6: hostport.Ports(all, nft.IPv6)}
}

// podNetworks gives where the node's pods are, as far as that is known.
func podNetworks(s *cluster.Snapshot, node string) []netip.Prefix {
	own := s.Nodes.Get(cluster.Key{Name: node})
	if own == nil {
		return nil
	}
	return own.PodCIDRs
}

// has says that the kernel has what is wanted of a family.
func (h *hostPorts) has(f nft.Family, want map[nft.Family][]hostport.Port) bool {
	had, known := h.applied[f]
	return known && slices.Equal(had, want[f])
}

// former gives the ports that an agent before this one has left in the kernel.
func former(conn *nft.Conn) (ports []hostport.Port) {
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		onAll, onOne := hostport.Maps(f)
		all, _ := conn.Elements(onAll) // where there is no table, or another, nothing is known of it
		one, _ := conn.Elements(onOne)
		ports = append(ports, hostport.FromElements(f, all, one)...)
	}
	return ports
}

func (h *hostPorts) applyFamily(conn *nft.Conn, f nft.Family, ports []hostport.Port) error {
	had, known := h.applied[f]
	delete(h.applied, f)
	t := nft.Table{Family: f, Name: hostport.Name}
	var err error
	if len(ports) == 0 {
		err = deleteTable(conn, t)
	} else {
		err = conn.CommitWhole(t, hostport.Tx(f, ports), written(known, len(had) > 0, func() *nft.Tx { return hostport.Tx(f, had) }))
	}
	if err != nil {
		return err
	}
	h.applied[f] = ports
	return nil
}
