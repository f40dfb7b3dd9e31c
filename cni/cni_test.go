package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/internal/nettest"
)

func TestAdd_pingCheckDel(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	n.withShim()
	p := newPod(t, "web-0")
	if err := n.status(); err != nil {
		t.Fatalf("STATUS: %v", err)
	}
	result := n.mustAdd(p)

	if result.CNIVersion != "1.1.0" || len(result.Interfaces) != 2 || len(result.IPs) != 2 || len(result.Routes) != 2 {
		t.Fatalf("result %+v", result)
	}
	host, inside := result.Interfaces[0], result.Interfaces[1]
	if host.Sandbox != "" || inside.Sandbox != p.path || inside.Name != "eth0" || inside.Mtu != 1450 {
		t.Errorf("interfaces %v %v", host, inside)
	}
	for i, want := range []struct{ addr, gateway string }{{"10.1.2.2/32", "10.1.2.1"}, {"fd00:1:2::2/128", "fd00:1:2::1"}} {
		ip := result.IPs[i]
		if ip.Address.String() != want.addr || ip.Gateway.String() != want.gateway || *ip.Interface != 1 {
			t.Errorf("ip %v, want %v", ip, want)
		}
		n.ping(p, want.gateway)
		nettest.Run(t, "ping", "-c1", "-W2", strings.Split(want.addr, "/")[0])
	}
	nettest.Do(t, p.ns, func() {
		if out := nettest.Run(t, "ip", "link", "show", "eth0"); !strings.Contains(out, inside.Mac) || !strings.Contains(out, "mtu 1450") {
			t.Errorf("the pod's eth0 is not what the result says:\n%s", out)
		}
	})
	if out := nettest.Run(t, "ip", "link", "show", host.Name); !strings.Contains(out, host.Mac) {
		t.Errorf("%s has not the MAC of the result:\n%s", host.Name, out)
	}
	if err := n.check(p); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	want := Allocation{
		Network: "podlane", ContainerID: "web-0", IfName: "eth0", Netns: p.path, Namespace: "default", Pod: "web-0",
		UID: "uid-web-0", BootID: "boot-1", Link: host.Name, MTU: 1450,
		Addrs:    []netip.Addr{netip.MustParseAddr("10.1.2.2"), netip.MustParseAddr("fd00:1:2::2")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.1.2.1"), netip.MustParseAddr("fd00:1:2::1")},
	}
	onDisk, _, err := OpenRecord(filepath.Join(n.dir, "allocations", "v1"))
	if err != nil {
		t.Fatal(err)
	}
	have, _ := onDisk.Get(Key{"web-0", "eth0"})
	if have.MAC.String() != inside.Mac || have.HostMAC.String() != host.Mac || time.Since(have.Created) > time.Minute {
		t.Errorf("record %+v", have)
	}
	want.MAC, want.HostMAC, want.Created, want.NetnsCookie = have.MAC, have.HostMAC, have.Created, cookieOf(t, p.ns)
	if diff := cmp.Diff(want, have, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error("record (-want +have):\n", diff)
	}

	for range 2 {
		if err := n.del(p); err != nil {
			t.Fatalf("DEL: %v", err)
		}
		n.empty()
	}
	if err := n.check(p); code(err) == 0 && !strings.Contains(fmt.Sprint(err), "cache") {
		t.Errorf("CHECK after DEL: %v", err)
	}
}

// TestAdd_versions has older runtimes ask.
func TestAdd_versions(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	for _, version := range []string{"0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		p := newPod(t, "v-"+version)
		c, list := n.cni(version)
		ctx, cancel := bounded()
		result, err := c.AddNetworkList(ctx, list, p.runtime())
		if err != nil {
			t.Fatalf("%s: ADD: %v", version, err)
		}
		if result.Version() != version {
			t.Errorf("%s: result of version %s", version, result.Version())
		}
		n.ping(p, "10.1.2.1")
		if err := c.DelNetworkList(ctx, list, p.runtime()); err != nil {
			t.Errorf("%s: DEL: %v", version, err)
		}
		cancel()
	}
	n.empty()
	c, list := n.cni("1.1.0")
	list.Plugins[0].Bytes = []byte(strings.Replace(string(list.Plugins[0].Bytes), "{", `{"cniVersion":"9.9.9","name":"podlane",`, 1))
	list.CNIVersion = "9.9.9"
	ctx, cancel := bounded()
	defer cancel()
	if _, err := c.AddNetworkList(ctx, list, newPod(t, "new").runtime()); code(err) != 1 {
		t.Errorf("cniVersion 9.9.9: %v, want code 1", err)
	}
}

func TestAdd_twice(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	p := newPod(t, "web-0")
	first := n.mustAdd(p)
	if diff := cmp.Diff(first, n.mustAdd(p)); diff != "" {
		t.Error("second ADD differs:\n", diff)
	}
	n.ping(p, "10.1.2.1")

	// A pod that somebody broke: CHECK says what, and ADD mends it.
	nettest.Do(t, p.ns, func() { nettest.Run(t, "ip", "addr", "flush", "dev", "eth0", "scope", "global") })
	if err := n.check(p); code(err) != 100 || !strings.Contains(err.Error(), "10.1.2.2") {
		t.Errorf("CHECK of a broken pod: %v", err)
	}
	if diff := cmp.Diff(first, n.mustAdd(p)); diff != "" {
		t.Error("mending ADD differs:\n", diff)
	}
	n.ping(p, "fd00:1:2::1")

	// The same container in another namespace: the runtime made its sandbox again.
	again := newPod(t, "web-0")
	if moved := n.mustAdd(again); moved.IPs[0].Address.String() != "10.1.2.2/32" || moved.Interfaces[1].Sandbox != again.path {
		t.Errorf("moved: %v %v", moved.IPs, moved.Interfaces)
	}
	n.ping(again, "10.1.2.1")
	if len(n.podLinks()) != 1 || len(n.records()) != 1 {
		t.Errorf("links %v, records %v, want one of each", n.podLinks(), n.records())
	}
}

func TestAdd_fiftyAtOnce(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	n.withShim()
	pods := make([]pod, 50)
	for i := range pods {
		pods[i] = newPod(t, fmt.Sprintf("pod-%d", i))
	}
	n.mustAdd(newPod(t, "warm-up"))
	var mu sync.Mutex
	var took []time.Duration
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for _, p := range pods {
		wg.Go(func() {
			start := time.Now()
			result, err := n.add(p)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("ADD %s: %v", p.id, err)
				return
			}
			took = append(took, time.Since(start))
			seen[result.IPs[0].Address.String()] = true
		})
	}
	wg.Wait()
	if len(seen) != len(pods) {
		t.Fatalf("%d different addresses for %d pods", len(seen), len(pods))
	}
	slices.Sort(took)
	t.Logf("50 ADDs at once: median %v, longest %v", took[len(took)/2], took[len(took)-1])
	for _, p := range pods[:5] {
		n.ping(p, "10.1.2.1")
	}
	for _, p := range pods {
		wg.Go(func() {
			if err := n.del(p); err != nil {
				t.Errorf("DEL %s: %v", p.id, err)
			}
		})
	}
	wg.Wait()
	if len(n.podLinks()) != 1 || len(n.records()) != 1 {
		t.Errorf("links %v, records %v, want one of each", n.podLinks(), n.records())
	}
}

