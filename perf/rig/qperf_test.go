package rig

import (
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/lab"
)

// The real qperf's server and ours in two pods, each behind a Service.
const qperfPods = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: n1
  containers: [{name: client, image: busybox, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: ours, labels: {app: ours}}
spec:
  nodeName: n2
  containers: [{name: server, image: qperf, args: ["--lp", "4000"], ports: [{containerPort: 4000}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: real, labels: {app: real}}
spec:
  nodeName: n2
  containers: [{name: server, image: real, command: [qperf, "-lp", "4000"]}]
---
apiVersion: v1
kind: Service
metadata: {name: ours}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: ours}
  ports: [{name: control, port: 4000}, {name: data-tcp, port: 4001}, {name: data-udp, port: 4001, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: real}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: real}
  ports: [{name: control, port: 4000}, {name: data-tcp, port: 4001}, {name: data-udp, port: 4001, protocol: UDP}]
`

// The real qperf's client to our server and our client to the real one's, from pod to pod on another node, straight and through a
// Service, over IPv4 and IPv6.
func TestQperf_throughAService(t *testing.T) {
	needProgram(t)
	if _, err := exec.LookPath("qperf"); err != nil {
		t.Skipf("needs qperf, the real one: %v", err)
	}
	const name = "rig-qperf"
	podlane := func(in string, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, append([]string{"lab", "--name", name}, args...)...)
		cmd.Stdin = strings.NewReader(in)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	t.Cleanup(func() { _ = exec.Command(program, "lab", "--name", name, "down").Run() })
	podlane(qperfPods, "up", "--ip-family", "dual", "-f", "-")
	var st lab.Status
	if err := json.Unmarshal([]byte(podlane("", "status", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	servers := map[string][]string{}
	for _, p := range st.Pods {
		servers[p.Name] = append(servers[p.Name], p.IPs...)
	}
	for _, s := range st.Services {
		servers[s.Name] = append(servers[s.Name], s.ClusterIPs...)
	}
	for kind, client := range map[string][]string{"ours": {"qperf"}, "real": {program, "perf", "client"}} {
		if len(servers[kind]) != 4 {
			t.Fatalf("%s: addresses %q, want a pod's and a Service's of both families", kind, servers[kind])
		}
		for _, addr := range servers[kind] {
			line := append([]string{"exec", "client", "--"}, client...)
			out := podlane("", append(line, addr, "-lp", "4000", "-ip", "4001", "-t", "1", "-m", "1300", "-v", "tcp_bw", "udp_bw", "-m", "1", "tcp_lat", "udp_lat", "conf")...)
			for _, want := range []string{"tcp_bw:\n    bw  ", "udp_bw:\n    send_bw  ", "tcp_lat:\n    latency  ", "udp_lat:\n    latency  ", "rem_qperf  =  0.4.11"} {
				if !strings.Contains(out, want) {
					t.Errorf("%s at %s: no %q in\n%s", kind, addr, want, out)
				}
			}
			if strings.Contains(out, "=  0 ") || strings.Contains(out, "=      0 ") {
				t.Errorf("%s at %s: nothing went through:\n%s", kind, addr, out)
			}
		}
	}
}
