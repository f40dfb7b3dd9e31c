package dns

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/podlane/podlane/test/dns/peer"
)

const (
	kubeDNS      = "/api/v1/namespaces/kube-system/services/kube-dns"
	ourDaemonSet = "/apis/apps/v1/namespaces/kube-system/daemonsets/podlane-dns"
	corednsFiles = "/api/v1/namespaces/kube-system/configmaps/coredns"
	copiedFiles  = "/api/v1/namespaces/kube-system/configmaps/podlane-dns-corefile"
)

// system is a kube-apiserver without controllers: what they do, the tests do.
type system struct {
	*testing.T
	api *peer.API
}

func newSystem(t *testing.T, more ...string) *system {
	t.Helper()
	api, err := peer.StartAPI(t.Context(), programs, t.TempDir(), more...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	return &system{t, api}
}

func (s *system) do(method, path string, object any) map[string]any {
	s.Helper()
	out, err := s.api.Ask(s.Context(), method, path, object)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// daemonSet makes Podlane's, none of whose pods is ready.
func (s *system) daemonSet() map[string]any {
	s.Helper()
	labels := map[string]any{"app.kubernetes.io/component": "dns"}
	return s.do(http.MethodPost, ourDaemonSet[:strings.LastIndex(ourDaemonSet, "/")], map[string]any{
		"metadata": map[string]any{"name": "podlane-dns"},
		"spec": map[string]any{"selector": map[string]any{"matchLabels": labels}, "template": map[string]any{
			"metadata": map[string]any{"labels": labels},
			"spec": map[string]any{"containers": []any{map[string]any{"name": "dns", "image": "i",
				"args": []any{"dns", "--health=:1054", "--cluster-domain=$(CLUSTER_DOMAIN)"}}}}}},
	})
}

// ready has the pods of the newest template of Podlane's DaemonSet ready.
func (s *system) ready() {
	s.Helper()
	generation := s.do(http.MethodGet, ourDaemonSet, nil)["metadata"].(map[string]any)["generation"]
	s.do(http.MethodPatch, ourDaemonSet+"/status", map[string]any{"status": map[string]any{"observedGeneration": generation,
		"desiredNumberScheduled": 2, "currentNumberScheduled": 2, "updatedNumberScheduled": 2, "numberReady": 2, "numberMisscheduled": 0}})
}

// coredns makes what kubeadm makes, and no pod.
func (s *system) coredns(corefile string) map[string]any {
	s.Helper()
	s.do(http.MethodPost, "/api/v1/namespaces/kube-system/configmaps", map[string]any{
		"metadata": map[string]any{"name": "coredns"}, "data": map[string]any{"Corefile": corefile, "NodeHosts": "10.0.0.1 n1\n"}})
	return s.do(http.MethodPost, "/api/v1/namespaces/kube-system/services", map[string]any{
		"metadata": map[string]any{"name": "kube-dns", "labels": map[string]any{"k8s-app": "kube-dns"}, "annotations": map[string]any{"prometheus.io/port": "9153"}},
		"spec": map[string]any{"clusterIP": "10.96.0.10", "selector": map[string]any{"k8s-app": "kube-dns"}, "trafficDistribution": "PreferSameZone", "ports": []any{
			map[string]any{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
			map[string]any{"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
			map[string]any{"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153},
			map[string]any{"name": "tls", "port": 853, "protocol": "TCP", "targetPort": 853},
		}}})
}

// takeover runs the verb and wants texts in what it prints; the first word of want
// says whether it succeeds.
func (s *system) takeover(args string, want ...string) string {
	s.Helper()
	cmd := exec.Command(programs.Podlane, append([]string{"takeover", "dns", "--kubeconfig", s.api.Kubeconfig}, strings.Fields(args)...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); (err == nil) != (want[0] == "ok") {
		s.Errorf("takeover dns %s: %v\n%s", args, err, &out)
	}
	for _, w := range want[1:] {
		if !strings.Contains(out.String(), w) {
			s.Errorf("takeover dns %s: %q is not in\n%s", args, w, &out)
		}
	}
	return out.String()
}

// field gives a part of an object as JSON.
func field(o map[string]any, path string) string {
	var v any = o
	for p := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	text, _ := json.Marshal(v)
	return string(text)
}

func (s *system) want(o map[string]any, fields map[string]string) {
	s.Helper()
	for path, want := range fields {
		if got := field(o, path); got != want {
			s.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

// TestTakeover_none: where there is no Service, one is made.
func TestTakeover_none(t *testing.T) {
	s := newSystem(t)
	s.takeover("--yes", "failed", "podlane: takeover: there is no DaemonSet kube-system/podlane-dns: apply deploy/podlane.yaml first")
	own := s.daemonSet()
	s.takeover("--undo", "failed", "there is no Service to switch back")
	s.takeover("--dns-ip x", "failed", `--dns-ip "x": want ADDR`)
	s.takeover("--service x", "failed", `--service "x": want NAMESPACE/NAME`)
	s.takeover("", "ok", "found: no Service kube-system/kube-dns", "1. make the Service kube-system/kube-dns at 10.96.0.10 fd00:96::a (the tenth of 10.96.0.0/16 fd00:96::/112)", "nothing was changed")
	if _, err := s.api.Ask(t.Context(), http.MethodGet, kubeDNS, nil); err == nil {
		t.Error("the Service is there without --yes")
	}
	s.takeover("--yes --create-only", "ok", "1. done: Service kube-system/kube-dns at 10.96.0.10 fd00:96::a")
	s.want(s.do(http.MethodGet, kubeDNS, nil), map[string]string{
		"spec.clusterIPs": `["10.96.0.10","fd00:96::a"]`, "spec.selector": `{"app.kubernetes.io/component":"dns"}`, "spec.trafficDistribution": `"PreferSameNode"`,
		"spec.ipFamilyPolicy":      `"PreferDualStack"`,
		"metadata.ownerReferences": `[{"apiVersion":"apps/v1","kind":"DaemonSet","name":"podlane-dns","uid":` + field(own, "metadata.uid") + `}]`,
	})
	s.takeover("--yes --create-only", "ok", "which leads to podlane dns", "nothing to do")
	s.takeover("--undo --yes", "failed", "it was not switched over")
	s.do(http.MethodDelete, kubeDNS, nil)
	s.takeover("--yes --dns-ip 10.97.0.1", "failed", "Service kube-system/kube-dns at 10.97.0.1 (--dns-ip)", "does not match the current range")
	s.takeover("--yes --dns-ip 10.96.0.1", "failed", "already allocated")
	s.takeover("--yes --dns-ip fd00:96::53,10.96.0.53", "ok")
	s.want(s.do(http.MethodGet, kubeDNS, nil), map[string]string{"spec.clusterIPs": `["fd00:96::53","10.96.0.53"]`})
}

// TestTakeover_rights: the manifest's Job may do what it has to, and no more.
func TestTakeover_rights(t *testing.T) {
	s := newSystem(t)
	s.daemonSet()
	text, err := os.ReadFile("../../deploy/podlane.yaml")
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		path := map[any]string{"Role": "namespaces/kube-system/roles", "RoleBinding": "namespaces/kube-system/rolebindings", "ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings"}[o["kind"]]
		if path != "" && field(o, "metadata.name") == `"podlane-dns-service"` {
			s.do(http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/"+path, o)
			made++
		}
	}
	if made != 4 {
		t.Fatalf("%d roles and bindings in the manifest, want 4", made)
	}
	admin, err := os.ReadFile(s.api.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	as := strings.Replace(string(admin), "user: {token:", "user: {as: 'system:serviceaccount:kube-system:podlane-dns-service', token:", 1)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(as), 0o600); err != nil || as == string(admin) {
		t.Fatal(err)
	}
	job := &system{t, &peer.API{Kubeconfig: path}}
	job.takeover("--yes --create-only --dns-ip=", "ok", "done: Service kube-system/kube-dns at 10.96.0.10 fd00:96::a")
	job.takeover("--yes --create-only --dns-ip=", "ok", "nothing to do")
	s.do(http.MethodDelete, kubeDNS, nil)
	was := s.coredns(otherCorefile)
	job.takeover("--yes --create-only --dns-ip=", "ok", "nothing was changed")
	job.takeover("--yes", "failed", "forbidden")
	if now := s.do(http.MethodGet, kubeDNS, nil); !reflect.DeepEqual(was, now) {
		t.Errorf("the Service was\n%v\nand is\n%v", was, now)
	}
}

// TestTakeover_ranges: the tenth address of other clusters, and a server that does
// not know PreferSameNode.
func TestTakeover_ranges(t *testing.T) {
	t.Run("IPv6", func(t *testing.T) {
		s := newSystem(t, "--service-cluster-ip-range", "fd00:77::/112", "--advertise-address", "fd00::1")
		s.daemonSet()
		s.takeover("--yes", "ok", "at fd00:77::a")
		s.want(s.do(http.MethodGet, kubeDNS, nil), map[string]string{"spec.clusterIPs": `["fd00:77::a"]`, "spec.trafficDistribution": `"PreferSameNode"`})
	})
	t.Run("old", func(t *testing.T) {
		s := newSystem(t, "--service-cluster-ip-range", "10.43.0.0/16", "--emulated-version", "1.33")
		s.daemonSet()
		s.takeover("--yes", "ok", "does not know trafficDistribution PreferSameNode", "at 10.43.0.10")
		s.want(s.do(http.MethodGet, kubeDNS, nil), map[string]string{"spec.clusterIPs": `["10.43.0.10"]`, "spec.trafficDistribution": `null`})
	})
}

const otherCorefile = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes corp.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 7
    }
    hosts /etc/coredns/NodeHosts {
       fallthrough
    }
    rewrite name a b
    forward . 192.0.2.53
    cache 30
}
`

// TestTakeover_coredns: CoreDNS's Service is switched over when Podlane's servers are
// ready with its settings, not before, and back.
func TestTakeover_coredns(t *testing.T) {
	s := newSystem(t)
	s.daemonSet()
	was := s.coredns(otherCorefile)
	plan := []string{"ok", "Service kube-system/kube-dns at 10.96.0.10, which leads to the pods k8s-app=kube-dns; DaemonSet kube-system/podlane-dns, 0 of 0 ready",
		"1. take over the settings of ConfigMap kube-system/coredns", "--cluster-domain=corp.local\n", "--ttl=7\n", "--upstream=192.0.2.53\n", "--hosts=/etc/coredns/NodeHosts\n",
		"not taken over: line 15: rewrite name a b: there is no such thing in podlane dns"}
	out := s.takeover("", append(plan, "3. lead the Service to them: selector k8s-app=kube-dns -> app.kubernetes.io/component=dns", "remark: port tls 853/TCP", "nothing was changed")...)
	if strings.Contains(out, "--health") {
		t.Errorf("a flag that the DaemonSet has counts more:\n%s", out)
	}
	unchanged := func() {
		t.Helper()
		if now := s.do(http.MethodGet, kubeDNS, nil); !reflect.DeepEqual(was, now) {
			t.Errorf("the Service was\n%v\nand is\n%v", was, now)
		}
	}
	s.takeover("--yes --create-only", "ok", "nothing was changed")
	s.takeover("--yes --dns-ip 10.96.0.11", "failed", "the Service kube-system/kube-dns is there and has 10.96.0.10")
	s.takeover("--yes --wait 2s", "failed", "the Service was not changed", "0 of 0 have the settings", "not so within 2s")
	unchanged()
	s.want(s.do(http.MethodGet, copiedFiles, nil), map[string]string{"data.NodeHosts": `"10.0.0.1 n1\n"`})

	s.whileReady(unchanged, append(plan, "2. done: 2 of 2 ready", "3. done: the Service kube-system/kube-dns leads to podlane dns")...)
	now := s.do(http.MethodGet, kubeDNS, nil)
	s.want(now, map[string]string{"spec.clusterIPs": `["10.96.0.10"]`, "spec.selector": `{"app.kubernetes.io/component":"dns"}`, "spec.trafficDistribution": `"PreferSameNode"`})
	var targets []any
	for _, p := range now["spec"].(map[string]any)["ports"].([]any) {
		targets = append(targets, p.(map[string]any)["targetPort"])
	}
	if want := []any{"dns", "dns-tcp", "http", 853.0}; !slices.Equal(targets, want) {
		t.Errorf("target ports are %v, want %v", targets, want)
	}
	s.takeover("--yes", "ok", "nothing to do")

	s.takeover("--undo", "ok", "2. lead the Service kube-system/kube-dns to them again", "nothing was changed")
	s.takeover("--undo --yes --wait 1s", "failed", "the Service was not changed", "none of the pods k8s-app=kube-dns is ready")
	s.do(http.MethodPost, "/api/v1/namespaces/kube-system/pods", map[string]any{"metadata": map[string]any{"name": "coredns", "labels": map[string]any{"k8s-app": "kube-dns"}},
		"spec": map[string]any{"nodeName": "n1", "containers": []any{map[string]any{"name": "c", "image": "i"}}}})
	s.do(http.MethodPatch, "/api/v1/namespaces/kube-system/pods/coredns/status", map[string]any{"status": map[string]any{"phase": "Running",
		"conditions": []any{map[string]any{"type": "Ready", "status": "True"}}}})
	s.takeover("--undo --yes", "ok", "2. done: the Service kube-system/kube-dns leads to the pods k8s-app=kube-dns")
	back := s.do(http.MethodGet, kubeDNS, nil)
	for _, path := range []string{"spec", "metadata.annotations", "metadata.labels"} {
		if was, is := field(was, path), field(back, path); was != is {
			t.Errorf("%s was\n%s\nand is\n%s", path, was, is)
		}
	}
	// Once more: the settings are copied anew, so the pods must start anew.
	was = back
	s.whileReady(unchanged, "ok", "3. done")
}

// whileReady takes over, and has Podlane's pods ready some time after they were told
// to start anew; till then check must hold.
func (s *system) whileReady(check func(), want ...string) {
	s.Helper()
	told := func() bool {
		c, err := s.api.Ask(s.Context(), http.MethodGet, copiedFiles, nil)
		return err == nil && strings.Contains(field(s.do(http.MethodGet, ourDaemonSet, nil), "spec.template.metadata.annotations"), field(c, "metadata.resourceVersion"))
	}
	done := make(chan bool)
	go func() {
		defer close(done)
		s.takeover("--yes", want...)
	}()
	for end := time.Now().Add(time.Minute); !told(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatal("the pods are not told to start anew")
		}
	}
	time.Sleep(time.Second)
	check()
	s.ready()
	<-done
}
