package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/lab/control"
)

// pod is a running pod. Its goroutine, run, takes it from the sandbox through
// the CNI plugin to running containers, and back.
type pod struct {
	h       *holder
	want    *corev1.Pod
	spec    string // the wanted spec: another one means another pod
	node    *node
	dir     string
	sandbox string // the container's ID for CNI
	stop    chan struct{}
	gone    chan struct{} // closed when nothing of it is left

	space *space // of a hostNetwork pod: the node's; run's own until live

	mu         sync.Mutex
	live       bool // it has its network; space and containers no longer change
	containers []*container
	ips        []netip.Addr
	ready      bool
	reason     string
}

// syncPods starts the pods that are wanted and ends the others.
func (h *holder) syncPods() {
	wanted := map[cluster.Key]*corev1.Pod{}
	for _, p := range h.expanded.Pods {
		wanted[cluster.Key{Namespace: p.Namespace, Name: p.Name}] = p
	}
	for key, p := range h.pods {
		w := wanted[key]
		if w == nil || h.nodes[w.Spec.NodeName] != p.node || specOf(w) != p.spec {
			p.halt()
		}
		select {
		case <-p.gone:
			delete(h.pods, key)
		default:
		}
	}
	for key, w := range wanted {
		n := h.nodes[w.Spec.NodeName]
		if h.pods[key] != nil || n == nil || n.err != nil || done(w) {
			continue
		}
		h.pods[key] = h.startPod(key, w, n)
	}
}

func done(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// specOf gives what a pod is made of, without what the control plane fills in.
func specOf(p *corev1.Pod) string {
	text, _ := json.Marshal(p.Spec) // API objects always marshal
	return string(text)
}

func (h *holder) startPod(key cluster.Key, w *corev1.Pod, n *node) *pod {
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails
	p := &pod{h: h, want: w, spec: specOf(w), node: n, dir: filepath.Join(h.dir, "pods", key.Namespace, key.Name),
		sandbox: hex.EncodeToString(id), stop: make(chan struct{}), gone: make(chan struct{}), reason: "starting"}
	go p.run()
	return p
}

// halt has the pod end; gone tells when it has.
func (p *pod) halt() {
	if !p.halted() {
		close(p.stop)
	}
}

func (p *pod) halted() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}

func (p *pod) observed() control.Observed {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.halted() { // its addresses are going
		return control.Observed{Node: p.node.Name}
	}
	return control.Observed{Node: p.node.Name, IPs: p.ips, Ready: p.ready}
}

// note keeps what was seen of the pod, and tells the loop of a change.
func (p *pod) note(ready bool, reason string) {
	p.mu.Lock()
	changed := p.ready != ready || p.reason != reason
	p.ready, p.reason = ready, reason
	p.mu.Unlock()
	if changed {
		p.h.poke()
	}
}

func (p *pod) run() {
	defer p.h.poke()
	defer close(p.gone)
	if p.setUp() {
		for _, c := range p.containers {
			c.supervisor.start()
			go c.supervisor.run(p.stop)
		}
		p.watch()
	}
	p.tearDown()
}

// setUp makes the pod's namespaces and network. It tries again until it succeeds
// or the pod is to end, when it gives false.
func (p *pod) setUp() bool {
	backoff := firstBackoff
	for {
		err := p.tryUp()
		if err == nil {
			return true
		}
		p.note(false, err.Error())
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, lastBackoff/5)
		case <-p.stop:
			return false
		}
	}
}

func (p *pod) tryUp() error {
	if p.space == nil {
		if err := p.makeSandbox(); err != nil {
			return err
		}
	}
	ips, err := p.network()
	if err != nil {
		return err
	}
	var containers []*container
	for i := range p.want.Spec.Containers {
		containers = append(containers, newContainer(p, &p.want.Spec.Containers[i]))
	}
	p.mu.Lock()
	p.ips, p.containers, p.live = ips, containers, true
	p.mu.Unlock()
	p.note(false, "its containers start")
	return nil
}

// network gives the pod its addresses: the CNI plugin's, or the node's.
func (p *pod) network() ([]netip.Addr, error) {
	if p.want.Spec.HostNetwork {
		ips := []netip.Addr{p.node.Address(false), p.node.Address(true)}
		return slices.DeleteFunc(ips, func(a netip.Addr) bool { return !a.IsValid() }), nil
	}
	if !p.node.ready() {
		return nil, errors.New("waits for the node's agent")
	}
	ctx, cancel := p.context()
	defer cancel()
	ips, err := p.addToNetwork(ctx)
	if err != nil {
		return nil, err
	}
	return ips, os.WriteFile(filepath.Join(p.dir, "etc", "hosts"), []byte(p.hosts(ips)), 0o644)
}

