package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/internal/nettest"
)

const benchServices, benchEndpoints = 10_000, 10

// benchManifests writes a cluster of two nodes with 10,000 Services of 10 endpoints
// each as YAML, and gives its folder.
func benchManifests(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	f, err := os.Create(filepath.Join(dir, "cluster.yaml"))
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for i, cidr := range []string{"10.128.0.0/10", "10.192.0.0/10"} {
		fmt.Fprintf(w, "apiVersion: v1\nkind: Node\nmetadata: {name: n%d}\nspec: {podCIDRs: [%s]}\nstatus: {addresses: [{type: InternalIP, address: 192.168.200.%d}]}\n---\n", i+1, cidr, i+1)
	}
	fmt.Fprint(w, "apiVersion: v1\nkind: Pod\nmetadata: {name: client}\nspec: {nodeName: n1, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: 10.129.255.2}], phase: Running}\n")
	n := 0
	for i := range benchServices {
		cluster := netip.AddrFrom4([4]byte{10, 96, byte(1 + i>>8), byte(i)})
		fmt.Fprintf(w, "---\napiVersion: v1\nkind: Service\nmetadata: {name: svc%d}\nspec:\n  clusterIP: %s\n  ports:\n  - {port: 80, targetPort: 8080}\n", i, cluster)
		fmt.Fprintf(w, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: svc%d, labels: {kubernetes.io/service-name: svc%[1]d}}\naddressType: IPv4\nports: [{port: 8080, protocol: TCP}]\nendpoints:\n", i)
		for range benchEndpoints {
			fmt.Fprintf(w, "- {addresses: [%s], nodeName: n%d, conditions: {ready: true}}\n", benchPod(n), n%2+1)
			n++
		}
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return dir
}

// benchPod is the address of a pod on one of the two nodes.
func benchPod(n int) netip.Addr {
	v := n/2 + 1
	return netip.AddrFrom4([4]byte{10, byte(128 + 64*(n%2) + v>>16), byte(v >> 8), byte(v)})
}

// benchProgram builds podlane as make build does.
func benchProgram(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "podlane")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return path
}

// A whole `podlane explain` with 10,000 Services of 10 endpoints that starts from
// manifests: it reads all of them. The aim is 1.5 s.
func BenchmarkExplain_cold(b *testing.B) {
	program, dir := benchProgram(b), benchManifests(b)
	for b.Loop() {
		benchExplain(b, program, "-f", dir)
	}
}

// A whole `podlane explain` with 10,000 Services of 10 endpoints that asks a
// running agent, which has brought them to the kernel. The aim is 200 ms.
func BenchmarkExplain_agent(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("an agent needs root")
	}
	program, dir, run := benchProgram(b), benchManifests(b), b.TempDir()
	nettest.New(b)
	nettest.Run(b, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
	nettest.Run(b, "ip", "addr", "add", "192.168.200.1/24", "dev", "eth0")
	nettest.Run(b, "ip", "link", "set", "eth0", "up")
	nettest.Run(b, "ip", "link", "set", "other", "up")
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "agent", "--node", "n1", "--manifests", dir, "--run-dir", run, "--state-dir", run,
		"--service-proxy", "on", "--fast-path", "off", "--healthz-bind-address=", "--metrics-bind-address=")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	awaitAgent(b, filepath.Join(run, "agent.sock"))
	for b.Loop() {
		benchExplain(b, program, "--run-dir", run)
	}
}

// awaitAgent waits until an agent has applied what it knows.
func awaitAgent(b *testing.B, socket string) {
	b.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		reply, err := shim.Ask(socket, shim.Request{Verb: agent.VerbStatus}, 30*time.Second)
		var s agent.Status
		if err == nil && json.Unmarshal(reply.Result, &s) == nil && s.Services >= benchServices && s.Error == "" {
			return
		}
	}
	b.Fatal("the agent does not settle")
}

func benchExplain(b *testing.B, program string, where ...string) {
	b.Helper()
	out, err := exec.Command(program, append([]string{"explain", "default/client", "10.96.1.77:80"}, where...)...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "verdict: ") || !strings.Contains(string(out), "1/10") {
		b.Fatalf("%v: %s", err, out)
	}
}
