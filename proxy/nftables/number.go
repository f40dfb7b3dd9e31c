package nftables

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/podlane/podlane/kernel/nft"
)

// number is what the maps have for a frontend: which chain a new connection goes
// to. Its low bits are a number of endpoints, its high bits say what sort of
// chain. So there are as many chains as there are different numbers of endpoints,
// for each sort, however many Services there are.
//
// The chains of a few Services do not follow from a count, since they have
// affinity or source ranges. These have numbers in a row, with the bit special.
type number uint32

// The bits of a number.
const (
	everyone  number = 1 << 24 // masquerade all clients, not only those that are no pod of the node
	local     number = 1 << 25 // endpoints of this node; for clients on this node see the maps inside
	nodePort  number = 1 << 26 // the frontend is a NodePort: no address is part of the keys
	forInside number = 1 << 27 // clients on this node, where the others go to chains of the bit local
	special   number = 1 << 28

	maxCount = int(everyone - 1)
)

// The numbers that need no chain of their own. What else has no endpoint goes
// to one of these.
const (
	refused number = 0
	dropped number = special
)

// sorts are the names of chains by the bits of their numbers.
var sorts = map[number]string{
	0: "lb", everyone: "external", local: "local",
	forInside: "inside", nodePort | forInside: "nodeport-inside",
	nodePort: "nodeport-lb", nodePort | everyone: "nodeport-external", nodePort | local: "nodeport-local",
}

func (n number) count() int { return int(n) & maxCount }

// plain says that the number has a chain that follows from the number.
func (n number) plain() bool {
	return n&special == 0 && (n.count() > 0 || n&local != 0)
}

// chain is the name of the chain of a plain number, and that which refuses.
func (n number) chain() string {
	if n == refused {
		return refuse
	}
	return fmt.Sprintf("%s%d", sorts[n&^number(maxCount)], n.count())
}

// numberOf gives the plain number of a chain, or false for another chain.
func numberOf(chain string) (number, bool) {
	name := strings.TrimRight(chain, "0123456789")
	count, err := strconv.Atoi(chain[len(name):])
	for bits, sort := range sorts {
		if n := bits | number(count); err == nil && count <= maxCount && sort == name && n.plain() && n.chain() == chain {
			return n, true
		}
	}
	return 0, false
}

// mark gives the number as data or key of a map.
func (n number) mark() nft.Concat { return nft.Concat(nil).Mark(uint32(n)) }

// parse reads a number back.
func parse(b []byte) (number, bool) {
	if len(b) != 4 {
		return 0, false
	}
	return number(binary.NativeEndian.Uint32(b)), true
}
