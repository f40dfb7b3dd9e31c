package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The committed objects are what the compiler of gen.go makes of the C sources.
func TestObjects(t *testing.T) {
	for folder, stem := range map[string]string{".": "fastpath", "socket": "socket"} {
		t.Run(stem, func(t *testing.T) { sameObjects(t, folder, stem) })
	}
}

func sameObjects(t *testing.T, folder, stem string) {
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
	gen, err := os.ReadFile(filepath.Join(folder, "gen.go"))
	must(t, err)
	_, line, found := strings.Cut(string(gen), "//go:generate go ")
	if !found {
		t.Fatal("gen.go: no go:generate")
	}
	pwd, err := filepath.Abs(folder)
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
	cmd.Dir, cmd.Env = folder, append(os.Environ(), "GOPACKAGE=bpf")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{stem + "_bpfel.o", stem + "_bpfeb.o"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if have, err := os.ReadFile(filepath.Join(folder, name)); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is not what the source gives: make bpf (%v)", name, err)
		}
	}
}
