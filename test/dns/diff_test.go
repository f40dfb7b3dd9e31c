// Package dns compares Podlane's DNS with CoreDNS on the same objects of a real
// kube-apiserver. It has no code that Podlane uses.
package dns

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/podlane/podlane/test/dns/peer"
)

var (
	seed      = flag.Uint64("seed", 1, "of the objects and the questions")
	questions = flag.Int("questions", 10000, "how many to ask")
	show      = flag.Int("show", 20, "how many kinds of unexplained differences to show")
)

var programs peer.Programs

func TestMain(m *testing.M) {
	flag.StringVar(&programs.Podlane, "podlane", "", "the program to test (default: this tree's)")
	flag.StringVar(&programs.CoreDNS, "coredns", "", "the CoreDNS to compare with (default: the version of go.mod)")
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped, for they need a control plane (-short): all tests of test/dns")
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "podlane-dns-")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	programs, err = programs.Build(ctx, dir)
	cancel()
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/dns:", err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// TestSame asks both servers the same random questions. Each difference must be
// one of wanted (wanted_test.go).
func TestSame(t *testing.T) {
	t.Run("insecure", func(t *testing.T) { same(t, peer.Setup{Pods: "insecure"}) })
	t.Run("verified", func(t *testing.T) { same(t, peer.Setup{Pods: "verified"}) })
	t.Run("endpoints", func(t *testing.T) { same(t, peer.Setup{Pods: "insecure", AllEndpoints: true}) })
}

func same(t *testing.T, setup peer.Setup) {
	ctx := t.Context()
	r := rand.New(rand.NewPCG(*seed, 7))
	api, err := peer.StartAPI(ctx, programs, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer api.Stop()
	objects := peer.Random(r)
	if err := api.Create(ctx, objects); err != nil {
		t.Fatal(err)
	}
	upstream, err := peer.StartUpstream()
	if err != nil {
		t.Fatal(err)
	}
	setup.Kubeconfig, setup.Upstream = api.Kubeconfig, upstream
	theirs, err := peer.StartCoreDNS(ctx, programs.CoreDNS, t.TempDir(), setup)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Kill()
	ours, err := peer.StartPodlane(ctx, programs.Podlane, t.TempDir(), setup)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Kill()
	compare(t, generate(r, objects, setup.AllEndpoints, *questions), ours.Addr, theirs.Addr)
}

// compare asks everything, some questions at a time.
func compare(t *testing.T, all []ask, ours, theirs string) {
	explained := map[string]int{}
	unexplained := map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan ask)
	for range 16 {
		wg.Go(func() {
			for q := range next {
				o, c := q.send(ours), q.send(theirs)
				if o.same(c) {
					continue
				}
				why := explain(q, o, c)
				mu.Lock()
				if explained[why]++; why == "" {
					kind := fmt.Sprint(len(dns.SplitDomainName(q.name)), q.typ, q.broken, q.class, q.kind, o.code, c.code, len(o.answer) > len(c.answer), len(o.answer) < len(c.answer))
					unexplained[kind]++
					if unexplained[kind] == 1 && len(unexplained) <= *show {
						t.Errorf("unexplained: %s\n--- ours\n%s--- CoreDNS\n%s", q, o, c)
					}
				}
				mu.Unlock()
			}
		})
	}
	for _, q := range all {
		next <- q
	}
	close(next)
	wg.Wait()
	if n := explained[""]; n > 0 {
		t.Errorf("%d differences are not explained", n)
	}
	t.Logf("%d questions", len(all))
	for _, w := range wanted {
		t.Logf("%6d  %s", explained[w.why], w.why)
	}
}

// reply is what came back, in a form to compare: every record as a line, sorted.
type reply struct {
	silent             bool
	code               int
	flags              string
	answer, ns, extra  []string
	truncated, invalid bool
}

func (r reply) same(o reply) bool {
	if r.truncated && o.truncated {
		return r.code == o.code // how much fits is each one's own
	}
	return r.silent == o.silent && r.code == o.code && r.flags == o.flags && !r.invalid && !o.invalid &&
		slices.Equal(r.answer, o.answer) && slices.Equal(r.ns, o.ns) && slices.Equal(r.extra, o.extra)
}

func (r reply) String() string {
	if r.silent {
		return "silence\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s\n", dns.RcodeToString[r.code], r.flags)
	for i, l := range [][]string{r.answer, r.ns, r.extra} {
		for _, s := range l {
			fmt.Fprintf(&b, "%s%s\n", []string{"", "; authority ", "; additional "}[i], s)
		}
	}
	return b.String()
}

// read makes a reply of a message.
func read(b []byte) reply {
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		return reply{invalid: true}
	}
	r := reply{code: m.Rcode, truncated: m.Truncated}
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Authoritative, " AA"}, {m.Truncated, " TC"}, {m.RecursionDesired, " RD"}, {m.CheckingDisabled, " CD"}, {m.IsEdns0() != nil, " EDNS"}} {
		if f.set {
			r.flags += f.name
		}
	}
	r.answer, r.ns, r.extra = lines(m.Answer), lines(m.Ns), lines(m.Extra)
	return r
}

func lines(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		switch x := rr.(type) {
		case *dns.OPT:
			continue
		case *dns.SOA:
			x.Serial = 0
		}
		if h := rr.Header(); h.Ttl > 30 && h.Ttl < peer.OutsideTTL {
			h.Ttl = peer.OutsideTTL // it has been in the cache
		}
		out = append(out, strings.ToLower(strings.ReplaceAll(rr.String(), "\t", " ")))
	}
	slices.Sort(out)
	return out
}
