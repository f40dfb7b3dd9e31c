package real

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/kube"
	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/test/e2e/internal/machines"
)

// testPerf measures the cluster from the machine of the control plane, as anybody with a kubeconfig would.
func testPerf(t *testing.T) {
	if !*perfToo {
		t.Skip("takes ten minutes, only when asked for: make e2e-perf")
	}
	for _, s := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"IPv4", func(t *testing.T) { testPerfPaths(t, false) }},
		{"IPv6", func(t *testing.T) { testPerfPaths(t, true) }},
		{"one node", testPerfOneNode},
		{"bad input", testPerfBadInput},
		{"server gone", testPerfServerGone},
		{"killed", testPerfKilled},
		{"cleanup", testPerfCleanup},
		{"dry run", testPerfDryRun},
		{"API server away at the end", testPerfServerAway},
	} {
		t.Run(s.name, func(t *testing.T) {
			s.do(t)
			perfGone(t)
		})
	}
}

// perfCommand is podlane perf with these words, for the cluster.
func perfCommand(kubeconfig string, words ...string) *exec.Cmd {
	args := []string{"perf", words[0], "--kubeconfig", kubeconfig}
	if words[0] == "run" {
		args = append(args, "--image", machines.PodlaneImage)
	}
	return exec.Command(cluster.Path("podlane"), append(args, words[1:]...)...)
}

// short is a run of few and short measurements.
func short(words ...string) []string {
	return append([]string{"run", "--tests", "tcp_lat,udp_lat,tcp_crr", "--rounds", "2", "--duration", "100ms"}, words...)
}

