package real

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podlane/podlane/test/e2e/internal/machines"
)

// testUpgrade: the manifest with another image, and then the former one, both as the manual says, one right after the
// other. No connection fails meanwhile, and in the end every container has the image of the manifest.
func testUpgrade(t *testing.T) {
	next := strings.TrimSuffix(machines.PodlaneImage, ":e2e") + ":next"
	for _, n := range cluster.Nodes {
		if out, err := n.Run(t.Context(), "ctr", "-n", "k8s.io", "images", "tag", machines.PodlaneImage, next); err != nil {
			t.Fatal(err, out)
		}
	}
	former, err := os.ReadFile(cluster.Path(machines.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	upgraded := filepath.Join(t.TempDir(), "next.yaml")
	if err := os.WriteFile(upgraded, []byte(strings.ReplaceAll(string(former), machines.PodlaneImage, next)), 0o600); err != nil {
		t.Fatal(err)
	}
	apply(t, workload("steady", 2))
	apply(t, workload("client", 1))
	rollout(t, "deployment/steady")
	rollout(t, "deployment/client")
	name := pods(t, "app=client", ".metadata.name")[0]
	node := cluster.Nodes[0]
	if kubectl(t, "get", "pod", name, "-o", "jsonpath={.spec.nodeName}") != node.Name {
		node = cluster.Nodes[1]
	}
	container := strings.TrimPrefix(kubectl(t, "get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].containerID}"), "containerd://")
	service := kubectl(t, "get", "service", "steady", "-o", "jsonpath={.spec.clusterIP}")
	load, err := node.InPod(t.Context(), container, "load", "http://"+service+"/hostname", "600", "4")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ manifest, image string }{{upgraded, next}, {cluster.Path(machines.Manifest), machines.PodlaneImage}} {
		kubectl(t, "apply", "-f", c.manifest)
		kubectl(t, "-n", "podlane", "rollout", "status", "daemonset/podlane-agent", "--timeout=3m")
		kubectl(t, "-n", "kube-system", "rollout", "status", "daemonset/podlane-dns", "--timeout=3m")
		for _, where := range []string{"podlane", "kube-system"} {
			images := kubectl(t, "-n", where, "get", "pods", "-l", "app.kubernetes.io/name=podlane,app.kubernetes.io/component in (agent,dns)", "-o", "jsonpath={.items[*].spec.containers[*].image}")
			for image := range strings.FieldsSeq(images) {
				if image != c.image {
					t.Errorf("%s: a pod has image %s, want %s", where, image, c.image)
				}
			}
		}
		eventually(t, "names are answered", func() error {
			out, err := in(name, "get", "http://steady.default.svc.cluster.local/hostname")
			if err != nil {
				return fmt.Errorf("%s: %w", out, err)
			}
			return nil
		})
	}
	result, err1 := load.Stop(t.Context())
	var ok, failed int
	_, err2 := fmt.Sscan(result, &ok, &failed)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatalf("%v: %q", err, result)
	}
	t.Logf("%d connections, %d failed", ok, failed)
	if failed > 0 || ok < 1000 {
		t.Error(result)
	}
}