func TestAgentAway(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	n.withShim()
	p := newPod(t, "web-0")
	n.mustAdd(p)
	n.stop()
	for name, err := range map[string]error{"ADD": second(n.add(newPod(t, "late"))), "CHECK": n.check(p)} {
		if code(err) != 11 || !strings.Contains(err.Error(), "the podlane agent of this node does not answer") {
			t.Errorf("%s with the agent away: %d %v, want code 11", name, code(err), err)
		}
	}
	if err := n.status(); code(err) != 50 {
		t.Errorf("STATUS with the agent away: %v, want code 50", err)
	}
	if err := n.del(p); err != nil {
		t.Errorf("DEL with the agent away: %v", err)
	}
	// The runtime throws the sandbox away, and the next start collects.
	nettest.Do(t, p.ns, func() { nettest.Run(t, "ip", "link", "del", "eth0") })
	n.start()
	n.empty()
}

func second[T any](_ T, err error) error { return err }

func TestAdd_usedUp(t *testing.T) {
	n := newNode(t, []netip.Prefix{netip.MustParsePrefix("10.1.2.0/29"), netip.MustParsePrefix("fd00:1:2::/64")}).start()
	pods := make([]pod, 5)
	for i := range pods {
		pods[i] = newPod(t, fmt.Sprintf("pod-%d", i))
		n.mustAdd(pods[i])
	}
	const want = "pod CIDR 10.1.2.0/29 of node n1 is used up (5 of 5 in use)"
	_, err := n.add(newPod(t, "one-more"))
	if code(err) != 11 || !strings.Contains(err.Error(), want) {
		t.Errorf("ADD: %v, want %s", err, want)
	}
	if err := n.status(); code(err) != 50 || !strings.Contains(err.Error(), want) {
		t.Errorf("STATUS: %v, want %s", err, want)
	}
	if len(n.podLinks()) != 5 || len(n.records()) != 5 {
		t.Errorf("links %v, records %v", n.podLinks(), n.records())
	}
	if err := n.del(pods[3]); err != nil {
		t.Fatal(err)
	}
	if result := n.mustAdd(newPod(t, "one-more")); result.IPs[0].Address.String() != "10.1.2.5/32" {
		t.Errorf("the freed address 10.1.2.5 was not given: %v", result.IPs[0])
	}
}

