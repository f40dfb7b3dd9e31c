package nftables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
)

// ErrDoubt is a table that has not what it should have: build it anew with Load.
var ErrDoubt = errors.New("the table is not as it was left")

// Applied is what one table in the kernel is believed to have. It never changes:
// Diff gives the next one.
//
// A proxy.Table has no history, but the slots of the endpoints map do: where an
// endpoint sits depends on what was there before it, so that a change moves one
// slot and not all. Applied remembers that.
type Applied struct {
	rules  Ruleset
	table  cluster.Map[proxy.Entry] // the Table it was last brought to
	fronts cluster.Map[front]       // by the key of the element
	uses   map[number]int           // plain number → fronts that use it
	chains map[number]bool          // plain numbers whose chains exist
	// specials are the other chains, by name, and ends the endpoints with affinity.
	specials cluster.Map[specialChain]
	ends     cluster.Map[endChain]
	last     number // the last number given to a special chain
	pods     []netip.Addr
	// nodePorts and cidrs are Table.NodePorts and Table.ServiceCIDRs of the family.
	nodePorts, cidrs []netip.Prefix
	// contested are the fronts that more than one Service wants.
	contested cluster.Map[front]
	// adopted is what Adopt found, until the first Diff.
	adopted *adopted
}

// specialChain is a chain that does not follow from a number. It never changes.
type specialChain struct {
	number number
	uses   int      // by fronts
	ends   []string // the endpoints with affinity that it leads to, by id
}

// endChain is an endpoint with affinity, its chain and its set. It never changes.
type endChain struct {
	seconds uint32
	chains  int // special chains that lead to it
	live    int // of these, those in use
}

// front is an element of the maps services or nodeports, with its slots, or of
// the set of cluster IPs. It never changes.
type front struct {
	claims  []cluster.Key // the Services that want it, sorted: the first has it
	there   bool          // in the kernel
	comment string        // of the element in the kernel
	// to, sources and inside are what the element and those of the other maps have.
	to              ref
	sources, inside *ref
	// slots are the endpoints by slot, and local those from LocalSlot on. After
	// Adopt they are not known: nil while the counts are not 0.
	slots, local          []netip.AddrPort
	slotCount, localCount int
}

// ref is a goal as written.
type ref struct {
	number number
	name   string // of a special chain
}

// The fronts differ by the length of their keys.
func isClusterIP(k cluster.Key) bool { return len(k.Name) == 4 || len(k.Name) == 16 }
func isNodePort(k cluster.Key) bool  { return len(k.Name) == 8 }

// objects are the maps that a front is in.
func (r Ruleset) objects(k cluster.Key) (numbers, inside, endpoints nft.Set) {
	if isNodePort(k) {
		return r.NodePorts, r.NodePortInside, r.NodePortEndpoints
	}
	return r.Services, r.Inside, r.Endpoints
}

// Ruleset names the objects of the table.
func (a *Applied) Ruleset() Ruleset { return a.rules }

// Problems are the frontends that several Services want. They are few: this walks
// only them.
func (a *Applied) Problems() []cluster.Problem {
	var ps []cluster.Problem
	for key, f := range a.contested.All() {
		numbers, _, _ := a.rules.objects(key)
		text := numbers.ElementText(nft.Element{Key: []byte(key.Name)}, true)
		if isNodePort(key) {
			text = "node port " + text
		}
		for _, loser := range f.claims[1:] {
			ps = append(ps, cluster.Problem{Kind: "Service", Key: loser, Field: "spec.ports",
				Err: fmt.Sprintf("%s is already that of Service %s, which goes on having it", text, f.claims[0])})
		}
	}
	slices.SortFunc(ps, func(a, b cluster.Problem) int { return a.Key.Compare(b.Key) })
	return ps
}

// fresh is the Applied of a table that has just been made by skeleton.
func fresh(r Ruleset) *Applied {
	return &Applied{rules: r, uses: map[number]int{}, chains: map[number]bool{}, last: special}
}

// frontKey is the key of a frontend's element.
func frontKey(p cluster.Protocol, f proxy.Frontend) cluster.Key {
	buf := make(nft.Concat, 0, 24)
	if f.Kind != proxy.NodePort {
		buf = buf.Addr(f.Addr.Addr())
	}
	return cluster.Key{Name: string(buf.Proto(uint8(p)).Port(f.Addr.Port()))}
}

// addrKey is the key of a cluster IP.
func addrKey(a netip.Addr) cluster.Key { return cluster.Key{Name: string(nft.Concat(nil).Addr(a))} }
