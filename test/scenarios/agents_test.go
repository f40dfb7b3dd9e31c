package scenarios

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/proxy/nftables"
)

// TestAgents: 1,000 connections a second through Services, of which none may fail,
// while all agents are restarted, killed, replaced by a build whose tables have
// another layout, and put back.
func TestAgents(t *testing.T) {
	s := up(t, "auto")
	next := build(t, "podlane-next", nextLayout(t))
	use := func(program string) {
		// The lab's agents are started from a bound file: what is bound over it is the
		// new version.
		s.sh("node/n1", "mount --bind "+program+" "+filepath.Join(s.Dir(), "bin", "podlane"))
	}
	ours := func(layout int) func() error {
		return func() error {
			for _, n := range []string{"n1", "n2", "n3"} {
				out := s.sh("node/"+n, "nft list tables")
				found := regexp.MustCompile(`\bpodlane-(\d+)`).FindAllStringSubmatch(out, -1)
				for _, f := range found {
					if f[1] != strconv.Itoa(layout) {
						return fmt.Errorf("%s has %v, want only layout %d", n, found, layout)
					}
				}
				if len(found) == 0 {
					return fmt.Errorf("%s has no table", n)
				}
				guard := s.sh("node/"+n, "nft list table ip podlane-guard")
				if strings.Contains(guard, "set nodes") != (layout == nftables.Layout) || strings.Contains(guard, "set others") == (layout == nftables.Layout) {
					return fmt.Errorf("%s has another layout of podlane-guard:\n%s", n, guard)
				}
			}
			return nil
		}
	}
	for _, step := range []struct {
		name   string
		do     func()
		layout int
	}{
		{"restarted", func() { s.agents(lab.AgentStop); s.agents(lab.AgentStart) }, nftables.Layout},
		{"killed", func() { s.agents(lab.AgentKill); s.agents(lab.AgentStart) }, nftables.Layout},
		{"upgraded", func() { s.agents(lab.AgentStop); use(next); s.agents(lab.AgentStart) }, nftables.Layout + 1},
		{"rolled back", func() { s.agents(lab.AgentStop); use(s.program); s.agents(lab.AgentStart) }, nftables.Layout},
	} {
		t.Run(step.name, func(t *testing.T) {
			s := s.of(t)
			s.underLoad(step.do)
			s.eventually(5*time.Second, ours(step.layout))
			if step.layout == nftables.Layout {
				s.settled()
			}
		})
	}
}

// nextLayout gives the file by which `go build` builds a podlane whose tables have
// the next layout: the Services' have its number, the others chains of other priorities
// and other sets.
func nextLayout(t *testing.T) string {
	t.Helper()
	replace, dir := map[string]string{}, t.TempDir()
	for file, changes := range map[string][]string{
		"proxy/nftables/ruleset.go": {fmt.Sprintf("const Layout = %d\n", nftables.Layout), fmt.Sprintf("const Layout = %d\n", nftables.Layout+1)},
		"guard/guard.go": {`Hook: nft.Input, Type: "filter", Priority: nft.Raw}`, `Hook: nft.Input, Type: "filter", Priority: nft.Raw + 1}`,
			`r.set("nodes")`, `r.set("others")`},
		"egress/egress.go": {"Priority: nft.SrcNAT}", "Priority: nft.SrcNAT + 1}"},
	} {
		path, err := filepath.Abs(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := string(source)
		for i := 0; i < len(changes); i += 2 {
			if !strings.Contains(text, changes[i]) {
				t.Fatalf("%s has no %q", path, changes[i])
			}
			text = strings.Replace(text, changes[i], changes[i+1], 1)
		}
		replace[path] = filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(replace[path], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	overlay := filepath.Join(dir, "overlay.json")
	if err == nil {
		err = os.WriteFile(overlay, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return overlay
}

// underLoad has something happen under 500 connections a second to each of two
// Services, with an established one and datagrams beside.
func (s *scene) underLoad(do func()) {
	s.Helper()
	load := slices.Concat(s.targets("load", "Service near", "Service far"), s.targets("stream", "Service far"), s.targets("udp", "Service far", "pod far"))
	w := s.watch("client", load)
	time.Sleep(time.Second)
	began := time.Now()
	do()
	time.Sleep(2 * time.Second)
	took := time.Since(began) + time.Second
	connections := 0
	for target, r := range w.stop() {
		if len(r.Lost) > 0 || r.Ended != "" || r.Sent == 0 {
			s.Errorf("%s: %d of %d failed: %s %s", target, len(r.Lost), r.Sent, r.Error, r.Ended)
		}
		if strings.HasPrefix(target, "load:") {
			connections += r.Sent
		}
	}
	s.Logf("%d connections in %.1f s, none failed: %v", connections, took.Seconds(), !s.Failed())
}
