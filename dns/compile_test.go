package dns

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/podlane/podlane/cluster"
)

// contents is all that a zone holds, in a form that can be compared.
func contents(z *Zone) map[string]any {
	m := map[string]any{}
	for k, v := range z.headless.All() {
		m["headless "+k.String()] = *v
	}
	for k, v := range z.owners.All() {
		m[fmt.Sprintf("owners %x", k.Name)] = *v
	}
	for k, v := range z.inhabited.All() {
		m["inhabited "+k.Name] = *v
	}
	for k, v := range z.pods.All() {
		m[fmt.Sprintf("pods %s %x", k.Namespace, k.Name)] = *v
	}
	return m
}

// TestCompile_incremental: after any history, the zone compiled from the one
// before is the zone compiled from nothing.
func TestCompile_incremental(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		cfg := testConfig()
		cfg.Pods = PodsVerified
		b, z := cluster.NewBuilder(), (*Zone)(nil)
		for step := range 60 {
			for range 1 + rng.IntN(4) {
				mutate(rng, b)
			}
			snap := b.Publish()
			z = Compile(z, snap, cfg)
			whole := Compile(nil, snap, cfg)
			if got, want := contents(z), contents(whole); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, step %d: incremental\n%v\nwhole\n%v", seed, step, got, want)
			}
			if z.snapshot != snap {
				t.Fatalf("seed %d, step %d: an old snapshot", seed, step)
			}
		}
		drain(b, z.snapshot)
		if left := contents(Compile(z, b.Publish(), cfg)); len(left) != 0 {
			t.Fatalf("seed %d: left when all is deleted: %v", seed, left)
		}
	}
}

// mutate makes one change; the few names and addresses make collisions likely.
func mutate(rng *rand.Rand, b *cluster.Builder) {
	k := cluster.Key{Namespace: fmt.Sprintf("ns%d", rng.IntN(2)), Name: fmt.Sprintf("s%d", rng.IntN(4))}
	switch rng.IntN(9) {
	case 0:
		b.DeleteService(k)
	case 1, 2, 3:
		b.SetService(randomService(rng, k))
	case 4:
		b.DeleteSlice(cluster.Key{Namespace: k.Namespace, Name: fmt.Sprintf("%s-%d", k.Name, rng.IntN(2))})
	case 5, 6:
		b.SetSlice(randomSlice(rng, k))
	case 7:
		b.SetPod(&cluster.Pod{Key: k, IPs: []netip.Addr{randomAddr(rng)}, Done: rng.IntN(3) == 0})
	case 8:
		b.DeletePod(k)
	}
}

func randomAddr(rng *rand.Rand) netip.Addr {
	if rng.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(5))})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(rng.IntN(5))})
}

func randomService(rng *rand.Rand, k cluster.Key) *cluster.Service {
	s := &cluster.Service{Key: k, Type: cluster.ClusterIP, PublishNotReadyAddresses: rng.IntN(3) == 0}
	switch rng.IntN(4) {
	case 0:
		s.Type, s.ExternalName = cluster.ExternalName, "example.com"
	case 1, 2:
		s.Headless = true
	default:
		s.ClusterIPs = []netip.Addr{randomAddr(rng), randomAddr(rng)}[:rng.IntN(3)]
	}
	return s
}

func randomSlice(rng *rand.Rand, k cluster.Key) *cluster.EndpointSlice {
	s := &cluster.EndpointSlice{
		Key: cluster.Key{Namespace: k.Namespace, Name: fmt.Sprintf("%s-%d", k.Name, rng.IntN(2))}, Service: k.Name,
		Ports: []cluster.EndpointPort{{Name: "x", Protocol: cluster.TCP, Port: uint16(rng.IntN(3))}},
	}
	for range rng.IntN(4) {
		e := cluster.Endpoint{Address: randomAddr(rng), Ready: rng.IntN(3) > 0}
		if rng.IntN(2) == 0 {
			e.Hostname = fmt.Sprintf("h%d", rng.IntN(3))
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func drain(b *cluster.Builder, s *cluster.Snapshot) {
	for k := range s.Services.All() {
		b.DeleteService(k)
	}
	for k := range s.Slices.All() {
		b.DeleteSlice(k)
	}
	for k := range s.Pods.All() {
		b.DeletePod(k)
	}
}

// TestCompile_order: the order of the objects does not matter.
func TestCompile_order(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	var want map[string]any
	for range 20 {
		services := map[int]*cluster.Service{}
		fixed := rand.New(rand.NewPCG(1, 1))
		for i := range 8 {
			k := cluster.Key{Namespace: "ns", Name: fmt.Sprintf("s%d", i)}
			services[i] = randomService(fixed, k)
		}
		b := cluster.NewBuilder()
		keys := rng.Perm(8)
		var z *Zone
		for _, i := range keys {
			b.SetService(services[i])
			if rng.IntN(2) == 0 {
				z = Compile(z, b.Publish(), testConfig())
			}
		}
		got := contents(Compile(z, b.Publish(), testConfig()))
		if want == nil {
			want = maps.Clone(got)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("order %v: %v, want %v", keys, got, want)
		}
	}
}

// TestCompile_serial: the serial grows with every change of the zone, and with
// nothing else.
func TestCompile_serial(t *testing.T) {
	b := buildObjects(t, "service a/b 10.0.0.1 80/TCP\nservice a/c 10.0.0.2 80/TCP\nslice a/c c 10.1.1.1")
	z := Compile(nil, b.Publish(), testConfig())
	if z.Serial() != 1 {
		t.Fatalf("first serial %d, want 1", z.Serial())
	}
	b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n"}})
	b.DeleteSlice(cluster.Key{Namespace: "a", Name: "c"}) // of a Service that is not headless
	if z = Compile(z, b.Publish(), testConfig()); z.Serial() != 1 {
		t.Errorf("serial %d after a change of no name, want 1", z.Serial())
	}
	b.DeleteService(cluster.Key{Namespace: "a", Name: "b"})
	if z = Compile(z, b.Publish(), testConfig()); z.Serial() != 2 {
		t.Errorf("serial %d after a Service went, want 2", z.Serial())
	}
	other := testConfig()
	other.TTL = 5
	if z = Compile(z, b.Publish(), other); z.cfg.TTL != 5 {
		t.Errorf("TTL %d after a change of settings, want 5", z.cfg.TTL)
	}
}

// BenchmarkCompile_one is one changed Service of 10,000.
func BenchmarkCompile_one(b *testing.B) {
	bd := manyServices(10000)
	z := Compile(nil, bd.Publish(), testConfig())
	var snaps [2]*cluster.Snapshot
	for i := range snaps {
		s := *z.snapshot.Services.Get(cluster.Key{Namespace: "ns-9", Name: "service-9"})
		s.UID = fmt.Sprint(i)
		bd.SetService(&s)
		snaps[i] = bd.Publish()
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		z = Compile(z, snaps[i%2], testConfig())
	}
}

// BenchmarkCompile_all is 10,000 Services with ten endpoints each.
func BenchmarkCompile_all(b *testing.B) {
	snap := manyServices(10000).Publish()
	b.ReportAllocs()
	for b.Loop() {
		Compile(nil, snap, testConfig())
	}
}
