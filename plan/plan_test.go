package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/proxy/nftables"
)

// update is one change of one object; applying it again changes nothing.
type update func(*cluster.Builder)

// history makes random updates. Each object is changed by its own updates alone,
// so updates of different objects may be exchanged.
type history struct {
	*rand.Rand
	updates map[string][]update // by object
}

func newHistory(seed uint64, n int) history {
	h := history{rand.New(rand.NewPCG(seed, 7)), map[string][]update{}}
	for range n {
		i := h.IntN(6)
		switch h.IntN(4) {
		case 0:
			h.node(i)
		case 1:
			h.service(i)
		default:
			h.slice(i)
		}
	}
	return h
}

func (h history) add(object string, u update) { h.updates[object] = append(h.updates[object], u) }

func (h history) node(i int) {
	name := fmt.Sprintf("n%d", i)
	gone, other := h.IntN(4) == 0 && i > 0, h.IntN(2)
	h.add("node "+name, func(b *cluster.Builder) {
		if gone {
			b.DeleteNode(name)
			return
		}
		b.SetNode(&cluster.Node{
			Key:       cluster.Key{Name: name},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(other), byte(i + 1)})},
			PodCIDRs:  []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", 1+other, i))},
		})
	})
}

func (h history) service(i int) {
	key := cluster.Key{Namespace: "default", Name: fmt.Sprintf("s%d", i)}
	gone, port := h.IntN(4) == 0, uint16(80+h.IntN(2))
	outside, local, affinity := h.IntN(2) == 0, h.IntN(2) == 0, h.IntN(3) == 0
	h.add("service "+key.Name, func(b *cluster.Builder) {
		if gone {
			b.DeleteService(key)
			return
		}
		s := &cluster.Service{
			Key: key, Type: cluster.ClusterIP, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(i + 1)})},
			Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: port}}, InternalLocal: local,
		}
		if outside {
			s.Type, s.ExternalLocal = cluster.LoadBalancer, local
			s.Ports[0].NodePort = uint16(30000 + i%4)
			s.LoadBalancerIPs = []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}
		}
		if affinity {
			s.Affinity = 60
		}
		b.SetService(s)
	})
}

func (h history) slice(i int) {
	svc := fmt.Sprintf("s%d", i)
	key := cluster.Key{Namespace: "default", Name: fmt.Sprintf("%s-%d", svc, h.IntN(2))}
	gone, n := h.IntN(4) == 0, h.IntN(4)
	h.add("slice "+key.Name, func(b *cluster.Builder) {
		if gone {
			b.DeleteSlice(key)
			return
		}
		s := &cluster.EndpointSlice{Key: key, Service: svc, Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 8080}}}
		for j := range n {
			s.Endpoints = append(s.Endpoints, cluster.Endpoint{Address: netip.AddrFrom4([4]byte{10, 1, byte(i), byte(j + 2)}), Ready: true, Serving: true, Node: fmt.Sprintf("n%d", j)})
		}
		b.SetSlice(s)
	})
}

// play gives the updates in a random order that keeps each object's own, some of
// them twice, and publishes at random moments; see is told every Snapshot.
func (h history) play(seed uint64, see func(*cluster.Snapshot)) {
	r := rand.New(rand.NewPCG(seed, 8))
	left := map[string][]update{}
	for object, us := range h.updates {
		left[object] = us
	}
	b := cluster.NewBuilder()
	for len(left) > 0 {
		objects := make([]string, 0, len(left))
		for o := range left {
			objects = append(objects, o)
		}
		slices.Sort(objects)
		o := objects[r.IntN(len(objects))]
		for range 1 + r.IntN(2) {
			left[o][0](b)
		}
		if left[o] = left[o][1:]; len(left[o]) == 0 {
			delete(left, o)
		}
		if r.IntN(3) == 0 {
			see(b.Publish())
		}
	}
	see(b.Publish())
}

