package oracle

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/packet"
)

func trim(s string) string { return strings.TrimSpace(s) }

// enough is how often each rule is to be met in a run.
const enough = 20

// Coverage counts what the histories met: each rule of a service proxy, by the groups
// of connections that it decided over.
type Coverage struct {
	Rules     []int // as rules
	Wanted    []int // as Wanted
	Groups    int   // compared
	Tries     int   // connections made, in each node
	AtSockets int   // of them, those translated at the socket
	Sticky    map[string]int
	Even      [2]evenness // kube-proxy's node, Podlane's
}

// NewCoverage has met nothing.
func NewCoverage() *Coverage {
	return &Coverage{Rules: make([]int, len(rules)), Wanted: make([]int, len(Wanted)), Sticky: map[string]int{}, Even: [2]evenness{{}, {}}}
}

// count takes down what groups were about.
func (c *Coverage) count(gs []*group, now, before *history.State, nodePortAddresses []string) {
	for _, g := range gs {
		f := factsOf(g, now, before)
		c.Groups++
		for i, r := range rules {
			if r.met(f) {
				c.Rules[i]++
			}
		}
		for i, w := range Wanted {
			if w.is(g) {
				c.Wanted[i]++
			}
		}
		c.countNodePorts(f, nodePortAddresses)
	}
}

func (c *Coverage) countNodePorts(f *facts, addresses []string) {
	if !f.serves(proxy.NodePort) || !f.any() || !f.is("outside") {
		return
	}
	kind := "1.3 nodePortAddresses: some addresses"
	switch {
	case len(addresses) == 0:
		kind = "1.3 nodePortAddresses: primary"
	case addresses[0] == "0.0.0.0/0":
		kind = "1.3 nodePortAddresses: all addresses"
	case len(addresses) > 0 && netip.MustParsePrefix(addresses[0]).Addr().Is6() != f.v6():
		kind = "1.3 nodePortAddresses: a family that is not named"
	}
	c.Sticky[kind]++
}

// Table is for people.
func (c *Coverage) Table() string {
	var b strings.Builder
	for i, r := range rules {
		fmt.Fprintf(&b, "%8d  %s\n", c.Rules[i], r.name)
	}
	for _, name := range counted {
		fmt.Fprintf(&b, "%8d  %s\n", c.Sticky[name], name)
	}
	fmt.Fprintf(&b, "%d groups, %d connections in each node\nwanted differences:\n", c.Groups, c.Tries)
	for i, w := range Wanted {
		fmt.Fprintf(&b, "%8d  %s\n", c.Wanted[i], w.Name)
	}
	fmt.Fprintf(&b, "how often each of n endpoints was met, and chi-square in standard deviations:\nkube-proxy:%v\nPodlane:   %v\n", c.Even[0], c.Even[1])
	return b.String()
}

// Rare gives the rules that were met too seldom.
func (c *Coverage) Rare() []string {
	var rare []string
	for i, r := range rules {
		if c.Rules[i] < enough {
			rare = append(rare, fmt.Sprintf("%s: %d times", r.name, c.Rules[i]))
		}
	}
	for _, name := range counted {
		if c.Sticky[name] < enough {
			rare = append(rare, fmt.Sprintf("%s: %d times", name, c.Sticky[name]))
		}
	}
	return rare
}

// counted are the rules that are not seen in one group.
var counted = []string{
	"1.3 nodePortAddresses: primary", "1.3 nodePortAddresses: all addresses", "1.3 nodePortAddresses: some addresses", "1.3 nodePortAddresses: a family that is not named",
	"1.4 a flow that was there goes on, its endpoint gone", "1.4 a flow that was there goes on",
	"1.6 a client comes back to its endpoint", "1.6 whichever frontend it takes", "1.6 after a change of something else", "1.6 until the endpoint goes", "1.6 until affinity goes",
}

// rule is a rule of a service proxy.
type rule struct {
	name string
	met  func(*facts) bool
}

