package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/overlay"
)

var agentChecks = []Check{
	{ID: "PL-001", Title: "the agent does not answer", Node: func(e *observe.Exam) []Finding {
		if e.Agent == "" {
			return nil
		}
		return one(Fail, "start it: systemctl restart podlane, or look at the DaemonSet's pod on this node; what is in the kernel goes on working meanwhile", "the agent %s", e.Agent)
	}},
	{ID: "PL-002", Title: "something could not be looked at", Node: func(e *observe.Exam) []Finding {
		list := each(Warn, "run it with the rights of root on the node", e.Problems)
		for _, p := range e.Pings {
			if p.Denied {
				return append(list, one(Warn, "podlane doctor as root on the node", "no right to send an ICMP echo, so that the ways to the other nodes were not tried")...)
			}
		}
		return list
	}},
}

// stateChecks find kernel objects of ours that are not as the Plan wants them.
var stateChecks = []Check{
	{ID: "PL-003", Title: "a route is not as wanted", Node: differing("route ")},
	{ID: "PL-004", Title: "a neighbour entry is not as wanted", Node: differing("neigh ")},
	{ID: "PL-005", Title: "an FDB entry is not as wanted", Node: differing("fdb ")},
	{ID: "PL-006", Title: "a link of ours is not as wanted", Node: differing("link ", "addr ")},
	{ID: "PL-007", Title: "the service rules are not as wanted", Node: differing("nft ")},
	{ID: "PL-008", Title: "forwarding is off", Node: sysctls(func(path string) bool {
		return strings.HasSuffix(path, "/forwarding") || strings.HasSuffix(path, "/ip_forward")
	})},
	{ID: "PL-009", Title: "a sysctl of a link of ours is not as wanted", Node: sysctls(func(path string) bool {
		return !strings.HasSuffix(path, "/forwarding") && !strings.HasSuffix(path, "/ip_forward")
	})},
}

func differing(prefixes ...string) func(*observe.Exam) []Finding {
	return func(e *observe.Exam) []Finding {
		var list []Finding
		for _, d := range e.Differences {
			for _, p := range prefixes {
				if strings.HasPrefix(d.ID, p) {
					list = append(list, Finding{Evidence: d.ID + " " + d.What, Mend: d.Mend})
				}
			}
		}
		return list
	}
}

func sysctls(is func(path string) bool) func(*observe.Exam) []Finding {
	return func(e *observe.Exam) []Finding {
		var list []Finding
		for _, d := range e.Differences {
			if path, ours := strings.CutPrefix(d.ID, "sysctl "); ours && is(path) {
				list = append(list, Finding{Evidence: d.ID + " " + d.What, Mend: d.Mend})
			}
		}
		return list
	}
}

var foreignChecks = []Check{
	{ID: "PL-010", Title: "another packet filter can drop pods' packets", Node: foreignDrop},
	{ID: "PL-011", Title: "another packet filter drops VXLAN", Node: vxlanDrop},
	{ID: "PL-012", Title: "another network or service proxy has left something", Node: leftovers},
	{ID: "PL-013", Title: "another VXLAN link uses our port", Node: otherVXLAN},
	{ID: "PL-014", Title: "a route of someone else leads into the pod networks", Node: func(e *observe.Exam) []Finding {
		return each(Fail, "ip route del ROUTE, and stop who makes it", e.Routes)
	}},
	{ID: "PL-015", Title: "policy routing of someone else comes before our routes", Node: func(e *observe.Exam) []Finding {
		return each(Warn, "ip rule; check that the rule's table has no route to pods", e.Rules)
	}},
	{ID: "PL-016", Title: "a link of someone else has an address of the pod networks", Node: func(e *observe.Exam) []Finding {
		return each(Fail, "ip address del ADDRESS dev LINK, or ip link del LINK", e.Addrs)
	}},
}

// passing are the hooks that every packet of a pod meets on a node.
var passing = []string{"prerouting", "forward", "postrouting"}

func foreignDrop(e *observe.Exam) []Finding {
	var list []Finding
	for _, f := range e.Foreign {
		if !slices.ContainsFunc(passing, f.Meets) || slices.Contains(f.Ports, vxlanPort(e)) {
			continue
		}
		severity := Warn
		if f.Handle == 0 {
			severity = Fail // a policy: everything that nothing lets pass
		}
		list = append(list, Finding{Severity: severity, Evidence: f.String(),
			Mend: fmt.Sprintf("let the pods' networks pass before it: nft insert rule %s %s ip saddr POD-CIDR accept (and ip daddr), or set the chain's policy to accept: an accept of ours does not overrule it", f.Table, f.Chain)})
	}
	return list
}