func input(s *cluster.Snapshot) Input {
	return Input{
		Node: "n0", Overlay: overlay.Config{Mode: overlay.Auto, Cluster: "test"}, Snapshot: s,
		Underlay: link.Underlay{Device: "eth0", MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.0.1/24")}},
		Pods:     []overlay.Pod{{Link: "pl0", MAC: link.MAC{2}, Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.2")}}},
	}
}

// somePods are random ones, of which a link may have another pod the next time.
func somePods(r *rand.Rand) (pods []overlay.Pod) {
	for i := range byte(4) {
		if r.IntN(2) == 0 {
			continue
		}
		p := overlay.Pod{Link: fmt.Sprintf("pl%d", i), MAC: link.MAC{2, byte(r.IntN(2))}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(1 + r.IntN(2)), 0, 2 + i})}}
		if r.IntN(3) == 0 {
			p.MTU, p.FromPod = 1400, link.Shape{Rate: 1000, Burst: 1000}
		}
		pods = append(pods, p)
	}
	return pods
}

// text is the whole plan as a user sees it.
func text(t *testing.T, p *Plan) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(p.Link.String())
	for _, r := range p.Guard {
		b.WriteString(r.Tx().String())
	}
	fmt.Fprintln(&b, p.PodAddrs, p.Base.PodMTU)
	for _, peer := range p.Base.Peers {
		fmt.Fprintln(&b, peer.Node.Name, peer.PodCIDRs)
	}
	_, err := nftables.Load(nftables.NewRuleset(nft.IPv4, nftables.Names[0]), p.Table, p.PodAddrs, nil, func(tx *nft.Tx) error {
		b.WriteString(tx.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range p.Problems {
		b.WriteString(problem.String() + "\n")
	}
	return b.String()
}

// Any order, split or repetition of the same updates gives the same plan, and
// the incremental compile equals the whole one after every step.
func TestCompile_orderSplitRepetition(t *testing.T) {
	for seed := range uint64(40) {
		h := newHistory(seed, 40)
		var want string
		for variant := range uint64(6) {
			var p *Plan
			r := rand.New(rand.NewPCG(seed, variant))
			h.play(seed*100+variant, func(s *cluster.Snapshot) {
				for range 1 + r.IntN(2) { // pods come and go beside
					in := input(s)
					in.Pods = somePods(r)
					if p == nil {
						p = CompileAll(in)
					} else {
						p = Compile(p, in)
					}
					if got, whole := text(t, p), text(t, CompileAll(in)); got != whole {
						t.Fatalf("seed %d, variant %d: incremental:\n%s\nwhole:\n%s", seed, variant, got, whole)
					}
				}
			})
			got := text(t, Compile(p, input(p.Snapshot)))
			if variant == 0 {
				want = got
			}
			if got != want {
				t.Fatalf("seed %d: variant %d gives another plan:\n%s\nthan variant 0:\n%s", seed, variant, got, want)
			}
		}
		if want == "" {
			t.Fatalf("seed %d: an empty plan", seed)
		}
	}
}

// What does not concern the overlay leaves its state alone, by pointer.
func TestCompile_sharesTheOverlay(t *testing.T) {
	b := cluster.NewBuilder()
	h := newHistory(1, 0)
	h.node(0)
	h.updates["node n0"][0](b)
	p := CompileAll(input(b.Publish()))
	b.SetService(&cluster.Service{
		Key: cluster.Key{Namespace: "default", Name: "new"}, Type: cluster.ClusterIP,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.9")}, Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}},
	})
	next := Compile(p, input(b.Publish()))
	if next.Link != p.Link {
		t.Error("a new Service made a new overlay state")
	}
	if next.Table.Services.Len() != 1 {
		t.Errorf("%d Services in the table, want 1", next.Table.Services.Len())
	}
	in := input(b.Publish())
	in.Pods = append(in.Pods, overlay.Pod{Link: "pl1", MAC: link.MAC{2}, Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.3")}})
	if pod := Compile(next, in); pod.Base != next.Base || &pod.Guard[0] != &next.Guard[0] || pod.Link == next.Link {
		t.Error("a new pod made more than the links anew, or not these")
	}
	in.Underlay.MTU = 1400
	if Compile(next, in).Link == next.Link {
		t.Error("another MTU of the underlay did not make a new overlay state")
	}
}
