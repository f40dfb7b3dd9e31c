package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/perf"
)

// What the witnesses count.
const (
	connections = "connections through the Service" // by the rules' own counters
	tunnelled   = "packets in the overlay"          // by the device's
	shortened   = "packets on the fast path"        // by its programs'
	atSockets   = "connections translated at the socket"
)

// paths gives node to node once, and the others for each lab.
func (r *rig) paths(ctx context.Context) ([]perf.Path, error) {
	var all []perf.Path
	for i, b := range r.labs {
		if b.layout.flannel != "" {
			p, err := r.flannel(ctx, b)
			if err != nil {
				return nil, err
			}
			p.Name = r.named(p.Name, b)
			all = append(all, p)
			continue
		}
		list, err := r.pathsOf(b)
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			switch {
			case p.Name != perf.NodeNode:
				p.Name = r.named(p.Name, b)
			case i > 0:
				continue
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// named tells the labs' paths apart where there are several.
func (r *rig) named(path string, b *bench) string {
	if len(r.labs) == 1 {
		return path
	}
	return path + "/" + b.layout.name
}

func (r *rig) pathsOf(b *bench) ([]perf.Path, error) {
	node := ""
	for _, n := range b.status.Nodes {
		if n.Name == far && len(n.Addresses) > 0 {
			node = n.Addresses[0]
		}
	}
	server, err := netip.ParseAddr(b.server.IPs[0])
	if err != nil || node == "" {
		return nil, errors.Join(errors.New("no address to measure to"), err)
	}
	pod, clusterIP := server.String(), b.service.ClusterIPs[0]
	clientPod, neighbour, self := namespace+"/client", namespace+"/neighbour", namespace+"/server"
	list := []perf.Path{
		r.path(b, perf.NodeNode, "node/"+near, node, near, &perf.Proof{Still: map[string]uint64{connections: 0}}),
		r.path(b, perf.PodPod, clientPod, pod, near, b.byFastPath(b.through(server, false, true))),
		r.path(b, perf.PodServicePod, clientPod, clusterIP, near, b.bySocket(b.through(server, true, true))),
	}
	for _, name := range r.Further {
		switch name {
		case NodePod:
			list = append(list, r.path(b, name, "node/"+near, pod, near, b.through(server, false, true)))
		case SameNode:
			list = append(list, r.path(b, name, neighbour, pod, far, b.through(server, false, false)))
		case Hairpin:
			list = append(list, r.path(b, name, self, clusterIP, far, b.through(server, true, false)))
		case NodePort:
			p := r.path(b, name, "node/"+near, node, far, b.through(server, true, false))
			p.ControlPort, p.DataPort = 30400, 30401
			list = append(list, p)
		}
	}
	return list, nil
}

// path makes one; its witnesses are those of the node given.
func (r *rig) path(b *bench, name, from, address, witness string, proof *perf.Proof) perf.Path {
	proof.Witness = r.witness(b, witness)
	return perf.Path{Name: name, Address: address, Proof: proof, Exec: func(ctx context.Context, argv []string) ([]byte, error) {
		out, err := b.client.Output(ctx, from, argv...)
		return []byte(out), err
	}}
}

// through is what must be seen of a path to the server: whether it crosses the Service, and
// whether it crosses from node to node, which is the overlay's part.
func (b *bench) through(server netip.Addr, service, nodes bool) *perf.Proof {
	p := &perf.Proof{Servers: []netip.Addr{server}, Translated: service, Still: map[string]uint64{}}
	if service {
		p.Moves = append(p.Moves, connections)
	} else {
		p.Still[connections] = 0
	}
	switch {
	case !nodes:
	case b.layout.overlay == overlay.VXLAN:
		p.Moves = append(p.Moves, tunnelled)
	case b.layout.overlay == overlay.Direct:
		p.Still[tunnelled] = 0
	}
	return p
}

// byFastPath has the proof of a way from pod to pod see whether it takes the fast
// path, where it was asked for or forbidden.
func (b *bench) byFastPath(p *perf.Proof) *perf.Proof {
	switch b.layout.fastPath {
	case fastpath.On:
		p.Moves = append(p.Moves, shortened)
	case fastpath.Off:
		p.Still[shortened] = 0
	}
	return p
}

// bySocket has the proof of a way through the Service see whether its TCP connections
// are translated at the socket, so that they take the fast path, or by the rules.
func (b *bench) bySocket(p *perf.Proof) *perf.Proof {
	switch b.layout.socketLB {
	case fastpath.On:
		p.Moves = append(p.Moves, atSockets)
		return b.byFastPath(p)
	case fastpath.Off:
		p.Still[atSockets] = 0
	}
	return p
}

// witness reads both counters of a node with one command.
func (r *rig) witness(b *bench, node string) func(context.Context) (map[string]uint64, error) {
	return func(ctx context.Context) (map[string]uint64, error) {
		out, err := b.client.Output(ctx, "node/"+node, "sh", "-c",
			`cat /proc/net/dev && "$0" counters --json "$1" && exec "$0" status --json --run-dir "$2"`, r.self, namespace+"/"+service,
			filepath.Join(b.status.Dir, "nodes", node, "run"))
		if err != nil {
			return nil, err
		}
		return readWitness(out)
	}
}

// readWitness reads /proc/net/dev, followed by what `podlane counters --json` prints.
func readWitness(text string) (map[string]uint64, error) {
	devices, counters, ok := strings.Cut(text, "\n[")
	if !ok {
		return nil, fmt.Errorf("not counters: %q", text)
	}
	var lines []struct {
		New uint64 `json:"new_connections"`
	}
	var agent struct {
		FastPath, SocketLB struct {
			Counters []struct {
				Reason  string
				Packets uint64
			}
		}
	}
	read := json.NewDecoder(strings.NewReader("[" + counters))
	if err := read.Decode(&lines); err != nil {
		return nil, fmt.Errorf("counters: %w", err)
	}
	if err := read.Decode(&agent); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("status: %w", err)
	}
	moved := map[string]uint64{connections: 0, tunnelled: 0, shortened: 0, atSockets: 0}
	for _, c := range agent.FastPath.Counters {
		if strings.HasPrefix(c.Reason, "shortcut_") {
			moved[shortened] += c.Packets
		}
	}
	for _, c := range agent.SocketLB.Counters {
		if c.Reason == "translated" {
			moved[atSockets] += c.Packets
		}
	}
	for _, l := range lines {
		moved[connections] += l.New
	}
	for line := range strings.Lines(devices) {
		name, numbers, _ := strings.Cut(line, ":")
		fields := strings.Fields(numbers)
		if !strings.HasPrefix(strings.TrimSpace(name), "pl-vxlan") || len(fields) < 10 {
			continue
		}
		for _, i := range []int{1, 9} { // packets received and sent
			n, err := strconv.ParseUint(fields[i], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("/proc/net/dev: %w", err)
			}
			moved[tunnelled] += n
		}
	}
	return moved, nil
}

// ladder are the steps between layouts that are there: what the fast path takes off,
// against flannel's layout of the same kind too, and what a Service adds.
func (r *rig) ladder() (parts []perf.Part) {
	has := func(path string) bool {
		kind, layout, _ := strings.Cut(path, "/")
		return kind != "" && slices.ContainsFunc(r.labs, func(b *bench) bool { return b.layout.name == layout })
	}
	for _, o := range []struct{ overlay, flannel string }{{"direct", "flannel-host-gw"}, {"vxlan", "flannel-vxlan"}} {
		pod, service := perf.PodPod+"/"+o.overlay, perf.PodServicePod+"/"+o.overlay
		for _, p := range []perf.Part{
			{Name: o.overlay + ", normal path, against node to node", From: perf.NodeNode, To: pod + "+normal"},
			{Name: o.overlay + ", fast path, against node to node", From: perf.NodeNode, To: pod + "+fast"},
			{Name: o.overlay + ", fast path, against the normal one", From: pod + "+normal", To: pod + "+fast"},
			{Name: o.overlay + ", fast path, against " + o.flannel, From: perf.PodPod + "/" + o.flannel, To: pod + "+fast"},
			{Name: o.overlay + ", normal path: a Service", From: pod + "+normal", To: service + "+normal"},
			{Name: o.overlay + ", fast path: a Service, by the rules", From: pod + "+fast", To: service + "+fast"},
			{Name: o.overlay + ", fast path: a Service, at the socket", From: pod + "+fast+lb", To: service + "+fast+lb"},
		} {
			if (p.From == perf.NodeNode || has(p.From)) && has(p.To) {
				parts = append(parts, p)
			}
		}
	}
	return parts
}

// parts are what the way is made of: with both overlays, encapsulation is told from veth and routing.
func (r *rig) parts() []perf.Part {
	direct := slices.IndexFunc(r.labs, func(b *bench) bool { return b.layout.name == string(overlay.Direct) })
	vxlan := slices.IndexFunc(r.labs, func(b *bench) bool { return b.layout.name == string(overlay.VXLAN) })
	if direct >= 0 && vxlan >= 0 {
		d, v := r.labs[direct], r.labs[vxlan]
		return []perf.Part{
			{Name: "veth and routing", From: perf.NodeNode, To: r.named(perf.PodPod, d)},
			{Name: "encapsulation", From: r.named(perf.PodPod, d), To: r.named(perf.PodPod, v)},
			{Name: "Service translation", From: r.named(perf.PodPod, v), To: r.named(perf.PodServicePod, v)},
		}
	}
	if l := r.ladder(); len(l) > 0 {
		return l
	}
	b := r.labs[0]
	return []perf.Part{
		{Name: "pod network", From: perf.NodeNode, To: r.named(perf.PodPod, b)},
		{Name: "Service translation", From: r.named(perf.PodPod, b), To: r.named(perf.PodServicePod, b)},
	}
}