// vxlanPort is that of the node's VTEP, or would be.
func vxlanPort(e *observe.Exam) uint16 {
	for _, l := range e.Links {
		if l.Name == overlay.Device && l.Ours && l.Port != 0 {
			return uint16(l.Port)
		}
	}
	return overlay.DefaultPort
}

func vxlanDrop(e *observe.Exam) []Finding {
	var list []Finding
	port := vxlanPort(e)
	for _, f := range e.Foreign {
		if slices.Contains(f.Ports, port) || f.Meets("input") && f.Handle == 0 && vxlanWanted(e) {
			list = append(list, Finding{Evidence: f.String(), Mend: fmt.Sprintf("nft insert rule %s %s udp dport %d accept", f.Table, f.Chain, port)})
		}
	}
	return list
}

func vxlanWanted(e *observe.Exam) bool {
	return slices.ContainsFunc(e.Links, func(l observe.Link) bool { return l.Name == overlay.Device })
}

// foreignLinks are names of links that other networks make, by their beginnings.
var foreignLinks = []string{"cni0", "flannel", "cali", "tunl0", "vxlan.calico", "weave", "cilium_", "lxc_health", "kube-ipvs0", "kube-bridge", "antrea-", "ovn-"}

func leftovers(e *observe.Exam) []Finding {
	var list []Finding
	for _, l := range e.Links {
		for _, p := range foreignLinks {
			if strings.HasPrefix(l.Name, p) && !(l.Name == "tunl0") {
				list = append(list, Finding{Severity: Warn, Evidence: fmt.Sprintf("link %s (%s)", l.Name, l.Kind), Mend: "uninstall what made it, then: ip link del " + l.Name})
			}
		}
	}
	for _, t := range e.Tables {
		if strings.HasSuffix(t, " kube-proxy") {
			list = append(list, Finding{Severity: Fail, Evidence: "nft table " + t + ": kube-proxy's rules take Services too", Mend: "stop kube-proxy, then: kube-proxy --cleanup, or nft delete table " + t})
		}
	}
	if len(e.Chains) > 0 {
		list = append(list, Finding{Severity: Warn, Evidence: fmt.Sprintf("%d chains of others, the first: %s", len(e.Chains), e.Chains[0]), Mend: "uninstall what made them (kube-proxy --cleanup, or the other network's own way)"})
	}
	return list
}

func otherVXLAN(e *observe.Exam) []Finding {
	var list []Finding
	for _, l := range e.Links {
		if l.Kind == "vxlan" && !l.Ours && l.Port == int(vxlanPort(e)) {
			list = append(list, Finding{Severity: Warn, Evidence: fmt.Sprintf("link %s has VNI %d on UDP port %d", l.Name, l.VNI, l.Port),
				Mend: "remove it, or give one of the two another port: the kernel refuses a second link of the same VNI and port"})
		}
	}
	return list
}

var hostChecks = []Check{
	{ID: "PL-020", Title: "strict reverse path filtering", Node: strictFilter},
	{ID: "PL-021", Title: "VXLAN's MTU is too large for the underlay", Node: vxlanMTU},
	{ID: "PL-022", Title: "pods have a larger MTU than the way to other nodes", Node: podMTU},
	{ID: "PL-023", Title: "the table of connections is nearly full", Node: conntrackFull},
	{ID: "PL-024", Title: "connections could not be entered into the table", Node: conntrackFailed},
	{ID: "PL-025", Title: "UDP flows lead to what is no endpoint any more", Node: func(e *observe.Exam) []Finding {
		return each(Fail, "conntrack -D -p udp --orig-dst FRONTEND; the agent does so when it runs", e.StaleUDP)
	}},
	{ID: "PL-026", Title: "the table of neighbours is nearly full", Node: neighborsFull},
	{ID: "PL-027", Title: "an IPv6 address is not usable", Node: func(e *observe.Exam) []Finding {
		return each(Warn, "ip -6 address; a duplicate must go, a tentative one is usable after a second", e.Tentative)
	}},
	{ID: "PL-028", Title: "the IPv6 default route will vanish", Node: raRoute},
	{ID: "PL-029", Title: "a network card that is known to spoil VXLAN checksums", Node: spoilsChecksums},
	{ID: "PL-030", Title: "packets were dropped by reverse path filtering", Node: func(e *observe.Exam) []Finding {
		if n := e.Counters["IPReversePathFilter"]; n > 0 {
			return one(Info, "nstat TcpExtIPReversePathFilter; see PL-020", "the kernel has counted %d", n)
		}
		return nil
	}},
}

