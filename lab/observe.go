package lab

import (
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/cluster/file"
)

// status gives the lab's state, everything in order.
func (h *holder) status() *Status {
	st := &Status{Name: h.opts.Name, Dir: h.dir, Overlay: h.opts.Overlay, VXLANPort: h.opts.VXLANPort, FastPath: h.opts.FastPath, SocketLB: h.opts.SocketLB, Root: ownsMachine(),
		Nodes: []NodeStatus{}, Pods: []PodStatus{}, Services: []ServiceStatus{}}
	h.look(func() {
		for _, n := range h.expanded.Nodes {
			node := h.nodes[n.Name].status()
			node.Zone = n.Labels[corev1.LabelTopologyZone]
			st.Nodes = append(st.Nodes, node)
		}
		for _, p := range h.expanded.Pods {
			st.Pods = append(st.Pods, h.podStatus(p))
		}
		st.Services = serviceStatuses(h.expanded)
		st.Problems = texts(h.problems)
	})
	return st
}

// ownsMachine says whether the holder's user namespace is the machine's.
func ownsMachine() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	var inside, outside, size uint64
	if err == nil {
		_, err = fmt.Sscan(string(text), &inside, &outside, &size)
	}
	return err == nil && inside == 0 && outside == 0 && size > 1
}

func (n *node) status() NodeStatus {
	st := NodeStatus{Name: n.Name, Addresses: texts(n.addresses()), PodCIDRs: texts(n.PodCIDRs), Ready: n.ready()}
	if n.err != nil {
		st.Agent = ProcessStatus{State: "stopped", Reason: n.err.Error()}
	} else {
		st.Agent = n.agent.status()
	}
	if seen := n.seen.Load(); st.Agent.State == "running" && seen != nil {
		st.Agent.Reason = seen.err
	}
	return st
}

func (h *holder) podStatus(want *corev1.Pod) PodStatus {
	st := PodStatus{Namespace: want.Namespace, Name: want.Name, Node: want.Spec.NodeName, IPs: []string{}, Labels: want.Labels, Containers: []ContainerStatus{}}
	p := h.pods[cluster.Key{Namespace: want.Namespace, Name: want.Name}]
	if p == nil {
		st.Reason = h.whyNoPod(want)
		return st
	}
	for _, ip := range want.Status.PodIPs {
		st.IPs = append(st.IPs, ip.IP)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	st.Ready, st.Reason = p.ready, p.reason
	if p.halted() {
		st.Ready, st.Reason = false, "is replaced"
	}
	for _, c := range p.containers {
		cs := ContainerStatus{Name: c.spec.Name, Runs: c.runs, ProcessStatus: c.supervisor.status()}
		st.Restarts += cs.Restarts
		st.Containers = append(st.Containers, cs)
	}
	return st
}

func (h *holder) whyNoPod(want *corev1.Pod) string {
	name := want.Spec.NodeName
	switch n := h.nodes[name]; {
	case name == "" && len(want.Spec.NodeSelector) > 0:
		return fmt.Sprintf("spec.nodeSelector: no node has the labels %v", want.Spec.NodeSelector)
	case name == "":
		return "no node takes pods"
	case n == nil:
		return fmt.Sprintf("spec.nodeName: there is no node %s", name)
	case n.err != nil:
		return fmt.Sprintf("node %s: %v", name, n.err)
	case done(want):
		return errCompleted.Error()
	}
	return "starting"
}

// serviceStatuses goes through the slices once, since there may be ten thousand Services.
func serviceStatuses(o *file.Objects) []ServiceStatus {
	statuses, of := []ServiceStatus{}, map[cluster.Key]int{}
	for i, object := range o.Services {
		s := convert.Service(object)
		st := ServiceStatus{Namespace: s.Namespace, Name: s.Name, Type: string(s.Type), ClusterIPs: texts(s.ClusterIPs), Ports: []string{}}
		for _, p := range s.Ports {
			st.Ports = append(st.Ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		statuses, of[s.Key] = append(statuses, st), i
	}
	for _, e := range o.EndpointSlices {
		slice := convert.EndpointSlice(e)
		if slice == nil {
			continue
		}
		i, is := of[cluster.Key{Namespace: slice.Namespace, Name: slice.Service}]
		if !is {
			continue
		}
		for _, ep := range slice.Endpoints {
			statuses[i].Endpoints++
			if ep.Ready {
				statuses[i].Ready++
			}
		}
	}
	return statuses
}

// up says whether the pod has its namespaces and network.
func (p *pod) up() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live
}

func (p *pod) why() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reason
}