// rules are those of the sections 1.2 to 1.6 of the design that decide over one
// connection: endpoint choice, frontends, what has no endpoint, masquerading.
var rules = slices.Concat(endpointRules, frontendRules, policyRules, emptyRules, masqueradeRules)

var endpointRules = []rule{
	{"1.2 policy Cluster: the ready endpoints", func(f *facts) bool { return f.cluster() && len(f.ready) > 0 }},
	{"1.2 policy Cluster: none ready, the serving ones that terminate", func(f *facts) bool { return f.cluster() && len(f.ready) == 0 && len(f.leaving) > 0 }},
	{"1.2 policy Cluster: terminating ones left out beside ready ones", func(f *facts) bool { return f.cluster() && len(f.ready) > 0 && len(f.leaving) > 0 }},
	{"1.2 endpoints that neither serve nor are ready", func(f *facts) bool { return f.cluster() && f.others > 0 }},
	{"1.2 policy Local: the ready endpoints of the node", func(f *facts) bool { return f.local() && len(f.localReady) > 0 }},
	{"1.2 policy Local: none ready here, the serving ones here that terminate", func(f *facts) bool {
		return f.local() && len(f.localReady) == 0 && len(f.localLeaving) > 0
	}},
	{"1.2 policy Local falls back while Cluster does not", func(f *facts) bool {
		return f.local() && len(f.localReady) == 0 && len(f.localLeaving) > 0 && len(f.ready) > 0
	}},
	{"1.2 policy Local: other nodes' endpoints left out", func(f *facts) bool {
		return f.local() && len(f.localReady) > 0 && len(f.ready) > len(f.localReady)
	}},
	{"1.2 none anywhere: refused", func(f *facts) bool {
		return (f.outside() || f.serves(proxy.ClusterIP)) && !f.any() && f.saw("refused", false)
	}},
	{"1.2 policy Local, none here, some elsewhere: dropped", func(f *facts) bool {
		return f.local() && !f.anyLocal() && f.any() && f.saw("nothing", false)
	}},
	{"1.2 an endpoint without nodeName is not local", func(f *facts) bool {
		return f.local() && slices.ContainsFunc(f.ready, func(e discoveryv1.Endpoint) bool { return e.NodeName == nil })
	}},
	{"1.2 hints for the node", func(f *facts) bool { return f.cluster() && f.nodeHints.any && f.nodeHints.all && f.nodeHints.here }},
	{"1.2 hints for the zone", func(f *facts) bool { return f.cluster() && f.zoneHints.any && f.zoneHints.all && f.zoneHints.here }},
	{"1.2 hints for other nodes fall through to the zone", func(f *facts) bool {
		return f.cluster() && f.nodeHints.any && !(f.nodeHints.all && f.nodeHints.here) && f.zoneHints.any && f.zoneHints.all && f.zoneHints.here
	}},
	{"1.2 one endpoint without a hint: all", func(f *facts) bool {
		return f.cluster() && f.zoneHints.any && !f.zoneHints.all && f.zoneHints.here
	}},
	{"1.2 hints, but none for the zone: all", func(f *facts) bool {
		return f.cluster() && f.zoneHints.any && f.zoneHints.all && !f.zoneHints.here
	}},
	{"1.2 the node's zone has changed", func(f *facts) bool { return f.cluster() && f.zoneHints.any && f.state.Zone != f.before.Zone }},
	{"1.2 policy Local takes no notice of hints", func(f *facts) bool {
		return f.local() && f.zoneHints.all && f.zoneHints.here && len(f.localReady) > 0 && slices.ContainsFunc(f.localReady, func(e discoveryv1.Endpoint) bool {
			return !slices.ContainsFunc(e.Hints.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == f.state.Zone })
		})
	}},
	{"1.1 an address that comes twice, once terminating", func(f *facts) bool { return f.cluster() && f.again > 0 }},
	{"1.1 one port name with several numbers", func(f *facts) bool { return f.cluster() && len(f.numbers) > 1 }},
}

