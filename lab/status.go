package lab

import "fmt"

// Status is the state of a lab. Its JSON is stable: fields are only added.
type Status struct {
	Name    string `json:"name"`
	Dir     string `json:"dir"`
	Overlay string `json:"overlay"`
	// VXLANPort is the UDP port of VXLAN.
	VXLANPort uint16          `json:"vxlan_port"`
	FastPath  string          `json:"fast_path"` // auto, on, off
	SocketLB  string          `json:"socket_lb"` // likewise
	Root      bool            `json:"root"`      // false: in a user namespace, without a fast path
	Nodes     []NodeStatus    `json:"nodes"`
	Pods      []PodStatus     `json:"pods"`
	Services  []ServiceStatus `json:"services"`
	// Problems name objects that cannot be used as they are, and why.
	Problems []string `json:"problems,omitempty"`
}

// NodeStatus is the state of a node.
type NodeStatus struct {
	Name      string        `json:"name"`
	Addresses []string      `json:"addresses"`
	PodCIDRs  []string      `json:"pod_cidrs"`
	Zone      string        `json:"zone,omitempty"`
	Ready     bool          `json:"ready"`
	Agent     ProcessStatus `json:"agent"`
}

// PodStatus is the state of a pod.
type PodStatus struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Node      string   `json:"node"`
	IPs       []string `json:"ips"`
	Ready     bool     `json:"ready"`
	// Reason says why a pod is not Ready.
	Reason     string            `json:"reason,omitempty"`
	Restarts   int               `json:"restarts"`
	Containers []ContainerStatus `json:"containers"`
	// Labels are the pod's, to tell the pods of a Service.
	Labels map[string]string `json:"labels,omitempty"`
}

// ContainerStatus is the state of a container.
type ContainerStatus struct {
	Name string `json:"name"`
	// Runs says what stands for the image, such as "nginx stand-in", or is the
	// command.
	Runs string `json:"runs"`
	ProcessStatus
}

// ServiceStatus is the state of a Service.
type ServiceStatus struct {
	Namespace  string   `json:"namespace"`
	Name       string   `json:"name"`
	Type       string   `json:"type"`
	ClusterIPs []string `json:"cluster_ips"`
	Ports      []string `json:"ports"` // "8000/TCP"
	Endpoints  int      `json:"endpoints"`
	Ready      int      `json:"ready"` // of the endpoints
}

// NotReady names each node and pod that is not Ready, with the reason.
func (s *Status) NotReady() []string {
	var list []string
	for _, n := range s.Nodes {
		if !n.Ready {
			list = append(list, withReason("node "+n.Name+": agent "+n.Agent.State, n.Agent.Reason))
		}
	}
	for _, p := range s.Pods {
		if !p.Ready && p.Reason != errCompleted.Error() {
			list = append(list, withReason(fmt.Sprintf("pod %s/%s", p.Namespace, p.Name), p.Reason))
		}
	}
	return list
}

func withReason(s, reason string) string {
	if reason == "" {
		return s
	}
	return s + ": " + reason
}
