package main

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/spf13/cobra"
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
		"--cluster=":                         "--cluster is empty",
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

// TestFlagErrors: what a flag wants is said in words of the flag.
func TestFlagErrors(t *testing.T) {
	for arg, want := range map[string]string{
		"--masquerade=yes":    `podlane: --masquerade "yes": want true or false`,
		"--events=":           `podlane: --events "": want true or false`,
		"--vxlan-vni=many":    `podlane: --vxlan-vni "many": want a number`,
		"--vxlan-port=100000": `podlane: --vxlan-port "100000": want a number of type uint16`,
		"--no-such":           "podlane: unknown flag: --no-such",
	} {
		var errs bytes.Buffer
		if status := run(t.Context(), []string{"podlane", "agent", "--check", arg}, nil, io.Discard, &errs); status != 1 || strings.TrimSpace(errs.String()) != want {
			t.Errorf("%s: %d %q, want %q", arg, status, errs.String(), want)
		}
	}
}

// TestAgent_traces: a cleanup by hand looks where container runtimes look.
func TestAgent_traces(t *testing.T) {
	for args, want := range map[string]string{
		"--cleanup": "/etc/cni/net.d /opt/cni/bin", "--cleanup --cni-conf-dir /x --cni-bin-dir /y": "/x /y", "--cleanup --cni-conf-dir=": " /opt/cni/bin",
	} {
		var f agentFlags
		cmd := &cobra.Command{}
		f.install.add(cmd.Flags())
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if traces := f.traces(cmd, slog.New(slog.DiscardHandler)); traces.ConfDir+" "+traces.BinDir != want {
			t.Errorf("%s: %s %s, want %s", args, traces.ConfDir, traces.BinDir, want)
		}
	}
}