var frontendRules = []rule{
	{"1.3 cluster IP, dual stack", func(f *facts) bool { return f.serves(proxy.ClusterIP) && len(f.service.Spec.ClusterIPs) == 2 }},
	{"1.3 cluster IP, no ipFamilies", func(f *facts) bool { return f.serves(proxy.ClusterIP) && len(f.service.Spec.IPFamilies) == 0 }},
	{"1.3 an external address of a family that the Service lacks", func(f *facts) bool {
		return f.proxied() && f.kind != proxy.ClusterIP && f.kind != proxy.NodePort && !f.hasFamily()
	}},
	{"1.3 external IP", func(f *facts) bool { return f.serves(proxy.ExternalIP) && f.any() }},
	{"1.3 external IP that is the node's", func(f *facts) bool { return f.serves(proxy.ExternalIP) && f.toNode() }},
	{"1.3 load balancer address, ipMode VIP", func(f *facts) bool { return f.serves(proxy.LoadBalancer) && f.outside() && f.any() }},
	{"1.3 load balancer address, ipMode Proxy: passes", func(f *facts) bool {
		return f.serves(proxy.LoadBalancer) && !f.outside() && (f.saw("pass", false) || f.saw("pass", true))
	}},
	{"1.3 load balancer with a host name beside", func(f *facts) bool {
		return f.serves(proxy.LoadBalancer) && slices.ContainsFunc(f.service.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool { return in.IP == "" })
	}},
	{"1.3 load balancer without NodePorts", func(f *facts) bool { return f.serves(proxy.LoadBalancer) && f.port.NodePort == 0 && f.any() }},
	{"1.3 NodePort of a load balancer", func(f *facts) bool {
		return f.serves(proxy.NodePort) && f.service.Spec.Type == corev1.ServiceTypeLoadBalancer && f.any()
	}},
	{"1.3 NodePort on the node's address", func(f *facts) bool {
		return f.serves(proxy.NodePort) && slices.Contains(history.NodeAddrs, f.to.Addr()) && f.any()
	}},
	{"1.3 NodePort on another address of the node", func(f *facts) bool {
		return f.serves(proxy.NodePort) && slices.Contains(history.OtherAddrs, f.to.Addr()) && f.any()
	}},
	{"1.3 no NodePort on loopback", func(f *facts) bool { return f.to.Addr().IsLoopback() && f.saw("pass", false) }},
	{"1.3 one port number for several protocols", func(f *facts) bool {
		return f.proxied() && slices.ContainsFunc(f.service.Spec.Ports, func(p corev1.ServicePort) bool {
			return p.Port == f.port.Port && p.Protocol != f.port.Protocol
		})
	}},
	{"1.3 one NodePort number for TCP and UDP", func(f *facts) bool {
		return f.serves(proxy.NodePort) && slices.ContainsFunc(f.service.Spec.Ports, func(p corev1.ServicePort) bool {
			return p.NodePort == f.port.NodePort && p.Protocol != f.port.Protocol
		})
	}},
	{"1.3 SCTP", func(f *facts) bool { return f.protocol == cluster.SCTP && f.saw("endpoint", false) }},
	{"1.3 the type has changed", func(f *facts) bool { return f.proxied() && f.was() != nil && f.was().Spec.Type != f.service.Spec.Type }},
	{"1.3 the ports have changed", func(f *facts) bool {
		return f.proxied() && f.was() != nil && !slices.EqualFunc(f.was().Spec.Ports, f.service.Spec.Ports, func(a, b corev1.ServicePort) bool { return a.Name == b.Name && a.Port == b.Port })
	}},
	{"1.3 a NodePort that was given back", func(f *facts) bool {
		return f.service == nil && slices.Contains(history.NodeAddrs, f.to.Addr()) && factsOf(f.group, f.before, f.before).serves(proxy.NodePort)
	}},
	{"1.1 type ExternalName with a cluster IP", func(f *facts) bool {
		return f.service != nil && f.kind == proxy.ClusterIP && f.service.Spec.Type == corev1.ServiceTypeExternalName
	}},
	{"1.1 another proxy's Service", func(f *facts) bool { return f.service != nil && watched(f.service) == nil }},
	{"1.1 addresses with leading zeros", func(f *facts) bool {
		return f.serves(proxy.ClusterIP) && f.service.Spec.ClusterIPs[0] != parse(f.service.Spec.ClusterIPs[0]).String()
	}},
}

