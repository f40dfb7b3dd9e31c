package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/podlane/podlane/lab"
)

const (
	few  = 20   // requests that show that it works
	many = 1000 // requests that show how they are spread
)

// from is the pod that asks.
const from = perfNamespace + "/client"

// reach asks every target in every way.
func (d *demo) reach(ctx context.Context) error {
	ts := d.targets()
	if len(ts) == 0 {
		return fmt.Errorf("no Service of the manifests has a cluster IP and a ready pod: %s", strings.Join(d.status.NotReady(), "; "))
	}
	for _, t := range ts {
		if t.protocol != corev1.ProtocolTCP && t.protocol != corev1.ProtocolUDP {
			d.say("%s is %s, which the demo does not speak", t, t.protocol)
			continue
		}
		if err := d.reachOne(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// ways are the accesses of one target.
func (d *demo) ways(t target) []Access {
	far := t.pods[0]
	for _, p := range t.pods {
		if p.Node != d.scene.first {
			far = p // on another node, where there is one
		}
	}
	pod, name := t.url(far.IPs[0], t.podPort), t.url(t.service.Name+"."+t.service.Namespace, t.port)
	ways := []Access{
		{Name: "node-to-pod-ip", From: "node/" + d.scene.first, To: pod, Requests: few},
		{Name: "pod-to-pod-ip", From: from, To: pod, Requests: few},
		{Name: "pod-to-cluster-ip", From: from, To: t.url(t.clusterIP, t.port), Requests: many},
		{Name: "pod-to-dns-name", From: from, To: name, Requests: few},
	}
	for _, ip := range t.service.ClusterIPs[1:] {
		ways = append(ways, Access{Name: "pod-to-cluster-ip-second-family", From: from, To: t.url(ip, t.port), Requests: few})
	}
	return ways
}

func (d *demo) reachOne(ctx context.Context, t target) error {
	d.title("%s, %s: a pod by its address from a node and from a pod, then the Service by its address and by its name.", t, t.protocol)
	for _, a := range d.ways(t) {
		if err := d.ask(ctx, &a); err != nil {
			return err
		}
		d.result.Access = append(d.result.Access, a)
		d.say("%s%s", spread(a.ServedBy), failures(a.Failed, a.Errors))
		if len(a.Clients) > 0 {
			d.say("the pod saw the source %s", strings.Join(a.Clients, " "))
		}
	}
	d.say("Each request is a new connection from a new source port; the kernel's rules on the client's own node chose the pod.")
	return nil
}

// ask makes the requests of an access and notes what came of them.
func (d *demo) ask(ctx context.Context, a *Access) error {
	d.command("lab", "exec", a.From, "--", "podlane", "lab", "client", "-n", strconv.Itoa(a.Requests), a.To)
	self, err := program()
	if err != nil {
		return err
	}
	out, err := d.client.Output(ctx, a.From, self, "lab", "client", "-n", strconv.Itoa(a.Requests), a.To)
	var r lab.TrafficResult
	if jsonErr := json.Unmarshal([]byte(out), &r); jsonErr != nil {
		if err == nil {
			err = jsonErr
		}
		return fmt.Errorf("%s to %s: %w", a.From, a.To, err)
	}
	a.Requests, a.Failed, a.ServedBy, a.Clients, a.Errors = r.Requests, r.Failed, r.ServedBy, r.Clients, r.Errors
	a.OK = r.Failed == 0
	return ctx.Err()
}

// spread prints who answered how much.
func spread(servedBy map[string]int) string {
	total := 0
	for _, n := range servedBy {
		total += n
	}
	var parts []string
	for _, pod := range slices.Sorted(maps.Keys(servedBy)) {
		parts = append(parts, fmt.Sprintf("%s %d (%.1f %%)", pod, servedBy[pod], 100*float64(servedBy[pod])/float64(total)))
	}
	if len(parts) == 0 {
		return "nobody answered"
	}
	return "answered by " + strings.Join(parts, ", ")
}

func failures(n int, errs []string) string {
	if n == 0 {
		return "; 0 failed"
	}
	return fmt.Sprintf("; %d FAILED: %s", n, strings.Join(errs, "; "))
}

// withoutAgents kills every agent and asks again: the rules are the kernel's.
func (d *demo) withoutAgents(ctx context.Context) error {
	t := d.targets()[0]
	d.title("The agents are killed (SIGKILL), and the Service is asked %d times more.", many)
	d.command("lab", "agents", "kill")
	if err := d.client.Agents(ctx, lab.AgentKill); err != nil {
		return err
	}
	before, err := d.counted(ctx, t)
	if err != nil {
		return err
	}
	a := Access{From: from, To: t.url(t.clusterIP, t.port), Requests: many}
	if err := d.ask(ctx, &a); err != nil {
		return err
	}
	if d.ProxyBackend == "iptables" {
		d.command("lab", "exec", "node/"+d.scene.first, "--", "iptables-save", "-c", "-t", "nat")
	} else {
		d.command("lab", "exec", "node/"+d.scene.first, "--", "podlane", "counters", t.service.Namespace+"/"+t.service.Name)
	}
	after, err := d.counted(ctx, t)
	if err != nil {
		return err
	}
	d.result.AgentStopped = AgentStopped{Requests: a.Requests, Failed: a.Failed, Counted: after - before, ServedBy: a.ServedBy}
	d.say("%s%s; the rules' own counter rose by %d", spread(a.ServedBy), failures(a.Failed, a.Errors), after-before)
	d.say("No process of podlane carries a packet: it writes the kernel's tables, and they go on working.")
	return d.client.Agents(ctx, lab.AgentStart)
}

// counted reads the counter of a target's frontend on the client's node, from
// the kernel.
func (d *demo) counted(ctx context.Context, t target) (uint64, error) {
	if d.ProxyBackend == "iptables" {
		return d.countedByChains(ctx, t)
	}
	self, err := program()
	if err != nil {
		return 0, err
	}
	out, err := d.client.Output(ctx, "node/"+d.scene.first, self, "counters", "--json", t.service.Namespace+"/"+t.service.Name)
	if err != nil {
		return 0, err
	}
	var lines []struct {
		Frontend string `json:"frontend"`
		Protocol string `json:"protocol"`
		New      uint64 `json:"new_connections"`
	}
	if err := json.Unmarshal([]byte(out), &lines); err != nil {
		return 0, err
	}
	_, want, _ := strings.Cut(t.url(t.clusterIP, t.port), "://")
	for _, l := range lines {
		if l.Frontend == want && l.Protocol == string(t.protocol) {
			return l.New, nil
		}
	}
	return 0, fmt.Errorf("no counter of %s on node %s", want, d.scene.first)
}
