package main

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRemote(t *testing.T) {
	podOf := func(_ []string, node string) (string, error) {
		if node == "gone" {
			return "", errors.New("no agent")
		}
		return "pod/agent-of-" + node, nil
	}
	for _, c := range []struct{ args, want, file string }{
		{"status", "-n podlane exec daemonset/podlane-agent -c agent -- /podlane status", ""},
		{"status --json --node n2", "-n podlane exec pod/agent-of-n2 -c agent -- /podlane status --json", ""},
		{"explain --node=n1 default/curl web:80", "-n podlane exec pod/agent-of-n1 -c agent -- /podlane explain default/curl web:80", ""},
		{"status --context=east --node n1", "--context east -n podlane exec pod/agent-of-n1 -c agent -- /podlane status", ""},
		{"--context east status -- --context west", "--context east -n podlane exec daemonset/podlane-agent -c agent -- /podlane status -- --context west", ""},
		{"debug bundle", "-n podlane exec daemonset/podlane-agent -c agent -- /podlane debug bundle -o -", bundleName},
		{"debug bundle -o n1.tar.gz --node n1", "-n podlane exec pod/agent-of-n1 -c agent -- /podlane debug bundle -o -", "n1.tar.gz"},
		{"debug bundle -on1.tar.gz", "-n podlane exec daemonset/podlane-agent -c agent -- /podlane debug bundle -o -", "n1.tar.gz"},
		{"debug bundle --output=-", "-n podlane exec daemonset/podlane-agent -c agent -- /podlane debug bundle -o -", ""},
		{"debug bundle --help", "-n podlane exec daemonset/podlane-agent -c agent -- /podlane debug bundle --help", ""},
		{"perf run --node n1", "", ""}, {"plan", "", ""}, {"", "", ""},
		{"status --node gone", "error", ""}, {"status --node", "error", ""}, {"status --context=", "error", ""},
	} {
		got, err := remote(strings.Fields(c.args), podOf)
		if err != nil && c.want == "error" {
			continue
		}
		if got == nil {
			got = &kubectlRun{}
		}
		if err != nil || !slices.Equal(got.args, strings.Fields(c.want)) || got.file != c.file {
			t.Errorf("%q: %q %q %v, want %q %q", c.args, got.args, got.file, err, c.want, c.file)
		}
	}
	if !asPlugin("/usr/local/bin/kubectl-podlane") || asPlugin("/usr/local/bin/podlane") {
		t.Error("asPlugin")
	}
}

// TestKubectlRun: the output is in the user's file; one that exists, and the file of a
// run that failed or that Ctrl-C ended, which both processes get, are not left spoiled.
func TestKubectlRun(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte("#!/bin/sh\necho $1\n[ $2 != ^C ] || kill -INT $PPID $$\nexit $2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "out")
	run := func(status string) error {
		return (&kubectlRun{args: []string{"bundle" + status, status}, file: file}).run()
	}
	t.Cleanup(func() { signal.Reset(os.Interrupt) })
	for _, fails := range []string{"1", "^C"} {
		if err := run(fails); err == nil {
			t.Errorf("%s: a failure is not told", fails)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s: what failed has left a file", fails)
		}
	}
	first, second := run("0"), run("0")
	if text, err := os.ReadFile(file); string(text) != "bundle0\n" || err != nil || first != nil || second == nil || !strings.HasSuffix(second.Error(), "out exists: choose another by -o") {
		t.Errorf("%q %v, once %v, again %v", text, err, first, second)
	}
}