func TestAdd_nameInUse(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	p := newPod(t, "web-0")
	nettest.Do(t, p.ns, func() { nettest.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other") })
	_, err := n.add(p)
	if code(err) != 100 || !strings.Contains(err.Error(), "default/web-0: link eth0") || !strings.Contains(err.Error(), "name already in use") {
		t.Errorf("ADD: %v", err)
	}
	n.empty()

	// The host's name is somebody else's: theirs stays.
	q := newPod(t, "web-1")
	theirs := linkName(Key{"web-1", "eth0"}, 0)
	nettest.Run(t, "ip", "link", "add", theirs, "type", "veth", "peer", "name", "other")
	if _, err := n.add(q); code(err) != 100 || !strings.Contains(err.Error(), "name already in use") {
		t.Errorf("ADD: %v", err)
	}
	nettest.Run(t, "ip", "link", "show", theirs)
	n.empty()
	if err := n.del(q); err != nil {
		t.Errorf("DEL: %v", err)
	}
}

// TestAdd_applyFails has a route of somebody else where the next pod's would be.
// That pod gets nothing; its neighbours of the same batch and before do.
func TestAdd_applyFails(t *testing.T) {
	n := newNode(t, []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}).start()
	old := newPod(t, "old")
	before := n.mustAdd(old)
	nettest.Run(t, "ip", "route", "add", "10.1.2.3/32", "dev", "lo")
	_, err := n.add(newPod(t, "web-0"))
	if code(err) != 11 || !strings.Contains(err.Error(), "pod default/web-0 on node n1") || !strings.Contains(err.Error(), "a route of someone else is in the way") {
		t.Errorf("ADD: %v", err)
	}
	if want := []string{before.Interfaces[0].Name}; !slices.Equal(n.podLinks(), want) || len(n.records()) != 1 {
		t.Errorf("links %v, records %v, want those of the old pod", n.podLinks(), n.records())
	}
	nettest.Run(t, "ip", "route", "show", "10.1.2.3/32", "dev", "lo")
	// The address was given back, and is held back: the next pod has another.
	next := newPod(t, "web-1")
	n.mustAdd(next)
	n.ping(next, "10.1.2.1")
	n.ping(old, "10.1.2.1")
}

// TestAdd_applyFailsElsewhere: what is wrong with another object stops no pod.
func TestAdd_applyFailsElsewhere(t *testing.T) {
	n := newNode(t, bothFamilies).start(func(l *loop) { l.fail = errors.New("route of node n7: no") })
	p := newPod(t, "web-0")
	n.mustAdd(p)
	n.ping(p, "10.1.2.1")
	if err := n.del(p); err != nil {
		t.Errorf("DEL: %v", err)
	}
	n.empty()
}

func TestDel_namespaceGone(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	p := newPod(t, "web-0")
	n.mustAdd(p)
	nettest.Do(t, p.ns, func() { nettest.Run(t, "ip", "link", "del", "eth0") })
	p.path = "/proc/1/no-such-namespace"
	for range 2 {
		if err := n.del(p); err != nil {
			t.Fatalf("DEL: %v", err)
		}
	}
	n.empty()
	if _, err := n.add(p); code(err) != 4 || !strings.Contains(err.Error(), p.path) {
		t.Errorf("ADD without a namespace: %v", err)
	}
	n.empty()
}

func TestGC(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	if err := gcOf(n, ""); err == nil || err.Code != shim.CodeConfig {
		t.Errorf("GC without a list: %v, want code 7", err)
	}
	keep, lose := newPod(t, "keep"), newPod(t, "lose")
	n.mustAdd(keep)
	n.mustAdd(lose)
	c, list := n.cni("")
	ctx, cancel := bounded()
	defer cancel()
	// Without libcni's cache, so that it does not send a DEL itself.
	if err := os.RemoveAll(filepath.Join(n.dir, "cache")); err != nil {
		t.Fatal(err)
	}
	valid := []types.GCAttachment{{ContainerID: "keep", IfName: "eth0"}}
	if err := c.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		t.Fatalf("GC: %v", err)
	}
	if len(n.podLinks()) != 1 || len(n.records()) != 1 {
		t.Errorf("links %v, records %v, want one of each", n.podLinks(), n.records())
	}
	n.ping(keep, "10.1.2.1")
}

