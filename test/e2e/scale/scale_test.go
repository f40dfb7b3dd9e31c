package scale

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/podlane/podlane/test/e2e/internal/control"
)

// TestScale prints what an agent and a DNS server of one node need in a big cluster.
// It fails where they do not come to know it, never for a figure.
func TestScale(t *testing.T) {
	network(t)
	p := control.Start(t, bin)
	api := client(t, p)
	began := time.Now()
	fill(t, api)
	t.Logf("%d nodes, %d Services of 4 endpoints written in %s", *nodes, *services, time.Since(began).Round(time.Second))

	dir := t.TempDir()
	requests := countRequests(t, p)
	config := requests.kubeconfig(t)
	began = time.Now()
	agent := start(t, "agent", "agent", "--kubeconfig", config, "--node", nodeName(0), "--run-dir", dir+"/run", "--state-dir", dir+"/state",
		"--service-proxy", "on", "--events", "--warn-networkpolicies", "--masquerade", "--bpf-dir", dir+"/bpf")
	synced(t, dir+"/run")
	t.Logf("agent: all is in the kernel after %s", time.Since(began).Round(10*time.Millisecond))
	dns := start(t, "dns", "dns", "--kubeconfig", config, "--listen", "127.0.0.1:1053", "--health", "127.0.0.1:1054", "--metrics", "")
	time.Sleep(10 * time.Second)
	residence(t, agent, dns)

	ctx, stop := context.WithCancel(t.Context())
	var beats sync.WaitGroup
	beats.Go(func() { heartbeats(ctx, api) })
	began = time.Now()
	used := agent.cpu(t)
	time.Sleep(settled)
	t.Logf("agent until it knows that no other node answers: %.2f %% of a core in %s", 100*float64(agent.cpu(t)-used)/float64(time.Since(began)), settled)
	cpu := map[*process]time.Duration{agent: agent.cpu(t), dns: dns.cpu(t)}
	asked := requests.reset()
	began = time.Now()
	time.Sleep(*rest)
	took := time.Since(began)
	for _, pr := range []*process{agent, dns} {
		t.Logf("%s at rest, nodes report every five minutes: %.2f %% of a core", pr.name, 100*float64(pr.cpu(t)-cpu[pr])/float64(took))
	}
	residence(t, agent, dns)
	t.Logf("requests until all was known: %v", asked)
	now := requests.reset()
	t.Logf("requests at rest in %s: %v", took.Round(time.Second), now)
	for what := range now {
		if !strings.HasPrefix(what, "GET ") {
			t.Errorf("a write at rest: %s", what)
		}
	}
	stop()
	beats.Wait()
	began = time.Now()
	_ = agent.cmd.Process.Signal(syscall.SIGTERM)
	<-agent.ended
	t.Logf("agent: ended %s after SIGTERM", time.Since(began).Round(time.Millisecond))
}

// settled is how long it is until the other nodes, of whom nobody answers, have been
// asked several times.
const settled = time.Minute

// network gives the node its link to the others, of whom nobody answers.
func network(t *testing.T) {
	for _, line := range []string{"ip link set lo up", "ip link add eth0 type veth peer name far", "ip link set far up", "ip link set eth0 up", "ip addr add 10.100.0.1/16 dev eth0", "ip route add default via 10.100.255.254"} {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
}

func client(t *testing.T, p *control.Plane) kubernetes.Interface {
	config, err := clientcmd.BuildConfigFromFlags("", p.Kubeconfig(control.Admin, p.Addr))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.WarningHandler, config.ContentType = -1, restclient.NoWarnings{}, "application/vnd.kubernetes.protobuf"
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }

// fill writes the cluster's objects.
func fill(t *testing.T, api kubernetes.Interface) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if _, err := api.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{}); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	each(t, *nodes, func(ctx context.Context, i int) error {
		cidr := fmt.Sprintf("10.%d.%d.0/24", 128+i/256, i%256)
		n, err := api.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Labels: map[string]string{"topology.kubernetes.io/zone": fmt.Sprint("zone-", i%3)}},
			Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}}}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.100.%d.%d", i/250, 1+i%250)}}
		_, err = api.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{})
		return err
	})
	each(t, *services, func(ctx context.Context, i int) error { return service(ctx, api, i) })
}

func service(ctx context.Context, api kubernetes.Interface, i int) error {
	name, port, tcp, yes := fmt.Sprintf("service-%04d", i), int32(8080), corev1.ProtocolTCP, true
	_, err := api.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: &port, Protocol: &tcp}}}
	for k := range 4 {
		n := (4*i + k) % *nodes
		node := nodeName(n)
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+n/256, n%256, 2 + (4*i+k) / *nodes)},
			NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &yes}})
	}
	_, err = api.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{})
	return err
}

// each does n things, some at a time.
func each(t *testing.T, n int, do func(context.Context, int) error) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range next {
				if err := do(t.Context(), i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// heartbeats has each node write its status once in five minutes, as kubelets do.
func heartbeats(ctx context.Context, api kubernetes.Interface) {
	tick := time.NewTicker(5 * time.Minute / time.Duration(*nodes))
	defer tick.Stop()
	for i := 1; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, _ := json.Marshal(metav1.Now())
		body := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","lastHeartbeatTime":%s}]}}`, now)
		_, _ = api.CoreV1().Nodes().Patch(ctx, nodeName(i%*nodes), types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, "status")
	}
}

// process is one of ours that runs.
type process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
}

func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	pr := &process{name: name, cmd: exec.Command(podlane, args...), ended: make(chan struct{})}
	pr.cmd.Stdout, pr.cmd.Stderr = log, log
	pr.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := pr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = pr.cmd.Wait(); close(pr.ended) }()
	t.Cleanup(func() {
		_ = pr.cmd.Process.Kill()
		<-pr.ended
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("%s:\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	return pr
}

// synced waits until the agent says that all is applied.
func synced(t *testing.T, runDir string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, err := exec.Command(podlane, "status", "--run-dir", runDir).CombinedOutput()
		if err == nil && strings.Contains(string(out), fmt.Sprintf("%d nodes, ", *nodes)) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// residence prints what is in memory. The processes run one program, whose pages they
// share: together these count once, which is what the kernel's proportional sizes add up to.
func residence(t *testing.T, processes ...*process) {
	t.Helper()
	sum, together := 0, 0
	for _, p := range processes {
		resident := p.memory(t, "status", "VmRSS")
		t.Logf("%s: resident %d MB, of which %d MB its own and %d MB the program's; at most %d MB so far", p.name, resident,
			p.memory(t, "status", "RssAnon"), p.memory(t, "status", "RssFile"), p.memory(t, "status", "VmHWM"))
		sum += resident
		together += p.memory(t, "smaps_rollup", "Pss")
	}
	t.Logf("together: %d MB, with the pages that they share counted twice %d MB", together, sum)
}

// memory gives a line of a file of /proc/PID in megabytes.
func (p *process) memory(t *testing.T, file, field string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kb, _ := strconv.Atoi(strings.Fields(rest)[0])
			return kb >> 10
		}
	}
	return 0
}

// cpu gives the time that a process has used.
func (p *process) cpu(t *testing.T) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
