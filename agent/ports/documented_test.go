package ports

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/podlane/podlane/proxy"
)

// TestDocumented: docs/operations.md has every metric of ours, and the dashboard asks
// for none that is not there.
func TestDocumented(t *testing.T) {
	m := NewMetrics(func() (int, int, error) { return 0, 0, nil }, func() *proxy.Table { return nil }, func() (f, e []ServiceCount, err error) { return nil, nil, nil })
	none := func() (map[string]uint64, error) { return nil, nil }
	m.FastPath(none, none)
	m.Policies(func() int { return 0 })
	m.Agent(func() *Figures { return nil }, func() (map[string]uint64, error) { return nil, nil })
	descs := make(chan *prometheus.Desc)
	go func() { m.registry.Describe(descs); close(descs) }()
	names := map[string]bool{}
	for d := range descs {
		if found := regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String()); found != nil {
			names[found[1]] = true
		}
	}
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range names {
		if strings.HasPrefix(name, "podlane_") && !strings.Contains(string(doc), "`"+name) {
			t.Errorf("docs/operations.md lacks %s", name)
		}
	}
	board, err := os.ReadFile("../../deploy/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(board) {
		t.Error("the dashboard is no JSON")
	}
	for _, name := range regexp.MustCompile(`\b(podlane|kubeproxy)_[a-z_]+`).FindAllString(string(board), -1) {
		if !names[strings.TrimSuffix(name, "_bucket")] {
			t.Errorf("the dashboard asks for %s", name)
		}
	}
}
