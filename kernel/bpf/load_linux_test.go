package bpf

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
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
	available(t, err)
	t.Cleanup(h.Close)
	return h
}

// available skips where the machine or the rights lack what is named, and fails where the kernel
// refuses programs that it should take.
func available(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrRefused) {
		t.Skip(err)
	}
	if v := (*ebpf.VerifierError)(nil); errors.As(err, &v) {
		t.Fatalf("%v\n%-30v", err, v)
	}
	must(t, err)
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
	if types, err := os.ReadFile("/sys/kernel/btf/vmlinux"); err == nil && bytes.Contains(types, []byte("\x00bpf_ct_insert_entry\x00")) && h.Untold() != "" {
		t.Errorf("a kernel that can be told is not: %s", h.Untold())
	}
}

// Why programs cannot ask conntrack: a right is named only where it helps.
func TestLookups(t *testing.T) {
	const with, without = "\x00a\x00bpf_skb_ct_lookup\x00b\x00", "\x00a\x00bpf_skb_ct_lookup_other\x00b\x00"
	for name, test := range map[string]struct {
		files map[string]string
		admin bool
		want  string
		right bool
	}{
		"built in":             {map[string]string{"vmlinux": with}, false, "", false},
		"a module":             {map[string]string{"vmlinux": without, "nf_conntrack": with}, false, "only CAP_SYS_ADMIN gives", true},
		"a module, with it":    {map[string]string{"vmlinux": without, "nf_conntrack": with}, true, "", false},
		"before 5.18":          {map[string]string{"vmlinux": without}, false, "Linux 5.18", false},
		"before 5.18, with it": {map[string]string{"vmlinux": without}, true, "Linux 5.18", false},
		"a module of then":     {map[string]string{"vmlinux": without, "nf_conntrack": without}, true, "Linux 5.18", false},
	} {
		dir := t.TempDir()
		for file, text := range test.files {
			must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
		}
		got := lookups(dir, test.admin)
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

// A program that the verifier refuses is no right that is missing, though it says so; and a right that is
// missing is no refusal.
func TestUnavailable(t *testing.T) {
	nettest.New(t)
	if !mayLoad() {
		t.Skip("needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN of the machine")
	}
	load := func() error {
		_, err := ebpf.NewProgram(&ebpf.ProgramSpec{ // reads behind its context
			Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.LoadMem(asm.R0, asm.R1, 4096, asm.Word), asm.Return()},
		})
		if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
			t.Fatalf("loaded: %v", err)
		}
		return Unavailable(err)
	}
	var v *ebpf.VerifierError
	if err := load(); !errors.Is(err, ErrRefused) || !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "CAP_") || strings.Contains(err.Error(), "\n") || !errors.As(err, &v) {
		t.Errorf("a faulty program: %v", err)
	}
	for _, lacking := range []int{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN} {
		var err error
		without(t, func() { err = load() }, unix.CAP_SYS_ADMIN, lacking)
		if errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "CAP_PERFMON") {
			t.Errorf("without capability %d: %v", lacking, err)
		}
	}
}

// without calls f without some capabilities of the thread, which is the test's own.
func without(t testing.TB, f func(), capabilities ...int) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	must(t, unix.Capget(&header, &all[0]))
	few := all
	for _, c := range capabilities {
		few[c/32].Effective &^= 1 << (c % 32)
	}
	must(t, unix.Capset(&header, &few[0]))
	f()
	must(t, unix.Capset(&header, &all[0]))
}
