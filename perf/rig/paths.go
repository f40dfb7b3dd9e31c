package rig

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/perf"
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
		r.path(b, perf.NodeNode, "node/"+near, node, near, &perf.Proof{Still: map[string]uint64{perf.Connections: 0}}),
		r.path(b, perf.PodPod, clientPod, pod, near, b.byFastPath(b.through(server, false, true))),
		r.path(b, perf.PodServicePod, clientPod, clusterIP, near, b.bySocket(b.through(server, true, true))),
	}
	list[1].DataPort = perf.ApartData
	for _, name := range r.Further {
		switch name {
		case NodePod:
			p := r.path(b, name, "node/"+near, pod, near, b.through(server, false, true))
			p.DataPort = perf.ApartData
			list = append(list, p)
		case PodNode:
			list = append(list, r.path(b, name, clientPod, node, near, &perf.Proof{Still: map[string]uint64{perf.Connections: 0}}))
		case Balancer:
			list = append(list, r.path(b, name, clientPod, balancers[cmp.Or(r.Families, "ipv4")], near, b.through(server, true, true)))
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

// manyServices is from where on reading their counters takes longer than a measurement.
const manyServices = 100

// path makes one; its witnesses are those of the node given.
func (r *rig) path(b *bench, name, from, address, witness string, proof *perf.Proof) perf.Path {
	proof.Witness = r.witness(b, witness)
	if b.layout.services > manyServices {
		proof.Rounds = 1
	}
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
		p.Moves = append(p.Moves, perf.Connections)
	} else {
		p.Still[perf.Connections] = 0
	}
	switch {
	case !nodes:
	case b.layout.overlay == overlay.VXLAN:
		p.Moves = append(p.Moves, perf.Tunnelled)
	case b.layout.overlay == overlay.Direct:
		p.Still[perf.Tunnelled] = 0
	}
	return p
}

// byFastPath has the proof of a way from pod to pod see whether it takes the fast
// path, where it was asked for or forbidden.
func (b *bench) byFastPath(p *perf.Proof) *perf.Proof {
	switch b.layout.fastPath {
	case fastpath.On:
		p.Moves = append(p.Moves, perf.Shortened)
	case fastpath.Off:
		p.Still[perf.Shortened] = 0
	}
	return p
}

// bySocket has the proof of a way through the Service see whether its TCP connections
// are translated at the socket, so that they take the fast path, or by the rules.
func (b *bench) bySocket(p *perf.Proof) *perf.Proof {
	switch b.layout.socketLB {
	case fastpath.On:
		p.Moves = append(p.Moves, perf.AtSockets)
		return b.byFastPath(p)
	case fastpath.Off:
		p.Still[perf.AtSockets] = 0
	}
	return p
}

// witness reads a node's counters.
func (r *rig) witness(b *bench, node string) func(context.Context) (map[string]uint64, error) {
	return func(ctx context.Context) (moved map[string]uint64, err error) {
		out, err := b.client.Output(ctx, "node/"+node, r.self, "perf", "witness", "--run-dir", filepath.Join(b.status.Dir, "nodes", node, "run"), namespace+"/"+service)
		if err != nil {
			return nil, err
		}
		return moved, json.Unmarshal([]byte(out), &moved)
	}
}

// ladder are the steps between layouts that are there: what both paths cost, against
// flannel's layout of the same kind too, what the fast path takes off, and what a Service adds.
func (r *rig) ladder() (parts []perf.Part) {
	has := func(path string) bool {
		kind, layout, _ := strings.Cut(path, "/")
		return kind != "" && slices.ContainsFunc(r.labs, func(b *bench) bool { return b.layout.name == layout })
	}
	for _, o := range []struct{ overlay, flannel string }{{"direct", "flannel-host-gw"}, {"vxlan", "flannel-vxlan"}} {
		pod, service := perf.PodPod+"/"+o.overlay, perf.PodServicePod+"/"+o.overlay
		for _, p := range []perf.Part{
			{Name: o.overlay + ", normal path, against node to node", From: perf.NodeNode, To: pod + "+normal"},
			{Name: o.overlay + ", normal path, against " + o.flannel, From: perf.PodPod + "/" + o.flannel, To: pod + "+normal"},
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

// parts are what the way is made of: with both overlays, encapsulation is told from veth and routing. Of
// a second proxy backend it is the translation alone, from its own lab's pods on.
func (r *rig) parts() []perf.Part {
	plain := func(mode overlay.Mode) int {
		return slices.IndexFunc(r.labs, func(b *bench) bool {
			return b.layout.overlay == mode && b.layout.fastPath == "" && b.layout.flannel == ""
		})
	}
	direct, vxlan := plain(overlay.Direct), plain(overlay.VXLAN)
	last := r.labs[0]
	list := []perf.Part{{Name: "pod network", From: perf.NodeNode, To: r.named(perf.PodPod, last)}}
	if direct >= 0 && vxlan >= 0 {
		d := r.labs[direct]
		last = r.labs[vxlan]
		list = []perf.Part{
			{Name: "veth and routing", From: perf.NodeNode, To: r.named(perf.PodPod, d)},
			{Name: "encapsulation", From: r.named(perf.PodPod, d), To: r.named(perf.PodPod, last)},
		}
	}
	if l := r.ladder(); len(l) > 0 && (direct < 0 || vxlan < 0) {
		return l
	}
	for _, b := range r.labs {
		l := b.layout
		if l.overlay == last.layout.overlay && l.fastPath == last.layout.fastPath && l.socketLB == last.layout.socketLB && l.flannel == "" {
			list = append(list, r.translations(b)...)
		}
	}
	return list
}

// translations are what a lab's Service adds, among how many where that is asked; what was not measured has no figures.
func (r *rig) translations(b *bench) []perf.Part {
	of := ""
	if len(r.Backends) > 1 {
		of += ", " + b.layout.backend
	}
	if len(r.Services) > 1 {
		of += fmt.Sprintf(", %d others", b.layout.services)
	}
	return []perf.Part{
		{Name: "Service translation" + of, From: r.named(perf.PodPod, b), To: r.named(perf.PodServicePod, b)},
		{Name: "load balancer's address" + of, From: r.named(perf.PodServicePod, b), To: r.named(Balancer, b)},
		{Name: "NodePort translation" + of, From: r.named(NodePod, b), To: r.named(NodePort, b)},
	}
}
