package lab_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var soak = flag.Duration("soak", 0, "run TestFastPath_soak for so long")

const churned = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: web}}
spec: {nodeName: %[2]s, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
`

// TestFastPath_soak has pods and endpoints come and go, and agents be killed,
// while two clients ask without a pause; in the end the fast path knows the pods
// there are, and no others:
//
//	go test ./lab -run TestFastPath_soak -soak 30m -timeout 1h
func TestFastPath_soak(t *testing.T) {
	if *soak == 0 {
		t.Skip("takes as long as it is told to: -soak 30m")
	}
	l := upFast(t, fastPathObjects, "--socket-lb", "on")
	want := map[string]int{"n1": l.podsOnFastPath("n1"), "n2": l.podsOnFastPath("n2")}
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- l.askWithoutPause(l.address("web"), stop) }()
	rounds := 0
	for end := time.Now().Add(*soak); time.Now().Before(end); rounds++ {
		l.churn(rounds)
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, node := range []string{"n1", "n2"} {
		l.on(node)
		for tries := 0; l.podsOnFastPath(node) != want[node]; tries++ {
			if tries > 100 {
				t.Errorf("%s: %d pods on the fast path, want %d", node, l.podsOnFastPath(node), want[node])
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	t.Logf("%d rounds", rounds)
}

// churn adds two endpoints, kills an agent in some rounds, and removes them.
func (l *fastLab) churn(round int) {
	l.t.Helper()
	file := filepath.Join(l.t.TempDir(), "churn.yaml")
	text := fmt.Sprintf(churned, "churn-1", "n1") + "---" + fmt.Sprintf(churned, "churn-2", "n2")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.run("apply", "-f", file)
	node := []string{"n1", "n2"}[round%2]
	if round%3 == 0 {
		l.run("agents", "kill", node)
		time.Sleep(50 * time.Millisecond)
		l.run("agents", "start", node)
		l.on(node)
	}
	l.requests("client", 100, "http://"+l.address("churn-1"))
	l.requests("client", 100, "http://"+l.address("churn-2"))
	l.run("delete", "-f", file)
}

// askWithoutPause asks a pod that stays, until it is to stop.
func (l *fastLab) askWithoutPause(address string, stop chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		out, err := l.user.command(l.t, "lab", "exec", "--name", l.name, "client", "--", "podlane", "lab", "client", "-n", "2000", "http://"+address).CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"failed": 0`) {
			return fmt.Errorf("a pod that stays was not reached: %w: %s", err, out)
		}
	}
}

func (l *fastLab) podsOnFastPath(node string) int {
	l.t.Helper()
	out := l.run("exec", "node/"+node, "--", "podlane", "status", "--json", "--run-dir", l.runDir(node))
	_, fast, _ := strings.Cut(out, `"fastPath"`)
	_, pods, _ := strings.Cut(fast, `"pods": [`)
	pods, _, _ = strings.Cut(pods, "]")
	return len(strings.Fields(strings.ReplaceAll(pods, ",", " ")))
}
