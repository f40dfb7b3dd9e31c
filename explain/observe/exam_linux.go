package observe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	googlenft "github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/conntrack"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/stale"
)

// Exam is all that `podlane doctor` wants to know of a node: its Report and what
// traps look like there. It says what is seen and judges nothing.
type Exam struct {
	Report
	Sysctls map[string]string `json:"sysctls"` // paths below /proc/sys, as far as they exist
	Links   []Link            `json:"links"`
	// Tables are the nftables tables that are not ours: "ip filter".
	Tables []string `json:"tables"`
	// Chains are the names of chains in them that belong to other networks: of the
	// form KUBE-SVC, CNI-, cali-.
	Chains []string `json:"chains"`
	// Routes are routes of others into pod CIDRs of the cluster.
	Routes []string `json:"routes"`
	Rules  []string `json:"rules"` // policy routing rules beside the kernel's three
	// Addrs are addresses in the cluster's pod CIDRs on links of others.
	Addrs []string `json:"addrs"`
	// Tentative are IPv6 addresses that the kernel does not use yet, or never will.
	Tentative []string          `json:"tentative"`
	Driver    string            `json:"driver"` // of the underlay link
	Neighbors int               `json:"neighbors"`
	Flows     int               `json:"flows"` // in conntrack
	Counters  map[string]uint64 `json:"counters"`
	StaleUDP  []string          `json:"stale_udp"`
	PodCIDRs  []netip.Prefix    `json:"pod_cidrs"`
	// Strangers are pods on record that the cluster does not have like that.
	Strangers []string `json:"strangers"`
	PodMTU    int      `json:"pod_mtu"` // of pods made now
	// Pings are the tries of the ways to the other nodes, and Queries of the DNS
	// servers; Try makes them.
	Pings []PeerPing `json:"pings"`
	// Echoes are what the agent's own tries of the ways found, by UDP, with the nodes'
	// and their pod networks' addresses.
	Echoes  []PeerPing `json:"echoes"`
	Queries []Query    `json:"queries"`
}

// Link is a link of anybody.
type Link struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	MTU  int    `json:"mtu"`
	VNI  int    `json:"vni,omitempty"`
	Port int    `json:"port,omitempty"`
	Ours bool   `json:"ours"`
}

// Examine looks at the node whose network namespace the calling thread is in.
func Examine(n Node) (*Exam, *plan.Plan, error) {
	r, p, err := Look(n)
	if err != nil {
		return nil, nil, err
	}
	return r.examine(p), p, nil
}

// ExaminePlan is Examine for an agent, which has its Plan and answers.
func ExaminePlan(p *plan.Plan, facts Facts) (*Exam, error) {
	r, err := ComparePlan(p, facts)
	if err != nil {
		return nil, err
	}
	return r.examine(p), nil
}

// Glance is the part of ExaminePlan that costs little however large the cluster
// is: it neither reads the service maps back nor the flows, and asks for no tries.
func Glance(p *plan.Plan, facts Facts) (*Exam, error) {
	diffs, err := compareLinks(p)
	if err != nil {
		return nil, err
	}
	r := &Report{Facts: facts, Differences: diffs}
	r.Foreign, err = ForeignDrops()
	r.note(err)
	e := r.newExam(p)
	e.glance()
	e.strangers(p)
	return e, nil
}

func (r *Report) examine(p *plan.Plan) *Exam {
	e := r.newExam(p)
	e.glance()
	e.note(e.staleFlows(p))
	e.targets(p)
	e.strangers(p)
	return e
}

func (r *Report) newExam(p *plan.Plan) *Exam {
	e := &Exam{Report: *r, Sysctls: map[string]string{}, Counters: map[string]uint64{}, PodMTU: p.Base.PodMTU}
	for _, node := range p.Snapshot.Nodes.All() {
		e.PodCIDRs = append(e.PodCIDRs, node.PodCIDRs...)
	}
	return e
}

