package socket

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpflink "github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/kernel/bpf"
	proxy "github.com/podlane/podlane/proxy/ebpf"
)

// With no process that holds anything all goes on; the next agent adopts it, and
// Remove leaves nothing but connections.
func TestLife(t *testing.T) {
	m := newMachine(t)
	m.set(web4, to(ends4...))
	m.Close()
	m.hits(web4, 50)
	m.open()
	have, err := m.Read()
	must(t, err)
	if s := have[web4]; len(have) != 1 || s.Torn || !slices.Equal(s.Backends, ends4) {
		t.Errorf("adopted %v", have)
	}
	m.hits(web4, 50)
	if kept := m.client.do(task{To: []netip.AddrPort{web4}, Keep: true})[0]; kept.Err != "" {
		t.Error(kept)
	}
	m.Close()
	must(t, Remove(m.config.Dir))
	must(t, Remove(m.config.Dir))
	if got := m.client.one(web4); got.Err != unix.ECONNREFUSED.Error() {
		t.Errorf("after Remove: %+v", got)
	}
	if _, err := os.Stat(m.config.Dir); !os.IsNotExist(err) {
		t.Errorf("%s: %v", m.config.Dir, err)
	}
}

// An agent that has its BPF rights no longer, and the uninstallation, which never
// had any, take away what is pinned.
func TestRemove_netAdminAlone(t *testing.T) {
	m := newMachine(t)
	m.set(web4, to(ends4...))
	m.hits(web4, 10)
	m.Close()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	must(t, unix.Capget(&header, &all[0]))
	few := all // of the thread, which is the test's own
	few[0].Effective, few[1].Effective = 1<<unix.CAP_NET_ADMIN, 0
	must(t, unix.Capset(&header, &few[0]))
	_, opened := Open(m.config)
	err := Remove(m.config.Dir)
	flows, read := ReadFlows(m.config.Dir) // nothing is there any more, which one needs no right to see
	must(t, unix.Capset(&header, &all[0]))
	if read != nil || len(flows.Frontends) != 0 {
		t.Errorf("%v %v", flows, read)
	}
	if !errors.Is(opened, bpf.ErrUnavailable) {
		t.Fatalf("it may load programs: %v: the test proves nothing", opened)
	}
	must(t, err)
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) { // the kernel detaches soon
		if got := m.client.one(web4); got.Err == unix.ECONNREFUSED.Error() {
			return
		} else if time.Since(start) > 5*time.Second {
			t.Fatalf("still translated: %+v", got)
		}
	}
}

// The pods' cgroup is another one after a start: the programs follow.
func TestAttach_elsewhere(t *testing.T) {
	m := newMachine(t)
	m.set(web4, to(ends4...))
	m.Close()
	was := m.client
	m.config.Cgroup = newCgroup(t)
	m.open()
	if got := was.one(web4); got.Err == "" {
		t.Error("the cgroup of before is still translated")
	}
	m.client = newClient(t, m.config.Cgroup)
	m.hits(web4, 20)
}

// The pods' cgroup is made anew under its name, as by a kubelet that starts again: the
// programs follow at the next turn.
func TestAttach_madeAnew(t *testing.T) {
	m := newMachine(t)
	m.set(web4, to(ends4...))
	m.client.end()
	removeCgroup(t, m.config.Cgroup)
	if _, err := m.Attach(); err == nil {
		t.Error("there is no cgroup, and no error")
	}
	must(t, os.Mkdir(m.config.Cgroup, 0o755))
	m.client = newClient(t, m.config.Cgroup)
	if got := m.client.one(web4); got.Err != unix.ECONNREFUSED.Error() {
		t.Fatalf("translated already: %+v: the test proves nothing", got)
	}
	for range 2 {
		where, err := m.Attach()
		must(t, err)
		if where != m.config.Cgroup {
			t.Errorf("attached at %s", where)
		}
		m.hits(web4, 20)
	}
}

// A program that someone has detached is there again at the next turn.
func TestAttach_detached(t *testing.T) {
	m := newMachine(t)
	m.set(web4, to(ends4...))
	l, err := ebpflink.LoadPinnedLink(filepath.Join(m.config.Dir, layout, "connect4"), nil)
	must(t, err)
	must(t, l.Detach())
	must(t, l.Close())
	if got := m.client.one(web4); got.Err != unix.ECONNREFUSED.Error() {
		t.Fatalf("translated still: %+v: the test proves nothing", got)
	}
	_, err = m.Attach()
	must(t, err)
	m.hits(web4, 20)
}

