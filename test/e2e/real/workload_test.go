package real

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// testWorkloads is what every cluster must do, on one Deployment with a pod on each
// node.
func testWorkloads(t *testing.T) {
	apply(t, workload("web", 2))
	rollout(t, "deployment/web")
	names, ips := pods(t, "app=web", ".metadata.name"), pods(t, "app=web", ".status.podIPs[*].ip")
	if len(names) != 2 || len(ips) != 4 {
		t.Fatal(names, ips)
	}
	t.Run("pod to pod", func(t *testing.T) {
		for _, from := range names {
			for i, ip := range ips {
				if got := mustIn(t, from, "get", "http://"+hostPort(ip, 8080)+"/hostname"); got != names[i/2] {
					t.Errorf("%s → %s: %q, want %s", from, ip, got, names[i/2])
				}
			}
		}
	})
	service := strings.Fields(kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]} {.spec.ports[0].nodePort} {.spec.ports[1].nodePort}"))
	t.Run("Service by address and name", func(t *testing.T) {
		for _, from := range names {
			for _, host := range []string{hostPort(service[0], 80), hostPort(service[1], 80), "web", "web.default.svc.cluster.local"} {
				reachesBoth(t, names, func() (string, error) { return in(from, "get", "http://"+host+"/hostname") })
			}
			reachesBoth(t, names, func() (string, error) { return in(from, "udp", hostPort(service[0], 80)) })
		}
	})
	t.Run("NodePort from outside", func(t *testing.T) {
		for _, n := range cluster.Nodes {
			for _, ip := range []string{n.IP4, n.IP6} {
				reachesBoth(t, names, func() (string, error) { return outside("http://" + hostPort(ip, service[2]) + "/hostname") })
			}
		}
	})
	t.Run("names", func(t *testing.T) {
		if got := mustIn(t, names[0], "lookup", "web.default"); !strings.Contains(got, service[0]) || !strings.Contains(got, service[1]) {
			t.Errorf("web.default is %q, want %v", got, service[:2])
		}
		if out, err := in(names[0], "lookup", "nothing.default"); err == nil {
			t.Errorf("nothing.default is %q", out)
		}
	})
	t.Run("logs", func(t *testing.T) {
		if got := kubectl(t, "logs", names[1]); got != "serving at :8080" {
			t.Errorf("%q", got)
		}
	})
	t.Run("kubelet's probes", func(t *testing.T) {
		if got := pods(t, "app=web", ".status.containerStatuses[0].restartCount"); !slices.Equal(got, []string{"0", "0"}) {
			t.Errorf("restarts %v", got)
		}
	})
}

func hostPort(ip string, port any) string {
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	return fmt.Sprint(ip, ":", port)
}

// outside asks a URL from the machine of the control plane, which has no route to
// pods.
func outside(url string) (string, error) {
	out, err := cluster.Outside("curl", "-sS", "--max-time", "2", "--noproxy", "*", url)
	return strings.TrimSpace(out), err
}

// reachesBoth wants both pods among the answers, and no failure.
func reachesBoth(t *testing.T, names []string, ask func() (string, error)) {
	t.Helper()
	seen := map[string]bool{}
	for range 60 {
		got, err := ask()
		if err != nil {
			t.Error(err)
			return
		}
		if !slices.Contains(names, got) {
			t.Errorf("%q answered, want one of %v", got, names)
			return
		}
		if seen[got] = true; len(seen) == len(names) {
			return
		}
	}
	t.Errorf("only %v answered", seen)
}

// testEgress: who is asked sees the node's address outside of the cluster, and the
// pod's inside.
func testEgress(t *testing.T) {
	apply(t, workload("leaving", 1))
	rollout(t, "deployment/leaving")
	pod := pods(t, "app=leaving", ".metadata.name")[0]
	node := pods(t, "app=leaving", ".spec.nodeName")[0]
	stop, err := cluster.ServeOutside(":18080")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, n := range cluster.Nodes {
		if n.Name != node {
			continue
		}
		for outside, want := range map[string]string{"192.168.77.1": n.IP4, "[fd77::1]": n.IP6} {
			got := mustIn(t, pod, "get", "http://"+outside+":18080/client")
			if !strings.HasPrefix(strings.TrimPrefix(got, "["), want) {
				t.Errorf("%s saw %s, want %s", outside, got, want)
			}
		}
	}
	ips := pods(t, "app=leaving", ".status.podIPs[*].ip")
	apply(t, workload("inside", 2))
	rollout(t, "deployment/inside")
	for _, ip := range pods(t, "app=inside", ".status.podIP") {
		if got := mustIn(t, pod, "get", "http://"+hostPort(ip, 8080)+"/client"); !strings.HasPrefix(got, ips[0]+":") {
			t.Errorf("%s saw %s, want %s", ip, got, ips[0])
		}
	}
}

