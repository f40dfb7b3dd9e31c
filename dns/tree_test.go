package dns

import (
	"math/rand/v2"
	"testing"

	"github.com/podlane/podlane/cluster"
)

// TestAnswer_tree: whether a name exists does not depend on the type asked for,
// and above a name that exists there is none that does not (RFC 8020). A name
// without records of a type has the SOA record instead.
func TestAnswer_tree(t *testing.T) {
	labels := []string{
		"_x", "_tcp", "_udp", "h0", "h1", "10-0-0-1", "10-0-0-2", "fd00--1", "s0", "s1", "s2", "s3",
		"ns0", "ns1", "ns2", "svc", "pod", "dns", "ns", "dns-version", "*", "",
	}
	existing := 0
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 2))
		b := cluster.NewBuilder()
		for range 60 {
			mutate(rng, b)
		}
		z := Compile(nil, b.Publish(), testConfig())
		for range 3000 {
			existing += checkUp(t, z, likelyName(rng, z, labels))
		}
	}
	if existing < 1000 {
		t.Errorf("only %d of the names tried exist: the test tests nothing", existing)
	}
}

// likelyName is a name that has the right label at each depth more often than
// not.
func likelyName(rng *rand.Rand, z *Zone, labels []string) Name {
	n := z.cfg.Domain
	for depth := range rng.IntN(7) {
		pick := labels[rng.IntN(len(labels))]
		if rng.IntN(4) > 0 {
			of := [][]string{{"svc", "svc", "pod", "dns"}, {"ns0", "ns1"}, {"s0", "s1", "s2", "s3", "10-0-0-1"},
				{"_tcp", "h0", "h1", "10-0-0-1"}, {"_x"}, {"_x"}, {"_x"}}[depth]
			pick = of[rng.IntN(len(of))]
		}
		if c := n.child(pick); c != "" {
			n = c
		}
	}
	return n
}

// checkUp checks a name and all above it, and gives 1 if the name exists.
func checkUp(t *testing.T, z *Zone, n Name) int {
	code := checkName(t, z, n)
	below := n
	for up := n; up != z.cfg.Domain && code == NoError; {
		_, up = up.cut()
		if checkName(t, z, up) != NoError {
			t.Fatalf("%s exists, %s above it does not", below, up)
		}
		below = up
	}
	if code == NoError {
		return 1
	}
	return 0
}

func checkName(t *testing.T, z *Zone, n Name) Code {
	t.Helper()
	var first Code
	for i, typ := range []Type{TypeA, TypeAAAA, TypeSRV, TypeTXT, TypeMX, TypeNS, TypeCNAME, TypeANY} {
		var a Answer
		z.Answer(Question{Name: n, Type: typ}, &a)
		if i == 0 {
			first = a.Code
		}
		if a.Code != first || a.Outside {
			t.Fatalf("%s: %s for %s, %s for A", n, a.Code, typ, first)
		}
		soa := len(a.Authority) == 1 && a.Authority[0].Type == TypeSOA
		if soa != (len(a.Answer) == 0) {
			t.Fatalf("%s %s: %d answers, SOA %v", n, typ, len(a.Answer), soa)
		}
	}
	return first
}
