package cni

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

func someAllocation(id, ifName, addr string) Allocation {
	a := Allocation{
		Network: "podlane", ContainerID: id, IfName: ifName, Netns: "/run/netns/" + id, Namespace: "default", Pod: id,
		BootID: "boot-1", Addrs: []netip.Addr{netip.MustParseAddr(addr)}, Gateways: []netip.Addr{netip.MustParseAddr("10.1.2.1")},
		MTU: 1450, Created: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC),
	}
	a.Link = linkName(a.Key(), 0)
	a.MAC, a.HostMAC = podMAC(a.Key()), overlay.HostMAC
	return a
}

func openRecord(t *testing.T, dir string) (*Record, []error) {
	t.Helper()
	r, problems, err := OpenRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r, problems
}

var byValue = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestRecord_comesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "allocations", "v1")
	r, _ := openRecord(t, dir)
	// Names that would be one file's without escaping.
	as := []Allocation{
		someAllocation("a-b", "c", "10.1.2.2"), someAllocation("a", "b-c", "10.1.2.3"), someAllocation("a", "b%2dc", "10.1.2.4"),
	}
	if err := errors.Join(r.Put(as...)...); err != nil {
		t.Fatal(err)
	}
	again, problems := openRecord(t, dir)
	if len(problems) > 0 {
		t.Error(problems)
	}
	if diff := cmp.Diff(r.All(), again.All(), byValue); diff != "" || len(again.All()) != 3 {
		t.Errorf("%d records; (-written +read):\n%s", len(again.All()), diff)
	}
	if info, err := os.Stat(filepath.Join(dir, fileName(as[0].Key()))); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info, err)
	}
	if err := errors.Join(again.Remove(as[0].Key()), again.Remove(as[0].Key())); err != nil {
		t.Error(err)
	}
	if last, _ := openRecord(t, dir); len(last.All()) != 2 {
		t.Errorf("%d records after one was removed", len(last.All()))
	}
}

// TestRecord_spares: records are written into files that were there before. The next
// agent finds what is left of them; an older one removes them, and records are written all
// the same.
func TestRecord_spares(t *testing.T) {
	dir := t.TempDir()
	r, _ := openRecord(t, dir)
	if n := len(sparesIn(t, dir)); n != spareFiles {
		t.Fatalf("%d spare files, want %d", n, spareFiles)
	}
	put := func(r *Record, id, addr string) {
		t.Helper()
		if err := errors.Join(r.Put(someAllocation(id, "eth0", addr))...); err != nil {
			t.Error(err)
		}
	}
	put(r, "a", "10.1.2.2")
	left := sparesIn(t, dir)
	if len(left) != spareFiles-1 {
		t.Errorf("%d spare files after a record, want one less", len(left))
	}
	r, _ = openRecord(t, dir)
	if now := sparesIn(t, dir); len(now) != spareFiles || len(r.spares.names) != spareFiles || !contains(now, left) {
		t.Errorf("%d spare files, %d of them known, after another start, want those that were there and one more", len(now), len(r.spares.names))
	}
	for _, name := range sparesIn(t, dir) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	put(r, "b", "10.1.2.3")
	put(r, "c", "10.1.2.4")
	if again, problems := openRecord(t, dir); len(problems) > 0 || len(again.All()) != 3 {
		t.Errorf("%v, %v, want three records", again.All(), problems)
	}
}

// sparesIn gives the names of the spare files.
func sparesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, temporary+"*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		names = append(names, filepath.Base(path))
	}
	return names
}

