package install

import (
	"net"
	"path/filepath"
)

// others are links that other networks leave behind, with what they do to ours.
var others = []struct{ link, of string }{
	{"cni0", "the bridge plugin: its routes may be for the node's own pod CIDR"},
	{"flannel.1", "flannel: its routes may be for other nodes' pod CIDRs"},
	{"kube-ipvs0", "kube-proxy in IPVS mode: it has the cluster IPs"},
	{"kube-bridge", "kube-router: its routes may be for the node's own pod CIDR"},
	{"vxlan.calico", "Calico: its routes may be for other nodes' pod CIDRs"},
	{"cilium_host", "Cilium: its programs may take packets away"},
	{"weave", "Weave Net"},
}

// Leftovers names what other networks left on the node and may be in our way. It
// removes nothing: that is for who knows whether it is still used.
func (r Runtime) Leftovers() []string {
	var found []string
	before, after := r.Others()
	for _, name := range before {
		found = append(found, "CNI configuration "+filepath.Join(r.ConfDir, name)+": it sorts before ours, so that the container runtime takes it; remove it")
	}
	for _, name := range after {
		found = append(found, "CNI configuration "+filepath.Join(r.ConfDir, name)+": of another network; it would be in force without ours")
	}
	for _, o := range others {
		if _, err := net.InterfaceByName(o.link); err == nil {
			found = append(found, "link "+o.link+" of "+o.of+"; ip link delete "+o.link)
		}
	}
	return found
}
