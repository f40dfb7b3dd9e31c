package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestUpModule(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	module, err := upModule(here)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(module, "cmd", "up", "main.go")); err != nil {
		t.Error(err)
	}
	if _, err := upModule(t.TempDir()); err == nil || !strings.Contains(err.Error(), "git clone") {
		t.Errorf("outside of a checkout: %v", err)
	}
}

func TestBuildUp_noGo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	cmd := &cobra.Command{}
	cmd.SetContext(context.Background())
	if _, err := buildUp(cmd, t.TempDir()); err == nil || !strings.Contains(err.Error(), "https://go.dev/dl/") {
		t.Errorf("without Go: %v", err)
	}
}

func TestRunKubernetes_flags(t *testing.T) {
	cmd := newRoot()
	cmd.SetArgs([]string{"lab", "up", "--kubernetes", "--overlay", "vxlan"})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.Execute(); err == nil || !strings.HasPrefix(err.Error(), "--overlay: not with --kubernetes") {
		t.Errorf("with a flag of the lab: %v", err)
	}
}
