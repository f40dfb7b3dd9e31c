package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/lab"
)

// TestNodes: nodes that come, go, move and are wrong.
func TestNodes(t *testing.T) {
	for _, overlay := range []string{"direct", "vxlan"} {
		t.Run(overlay, func(t *testing.T) {
			s := up(t, overlay)
			t.Run("renumbered", func(t *testing.T) { s.of(t).renumbered() })
			t.Run("200 join and leave", func(t *testing.T) { s.of(t).joinAndLeave() })
			t.Run("deleted while the agent is dead", func(t *testing.T) { s.of(t).deletedUnseen() })
		})
	}
}

// node gives the manifest of a node. number is its own and of its pod CIDRs.
func node(name string, number int, ip4, ip6 string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Node
metadata: {name: %s}
spec: {podCIDRs: [10.244.%d.0/24, "fd00:10:244:%x::/64"]}
status: {addresses: [{type: InternalIP, address: %s}, {type: InternalIP, address: %q}]}
`, name, number, number, ip4, ip6)
}

// renumbered: n1 gets other addresses under traffic, and back. Its pods keep
// theirs, and so do connections.
func (s *scene) renumbered() {
	to := func(manifest string) event {
		return func() time.Time {
			s.apply(manifest)
			return time.Now() // the objects were written before apply came back
		}
	}
	s.disturbLink(to(node("n1", 1, "192.168.200.77", "fd00:192:168:200::77")))
	if out := s.sh("node/n2", "ip route get 10.244.1.2; ip route; bridge fdb"); strings.Contains(out, "192.168.200.1 ") {
		s.Errorf("the old address is still used:\n%s", out)
	}
	s.disturbLink(to(node("n1", 1, "192.168.200.1", "fd00:192:168:200::1")))
}

// kernel gives what a node's kernel has of the other nodes.
func (s *scene) kernel(of string) string {
	return s.sh("node/"+of, "(ip route; ip -6 route show proto 112; ip neigh show nud permanent; ip -6 neigh show nud permanent; bridge fdb show | grep dst || true) | grep -v fe80 | sort")
}

// joinAndLeave: 200 nodes join at once, with bad ones among them, some of them come
// and go, and all leave. Nobody else notices, and nothing stays.
func (s *scene) joinAndLeave() {
	before := s.kernel("n1")
	s.Cleanup(func() { _ = os.Remove(filepath.Join(s.Dir(), "cluster", "simulated.yaml")) })
	path := filepath.Join(s.Dir(), "cluster", "simulated.yaml") // beside the lab's own files
	var took []time.Duration
	s.undisturbed(func() time.Time {
		took = append(took, s.write(path, 200, 0))
		for leave := 20; leave <= 100; leave += 20 {
			took = append(took, s.write(path, 200, leave))
		}
		took = append(took, s.write(path, 200, 0), s.write(path, 0, 0))
		return time.Time{}
	})
	s.Logf("n1 had the routes of 200 nodes, of fewer, of all, of none after %v", took)
	most := s.limit()
	for _, d := range took {
		if d > most {
			s.Errorf("n1 followed after %s, at most %s is allowed", d, most)
		}
	}
	if after := s.kernel("n1"); after != before {
		s.Errorf("n1 had\n%s\nand has\n%s", before, after)
	}
}

// bad are nodes that each have something wrong; the agent names each. They are
// younger than the lab's, so that they take nothing from them.
var bad = map[string]string{
	"bad-cidr":    broken("bad-cidr", `["10.244.2.0/24", "fd00:10:244:2::/64"]`, "192.168.200.240", "fd00:192:168:200::240"), // n2's pods
	"bad-address": broken("bad-address", `["10.250.1.0/24", "fd00:10:250:1::/64"]`, "192.168.200.2", "fd00:192:168:200::2"),  // n2's address
	"bad-inside":  broken("bad-inside", `["10.250.2.0/24"]`, "10.244.2.99", "fd00:10:244:2::99"),                             // among n2's pods
	"bad-text":    broken("bad-text", `["10.244.x.0/24"]`, "not-an-address", "fd00:192:168:200::241"),
	"bad-empty":   broken("bad-empty", "[]", "192.168.200.243", "fd00:192:168:200::243"),
	"bad-all":     broken("bad-all", `["0.0.0.0/0"]`, "192.168.200.242", "fd00:192:168:200::242"),
}

func broken(name, podCIDRs, ip4, ip6 string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s, creationTimestamp: \"2026-01-01T00:00:00Z\"}\nspec: {podCIDRs: %s}\nstatus: {addresses: [{type: InternalIP, address: %q}, {type: InternalIP, address: %q}]}\n", name, podCIDRs, ip4, ip6)
}

// write has so many nodes in the cluster, but for the first ones of them, and
// waits until n1's kernel has just their routes. With any there are bad ones too.
func (s *scene) write(path string, nodes, without int) time.Duration {
	s.Helper()
	var text strings.Builder
	for i := without; i < nodes; i++ {
		fmt.Fprintf(&text, "---\n%s", node(fmt.Sprintf("simulated-%d", i), i+4, fmt.Sprintf("192.168.200.%d", i+10), fmt.Sprintf("fd00:192:168:200::1:%x", i)))
	}
	if nodes > 0 {
		for _, manifest := range bad {
			fmt.Fprintf(&text, "---\n%s", manifest)
		}
	}
	hidden := filepath.Join(filepath.Dir(path), ".simulated")
	if err := os.WriteFile(hidden, []byte(text.String()), 0o600); err != nil {
		s.Fatal(err)
	}
	if err := os.Rename(hidden, path); err != nil {
		s.Fatal(err)
	}
	took := s.eventually(10*time.Second, func() error {
		out := s.sh("node/n1", "ip route show proto 112 | grep -c '^10.244.*0/24' || true; ip -6 route show proto 112 | grep -c '^fd00:10:244:.*/64' || true")
		if want := fmt.Sprintf("%d\n%d\n", nodes-without+2, nodes-without+2); out != want {
			return fmt.Errorf("n1 has routes to %q nodes, want %q", out, want)
		}
		return nil
	})
	if nodes > 0 {
		status, ok := s.agent("n1")
		for name := range bad {
			if !strings.Contains(status, name) {
				s.Errorf("the agent does not name %s (all applied: %v):\n%s", name, ok, status)
			}
		}
	}
	return took
}

// deletedUnseen: n3 is deleted while n1's agent is dead. When it is back, nothing
// of n3 stays on n1; a new n3 with other addresses is reached.
func (s *scene) deletedUnseen() {
	third := "apiVersion: v1\nkind: Node\nmetadata: {name: n3}\n---\n" + server("third", "third", "n3")
	s.undisturbed(func() time.Time {
		s.agents(lab.AgentKill, "n1")
		s.remove(third)
		time.Sleep(200 * time.Millisecond)
		if out := s.kernel("n1"); !strings.Contains(out, "10.244.3.0/24") {
			s.Errorf("without its agent n1 has no route to n3 any more:\n%s", out)
		}
		began := time.Now()
		s.agents(lab.AgentStart, "n1")
		s.eventually(s.limit(), func() error {
			for _, of := range []string{"10.244.3.0", "fd00:10:244:3:", "192.168.200.3 ", "fd00:192:168:200::3 "} {
				if out := s.kernel("n1"); strings.Contains(out, of) {
					return fmt.Errorf("%s is still there:\n%s", of, out)
				}
			}
			return nil
		})
		s.Logf("n3 is forgotten %s after the agent's start", time.Since(began))
		return time.Time{}
	})
	s.apply(node("n3", 9, "192.168.200.93", "fd00:192:168:200::93") + "---\n" + server("third", "third", "n3"))
	s.settled()
	if out := s.kernel("n1"); !strings.Contains(out, "10.244.9.0/24") {
		s.Errorf("n1 has no route to the new n3:\n%s", out)
	}
	s.look()
	s.reaches("pod third")
}