// gcOf is a GC whose configuration has more.
func gcOf(n *node, more string) *shim.Error {
	config := []byte(`{"cniVersion":"1.1.0","name":"podlane"` + more + `}`)
	reply, err := shim.Ask(filepath.Join(n.dir, "agent.sock"), shim.Request{Verb: shim.VerbCNI, Command: "GC", Config: config}, 5*time.Second)
	if err != nil {
		n.t.Fatal(err)
	}
	return reply.Error
}

func TestStatus_cause(t *testing.T) {
	n := newNode(t, nil).start()
	if err := n.status(); code(err) != 50 || !strings.Contains(err.Error(), "node n1 is not known yet") {
		t.Errorf("STATUS: %v", err)
	}
	const cause = "node n1 has no podCIDR: start kube-controller-manager with --allocate-node-cidrs"
	n.stop()
	n.start(func(l *loop) { l.plugin.SetNetwork(Network{Problem: cause}) })
	if err := n.status(); code(err) != 50 || !strings.Contains(err.Error(), cause) {
		t.Errorf("STATUS: %v", err)
	}
	if _, err := n.add(newPod(t, "web-0")); code(err) != 11 || !strings.Contains(err.Error(), cause) {
		t.Errorf("ADD: %v", err)
	}
	n.empty()
}

// TestAdd_afterRestart: an address that was released before the agent started
// again is not given at once.
func TestAdd_afterRestart(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	p := newPod(t, "web-0")
	first := n.mustAdd(p)
	if err := n.del(p); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.start()
	if again := n.mustAdd(p); again.IPs[0].Address.String() == first.IPs[0].Address.String() {
		t.Errorf("%v was given again", again.IPs[0].Address)
	}
}

