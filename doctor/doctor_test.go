package doctor

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/podlane/podlane/explain/observe"
)

// Every check has a paragraph in docs/doctor.md under its id and title, every
// paragraph there is of a check, and no id is there twice.
func TestChecks_documented(t *testing.T) {
	text, err := os.ReadFile("../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile(`(?m)^### (PL-\d{3} .+)\n(\S.+)`).FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
	}
	var checks []string
	ids := map[string]bool{}
	for _, c := range Checks() {
		checks = append(checks, c.ID+" "+c.Title)
		if ids[c.ID] {
			t.Errorf("%s is there twice", c.ID)
		}
		ids[c.ID] = true
	}
	slices.Sort(documented)
	slices.Sort(checks)
	if got, want := strings.Join(documented, "\n"), strings.Join(checks, "\n"); got != want {
		t.Errorf("docs/doctor.md has\n%s\nthe code has\n%s", got, want)
	}
}

func found(list []Finding) (ids []string) {
	for _, f := range list {
		ids = append(ids, f.ID)
		if f.Evidence == "" || f.Mend == "" || strings.Contains(f.Evidence, "\n") {
			ids = append(ids, "without evidence or mending: "+f.ID)
		}
	}
	return ids
}

// What is seen on a node, and which checks find it.
func TestNodes(t *testing.T) {
	for _, tc := range []struct {
		name string
		exam observe.Exam
		want string
	}{
		{"healthy", observe.Exam{}, ""},
		{"agent", observe.Exam{Report: observe.Report{Agent: "does not answer"}}, "PL-001"},
		{"route", observe.Exam{Report: observe.Report{Differences: []observe.Difference{{ID: "route 10.0.0.0/24", What: "is missing", Mend: "x"}}}}, "PL-003"},
		{"forwarding", observe.Exam{Report: observe.Report{Differences: []observe.Difference{{ID: "sysctl net/ipv4/ip_forward", What: "is 0", Mend: "x"}}}}, "PL-008"},
		{"rp_filter of a pod's link", observe.Exam{Report: observe.Report{Differences: []observe.Difference{{ID: "sysctl net/ipv4/conf/pl1/rp_filter", What: "is 1", Mend: "x"}}}}, "PL-009"},
		{"policy drop", observe.Exam{Report: observe.Report{Foreign: []observe.Foreign{{Table: "ip filter", Chain: "FORWARD", Hooks: []string{"forward"}, What: "policy drop"}}}}, "PL-010"},
		{"a firewall for VXLAN", observe.Exam{Report: observe.Report{Foreign: []observe.Foreign{{Table: "ip f", Chain: "i", Hooks: []string{"input"}, Handle: 4, What: "drop", Ports: []uint16{8472}}}}}, "PL-011"},
		{"flannel's link", observe.Exam{Links: []observe.Link{{Name: "flannel.1", Kind: "vxlan", Port: 8472, VNI: 1}}}, "PL-012 PL-013"},
		{"kube-proxy's table", observe.Exam{Tables: []string{"ip kube-proxy"}}, "PL-012"},
		{"a firewall past which the fast path goes", observe.Exam{Report: observe.Report{FastPath: true, Foreign: []observe.Foreign{{Table: "ip f", Chain: "f", Hooks: []string{"forward"}, Handle: 4, What: "drop"}}}}, "PL-010 PL-031"},
		{"no fast path", observe.Exam{Report: observe.Report{FastPathOff: "this kernel has no BTF"}}, "PL-032"},
		{"no translation at the socket", observe.Exam{Report: observe.Report{SocketLBOff: "/sys/fs/cgroup is not a cgroup2 file system"}}, "PL-033"},
		{"a kernel that cannot be told of connections", observe.Exam{Report: observe.Report{FastPath: true, FastPathUntold: "load program: invalid argument"}}, "PL-034"},
		{"none wanted", observe.Exam{Report: observe.Report{SocketLBOff: "off by --socket-lb"}}, ""},
		{"no fast path wanted", observe.Exam{Report: observe.Report{FastPathOff: "off by --fast-path"}}, ""},
		{"strict", observe.Exam{Sysctls: map[string]string{"net/ipv4/conf/all/rp_filter": "1"}}, "PL-020"},
		{"strict everywhere, loose here", observe.Exam{Report: observe.Report{Facts: facts("eth0", 1500)},
			Sysctls: map[string]string{"net/ipv4/conf/all/rp_filter": "1", "net/ipv4/conf/eth0/rp_filter": "2"}}, ""},
		{"MTU", observe.Exam{Report: observe.Report{Facts: facts("eth0", 1400)}, Links: []observe.Link{{Name: "pl-vxlan", Kind: "vxlan", MTU: 1450, Ours: true}}}, "PL-021"},
		{"conntrack", observe.Exam{Sysctls: map[string]string{"net/netfilter/nf_conntrack_max": "1000"}, Flows: 900}, "PL-023"},
		{"neighbours", observe.Exam{Sysctls: map[string]string{"net/ipv4/neigh/default/gc_thresh3": "1000"}, Neighbors: 900}, "PL-026"},
		{"the other node is away", observe.Exam{Pings: []observe.PeerPing{{Peer: "n2", Layer: "underlay"}, {Peer: "n2", Layer: "underlay", Full: true}, {Peer: "n2", Layer: "overlay"}, {Peer: "n2", Layer: "overlay", Full: true}}}, "PL-060"},
		{"its pods are", observe.Exam{Pings: []observe.PeerPing{ok("underlay", false), ok("underlay", true), {Peer: "n2", Layer: "overlay"}, {Peer: "n2", Layer: "overlay", Full: true}}}, "PL-062"},
		{"full size", observe.Exam{Pings: []observe.PeerPing{ok("underlay", false), ok("underlay", true), ok("overlay", false), {Peer: "n2", Layer: "overlay", Full: true}}}, "PL-063"},
		{"DNS", observe.Exam{Queries: []observe.Query{{Error: "timeout"}, {Error: "timeout", Service: "kube-system/kube-dns"}}}, "PL-046 PL-047"},
	} {
		if got := strings.Join(found(Nodes([]*observe.Exam{&tc.exam})), " "); got != tc.want {
			t.Errorf("%s: found %q, want %q", tc.name, got, tc.want)
		}
	}
}

func facts(dev string, mtu int) (f observe.Facts) {
	f.Underlay.Device, f.Underlay.MTU = dev, mtu
	return f
}

func ok(layer string, full bool) observe.PeerPing {
	return observe.PeerPing{Peer: "n2", Layer: layer, Full: full, Ping: observe.Ping{OK: true}}
}

func TestNodes_differentMTUs(t *testing.T) {
	a, b := observe.Exam{Report: observe.Report{Facts: facts("eth0", 1500)}}, observe.Exam{Report: observe.Report{Facts: facts("eth0", 1400)}}
	if got := strings.Join(found(Nodes([]*observe.Exam{&a, &b})), " "); got != "PL-064" {
		t.Errorf("found %q", got)
	}
}

func TestPreflight(t *testing.T) {
	all := []observe.Feature{{Name: "nftables"}, {Name: "vxlan", Error: "operation not supported"}, {Name: "nft fib", Expression: true, Error: "no such file", Need: "CONFIG_NFT_FIB_IPV4"}}
	if got := strings.Join(found(Preflight(all)), " "); got != "PL-083 PL-088" {
		t.Errorf("found %q", got)
	}
}
