package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/link"
)

// TestFormer_broken: a file that a crash of the machine cut short does not keep the
// agent from its work; an uninstallation says that it cannot restore what was in it.
func TestFormer_broken(t *testing.T) {
	nettest.New(t)
	h, err := link.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, FormerFile)
	spoil := func() {
		if err := os.WriteFile(file, []byte(`{"net/ipv4/ip_fo`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	spoil()
	path := "net/ipv4/ip_forward"
	if err := NewFormer(dir).Keep(map[string]string{path: "0"}, map[string]string{path: "1"}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), `"net/ipv4/ip_forward": "0"`) {
		t.Errorf("%s %v", text, err)
	}
	if err := NewFormer(dir).Restore(h); err != nil {
		t.Error(err)
	}
	spoil()
	if err := NewFormer(dir).Restore(h); err == nil || !strings.Contains(err.Error(), file+".bad") {
		t.Errorf("the broken file is restored without a word: %v", err)
	}
}
