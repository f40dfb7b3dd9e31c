package real

import (
	"errors"
	"fmt"
	"slices"
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

// testServerAway: without its API server the cluster goes on, also when agents
// start anew meanwhile, with pods that come and go before and after. No connection
// to pods that stay fails, and the agents follow what happened when the server is
// back.
func testServerAway(t *testing.T) {
	for _, w := range []string{workload("steady", 2), workload("client", 2), workload("churn", 1)} {
		apply(t, w)
	}
	for _, name := range []string{"steady", "client", "churn"} {
		rollout(t, "deployment/"+name)
	}
	away := 30 * time.Second
	if *long {
		away = 5 * time.Minute
	}
	node := cluster.Nodes[0]
	client := onNode(t, "client", node.Name, ".metadata.name")
	container := strings.TrimPrefix(onNode(t, "client", node.Name, ".status.containerStatuses[0].containerID"), "containerd://")
	far := onNode(t, "steady", cluster.Nodes[1].Name, ".status.podIP")
	service := kubectl(t, "get", "service", "steady", "-o", "jsonpath={.spec.clusterIP}")
	most := fmt.Sprint((away + 6*wait).Seconds())
	load, err1 := node.InPod(t.Context(), container, "load", "http://"+service+"/hostname", most, "2")
	pulse, err2 := node.InPod(t.Context(), container, "pulse", far+":8080", most)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	churn(t)
	cluster.KillAPI()
	time.Sleep(away / 2)
	// The kubelets start them again.
	scriptNode{node}.script("for p in $(pidof podlane); do grep -qa agent /proc/$p/cmdline && kill -9 $p; done; true")(t)
	time.Sleep(away / 2)
	if err := cluster.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	churn(t)
	names := pods(t, "app=churn", ".metadata.name")
	eventually(t, "the new pods answer", func() error {
		if got, err := in(client, "get", "http://churn/hostname"); !slices.Contains(names, got) {
			return fmt.Errorf("%q, want one of %v: %w", got, names, err)
		}
		return nil
	})
	kubectl(t, "-n", "podlane", "rollout", "status", "daemonset/podlane-agent", "--timeout=90s")
	connections, err1 := load.Stop(t.Context())
	packets, err2 := pulse.Stop(t.Context())
	var ok, failed, sent, answered, gap int
	_, err3 := fmt.Sscan(connections, &ok, &failed)
	_, err4 := fmt.Sscan(packets, &sent, &answered, &gap)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatalf("%v: %q %q", err, connections, packets)
	}
	t.Logf("away for %s: %d connections, %d failed; %d packets, %d answered, longest gap %d ms", away, ok, failed, sent, answered, gap)
	if failed > 0 || ok < 1000 || gap > 500 {
		t.Errorf("%s; %s", connections, packets)
	}
}

// churn has pods come and go.
func churn(t *testing.T) {
	t.Helper()
	for _, replicas := range []string{"6", "1"} {
		kubectl(t, "scale", "deployment/churn", "--replicas", replicas)
		rollout(t, "deployment/churn")
	}
	kubectl(t, "rollout", "restart", "deployment/churn")
	rollout(t, "deployment/churn")
}

// testFaults does to a node what machines and people do to nodes, under a packet
// every 10 ms from a pod of it to a pod of the other one, by its address and by its
// Service, and asserts for how long nothing came back.
func testFaults(t *testing.T) {
	p := newPulses(t)
	for _, c := range []struct {
		name, script string
		most         time.Duration // that nothing may come back
	}{
		{"nothing", "true", 500 * time.Millisecond},
		{"nft flush ruleset", "nft flush ruleset", time.Second},
		{"routes removed", "ip route flush proto 112", time.Second},
		{"underlay flap", flap, 1300 * time.Millisecond},
		{"agents killed", "for p in $(pidof podlane); do grep -qa agent /proc/$p/cmdline && kill -9 $p; done; true", 500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) { p.during(t, c.most, p.node.script(c.script)) })
	}
	kubectl(t, "-n", "podlane", "rollout", "status", "daemonset/podlane-agent", "--timeout=90s")
}

