package qperf

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Facts are conditions of one end that its figures depend on.
type Facts struct {
	Boot     string   `json:"boot"` // the kernel's boot id: two ends with the same one share a machine
	CPUs     int      `json:"cpus"`
	CPULimit float64  `json:"cpu_limit,omitempty"` // of the cgroup, in CPUs; 0 = none
	Governor string   `json:"governor,omitempty"`  // of CPU 0, where the machine tells
	Load     float64  `json:"load"`                // of the last minute
	Clock    string   `json:"clock,omitempty"`     // the kernel's clock source
	Device   string   `json:"device,omitempty"`    // that has the end's address
	Driver   string   `json:"driver,omitempty"`    // of it
	Speed    int      `json:"speed,omitempty"`     // of it in Mbit/s, where the driver tells; of a veth, which has none, it is left out
	MTU      int      `json:"mtu,omitempty"`       // of it, bytes
	Off      []string `json:"offloads_off,omitempty"`
	Floor    *Floor   `json:"floor,omitempty"` // of the client's end, where it was asked for
}

// BothFacts are those of both ends.
type BothFacts struct {
	Local  Facts `json:"local"`
	Remote Facts `json:"remote"`
}

// OneMachine tells whether both ends run on one kernel: CPU figures are then of both together.
func (b BothFacts) OneMachine() bool { return b.Local.Boot != "" && b.Local.Boot == b.Remote.Boot }

// ReadFacts reads those of this machine; device facts are of the one that has the address.
func ReadFacts(addr netip.Addr) Facts {
	f := Facts{
		Boot: line1("/proc/sys/kernel/random/boot_id"), CPUs: runtime.NumCPU(), CPULimit: cpuLimit(),
		Governor: line1("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
		Clock:    line1("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
	}
	first, _, _ := strings.Cut(line1("/proc/loadavg"), " ")
	f.Load, _ = strconv.ParseFloat(first, 64)
	if dev := deviceOf(addr); dev != nil {
		f.Device, f.MTU = dev.Name, dev.MTU
		f.Driver, f.Speed, f.Off = ethtool(dev.Name)
	}
	return f
}

func line1(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	return first
}

// cpuLimit is the smallest cpu.max of the process's cgroup (v2) as far up as it can see.
func cpuLimit() float64 {
	_, path, _ := strings.Cut(line1("/proc/self/cgroup"), "::")
	limit := 0.0
	for dir := filepath.Join("/sys/fs/cgroup", path); strings.HasPrefix(dir, "/sys/fs/cgroup"); dir = filepath.Dir(dir) {
		var quota, period float64
		if n, _ := fmt.Sscanf(line1(filepath.Join(dir, "cpu.max")), "%g %g", &quota, &period); n == 2 && period > 0 {
			if l := quota / period; limit == 0 || l < limit {
				limit = l
			}
		}
	}
	return limit
}

func deviceOf(addr netip.Addr) *net.Interface {
	devices, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for i, dev := range devices {
		addrs, _ := dev.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().WithZone("") == addr.WithZone("") {
				return &devices[i]
			}
		}
	}
	return nil
}

// Offloads whose absence shows in the figures, by the old ethtool requests that every driver
// answers (include/uapi/linux/ethtool.h).
var offloads = []struct {
	name    string
	request uint32
}{{"rx-checksum", 0x14}, {"tx-checksum", 0x16}, {"scatter-gather", 0x18}, {"tso", 0x1e}, {"gso", 0x23}, {"gro", 0x2b}}

// ethtool asks the device's driver.
func ethtool(dev string) (driver string, speed int, off []string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", 0, nil
	}
	defer unix.Close(fd)
	if info, err := unix.IoctlGetEthtoolDrvinfo(fd, dev); err == nil {
		driver = unix.ByteSliceToString(info.Driver[:])
	}
	if driver != "veth" { // which says 10 Gbit/s whatever it does
		speed = linkSpeed(fd, dev)
	}
	for _, o := range offloads {
		value := struct{ cmd, data uint32 }{cmd: o.request}
		if askEthtool(fd, dev, unsafe.Pointer(&value)) && value.data == 0 {
			off = append(off, o.name)
		}
	}
	return driver, speed, off
}

// linkSpeed is 0 where it is not known.
func linkSpeed(fd int, dev string) int {
	settings := struct { // struct ethtool_cmd
		cmd, supported, advertising uint32
		speed                       uint16
		_                           [6]uint8
		_, _                        uint32 // most packets before an interrupt
		speedHigh                   uint16
		_                           [2]uint8
		_                           [3]uint32
	}{cmd: unix.ETHTOOL_GSET}
	speed := 0
	if askEthtool(fd, dev, unsafe.Pointer(&settings)) {
		speed = int(int32(uint32(settings.speedHigh)<<16 | uint32(settings.speed)))
	}
	return max(speed, 0) // -1: unknown
}

func askEthtool(fd int, dev string, request unsafe.Pointer) bool {
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifreq.name[:unix.IFNAMSIZ-1], dev)
	ifreq.data = request
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	return e == 0
}

// Drops are packets that one end threw away during a test.
type Drops struct {
	Device uint64 `json:"device"` // by the device that has the end's address, both directions, errors included
	Socket uint64 `json:"socket"` // datagrams for which a receive buffer had no room, of the whole namespace
}

// BothDrops are those of both ends.
type BothDrops struct {
	Local  Drops `json:"local"`
	Remote Drops `json:"remote"`
}

// countDrops reads the counters as they are.
func countDrops(addr netip.Addr) (d Drops) {
	if dev := deviceOf(addr); dev != nil {
		d.Device = deviceDrops(dev.Name)
	}
	d.Socket = snmp("/proc/net/snmp", "Udp:", "RcvbufErrors") + snmp6("Udp6RcvbufErrors")
	return d
}

// since is what was added to the counters of d.
func (d Drops) since(addr netip.Addr) Drops {
	now := countDrops(addr)
	return Drops{Device: now.Device - min(d.Device, now.Device), Socket: now.Socket - min(d.Socket, now.Socket)}
}

// deviceDrops adds up errs and drop of both directions in /proc/net/dev.
func deviceDrops(dev string) (sum uint64) {
	text, _ := os.ReadFile("/proc/net/dev")
	for line := range strings.Lines(string(text)) {
		name, counters, ok := strings.Cut(line, ":")
		if fields := strings.Fields(counters); ok && strings.TrimSpace(name) == dev && len(fields) >= 12 {
			for _, i := range []int{2, 3, 10, 11} {
				n, _ := strconv.ParseUint(fields[i], 10, 64)
				sum += n
			}
		}
	}
	return sum
}

// snmp reads a value under its heading; each protocol has a line of names and a line of values.
func snmp(path, protocol, name string) uint64 {
	text, _ := os.ReadFile(path)
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if n == name && i < len(fields) {
				v, _ := strconv.ParseUint(fields[i], 10, 64)
				return v
			}
		}
	}
	return 0
}

func snmp6(name string) uint64 {
	text, _ := os.ReadFile("/proc/net/snmp6")
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == name {
			v, _ := strconv.ParseUint(fields[1], 10, 64)
			return v
		}
	}
	return 0
}