// testReadiness: a pod that says it is not ready gets no more connections.
func testReadiness(t *testing.T) {
	apply(t, workload("ready", 2))
	rollout(t, "deployment/ready")
	names := pods(t, "app=ready", ".metadata.name")
	mustIn(t, names[0], "get", "http://127.0.0.1:8080/drain")
	eventually(t, "the other pod answers alone", func() error {
		for range 20 {
			if got, err := in(names[1], "get", "http://ready/hostname"); got != names[1] || err != nil {
				return fmt.Errorf("%s answered: %w", got, err)
			}
		}
		return nil
	})
}

// testStatefulSet: each pod has a name that follows it.
func testStatefulSet(t *testing.T) {
	apply(t, `apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: pod, image: "podlane.test/pod:e2e", imagePullPolicy: Never, command: [/pod, serve, ":8080"], readinessProbe: {httpGet: {port: 8080, path: /ready}, periodSeconds: 1}}
`)
	rollout(t, "statefulset/db")
	follows := func() error {
		for _, name := range []string{"db-0", "db-1"} {
			if got, err := in("db-0", "get", "http://"+name+".db:8080/hostname"); got != name || err != nil {
				return fmt.Errorf("%s.db is %q: %w", name, got, err)
			}
		}
		return nil
	}
	eventually(t, "the pods' names", follows)
	kubectl(t, "delete", "pod", "db-1", "--wait=true")
	rollout(t, "statefulset/db")
	eventually(t, "the new pod's name", follows)
}

// testRollingUpdate: not one connection fails while all pods are replaced.
func testRollingUpdate(t *testing.T) {
	apply(t, workload("rolling", 2))
	apply(t, workload("client", 1))
	rollout(t, "deployment/rolling")
	rollout(t, "deployment/client")
	client := pods(t, "app=client", ".metadata.name")[0]
	result := load(t, client, "http://"+kubectl(t, "get", "service", "rolling", "-o", "jsonpath={.spec.clusterIP}")+"/hostname", 20*time.Second, 4)
	time.Sleep(time.Second)
	kubectl(t, "rollout", "restart", "deployment/rolling")
	rollout(t, "deployment/rolling")
	ok, failed, first := result()
	t.Logf("%d connections", ok)
	if failed > 0 || ok < 1000 {
		t.Errorf("%d connections, %d failed: %s", ok, failed, first)
	}
}

// testHostPort: the node's addresses answer for the pod's port, from outside, from a
// pod of the other node and from the pod itself, and no longer when it is gone.
func testHostPort(t *testing.T) {
	apply(t, workload("client", 2))
	manifest := `apiVersion: v1
kind: Pod
metadata:
  name: hosted
  annotations: {kubernetes.io/ingress-bandwidth: 16M, kubernetes.io/egress-bandwidth: 24M}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: pod
    image: podlane.test/pod:e2e
    imagePullPolicy: Never
    command: [/pod, serve, ":8080"]
    ports: [{containerPort: 8080, hostPort: 8081}, {containerPort: 8080, hostPort: 8081, protocol: UDP}]
`
	apply(t, manifest)
	rollout(t, "deployment/client")
	kubectl(t, "wait", "--for=condition=Ready", "pod/hosted", "--timeout=60s")
	name := kubectl(t, "get", "pod", "hosted", "-o", "jsonpath={.spec.nodeName}")
	askers := append(pods(t, "app=client", ".metadata.name"), "hosted")
	for _, n := range cluster.Nodes {
		if n.Name != name {
			continue
		}
		// The annotations come from containerd by the plugin's capability.
		if shapes, err := n.Run(t.Context(), "tc", "qdisc", "show"); err != nil || !strings.Contains(shapes, "rate 16Mbit") || !strings.Contains(shapes, "rate 24Mbit") {
			t.Errorf("no limits of 16 and 24 Mbit/s: %s %v", shapes, err)
		}
		for _, ip := range []string{n.IP4, n.IP6} {
			if got, err := outside("http://" + hostPort(ip, 8081) + "/hostname"); got != "hosted" {
				t.Errorf("outside → %s: %q %v", ip, got, err)
			}
			for _, from := range askers {
				if got := mustIn(t, from, "get", "http://"+hostPort(ip, 8081)+"/hostname"); got != "hosted" {
					t.Errorf("%s → %s: %q", from, ip, got)
				}
			}
			if got := mustIn(t, askers[0], "udp", hostPort(ip, 8081)); got != "hosted" {
				t.Errorf("UDP → %s: %q", ip, got)
			}
		}
		kubectl(t, "delete", "pod", "hosted")
		if got, err := outside("http://" + hostPort(n.IP4, 8081) + "/hostname"); err == nil {
			t.Errorf("after the pod's end %q answers", got)
		}
	}
}
