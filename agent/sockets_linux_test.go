package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/bpf"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/proxy"
)

// openSockets gives a translation with a cgroup and a BPF file system of the test's
// own, or skips.
func openSockets(t *testing.T) (*sockets, SocketLB) {
	t.Helper()
	nettest.New(t)
	c := SocketLB{Mode: fastpath.On, Dir: t.TempDir()}
	if err := unix.Mount("bpf", c.Dir, "bpf", 0, "mode=0700"); err != nil {
		t.Skipf("no BPF file system: %v (needs root)", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(c.Dir, unix.MNT_DETACH) })
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var fs unix.Statfs_t
		if c.Cgroup == "" && unix.Statfs(root, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			c.Cgroup, _ = os.MkdirTemp(root, "podlane-test-")
		}
	}
	if c.Cgroup == "" {
		t.Skip("no cgroup of our own (needs root and cgroup2)")
	}
	t.Cleanup(func() { _ = unix.Rmdir(c.Cgroup) })
	s := &sockets{}
	err := s.open(c, slog.New(slog.DiscardHandler))
	if errors.Is(err, bpf.ErrUnavailable) && !errors.Is(err, bpf.ErrRefused) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s, c
}

// tableOf is a Table of TCP Services with one endpoint each.
func tableOf(services int) *proxy.Table {
	b := cluster.NewBuilder()
	for i := range services {
		key := cluster.Key{Namespace: "default", Name: fmt.Sprint("s", i)}
		b.SetService(&cluster.Service{Key: key, Type: cluster.ClusterIP, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(i)})},
			Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}})
		b.SetSlice(&cluster.EndpointSlice{Key: key, Service: key.Name, Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 80}},
			Endpoints: []cluster.Endpoint{{Address: netip.AddrFrom4([4]byte{10, 244, 0, byte(i)}), Ready: true, Serving: true}}})
	}
	return proxy.Compile(&proxy.Table{}, &cluster.Snapshot{}, b.Publish(), proxy.Config{Node: "n1"})
}

// What cannot be written is named in the status and counted, and the loop is told to
// try again, which reads back what there is: here a map that another one has filled.
func TestSockets_writeFails(t *testing.T) {
	s, c := openSockets(t)
	var counted []string
	s.count = func(part string) { counted = append(counted, part) }
	clients := map[uint64]bool{1: true}
	try := func(table *proxy.Table) SocketLBStatus {
		s.apply(table, 1, clients, nil)
		return s.status(&cluster.Snapshot{}, nil)
	}
	if st := try(tableOf(1)); st.Error != "" || st.Frontends != 1 || st.Cgroup != c.Cgroup {
		t.Fatalf("%+v", st)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(c.Dir, "socket-v1", "pl_services"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	key := make([]byte, m.KeySize())
	for i := uint32(0); err == nil; i++ {
		key[0], key[1], key[2] = byte(i), byte(i>>8), byte(i>>16)
		err = m.Put(key, make([]byte, m.ValueSize()))
	}
	table := tableOf(2)
	st := try(table)
	if !strings.Contains(st.Error, "10.96.0.1:80") || s.failed != 1 || len(counted) != 1 || counted[0] != "socket-lb" {
		t.Fatalf("the map is full (%v): %+v, failed %d, counted %v", err, st, s.failed, counted)
	}
	if wait, failed := again(0, 0, s.failed); !failed || wait > retryMost {
		t.Errorf("tried again after %v: %v", wait, failed)
	}
	if st = try(table); st.Error != "" || st.Frontends != 2 || s.failed != 0 {
		t.Errorf("tried again: %+v, failed %d", st, s.failed)
	}
}

// The programs follow the pods' cgroup where nothing else changes; without pods its
// absence is no error.
func TestSockets_follow(t *testing.T) {
	s, c := openSockets(t)
	table, clients := tableOf(1), map[uint64]bool{1: true}
	s.apply(table, 1, clients, nil)
	if err := unix.Rmdir(c.Cgroup); err != nil {
		t.Fatal(err)
	}
	s.apply(table, 1, clients, nil)
	if s.err == nil || s.where != "" {
		t.Errorf("no cgroup: %v, %q", s.err, s.where)
	}
	s.apply(table, 1, nil, nil)
	if s.err != nil || s.failed != 0 {
		t.Errorf("no cgroup and no pods: %v", s.err)
	}
	if err := os.Mkdir(c.Cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	s.apply(table, 1, nil, nil)
	if s.err != nil || s.where != c.Cgroup {
		t.Errorf("made anew: %v, %q", s.err, s.where)
	}
}
