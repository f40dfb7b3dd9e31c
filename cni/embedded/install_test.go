package embedded

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	shimpkg "github.com/podlane/podlane/cni/shim"
)

func TestMain(m *testing.M) {
	if shimpkg.Called() {
		os.Exit(shimpkg.Main(os.Getenv, os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestInstall installs what this build has (its own program without the tag
// embedshim) and starts it as a runtime would.
func TestInstall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "opt", "cni", "bin")
	for range 2 {
		path, err := Install(dir)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path)
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), `"1.1.0"`) {
			t.Fatalf("embedded %v: %s %v", Embedded(), out, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("%v %v, want the plugin alone", entries, err)
	}
}

// TestInstallBytes replaces an older plugin while that runs.
func TestInstallBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), name)
	for _, text := range []string{"#!/bin/sh\necho old\n", "#!/bin/sh\necho new\n"} {
		if err := installBytes(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(path)
		info, err2 := os.Stat(path)
		if err != nil || err2 != nil || !bytes.Equal(have, []byte(text)) || info.Mode().Perm() != 0o755 {
			t.Errorf("%q %v %v %v", have, info, err, err2)
		}
	}
	before, _ := os.Stat(path)
	if err := installBytes(path, []byte("#!/bin/sh\necho new\n")); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("the same plugin was written again")
	}
	if err := installBytes(filepath.Join(path, "under-a-file"), nil); err == nil {
		t.Error("no error for a folder that is a file")
	}
}
