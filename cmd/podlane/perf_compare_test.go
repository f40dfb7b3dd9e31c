package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/qperf"
)

// saved writes an evaluation of one comparison, whose ratios go up and down around the one given.
func saved(t *testing.T, dir, name string, ratio float64, change func(*perf.Evaluation)) string {
	t.Helper()
	e := &perf.Evaluation{
		Version: perf.FormVersion, Base: perf.NodeNode, Tests: []qperf.Test{qperf.TCPLatency},
		Paths: []perf.PathInfo{{Name: perf.NodeNode}, {Name: perf.PodPod}},
		Rows:  []perf.Row{{Path: perf.NodeNode, Test: qperf.TCPLatency}, {Path: perf.PodPod, Test: qperf.TCPLatency}},
	}
	for i := range 12 {
		wobble := 1 + 0.002*float64(i%5-2)
		e.Rows[0].Rounds, e.Rows[0].Ratios = append(e.Rows[0].Rounds, 20e-6), append(e.Rows[0].Ratios, 1)
		e.Rows[1].Rounds, e.Rows[1].Ratios = append(e.Rows[1].Rounds, 20e-6*ratio*wobble), append(e.Rows[1].Ratios, ratio*wobble)
	}
	if change != nil {
		change(e)
	}
	path := filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := e.Save(f); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPerfCompare_exitStatus(t *testing.T) {
	dir := t.TempDir()
	base := saved(t, dir, "base.json", 1.2, nil)
	junit := filepath.Join(dir, "perf.xml")
	rubbish := filepath.Join(dir, "rubbish.json")
	if err := os.WriteFile(rubbish, []byte("oops"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		args   []string
		status int
		out    string // or, where there is none, part of the error
		junit  string
	}{
		{"holds", []string{base, saved(t, dir, "same.json", 1.2, nil)}, 0, "holds: ", `failures="0"`},
		{"regressed", []string{base, saved(t, dir, "worse.json", 1.4, nil)}, 1, "regressed: ", `failures="1"`},
		{"within a wider margin", []string{base, saved(t, dir, "worse.json", 1.4, nil), "--max-regress", "0.3"}, 0, "holds: ", ""},
		{"cannot tell", []string{base, saved(t, dir, "edge.json", 1.26, nil)}, 2, "cannot tell: ", `skipped="1"`},
		{"invalid run", []string{base, saved(t, dir, "invalid.json", 1.2, func(e *perf.Evaluation) { e.Invalid = "another way" })}, 3, "another way", `errors="1"`},
		{"another version", []string{base, saved(t, dir, "version.json", 1.2, func(e *perf.Evaluation) { e.Version = 9 })}, 3, "version 9", ""},
		{"not JSON", []string{base, rubbish}, 3, "not an evaluation", `errors="1"`},
		{"no such file", []string{base, filepath.Join(dir, "none.json")}, 3, "no such file", ""},
		{"one file", []string{base}, 3, "two files", ""},
		{"bad margin", []string{base, base, "--max-regress", "much"}, 3, "--max-regress much", ""},
		{"bad flag", []string{base, base, "--moon"}, 3, "--moon", ""},
	} {
		_ = os.Remove(junit)
		status, out, errs := perfVerb(context.Background(), append(append([]string{"compare"}, c.args...), "--junit", junit)...)
		if status != c.status || !strings.Contains(out+errs, c.out) {
			t.Errorf("%s: status %d, want %d\n%s%s", c.name, status, c.status, out, errs)
		}
		if text, _ := os.ReadFile(junit); !strings.Contains(string(text), c.junit) {
			t.Errorf("%s: JUnit lacks %s:\n%s", c.name, c.junit, text)
		}
	}
}

func TestPerfReport(t *testing.T) {
	dir := t.TempDir()
	good := saved(t, dir, "good.json", 1.2, nil)
	if status, out, errs := perfVerb(context.Background(), "report", good); status != 0 || !strings.Contains(out, "pod-pod") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
	bad := saved(t, dir, "bad.json", 1.2, func(e *perf.Evaluation) { e.Invalid = "another way" })
	if status, _, errs := perfVerb(context.Background(), "report", bad); status != 3 || !strings.Contains(errs, "another way") {
		t.Errorf("status %d: %s", status, errs)
	}
}

func TestPerfRun_badInput(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	for _, line := range []string{
		"run --kubeconfig /does/not/exist", "run --tests moon --dry-run", "run --paths moon --dry-run --from a --to b",
		"run --ip-family ipx", "run --width 0", "run --image  --dry-run --from a --to b",
		"run --tests conf --dry-run --from a --to b", "run --tests tcp_lat,tcp_lat --dry-run --from a --to b", "run --gentle --tests tcp_crr --dry-run --from a --to b", "run --max-bandwidth -1 --dry-run --from a --to b", "run --max-bandwidth 20000 --dry-run --from a --to b",
		"run --duration 1ms --dry-run --from a --to b", "run --budget -20m --dry-run --from a --to b", "run --streams 99 --dry-run --from a --to b", "run --rate -1 --dry-run --from a --to b",
	} {
		if status, out, errs := perfVerb(context.Background(), strings.Split(line, " ")...); status != 3 || out != "" || strings.Count(strings.TrimSpace(errs), "\n") > 0 || strings.Contains(errs, "%!") {
			t.Errorf("%s: status %d, %q, %q", line, status, out, errs)
		}
	}
	status, out, errs := perfVerb(context.Background(), "run", "--dry-run", "--from", "a", "--to", "b")
	if status != 0 || errs != "" || strings.Count(out, "\n---\n") != 10 {
		t.Errorf("status %d, %d documents: %s", status, strings.Count(out, "\n---\n"), errs)
	}
}
