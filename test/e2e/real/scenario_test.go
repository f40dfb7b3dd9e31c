package real

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/test/e2e/internal/machines"
)

// testAgentRestart: the agents of all nodes are killed and started anew under load,
// and no connection fails.
func testAgentRestart(t *testing.T) {
	apply(t, workload("steady", 2))
	apply(t, workload("client", 1))
	rollout(t, "deployment/steady")
	rollout(t, "deployment/client")
	client := pods(t, "app=client", ".metadata.name")[0]
	result := load(t, client, "http://"+kubectl(t, "get", "service", "steady", "-o", "jsonpath={.spec.clusterIP}")+"/hostname", 25*time.Second, 4)
	time.Sleep(time.Second)
	kubectl(t, "-n", "podlane", "delete", "pods", "--all", "--force", "--grace-period=0")
	time.Sleep(time.Second)
	kubectl(t, "-n", "podlane", "rollout", "status", "daemonset/podlane-agent", "--timeout=90s")
	ok, failed, first := result()
	t.Logf("%d connections", ok)
	if failed > 0 || ok < 1000 {
		t.Errorf("%d connections, %d failed: %s", ok, failed, first)
	}
}

// testServerAway: without its API server the cluster goes on, also when an agent
// starts anew meanwhile, and follows what happened when the server is back.
func testServerAway(t *testing.T) {
	apply(t, workload("steady", 2))
	apply(t, workload("client", 1))
	rollout(t, "deployment/steady")
	rollout(t, "deployment/client")
	client := pods(t, "app=client", ".metadata.name")[0]
	url := "http://" + kubectl(t, "get", "service", "steady", "-o", "jsonpath={.spec.clusterIP}") + "/hostname"
	away := 15 * time.Second
	if *long {
		away = 5 * time.Minute
	}
	ip := pods(t, "app=client", ".status.podIP")[0]
	node := cluster.Nodes[0]
	cluster.KillAPI()
	ok, failed := 0, 0
	var first error
	for end := time.Now().Add(away); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		// kubectl exec needs the server: the node itself is the client.
		if out, err := node.Run(t.Context(), "curl", "-sS", "--noproxy", "*", "--max-time", "2", url); err != nil || !strings.HasPrefix(out, "steady-") {
			failed++
			if first == nil {
				first = fmt.Errorf("%s %w", out, err)
			}
			continue
		}
		ok++
	}
	t.Logf("%d connections while the server was away (a pod of then is %s)", ok, ip)
	if failed > 0 || ok < 100 {
		t.Errorf("%d connections, %d failed: %v", ok, failed, first)
	}
	if err := cluster.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "rollout", "restart", "deployment/steady")
	rollout(t, "deployment/steady")
	names := pods(t, "app=steady", ".metadata.name")
	eventually(t, "the new pods answer", func() error {
		got, err := in(client, "get", url)
		for _, n := range names {
			if n == got {
				return nil
			}
		}
		return fmt.Errorf("%q: %w", got, err)
	})
}

// testFaults does to a node what machines and people do to nodes, under a packet
// every 10 ms from a pod of it to a pod of the other one, by its address and by its
// Service, and asserts for how long nothing came back.
func testFaults(t *testing.T) {
	apply(t, workload("far", 2))
	apply(t, workload("client", 2))
	rollout(t, "deployment/far")
	rollout(t, "deployment/client")
	first, other := cluster.Nodes[0], cluster.Nodes[1]
	client := onNode(t, "client", first.Name, ".metadata.name")
	// One endpoint, on the other node, so that the Service leads nowhere else.
	near := onNode(t, "far", first.Name, ".metadata.name")
	mustIn(t, near, "get", "http://127.0.0.1:8080/drain")
	targets := map[string]string{
		"pod":     onNode(t, "far", other.Name, ".status.podIP") + ":8080",
		"Service": kubectl(t, "get", "service", "far", "-o", "jsonpath={.spec.clusterIP}") + ":80",
	}
	eventually(t, "the Service leads to the other node alone", func() error {
		for range 10 {
			if got, err := in(client, "get", "http://"+strings.TrimSuffix(targets["Service"], ":80")+"/hostname"); got == near || err != nil {
				return fmt.Errorf("%s %w", got, err)
			}
		}
		return nil
	})
	for _, c := range []struct {
		name, script string
		most         time.Duration // that nothing may come back
	}{
		{"nothing", "true", 500 * time.Millisecond},
		{"nft flush ruleset", "nft flush ruleset", time.Second},
		{"routes removed", "ip route flush proto 112", time.Second},
		{"underlay flap", "ip link set eth0 down; sleep 0.3; ip link set eth0 up; ip route replace default via 192.168.77.1", 1300 * time.Millisecond},
		{"agents killed", `for p in $(pidof podlane); do grep -qa agent /proc/$p/cmdline && kill -9 $p; done`, 500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) { fault(t, first, client, targets, c.script, c.most) })
	}
}

// fault runs a script on the node in the middle of the pulses.
func fault(t *testing.T, n *machines.Node, client string, targets map[string]string, script string, most time.Duration) {
	seconds := 5 + most.Seconds()
	type answer struct{ what, out string }
	done := make(chan answer, len(targets))
	for what, addr := range targets {
		go func() {
			out, err := in(client, "pulse", addr, fmt.Sprint(seconds))
			if err != nil {
				out += err.Error()
			}
			done <- answer{what, out}
		}()
	}
	time.Sleep(2 * time.Second)
	if _, err := n.Run(t.Context(), "sh", "-c", script); err != nil {
		t.Error(err)
	}
	for range targets {
		a := <-done
		var sent, answered, gap int
		if _, err := fmt.Sscan(a.out, &sent, &answered, &gap); err != nil {
			t.Errorf("%s: %q: %v", a.what, a.out, err)
			continue
		}
		t.Logf("%s: %d packets, %d answered, longest gap %d ms", a.what, sent, answered, gap)
		if d := time.Duration(gap) * time.Millisecond; d > most {
			t.Errorf("%s: nothing came back for %s, at most %s is allowed", a.what, d, most)
		}
	}
}

// onNode gives a field of the pod of an app on a node.
func onNode(t *testing.T, app, node, field string) string {
	t.Helper()
	return kubectl(t, "get", "pods", "-l", "app="+app, "--field-selector", "spec.nodeName="+node, "-o", "jsonpath={.items[0]"+field+"}")
}
