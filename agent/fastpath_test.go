package agent

import (
	"maps"
	"testing"

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
	got := normalPods(b.Publish(), allocations, map[string]bool{"b": true})
	want := map[string]fastpath.Reason{"pl-a/careful": fastpath.OptOut, "pl-a/slow": fastpath.Bandwidth, "pl-b/plain": fastpath.Policy}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