func (f *facts) hasFamily() bool {
	return slices.ContainsFunc(f.service.Spec.ClusterIPs, func(ip string) bool { return parse(ip).Is6() == f.v6() })
}

var policyRules = []rule{
	{"1.3 from outside, policy Cluster: masqueraded", func(f *facts) bool {
		return f.outside() && f.cluster() && f.is("outside") && f.saw("endpoint", true)
	}},
	{"1.3 from a pod to an external address, policy Cluster: masqueraded", func(f *facts) bool {
		return f.outside() && f.cluster() && f.is("local pod") && f.saw("endpoint", true)
	}},
	{"1.3 from outside, policy Local: the source address stays", func(f *facts) bool {
		return f.outside() && f.local() && f.is("outside") && f.saw("endpoint", false)
	}},
	{"1.3 from outside, policy Local, none here: dropped", func(f *facts) bool {
		return f.outside() && f.local() && f.is("outside") && f.any() && !f.anyLocal() && f.saw("nothing", false)
	}},
	{"1.3 from a local pod, policy Local: all endpoints, source stays", func(f *facts) bool {
		return f.outside() && f.local() && f.is("local pod") && f.saw("endpoint", false)
	}},
	{"1.3 from the host, policy Local: all endpoints, masqueraded", func(f *facts) bool {
		return f.outside() && f.local() && f.is("host") && f.saw("endpoint", true)
	}},
	{"1.3 from a local pod, policy Local, none here: those elsewhere", func(f *facts) bool {
		return f.outside() && f.local() && f.is("local pod") && !f.anyLocal() && f.saw("endpoint", false)
	}},
	{"1.3 internal policy Local, none here: dropped", func(f *facts) bool {
		return f.serves(proxy.ClusterIP) && f.local() && !f.anyLocal() && f.any() && f.saw("nothing", false)
	}},
	{"1.3 internal policy Local, none here: external frontends go on", func(f *facts) bool {
		return f.outside() && f.cluster() && f.any() && !f.anyLocal() && isPolicy(f.service.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyLocal)
	}},
	{"1.3 source ranges: allowed", func(f *facts) bool {
		return f.limited() && f.is("outside") && (f.saw("endpoint", true) || f.saw("endpoint", false))
	}},
	{"1.3 source ranges: dropped", func(f *facts) bool { return f.limited() && f.is("outside, blocked") && f.saw("nothing", false) }},
	{"1.3 source ranges: not for NodePorts", func(f *facts) bool {
		return f.serves(proxy.NodePort) && len(f.ranges()) > 0 && f.is("outside, blocked") && f.saw("endpoint", true)
	}},
	{"1.3 source ranges: not for external IPs", func(f *facts) bool {
		return f.serves(proxy.ExternalIP) && len(f.ingress) == 0 && len(f.ranges()) > 0 && f.is("outside, blocked") && f.saw("endpoint", true)
	}},
	{"1.3 source ranges: an external IP that is also the load balancer's", func(f *facts) bool { return f.serves(proxy.ExternalIP) && f.limited() }},
	{"1.3 source ranges: only of the other family", func(f *facts) bool {
		return f.outside() && len(f.ingress) > 0 && len(f.service.Spec.LoadBalancerSourceRanges) > 0 && len(f.ranges()) == 0
	}},
	{"1.3 source ranges: blanks around", func(f *facts) bool {
		return f.limited() && slices.ContainsFunc(f.service.Spec.LoadBalancerSourceRanges, func(s string) bool { return trim(s) != s })
	}},
	{"1.3 source ranges: one of length 0", func(f *facts) bool {
		return f.outside() && len(f.ingress) > 0 && slices.ContainsFunc(f.ranges(), func(p netip.Prefix) bool { return p.Bits() == 0 })
	}},
	{"1.3 source ranges: the node's own load balancer address", func(f *facts) bool {
		return f.limited() && f.is("host at the VIP") && slices.ContainsFunc(f.ranges(), func(p netip.Prefix) bool { return slices.ContainsFunc(history.NodeAddrs, p.Contains) })
	}},
	{"1.3 source ranges: without endpoints", func(f *facts) bool {
		return f.limited() && !f.any() && f.is("outside, blocked") && f.saw("nothing", false)
	}},
}

