package apply

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/proxy"
)

// What packets meet is tested beside the other backend, in proxy/nftables/apply.

func node(t *testing.T) *Applier {
	t.Helper()
	nettest.New(t)
	if out, err := exec.Command("ip6tables-restore", "--test").CombinedOutput(); err != nil {
		t.Skipf("iptables does not work here: %v %s", err, out)
	}
	return New("")
}

// table makes Services s0, s1, ... with so many endpoints of both families each.
func table(services, endpoints int) *proxy.Table {
	b := cluster.NewBuilder()
	b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00:2::1")}})
	for i := range services {
		name := fmt.Sprint("s", i)
		b.SetService(&cluster.Service{Key: cluster.Key{Namespace: "default", Name: name}, Type: cluster.NodePort,
			ClusterIPs: []netip.Addr{netip.MustParseAddr(fmt.Sprint("10.96.0.", i+1)), netip.MustParseAddr(fmt.Sprintf("fd00:96::%x", i+1))},
			Ports:      []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80, NodePort: uint16(30000 + i)}}})
		for _, v6 := range []bool{false, true} {
			s := &cluster.EndpointSlice{Key: cluster.Key{Namespace: "default", Name: fmt.Sprint(name, v6)}, Service: name, IPv6: v6,
				Ports: []cluster.EndpointPort{{Name: "http", Protocol: cluster.TCP, Port: 8080}}}
			for e := range endpoints {
				a := netip.MustParseAddr(fmt.Sprintf("10.244.%d.%d", i, e+1))
				if v6 {
					a = netip.MustParseAddr(fmt.Sprintf("fd00:244:%x::%x", i, e+1))
				}
				s.Endpoints = append(s.Endpoints, cluster.Endpoint{Address: a, Ready: true, Serving: true})
			}
			b.SetSlice(s)
		}
	}
	return proxy.CompileAll(b.Publish(), proxy.Config{Node: "n1"})
}

func apply(t *testing.T, a *Applier, tb *proxy.Table) {
	t.Helper()
	if err := a.Apply(tb, nil); err != nil {
		t.Fatal(err)
	}
}

// save gives the rules without counters and comments of the program.
func save(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		for line := range strings.Lines(nettest.Run(t, program)) {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
				out.WriteString(line)
			}
			if strings.HasPrefix(line, ":") {
				name, _, _ := strings.Cut(line, " ")
				out.WriteString(name + "\n")
			}
		}
	}
	return out.String()
}

// TestApply_anyHistory: after any changes the rules are those of the last Table
// alone, whether the same Applier goes on or a new one starts.
func TestApply_anyHistory(t *testing.T) {
	fresh := func(tb *proxy.Table) string {
		apply(t, node(t), tb)
		return save(t)
	}
	want := fresh(table(3, 2))
	a := node(t)
	for _, size := range [][2]int{{5, 3}, {1, 0}, {0, 0}, {7, 1}, {3, 2}} {
		apply(t, a, table(size[0], size[1]))
	}
	if got := save(t); got != want {
		t.Errorf("after changes\n%s\nwant\n%s", got, want)
	}
	apply(t, New(""), table(4, 4))
	apply(t, New(""), table(3, 2))
	if got := save(t); got != want {
		t.Errorf("after restarts\n%s\nwant\n%s", got, want)
	}
}

