package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestRemote(t *testing.T) {
	podOf := func(node string) (string, error) {
		if node == "gone" {
			return "", errors.New("no agent")
		}
		return "pod/agent-of-" + node, nil
	}
	for _, c := range []struct{ args, want string }{
		{"status", "-n podlane exec daemonset/podlane-agent -c agent -- /podlane status"},
		{"status --json --node n2", "-n podlane exec pod/agent-of-n2 -c agent -- /podlane status --json"},
		{"explain --node=n1 default/curl web:80", "-n podlane exec pod/agent-of-n1 -c agent -- /podlane explain default/curl web:80"},
		{"perf run --node n1", ""}, {"plan", ""}, {"", ""},
		{"status --node gone", "error"}, {"status --node", "error"},
	} {
		got, err := remote(strings.Fields(c.args), podOf)
		if err != nil && c.want == "error" {
			continue
		}
		if err != nil || !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%q: %q %v, want %q", c.args, got, err, c.want)
		}
	}
	if !asPlugin("/usr/local/bin/kubectl-podlane") || asPlugin("/usr/local/bin/podlane") {
		t.Error("asPlugin")
	}
}
