package agent

import (
	"context"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/overlay/fastpath"
)

func TestNormalPods(t *testing.T) {
	b := cluster.NewBuilder()
	for name, why := range map[string]string{"plain": "", "careful": "opt-out", "slow": "bandwidth"} {
		b.SetPod(&cluster.Pod{Key: cluster.Key{Namespace: "a", Name: name}, Node: "n1", NormalPath: why})
	}
	var allocations []cni.Allocation
	for _, k := range []cluster.Key{{Namespace: "a", Name: "plain"}, {Namespace: "a", Name: "careful"}, {Namespace: "a", Name: "slow"}, {Namespace: "b", Name: "plain"}} {
		allocations = append(allocations, cni.Allocation{Namespace: k.Namespace, Pod: k.Name, Link: "pl-" + k.String()})
	}
	got := normalPods(b.Publish(), allocations, func(al cni.Allocation) bool { return al.Namespace == "b" })
	want := map[string]fastpath.Reason{"pl-a/careful": fastpath.OptOut, "pl-a/slow": fastpath.Bandwidth, "pl-b/plain": fastpath.Policy}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// listed are NetworkPolicies that the API server has told of, or has not yet.
type listed struct {
	all   []cluster.Key
	known bool
}

func (l listed) Run(context.Context) error          { return nil }
func (l listed) All() ([]cluster.Key, bool)         { return l.all, l.known }
func (l listed) Speak(bool)                         {}
func onFastPath(a netip.Addr) func(netip.Addr) bool { return func(b netip.Addr) bool { return a == b } }

// Before the policies are known, the pods that take the fast path go on, and no
// other joins: somebody else may enforce one where the fast path goes past.
func TestPoliced(t *testing.T) {
	was, other := netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.1.3")
	for name, test := range map[string]struct {
		policies   Policies
		was, other bool
	}{
		"not followed": {nil, false, false},
		"not known":    {listed{}, false, true},
		"none":         {listed{known: true}, false, false},
		"elsewhere":    {listed{[]cluster.Key{{Namespace: "b", Name: "p"}}, true}, false, false},
		"here":         {listed{[]cluster.Key{{Namespace: "a", Name: "p"}}, true}, true, true},
	} {
		is := policed(test.policies, onFastPath(was))
		for addr, want := range map[netip.Addr]bool{was: test.was, other: test.other} {
			if got := is(cni.Allocation{Namespace: "a", Addrs: []netip.Addr{addr}}); got != want {
				t.Errorf("%s: %s: %v, want %v", name, addr, got, want)
			}
		}
	}
}

func TestAgain(t *testing.T) {
	for _, test := range []struct {
		failures []int
		wait     time.Duration
		failed   bool
	}{
		{[]int{0, 0, 0}, 0, false}, {[]int{0, 0, 1}, 200 * time.Millisecond, true}, {[]int{9, 0, 2}, 400 * time.Millisecond, true}, {[]int{0, 99, 0}, 10 * time.Second, true},
	} {
		if wait, failed := again(test.failures...); wait != test.wait || failed != test.failed {
			t.Errorf("%v: %v, %v", test.failures, wait, failed)
		}
	}
}