// flap takes the underlay down, and does what a node's network manager does when it
// is up again.
const flap = `a=$(ip -6 -o addr show dev eth0 scope global | grep -o "fd77::[0-9a-f]*/64"); ip link set eth0 down; sleep 0.3; ip link set eth0 up
ip route replace default via 192.168.77.1; ip -6 addr replace $a dev eth0 nodad; ip -6 route replace default via fd77::1`

// testVXLAN goes over to VXLAN and back under the same packets, one node after the
// other, and has faults of the overlay's device.
func testVXLAN(t *testing.T) {
	p := newPulses(t)
	change := func(overlay string) func(t *testing.T) {
		return func(t *testing.T) {
			kubectl(t, "-n", "podlane", "patch", "configmap", "podlane-config", "-p", `{"data":{"overlay":"`+overlay+`"}}`)
			kubectl(t, "-n", "podlane", "rollout", "restart", "daemonset/podlane-agent")
			kubectl(t, "-n", "podlane", "rollout", "status", "daemonset/podlane-agent", "--timeout=90s")
		}
	}
	t.Run("to VXLAN", func(t *testing.T) { p.during(t, time.Second, change("vxlan")) })
	if out, err := p.node.Run(t.Context(), "ip", "route", "show", "dev", "pl-vxlan"); !strings.Contains(out, "10.244.") {
		t.Errorf("no route by the overlay: %q %v", out, err)
	}
	for name, script := range map[string]string{
		"overlay flap":    "ip link set pl-vxlan down; sleep 0.1; ip link set pl-vxlan up",
		"overlay deleted": "ip link delete pl-vxlan",
		"overlay's MAC":   "ip link set pl-vxlan address 02:00:00:00:00:01",
	} {
		t.Run(name, func(t *testing.T) { p.during(t, 1100*time.Millisecond, p.node.script(script)) })
	}
	t.Run("back", func(t *testing.T) { p.during(t, time.Second, change("auto")) })
}

// pulses is a pod on a node, and where it sends a packet every 10 ms.
type pulses struct {
	node    scriptNode
	client  string
	targets map[string]string
}

type scriptNode struct{ *machines.Node }

// script gives a shell script to be run on the node.
func (n scriptNode) script(text string) func(*testing.T) {
	return func(t *testing.T) {
		if _, err := n.Run(t.Context(), "sh", "-c", text); err != nil {
			t.Error(err)
		}
	}
}

func newPulses(t *testing.T) pulses {
	t.Helper()
	apply(t, workload("far", 2))
	apply(t, workload("client", 2))
	rollout(t, "deployment/far")
	rollout(t, "deployment/client")
	first, other := cluster.Nodes[0], cluster.Nodes[1]
	client := onNode(t, "client", first.Name, ".metadata.name")
	// One endpoint, on the other node, so that the Service leads nowhere else.
	near := onNode(t, "far", first.Name, ".metadata.name")
	mustIn(t, near, "get", "http://127.0.0.1:8080/drain")
	service := kubectl(t, "get", "service", "far", "-o", "jsonpath={.spec.clusterIP}")
	eventually(t, "the Service leads to the other node alone", func() error {
		for range 10 {
			if got, err := in(client, "get", "http://"+service+"/hostname"); got == near || err != nil {
				return fmt.Errorf("%s %w", got, err)
			}
		}
		return nil
	})
	return pulses{scriptNode{first}, client, map[string]string{"pod": onNode(t, "far", other.Name, ".status.podIP") + ":8080", "Service": service + ":80"}}
}

// during sends packets while something happens, and for some seconds before and
// after.
func (p pulses) during(t *testing.T, most time.Duration, event func(*testing.T)) {
	type answer struct{ what, out string }
	done := make(chan answer, len(p.targets))
	for what, addr := range p.targets {
		go func() {
			out, err := in(p.client, "pulse", addr, "60")
			if err != nil {
				out += err.Error()
			}
			done <- answer{what, out}
		}()
	}
	time.Sleep(2 * time.Second)
	event(t)
	time.Sleep(2*time.Second + most)
	mustIn(t, p.client, "stop")
	for range p.targets {
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