func TestApply_othersStay(t *testing.T) {
	a := node(t)
	nettest.Run(t, "iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "9", "-j", "RETURN")
	nettest.Run(t, "iptables", "-N", "MINE")
	nettest.Run(t, "iptables", "-A", "FORWARD", "-j", "MINE")
	before := save(t)
	apply(t, a, table(2, 2))
	if got := save(t); !strings.Contains(got, "-A FORWARD -j MINE") || !strings.Contains(got, "--dport 9 -j RETURN") || !strings.Contains(got, "PL-SERVICES") {
		t.Errorf("with our rules:\n%s", got)
	}
	if err := a.Remove(); err != nil {
		t.Fatal(err)
	}
	got := save(t)
	if strings.Contains(got, "PL-") {
		t.Errorf("left:\n%s", got)
	}
	for line := range strings.Lines(before) {
		if !strings.Contains(got, line) {
			t.Errorf("gone: %s", line)
		}
	}
	if err := a.Remove(); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestAudit(t *testing.T) {
	a := node(t)
	tb := table(2, 2)
	apply(t, a, tb)
	want := save(t)
	for _, harm := range []string{"iptables -t nat -F PREROUTING", "ip6tables -D INPUT 1", "iptables -t nat -F", "ip6tables -t nat -F PL-SERVICES"} {
		if err := a.Audit(); err != nil || a.Doubtful() {
			t.Fatalf("all is right: %v, doubtful %v", err, a.Doubtful())
		}
		args := strings.Fields(harm)
		nettest.Run(t, args[0], args[1:]...)
		if err := a.Audit(); err != nil || !a.Doubtful() {
			t.Errorf("%s: not noticed, %v", harm, err)
			a = New("")
		}
		apply(t, a, tb)
		if got := save(t); got != want {
			t.Errorf("after %s:\n%s\nwant\n%s", harm, got, want)
		}
	}
}

func TestApply_noProgram(t *testing.T) {
	nettest.New(t)
	err := New(t.TempDir()).Apply(table(1, 1), nil)
	if err == nil || !strings.Contains(err.Error(), "iptables-save is not in") {
		t.Errorf("%v", err)
	}
}

// hostRoot makes a root folder with the host's programs, which are links that lead to
// nothing outside of it, as Debian's do for a container.
func hostRoot(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("iptables-save")
	if err != nil {
		t.Skip(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, dir := range []string{"usr/sbin", "etc/alternatives-of-test", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nettest.Run(t, "sh", "-c", `cp -rL --parents $(ldd "$0" | grep -o "/[^ ]*") $(ls -d /usr/lib*/xtables /usr/lib/*/xtables 2>/dev/null) "$1" && cp "$0" "$1/etc/alternatives-of-test/program"`, path, root)
	for _, name := range []string{"iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"} {
		if err := os.Symlink("/etc/alternatives-of-test/program", filepath.Join(root, "usr/sbin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestApply_root runs the programs of a host's root folder, as in a container.
func TestApply_root(t *testing.T) {
	node(t)
	a := New(hostRoot(t))
	if err := a.Programs(); err != nil {
		t.Fatal(err)
	}
	if err := a.Apply(table(1, 1), nil); err != nil {
		t.Fatal(err)
	}
	if got := save(t); !strings.Contains(got, "-A PREROUTING -j PL-SERVICES") {
		t.Errorf("rules:\n%s", got)
	}
	if err := a.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := save(t); strings.Contains(got, "PL-") {
		t.Errorf("left:\n%s", got)
	}
}

// Connections to a frontend are counted, whether anybody answers or not.
func TestCounts(t *testing.T) {
	a := node(t)
	apply(t, a, table(2, 2))
	nettest.Run(t, "ip", "link", "set", "lo", "up")
	nettest.Run(t, "ip", "route", "add", "default", "dev", "lo")
	nettest.Run(t, "ip", "-6", "route", "add", "default", "dev", "lo")
	knock := func(addr string, times int) {
		for range times {
			if c, err := net.DialTimeout("tcp", addr, 20*time.Millisecond); err == nil {
				c.Close()
			}
		}
	}
	knock("10.96.0.1:80", 3)
	knock("[fd00:96::2]:80", 2)
	counts, err := a.Counts()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, c := range counts {
		got[fmt.Sprint(c.Service, " ", c.Protocol, " ", c.Frontend)] = c.New
	}
	want := map[string]uint64{
		"default/s0:http TCP 10.96.0.1:80": 3, "default/s0:http TCP [fd00:96::1]:80": 0, "default/s1:http TCP 10.96.0.2:80": 0, "default/s1:http TCP [fd00:96::2]:80": 2,
		"default/s0:http TCP 0.0.0.0:30000": 0, "default/s0:http TCP [::]:30000": 0, "default/s1:http TCP 0.0.0.0:30001": 0, "default/s1:http TCP [::]:30001": 0,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
