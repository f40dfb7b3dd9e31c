package link

import (
	"net/netip"
	"sync"
)

// known is what a Handle does, of which the kernel tells everybody without saying by
// whom it was done, so that its own Watch need not take it for others' changes.
type known struct {
	mu sync.Mutex
	// made are links of AddPod, until the kernel has told that they are up.
	made map[string]Link
	// gone are links that Apply deletes, by index, until the kernel has told of it: what
	// is on them goes before.
	gone map[int]bool
	// addrs are the IPv6 addresses that Apply has put on links: the kernel tells of them
	// later, when it has looked for duplicates, or has seen that it need not.
	addrs map[knownAddr]bool
	// added are the links that AddPod has made since they were last asked for.
	added []string
}

type knownAddr struct {
	index int
	addr  netip.Addr
}

func newKnown() *known {
	return &known{made: map[string]Link{}, gone: map[int]bool{}, addrs: map[knownAddr]bool{}}
}

func (k *known) make(name string, l Link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.made[name] = l
	k.added = append(k.added, name)
}

// Added gives the host's ends that AddPod has made, or tried to make, since the last call. Who
// believes such a link to be there already believes something of one that was there before.
func (h *Handle) Added() []string {
	h.known.mu.Lock()
	defer h.known.mu.Unlock()
	added := h.known.added
	h.known.added = nil
	return added
}

// clear ends all that is known: the kernel may have told of it to nobody.
func (k *known) clear() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.made)
	clear(k.gone)
	clear(k.addrs)
}

func (k *known) unmake(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.made, name)
}

// isMade says that a link, new or changed, is as AddPod makes it.
func (k *known) isMade(d device) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	want, is := k.made[d.name]
	want.Down = d.Down
	if !is || !d.ours() || d.Link != want {
		return false
	}
	if !d.Down {
		delete(k.made, d.name)
	}
	return true
}

func (k *known) delete(index int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone[index] = true
}

func (k *known) undelete(index int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.gone, index)
}

// isGone says that what is on a link goes since Apply deletes it.
func (k *known) isGone(index int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gone[index]
}

// forget ends what is known of a link: the kernel has told that it is deleted.
func (k *known) forget(d device) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.gone, d.index)
	delete(k.made, d.name)
	for a := range k.addrs {
		if a.index == d.index {
			delete(k.addrs, a)
		}
	}
}

// put notes an address that Apply puts on a link, until unput, and hasPut tells it.
func (k *known) put(index int, a netip.Addr) {
	if !a.Is6() {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.addrs[knownAddr{index, a}] = true
}

func (k *known) unput(index int, a netip.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.addrs, knownAddr{index, a})
}

func (k *known) hasPut(index int, a netip.Addr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.addrs[knownAddr{index, a}]
}
