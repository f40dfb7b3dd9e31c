package install

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/internal/nettest"
)

// pods puts pods of kube-system on record, each with a link of the record's name.
func pods(t *testing.T, stateDir string, names ...string) {
	t.Helper()
	record, _, err := cni.OpenRecord(filepath.Join(stateDir, "allocations", "v1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		a := cni.Allocation{Network: "podlane", ContainerID: name, IfName: "eth0", Namespace: "kube-system", Pod: name, Link: "pl" + name[len(name)-5:],
			Addrs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}, Gateways: []netip.Addr{netip.MustParseAddr("10.1.2.1")}}
		if err := errors.Join(record.Put(a)...); err != nil {
			t.Fatal(err)
		}
		nettest.Run(t, "ip", "link", "add", a.Link, "type", "veth", "peer", "name", "of"+a.Link)
	}
}

// atLine is a log that calls a function for each line.
type atLine func(line string)

func (f atLine) Write(line []byte) (int, error) {
	f(string(line))
	return len(line), nil
}

// TestCleanup_podsEnd: the plugin is there until Podlane's own pods have ended, with no
// agent that takes them off the record; others are not waited for.
func TestCleanup_podsEnd(t *testing.T) {
	nettest.New(t)
	dir := t.TempDir()
	c := Traces{Runtime: runtime(t), RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), FlowLimits: "limits.json"}
	if err := c.Serve(); err != nil {
		t.Fatal(err)
	}
	pods(t, c.StateDir, "podlane-dns-x7k2p", "podlane-dns-service-5d-abcde", "metrics-server-12345")
	waits := 0
	log := slog.New(slog.NewTextHandler(atLine(func(line string) {
		if !strings.Contains(line, "waits") {
			return
		}
		if got := names(t, c.BinDir); len(got) == 0 || strings.Contains(line, "metrics") || !strings.Contains(line, "kube-system/podlane-dns-x7k2p") {
			t.Errorf("%s, and the plugins are %v", line, got)
		}
		if waits++; waits == 1 {
			nettest.Run(t, "ip", "link", "del", "plabcde")
		} else {
			nettest.Run(t, "ip", "link", "del", "plx7k2p")
		}
	}), nil))
	if err := Cleanup(t.Context(), c, log); err != nil || waits != 2 {
		t.Errorf("%v, waited %d times", err, waits)
	}
	if got := names(t, c.BinDir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// TestAwaitEnd: it goes on after a while, and says so; a signal ends it.
func TestAwaitEnd(t *testing.T) {
	nettest.New(t)
	c := Traces{StateDir: t.TempDir()}
	pods(t, c.StateDir, "podlane-dns-x7k2p")
	var log bytes.Buffer
	if err := c.awaitEnd(t.Context(), time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))); err != nil || !strings.Contains(log.String(), "goes on") {
		t.Errorf("%v, said %s", err, &log)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.awaitEnd(ctx, time.Hour, slog.New(slog.DiscardHandler)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
