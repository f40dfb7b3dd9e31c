package main

import (
	"io"
	"strings"
	"testing"
)

// TestAgent_check: settings that cannot be are refused before anything is done.
func TestAgent_check(t *testing.T) {
	for args, want := range map[string]string{
		"":                                   "",
		"--vxlan-port 4789 --vxlan-vni 4096": "",
		"--vxlan-port 8473":                  "agents' probes",
		"--vxlan-vni 16777216":               "24 bits",
		"--vxlan-vni 0":                      "above 0",
		"--overlay bridge":                   "--overlay",
	} {
		cmd := newAgent()
		cmd.SetArgs(append([]string{"--check", "--node", "n1", "--manifests", t.TempDir()}, strings.Fields(args)...))
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		err := cmd.Execute()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
