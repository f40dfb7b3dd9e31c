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

// legacyChains finds a chain where iptables is the old one.
func legacyChains(table, chain string) ([]string, error) {
	var found []string
	for _, f := range []struct {
		family, names string
		domain, level int
	}{
		{"ip", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.IPPROTO_IP},
		{"ip6", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6},
	} {
		used, err := legacyTables(f.names, table)
		if err != nil {
			return nil, err
		}
		if !used {
			continue
		}
		data, err := legacyTable(f.domain, f.level, table)
		if err != nil {
			return nil, fmt.Errorf("iptables (legacy) table %s %s: %w", f.family, table, err)
		}
		if bytes.Contains(data, append([]byte(chain), 0)) {
			found = append(found, fmt.Sprintf("iptables (legacy) chain %s of table %s %s", chain, f.family, table))
		}
	}
	return found, nil
}

// legacyTable reads the kernel's form of a table, in which the names of chains
// stand as they are. A socket of UDP will do, and one of SOCK_RAW would need
// CAP_NET_RAW, which an agent has not.
func legacyTable(domain, level int, name string) ([]byte, error) {
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
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
