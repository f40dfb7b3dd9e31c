package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
)

// TestBackend_change: a change of the backend takes the other one's rules away,
// over restarts too.
func TestBackend_change(t *testing.T) {
	nettest.New(t)
	if out, err := exec.Command("ip6tables-restore", "--test").CombinedOutput(); err != nil {
		t.Skipf("iptables does not work here: %v %s", err, out)
	}
	b := cluster.NewBuilder()
	b.SetService(&cluster.Service{Key: cluster.Key{Namespace: "default", Name: "web"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}})
	p := &plan.Plan{Table: proxy.CompileAll(b.Publish(), proxy.Config{Node: "n1"})}
	log, record := slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), backendRecord)
	for i, use := range []Backend{NFTables, IPTables, IPTables, AutoBackend, NFTables, IPTables} {
		s := &services{}
		if err := s.open(log); err != nil {
			t.Fatal(err)
		}
		s.backend = backend{log: log, record: record}
		s.backend.choose(use, s.conn, false)
		if err := s.apply(p); err != nil {
			t.Fatal(err)
		}
		s.close()
		rules := nettest.Run(t, "nft", "list", "ruleset")
		maps, chains := strings.Contains(rules, "table ip podlane"), strings.Contains(rules, "PL-SERVICES")
		if wantChains := use == IPTables; maps == wantChains || chains != wantChains || strings.Contains(rules, "probe") {
			t.Fatalf("start %d with %s: maps %v, chains %v\n%s", i, use, maps, chains, rules)
		}
	}
	if err := RemoveChains(t.TempDir(), "", log); err != nil { // of an agent that has made none
		t.Fatal(err)
	}
	if rules := nettest.Run(t, "nft", "list", "ruleset"); !strings.Contains(rules, "PL-SERVICES") {
		t.Fatalf("the chains are gone:\n%s", rules)
	}
	if err := RemoveChains(filepath.Dir(record), "", log); err != nil {
		t.Fatal(err)
	}
	if rules := nettest.Run(t, "nft", "list", "ruleset"); strings.Contains(rules, "PL-") {
		t.Errorf("a cleanup has left:\n%s", rules)
	}
	s := &services{}
	if err := s.open(log); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.backend = backend{log: log, record: record}
	if err := s.remove(); err != nil {
		t.Fatal(err)
	}
	if rules := nettest.Run(t, "nft", "list", "ruleset"); strings.Contains(rules, "podlane") || strings.Contains(rules, "PL-") {
		t.Errorf("left:\n%s", rules)
	}
}

// TestBackend_noPrograms: chains that are left where the programs cannot be reached are
// an error that says what to do, of an agent and of a cleanup, and one of no more than a
// record is none; without the programs no record is made.
func TestBackend_noPrograms(t *testing.T) {
	for _, variant := range []string{"-nft", "-legacy"} {
		t.Run(variant, func(t *testing.T) {
			nettest.New(t)
			if out, err := exec.Command("ip6tables"+variant, "-t", "nat", "-S").CombinedOutput(); err != nil {
				t.Skipf("it does not work here: %v %s", err, out)
			}
			log, dir := slog.New(slog.DiscardHandler), t.TempDir()
			record := filepath.Join(dir, backendRecord)
			p := &plan.Plan{Table: proxy.CompileAll(cluster.NewBuilder().Publish(), proxy.Config{Node: "n1"})}
			start := func(use Backend) error {
				s := &services{}
				if err := s.open(log); err != nil {
					t.Fatal(err)
				}
				defer s.close()
				s.backend = backend{log: log, record: record, root: filepath.Join(dir, "no-root")}
				s.backend.choose(use, s.conn, false)
				return s.apply(p)
			}
			recorded := func() bool { return (&backend{record: record}).left() }
			if err := start(IPTables); err == nil || recorded() {
				t.Fatalf("no programs: %v, recorded %v", err, recorded())
			}
			for _, chain := range []string{"nat PL-SERVICES", "filter PL-FILTER"} {
				table, name, _ := strings.Cut(chain, " ")
				nettest.Run(t, "ip6tables"+variant, "-t", table, "-N", name)
				if err := os.WriteFile(record, []byte(IPTables), 0o600); err != nil {
					t.Fatal(err)
				}
				for who, err := range map[string]error{"agent": start(NFTables), "cleanup": RemoveChains(dir, filepath.Join(dir, "no-root"), log)} {
					if text := fmt.Sprint(err); !strings.Contains(text, "chain "+name+" of table ip6 "+table) || !strings.Contains(text, "`iptables: remove`") ||
						!strings.Contains(text, "on the node: podlane agent --cleanup") || !recorded() {
						t.Errorf("%s: recorded %v, %v", who, recorded(), err)
					}
				}
				nettest.Run(t, "ip6tables"+variant, "-t", table, "-X", name)
			}
			if err := start(NFTables); err != nil || recorded() {
				t.Errorf("no chain is left: recorded %v, %v", recorded(), err)
			}
		})
	}
}

// TestDecide_probeLeft: what an agent killed during its probe has left is no table
// that says that the Services are ours.
func TestDecide_probeLeft(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "nft", "add table ip podlane-probe; add table ip kube-proxy")
	log := slog.New(slog.DiscardHandler)
	s := &services{}
	if err := s.open(log); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	o := newOperations(Config{Node: "n1", StateDir: t.TempDir()}, log)
	o.decide(t.Context(), s)
	if o.off == "" || o.ports.On.Load() {
		t.Error("the Services are taken for ours")
	}
	if tables := nettest.Run(t, "nft", "list", "tables"); strings.Contains(tables, "probe") || !strings.Contains(tables, "kube-proxy") {
		t.Errorf("tables:\n%s", tables)
	}
	nettest.Run(t, "nft", "delete table ip kube-proxy")
	o.tick(t.Context(), s)
	if o.off != "" || !o.ports.On.Load() {
		t.Errorf("kube-proxy is gone, and the Services are still off: %s", o.off)
	}
}

func TestLacks(t *testing.T) {
	if !lacks(fmt.Errorf("load: %w", errors.Join(unix.EOPNOTSUPP))) || lacks(unix.EPERM) || lacks(unix.ENOBUFS) || lacks(nil) {
		t.Error("what a kernel lacks is not told from what it refuses")
	}
}