func (e *Exam) glance() {
	e.sysctls()
	e.note(e.links())
	e.note(e.tables())
	e.note(e.routes())
	e.note(e.rules())
	e.note(e.addresses())
	e.note(e.neighbors())
	if level, err := conntrack.ReadLevel(); err == nil {
		e.Flows = level.Count
	}
	e.counters()
}

// strangers compares the allocation record with the cluster's pods, where these
// are known.
func (e *Exam) strangers(p *plan.Plan) {
	if p.Snapshot.Pods.Len() == 0 {
		return
	}
	for _, on := range e.Pods {
		ns, name, ok := strings.Cut(on.Pod, "/")
		pod := p.Snapshot.Pods.Get(cluster.Key{Namespace: ns, Name: name})
		switch {
		case !ok:
		case pod == nil:
			e.Strangers = append(e.Strangers, fmt.Sprintf("pod %s with %v is on record here, and the cluster has no such pod", on.Pod, on.Addrs))
		case pod.Node != p.Node:
			e.Strangers = append(e.Strangers, fmt.Sprintf("pod %s is on record here, and the cluster has it on node %s", on.Pod, pod.Node))
		case len(pod.IPs) > 0 && !slices.Equal(pod.IPs, on.Addrs):
			e.Strangers = append(e.Strangers, fmt.Sprintf("pod %s has %v here and %v in the cluster", on.Pod, on.Addrs, pod.IPs))
		}
	}
}

func (e *Exam) sysctls() {
	dev := e.Underlay.Device
	for _, path := range []string{
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter",
		"net/ipv4/conf/" + dev + "/rp_filter", "net/ipv6/conf/" + dev + "/accept_ra", "net/netfilter/nf_conntrack_max",
		"net/netfilter/nf_conntrack_tcp_be_liberal", "net/ipv4/neigh/default/gc_thresh3", "net/ipv6/conf/all/disable_ipv6",
	} {
		if text, err := os.ReadFile(filepath.Join("/proc/sys", path)); err == nil {
			e.Sysctls[path] = strings.TrimSpace(string(text))
		}
	}
}

func (e *Exam) links() error {
	all, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range all {
		a := l.Attrs()
		link := Link{Name: a.Name, Kind: l.Type(), MTU: a.MTU, Ours: a.Group == link.Group && strings.HasPrefix(a.Name, link.Prefix)}
		if v, is := l.(*netlink.Vxlan); is {
			link.VNI, link.Port = v.VxlanId, v.Port
		}
		e.Links = append(e.Links, link)
	}
	e.Driver = driver(e.Underlay.Device)
	return nil
}

// driver asks for the name of a link's driver (SIOCETHTOOL, ETHTOOL_GDRVINFO).
func driver(dev string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, dev)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}

// others are the beginnings of chain names that other networks and service
// proxies make.
var others = []string{"KUBE-SVC-", "KUBE-SERVICES", "KUBE-ROUTER", "CNI-", "cali-", "CILIUM", "FLANNEL", "FLANNEL-", "WEAVE"}

func (e *Exam) tables() error {
	conn, err := googlenft.New()
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		name := families[c.Table.Family] + " " + c.Table.Name
		if strings.HasPrefix(c.Table.Name, "podlane-") {
			continue
		}
		if !slices.Contains(e.Tables, name) {
			e.Tables = append(e.Tables, name)
		}
		for _, o := range others {
			if strings.HasPrefix(c.Name, o) {
				e.Chains = append(e.Chains, name+" "+c.Name)
				break
			}
		}
	}
	return nil
}

func (e *Exam) ofPods(a netip.Addr) bool {
	return slices.ContainsFunc(e.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (e *Exam) routes() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range all {
			if r.Protocol == link.Protocol || r.Dst == nil {
				continue
			}
			a, _ := netip.AddrFromSlice(r.Dst.IP)
			if ones, _ := r.Dst.Mask.Size(); ones > 0 && e.ofPods(a.Unmap()) && !(r.Protocol == unix.RTPROT_KERNEL && a.Is6()) {
				e.Routes = append(e.Routes, strings.TrimSpace(fmt.Sprintf("%s dev %s protocol %d", r.Dst, linkName(r.LinkIndex), r.Protocol)))
			}
		}
	}
	return nil
}

