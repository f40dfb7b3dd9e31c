package file

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/podlane/podlane/cluster"
)

// unpack writes a txtar archive into a new folder.
func unpack(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range txtar.Parse([]byte(text)).Files {
		write(t, filepath.Join(dir, f.Name), string(f.Data))
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, path string) (*Objects, []string) {
	t.Helper()
	o, problems, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	return o, texts(problems)
}

func texts(ps []cluster.Problem) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

// names lists the objects as "Kind namespace/name".
func names(o *Objects) []string {
	var out []string
	add := func(kind, namespace, name string) {
		out = append(out, kind+" "+cluster.Key{Namespace: namespace, Name: name}.String())
	}
	for _, x := range o.Nodes {
		add("Node", x.Namespace, x.Name)
	}
	for _, x := range o.Namespaces {
		add("Namespace", x.Namespace, x.Name)
	}
	for _, x := range o.Pods {
		add("Pod", x.Namespace, x.Name)
	}
	for _, x := range o.Services {
		add("Service", x.Namespace, x.Name)
	}
	for _, x := range o.EndpointSlices {
		add("EndpointSlice", x.Namespace, x.Name)
	}
	for _, x := range o.Deployments {
		add("Deployment", x.Namespace, x.Name)
	}
	for _, x := range o.ReplicationControllers {
		add("ReplicationController", x.Namespace, x.Name)
	}
	return out
}

const everyKind = `
-- b.yaml --
# a comment first
---
apiVersion: v1
kind: Node
metadata: {name: n2, namespace: ignored}
--- # another one
apiVersion: v1
kind: Node
metadata: {name: n1}
---

# nothing here
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: nginx, ports: [{containerPort: 80}], resources: {limits: {memory: 128Mi}}}]
...
apiVersion: v1
kind: ReplicationController
metadata: {name: old, namespace: ns}
-- a.yml --
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: ns}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: http}]}}
---
apiVersion: v1
kind: Secret
---
apiVersion: v1
kind: ConfigMapList
items: [{}, {}]
---
apiVersion: discovery.k8s.io/v1beta1
kind: EndpointSlice
-- c.json --
{
	"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
	"items": [{"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4"}]
}
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n1"}}
-- .hidden.yaml --
{
-- #emacs.yaml --
{
-- vim.yaml~ --
{
-- notes.txt --
{
-- folder/x.yaml --
{
`

func TestRead_everyKind(t *testing.T) {
	dir := unpack(t, everyKind)
	if err := os.Mkdir(filepath.Join(dir, "folder.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	o, problems := mustRead(t, dir)
	want := []string{"Node n2", "Node n1", "Namespace ns", "Pod default/p", "Service default/web", "EndpointSlice default/web-1",
		"Deployment default/web", "ReplicationController ns/old"}
	if d := cmp.Diff(want, names(o)); d != "" {
		t.Error(d)
	}
	if len(problems) > 0 {
		t.Errorf("problems: %q", problems)
	}
	if want := "kinds that Podlane does not use: ConfigMap (3), EndpointSlice of discovery.k8s.io/v1beta1 (1), Secret (1)"; o.Warning() != want {
		t.Errorf("warning %q, want %q", o.Warning(), want)
	}
	if d := o.Deployments[0]; *d.Spec.Replicas != 2 || d.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort != 80 {
		t.Error("the Deployment was not read whole")
	}
}

func TestRead_oneFile(t *testing.T) {
	dir := unpack(t, "-- objects.txt --\n{apiVersion: v1, kind: Node, metadata: {name: n1}}\n-- other.yaml --\n{\n")
	o, problems := mustRead(t, filepath.Join(dir, "objects.txt"))
	if d := cmp.Diff([]string{"Node n1"}, names(o)); d != "" || len(problems) > 0 {
		t.Error(d, problems)
	}
}

func TestRead_stdin(t *testing.T) {
	f, err := os.Open(filepath.Join(unpack(t, "-- x --\n{apiVersion: v1, kind: Node, metadata: {name: n1}}\n"), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer func(old *os.File) { os.Stdin = old }(os.Stdin)
	os.Stdin = f
	if o, _ := mustRead(t, "-"); len(o.Nodes) != 1 {
		t.Error("no node came from standard input")
	}
}

func TestRead_missing(t *testing.T) {
	if _, _, err := Read(filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), "x: no such file") {
		t.Errorf("got %v", err)
	}
}

// TestRead_malformed: each bad document is named with file, number and line, and
// everything else is there.
func TestRead_malformed(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"syntax", "a: [1\nb: 2\n", "File f.yaml: document 2 (line 4): not YAML: near line 4: did not find expected ',' or ']'"},
		{"key twice", "apiVersion: v1\nkind: Node\nkind: Pod\n", `File f.yaml: document 2 (line 4): not YAML: line 6: key "kind" already set in map`},
		{"scalar", "hello\n", "File f.yaml: document 2 (line 4): is no Kubernetes object, which is a mapping with apiVersion and kind"},
		{"no kind", "apiVersion: v1\n", "File f.yaml: document 2 (line 4): kind is missing"},
		{"no version", "kind: Pod\n", "File f.yaml: document 2 (line 4): Pod: apiVersion is missing"},
		{"no name", "apiVersion: v1\nkind: Pod\n", "File f.yaml: document 2 (line 4): Pod: metadata.name is missing"},
		{"bad name", "{apiVersion: v1, kind: Service, metadata: {name: Web}}\n", `File f.yaml: document 2 (line 4): Service: metadata.name "Web": a lowercase RFC 1123 label`},
		{"bad namespace", "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a.b}}\n", `File f.yaml: document 2 (line 4): Pod p: metadata.namespace "a.b": must not contain dots`},
		{"wrong type", "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: 80}}\n", "File f.yaml: document 2 (line 4): Service web: cannot unmarshal number into Go struct field ServiceSpec.spec.ports"},
		{"unquoted", "{apiVersion: v1, kind: Node, metadata: {name: n}}\n", "File f.yaml: document 2 (line 4): Node: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string (a text that YAML takes for something else needs quotes)"},
		{"item", "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod}]}\n", "File f.yaml: document 2 (line 4), items[0]: Pod: metadata.name is missing"},
		{"items", "{apiVersion: v1, kind: List, items: 3}\n", "File f.yaml: document 2 (line 4): items is no list"},
	} {
		t.Run(test.name, func(t *testing.T) {
			node := func(n string) string { return "{apiVersion: v1, kind: Node, metadata: {name: " + n + "}}\n" }
			dir := unpack(t, "-- a.yaml --\n"+node("n1")+"-- f.yaml --\n# comment\n"+node("n2")+"---\n"+test.text+"---\n"+node("n3"))
			o, problems := mustRead(t, dir)
			if d := cmp.Diff([]string{"Node n1", "Node n2", "Node n3"}, names(o)); d != "" {
				t.Error(d)
			}
			if len(problems) != 1 || !strings.HasPrefix(problems[0], test.want) {
				t.Errorf("got %q, want %q", problems, test.want)
			}
		})
	}
}

func TestRead_malformedJSON(t *testing.T) {
	dir := unpack(t, "-- f.json --\n{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"n1\"}}\n{\n \"a\": 1,,\n}\n")
	o, problems := mustRead(t, dir)
	if len(o.Nodes) != 1 || len(problems) != 1 || !strings.HasPrefix(problems[0], "File f.json: document 2: line 3: invalid character ','") {
		t.Errorf("got %q, problems %q", names(o), problems)
	}
}

func TestRead_unreadable(t *testing.T) {
	dir := unpack(t, "-- a.yaml --\n{apiVersion: v1, kind: Node, metadata: {name: n1}}\n")
	if err := os.Symlink("nowhere", filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	o, problems := mustRead(t, dir)
	if len(o.Nodes) != 1 || len(problems) != 1 || !strings.Contains(problems[0], "File b.yaml: open ") {
		t.Errorf("got %q, problems %q", names(o), problems)
	}
}

func TestRead_unknownFieldsAndDuplicates(t *testing.T) {
	dir := unpack(t, `
-- a.yaml --
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.0.0.1, clusterip: x, ports: [{port: 80, prot: UDP}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: dns}, spec: {clusterIP: 10.0.0.3}}
-- b.yaml --
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: {clusterIP: 10.0.0.2}}
`)
	o, problems := mustRead(t, dir)
	want := []string{
		"Service default/web: spec.clusterip: there is no such field, so it has no effect (a.yaml, document 1 (line 1))",
		"Service default/web: spec.ports[0].prot: there is no such field, so it has no effect (a.yaml, document 1 (line 1))",
		"Service default/web: is in a.yaml, document 1 (line 1), and again in b.yaml, document 1 (line 1): the later one counts",
	}
	slices.Sort(problems)
	slices.Sort(want)
	if d := cmp.Diff(want, problems); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"Service default/dns", "Service default/web"}, names(o)); d != "" {
		t.Error(d)
	}
	if got := o.Services[1].Spec.ClusterIP; got != "10.0.0.2" {
		t.Errorf("the earlier one counts: %s", got)
	}
}

func TestSnapshot(t *testing.T) {
	dir := unpack(t, `
-- a.yaml --
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: bad}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: ns}}
---
{apiVersion: v1, kind: Pod, metadata: {name: here}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: there}, spec: {nodeName: n2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: nowhere}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}, addressType: IPv4}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: fqdn, labels: {kubernetes.io/service-name: web}}, addressType: FQDN}
---
{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/12]}}
`)
	o, _ := mustRead(t, dir)
	for node, pods := range map[string][]cluster.Key{
		"":   {{Namespace: "default", Name: "here"}, {Namespace: "default", Name: "there"}},
		"n1": {{Namespace: "default", Name: "here"}},
	} {
		s := o.Snapshot(node)
		if d := cmp.Diff(pods, s.Pods.Keys()); d != "" {
			t.Errorf("pods of %q: %s", node, d)
		}
		if s.Nodes.Len() != 1 || s.Namespaces.Len() != 1 || s.Services.Len() != 1 || s.Slices.Len() != 1 || s.Endpoints.Len() != 1 || s.ServiceCIDRs.Get(cluster.Key{Name: "kubernetes"}) == nil {
			t.Error("objects are missing")
		}
		if d := cmp.Diff([]string{`Node n1: spec.podCIDR: "bad" is not a CIDR such as 10.244.1.0/24: it is left out`}, texts(s.Problems())); d != "" {
			t.Error(d)
		}
	}
}

// FuzzParse: no text makes the reader panic, and what it gives has names.
func FuzzParse(f *testing.F) {
	for _, file := range txtar.Parse([]byte(everyKind)).Files {
		f.Add(file.Name, file.Data)
	}
	f.Add("a.yaml", []byte("--- ---\n...\n%YAML 1.1\n---\r\n\ufeff{}\n"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		p := parse(name, data)
		for _, e := range p.entries {
			if e.key.Name == "" || e.object.GetName() != e.key.Name {
				t.Errorf("an object has the key %q", e.key)
			}
		}
		if p.failed != slices.ContainsFunc(p.problems, func(p cluster.Problem) bool { return p.Kind == "File" }) {
			t.Error("a failure without a problem, or the other way round")
		}
	})
}
