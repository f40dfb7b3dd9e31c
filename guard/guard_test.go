package guard

import (
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var update = flag.Bool("update", false, "write the golden files")

var own = cluster.Key{Name: "n1"}

// clusterOf gives a Builder with the nodes of an Input.
func clusterOf(in overlay.Input) *cluster.Builder {
	b := cluster.NewBuilder()
	for _, n := range in.Nodes.All() {
		b.SetNode(n)
	}
	return b
}

func input() overlay.Input {
	b := cluster.NewBuilder()
	for i, name := range []string{"n1", "n2", "n3"} {
		d := string(rune('1' + i))
		b.SetNode(&cluster.Node{
			Key:       cluster.Key{Name: name},
			Addresses: []netip.Addr{netip.MustParseAddr("192.0.2." + d), netip.MustParseAddr("2001:db8::" + d)},
			PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244." + d + ".0/24"), netip.MustParsePrefix("fd00:244:0:" + d + "::/64")},
		})
	}
	return overlay.Input{Config: overlay.Config{Cluster: "c"}, Node: "n1", Nodes: b.Publish().Nodes}
}

var outside = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}

// TestTx_golden has the kernel take the rules, twice, and nft print what is meant.
func TestTx_golden(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft:", err)
	}
	nettest.New(t)
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 {
		for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
			if err := conn.Commit(Compile(input(), outside, f).Tx()); err != nil {
				t.Fatal(err)
			}
		}
	}
	golden(t, "ruleset", nettest.Run(t, "nft", "list", "ruleset"))
}

// TestCompile says which mode wants what.
func TestCompile(t *testing.T) {
	in := input()
	r := Compile(in, outside, nft.IPv4)
	if len(r.Nodes) != 2 || len(r.Pairs) != 8 || r.Port != 8472 {
		t.Errorf("%+v", r)
	}
	if !r.Equal(Compile(in, outside, nft.IPv4)) || r.Equal(Compile(in, nil, nft.IPv4)) || r.Equal(Compile(in, outside, nft.IPv6)) {
		t.Error("Equal")
	}
	in.Config.Mode = overlay.Direct
	if r := Compile(in, outside, nft.IPv4); r.Port != 0 || len(r.Pairs) != 0 || len(r.Nodes) != 2 {
		t.Errorf("direct: %+v", r)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}
