package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDebugBundle has no agent: the bundle says so, and has the rest.
func TestDebugBundle(t *testing.T) {
	dir := t.TempDir()
	record := filepath.Join(dir, "allocations", "v1", "c1-eth0.json")
	if err := os.MkdirAll(filepath.Dir(record), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{record: `{"pod":"web"}`, filepath.Join(dir, "token"): "secret"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	if status := run(t.Context(), []string{"podlane", "debug", "bundle", "-o", "-", "--run-dir", dir, "--state-dir", dir, "--cni-dirs", dir}, nil, &out, &errs); status != 0 {
		t.Fatal(status, errs.String())
	}
	zip, err := gzip.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
		if strings.Contains(string(text), "secret") {
			t.Errorf("%s has what is in a file that it should only name", h.Name)
		}
	}
	for name, want := range map[string]string{
		"status.json": "no agent answers", "allocations/c1-eth0.json": `{"pod":"web"}`, "cni.txt": filepath.Join(dir, "token"),
		"kernel/proc_net_dev": "lo:", "version.txt": version,
	} {
		if !strings.Contains(files["podlane/"+name], want) {
			t.Errorf("%s: %q, want %q in it", name, files["podlane/"+name], want)
		}
	}
}
