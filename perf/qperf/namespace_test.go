package qperf

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/podlane/podlane/internal/nettest"
)

// nft loads rules into the calling thread's namespace.
func nft(t *testing.T, rules string) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skipf("needs nft: %v", err)
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

func inNamespace(t *testing.T, args ...string) *Result {
	t.Helper()
	r := &Result{}
	if err := json.Unmarshal([]byte(ourClient(t, append([]string{"--json", "-lp", "4000", "-ip", "4001"}, args...)...)), r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestLoss_known: the kernel drops exactly every 50th datagram on its way to the server. The
// loss must be found, and it must neither stall udp_lat nor falsify its mean.
//
//	client --> lo --> [nft input: drop 1 in 50 to udp 4001] --> server
func TestLoss_known(t *testing.T) {
	nettest.New(t)
	startServer(t, 4000)
	if whole := inNamespace(t, "-t", "500ms", "127.0.0.1", "udp_lat"); whole.Loss.Lost > 2 {
		t.Errorf("without a rule: %+v", whole.Loss)
	}
	nft(t, "table inet t { chain c { type filter hook input priority 0; udp dport 4001 numgen inc mod 50 0 drop; }; }\n")
	for _, family := range []string{"127.0.0.1", "::1"} {
		lat := inNamespace(t, "-t", "1s", family, "udp_lat")
		// A reply that a busy machine holds up for longer than 20 ms counts as lost too.
		if l := lat.Loss; l.Sent < 100 || l.Lost+1 < l.Sent/50 || l.Lost > l.Sent/50+max(5, l.Sent/100) {
			t.Errorf("udp_lat: loss %+v, want 1 in 50", l)
		}
		qperfs := lat.Time / float64(lat.Local.Received.Messages+lat.Remote.Received.Messages)
		if v := lat.Value(); v <= 0 || v > 0.9*qperfs {
			t.Errorf("udp_lat: %g s, elapsed / messages is %g s: the lost are in the mean", v, qperfs)
		}
		// Paced by nothing, the blast loses in the socket's queue too: at least the rule's part.
		bw := inNamespace(t, "-t", "500ms", "-m", "100", family, "udp_bw")
		if f := bw.Loss.Fraction; !bw.Loss.Exact || f < 0.0195 || bw.Loss.Reordered > 0 || bw.Loss.Duplicates > 0 {
			t.Errorf("udp_bw: loss %+v, want 1 in 50 at least", bw.Loss)
		}
	}
}

// TestLoss_all: nothing comes back. The test ends in time, and says so.
func TestLoss_all(t *testing.T) {
	nettest.New(t)
	startServer(t, 4000)
	nft(t, "table inet t { chain c { type filter hook input priority 0; udp dport 4001 drop; }; }\n")
	lat := inNamespace(t, "-t", "1s", "127.0.0.1", "udp_lat")
	if lat.Value() != 0 || lat.Loss.Lost != lat.Loss.Sent-1 && lat.Loss.Lost != lat.Loss.Sent {
		t.Errorf("udp_lat: %g s, %+v", lat.Value(), lat.Loss)
	}
	bw := inNamespace(t, "-t", "500ms", "127.0.0.1", "udp_bw")
	if bw.Value() != 0 || bw.Loss.Fraction != 1 {
		t.Errorf("udp_bw: %g bytes/s, %+v", bw.Value(), bw.Loss)
	}
}

// TestTranslated: through a DNAT, as a Service does, in both families; the result shows that the
// path was translated.
func TestTranslated(t *testing.T) {
	nettest.New(t)
	startServer(t, 4000)
	nft(t, `table inet t { chain c { type nat hook output priority -100;
		ip daddr 127.0.0.99 tcp dport { 4000, 4001 } dnat ip to 127.0.0.5
		ip daddr 127.0.0.99 udp dport 4001 dnat ip to 127.0.0.5
		}
	}
	`)
	for _, test := range Tests {
		r := inNamespace(t, "-t", "250ms", "127.0.0.99", string(test))
		if r.Value() <= 0 || r.Path.Data.Addr().String() != "127.0.0.99" || r.Path.PeerLocal.Addr().String() != "127.0.0.5" {
			t.Errorf("%s: %g, %+v", test, r.Value(), r.Path)
		}
	}
}
