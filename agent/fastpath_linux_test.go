package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/bpf"
	"github.com/podlane/podlane/overlay/fastpath"
)

// Links to which no program can be attached do not keep the others waiting: they are tried with
// the others, and said at the end.
func TestFast_attach(t *testing.T) {
	nettest.New(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Skipf("no BPF file system: %v (needs root)", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	f := &fast{}
	err := f.open(FastPath{Mode: fastpath.On, Dir: dir}, slog.New(slog.DiscardHandler))
	if errors.Is(err, bpf.ErrUnavailable) && !errors.Is(err, bpf.ErrRefused) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	want := fastpath.NewState()
	for i := range 3 * attachAtOnce {
		dev := fmt.Sprint("pod", i)
		nettest.Run(t, "ip", "link", "add", dev, "type", "bridge")
		want.Devices[dev] = fastpath.FromPod
	}
	if err := f.handle.Apply(want); err != nil {
		t.Fatal(err)
	}
	gone := []string{"pod1", "pod5", "pod7"} // since the links were listed
	for _, dev := range gone {
		nettest.Run(t, "ip", "link", "del", dev)
	}
	calls := 1
	for f.left = 1; f.attach(); calls++ {
		if f.err != nil {
			t.Errorf("said before all are tried: %v", f.err)
		}
	}
	for dev := range want.Devices {
		if slices.Contains(gone, dev) {
			if f.err == nil || !strings.Contains(f.err.Error(), "at "+dev+":") {
				t.Errorf("%s: %v", dev, f.err)
			}
		} else if programsAt(t, dev) != 1 {
			t.Errorf("%s: no program after %d calls: %v", dev, calls, f.err)
		}
	}
	if calls != 3 || f.failed != 1 {
		t.Errorf("%d calls, %d failed tries", calls, f.failed)
	}
}

func programsAt(t *testing.T, dev string) int {
	t.Helper()
	ifi, err := net.InterfaceByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifi.Index, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		t.Skipf("no tcx: %v", err)
	}
	return len(r.Programs)
}
