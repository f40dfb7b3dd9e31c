package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/test/e2e/internal/control"
)

const everyKind = kube.Nodes | kube.Namespaces | kube.Pods | kube.AllServices

// TestSources_same: the same objects through the API and from a folder give the
// same Snapshot, whole and as the agent's informers see it.
func TestSources_same(t *testing.T) {
	p := control.Start(t, bin)
	a := newAPI(t, p)
	admin := p.Kubeconfig(control.Admin, p.Addr)
	k := followKube(t, kube.Options{Kubeconfig: admin, Kinds: everyKind})
	fixtures, problems, err := file.Read("testdata")
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	want := fixtures.Snapshot("")
	if ps := want.Problems(); len(ps) != 1 || ps[0].Key.Name != "node-4" {
		t.Fatal(ps)
	}
	a.putAll(fixtures)

	t.Run("as written", func(t *testing.T) {
		k.equals(written(want), written)
		followFile(t, "testdata").equals(written(want), written)
	})
	dump := a.dump(t.TempDir())
	t.Run("as the API prints it", func(t *testing.T) {
		f := followFile(t, dump)
		f.until("a Snapshot", func(*cluster.Snapshot) bool { return true })
		f.problem("")
		k.equals(whole(f.last), whole)
	})
	t.Run("of one node", func(t *testing.T) {
		mine := followKube(t, kube.Options{Kubeconfig: admin, Kinds: kube.Pods, Node: "node-1"})
		mine.equals(plain{
			Nodes: map[string]cluster.Node{}, Namespaces: map[string]cluster.Namespace{}, Pods: whole(readDump(t, dump, "node-1")).Pods,
			Services: map[string]cluster.Service{}, Slices: map[string]cluster.EndpointSlice{}, Endpoints: map[string][]string{}}, whole)
		if n := mine.last.Pods.Len(); n != 2 {
			t.Errorf("%d pods are on node-1, want 2", n)
		}
	})
	t.Run("labels added later", func(t *testing.T) { a.labelsAddedLater(admin, k) })
}

// dump writes everything that the API server has, as kubectl get -o json does.
func (a *api) dump(dir string) string {
	a.t.Helper()
	for i, list := range a.everything() {
		data, err := json.MarshalIndent(list, "", "\t")
		if err != nil {
			a.t.Fatal(err)
		}
		writeFile(a.t, filepath.Join(dir, fmt.Sprint(i, ".json")), data)
	}
	return dir
}

func readDump(t *testing.T, dir, node string) *cluster.Snapshot {
	t.Helper()
	o, problems, err := file.Read(dir)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	return o.Snapshot(node)
}

// writeFile replaces a file as careful programs do.
func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// labelsAddedLater: an object whose label leaves the agent's selection goes, and
// comes back without it.
func (a *api) labelsAddedLater(admin string, all *follower) {
	agent := followKube(a.t, kube.Options{Kubeconfig: admin, Kinds: kube.Services})
	same := func(what string, services, slices int) {
		a.t.Helper()
		all.until(what, func(s *cluster.Snapshot) bool {
			p := served(s)
			return len(p.Services) == services && len(p.Slices) == slices
		})
		agent.equals(served(all.last), whole2)
	}
	before := served(all.last)
	nServices, nSlices := len(before.Services), len(before.Slices)
	same("the start", nServices, nSlices)
	ctx := context.Background()
	label := func(key, value string) {
		a.t.Helper()
		svc, err := a.CoreV1().Services("shop").Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			a.t.Fatal(err)
		}
		slice, err := a.DiscoveryV1().EndpointSlices("shop").Get(ctx, "web-v4", metav1.GetOptions{})
		if err != nil {
			a.t.Fatal(err)
		}
		for _, o := range []metav1.Object{svc, slice} {
			labels := o.GetLabels()
			delete(labels, "service.kubernetes.io/service-proxy-name")
			delete(labels, "service.kubernetes.io/headless")
			if labels == nil {
				labels = map[string]string{}
			}
			if key != "" {
				labels[key] = value
			}
			o.SetLabels(labels)
		}
		if _, err := a.CoreV1().Services("shop").Update(ctx, svc, metav1.UpdateOptions{}); err != nil {
			a.t.Fatal(err)
		}
		if _, err := a.DiscoveryV1().EndpointSlices("shop").Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
			a.t.Fatal(err)
		}
	}
	label("service.kubernetes.io/service-proxy-name", "other")
	same("a Service less", nServices-1, nSlices)
	label("", "")
	same("all again", nServices, nSlices)
	label("service.kubernetes.io/headless", "")
	same("a slice less", nServices, nSlices-1)
	label("", "")
	same("all again", nServices, nSlices)
}