var emptyRules = []rule{
	{"1.4 no endpoint, cluster IP: refused", func(f *facts) bool { return f.serves(proxy.ClusterIP) && !f.any() && f.saw("refused", false) }},
	{"1.4 no endpoint, NodePort: refused", func(f *facts) bool { return f.serves(proxy.NodePort) && !f.any() && f.saw("refused", false) }},
	{"1.4 no endpoint, external IP or load balancer: refused", func(f *facts) bool {
		return f.outside() && f.kind != proxy.NodePort && !f.any() && f.saw("refused", false)
	}},
	{"1.4 another port of a cluster IP: refused", func(f *facts) bool {
		return f.service == nil && f.to.Port() == 4444 && f.saw("refused", false)
	}},
	{"1.4 an address of a Service CIDR that no Service has: dropped", func(f *facts) bool {
		return f.service == nil && len(f.state.ServiceCIDRs) > 0 && f.saw("nothing", false)
	}},
	{"1.4 no Service CIDR is known: passes", func(f *facts) bool {
		return f.service == nil && len(f.state.ServiceCIDRs) == 0 && netip.MustParsePrefix("10.96.0.0/16").Contains(f.to.Addr()) && f.saw("pass", false)
	}},
	{"1.4 no Service's: passes", func(f *facts) bool { return f.service == nil && f.saw("pass", false) }},
}

var masqueradeRules = []rule{
	{"1.5 a pod that reaches itself: masqueraded", func(f *facts) bool {
		return f.is("endpoint") && f.kind == proxy.ClusterIP && f.sawMeeting(func(m meeting) bool { return m.what == "endpoint" && m.source.IsValid() })
	}},
	{"1.5 from outside to a cluster IP: masqueraded", func(f *facts) bool { return f.serves(proxy.ClusterIP) && f.is("outside") && f.saw("endpoint", true) }},
	{"1.5 from a remote pod to a cluster IP: masqueraded", func(f *facts) bool { return f.serves(proxy.ClusterIP) && f.is("remote pod") && f.saw("endpoint", true) }},
	{"1.5 from the host to a cluster IP: masqueraded", func(f *facts) bool { return f.serves(proxy.ClusterIP) && f.is("host") && f.saw("endpoint", true) }},
	{"1.5 from a pod to another node's endpoint: the source address stays", func(f *facts) bool {
		return f.serves(proxy.ClusterIP) && f.is("local pod") && f.sawMeeting(func(m meeting) bool { return m.what == "endpoint" && m.at == 1 && !m.source.IsValid() })
	}},
	{"1.4 TCP is refused by ICMP or a reset", func(f *facts) bool {
		return f.protocol == cluster.TCP && f.sawMeeting(func(m meeting) bool { return m.what == "refused" && m.kind == packet.Reset })
	}},
}

func (f *facts) sawMeeting(like func(meeting) bool) bool {
	for m := range f.seen[1] {
		if like(m) {
			return true
		}
	}
	return false
}