func finish(t *testing.T, cmd *exec.Cmd) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	kill := time.AfterFunc(4*time.Minute, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// left gives everything in the cluster that a run has made.
func left() string {
	out, err := try("get", "namespaces,pods,services,serviceaccounts,roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io", "-A",
		"-l", kube.ManagedLabel+"="+kube.Manager, "-o", "name")
	if err != nil {
		return err.Error()
	}
	return out
}

func perfGone(t *testing.T) {
	t.Helper()
	eventually(t, "all is gone again", func() error {
		if l := left(); l != "" {
			return errors.New(strings.ReplaceAll(l, "\n", " "))
		}
		return nil
	})
}

// testPerfPaths: every path by itself, each proven by the addresses and by podlane's own counters.
func testPerfPaths(t *testing.T, v6 bool) {
	file := filepath.Join(t.TempDir(), "run.json")
	words := short("--paths", strings.Join(kube.Further, ","), "--json", file, "--html", file+".html")
	if v6 {
		words = append(words, "--ip-family", "ipv6")
	}
	began := time.Now()
	stop := balance(map[bool]string{false: "198.51.100.7", true: "2001:db8:198::7"}[v6])
	status, out, errs := finish(t, perfCommand(cluster.Kubeconfig(), words...))
	stop()
	if status != 0 {
		t.Fatalf("status %d\n%s%s%s", status, out, errs, cluster.Describe(t.Context()))
	}
	t.Logf("took %s\n%s", time.Since(began).Round(time.Second), out)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e, err := perf.Load(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Paths) != 9 || len(e.Rows) != 27 || len(e.Cells) != 56 || len(e.Machines) != 9 || e.Invalid != "" || len(e.Steps) != 12 {
		t.Fatalf("%d paths, %d rows, %d cells, %d machines, %d steps, %q", len(e.Paths), len(e.Rows), len(e.Cells), len(e.Machines), len(e.Steps), e.Invalid)
	}
	podNet := netip.MustParsePrefix("10.244.0.0/16")
	if v6 {
		podNet = netip.MustParsePrefix("fd00:244::/48")
	}
	for _, c := range e.Cells {
		if c.Result.Test == qperf.Rest {
			continue
		}
		through := c.Path == perf.PodServicePod || c.Path == kube.Hairpin || c.Path == kube.NodePort || c.Path == kube.Balancer
		if moved, seen := c.Moved[perf.Connections]; seen != (c.Round == 1) || seen && (moved > 0) != through {
			t.Errorf("round %d, %s: %v", c.Round, c.Path, c.Moved)
		}
		p := c.Result.Path
		if p.Data.Addr().Is6() != v6 || podNet.Contains(p.PeerLocal.Addr()) != (c.Path != perf.NodeNode && c.Path != kube.PodNode) || (p.PeerLocal.Addr() != p.Data.Addr()) != through {
			t.Errorf("%s: %+v", c.Path, p)
		}
		if (c.Path == perf.PodPod || c.Path == perf.PodServicePod) && p.SeenByPeer != p.Local {
			t.Errorf("%s: the server saw %s, the client has %s", c.Path, p.SeenByPeer, p.Local)
		}
	}
	if nodes := fmt.Sprint(e.Notes); !strings.Contains(nodes, "{nodes n1 to n2}") && !strings.Contains(nodes, "{nodes n2 to n1}") { // one that is tainted comes last
		t.Errorf("no nodes in %v", nodes)
	}
	way := "routed"
	if fastPath {
		way = "routed, fast path"
	}
	for _, n := range []perf.Note{{Name: "podlane's counters", Value: "read in the first round"}, {Name: "data path", Value: way}} {
		if !strings.Contains(fmt.Sprint(e.Notes), fmt.Sprint(n)) {
			t.Errorf("no note %v in %v", n, e.Notes)
		}
	}
	if !strings.Contains(fmt.Sprint(e.Warnings), "both ends are on one machine") { // the nodes share a kernel
		t.Errorf("warnings %q", e.Warnings)
	}
	perfGone(t)
}

// balance gives the run's Service an address, as a load balancer would, until it is told to stop.
func balance(ip string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ; ctx.Err() == nil; time.Sleep(500 * time.Millisecond) {
			namespace, _ := try("get", "services", "-A", "-l", kube.ManagedLabel+"="+kube.Manager, "-o", "jsonpath={.items[*].metadata.namespace}")
			if namespace != "" {
				_, _ = try("-n", namespace, "patch", "service", "server", "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"`+ip+`"}]}}}`)
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// testPerfOneNode: both ends on one node, when that is asked for.
func testPerfOneNode(t *testing.T) {
	if status, out, errs := finish(t, perfCommand(cluster.Kubeconfig(), short("--from", "n1", "--to", "n1")...)); status != 0 || !strings.Contains(out, perf.PodServicePod) {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
}

// testPerfBadInput: each has exit status 3, says in its last line what is wrong, and leaves nothing.
func testPerfBadInput(t *testing.T) {
	kubectl(t, "create", "serviceaccount", "nobody")
	t.Cleanup(func() { // the test's context has ended by then
		if _, err := try("delete", "serviceaccount/nobody", "clusterrole/sees-nodes", "clusterrolebinding/sees-nodes", "--ignore-not-found"); err != nil {
			t.Error(err)
		}
	})
	admin, err := os.ReadFile(cluster.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	token := kubectl(t, "create", "token", "nobody")
	nobody := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(nobody, bytes.ReplaceAll(admin, []byte("token: admin"), []byte("token: "+token)), 0o600); err != nil {
		t.Fatal(err)
	}
	far := scriptNode{cluster.Nodes[1]}
	for _, c := range []struct {
		name         string
		before, then func(*testing.T)
		kubeconfig   string
		words        []string
		want         []string
	}{
		{name: "no second node", want: []string{"no second node", "n2 is cordoned"},
			before: func(t *testing.T) { kubectl(t, "cordon", "n2") }, then: func(t *testing.T) { kubectl(t, "uncordon", "n2") }},
		{name: "no such node", words: []string{"--to", "n9"}, want: []string{"node n9: no such node"}},
		{name: "node not ready", words: []string{"--to", "ghost"}, want: []string{"node ghost: is not Ready"},
			before: func(t *testing.T) { apply(t, "{apiVersion: v1, kind: Node, metadata: {name: ghost}}") }},
		{name: "image that cannot be pulled", words: []string{"--image", "127.0.0.1:1/none:1"}, want: []string{"pod keeper on n1", "image 127.0.0.1:1/none:1: ", "ImagePull"}},
		{name: "no rights", kubeconfig: nobody, want: []string{"nodes: no rights", `cannot list resource "nodes"`}},
		{name: "rights to look only", kubeconfig: nobody, want: []string{"make namespace podlane-perf-", "no rights"},
			before: func(t *testing.T) {
				kubectl(t, "create", "clusterrole", "sees-nodes", "--verb=list", "--resource=nodes,namespaces")
				kubectl(t, "create", "clusterrolebinding", "sees-nodes", "--clusterrole=sees-nodes", "--serviceaccount=default:nobody")
			}},
		{name: "a family that is not there", words: []string{"--ip-family", "ipx"}, want: []string{"--ip-family ipx"}},
		{name: "data port blocked, as a policy would", want: []string{"round 1: pod-", "NetworkPolicy"},
			before: far.script("nft 'table inet closed { chain c { type filter hook forward priority 0; th dport 4001 drop; }; }'"), then: far.script("nft delete table inet closed")},
		{name: "all ports blocked", want: []string{"pod-pod: conf to 10.244.", "failed to connect", "NetworkPolicy"},
			before: far.script("nft 'table inet closed { chain c { type filter hook forward priority 0; th dport { 4000, 4001 } drop; }; }'"), then: far.script("nft delete table inet closed")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if fastPath && strings.HasSuffix(c.name, "blocked") || fastPath && strings.Contains(c.name, "as a policy would") {
				t.Skip("packets on the fast path pass the packet filter by (PL-031): testExplain shows it")
			}
			if c.before != nil {
				c.before(t)
			}
			if c.then != nil {
				defer c.then(t)
			}
			kubeconfig := cluster.Kubeconfig()
			if c.kubeconfig != "" {
				kubeconfig = c.kubeconfig
			}
			began := time.Now()
			status, out, errs := finish(t, perfCommand(kubeconfig, short(c.words...)...))
			lines := strings.Split(strings.TrimSpace(errs), "\n")
			last := lines[len(lines)-1]
			t.Logf("%s: %s", time.Since(began).Round(time.Second), last)
			for _, want := range c.want {
				if status != 3 || out != "" || !strings.Contains(last, want) {
					t.Errorf("status %d, %q, want %q in the last line of\n%s", status, out, want, errs)
				}
			}
			if took := time.Since(began); took > 100*time.Second {
				t.Errorf("took %s", took)
			}
			perfGone(t)
		})
	}
}

// inMiddle starts a run that would go on for long, and waits until it measures.
func inMiddle(t *testing.T) (cmd *exec.Cmd, id string, errs *bytes.Buffer) {
	t.Helper()
	cmd = perfCommand(cluster.Kubeconfig(), "run", "--tests", "tcp_lat", "--budget", "4m", "--width", "0.01%")
	errs = &bytes.Buffer{}
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(t, "a server has been measured to", func() error {
		name, err := try("get", "namespaces", "-l", kube.ManagedLabel+"="+kube.Manager, "-o", "jsonpath={.items[0].metadata.name}")
		id = strings.TrimPrefix(name, "podlane-perf-")
		if err == nil {
			name, err = try("-n", name, "logs", "pod-server", "--tail=5")
		}
		if err != nil || !strings.Contains(name, "test done") {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	return cmd, strings.TrimSuffix(id, "-host"), errs
}

func testPerfServerGone(t *testing.T) {
	cmd, id, errs := inMiddle(t)
	kubectl(t, "-n", "podlane-perf-"+id, "delete", "pod", "pod-server", "--wait=false")
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 3 || !strings.Contains(errs.String(), "pod-") {
		t.Errorf("%v\n%s", err, errs)
	}
	t.Log(strings.TrimSpace(errs.String()))
}

// testPerfKilled: at ten points of a run's life, by signals that it hears and by one that it does not, together with its guard
// or without; nothing stays in the cluster.
func testPerfKilled(t *testing.T) {
	for i, c := range []struct {
		after  time.Duration
		signal syscall.Signal
		guard  bool // killed too, as when the machine goes down
	}{
		{20 * time.Millisecond, syscall.SIGKILL, false}, {150 * time.Millisecond, syscall.SIGKILL, false}, {300 * time.Millisecond, syscall.SIGTERM, false},
		{600 * time.Millisecond, syscall.SIGKILL, false}, {1200 * time.Millisecond, syscall.SIGINT, false}, {2200 * time.Millisecond, syscall.SIGKILL, false},
		{4 * time.Second, syscall.SIGKILL, true}, {6 * time.Second, syscall.SIGTERM, false}, {9 * time.Second, syscall.SIGKILL, true}, {12 * time.Second, syscall.SIGINT, false},
	} {
		cmd := perfCommand(cluster.Kubeconfig(), "run", "--tests", "tcp_lat", "--budget", "4m", "--width", "0.01%")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(c.after)
		there := strings.Count(left(), "\n")
		if c.guard {
			for _, pid := range childrenOf(cmd.Process.Pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = cmd.Process.Signal(c.signal)
		_ = cmd.Wait()
		began := time.Now()
		perfGone(t)
		t.Logf("%d: after %s by %s: %d objects, gone after %s, exit status %d", i+1, c.after, c.signal, there, time.Since(began).Round(100*time.Millisecond), cmd.ProcessState.ExitCode())
		if status := cmd.ProcessState.ExitCode(); c.signal != syscall.SIGKILL && status != 130 {
			t.Errorf("exit status %d", status)
		}
	}
	time.Sleep(5 * time.Second) // what a guard may still find
	perfGone(t)
}

// childrenOf gives the processes that a process has started.
func childrenOf(pid int) (pids []int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range threads {
		more, _ := os.ReadFile(f)
		text = append(text, more...)
		text = append(text, ' ')
	}
	for _, word := range strings.Fields(string(text)) {
		var n int
		if _, err := fmt.Sscan(word, &n); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// testPerfCleanup: what still runs is left alone unless it is named.
func testPerfCleanup(t *testing.T) {
	cmd, id, errs := inMiddle(t)
	if status, out, errs := finish(t, perfCommand(cluster.Kubeconfig(), "cleanup")); status != 0 || out != "" {
		t.Errorf("nothing is over: status %d\n%s%s", status, out, errs)
	}
	if left() == "" {
		t.Error("a run under way was taken away")
	}
	if status, out, errs := finish(t, perfCommand(cluster.Kubeconfig(), "cleanup", id)); status != 0 || !strings.Contains(out, "deleted namespace podlane-perf-"+id) {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("the run: %v\n%s", err, errs)
	}
	perfGone(t)
	_, _, _ = inMiddle(t)
	if status, out, errs := finish(t, perfCommand(cluster.Kubeconfig(), "cleanup", "--all")); status != 0 || strings.Count(out, "deleted namespace") != 2 {
		t.Errorf("--all: status %d\n%s%s", status, out, errs)
	}
	// Over is what says so itself.
	kubectl(t, "create", "namespace", "podlane-perf-old")
	kubectl(t, "label", "namespace", "podlane-perf-old", kube.ManagedLabel+"="+kube.Manager, kube.RunLabel+"=old")
	kubectl(t, "annotate", "namespace", "podlane-perf-old", kube.UntilAnnotation+"="+time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	if status, out, errs := finish(t, perfCommand(cluster.Kubeconfig(), "cleanup")); status != 0 || !strings.Contains(out, "deleted namespace podlane-perf-old") {
		t.Errorf("what is over: status %d\n%s%s", status, out, errs)
	}
}

// testPerfDryRun: it makes nothing, and what it prints is what the API server takes. As nobody attaches to its keeper then, that
// takes its namespace away by itself; the other one, which has no owner that is not made yet, goes by its label.
func testPerfDryRun(t *testing.T) {
	status, out, errs := finish(t, perfCommand(cluster.Kubeconfig(), short("--dry-run", "--paths", strings.Join(kube.Further, ","))...))
	if status != 0 || left() != "" {
		t.Fatalf("status %d, left %q\n%s", status, left(), errs)
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(cluster.Bin, "kubectl"), "--kubeconfig", cluster.Kubeconfig(), "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(out)
	if said, err := cmd.CombinedOutput(); err != nil || strings.Count(string(said), " created") != 12 || strings.Contains(string(said), "Warning") {
		t.Errorf("%v\n%s", err, said)
	}
	began := time.Now()
	eventually(t, "the keeper's namespace is gone", func() error {
		if out, err := try("get", "namespaces", "-l", kube.ManagedLabel+"="+kube.Manager, "-o", "name"); err != nil || !strings.HasSuffix(out, "-host") || strings.Contains(out, "\n") {
			return fmt.Errorf("%s %w", out, err)
		}
		return nil
	})
	t.Logf("gone %s after it was made", time.Since(began).Round(time.Second))
	if status, out, errs := finish(t, perfCommand(cluster.Kubeconfig(), "cleanup", "--all")); status != 0 || strings.Count(out, "deleted namespace") != 1 {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
}

// testPerfServerAway: the command ends while there is no API server to be asked; when that is back, all goes.
func testPerfServerAway(t *testing.T) {
	cmd, _, errs := inMiddle(t)
	cluster.KillAPI()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if err := cluster.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("exit status %d: %s", cmd.ProcessState.ExitCode(), strings.TrimSpace(errs.String()))
	perfGone(t)
}
