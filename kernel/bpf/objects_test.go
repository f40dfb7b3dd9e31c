package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The committed objects are what the compiler of gen.go makes of the C source.
func TestObjects(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles")
	}
	for _, needed := range []string{"clang-14", "llvm-strip-14"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skipf("needs Debian's clang-14, llvm-14 and libbpf-dev: %v", err)
		}
	}
	if _, err := os.Stat("/usr/include/bpf/bpf_helpers.h"); err != nil {
		t.Skipf("needs libbpf-dev: %v", err)
	}
	gen, err := os.ReadFile("gen.go")
	must(t, err)
	_, line, found := strings.Cut(string(gen), "//go:generate go ")
	if !found {
		t.Fatal("gen.go: no go:generate")
	}
	pwd, err := os.Getwd()
	must(t, err)
	dir := t.TempDir()
	args := strings.Fields(strings.ReplaceAll(line, "${PWD}", pwd))
	for i, a := range args {
		if a == "-output-stem" {
			args = append(args[:i], append([]string{"-output-dir", dir}, args[i:]...)...)
			break
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOPACKAGE=bpf")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"fastpath_bpfel.o", "fastpath_bpfeb.o"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if have, err := os.ReadFile(name); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is not what the source gives: make bpf (%v)", name, err)
		}
	}
}
