package kubeproxy

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables"
	"github.com/podlane/podlane/proxy/nftables/apply"
	"github.com/podlane/podlane/test/kubeproxy/internal/node"
)

var (
	kills    = flag.Int("kills", 15, "how often TestKills kills the agent")
	killSeed = flag.Uint64("kill-seed", 0, "seed of TestKills; 0 is from the clock")
)

// killWorld is a node with Services that change all the time. Of the first, which
// clients connect to, all endpoints answer, so that no change explains a failure.
type killWorld struct {
	t       *testing.T
	r       *rand.Rand
	node    *node.Node
	conn    *nft.Conn
	builder *cluster.Builder // what the API has
	agent   *node.Process
	version int
}

const (
	killServices = 1500
	asked        = 4 // Services that clients connect to
)

var killServers = []string{"10.244.0.2", "10.244.0.3", "10.244.0.4", "10.244.0.5"}

// TestKills kills the agent at random points: while a table is built anew beside,
// while a big change goes in by several transactions, at a start with such a change
// due, and amid single changes. Clients make 200 connections a second throughout, and
// none may fail. After each kill a new agent must bring the kernel to what the plan
// of the API's objects says, endpoint by endpoint.
func TestKills(t *testing.T) {
	seed := *killSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	w := newKillWorld(t, rand.New(rand.NewPCG(seed, seed)))
	var loads []*load
	for i := range asked {
		loads = append(loads, start(w.node, node.ClusterIP(i)+":80", 200/asked))
	}
	inside := map[string]int{}
	for i := range *kills {
		kind := []string{"rebuild", "burst", "start", "single"}[i%4]
		where := w.kill(kind)
		t.Logf("kill %d: %s: %s", i+1, kind, where)
		if !strings.HasPrefix(where, "outside") {
			inside[kind]++
		}
		w.start()
		w.settle()
	}
	requests, failures, first := int64(0), int64(0), ""
	for _, l := range loads {
		l.end()
		requests, failures = requests+l.requests.Load(), failures+l.failures.Load()
		if s, _ := l.first.Load().(string); s != "" {
			first = s
		}
	}
	total := 0
	for _, n := range inside {
		total += n
	}
	t.Logf("%d kills, %d of them inside a load or a change of several transactions: %v; %d connections, %d failed %s", *kills, total, inside, requests, failures, first)
	if failures > 0 || requests < 100 {
		t.Errorf("%d of %d connections failed: %s", failures, requests, first)
	}
	if total < *kills*3/10 {
		t.Errorf("%d of %d kills were inside: too few to show something", total, *kills)
	}
}

func newKillWorld(t *testing.T, r *rand.Rand) *killWorld {
	n, err := node.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	w := &killWorld{t: t, r: r, node: n, builder: cluster.NewBuilder()}
	for _, a := range killServers {
		serve(t, n, a)
	}
	if err := n.Do(func() (err error) { w.conn, err = nft.Dial(0); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.conn.Close() })
	n.API.Set("nodes", node.NodeObject())
	n.API.Set("servicecidrs", node.ServiceCIDR())
	w.builder.SetNode(convert.Node(node.NodeObject()))
	w.builder.SetServiceCIDR(convert.ServiceCIDR(node.ServiceCIDR()))
	for i := range killServices {
		n.API.Set("services", node.Service(i))
		w.builder.SetService(convert.Service(node.Service(i)))
		w.change(i)
	}
	w.start()
	t.Cleanup(func() { w.agent.Kill() })
	w.settle()
	return w
}

func (w *killWorld) start() {
	var err error
	if w.agent, err = w.node.Agent(programs, "--service-proxy", "on"); err != nil {
		w.t.Fatal(err)
	}
}

// change gives a Service other endpoints.
func (w *killWorld) change(i int) {
	var addrs []string
	if i < asked {
		addrs = slices.Clone(killServers)
		w.r.Shuffle(len(addrs), func(a, b int) { addrs[a], addrs[b] = addrs[b], addrs[a] })
		addrs = addrs[:1+w.r.IntN(len(addrs))]
	} else {
		for e := range 1 + w.r.IntN(12) {
			addrs = append(addrs, fmt.Sprintf("10.%d.%d.%d", 200+w.r.IntN(50), w.r.IntN(256), e))
		}
	}
	s := node.Slice(node.ServiceName(i), addrs)
	w.builder.SetSlice(convert.EndpointSlice(s))
	w.node.API.Set("endpointslices", s)
}

func (w *killWorld) changes(n int) {
	for range n {
		w.change(w.r.IntN(killServices))
	}
	for i := range asked {
		w.change(i)
	}
}