// whole2 is whole without the kinds that the agent's followers here do not have.
func whole2(s *cluster.Snapshot) plain {
	p := whole(s)
	p.Nodes, p.Namespaces, p.Pods = nil, nil, nil
	return p
}

// TestSources_sameHistory makes random changes through the API and in a folder at
// once, and compares both sources whenever they have come to rest.
func TestSources_sameHistory(t *testing.T) {
	p := control.Start(t, bin)
	a := newAPI(t, p)
	k := followKube(t, kube.Options{Kubeconfig: p.Kubeconfig(control.Admin, p.Addr), Kinds: everyKind})
	agent := followKube(t, kube.Options{Kubeconfig: p.Kubeconfig(control.Admin, p.Addr), Kinds: kube.Services})
	dir := t.TempDir()
	f := followFile(t, dir)
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	w := newWorld(a, dir, rand.New(rand.NewPCG(seed, 0)))
	for range 30 {
		w.change(1 + w.r.IntN(25))
		want := w.objects().Snapshot("")
		f.equals(written(want), written)
		k.equals(written(want), written)
		agent.equals(served(k.last), whole2)
	}
	if n := len(k.last.Problems()); n > 0 {
		t.Errorf("%d objects have problems: %v", n, k.last.Problems())
	}
}

// TestKube_serverRestarts: while the API server is away, the last Snapshot stands;
// afterwards the source catches up, also with what it can no longer be told.
func TestKube_serverRestarts(t *testing.T) {
	p := control.Start(t, bin)
	a := newAPI(t, p)
	gate := control.NewGate(t, p.Addr)
	k := followKube(t, kube.Options{Kubeconfig: p.Kubeconfig(control.Admin, gate.Addr), Kinds: everyKind})
	service := func(name string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	}
	services := a.CoreV1().Services("default")
	has := func(name string) func(*cluster.Snapshot) bool {
		return func(s *cluster.Snapshot) bool {
			return s.Services.Get(cluster.Key{Namespace: "default", Name: name}) != nil
		}
	}
	put(t, services, service("first"))
	k.until("first", has("first"))
	k.equals(whole(readDump(t, a.dump(t.TempDir()), "")), whole)
	before := k.last

	p.KillAPI()
	k.problem("cannot be reached, what was read before stays")
	select {
	case <-k.Snapshots():
		t.Error("a Snapshot came while the server was away")
	case <-time.After(time.Second):
	}
	p.StartAPI()
	put(t, services, service("second"))
	after := k.until("second", has("second"))
	if key := (cluster.Key{Namespace: "default", Name: "first"}); before.Services.Get(key) != after.Services.Get(key) {
		t.Error("an object that did not change has a new pointer")
	}
	k.problem("")

	gate.Shut()
	k.problem("cannot be reached")
	remove(t, services, "first")
	put(t, services, service("third"))
	remove(t, services, "third")
	put(t, services, service("fourth"))
	p.KillAPI()
	compact(t, p.EtcdURL)
	p.StartAPI()
	gate.Open()
	k.until("fourth", has("fourth"))
	k.equals(whole(readDump(t, a.dump(t.TempDir()), "")), whole)
	if has("first")(k.last) || has("third")(k.last) {
		t.Error("an object that was deleted meanwhile is still there")
	}
	k.problem("")
	t.Log(k.log)
}

// compact makes etcd forget all history.
func compact(t *testing.T, url string) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp, err := c.Get(ctx, "/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
}

// TestKube_notAllowed: what the user may not do is named, with the resource and
// the verb; nothing is published until all of it has come; and it works as soon as
// it is allowed.
func TestKube_notAllowed(t *testing.T) {
	p := control.Start(t, bin)
	a := newAPI(t, p)
	k := followKube(t, kube.Options{Kubeconfig: p.Kubeconfig(control.Nobody, p.Addr), Kinds: kube.ForDNS})
	for _, resource := range []string{"services", "endpointslices", "namespaces"} {
		k.problem("kube-apiserver " + resource + ": may not list: ")
		k.problem("must allow the verbs list and watch on " + resource)
	}
	a.allow(control.Nobody, "services", "namespaces")
	for end := time.Now().Add(wait); len(k.Problems()) > 1 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	k.problem("endpointslices: may not list")
	select {
	case <-k.Snapshots():
		t.Error("a Snapshot came without the endpoint slices")
	case <-time.After(time.Second):
	}
	a.allow(control.Nobody, "endpointslices")
	k.until("a Snapshot", func(s *cluster.Snapshot) bool { return s.Namespaces.Len() > 0 })
	k.problem("")

	stranger := followKube(t, kube.Options{Kubeconfig: p.Kubeconfig("stranger", p.Addr), Kinds: kube.Nodes})
	stranger.problem("does not accept the credentials")
}
