// Package real tests Podlane on a real Kubernetes, installed from its manifest, in a
// container of its image. It has no code of its own. All tests share one cluster,
// and the last one takes Podlane off it.
package real

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/podlane/podlane/test/e2e/internal/control"
	"github.com/podlane/podlane/test/e2e/internal/machines"
)

var (
	long    = flag.Bool("long", false, "scenarios at full length")
	perfToo = flag.Bool("perf", false, "podlane perf run on the cluster too, killed at ten points: ten minutes more")
	// fastPath has all steps run with the fast path and the translation at the socket on,
	// from the install. Where a step is of the normal path alone it does something else then, and says so.
	fastPath = os.Getenv("PODLANE_E2E_FAST_PATH") == "on"
	// cluster is the one of all tests.
	cluster *machines.Cluster
)

func TestMain(m *testing.M) {
	flag.Parse()
	switch {
	case testing.Short():
		fmt.Println("skipped, for they need a Kubernetes (-short): all tests of test/e2e/real")
		os.Exit(0)
	case os.Geteuid() != 0:
		fmt.Println("skipped, for containerd and kubelet need root: all tests of test/e2e/real")
		os.Exit(0)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	err := machines.Prepare(ctx, os.Stderr, func(ctx context.Context) (string, error) {
		return control.Build(ctx, os.Stderr, control.All()...)
	})
	fail(err)
	fail(machines.PrepareDNS(ctx))
	inside, status := machines.Enter()
	if !inside {
		os.Exit(status)
	}
	o := machines.Prepared(2, os.Stderr)
	o.FastPath = fastPath
	cluster, err = machines.Up(ctx, o)
	fail(err)
	os.Exit(m.Run())
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

// TestPodlane runs all tests on the one cluster, in the order of a cluster's life.
func TestPodlane(t *testing.T) {
	steps := []struct {
		name string
		do   func(*testing.T)
	}{
		{"not ready", testNotReady},
		{"installs", testInstalls},
		{"rights", testRights},
		{"status", testStatus},
		{"seen", testSeen},
		{"plugin", testPlugin},
		{"workloads", testWorkloads},
		{"fast path", testFastPath},
		{"egress", testEgress},
		{"network policies", testPolicies},
		{"host port", testHostPort},
		{"readiness", testReadiness},
		{"stateful set", testStatefulSet},
		{"rolling update", testRollingUpdate},
		{"perf", testPerf},
		{"agent restart", testAgentRestart},
		{"upgrade", testUpgrade},
		{"faults", testFaults},
		{"vxlan", testVXLAN},
		{"explain", testExplain},
		{"doctor", testDoctor},
		{"DNS server gone", testDNSGone},
		{"server away", testServerAway},
		{"CoreDNS taken over", testCoreDNS},
		{"DNS Service made anew", testDNSAnew},
		{"uninstalls", testUninstalls},
	}
	for _, s := range steps {
		if !t.Run(s.name, s.do) && s.name == "installs" {
			t.Fatal("nothing else can work")
		}
	}
}