// kill kills the agent amid something, and says where it was.
func (w *killWorld) kill(kind string) string {
	before := w.node.Generation()
	within := uint32(1 + w.r.IntN(8)) // transactions until the kill
	switch kind {
	case "rebuild":
		// Others change our table: it is built anew beside. Their set is in the way of
		// nothing.
		if err := w.node.Do(func() error {
			w.version++
			out, err := exec.Command("nft", "add", "set", "ip", w.inForce().Name, fmt.Sprint("foreign", w.version), "{ type ipv4_addr; }").CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}); err != nil {
			w.t.Fatal(err)
		}
		before++
		within = uint32(1 + w.r.IntN(24))
	case "burst":
		w.changes(killServices)
	case "start":
		w.agent.Kill()
		w.changes(killServices)
		w.start()
	case "single":
		w.changes(1 + w.r.IntN(20))
		within = uint32(w.r.IntN(3))
	}
	for deadline := time.Now().Add(5 * time.Second); w.node.Generation()-before < within && time.Now().Before(deadline); {
	}
	at := time.Now()
	w.agent.Kill()
	return w.where(w.node.Generation()-before, at)
}

// where says what the kernel is left with.
func (w *killWorld) where(transactions uint32, at time.Time) string {
	stamp := fmt.Sprintf("%d transactions, at %s", transactions, at.Format("15:04:05.000000"))
	tables, err := w.conn.Tables()
	if err != nil {
		w.t.Fatal(err)
	}
	var ours []string
	for _, t := range tables {
		if strings.HasPrefix(t.Name, nftables.Names[0]) && t.Family == nft.IPv4 {
			ours = append(ours, t.Name)
		}
	}
	forced, err := apply.InForce(w.conn, nft.IPv4)
	if err != nil {
		w.t.Fatal(err)
	}
	switch wrong := w.wrong(); {
	case len(forced) > 1:
		return "between the two transactions of a swap: " + stamp
	case len(ours) > 1:
		return "amid a table built beside: " + stamp
	case wrong != "" && transactions > 0:
		return "between transactions of one change: " + stamp + ", still to do: " + wrong
	case wrong != "":
		return "outside: before the first transaction: " + stamp
	}
	return "outside: after the last transaction: " + stamp
}

func (w *killWorld) inForce() nft.Table {
	forced, err := apply.InForce(w.conn, nft.IPv4)
	if err != nil || len(forced) != 1 {
		w.t.Fatalf("tables in force: %v, %v; want one", forced, err)
	}
	return forced[0]
}

// settle waits until the kernel is as the plan says.
func (w *killWorld) settle() {
	w.t.Helper()
	waitLog(w.t, w.agent, "synced")
	wrong := "?"
	for deadline := time.Now().Add(30 * time.Second); wrong != "" && time.Now().Before(deadline); {
		if err := w.agent.Ended(); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		wrong = w.wrong()
	}
	if wrong != "" {
		w.t.Fatalf("30 s after a start the kernel is not as planned: %s", wrong)
	}
}

// wrong says in what the kernel differs from the plan of the API's objects; "" is in
// nothing.
func (w *killWorld) wrong() string {
	want := proxy.CompileAll(w.builder.Publish(), proxy.Config{Node: node.Name})
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		lines, err := apply.Differences(w.conn, f, want, nil)
		if err != nil || len(lines) > 0 {
			return fmt.Sprintf("%d lines, %v: %.60s", len(lines), err, strings.Join(lines, "; "))
		}
	}
	forced, err := apply.InForce(w.conn, nft.IPv4)
	if err != nil || len(forced) != 1 {
		return fmt.Sprintf("tables in force: %v, %v", forced, err)
	}
	tables, err := w.conn.Tables()
	if err != nil {
		return err.Error()
	}
	for _, t := range tables {
		if t.Family == nft.IPv4 && strings.HasPrefix(t.Name, nftables.Names[0]) && t != forced[0] {
			return "a table is left: " + t.String()
		}
	}
	return w.wrongEndpoints(want, forced[0])
}

// wrongEndpoints compares the map of endpoints, which a start does not read, element
// by element: slots without a gap, and as many as there are endpoints.
func (w *killWorld) wrongEndpoints(want *proxy.Table, table nft.Table) string {
	elements, err := w.conn.Elements(nftables.NewRuleset(nft.IPv4, table.Name).Endpoints)
	if err != nil {
		return err.Error()
	}
	have := map[string][]string{} // frontend → endpoints, as bytes
	slots := map[string]bool{}
	for _, e := range elements {
		n := len(e.Key) - 4
		have[string(e.Key[:n])] = append(have[string(e.Key[:n])], string(e.Data))
		slots[string(e.Key)] = true
	}
	for _, e := range want.Services.All() {
		p := e.Ports[0]
		key := string(nft.Concat(nil).Addr(p.Frontends[0].Addr.Addr()).Proto(uint8(p.Protocol)).Port(p.Frontends[0].Addr.Port()))
		var to []string
		for _, b := range p.Endpoints[0].Cluster {
			to = append(to, string(nft.Concat(nil).Addr(b.Addr()).Port(b.Port())))
		}
		slices.Sort(to)
		slices.Sort(have[key])
		if !slices.Equal(have[key], to) {
			return fmt.Sprintf("%s has %d endpoints in the kernel, not the %d planned", e.Key, len(have[key]), len(to))
		}
		for slot := range to {
			if !slots[string(nft.Concat(key).Mark(uint32(slot)))] {
				return fmt.Sprintf("%s has no slot %d", e.Key, slot)
			}
		}
		delete(have, key)
	}
	if len(have) > 0 {
		return fmt.Sprintf("endpoints of %d frontends that nobody has", len(have))
	}
	return ""
}
