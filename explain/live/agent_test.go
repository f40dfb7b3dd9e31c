package live_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/lab"
)

// own runs an agent of its own flags on a node of the lab, in the place of the
// lab's.
func (w *world) own(node string, flags ...string) {
	w.Helper()
	if err := w.Agents(w.Context(), lab.AgentStop, node); err != nil {
		w.Fatal(err)
	}
	dir := filepath.Join(w.Dir(), "nodes", node)
	argv := append([]string{program(w.TB), "agent", "--node", node, "--manifests", filepath.Join(w.Dir(), "cluster"), "--overlay", "vxlan",
		"--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"), "--service-proxy", "on", "--fast-path", "off"}, flags...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { _, err := w.Client.Output(ctx, "node/"+node, argv...); done <- err }()
	w.Cleanup(func() { cancel(); <-done })
}

// eventually repeats a command at a target until it prints all of these.
func (w *world) eventually(target, command string, want ...string) {
	w.Helper()
	var out string
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		all := true
		out, _ = w.Client.Output(w.Context(), target, "sh", "-c", command)
		for _, text := range want {
			all = all && strings.Contains(out, text)
		}
		if all {
			return
		}
	}
	w.Fatalf("%s: %s: %s\nhas not all of %q", target, command, out, want)
}

// An agent serves the page on its own node: the cluster, what flows by the node, and
// what is clicked explained; and its own looks are in its metrics.
func TestAgent_viewAndFindings(t *testing.T) {
	w := up(t, lab.Options{Nodes: 2, Overlay: "vxlan", FastPath: "off"}, scene)
	w.settled()
	w.own("n1", "--view-bind-address", "127.0.0.1:8470")
	const page = "curl -sS --noproxy '*' http://127.0.0.1:8470"
	w.eventually("node/n1", page+"/api/cluster", `"name":"on node n1"`, "default/client")
	w.sh("default/client", "for i in 1 2 3; do curl -sS --noproxy '*' -o /dev/null http://10.96.1.1/; done")
	w.eventually("node/n1", page+"/api/cluster", "default/web")
	answer := map[string]string{}
	out := w.sh("node/n1", page+"'/api/explain?from=default/client&to=svc/default/web'")
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer["verdict"] != "delivered" || !strings.Contains(answer["svg"], "<svg") {
		t.Errorf("%v: %s", err, out)
	}
	if out := w.sh("node/n1", page+" -H 'Host: evil.example' -o /dev/null -w '%{http_code}'"); out != "403" {
		t.Errorf("another site's page gets %s", out)
	}
	w.sh("node/n1", "ip link add flannel.9 type veth peer name fl9")
	w.eventually("node/n1", "curl -sS --noproxy '*' http://127.0.0.1:10249/metrics", `podlane_doctor_findings{id="PL-012",severity="warn"}`)
}