// What an agent of another layout has left goes once ours is in its place.
func TestOtherLayout(t *testing.T) {
	m := newMachine(t)
	m.set(web4, to(ends4...))
	m.Close()
	must(t, os.Rename(filepath.Join(m.config.Dir, layout), filepath.Join(m.config.Dir, "socket-v99")))
	must(t, os.Mkdir(filepath.Join(m.config.Dir, "v99"), 0o700)) // the fast path's
	m.hits(web4, 20)
	m.open()
	if got := m.client.one(web4); got.Err != unix.ECONNREFUSED.Error() {
		t.Errorf("by maps of another layout: %+v", got)
	}
	m.have = map[proxy.Frontend]*proxy.Service{}
	m.set(web4, to(ends4[0]))
	if hits := m.hits(web4, 20); hits[ends4[0].String()] != 20 {
		t.Errorf("%v", hits)
	}
	left, err := os.ReadDir(m.config.Dir)
	must(t, err)
	if len(left) != 2 || left[0].Name() != layout || left[1].Name() != "v99" {
		t.Errorf("left: %v", left)
	}
}

// On and off and taken over, connections and those that are made meanwhile go on.
func TestLife_underTraffic(t *testing.T) {
	m := newMachine(t)
	// What is not translated gets to a server that listens at the frontend itself.
	serve(t, web4)
	m.set(web4, to(ends4...))
	must(t, m.client.write.Encode(task{To: []netip.AddrPort{web4}, Again: 2000 - 1}))
	done := make(chan []met, 1)
	go func() {
		var all []met
		_ = m.client.read.Decode(&all)
		done <- all
	}()
	for i := 0; ; i++ {
		select {
		case all := <-done:
			servers := map[string]int{}
			for _, one := range all {
				// Without the programs a connection that they have made shows its endpoint.
				if one.Err != "" || one.Peer != web4 && one.Peer != addr(one.Server) {
					t.Fatalf("%+v", one)
				}
				servers[one.Server]++
			}
			if len(all) != 2000 || servers[web4.String()] == 0 || len(servers) != 4 {
				t.Errorf("%d connections: %v after %d turns", len(all), servers, i)
			}
			return
		case <-time.After(time.Millisecond):
		}
		m.Close()
		if i%2 == 0 {
			must(t, Remove(m.config.Dir))
			m.have = map[proxy.Frontend]*proxy.Service{}
		}
		m.open()
		m.set(web4, to(ends4...))
	}
}

// It needs no BTF of the kernel: here from a thread that does not see it.
func TestOpen_noBTF(t *testing.T) {
	c, opened := Config{Dir: bpffs(t), Cgroup: newCgroup(t)}, make(chan error)
	var h *Handle
	go func() {
		runtime.LockOSThread() // which ends with it
		err := errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("none", "/sys/kernel/btf", "tmpfs", 0, ""))
		if err == nil {
			h, err = Open(c)
		}
		opened <- err
	}()
	must(t, <-opened)
	t.Cleanup(h.Close)
	_, err := h.Attach()
	must(t, err)
	must(t, Remove(c.Dir))
}

