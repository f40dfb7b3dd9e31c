package kube

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/perf"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func fixed(further ...string) plan {
	p, err := Options{Image: "ghcr.io/podlane/podlane:v1", From: "a", To: "b", Further: further, Config: perf.Config{Budget: 5 * time.Minute}}.plan()
	if err != nil {
		panic(err)
	}
	p.id, p.until, p.hostPort, p.nodePorts = "abcdefgh", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), 24000, 30400
	return p
}

func TestManifests_golden(t *testing.T) {
	v6 := fixed(NodePort, SameNode, Balancer)
	v6.ipv6 = true
	for name, p := range map[string]plan{"run.yaml": fixed(), "further.yaml": v6} {
		got, err := p.render()
		if err != nil {
			t.Fatal(err)
		}
		path := "testdata/" + name
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || got != string(want) {
			t.Errorf("%s: other than what is made now (%v); -update rewrites it", path, err)
		}
	}
}

// Only pods on the host network may be in the privileged namespace, and no others; every
// pod ends by itself, and every object can be told as a run's.
func TestObjects_safety(t *testing.T) {
	p := fixed(Further...)
	for _, o := range p.all() {
		meta := o.(metav1.Object)
		if meta.GetLabels()[ManagedLabel] != Manager || meta.GetLabels()[RunLabel] != p.id {
			t.Errorf("%s: labels %v", meta.GetName(), meta.GetLabels())
		}
		pod, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		if pod.Spec.HostNetwork != (pod.Namespace == p.hostNamespace()) {
			t.Errorf("%s: host network %v in %s", pod.Name, pod.Spec.HostNetwork, pod.Namespace)
		}
		if pod.Name != keeper && (pod.Spec.ActiveDeadlineSeconds == nil || *pod.Spec.ActiveDeadlineSeconds > 1800) {
			t.Errorf("%s: does not end by itself", pod.Name)
		}
		if c := pod.Spec.Containers[0].SecurityContext; *c.AllowPrivilegeEscalation || len(c.Capabilities.Add) > 0 || c.Privileged != nil || len(pod.Spec.Volumes) > 0 {
			t.Errorf("%s: %+v", pod.Name, c)
		}
	}
}

func node(name string, change ...func(*corev1.Node)) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, f := range change {
		f(&n)
	}
	return n
}

func notReadyNode(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }
func cordoned(n *corev1.Node)     { n.Spec.Unschedulable = true }
func controlPlane(n *corev1.Node) {
	n.Spec.Taints = []corev1.Taint{{Key: "node-role.kubernetes.io/control-plane", Effect: corev1.TaintEffectNoSchedule}}
}

func TestPick(t *testing.T) {
	for _, c := range []struct {
		name     string
		nodes    []corev1.Node
		from, to string
		want     string // "from to", or part of the error
	}{
		{"the first two", []corev1.Node{node("c"), node("a"), node("b")}, "", "", "a b"},
		{"workers before control planes", []corev1.Node{node("a", controlPlane), node("b"), node("c")}, "", "", "b c"},
		{"a control plane where there is no other", []corev1.Node{node("a", controlPlane), node("b")}, "", "", "b a"},
		{"not ready and cordoned ones are passed over", []corev1.Node{node("a", notReadyNode), node("b"), node("c", cordoned), node("d")}, "", "", "b d"},
		{"told", []corev1.Node{node("a"), node("b"), node("c")}, "c", "a", "c a"},
		{"told one", []corev1.Node{node("a"), node("b"), node("c")}, "", "a", "b a"},
		{"both on one", []corev1.Node{node("a")}, "a", "a", "a a"},
		{"told one that is not there", []corev1.Node{node("a"), node("b")}, "z", "", "node z: no such node"},
		{"told one that is not ready", []corev1.Node{node("a", notReadyNode), node("b")}, "a", "", "node a: is not Ready"},
		{"no second", []corev1.Node{node("a")}, "", "", "no second node"},
		{"no second that is fit", []corev1.Node{node("a"), node("b", cordoned)}, "", "", "passed over: b is cordoned"},
		{"none", nil, "", "", "no second node"},
		{"none fit", []corev1.Node{node("a", notReadyNode)}, "", "", "no node is fit to measure on: a is not Ready"},
	} {
		from, to, err := pick(c.nodes, c.from, c.to)
		got := from + " " + to
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != c.want || err != nil && !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	if _, _, err := pick([]corev1.Node{node("a")}, "", ""); !errors.Is(err, ErrNoSecondNode) {
		t.Error(err)
	}
}

func TestNotReady(t *testing.T) {
	waiting := func(reason, message string) corev1.Pod {
		return corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{
			{Image: "x", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}},
		}}}
	}
	ready := corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	for _, c := range []struct {
		pod      corev1.Pod
		want     string
		hopeless bool
	}{
		{ready, "", false},
		{waiting("ContainerCreating", ""), "is pending", false},
		{waiting("ImagePullBackOff", "not found"), "image x: ImagePullBackOff not found", true},
		{waiting("CrashLoopBackOff", "again"), "image x: CrashLoopBackOff again", false},
		{corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "no room"}}, "ended (Evicted no room)", true},
	} {
		if got, hopeless := notReady(c.pod); got != c.want || hopeless != c.hopeless {
			t.Errorf("got %q %v, want %q %v", got, hopeless, c.want, c.hopeless)
		}
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{"no image": {}, "no such path": {Image: "x", Further: []string{"moon"}}} {
		if _, err := o.plan(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