func contains(all, some []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

// TestRecord_cursors: the file is written in place, the next agent reads the last state of it,
// also where that is shorter, and a torn one is no problem.
func TestRecord_cursors(t *testing.T) {
	dir := t.TempDir()
	r, _ := openRecord(t, dir)
	cidr := netip.MustParsePrefix("10.1.2.0/24")
	for _, last := range []string{"10.1.2.254", "10.1.2.2"} {
		if err := r.saveCursors(map[netip.Prefix]netip.Addr{cidr: netip.MustParseAddr(last)}); err != nil {
			t.Fatal(err)
		}
		again, _ := openRecord(t, dir)
		if got := again.loadCursors()[cidr]; got.String() != last {
			t.Errorf("cursor %v, want %s", got, last)
		}
	}
	if err := os.Truncate(filepath.Join(dir, cursorFile), 10); err != nil {
		t.Fatal(err)
	}
	if again, problems := openRecord(t, dir); len(problems) > 0 || len(again.loadCursors()) > 0 {
		t.Errorf("%v, %v after half of it was written", again.loadCursors(), problems)
	}
}

// TestRecord_corrupt has a machine's crash and people spoil files: each is named
// and moved aside, and the good one is read.
func TestRecord_corrupt(t *testing.T) {
	dir := t.TempDir()
	r, _ := openRecord(t, dir)
	good := someAllocation("good", "eth0", "10.1.2.2")
	r.Put(good)
	text, err := os.ReadFile(filepath.Join(dir, "good-eth0.json"))
	if err != nil {
		t.Fatal(err)
	}
	whole := string(text)
	spoiled := map[string]string{
		"truncated-eth0.json": whole[:len(whole)/2],
		"other-eth0.json":     whole, // a copy: two pods with one address
		"mac-eth0.json":       strings.Replace(strings.Replace(whole, `"mac": "`, `"mac": "zz`, 1), `"good"`, `"mac"`, 1),
		"foreign-eth0.json":   strings.Replace(strings.Replace(whole, good.Link, "eth7", 1), `"containerId": "good"`, `"containerId": "foreign"`, 1),
		"unsized-eth0.json":   `{"version":1,"containerId":"unsized","ifName":"eth0"}`,
		"old-eth0.json":       `{"containerId":"old","ifName":"eth0"}`,
	}
	for name, text := range spoiled {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	crashed := map[string]string{temporary + "123": "{", "empty-eth0.json": ""}
	for name, text := range crashed {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again, problems := openRecord(t, dir)
	if diff := cmp.Diff([]Allocation{good}, again.All(), byValue); diff != "" {
		t.Error("(-want +have):\n", diff)
	}
	if len(problems) != len(spoiled) {
		t.Errorf("%d problems, want %d: %v", len(problems), len(spoiled), problems)
	}
	for name := range spoiled {
		named := slices.ContainsFunc(problems, func(err error) bool { return strings.Contains(err.Error(), name) })
		_, err := os.Stat(filepath.Join(dir, name+".bad"))
		if !named || err != nil {
			t.Errorf("%s: named %v, moved aside: %v", name, named, err)
		}
	}
	for name := range crashed {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s, which a crash left, is there: %v", name, err)
		}
	}
	if _, problems := openRecord(t, dir); len(problems) > 0 {
		t.Errorf("the second start complains again: %v", problems)
	}
}

// TestRecord_newer reads what the next version may write.
func TestRecord_newer(t *testing.T) {
	dir := t.TempDir()
	r, _ := openRecord(t, dir)
	a := someAllocation("a", "eth0", "10.1.2.2")
	r.Put(a)
	path := filepath.Join(dir, "a-eth0.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(text), `"version": 1`, `"version": 2, "bandwidth": {"egress": 1}`, 1)
	if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, problems := openRecord(t, dir); len(problems) > 0 || len(again.All()) != 1 {
		t.Errorf("%v, %v", again.All(), problems)
	}
}

func TestRecord_diskRefuses(t *testing.T) {
	dir := t.TempDir()
	r, _ := openRecord(t, dir)
	// A folder of the record's name: nothing can be renamed over it, even by root.
	if err := os.MkdirAll(filepath.Join(dir, "a-eth0.json", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	errs := r.Put(someAllocation("a", "eth0", "10.1.2.2"), someAllocation("b", "eth0", "10.1.2.3"))
	if errs[0] == nil || !strings.Contains(errs[0].Error(), "allocation record of default/a") || errs[1] != nil {
		t.Errorf("%v, want the first to fail alone", errs)
	}
	if _, ok := r.Get(Key{"a", "eth0"}); ok {
		t.Error("a is in memory and not on disk")
	}
}

func TestIdentity(t *testing.T) {
	k := Key{"0123456789abcdef", "eth0"}
	name := linkName(k, 0)
	if name != linkName(k, 0) || len(name) != 15 || !strings.HasPrefix(name, link.Prefix) {
		t.Errorf("link %q", name)
	}
	if name == linkName(k, 1) || name == linkName(Key{k.ContainerID, "eth1"}, 0) {
		t.Error("two links have the same name")
	}
	pod := podMAC(k)
	if pod != podMAC(k) || pod == podMAC(Key{k.ContainerID, "eth1"}) || pod[0]&3 != 2 {
		t.Errorf("MAC %s, want one of its own, unicast and locally administered", pod)
	}
	var back link.MAC
	if err := parseMAC(pod.String(), &back); err != nil || back != pod {
		t.Errorf("%s comes back as %s: %v", pod, back, err)
	}
}
