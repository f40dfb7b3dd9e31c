// Package kubeproxy tests Podlane's service proxy beside the real kube-proxy. It
// has no code of its own.
package kubeproxy

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podlane/podlane/test/kubeproxy/internal/node"
)

var programs node.Programs

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() || os.Geteuid() != 0 {
		fmt.Println("skipped, for they need kube-proxy (-short) and root: all tests of test/kubeproxy")
		os.Exit(0)
	}
	var err error
	if programs, err = node.Build(context.Background(), os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serve answers connections to an address of the node with that address.
func serve(t *testing.T, n *node.Node, addr string) {
	t.Helper()
	var l net.Listener
	err := n.Do(func() (err error) {
		if out, err := exec.Command("ip", "addr", "add", addr+"/32", "dev", "lo").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		l, err = net.Listen("tcp", addr+":8080")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 1)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					_, _ = io.WriteString(c, addr+"\n")
				}
			}()
		}
	}()
}

// ask makes a connection from the calling thread's namespace and gives who
// answers.
func ask(to string) (string, error) {
	c, err := net.DialTimeout("tcp", to, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return askOn(c)
}

func askOn(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, "?"); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

// await waits until a client gets an answer that is wanted.
func await(t *testing.T, n *node.Node, to, want string) {
	t.Helper()
	var got string
	var err error
	for range 600 {
		_ = n.DoClient(func() error { got, err = ask(to); return nil })
		if err == nil && got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: answered by %q, %v; want %s", to, got, err, want)
}

// load is requests at a rate, each a connection of its own.
type load struct {
	requests, failures atomic.Int64
	first              atomic.Value // the first error
	stop               chan struct{}
	wg                 sync.WaitGroup
}

func start(n *node.Node, to string, rate int) *load {
	l := &load{stop: make(chan struct{})}
	const workers = 5
	for range workers {
		l.wg.Go(func() {
			_ = n.DoClient(func() error {
				tick := time.NewTicker(time.Second * workers / time.Duration(rate))
				defer tick.Stop()
				for {
					select {
					case <-l.stop:
						return nil
					case <-tick.C:
						if _, err := ask(to); err != nil {
							l.failures.Add(1)
							l.first.CompareAndSwap(nil, fmt.Sprintf("%s %v", time.Now().Format(time.StampMicro), err))
						}
						l.requests.Add(1)
					}
				}
			})
		})
	}
	return l
}

func (l *load) end() { close(l.stop); l.wg.Wait() }

func podlane(t *testing.T, n *node.Node, args ...string) (string, error) {
	t.Helper()
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(programs.Podlane, args...).CombinedOutput()
		return err
	})
	return string(out), err
}

func ruleset(t *testing.T, n *node.Node) string {
	t.Helper()
	var out []byte
	_ = n.Do(func() (err error) {
		out, err = exec.Command("sh", "-c", "nft list tables; iptables-save; ip6tables-save").CombinedOutput()
		return err
	})
	return string(out)
}

func TestTakeover(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) { takeOver(t, mode) })
	}
}

// takeOver replaces a kube-proxy that serves 1,000 requests a second, and its
// DaemonSet, by the agent.
func takeOver(t *testing.T, mode string) {
	n, err := node.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	serve(t, n, "10.244.0.2")
	serve(t, n, "10.244.0.3")
	n.Fill(50, 3)
	vip := node.ClusterIP(7) + ":80"
	n.API.Set("endpointslices", node.Slice(node.ServiceName(7), []string{"10.244.0.2"}))
	n.API.AddDaemonSet("kube-system", "kube-proxy")
	proxy, err := n.KubeProxy(programs, mode)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Kill()
	n.API.OnDelete = func(string) { go proxy.Kill() } // as the kubelet ends the pod
	await(t, n, vip, "10.244.0.2")

	agent, err := n.Agent(programs)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Kill()
	waitLog(t, agent, "service proxy off: kube-proxy serves this node")
	waitLog(t, agent, "synced")
	if strings.Contains(ruleset(t, n), "podlane") {
		t.Errorf("the agent has put rules in though kube-proxy serves:\n%s", ruleset(t, n))
	}

	l := start(n, vip, 1000)
	var long net.Conn
	_ = n.DoClient(func() error { long, err = net.Dial("tcp", vip); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	time.Sleep(time.Second)
	flags := []string{"takeover", "kube-proxy", "--run-dir", n.RunDir(), "--state-dir", t.TempDir(), "--kubeconfig", n.Kubeconfig()}
	before := ruleset(t, n)
	out, err := podlane(t, n, flags...)
	if err != nil || !strings.Contains(out, "nothing was changed") || !strings.Contains(out, "mode "+mode) {
		t.Errorf("without --yes: %v\n%s", err, out)
	}
	if after := ruleset(t, n); mode == "nftables" && after != before {
		t.Errorf("without --yes it changed\n%s\nto\n%s", before, after)
	}
	if out, err = podlane(t, n, append(flags, "--yes")...); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log(out)
	time.Sleep(2 * time.Second)
	l.end()
	first, _ := l.first.Load().(string)
	t.Logf("%s: %d requests, %d failed: %s", mode, l.requests.Load(), l.failures.Load(), first)
	if l.failures.Load() > 0 || l.requests.Load() < 2000 {
		t.Errorf("%d of %d requests failed, the first: %s", l.failures.Load(), l.requests.Load(), first)
	}
	if got, err := askOn(long); got != "10.244.0.2" {
		t.Errorf("the connection from before: %q, %v", got, err)
	}

	rules := ruleset(t, n)
	for _, left := range []string{"kube-proxy", "KUBE-SERVICES", "KUBE-SVC", "KUBE-SEP", "KUBE-POSTROUTING"} {
		if strings.Contains(rules, left) {
			t.Errorf("%s is left:\n%s", left, rules)
		}
	}
	n.API.Set("endpointslices", node.Slice(node.ServiceName(7), []string{"10.244.0.3"}))
	await(t, n, vip, "10.244.0.3")
	for url, want := range map[string]string{"http://127.0.0.1:10249/proxyMode": "nftables", "http://127.0.0.1:10256/healthz": `"nodeEligible":true`} {
		var text string
		for range 50 { // the agent tries again to have the ports
			if text, err = n.Get(url); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%s: %v %s", url, err, text)
		}
	}
}

func waitLog(t *testing.T, p *node.Process, want string) {
	t.Helper()
	var data []byte
	for range 300 {
		data, _ = os.ReadFile(p.Log)
		if strings.Contains(string(data), want) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the log has no %q:\n%s", want, data)
}
