package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// bpffs gives a BPF file system of the test's own, or skips.
func bpffs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Skipf("no BPF file system: %v (needs root)", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// open opens a Handle, or skips where this machine has no fast path.
func open(t testing.TB, c Config) *Handle {
	t.Helper()
	h, err := Open(c)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func TestOpen_unavailable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pins")
	_, err := Open(Config{Dir: dir})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "BPF file system") || strings.Contains(err.Error(), "\n") {
		t.Errorf("on an ordinary folder: %v", err)
	}
}

// A kernel without BTF has no fast path, and says so: here one whose BTF is hidden
// from a thread that ends with the test.
func TestOpen_noBTF(t *testing.T) {
	dir, opened := bpffs(t), make(chan error)
	go func() {
		runtime.LockOSThread()
		err := errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS|unix.CLONE_NEWNET),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("none", "/sys/kernel/btf", "tmpfs", 0, ""))
		if err == nil {
			_, err = Open(Config{Dir: dir})
		}
		opened <- err
	}()
	if err := <-opened; !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no BTF") {
		t.Errorf("%v", err)
	}
}

func TestOpen(t *testing.T) {
	nettest.New(t)
	h := open(t, Config{Dir: bpffs(t)})
	counts, err := h.Counters()
	if err != nil || len(counts) != len(reasons) {
		t.Errorf("counters: %v %v", counts, err)
	}
	if n := int(h.objects.PlCounters.MaxEntries()); n != len(reasons) {
		t.Errorf("the programs count %d reasons, %d have a name", n, len(reasons))
	}
}

// Why programs cannot ask conntrack: a right is named only where it helps.
func TestLookups(t *testing.T) {
	const with, without = "\x00a\x00bpf_skb_ct_lookup\x00b\x00", "\x00a\x00bpf_skb_ct_lookup_other\x00b\x00"
	for name, test := range map[string]struct {
		files map[string]string
		want  string
		right bool
	}{
		"built in":         {map[string]string{"vmlinux": with}, "", false},
		"a module":         {map[string]string{"vmlinux": without, "nf_conntrack": with}, "only CAP_SYS_ADMIN gives", true},
		"before 5.18":      {map[string]string{"vmlinux": without}, "Linux 5.18", false},
		"a module of then": {map[string]string{"vmlinux": without, "nf_conntrack": without}, "Linux 5.18", false},
	} {
		dir := t.TempDir()
		for file, text := range test.files {
			must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
		}
		got := lookups(dir)
		if !strings.Contains(got, test.want) || (got == "") != (test.want == "") || strings.Contains(got, "CAP_SYS_ADMIN") != test.right {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// What the kernel cannot be told of is said, and does not keep the fast path off.
func TestTellingFirst(t *testing.T) {
	for name, test := range map[string]struct {
		with, without error
		untold        string
		err           error
	}{
		"told":        {nil, errors.New("not tried"), "", nil},
		"cannot be":   {errors.New("no such function"), nil, "no such function", nil},
		"neither":     {errors.New("not permitted"), unix.EPERM, "not permitted", unix.EPERM},
		"other pins":  {ebpf.ErrMapIncompatible, nil, "", ebpf.ErrMapIncompatible},
		"a long tale": {&ebpf.VerifierError{Cause: unix.EINVAL, Log: []string{"0: R1=ctx()", "1: R2=1"}}, nil, "invalid argument", nil},
	} {
		untold, err := tellingFirst(func(tells bool) error {
			if tells {
				return test.with
			}
			return test.without
		})
		if untold != test.untold || !errors.Is(err, test.err) {
			t.Errorf("%s: %q, %v", name, untold, err)
		}
	}
}