func TestPodsCgroup(t *testing.T) {
	own := newCgroup(t)
	if got, err := PodsCgroup(own); err != nil || got != own {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := PodsCgroup(t.TempDir()); !errors.Is(err, bpf.ErrUnavailable) {
		t.Errorf("an ordinary folder: %q, %v", got, err)
	}
	root, err := cgroup2("/sys/fs/cgroup")
	must(t, err)
	if got, err := PodsCgroup("/sys/fs/cgroup"); got == root || err != nil && !strings.Contains(err.Error(), "no cgroup of pods") {
		t.Errorf("the root: %q, %v", got, err)
	}
}

// Of two cgroups of pods, as a change of the kubelet's driver leaves them, it is the
// one that has processes; where that does not tell, both are named.
func TestPodsIn(t *testing.T) {
	const slice, plain = "kubepods.slice", "kubepods"
	for _, test := range []struct {
		name  string
		there map[string]bool // has processes
		want  string
	}{
		{"none", nil, ""},
		{"one, no pod yet", map[string]bool{plain: false}, plain},
		{"systemd's is left", map[string]bool{slice: false, plain: true}, plain},
		{"cgroupfs's is left", map[string]bool{slice: true, plain: false}, slice},
		{"both are used", map[string]bool{slice: true, plain: true}, ""},
		{"none is used", map[string]bool{slice: false, plain: false}, ""},
	} {
		base := t.TempDir()
		for dir, used := range test.there {
			must(t, os.Mkdir(filepath.Join(base, dir), 0o755))
			text := map[bool]string{false: "populated 0\nfrozen 0\n", true: "populated 1\nfrozen 0\n"}[used]
			must(t, os.WriteFile(filepath.Join(base, dir, "cgroup.events"), []byte(text), 0o600))
		}
		got, err := podsIn(base)
		if test.want != "" && (err != nil || got != filepath.Join(base, test.want)) {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
		if test.want == "" && (err == nil || len(test.there) == 2 && (!strings.Contains(err.Error(), base+"/"+slice) || !strings.Contains(err.Error(), base+"/"+plain))) {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
	}
}

// populated is told by a real cgroup.
func TestPopulated(t *testing.T) {
	dir := newCgroup(t)
	if populated(dir) {
		t.Error("nothing is in it yet")
	}
	c := newClient(t, dir)
	if !populated(dir) {
		t.Error("a process is in it")
	}
	c.end()
}

// What an agent of another layout has left, and cannot be removed at once, is removed
// at a later turn.
func TestOtherLayout_again(t *testing.T) {
	m := newMachine(t)
	m.Close()
	busy := filepath.Join(m.config.Dir, "socket-v99", "busy")
	must(t, os.MkdirAll(busy, 0o700))
	must(t, unix.Mount("none", busy, "tmpfs", 0, ""))
	free := sync.OnceFunc(func() { must(t, unix.Unmount(busy, 0)) })
	t.Cleanup(free)
	h, err := Open(m.config)
	must(t, err)
	t.Cleanup(h.Close)
	if _, err := h.Attach(); err == nil {
		t.Error("nothing is said of what cannot be removed")
	}
	free()
	_, err = h.Attach()
	must(t, err)
	if _, err := os.Stat(filepath.Dir(busy)); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", filepath.Dir(busy), err)
	}
}

// A program of another layout goes too where ours can never be attached: here because someone's
// program at the cgroup above lets no other be below.
func TestOtherLayout_noRoom(t *testing.T) {
	m := newMachine(t)
	m.Close()
	above := newCgroup(t)
	m.config.Cgroup = filepath.Join(above, "pods")
	must(t, os.Mkdir(m.config.Cgroup, 0o755))
	t.Cleanup(func() { removeCgroup(t, m.config.Cgroup) })
	m.open()
	m.client = newClient(t, m.config.Cgroup)
	m.set(web4, to(ends4...))
	m.Close()
	must(t, os.Rename(filepath.Join(m.config.Dir, layout), filepath.Join(m.config.Dir, "socket-v99")))
	m.hits(web4, 20)
	shut(t, above)
	h, err := Open(m.config)
	must(t, err)
	t.Cleanup(h.Close)
	if _, err := h.Attach(); err == nil || !strings.Contains(err.Error(), "connect4") {
		t.Errorf("of the program that cannot be attached: %v", err)
	}
	if got := m.client.one(web4); got.Err != unix.ECONNREFUSED.Error() {
		t.Errorf("by maps of another layout: %+v", got)
	}
}

// shut attaches a program to a cgroup that lets no connect4 program be in those below it.
func shut(t testing.TB, dir string) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	must(t, err)
	f, err := os.Open(dir)
	must(t, err)
	at := ebpflink.RawAttachProgramOptions{Target: int(f.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect}
	must(t, ebpflink.RawAttachProgram(at))
	t.Cleanup(func() {
		must(t, ebpflink.RawDetachProgram(ebpflink.RawDetachProgramOptions{Target: int(f.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect}))
		_ = f.Close()
		_ = p.Close()
	})
}