// context ends with the pod.
func (p *pod) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	go func() {
		select {
		case <-p.stop:
			cancel()
		case <-p.h.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// makeSandbox makes the pod's namespaces, with files of its own in /etc.
func (p *pod) makeSandbox() error {
	etc := filepath.Join(p.dir, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return err
	}
	if p.want.Spec.HostNetwork {
		p.space = p.node.space
		return nil
	}
	for name, text := range map[string]string{"resolv.conf": p.resolvConf(), "hosts": p.hosts(nil), "nsswitch.conf": "hosts: files dns\n"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	netns := filepath.Join(p.h.dir, "netns")
	var err error
	p.space, err = newSpace(filepath.Join(netns, "pod-"+p.sandbox[:16]), unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWNS, func() error {
		if err := unix.Sethostname([]byte(p.hostname())); err != nil {
			return err
		}
		if err := podMounts(netns, p.dir); err != nil {
			return err
		}
		return loopbackUp()
	})
	if err == nil {
		p.space.cgroup = p.node.pods
	}
	return err
}

func (p *pod) logFile() string { return filepath.Join(p.dir, "log") }

func (p *pod) hostname() string {
	name := p.want.Name
	if p.want.Spec.Hostname != "" {
		name = p.want.Spec.Hostname
	}
	return strings.TrimRight(name[:min(len(name), 63)], "-.")
}

// resolvConf is what the kubelet writes : the cluster's DNS
// for the policy ClusterFirst, nothing for Default, since a node of the lab has
// no resolver of its own.
func (p *pod) resolvConf() string {
	var b strings.Builder
	if policy := p.want.Spec.DNSPolicy; policy == "" || policy == corev1.DNSClusterFirst {
		fmt.Fprintf(&b, "search %s.svc.cluster.local svc.cluster.local cluster.local\n", p.want.Namespace)
		fmt.Fprintf(&b, "nameserver %s\noptions ndots:5\n", p.h.config[0].DNS)
	}
	if c := p.want.Spec.DNSConfig; c != nil {
		for _, ns := range c.Nameservers {
			fmt.Fprintf(&b, "nameserver %s\n", ns)
		}
		if len(c.Searches) > 0 {
			fmt.Fprintf(&b, "search %s\n", strings.Join(c.Searches, " "))
		}
	}
	return b.String()
}

func (p *pod) hosts(ips []netip.Addr) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range ips {
		if p.want.Spec.Subdomain != "" {
			fmt.Fprintf(&b, "%s\t%s.%s.%s.svc.cluster.local\t%s\n", ip, p.hostname(), p.want.Spec.Subdomain, p.want.Namespace, p.hostname())
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", ip, p.hostname())
		}
	}
	return b.String()
}

// watch looks at the containers until the pod is to end.
func (p *pod) watch() {
	for every := 20 * time.Millisecond; ; {
		ready, reason := p.look()
		p.note(ready, reason)
		if ready {
			every = time.Second
		} else {
			every = min(2*every, 200*time.Millisecond)
		}
		select {
		case <-p.stop:
			return
		case <-p.h.ending:
			return
		case <-time.After(every):
		}
	}
}

func (p *pod) look() (ready bool, reason string) {
	for _, c := range p.containers {
		if err := c.ready(); err != nil {
			return false, fmt.Sprintf("container %s: %v", c.spec.Name, err)
		}
	}
	return true, ""
}

// tearDown ends the containers, takes the pod off the network and lets its
// namespaces go.
func (p *pod) tearDown() {
	p.mu.Lock()
	p.live = false
	p.mu.Unlock()
	p.note(false, "ending")
	for _, c := range p.containers {
		c.supervisor.stop(false)
	}
	for _, c := range p.containers {
		<-c.supervisor.ended
	}
	if p.space != nil && !p.want.Spec.HostNetwork {
		p.killRest()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if err := p.removeFromNetwork(ctx); err != nil {
			p.h.log.Error("CNI DEL", "pod", p.want.Namespace+"/"+p.want.Name, "err", err)
		}
		cancel()
		p.space.close()
	}
	_ = os.RemoveAll(p.dir)
}

// killRest ends what processes started in the pod and left behind: all that is
// in its network namespace.
func (p *pod) killRest() {
	var own unix.Stat_t
	if self, err := os.Readlink("/proc/self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return // not our /proc (privateMounts): its PIDs are other processes here
	}
	if unix.Fstat(int(p.space.net.Fd()), &own) != nil {
		return
	}
	found, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range found {
		var st unix.Stat_t
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		if unix.Stat(path, &st) == nil && st.Ino == own.Ino && st.Dev == own.Dev {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