// strictFilter: the larger value of all and the link counts, so that a strict
// machine is loose on our links (2) and strict on the underlay.
func strictFilter(e *observe.Exam) []Finding {
	path := "net/ipv4/conf/" + e.Underlay.Device + "/rp_filter"
	if max(e.Sysctls["net/ipv4/conf/all/rp_filter"], e.Sysctls[path]) != "1" {
		return nil
	}
	return one(Fail, "sysctl -w "+path+"=2 (loose), and in /etc/sysctl.d so that it stays",
		"%s is strict: what a pod of another node sends to this node directly comes in over %s and its answer would leave over another link, so the kernel drops it", path, e.Underlay.Device)
}

func vxlanMTU(e *observe.Exam) []Finding {
	for _, l := range e.Links {
		if l.Name == overlay.Device && l.Ours && l.MTU+50 > e.Underlay.MTU {
			return one(Fail, fmt.Sprintf("ip link set %s mtu %d; the agent does so when it runs", l.Name, e.Underlay.MTU-50),
				"%s has MTU %d, and %s has %d: VXLAN adds 50 bytes (70 over IPv6)", l.Name, l.MTU, e.Underlay.Device, e.Underlay.MTU)
		}
	}
	return nil
}

func podMTU(e *observe.Exam) []Finding {
	var names []string
	for _, p := range e.Pods {
		if p.MTU > e.PodMTU && e.PodMTU > 0 {
			names = append(names, fmt.Sprintf("%s (%d)", p.Pod, p.MTU))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return one(Warn, "delete these pods: new ones get the smaller MTU; until then they depend on ICMP \"fragmentation needed\"",
		"the way to other nodes takes %d bytes, and larger are: %s", e.PodMTU, strings.Join(names, ", "))
}

func conntrackFull(e *observe.Exam) []Finding {
	limit, _ := strconv.Atoi(e.Sysctls["net/netfilter/nf_conntrack_max"])
	if limit == 0 || e.Flows*10 < limit*8 {
		return nil
	}
	return one(Warn, "sysctl -w net.netfilter.nf_conntrack_max="+strconv.Itoa(2*limit), "%d of at most %d connections", e.Flows, limit)
}

func conntrackFailed(e *observe.Exam) []Finding {
	drop, failed := e.Counters["conntrack_drop"], e.Counters["conntrack_insert_failed"]
	if drop+failed == 0 {
		return nil
	}
	return one(Info, "conntrack -S; drop: the table was full; insert_failed: two packets of one new UDP flow raced, and one was lost", "drop %d, insert_failed %d since the machine's start", drop, failed)
}

func neighborsFull(e *observe.Exam) []Finding {
	limit, _ := strconv.Atoi(e.Sysctls["net/ipv4/neigh/default/gc_thresh3"])
	if limit == 0 || e.Neighbors*10 < limit*8 {
		return nil
	}
	return one(Warn, "sysctl -w net.ipv4.neigh.default.gc_thresh3="+strconv.Itoa(4*limit), "%d of at most %d entries, which all namespaces of the machine share", e.Neighbors, limit)
}

func raRoute(e *observe.Exam) []Finding {
	path := "net/ipv6/conf/" + e.Underlay.Device + "/accept_ra"
	if !e.Underlay.RARoute || e.Sysctls["net/ipv6/conf/all/forwarding"] != "1" || e.Sysctls[path] == "2" {
		return nil
	}
	return one(Fail, "sysctl -w "+path+"=2", "%s is %s and forwarding is on: the kernel takes no router advertisements then", path, e.Sysctls[path])
}

// checksumDrivers are those whose hardware was seen to spoil checksums inside
// VXLAN (peers' issues: vmxnet3 and others).
var checksumDrivers = []string{"vmxnet3"}

func spoilsChecksums(e *observe.Exam) []Finding {
	if !slices.Contains(checksumDrivers, e.Driver) {
		return nil
	}
	return one(Warn, fmt.Sprintf("ethtool -K %s tx-checksum-ip-generic off (and -K %s tx-udp_tnl-segmentation off)", overlay.Device, e.Underlay.Device), "%s has the driver %s", e.Underlay.Device, e.Driver)
}
