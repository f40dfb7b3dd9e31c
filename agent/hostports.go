package agent

import (
	"errors"
	"fmt"
	"slices"

	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/hostport"
	"github.com/podlane/podlane/kernel/nft"
)

// hostPorts keeps the table of the node's ports that lead to its pods.
type hostPorts struct {
	applied map[nft.Family][]hostport.Port // what the kernel has; nil after a doubt
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
func (h *hostPorts) apply(conn *nft.Conn, pods []cni.Allocation) error {
	var all []hostport.Port
	for _, a := range pods {
		all = append(all, a.HostPorts()...)
	}
	if h.applied == nil {
		h.applied = map[nft.Family][]hostport.Port{}
	}
	var errs []error
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		if err := h.applyFamily(conn, f, hostport.Ports(all, f)); err != nil {
			errs = append(errs, fmt.Errorf("hostPorts, %s: %w", f, err))
		}
	}
	return errors.Join(errs...)
}

func (h *hostPorts) applyFamily(conn *nft.Conn, f nft.Family, ports []hostport.Port) error {
	if had, known := h.applied[f]; known && slices.Equal(had, ports) {
		return nil
	}
	delete(h.applied, f)
	tx := hostport.Tx(f, ports)
	if len(ports) == 0 {
		var err error
		if tx, err = withoutTable(conn, nft.Table{Family: f, Name: hostport.Name}); err != nil {
			return err
		}
	}
	if err := conn.Commit(tx); err != nil {
		return err
	}
	h.applied[f] = ports
	return nil
}