// TestCollect_boot: what an earlier boot left on record is gone, whatever links
// there are.
func TestCollect_boot(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	n.mustAdd(newPod(t, "web-0"))
	n.stop()
	name := n.records()[0]
	path := filepath.Join(n.dir, "allocations", "v1", name)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), "boot-1", "boot-0", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.empty()
}

// TestRecordLost: the record of a living pod is spoiled. The link is then nobody's,
// which the agent's diff removes; a DEL finds nothing and says so with success.
func TestRecordLost(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	p := newPod(t, "web-0")
	n.mustAdd(p)
	n.stop()
	name := n.records()[0]
	if err := os.Truncate(filepath.Join(n.dir, "allocations", "v1", name), 100); err != nil {
		t.Fatal(err)
	}
	n.start()
	if want := []string{name + ".bad"}; !slices.Equal(n.records(), want) || len(n.podLinks()) > 0 {
		t.Errorf("records %v, links %v, want %v and none", n.records(), n.podLinks(), want)
	}
	if err := n.del(p); err != nil {
		t.Errorf("DEL: %v", err)
	}
	n.mustAdd(p)
	n.ping(p, "10.1.2.1")
}

// TestHandle_order has requests about the same pod in one batch.
func TestHandle_order(t *testing.T) {
	request := func(command, id string) *Request {
		return &Request{Request: shim.Request{Command: command, ContainerID: id, IfName: "eth0"}}
	}
	batch := []*Request{request("ADD", "a"), request("ADD", "b"), request("ADD", "a"), request("DEL", "a"), request("DEL", "b")}
	for _, want := range []int{2, 1, 2} {
		if have := run(batch); have != want {
			t.Fatalf("%d together, want %d", have, want)
		}
		batch = batch[want:]
	}
}

// TestHandle_refuses what needs no kernel to be refused.
func TestHandle_refuses(t *testing.T) {
	p := &Plugin{}
	for _, c := range []struct {
		name string
		req  shim.Request
		wait time.Duration
		code uint
	}{
		{"another verb", shim.Request{Verb: "status", Command: "ADD"}, time.Minute, 4},
		{"unknown command", shim.Request{Verb: "cni", Command: "MOVE"}, time.Minute, 4},
		{"too late", shim.Request{Verb: "cni", Command: "ADD"}, -time.Second, 11},
		{"no configuration", shim.Request{Verb: "cni", Command: "ADD"}, time.Minute, 6},
		{"CHECK before 0.4.0", shim.Request{Verb: "cni", Command: "CHECK", Config: []byte(`{"cniVersion":"0.3.1"}`)}, time.Minute, 1},
		{"path as container", shim.Request{Verb: "cni", Command: "DEL", ContainerID: "../../etc", IfName: "eth0", Config: []byte(`{}`)}, time.Minute, 4},
		{"long container", shim.Request{Verb: "cni", Command: "DEL", ContainerID: strings.Repeat("a", 181), IfName: "eth0", Config: []byte(`{}`)}, time.Minute, 4},
		{"path as interface", shim.Request{Verb: "cni", Command: "DEL", ContainerID: "a", IfName: "../x", Config: []byte(`{}`)}, time.Minute, 4},
	} {
		r := &Request{Request: c.req, NetnsFD: -1, SocketFD: -1, Deadline: time.Now().Add(c.wait), reply: make(chan shim.Reply, 1)}
		out := p.Handle([]*Request{r}, func() error { return nil })
		reply := <-r.reply
		if reply.Error == nil || reply.Error.Code != c.code || out[0].Err == nil {
			t.Errorf("%s: %+v, want code %d", c.name, reply.Error, c.code)
		}
	}
}

// cookieOf asks the kernel itself.
func cookieOf(t *testing.T, ns netns.NsHandle) (cookie uint64) {
	t.Helper()
	nettest.Do(t, ns, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		cookie, _ = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	})
	return cookie
}
