package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

func TestMain(m *testing.M) {
	if shim.Called() {
		os.Exit(shim.Main(os.Getenv, os.Stdin, os.Stdout, os.Stderr))
	}
	if os.Getenv(agentEnv) != "" {
		os.Exit(agentMain())
	}
	nettest.Main(m)
}

// loop is an agent reduced to what CNI needs of it: the socket, the one
// goroutine that writes the kernel, and a compile of the pods alone.
//
//	test thread's namespace (the node) ── pl... ──── eth0 ── pod's namespace
//	       gateway address on each link           the pod's /32, /128
type loop struct {
	plugin *Plugin
	handle *link.Handle
	server *Server
	fail   error // what apply answers after it has applied
	// knows is that apply goes on from what it has applied, as an agent does that is told of
	// no change by others. Else it reads what is there.
	knows   bool
	applied *link.State
	before  func() // called by apply before and after its work
	after   func()
	// received and handled are called by run around each batch.
	received func()
	handled  func()
	relink   chan struct{} // see rest
}

// open makes an agent in the calling thread's namespace. As at a real start it
// collects and applies before it serves.
func open(dir string, cidrs []netip.Prefix) (*loop, []error, error) {
	handle, err := link.Open("")
	if err != nil {
		return nil, nil, err
	}
	config := Config{Node: "n1", Dir: filepath.Join(dir, "allocations", "v1"), BootID: "boot-1"}
	plugin, problems, err := Open(config, handle)
	if err != nil {
		return nil, nil, err
	}
	l := &loop{plugin: plugin, handle: handle, before: func() {}, after: func() {}, received: func() {}, handled: func() {}, relink: make(chan struct{})}
	if cidrs != nil {
		plugin.SetNetwork(Network{PodCIDRs: cidrs, MTU: 1450})
	}
	have, err := handle.Read()
	if err != nil {
		return nil, nil, err
	}
	alive := func(a Allocation) bool { _, ok := have.Links[a.Link]; return ok }
	if _, err := plugin.Collect(alive); err != nil {
		return nil, nil, err
	}
	if err := l.apply(); err != nil {
		return nil, nil, err
	}
	l.server, err = Listen(filepath.Join(dir, "agent.sock"))
	return l, problems, err
}

// apply is compile, diff and apply.
func (l *loop) apply() error {
	l.before()
	want := link.NewState()
	for _, a := range l.plugin.Allocations() {
		maps.Copy(want.Links, overlay.PodLinks(a.OnNode()))
		for i, addr := range a.Addrs {
			gateway := a.Gateways[i]
			want.Addrs[link.Addr{Dev: a.Link, Prefix: netip.PrefixFrom(gateway, gateway.BitLen())}] = struct{}{}
			want.Routes[link.RouteKey{Dst: netip.PrefixFrom(addr, addr.BitLen())}] = link.Route{Dev: a.Link}
			want.Neighs[link.NeighKey{Dev: a.Link, Addr: addr}] = a.MAC
		}
	}
	have, err := l.have()
	if err == nil {
		err = l.handle.Apply(link.Diff(have, want))
	}
	if l.applied = nil; err == nil {
		l.applied = &want
	}
	l.after()
	return errors.Join(err, l.fail)
}

func (l *loop) have() (link.State, error) {
	if l.knows && l.applied != nil {
		return *l.applied, nil
	}
	return l.handle.Read()
}

// run is the agent's loop.
func (l *loop) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.relink:
			l.plugin.Prepare()
			l.relink <- struct{}{}
		case r := <-l.server.Requests():
			l.received()
			l.plugin.Handle(l.server.Batch(r), l.apply)
			l.handled()
		}
	}
}

// rest has the loop do what it does where no pod waits, and waits for it.
func (l *loop) rest() {
	l.relink <- struct{}{}
	<-l.relink
}

// node is a node of a test: its namespace is that of the test's thread.
type node struct {
	t     testing.TB
	dir   string
	cidrs []netip.Prefix
	bin   string // the folder of the CNI plugin
	*loop
	stop func()
}

var bothFamilies = []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("fd00:1:2::/64")}

// newNode makes a node without an agent.
func newNode(t testing.TB, cidrs []netip.Prefix) *node {
	nettest.New(t)
	return &node{t: t, dir: t.TempDir(), cidrs: cidrs, bin: pluginDir(t)}
}

