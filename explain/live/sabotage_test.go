package live_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/lab"
)

// A client on n1; a server that the Service leads to on n2 alone, so that every
// connection takes the whole way; and beside it one on n3 for a third node's sake.
const scene = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: n1, containers: [{name: c, image: curl, command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, image: nginx, ports: [{containerPort: 80}, {containerPort: 5000, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec: {nodeName: n2, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.1.1
  selector: {app: web}
  ports: [{name: http, port: 80}, {name: echo, port: 5000, protocol: UDP}]
`

// sabotage is one way to break the lab, with what must be named. The agents are
// stopped first, since they would put most of it right at once.
type sabotage struct {
	name   string
	target string
	break_ string
	mend   string
	// hop is what explain --verify must name first: node and object; empty where
	// it need not find it.
	node, hop string
	// check is what doctor must find, on that node; empty where it need not.
	check string
}

// vars are words that shell commands of the lab are written with.
func (w *world) vars() *strings.Replacer {
	pod := func(name string) (ip string) {
		for _, p := range w.status().Pods {
			if p.Name == name {
				return p.IPs[0]
			}
		}
		w.Fatalf("no pod %s", name)
		return ""
	}
	link := func(node, ip string) string {
		return strings.TrimSpace(w.sh("node/"+node, "ip -o route get "+ip+" | sed 's/.* dev \\([^ ]*\\).*/\\1/'"))
	}
	mac := strings.TrimSpace(w.sh("node/n2", "ip -o link show pl-vxlan | sed 's/.*ether \\([^ ]*\\).*/\\1/'"))
	dns := 0
	for _, p := range w.status().Pods {
		if p.Name == "podlane-dns-n2" {
			dns = p.Containers[0].PID
		}
	}
	return strings.NewReplacer("DNSPID", fmt.Sprint(dns), "SERVERLINK", link("n2", pod("server")), "SERVER", pod("server"), "CLIENT", pod("client"), "OTHER", pod("other"), "MAC2", mac)
}

func (w *world) status() *lab.Status {
	st, err := w.Client.Status(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	return st
}

var sabotages = []sabotage{
	{"a route is removed", "node/n1", "ip route del 10.244.2.0/24", "", "n1", "route 10.244.2.0/24", "PL-003"},
	{"a route leads to the wrong peer", "node/n1", "ip route replace 10.244.2.0/24 via 192.168.200.3 dev eth0 proto 112", "", "n1", "route 10.244.2.0/24", "PL-003"},
	{"a foreign route takes a part", "node/n1", "ip route add SERVER/32 via 192.168.200.3 dev eth0", "ip route del SERVER/32 via 192.168.200.3", "n1", "route 10.244.2.0/24", "PL-014"},
	{"a pod's route is removed", "node/n2", "ip route del SERVER/32", "", "n2", "route SERVER/32", "PL-003"},
	{"an FDB entry is wrong", "node/n1", "bridge fdb replace MAC2 dev pl-vxlan dst 192.168.200.3 self permanent", "", "n1", "fdb pl-vxlan MAC2", "PL-005"},
	{"a neighbour is missing", "node/n1", "ip neigh del 10.244.2.0 dev pl-vxlan", "", "n1", "neigh pl-vxlan 10.244.2.0", "PL-004"},
	{"a pod's neighbour is wrong", "node/n2", "ip neigh replace SERVER lladdr 02:00:00:00:00:99 dev SERVERLINK nud permanent", "", "n2", "neigh SERVERLINK SERVER", "PL-004"},
	{"a service element is deleted", "node/n1", "T=$(nft list tables ip | sed -n 's/^table ip \\(podlane-[0-9][-0-9b]*\\)$/\\1/p') && nft delete element ip $T services '{ 10.96.1.1 . tcp . 80 }'", "", "n1", "nft ip services 10.96.1.1 . tcp . 80", "PL-007"},
	{"an endpoint element is wrong", "node/n1", "T=$(nft list tables ip | sed -n 's/^table ip \\(podlane-[0-9][-0-9b]*\\)$/\\1/p') && nft delete element ip $T endpoints '{ 10.96.1.1 . tcp . 80 . 0 }' && nft add element ip $T endpoints '{ 10.96.1.1 . tcp . 80 . 0 : OTHER . 80 }'", "T=$(nft list tables ip | sed -n 's/^table ip \\(podlane-[0-9][-0-9b]*\\)$/\\1/p') && nft delete table ip $T", "n1", "nft ip endpoints 10.96.1.1 . tcp . 80", "PL-007"},
	{"all rules are flushed", "node/n1", "nft flush ruleset", "", "n1", "nft ip table", "PL-007"},
	{"the VTEP's MAC is changed", "node/n2", "ip link set pl-vxlan address 02:00:00:00:00:77", "", "n2", "link pl-vxlan", "PL-006"},
	{"the VTEP is down", "node/n1", "ip link set pl-vxlan down", "", "n1", "", "PL-006"},
	{"the underlay's MTU is lowered", "node/n2", "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500", "n2", "link pl-vxlan", "PL-061"},
	{"forwarding is off", "node/n2", "sysctl -qw net.ipv4.ip_forward=0", "", "n2", "sysctl net/ipv4/ip_forward", "PL-008"},
	{"a foreign filter drops", "node/n2", "nft add table ip filter && nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'", "nft delete table ip filter", "n2", "nft table filter chain FORWARD policy drop", "PL-010"},
	{"a foreign rule rejects the client", "node/n1", "nft add table inet fw && nft add chain inet fw f '{ type filter hook forward priority 10; }' && nft add rule inet fw f ip saddr CLIENT tcp dport 80 drop", "nft delete table inet fw", "n1", "nft table fw chain f rule handle 2", "PL-010"},
	{"strict rp_filter on a link of ours", "node/n2", "sysctl -qw net.ipv4.conf.pl-vxlan.rp_filter=1", "", "n2", "sysctl net/ipv4/conf/pl-vxlan/rp_filter", "PL-009"},
	{"strict rp_filter on the underlay", "node/n2", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1", "sysctl -qw net.ipv4.conf.eth0.rp_filter=0", "", "", "PL-020"},
	{"VXLAN's port is blocked", "node/n2", "nft add table ip fw && nft add chain ip fw in '{ type filter hook input priority 0; }' && nft add rule ip fw in udp dport 8472 drop", "nft delete table ip fw", "n1", "underlay n1 to n2", "PL-011"},
	{"VXLAN's port is blocked between the nodes", "outside", "nft add table bridge fw && nft add chain bridge fw f '{ type filter hook forward priority 0; }' && nft add rule bridge fw f udp dport 8472 drop", "nft delete table bridge fw", "n1", "underlay n1 to n2", "PL-062"},
	{"a policy rule goes before", "node/n1", "ip rule add to 10.244.2.0/24 lookup 100 && ip route add unreachable default table 100", "ip rule del to 10.244.2.0/24 lookup 100; ip route flush table 100", "n1", "route 10.244.2.0/24", "PL-015"},
	{"the server's link is down", "node/n2", "ip link set SERVERLINK down", "", "n2", "", "PL-006"},
	{"another VXLAN link has the port", "node/n1", "ip link add vx9 type vxlan id 9 dstport 8472 dev eth0", "ip link del vx9", "", "", "PL-013"},
	{"another network's bridge has the pods' addresses", "node/n2", "ip link add cni0 type bridge && ip addr add 10.244.2.9/24 dev cni0 && ip link set cni0 up", "ip link del cni0", "", "", "PL-016"},
	{"kube-proxy's table is left", "node/n1", "nft add table ip kube-proxy && nft add chain ip kube-proxy nat-prerouting '{ type nat hook prerouting priority dstnat; }'", "nft delete table ip kube-proxy", "", "", "PL-012"},
	{"IPv6 forwarding is off", "node/n2", "sysctl -qw net.ipv6.conf.all.forwarding=0", "", "", "", "PL-008"},
	{"DNS is stopped", "node/n2", "kill -STOP DNSPID", "kill -CONT DNSPID", "", "", "PL-046"},
}

// Each way to break the lab is named, and after it all is well again.
func TestSabotage(t *testing.T) {
	w := up(t, lab.Options{Nodes: 3, Overlay: "vxlan", FastPath: "off"}, scene)
	w.settled()
	words := w.vars()
	if found := w.examine(); len(found) > 0 {
		t.Fatalf("before anything is broken: %+v", found)
	}
	for _, s := range sabotages {
		t.Run(s.name, func(t *testing.T) {
			w := &world{TB: t, Client: w.Client, name: w.name}
			w.agents(lab.AgentKill)
			w.sh(s.target, words.Replace(s.break_))
			w.named(s, words)
			if s.mend != "" {
				w.sh(s.target, words.Replace(s.mend))
			}
			w.agents(lab.AgentStart)
			w.settled()
		})
	}
	if v := w.verify("client", "web:80"); !v.OK() {
		t.Errorf("after all is mended: %v", v.All)
	}
	if found := w.examine(); len(found) > 0 {
		t.Errorf("after all is mended: %+v", found)
	}
}

func (w *world) agents(a lab.AgentAction) {
	w.Helper()
	if err := w.Agents(w.Context(), a); err != nil {
		w.Fatal(err)
	}
}

// named checks that explain --verify names the hop and doctor the check.
func (w *world) named(s sabotage, words *strings.Replacer) {
	w.Helper()
	if s.hop != "" || s.node != "" {
		v := w.verify("client", "web:80")
		if v.OK() {
			w.Errorf("explain --verify found nothing; the probe: %v", v.Probe)
		} else if v.First.Node != s.node || s.hop != "" && v.First.ID != words.Replace(s.hop) {
			w.Errorf("explain --verify names first\n%s\nwant node %s, %s; all: %v", v.First, s.node, words.Replace(s.hop), v.All)
		}
	}
	var ids []string
	for _, f := range w.examine() {
		if f.ID != "PL-001" { // the agents are stopped
			ids = append(ids, f.ID)
		}
	}
	if !slices.Contains(ids, s.check) {
		w.Errorf("doctor finds %v, want %s", ids, s.check)
	}
}

// A pod whose address another pod has too, and a UDP flow to an endpoint that is
// gone: these are in the cluster's state and in conntrack.
func TestSabotage_state(t *testing.T) {
	w := up(t, lab.Options{Nodes: 2, Overlay: "vxlan", FastPath: "off"}, scene)
	w.settled()
	server := w.vars().Replace("SERVER")
	w.sh("default/client", program(t)+" observe probe --protocol udp --port 45000 10.96.1.1:5000")
	w.agents(lab.AgentKill)
	w.apply(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: twin}\nspec: {nodeName: n9, containers: [{name: c, image: pause}]}\nstatus: {podIP: %s, podIPs: [{ip: %[1]s}]}\n", server))
	if ids := w.ids(); !slices.Contains(ids, "PL-041") {
		t.Errorf("two pods with one address: doctor finds %v", ids)
	}
	w.apply("apiVersion: v1\nkind: Service\nmetadata: {name: aaa}\nspec: {clusterIP: 10.96.1.2, externalIPs: [192.0.2.9], ports: [{port: 80}]}\n---\n" +
		"apiVersion: v1\nkind: Service\nmetadata: {name: bbb}\nspec: {clusterIP: 10.96.1.3, externalIPs: [192.0.2.9], ports: [{port: 80}]}\n")
	if ids := w.ids(); !slices.Contains(ids, "PL-043") {
		t.Errorf("two Services with one address: doctor finds %v", ids)
	}
	w.apply("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.1.1\n  selector: {app: nobody}\n  ports: [{name: http, port: 80}, {name: echo, port: 5000, protocol: UDP}]\n")
	if ids := w.ids(); !slices.Contains(ids, "PL-025") {
		t.Errorf("a stale UDP flow: doctor finds %v", ids)
	}
}

func (w *world) ids() (ids []string) {
	for _, f := range w.examine() {
		ids = append(ids, f.ID)
	}
	return ids
}

func (w *world) apply(manifest string) {
	w.Helper()
	objects, problems := file.Parse("apply.yaml", []byte(manifest))
	if len(problems) > 0 {
		w.Fatal(problems)
	}
	if _, err := w.Apply(w.Context(), objects); err != nil {
		w.Fatal(err)
	}
}
