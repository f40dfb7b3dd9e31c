package explain_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/overlay"
)

var update = flag.Bool("update", false, "write the golden files")

// The drawings are what they were when somebody last looked at them.
func TestPictures_golden(t *testing.T) {
	for name, a := range map[string]struct {
		explain.Access
		mode overlay.Mode
	}{
		"service": {explain.Access{From: "client", To: "web:80"}, overlay.VXLAN},
		"self":    {explain.Access{From: "near", To: "svc/web"}, overlay.Direct},
		"refused": {explain.Access{From: "node/n1", To: "svc/empty"}, overlay.VXLAN},
		"outside": {explain.Access{From: "203.0.113.9", To: "default/far"}, overlay.VXLAN},
	} {
		a.Protocol = cluster.TCP
		answer, err := explain.Explain(world(t, a.mode, web), a.Access)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for form, write := range map[string]func(io.Writer) error{"dot": answer.DOT, "mmd": answer.Mermaid, "svg": answer.SVG} {
			var got bytes.Buffer
			if err := write(&got); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+"."+form)
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("not %s (-update writes it):\n%s", golden, got.Bytes())
			}
			if form == "svg" {
				wellFormed(t, name, &got)
			}
		}
	}
}

func wellFormed(t *testing.T, name string, r io.Reader) {
	t.Helper()
	for d := xml.NewDecoder(r); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Errorf("%s: not XML: %v", name, err)
			return
		}
	}
}
