package real

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/test/e2e/internal/machines"
)

// asking has a pod ask the cluster's DNS for a name for some seconds; each question
// is tried twice, a second apart.
func asking(pod, addr string, d time.Duration) (result func(t *testing.T) (asked, atOnce, never int, gap time.Duration)) {
	type answer struct {
		out string
		err error
	}
	done := make(chan answer, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), d+wait)
		defer cancel()
		out, err := cluster.Kubectl(ctx, "exec", pod, "--", "/pod", "ask", addr+":53", "kubernetes.default.svc.cluster.local", fmt.Sprint(d.Seconds()))
		done <- answer{out, err}
	}()
	time.Sleep(2 * time.Second) // so that it asks before something happens
	return func(t *testing.T) (asked, atOnce, never int, gap time.Duration) {
		t.Helper()
		a := <-done
		var ms int
		if _, err := fmt.Sscan(a.out, &asked, &atOnce, &never, &ms); err != nil || a.err != nil {
			t.Fatalf("ask: %q: %v %v", a.out, err, a.err)
		}
		gap = time.Duration(ms) * time.Millisecond
		t.Logf("%d questions, %d answered at once, %d never, longest gap %v", asked, atOnce, never, gap)
		if asked < 100 {
			t.Errorf("only %d questions", asked)
		}
		return asked, atOnce, never, gap
	}
}

// testDNSGone: the DNS server of a node hangs, crashes, is deleted, while a pod of the
// node asks it by its Service.
func testDNSGone(t *testing.T) {
	apply(t, workload("client", 2))
	rollout(t, "deployment/client")
	node := cluster.Nodes[0]
	client := onNode(t, "client", node.Name, ".metadata.name")
	signal := func(name string) func(*testing.T) {
		return scriptNode{node}.script(`for p in $(pidof podlane); do grep -q "/` + node.Name + `/" /proc/$p/cgroup && tr "\0" " " </proc/$p/cmdline | grep -q "podlane dns " && kill -` + name + ` $p; done; true`)
	}
	for _, c := range []struct {
		name string
		do   func(*testing.T)
		most time.Duration // of questions that need a second try
	}{
		{"hangs", signal("STOP"), time.Second},
		{"answers again", signal("CONT"), 500 * time.Millisecond},
		{"crashes", signal("KILL"), 2 * time.Second},
		{"is deleted", func(t *testing.T) {
			kubectl(t, "-n", "kube-system", "delete", "pods", "-l", "app.kubernetes.io/component=dns", "--field-selector", "spec.nodeName="+node.Name)
		}, 500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			result := asking(client, machines.DNS, 10*time.Second)
			c.do(t)
			_, _, never, gap := result(t)
			if never > 0 || gap > c.most {
				t.Errorf("%d questions were never answered; for %v all needed a second try, at most %v is allowed", never, gap, c.most)
			}
		})
	}
	kubectl(t, "-n", "kube-system", "rollout", "status", "daemonset/podlane-dns", "--timeout=90s")
}

// corednsManifest is kubeadm's, but for the image, affinities and one name that
// nobody else knows.
const corednsManifest = `apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: system:coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: system:coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        errors
        health {
           lameduck 5s
        }
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa {
           pods insecure
           fallthrough in-addr.arpa ip6.arpa
           ttl 30
        }
        hosts {
           10.99.99.99 marker.example
           fallthrough
        }
        rewrite name old.example new.example
        prometheus :9153
        forward . 192.168.77.1 {
           max_concurrent 1000
        }
        cache 30
        loop
        reload
        loadbalance
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  replicas: 2
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      dnsPolicy: Default
      tolerations: [{operator: Exists}]
      containers:
      - name: coredns
        image: podlane.test/coredns:e2e
        imagePullPolicy: Never
        args: [-conf, /etc/coredns/Corefile]
        volumeMounts: [{name: config, mountPath: /etc/coredns, readOnly: true}]
        ports: [{name: dns, containerPort: 53, protocol: UDP}, {name: dns-tcp, containerPort: 53}, {name: metrics, containerPort: 9153}]
        readinessProbe: {httpGet: {path: /ready, port: 8181}}
      volumes: [{name: config, configMap: {name: coredns}}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, annotations: {prometheus.io/port: "9153"}, labels: {k8s-app: kube-dns, kubernetes.io/name: CoreDNS}}
spec:
  clusterIP: 10.96.0.10
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {name: metrics, port: 9153}]
`

