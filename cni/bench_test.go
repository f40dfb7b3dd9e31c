package cni

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkADD is one ADD after the other through the real shim, each followed
// by its DEL, which is not measured. shim-cpu-ms is the CPU time of the shim's
// process alone, user and system; agent-ms the time in the agent's loop.
func BenchmarkADD(b *testing.B) {
	n := newNode(b, bothFamilies)
	var inLoop time.Duration
	n.start(func(l *loop) {
		var began time.Time
		l.knows = true
		l.received = func() { began = time.Now() }
		l.handled = func() { inLoop += time.Since(began) }
	})
	if !n.withShim() {
		b.Skip("the real shim cannot be built here")
	}
	p := newPod(b, "web-0")
	var cpu time.Duration
	for b.Loop() {
		cpu += n.exec(b, "ADD", p)
		b.StopTimer()
		add := inLoop
		n.exec(b, "DEL", p)
		inLoop = add
		n.rest()
		b.StartTimer()
	}
	b.ReportMetric(float64(cpu.Microseconds())/1e3/float64(b.N), "shim-cpu-ms/op")
	b.ReportMetric(float64(inLoop.Microseconds())/1e3/float64(b.N), "agent-ms/op")
}

// TestShim_size keeps the plugin small: it is started for every pod.
func TestShim_size(t *testing.T) {
	n := &node{t: t}
	if !n.withShim() {
		t.Skip("the real shim cannot be built here")
	}
	info, err := os.Stat(filepath.Join(n.bin, PluginName))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 2_500_000 {
		t.Errorf("the shim has %d bytes: which package came in?", info.Size())
	}
}

// exec runs the plugin as a runtime does and gives its CPU time.
func (n *node) exec(tb testing.TB, command string, p pod) time.Duration {
	_, list := n.cni("")
	config := bytes.Replace(list.Plugins[0].Bytes, []byte("{"), []byte(`{"cniVersion":"1.1.0","name":"podlane",`), 1)
	cmd := exec.Command(filepath.Join(n.bin, PluginName))
	cmd.Stdin = bytes.NewReader(config)
	cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.path, "CNI_IFNAME=eth0", "CNI_PATH=" + n.bin}
	if out, err := cmd.Output(); err != nil {
		tb.Fatal(fmt.Errorf("%s: %w: %s", command, err, out))
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// BenchmarkADD50 is fifty ADDs at once through the real shim, as a node that starts
// has them: the longest of each fifty, the 99th percentile of all, and the time in
// the agent's loop for each fifty.
func BenchmarkADD50(b *testing.B) {
	n := newNode(b, bothFamilies)
	var inLoop time.Duration
	n.start(func(l *loop) {
		var began time.Time
		l.knows = true
		l.received = func() { began = time.Now() }
		l.handled = func() { inLoop += time.Since(began) }
	})
	if !n.withShim() {
		b.Skip("the real shim cannot be built here")
	}
	pods := make([]pod, 50)
	for i := range pods {
		pods[i] = newPod(b, fmt.Sprintf("pod-%d", i))
	}
	var took []time.Duration
	var agent time.Duration
	for b.Loop() {
		inLoop = 0
		took = append(took, n.together(b, "ADD", pods)...)
		agent += inLoop
		b.StopTimer()
		n.together(b, "DEL", pods)
		n.rest()
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1e3, "p99-ms")
	b.ReportMetric(float64(agent.Microseconds())/1e3/float64(b.N), "agent-ms/op")
}

// together runs one command for all pods at the same time, and gives how long each
// took.
func (n *node) together(b *testing.B, command string, pods []pod) []time.Duration {
	took := make([]time.Duration, len(pods))
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() {
			start := time.Now()
			n.exec(b, command, p)
			took[i] = time.Since(start)
		})
	}
	wg.Wait()
	return took
}