func linkName(index int) string {
	if l, err := netlink.LinkByIndex(index); err == nil {
		return l.Attrs().Name
	}
	return "none"
}

func (e *Exam) rules() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := netlink.RuleList(family)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
		for _, r := range all {
			standard := r.Table == unix.RT_TABLE_LOCAL || r.Table == unix.RT_TABLE_MAIN && r.Priority == 32766 || r.Table == unix.RT_TABLE_DEFAULT
			if !standard {
				e.Rules = append(e.Rules, fmt.Sprintf("priority %d: table %d", r.Priority, r.Table))
			}
		}
	}
	return nil
}

func (e *Exam) addresses() error {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range all {
		ip, _ := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		name := linkName(a.LinkIndex)
		if e.ofPods(ip) && !strings.HasPrefix(name, link.Prefix) {
			e.Addrs = append(e.Addrs, fmt.Sprintf("%s on %s", ip, name))
		}
		if a.Flags&unix.IFA_F_DADFAILED != 0 {
			e.Tentative = append(e.Tentative, fmt.Sprintf("%s on %s: another host has it too", ip, name))
		} else if a.Flags&unix.IFA_F_TENTATIVE != 0 && (strings.HasPrefix(name, link.Prefix) || name == e.Underlay.Device) && !ip.IsLinkLocalUnicast() {
			e.Tentative = append(e.Tentative, fmt.Sprintf("%s on %s: not used yet", ip, name))
		}
	}
	return nil
}

func (e *Exam) neighbors() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := netlink.NeighList(0, family)
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		e.Neighbors += len(all)
	}
	return nil
}

// staleFlows lists UDP flows that lead to what is no endpoint any more.
func (e *Exam) staleFlows(p *plan.Plan) error {
	conn, err := conntrack.Dial(0)
	if err != nil {
		return err
	}
	defer conn.Close()
	index := stale.New()
	index.Update(p.Table)
	own := func(a netip.Addr) bool {
		n := p.Snapshot.Nodes.Get(cluster.Key{Name: p.Node})
		return n != nil && slices.Contains(n.Addresses, a)
	}
	for _, v6 := range []bool{false, true} {
		err := conn.Each(unix.IPPROTO_UDP, v6, func(f conntrack.Flow) {
			if k, is := index.Stale(f.Orig.Dst, f.Reply.Src, own); is {
				e.StaleUDP = append(e.StaleUDP, fmt.Sprintf("%s to Service %s is answered by %s, which is no endpoint of it", f.Orig, k, f.Reply.Src))
			}
		})
		if err != nil && !errors.Is(err, conntrack.ErrPartial) {
			return err
		}
	}
	return nil
}

// counters reads those that tell of packets which vanished.
func (e *Exam) counters() {
	text, err := os.ReadFile("/proc/self/net/netstat")
	if err == nil {
		e.netstat(string(text), "TcpExt:", "IPReversePathFilter")
	}
	text, err = os.ReadFile("/proc/self/net/stat/nf_conntrack")
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	names := strings.Fields(lines[0])
	for _, line := range lines[1:] {
		for i, field := range strings.Fields(line) {
			if i < len(names) && slices.Contains([]string{"insert_failed", "drop", "early_drop"}, names[i]) {
				n, _ := strconv.ParseUint(field, 16, 64)
				e.Counters["conntrack_"+names[i]] += n
			}
		}
	}
}

func (e *Exam) netstat(text, group string, want ...string) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if slices.Contains(want, name) && i < len(fields) {
				e.Counters[name], _ = strconv.ParseUint(fields[i], 10, 64)
			}
		}
	}
}