// testCoreDNS: a cluster with a CoreDNS goes over to podlane dns and back, while pods
// ask.
func testCoreDNS(t *testing.T) {
	kubectl(t, "-n", "kube-system", "delete", "service", "kube-dns")
	apply(t, corednsManifest)
	apply(t, workload("client", 2))
	rollout(t, "deployment/client")
	kubectl(t, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s")
	client := pods(t, "app=client", ".metadata.name")[0]
	leadsTo(t, "coredns-")
	if got := mustIn(t, client, "lookup", "marker.example."); got != "10.99.99.99" {
		t.Fatalf("CoreDNS says %q", got)
	}
	was := kubectl(t, "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec}")
	t.Run("printed", func(t *testing.T) {
		out := takeover(t)
		for _, want := range []string{"which leads to the pods k8s-app=kube-dns", "2 of 2 ready", "--pods=insecure", "hosts: 10.99.99.99 marker.example",
			"not taken over: line 16: rewrite name old.example new.example", "nothing was changed"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in\n%s", want, out)
			}
		}
		leadsTo(t, "coredns-")
	})
	during := func(args ...string) {
		t.Helper()
		result := asking(client, machines.DNS, 45*time.Second)
		began := time.Now()
		t.Log(takeover(t, args...))
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("it took %v: the questions were at an end", took)
		}
		if _, _, never, gap := result(t); never > 0 || gap > 2*time.Second {
			t.Errorf("%d questions were never answered; longest gap %v", never, gap)
		}
	}
	t.Run("over", func(t *testing.T) { during("--yes"); leadsTo(t, "podlane-dns-") })
	t.Run("back", func(t *testing.T) {
		during("--yes", "--undo")
		leadsTo(t, "coredns-")
		if now := kubectl(t, "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec}"); now != was {
			t.Errorf("the Service was\n%s\nand is\n%s", was, now)
		}
	})
	t.Run("alone", func(t *testing.T) {
		takeover(t, "--yes")
		leadsTo(t, "podlane-dns-")
		kubectl(t, "-n", "kube-system", "scale", "deployment/coredns", "--replicas=0")
		for what, want := range map[string]string{"marker.example.": "10.99.99.99", "kubernetes.default": "10.96.0.1"} {
			if got := mustIn(t, client, "lookup", what); got != want {
				t.Errorf("%s is %q, want %s", what, got, want)
			}
		}
		if out := takeover(t, "--yes"); !strings.Contains(out, "nothing to do") {
			t.Error(out)
		}
	})
}

// testDNSAnew: what makes the Service makes it again where it is missing, as PL-045 says.
func testDNSAnew(t *testing.T) {
	kubectl(t, "-n", "kube-system", "wait", "--for=delete", "service/kube-dns", "--timeout=60s")
	kubectl(t, "-n", "kube-system", "rollout", "restart", "deployment/podlane-dns-service")
	if err := cluster.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	leadsTo(t, "podlane-dns-")
	for path, want := range map[string]string{"{.spec.clusterIPs}": `["10.96.0.10","fd00:96::a"]`, "{.spec.trafficDistribution}": "PreferSameNode"} {
		if got := kubectl(t, "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath="+path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	eventually(t, "status says that queries stay on their node", func() error {
		out, err := try("-n", "podlane", "exec", "daemonset/podlane-agent", "--", "/podlane", "status")
		if !strings.Contains(out, "DNS 10.96.0.10 fd00:96::a (kube-system/kube-dns): 2 servers, 1 on this node\n") {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	})
}

// takeover runs podlane takeover dns as the administrator.
func takeover(t *testing.T, args ...string) string {
	t.Helper()
	out, err := cluster.Outside(filepath.Join(cluster.Dir, "podlane"), append([]string{"takeover", "dns", "--kubeconfig", cluster.Kubeconfig()}, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, cluster.Describe(t.Context()))
	}
	return out
}

// leadsTo waits until all endpoints of the DNS Service are pods of a name.
func leadsTo(t *testing.T, name string) {
	t.Helper()
	eventually(t, "the DNS Service leads to "+name, func() error {
		out, err := try("-n", "kube-system", "get", "endpointslices", "-l", "kubernetes.io/service-name=kube-dns", "-o", "jsonpath={.items[*].endpoints[*].targetRef.name}")
		all := strings.Fields(out)
		for _, pod := range all {
			if !strings.HasPrefix(pod, name) {
				return fmt.Errorf("%s", out)
			}
		}
		if len(all) < 2 {
			return fmt.Errorf("%q: %w", out, err)
		}
		return nil
	})
}
