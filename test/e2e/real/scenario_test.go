package real

import (
	"fmt"
	"strings"
	"testing"
	"time"
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
