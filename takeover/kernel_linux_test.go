package takeover

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/agent/ports"
	"github.com/podlane/podlane/internal/nettest"
)

func detect(t *testing.T) Evidence {
	t.Helper()
	e, err := Detect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// likeKubeProxy makes chains as its iptables mode does, beside a rule of someone
// else and kubelet's canary. The real program's rules are met in test/kubeproxy.
func likeKubeProxy(t *testing.T, program string) {
	t.Helper()
	for _, args := range []string{
		"-t nat -N KUBE-KUBELET-CANARY", "-t nat -N KUBE-SERVICES", "-t nat -N KUBE-SVC-ABC", "-t nat -N KUBE-SEP-1",
		"-t nat -A PREROUTING -j KUBE-SERVICES", "-t nat -A OUTPUT -j KUBE-SERVICES", "-t nat -A KUBE-SERVICES -j KUBE-SVC-ABC",
		"-t nat -A KUBE-SVC-ABC -j KUBE-SEP-1", "-t nat -A OUTPUT -p tcp --dport 9 -j RETURN",
		"-N KUBE-FORWARD", "-A FORWARD -j KUBE-FORWARD", "-N KUBE-FIREWALL", "-A INPUT -j KUBE-FIREWALL", "-A FORWARD -p tcp --dport 9 -j ACCEPT",
	} {
		nettest.Run(t, program, strings.Fields(args)...)
	}
}

func TestDetectAndRemove_iptables(t *testing.T) {
	for _, program := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		t.Run(program, func(t *testing.T) {
			nettest.New(t)
			if out, err := exec.Command(program, "-t", "nat", "-L").CombinedOutput(); err != nil {
				t.Skipf("%s does not work here: %v %s", program, err, out)
			}
			likeKubeProxy(t, program)
			e := detect(t)
			family := map[bool]string{true: "ip6", false: "ip"}[strings.HasPrefix(program, "ip6")]
			if len(e.Rules) != 1 || !strings.HasSuffix(e.Rules[0], "chain KUBE-SERVICES of table "+family+" nat") || e.Runs() ||
				strings.Contains(e.Rules[0], "legacy") != strings.Contains(program, "legacy") {
				t.Fatalf("found %s", e)
			}
			done, err := RemoveRules(t.Context())
			if err != nil || len(done) != 1 {
				t.Fatalf("done %v, %v", done, err)
			}
			if e := detect(t); e.Any() {
				t.Errorf("left: %s", e)
			}
			left := nettest.Run(t, program+"-save")
			for what, want := range map[string]bool{
				"KUBE-SERVICES": false, "KUBE-SVC": false, "KUBE-SEP": false, "KUBE-FORWARD": false,
				":KUBE-KUBELET-CANARY": true, "-A INPUT -j KUBE-FIREWALL": true, "-A OUTPUT -p tcp -m tcp --dport 9 -j RETURN": true,
				"-A FORWARD -p tcp -m tcp --dport 9 -j ACCEPT": true,
			} {
				if strings.Contains(left, what) != want {
					t.Errorf("%q there: %v, want %v:\n%s", what, !want, want, left)
				}
			}
			if done, err := RemoveRules(t.Context()); err != nil || len(done) != 0 {
				t.Errorf("again: %v, %v", done, err)
			}
		})
	}
}

// TestChains_noRaw: an agent, which has CAP_NET_ADMIN alone, finds chains of the old
// iptables too.
func TestChains_noRaw(t *testing.T) {
	nettest.New(t)
	if out, err := exec.Command("iptables-legacy", "-t", "nat", "-N", "ONE").CombinedOutput(); err != nil {
		t.Skipf("it does not work here: %v %s", err, out)
	}
	head, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	if err := unix.Capget(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_RAW // of this thread, which ends with the test
	if err := unix.Capset(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	if found, err := Chains("nat", "ONE"); err != nil || fmt.Sprint(found) != "[iptables (legacy) chain ONE of table ip nat]" {
		t.Errorf("%v, %v", found, err)
	}
	if found, err := Chains("nat", "ON"); err != nil || len(found) != 0 {
		t.Errorf("of another name: %v, %v", found, err)
	}
}

func TestDetectAndRemove_nftables(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "nft", "add table ip kube-proxy; add table ip6 kube-proxy; add table inet kube-proxy; add table ip mine; add table ip nat; add chain ip nat c")
	if e := detect(t); fmt.Sprint(e.Rules) != "[nftables table ip kube-proxy nftables table ip6 kube-proxy]" {
		t.Fatalf("found %s", e)
	}
	if _, err := RemoveRules(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := nettest.Run(t, "nft", "list", "tables")
	if strings.Contains(left, "ip kube-proxy") || strings.Contains(left, "ip6 kube-proxy") || !strings.Contains(left, "inet kube-proxy") || !strings.Contains(left, "ip mine") {
		t.Errorf("left:\n%s", left)
	}
}

func TestDetect_nothing(t *testing.T) {
	nettest.New(t)
	if e := detect(t); e.Any() {
		t.Errorf("an empty namespace: %s", e)
	}
	if names := nettest.Run(t, "sh", "-c", "cat /proc/net/ip_tables_names 2>/dev/null || true"); names != "" {
		t.Errorf("the search made tables of iptables: %q", names)
	}
}

func TestDetect_ports(t *testing.T) {
	nettest.New(t)
	serve := func(addr, server, body string) net.Listener {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if server != "" {
				w.Header().Set("Server", server)
			}
			fmt.Fprint(w, body)
		})}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close() })
		return l
	}
	ours := serve("127.0.0.1:10256", ports.Server, "{}")
	if e := detect(t); e.Any() {
		t.Errorf("our own answers: %s", e)
	}
	serve("127.0.0.1:10249", "", "ipvs")
	_ = ours.Close()
	if e := detect(t); fmt.Sprint(e.Answers) != "[127.0.0.1:10249 (mode ipvs)]" || !e.Runs() {
		t.Errorf("found %s", e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Detect(ctx); err != nil {
		t.Errorf("given up: %v", err)
	}
}

// TestDetect_process: kube-proxy may answer on other ports than its own.
func TestDetect_process(t *testing.T) {
	nettest.New(t)
	path := filepath.Join(t.TempDir(), "kube-proxy")
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	data, err := os.ReadFile(sleep)
	if err == nil {
		err = os.WriteFile(path, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "60")
	if err := cmd.Start(); err != nil {
		t.Skip(err) // a folder that runs no programs, or a program that goes by its name
	}
	for range 50 { // the name is that of the fork's parent at first
		if e := detect(t); e.Runs() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if e := detect(t); fmt.Sprint(e.Processes) != fmt.Sprintf("[process %d]", cmd.Process.Pid) || !e.Runs() {
		t.Errorf("found %s", e)
	}
	nettest.Do(t, nettest.Make(t), func() {
		if e := detect(t); e.Any() {
			t.Errorf("from another namespace: %s", e)
		}
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if e := detect(t); e.Any() {
		t.Errorf("once it has ended: %s", e)
	}
}
