package takeover

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The socket options of include/uapi/linux/netfilter_ipv4/ip_tables.h; those of
// ip6_tables.h have the same numbers.
const (
	soGetInfo    = 64
	soGetEntries = 65
	nameLength   = 32
	infoLength   = 84 // struct ipt_getinfo
	infoSize     = 80 // offset of its member size
	entriesHead  = 40 // of struct ipt_get_entries
)

// legacyRules finds the chains of the iptables mode where iptables is the old one.
func legacyRules() ([]string, error) {
	var found []string
	for _, f := range []struct {
		family, names string
		domain, level int
	}{
		{"ip", "/proc/net/ip_tables_names", unix.AF_INET, unix.IPPROTO_IP},
		{"ip6", "/proc/net/ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6},
	} {
		if !legacyTables(f.names) {
			continue
		}
		data, err := legacyTable(f.domain, f.level, "nat")
		if err != nil {
			return nil, fmt.Errorf("iptables (legacy) table %s nat: %w", f.family, err)
		}
		if bytes.Contains(data, append([]byte(entry), 0)) {
			found = append(found, fmt.Sprintf("iptables (legacy) chain %s of table %s nat", entry, f.family))
		}
	}
	return found, nil
}

// legacyTable reads the kernel's form of a table, in which the names of chains
// stand as they are.
func legacyTable(domain, level int, name string) ([]byte, error) {
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	info := make([]byte, infoLength)
	copy(info[:nameLength-1], name)
	if err := getsockopt(fd, level, soGetInfo, info); err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	size := binary.NativeEndian.Uint32(info[infoSize:])
	table := make([]byte, entriesHead+int(size))
	copy(table[:nameLength-1], name)
	binary.NativeEndian.PutUint32(table[nameLength:], size)
	if err := getsockopt(fd, level, soGetEntries, table); err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	return table, nil
}

// getsockopt is the system call with a buffer that goes in and out, which
// x/sys/unix does not offer.
func getsockopt(fd, level, option int, b []byte) error {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
