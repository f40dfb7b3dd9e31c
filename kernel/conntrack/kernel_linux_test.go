package conntrack

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
)

// tracked gives a namespace whose loopback flows are tracked.
func tracked(t *testing.T) *Conn {
	t.Helper()
	nettest.New(t)
	nettest.Run(t, "ip", "addr", "add", "fd00::1/128", "dev", "lo", "nodad")
	for range 200 { // the kernel makes the address's local route in a work queue
		if strings.Contains(nettest.Run(t, "ip", "-6", "route", "show", "table", "local"), "fd00::1") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	nettest.Run(t, "nft", "add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o ct state new accept")
	c, err := Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// send sends one datagram, or opens and closes one TCP connection, and gives the
// flow's first direction.
func send(t *testing.T, network, to string) Tuple {
	t.Helper()
	conn, err := net.Dial(network, to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	return Tuple{netip.MustParseAddrPort(conn.LocalAddr().String()), netip.MustParseAddrPort(to)}
}

func listenUDP(t *testing.T, addr string) {
	t.Helper()
	l, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

func listenTCP(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

func flows(t *testing.T, c *Conn, v6 bool) map[Tuple]Flow {
	t.Helper()
	all := map[Tuple]Flow{}
	if err := c.Each(unix.IPPROTO_UDP, v6, func(f Flow) { all[f.Orig] = f }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestEach_protocolAndFamily(t *testing.T) {
	c := tracked(t)
	listenUDP(t, "127.0.0.1:5000")
	listenUDP(t, "[fd00::1]:5000")
	listenTCP(t, "127.0.0.1:5000")
	four, six := send(t, "udp", "127.0.0.1:5000"), send(t, "udp", "[fd00::1]:5000")
	send(t, "tcp", "127.0.0.1:5000")
	for _, unfiltered := range []bool{false, true} {
		c.unfiltered = unfiltered
		for v6, want := range map[bool]Tuple{false: four, true: six} {
			got := flows(t, c, v6)
			f, ok := got[want]
			if !ok || len(got) != 1 || f.Reply.Src != want.Dst || f.Reply.Dst != want.Src || f.ID == 0 {
				t.Errorf("unfiltered %v, IPv6 %v: %v, want %v alone", unfiltered, v6, got, want)
			}
		}
	}
}

// TestEach_kernelFilters counts what the kernel sends, since Each itself leaves
// out what is not asked for.
func TestEach_kernelFilters(t *testing.T) {
	c := tracked(t)
	listenUDP(t, "127.0.0.1:5000")
	listenTCP(t, "127.0.0.1:5000")
	send(t, "udp", "127.0.0.1:5000")
	for range 5 {
		send(t, "tcp", "127.0.0.1:5000")
	}
	n := 0
	err := c.request(msgGet, unix.NLM_F_DUMP, false, filterOf(unix.IPPROTO_UDP), func([]byte) { n++ })
	if err == unix.EINVAL || err == unix.EOPNOTSUPP {
		t.Skip("this kernel has no CTA_FILTER")
	}
	if err != nil || n != 1 {
		t.Errorf("the kernel sent %d flows, %v; there is one of UDP", n, err)
	}
}

func TestEach_many(t *testing.T) {
	c := tracked(t)
	listenUDP(t, "127.0.0.1:5000")
	want := map[Tuple]bool{}
	for range 3000 {
		want[send(t, "udp", "127.0.0.1:5000")] = true
	}
	got := flows(t, c, false)
	for w := range want {
		if _, ok := got[w]; !ok {
			t.Fatalf("%s is missing among %d", w, len(got))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d flows, want %d", len(got), len(want))
	}
}

func TestDelete(t *testing.T) {
	c := tracked(t)
	listenUDP(t, "127.0.0.1:5000")
	listenUDP(t, "[fd00::1]:5000")
	for _, to := range []string{"127.0.0.1:5000", "[fd00::1]:5000"} {
		v6 := strings.HasPrefix(to, "[")
		away, stays := send(t, "udp", to), send(t, "udp", to)
		f := flows(t, c, v6)[away]
		other := f
		other.ID++
		if err := c.Delete(other); err != nil {
			t.Fatal(err)
		}
		if _, ok := flows(t, c, v6)[away]; !ok {
			t.Fatalf("%s: deleted by another flow's ID", away)
		}
		for range 2 { // the second time it is gone already
			if err := c.Delete(f); err != nil {
				t.Fatal(err)
			}
		}
		left := flows(t, c, v6)
		if _, ok := left[stays]; !ok || len(left) != 1 {
			t.Errorf("left: %v, want %v alone", left, stays)
		}
	}
}

// TestEach_translated sees what the program conntrack sees of a flow through DNAT.
func TestEach_translated(t *testing.T) {
	c := tracked(t)
	nettest.Run(t, "nft", "add chain inet t n { type nat hook output priority -100; }; add rule inet t n ip daddr 10.96.0.10 udp dport 53 dnat ip to 127.0.0.1:5000")
	nettest.Run(t, "ip", "route", "add", "10.96.0.0/16", "dev", "lo")
	listenUDP(t, "127.0.0.1:5000")
	sent := send(t, "udp", "10.96.0.10:53")
	f, ok := flows(t, c, false)[sent]
	if !ok || f.Reply.Src.String() != "127.0.0.1:5000" {
		t.Fatalf("flows: %v, want %v answered by 127.0.0.1:5000", flows(t, c, false), sent)
	}
	if _, err := exec.LookPath("conntrack"); err != nil {
		return
	}
	text := nettest.Run(t, "conntrack", "-L", "-p", "udp", "-o", "id")
	want := fmt.Sprintf("sport=%d dport=53", sent.Src.Port())
	if !strings.Contains(text, want) || !strings.Contains(text, fmt.Sprintf("id=%d", f.ID)) {
		t.Errorf("conntrack prints %q, want %s and id=%d", text, want, f.ID)
	}
}

func TestLimits_raiseAndRestore(t *testing.T) {
	tracked(t)
	const name = "nf_conntrack_tcp_timeout_close_wait"
	before, err := readInt(sysctlDir + name)
	if err != nil || !writable(sysctlDir+name) {
		t.Skipf("%s cannot be set here: %v", name, err)
	}
	file := filepath.Join(t.TempDir(), "state", "sysctls.json")
	limits := Limits{Max: 1, HashSize: 1, Timeouts: map[string]int{name: before + 10, "nf_conntrack_tcp_timeout_established": 1, "no_such": 1}}
	for i := range 2 { // a second start changes nothing
		raised, err := limits.Raise(file)
		if now, _ := readInt(sysctlDir + name); err != nil || now != before+10 || len(raised) != 1-i {
			t.Fatalf("start %d: %v %v, now %d", i, raised, err, now)
		}
	}
	limits.Timeouts[name] += 10
	if _, err := limits.Raise(file); err != nil {
		t.Fatal(err)
	}
	if err := Restore(file); err != nil {
		t.Fatal(err)
	}
	if now, _ := readInt(sysctlDir + name); now != before {
		t.Errorf("after Restore: %d, was %d", now, before)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the file is still there")
	}
	if err := Restore(file); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestLimits_elsewhere: in a container /proc/sys is another folder. A record that a crash
// of the machine cut short is no reason to raise nothing.
func TestLimits_elsewhere(t *testing.T) {
	const name = "nf_conntrack_tcp_timeout_close_wait"
	proc := t.TempDir()
	path := filepath.Join(proc, "net/netfilter", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("60\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	raised, err := (Limits{Timeouts: map[string]int{name: 3600}, ProcSys: proc}).Raise(file)
	if now, _ := readInt(path); err != nil || len(raised) != 1 || now != 3600 {
		t.Errorf("%v %v, now %d", raised, err, now)
	}
}

func TestRestore_leavesWhatOthersSet(t *testing.T) {
	tracked(t)
	const name = "nf_conntrack_tcp_timeout_close_wait"
	before, err := readInt(sysctlDir + name)
	if err != nil || !writable(sysctlDir+name) {
		t.Skipf("%s cannot be set here: %v", name, err)
	}
	file := filepath.Join(t.TempDir(), "sysctls.json")
	if _, err := (Limits{Timeouts: map[string]int{name: before + 10}}).Raise(file); err != nil {
		t.Fatal(err)
	}
	if err := writeInt(sysctlDir+name, before+77); err != nil {
		t.Fatal(err)
	}
	if err := Restore(file); err != nil {
		t.Fatal(err)
	}
	if now, _ := readInt(sysctlDir + name); now != before+77 {
		t.Errorf("after Restore: %d, someone else had set %d", now, before+77)
	}
}

// TestLimits_machineWide: what is the whole machine's is not touched from a
// namespace, and that is no error.
func TestLimits_machineWide(t *testing.T) {
	tracked(t)
	size, _ := readInt(hashSize)
	raised, err := Limits{Max: 1 << 30, HashSize: 1 << 30}.Raise(filepath.Join(t.TempDir(), "f"))
	if after, _ := readInt(hashSize); err != nil || after != size {
		t.Fatalf("raised %v, %v; hashsize %d, was %d", raised, err, after, size)
	}
}

func TestLimitsFor(t *testing.T) {
	for cores, want := range map[int]int{1: 131072, 4: 131072, 8: 262144, 64: 1048576} {
		if l := LimitsFor(cores); l.Max != want || l.HashSize != want/4 {
			t.Errorf("%d cores: %d flows in %d buckets, want %d", cores, l.Max, l.HashSize, want)
		}
	}
}

func TestReadLevel(t *testing.T) {
	tracked(t)
	listenUDP(t, "127.0.0.1:5000")
	send(t, "udp", "127.0.0.1:5000")
	if l, err := ReadLevel(); err != nil || l.Count < 1 || l.Max < l.Count {
		t.Errorf("%+v, %v", l, err)
	}
}
