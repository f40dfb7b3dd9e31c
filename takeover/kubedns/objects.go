// Package kubedns brings the Service of the cluster's DNS to Podlane's servers: it
// makes one where there is none, and switches one over that is another server's,
// and back. It runs no server itself.
package kubedns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Name is that of an object in a namespace.
type Name struct{ Namespace, Name string }

func (n Name) String() string { return n.Namespace + "/" + n.Name }

// The parts of the API's objects that count here.
type (
	meta struct {
		UID         string            `json:"uid"`
		Version     string            `json:"resourceVersion"`
		Generation  int64             `json:"generation"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	}
	service struct {
		Metadata meta `json:"metadata"`
		Spec     struct {
			Type                string            `json:"type"`
			Selector            map[string]string `json:"selector"`
			ClusterIPs          []string          `json:"clusterIPs"`
			Ports               []port            `json:"ports"`
			TrafficDistribution string            `json:"trafficDistribution"`
		} `json:"spec"`
	}
	port struct {
		Name     string `json:"name"`
		Protocol string `json:"protocol"`
		Port     int    `json:"port"`
	}
	daemonSet struct {
		Metadata meta `json:"metadata"`
		Spec     struct {
			Selector struct {
				MatchLabels map[string]string `json:"matchLabels"`
			} `json:"selector"`
			Template struct {
				Metadata meta `json:"metadata"`
				Spec     struct {
					Containers []struct {
						Args  []string        `json:"args"`
						Ports []containerPort `json:"ports"`
					} `json:"containers"`
				} `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
		Status struct {
			ObservedGeneration int64 `json:"observedGeneration"`
			Desired            int   `json:"desiredNumberScheduled"`
			Updated            int   `json:"updatedNumberScheduled"`
			Ready              int   `json:"numberReady"`
		} `json:"status"`
	}
	containerPort struct {
		Name string `json:"name"`
	}
	configMap struct {
		Metadata meta              `json:"metadata"`
		Data     map[string]string `json:"data"`
	}
	serviceCIDR struct {
		Spec struct {
			CIDRs []string `json:"cidrs"`
		} `json:"spec"`
	}
	podList struct {
		Items []struct {
			Status struct {
				Conditions []struct {
					Type   string `json:"type"`
					Status string `json:"status"`
				} `json:"conditions"`
			} `json:"status"`
		} `json:"items"`
	}
)

// ready says that all pods are of the newest template and answer.
func (d *daemonSet) ready() bool {
	s := d.Status
	return s.ObservedGeneration >= d.Metadata.Generation && s.Desired > 0 && s.Updated == s.Desired && s.Ready == s.Desired
}

func (p *podList) ready() int {
	n := 0
	for _, pod := range p.Items {
		for _, c := range pod.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				n++
			}
		}
	}
	return n
}

// selector writes labels as the API's label selectors.
func selector(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}

// tenth gives the address of a Service range that is the DNS's by custom.
func tenth(cidr string) (netip.Addr, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("the range %q: %w", cidr, err)
	}
	return after(p.Masked().Addr(), 10, p)
}

// after gives the n-th address after a, which must be in p.
func after(a netip.Addr, n int, p netip.Prefix) (netip.Addr, error) {
	for range n {
		a = a.Next()
	}
	if !p.Contains(a) {
		return netip.Addr{}, fmt.Errorf("the Service range %s has no tenth address: say which one with --dns-ip", p)
	}
	return a, nil
}