// start starts an agent inside the test, changed by with before it serves.
func (n *node) start(with ...func(*loop)) *node {
	n.t.Helper()
	l, problems, err := open(n.dir, n.cidrs)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range problems {
		n.t.Log("problem:", p)
	}
	for _, change := range with {
		change(l)
	}
	n.loop = l
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.server.Serve(ctx) })
	wg.Go(func() { l.run(ctx) })
	n.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		_ = l.handle.Close()
	})
	n.t.Cleanup(n.stop)
	return n
}

// pluginDir gives a folder with the plugin: this test program, which answers as
// the plugin like a build of `go run` does.
func pluginDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, PluginName))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// withShim builds the real shim and has the node use it. Where it cannot be built
// (no Go, no sources: a test program that was carried elsewhere) it says so.
func (n *node) withShim() (real bool) {
	n.t.Helper()
	dir := n.t.TempDir()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, PluginName), "../cmd/podlane-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Logf("no shim built, the test program is the plugin: %v: %s", err, out)
		return false
	}
	n.bin = dir
	return true
}

// pod is a container's network namespace, and what its runtime knows of it.
type pod struct {
	id   string
	ns   netns.NsHandle
	path string
}

func newPod(t testing.TB, id string) pod {
	ns := nettest.Make(t)
	return pod{id: id, ns: ns, path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns))}
}

func (p pod) runtime() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: p.id, NetNS: p.path, IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", p.id}, {"K8S_POD_UID", "uid-" + p.id},
	}}
}

// cni is libcni as a runtime uses it, with the configuration's highest version
// or the one given.
func (n *node) cni(version string) (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	n.t.Helper()
	text := Conflist(filepath.Join(n.dir, "agent.sock"))
	if version != "" {
		var m map[string]any
		if err := json.Unmarshal(text, &m); err != nil {
			n.t.Fatal(err)
		}
		m["cniVersion"] = version
		delete(m, "cniVersions")
		text, _ = json.Marshal(m)
	}
	list, err := libcni.NetworkConfFromBytes(text)
	if err != nil {
		n.t.Fatal(err)
	}
	return libcni.NewCNIConfigWithCacheDir([]string{n.bin}, filepath.Join(n.dir, "cache"), nil), list
}

func bounded() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 50*time.Second)
}

func (n *node) add(p pod) (*types100.Result, error) {
	c, list := n.cni("")
	ctx, cancel := bounded()
	defer cancel()
	result, err := c.AddNetworkList(ctx, list, p.runtime())
	if err != nil {
		return nil, err
	}
	return types100.NewResultFromResult(result)
}

func (n *node) mustAdd(p pod) *types100.Result {
	n.t.Helper()
	result, err := n.add(p)
	if err != nil {
		n.t.Fatalf("ADD %s: %v", p.id, err)
	}
	return result
}

func (n *node) del(p pod) error {
	c, list := n.cni("")
	ctx, cancel := bounded()
	defer cancel()
	return c.DelNetworkList(ctx, list, p.runtime())
}

func (n *node) check(p pod) error {
	c, list := n.cni("")
	ctx, cancel := bounded()
	defer cancel()
	return c.CheckNetworkList(ctx, list, p.runtime())
}

func (n *node) status() error {
	c, list := n.cni("")
	ctx, cancel := bounded()
	defer cancel()
	return c.GetStatusNetworkList(ctx, list)
}

// code gives the CNI code of an error.
func code(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// podLinks gives the node's links that are ours.
func (n *node) podLinks() []string {
	n.t.Helper()
	h, err := link.Open("")
	if err != nil {
		n.t.Fatal(err)
	}
	defer h.Close()
	state, err := h.Read()
	if err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for name := range state.Links {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// records gives the files of the record, without the cursors and the spare files.
func (n *node) records() []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.dir, "allocations", "v1"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != cursorFile && !strings.HasPrefix(e.Name(), temporary) {
			names = append(names, e.Name())
		}
	}
	return names
}

// empty fails the test where anything of a pod is left.
func (n *node) empty() {
	n.t.Helper()
	if links, records := n.podLinks(), n.records(); len(links)+len(records) > 0 {
		n.t.Errorf("left behind: links %v, records %v", links, records)
	}
}

// ping sends one packet from the pod.
func (n *node) ping(p pod, to string) {
	n.t.Helper()
	nettest.Do(n.t, p.ns, func() { nettest.Run(n.t, "ping", "-c1", "-W2", to) })
}
