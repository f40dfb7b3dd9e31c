package real

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// wait is for what must come; a busy machine is slow.
const wait = 90 * time.Second

// kubectl runs kubectl and gives its output without the line's end.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, cluster.Describe(t.Context()))
	}
	return strings.TrimSpace(out)
}

// try is kubectl that may fail.
func try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	out, err := cluster.Kubectl(ctx, args...)
	return strings.TrimSpace(out), err
}

// apply applies a manifest, and deletes it after the test.
func apply(t *testing.T, manifest string) {
	t.Helper()
	feed := func(verb ...string) error {
		cmd := exec.Command(filepath.Join(cluster.Bin, "kubectl"), append([]string{"--kubeconfig", cluster.Kubeconfig()}, verb...)...)
		cmd.Stdin = strings.NewReader(manifest)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, &out)
		}
		return nil
	}
	if err := feed("apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The next test may use the same names: this one's pods must be gone.
		if err := feed("delete", "-f", "-", "--cascade=foreground", "--ignore-not-found", "--timeout=60s"); err != nil {
			t.Error(err)
		}
	})
}

// eventually repeats is until it gives no error.
func eventually(t *testing.T, what string, is func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = is(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v\n%s", what, err, cluster.Describe(t.Context()))
}

// in runs the pods' program in a pod.
func in(pod string, args ...string) (string, error) {
	return try(append([]string{"exec", pod, "--", "/pod"}, args...)...)
}

// mustIn is in that has to work.
func mustIn(t *testing.T, pod string, args ...string) string {
	t.Helper()
	out, err := in(pod, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, cluster.Describe(t.Context()))
	}
	return out
}

// rollout waits until a workload is as wanted.
func rollout(t *testing.T, workload string) {
	t.Helper()
	kubectl(t, "rollout", "status", workload, "--timeout=180s") // controllers that lost their server come back by their own, long pauses
}

// pods gives the names of the pods with a label, and their field of that path.
func pods(t *testing.T, label, field string) []string {
	t.Helper()
	return strings.Fields(kubectl(t, "get", "pods", "-l", label, "-o", "jsonpath={range .items[*]}{"+field+"} {end}"))
}

// load runs clients in a pod for some seconds, from now on; the result comes at
// their end.
func load(t *testing.T, pod, url string, d time.Duration, clients int) (result func() (ok, failed int, first string)) {
	t.Helper()
	type answer struct {
		out string
		err error
	}
	done := make(chan answer, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), d+wait)
		defer cancel()
		out, err := cluster.Kubectl(ctx, "exec", pod, "--", "/pod", "load", url, fmt.Sprint(d.Seconds()), fmt.Sprint(clients))
		done <- answer{out, err}
	}()
	return func() (ok, failed int, first string) {
		t.Helper()
		a := <-done
		if _, err := fmt.Sscan(a.out, &ok, &failed); err != nil || a.err != nil {
			t.Fatalf("load: %q: %v %v", a.out, err, a.err)
		}
		return ok, failed, a.out
	}
}

// workload is a Deployment of servers, one on each node where there are as many,
// with a Service of the same name.
func workload(name string, replicas int) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 10
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: %[1]s}}, matchLabelKeys: [pod-template-hash]}
      containers:
      - name: pod
        image: podlane.test/pod:e2e
        imagePullPolicy: Never
        command: [/pod, serve, ":8080"]
        readinessProbe: {httpGet: {port: 8080, path: /ready}, periodSeconds: 1}
        livenessProbe: {httpGet: {port: 8080, path: /hostname}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: %[1]s}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: udp, protocol: UDP, port: 80, targetPort: 8080}]
`, name, replicas)
}
