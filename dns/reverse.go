package dns

import (
	"net/netip"
	"strings"
)

const (
	arpa4 Name = "\x07in-addr\x04arpa\x00"
	arpa6 Name = "\x03ip6\x04arpa\x00"
)

// reverseZone says whether a name is in one of the zones of addresses.
func reverseZone(n Name) bool {
	return strings.HasSuffix(string(n), string(arpa4)) || strings.HasSuffix(string(n), string(arpa6))
}

// reverseAddr reads the address of a name such as 1.0.3.10.in-addr.arpa (RFC
// 1035, section 3.5; RFC 3596, section 2.5).
func reverseAddr(n Name) (netip.Addr, bool) {
	if strings.HasSuffix(string(n), string(arpa4)) {
		return reverse4(n)
	}
	if strings.HasSuffix(string(n), string(arpa6)) && len(n) == 64+len(arpa6) {
		return reverse6(n)
	}
	return netip.Addr{}, false
}

func reverse4(n Name) (netip.Addr, bool) {
	var b [4]byte
	for i := 3; i >= 0; i-- {
		label, rest := n.cut()
		v, ok := octet(label)
		if !ok {
			return netip.Addr{}, false
		}
		b[i], n = v, rest
	}
	return netip.AddrFrom4(b), n == arpa4
}

// octet reads a decimal of 0 to 255 without leading zeros.
func octet(s string) (byte, bool) {
	if s == "" || len(s) > 3 || (len(s) > 1 && s[0] == '0') {
		return 0, false
	}
	v := 0
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, false
		}
		v = v*10 + int(s[i]-'0')
	}
	return byte(v), v <= 255
}

func reverse6(n Name) (netip.Addr, bool) {
	var b [16]byte
	for i := range 32 {
		v := strings.IndexByte("0123456789abcdef", n[2*i+1])
		if n[2*i] != 1 || v < 0 {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(v) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}
