package e2e

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/test/e2e/internal/control"
)

// manifest gives an object of the installation's manifest.
func manifest(t *testing.T, kind, name string, into metav1.Object) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "podlane.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var m metav1.PartialObjectMetadata
		if yaml.Unmarshal([]byte(doc), &m) != nil || m.Kind != kind || m.Name != name {
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(doc), into); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no %s %s", kind, name)
}

// TestAgent_ownNode: with the token of an agent's pod and the rights of the manifest, the
// condition of the agent's own node is written, and that of another is not.
func TestAgent_ownNode(t *testing.T) {
	p := control.Start(t, bin)
	a := newAPI(t, p)
	var namespace corev1.Namespace
	var account corev1.ServiceAccount
	var role rbacv1.ClusterRole
	var binding rbacv1.ClusterRoleBinding
	var policy admissionv1.ValidatingAdmissionPolicy
	var bound admissionv1.ValidatingAdmissionPolicyBinding
	manifest(t, "Namespace", "podlane", &namespace)
	manifest(t, "ServiceAccount", "podlane-agent", &account)
	manifest(t, "ClusterRole", "podlane-agent", &role)
	manifest(t, "ClusterRoleBinding", "podlane-agent", &binding)
	manifest(t, "ValidatingAdmissionPolicy", "podlane-agent", &policy)
	manifest(t, "ValidatingAdmissionPolicyBinding", "podlane-agent", &bound)
	put(t, a.CoreV1().Namespaces(), &namespace)
	put(t, a.CoreV1().ServiceAccounts("podlane"), &account)
	put(t, a.RbacV1().ClusterRoles(), &role)
	put(t, a.RbacV1().ClusterRoleBindings(), &binding)
	put(t, a.AdmissionregistrationV1().ValidatingAdmissionPolicies(), &policy)
	put(t, a.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings(), &bound)
	for _, n := range []string{"n1", "n2"} {
		put(t, a.CoreV1().Nodes(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}})
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "agent", Namespace: "podlane"},
		Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "podlane-agent", Containers: []corev1.Container{{Name: "agent", Image: "podlane"}}}}
	pod, err := a.CoreV1().Pods("podlane").Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.CoreV1().ServiceAccounts("podlane").CreateToken(t.Context(), "podlane-agent", &authv1.TokenRequest{
		Spec: authv1.TokenRequestSpec{BoundObjectRef: &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", p.Kubeconfig(token.Status.Token, p.Addr))
	if err != nil {
		t.Fatal(err)
	}
	agent, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	const condition = `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","reason":"Test","message":"test"}]}}`
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) { // a policy takes a moment to be in force
		_, err := agent.CoreV1().Nodes().Patch(t.Context(), "n2", types.StrategicMergePatchType, []byte(condition), metav1.PatchOptions{}, "status")
		if err != nil && strings.Contains(err.Error(), "own node alone") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the status of another node can be written: %v", err)
		}
	}
	reporter, err := kube.NewReporter(kube.Options{Kubeconfig: p.Kubeconfig(token.Status.Token, p.Addr), Node: "n1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = reporter.Run(t.Context()) }()
	reporter.Condition(true, "PodlaneReady", "all is well")
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		n, err := a.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if err == nil && len(n.Status.Conditions) == 1 && n.Status.Conditions[0].Reason == "PodlaneReady" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the condition of the own node is not written: %v", err)
		}
	}
}
