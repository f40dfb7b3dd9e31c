package nft

import (
	"fmt"
	"net"
	"net/netip"
)

// InMasked matches where the first bits of a field, which is an address, are in the
// set: prefixes of one length as a set of plain addresses.
func InMasked(s Set, f Field, bits int) Part {
	mask := []byte(net.CIDRMask(bits, f.size*8))
	m, _ := netip.AddrFromSlice(mask)
	return Part{fmt.Sprintf("%s & %s == @%s", f.Text, m, s.Name), []op{
		f.load(reg32),
		{"bitwise", attrs(nil).u32(1, reg32).u32(2, reg32).u32(3, uint32(f.size)).value(4, mask).value(5, make([]byte, f.size))},
		{"lookup", attrs(nil).str(1, s.Name).u32(2, reg32)},
	}}
}
