package kube

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/podlane/podlane/perf"
)

// Further paths that can be asked for.
const (
	NodePod  = "node-pod"  // from a node to a pod on the other
	SameNode = "same-node" // from pod to pod on one node
	Hairpin  = "hairpin"   // from a pod through a Service to itself
	NodePort = "node-port" // from a node to another node's port of the Service
	PodNode  = "pod-node"  // from a pod to the other node itself
	Balancer = "balancer"  // from pod to pod through the Service's load balancer address
)

// Further lists them.
var Further = []string{NodePod, PodNode, SameNode, Hairpin, NodePort, Balancer}

// paths makes the ways out of the pods that are there now.
func (r *run) paths(ctx context.Context) ([]perf.Path, error) {
	service, err := r.api.service(ctx, r.namespace(), "server")
	if err != nil {
		return nil, fmt.Errorf("service: %w", plain(err))
	}
	var server, node, cluster netip.Addr
	for _, of := range []struct {
		what string
		list []string
		to   *netip.Addr
	}{
		{"pod " + podServer, podIPs(r.found[podServer]), &server}, {"node " + r.to, podIPs(r.found[nodeServer]), &node},
		{"the Service", service.Spec.ClusterIPs, &cluster},
	} {
		if *of.to, err = r.address(of.what, of.list); err != nil {
			return nil, err
		}
	}
	direct, through := perf.Proof{Servers: []netip.Addr{server}}, perf.Proof{Servers: []netip.Addr{server}, Translated: true}
	paths := []perf.Path{
		r.path(perf.NodeNode, nodeClient, node, r.witnessed(perf.Proof{Servers: []netip.Addr{node}}, r.from)),
		r.path(perf.PodPod, podClient, server, r.witnessed(direct, r.from)),
		r.path(perf.PodServicePod, podClient, cluster, r.witnessed(through, r.from)),
	}
	paths[0].ControlPort, paths[0].DataPort = r.hostPort, r.hostPort+1
	paths[1].DataPort = perf.ApartData
	for _, name := range r.Further {
		switch name {
		case NodePod:
			p := r.path(name, nodeClient, server, r.witnessed(direct, r.from))
			p.DataPort = perf.ApartData
			paths = append(paths, p)
		case PodNode:
			p := r.path(name, podClient, node, r.witnessed(perf.Proof{Servers: []netip.Addr{node}}, r.from))
			p.ControlPort, p.DataPort = r.hostPort, r.hostPort+1
			paths = append(paths, p)
		case Balancer:
			to, err := r.awaitBalancer(ctx)
			if err != nil {
				return nil, err
			}
			p := r.path(name, podClient, cluster, r.witnessed(through, r.from))
			p.Address = to
			paths = append(paths, p)
		case SameNode:
			paths = append(paths, r.path(name, neighbour, server, r.witnessed(direct, r.to)))
		case Hairpin:
			paths = append(paths, r.path(name, podServer, cluster, r.witnessed(through, r.to)))
		case NodePort:
			p := r.path(name, nodeClient, node, r.witnessed(through, r.to))
			p.ControlPort, p.DataPort = r.nodePorts, r.nodePorts+1
			paths = append(paths, p)
		}
	}
	return paths, nil
}

// awaitBalancer waits until the Service has an address outside, and gives it: of the family asked for, or a name.
func (r *run) awaitBalancer(ctx context.Context) (string, error) {
	for end := time.Now().Add(r.Timeout); ; {
		service, err := r.api.service(ctx, r.namespace(), "server")
		if err != nil {
			return "", fmt.Errorf("service: %w", plain(err))
		}
		var ips []string
		for _, in := range service.Status.LoadBalancer.Ingress {
			if ips = append(ips, in.IP); in.IP == "" && in.Hostname != "" {
				return in.Hostname, nil
			}
		}
		if len(ips) > 0 {
			a, err := r.address("the load balancer", ips)
			return a.String(), err
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("path %s: no load balancer gave the Service an address within %s: has the cluster any? Without it, leave the path out", Balancer, r.Timeout)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func podIPs(p corev1.Pod) (ips []string) {
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	return ips
}

// address gives the first of the family asked for.
func (r *run) address(what string, list []string) (netip.Addr, error) {
	family := "IPv4"
	if r.IPv6 {
		family = "IPv6"
	}
	for _, text := range list {
		if a, err := netip.ParseAddr(text); err == nil && a.Is6() == r.IPv6 {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no %s address", what, family)
}

// path makes one whose client is in the pod of that role.
func (r *run) path(name, role string, to netip.Addr, proof *perf.Proof) perf.Path {
	namespace := r.namespace()
	if role == nodeClient {
		namespace = r.hostNamespace()
	}
	return perf.Path{Name: name, Address: to.String(), Proof: proof, Exec: func(ctx context.Context, argv []string) ([]byte, error) {
		return r.exec(ctx, namespace, role, argv)
	}}
}
