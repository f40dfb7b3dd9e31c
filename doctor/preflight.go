package doctor

import (
	"github.com/podlane/podlane/explain/observe"
)

// preflightChecks are about what a kernel can do. What is essential fails, the
// rest says what goes without.
var preflightChecks = []Check{
	{ID: "PL-080", Title: "no right to make network namespaces and rules", Feature: missing("rights", Fail, "run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)")},
	{ID: "PL-081", Title: "the kernel has no nf_tables", Feature: missing("nftables", Fail, "CONFIG_NF_TABLES, NF_TABLES_INET, NFT_NAT; modprobe nf_tables")},
	{ID: "PL-082", Title: "the service rules cannot be loaded", Feature: missing("service rules", Fail, "CONFIG_NFT_NAT, NFT_MASQ, NFT_NUMGEN, NFT_REJECT, NFT_CT; see the expressions named beside")},
	{ID: "PL-083", Title: "the kernel has no VXLAN", Feature: missing("vxlan", Warn, "CONFIG_VXLAN, modprobe vxlan; without it only --overlay direct works, for nodes on one L2 segment")},
	{ID: "PL-084", Title: "the kernel has no veth pairs", Feature: missing("veth", Fail, "CONFIG_VETH, modprobe veth")},
	{ID: "PL-085", Title: "conntrack cannot be read", Feature: missing("conntrack", Fail, "CONFIG_NF_CONNTRACK, NF_CT_NETLINK; modprobe nf_conntrack_netlink; without it UDP flows to ended pods stay")},
	{ID: "PL-086", Title: "the kernel has no IPv6", Feature: missing("ipv6", Info, "ipv6.disable=0 on the kernel's command line; without it the cluster is IPv4 only")},
	{ID: "PL-087", Title: "the kernel does not trace packets through nftables", Feature: missing("nftrace", Info, "kernel 4.7 or newer; without it podlane explain --verify names the node of a drop, and not its rule")},
	{ID: "PL-088", Title: "an nftables expression is missing", Feature: expressions},
	{ID: "PL-089", Title: "forwarding cannot be turned on", Feature: missing("forwarding", Fail, "mount /proc/sys for writing, or give the container the right")},
}

func missing(name string, s Severity, mend string) func([]observe.Feature) []Finding {
	return func(all []observe.Feature) []Finding {
		for _, f := range all {
			if f.Name == name && f.Error != "" {
				return one(s, mend, "%s: %s", name, f.Error)
			}
		}
		return nil
	}
}

func expressions(all []observe.Feature) []Finding {
	var list []Finding
	for _, f := range all {
		if f.Expression && f.Error != "" {
			list = append(list, Finding{Severity: Warn, Evidence: f.Name + ": " + f.Error, Mend: f.Need})
		}
	}
	return list
}
