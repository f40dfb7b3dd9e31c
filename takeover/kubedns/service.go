package kubedns

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
)

// before is the annotation of a Service that was switched over: what it was.
const before = "podlane.dev/dns-before"

// nearest makes the API server lead a node's queries to the node's own server.
const nearest = "PreferSameNode"

// object is one of the API with all of its fields, also those that this program
// does not know.
type object = map[string]any

// newService gives the Service where there is none. It goes with the DaemonSet.
func newService(name Name, own *daemonSet, daemonSetName string, ips []netip.Addr) object {
	var texts []string
	for _, ip := range ips {
		texts = append(texts, ip.String())
	}
	return object{
		"apiVersion": "v1", "kind": "Service",
		"metadata": object{
			"name": name.Name, "namespace": name.Namespace,
			"labels":          object{"k8s-app": "kube-dns", "kubernetes.io/name": "Podlane", "app.kubernetes.io/name": "podlane", "app.kubernetes.io/component": "dns"},
			"ownerReferences": []object{{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": daemonSetName, "uid": own.Metadata.UID}},
		},
		"spec": object{
			"clusterIP": texts[0], "clusterIPs": texts, "ipFamilyPolicy": "PreferDualStack",
			"selector": own.Spec.Selector.MatchLabels, "trafficDistribution": nearest,
			"ports": []object{
				{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns"},
				{"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": "dns-tcp"},
			},
		},
	}
}

// target gives the port of Podlane's pods for a port of the Service; "" is none.
func (p port) target() string {
	switch {
	case p.Port == 53 && p.Protocol == "UDP":
		return "dns"
	case p.Port == 53 && p.Protocol == "TCP":
		return "dns-tcp"
	case p.Name == "metrics" || p.Port == 9153:
		return "http"
	}
	return ""
}

// former is what the annotation before has.
type former struct {
	Selector            any `json:"selector"`
	Ports               any `json:"ports"`
	TrafficDistribution any `json:"trafficDistribution"`
}

// switched gives the Service as it leads to other pods, with what it was.
func switched(s object, to map[string]string) (object, error) {
	out, spec, notes, err := parts(s)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(former{spec["selector"], spec["ports"], spec["trafficDistribution"]})
	if err != nil {
		return nil, err
	}
	if notes[before] == nil { // what led here already, and was merged with another's, is no way back
		notes[before] = string(text)
	}
	spec["selector"], spec["trafficDistribution"] = to, nearest
	var ports []any
	list, _ := spec["ports"].([]any)
	for _, p := range list {
		m, ok := p.(object)
		if !ok {
			return nil, errors.New("spec.ports is no list of ports")
		}
		m = maps.Clone(m)
		number, _ := m["port"].(float64)
		protocol, _ := m["protocol"].(string)
		name, _ := m["name"].(string)
		if t := (port{name, protocol, int(number)}).target(); t != "" {
			m["targetPort"] = t
		}
		ports = append(ports, m)
	}
	spec["ports"] = ports
	return out, nil
}

// restored gives the Service as it was before switched, and its selector.
func restored(s object) (object, map[string]string, error) {
	out, spec, notes, err := parts(s)
	if err != nil {
		return nil, nil, err
	}
	text, ok := notes[before].(string)
	if !ok {
		return nil, nil, fmt.Errorf("the Service has no annotation %s: it was not switched over, or somebody took the annotation away", before)
	}
	var was former
	if err := json.Unmarshal([]byte(text), &was); err != nil {
		return nil, nil, fmt.Errorf("annotation %s: %w", before, err)
	}
	delete(notes, before)
	spec["selector"], spec["ports"] = was.Selector, was.Ports
	delete(spec, "trafficDistribution")
	if was.TrafficDistribution != nil {
		spec["trafficDistribution"] = was.TrafficDistribution
	}
	labels := map[string]string{}
	if m, ok := was.Selector.(object); ok {
		for k, v := range m {
			labels[k] = fmt.Sprint(v)
		}
	}
	if len(labels) == 0 {
		return nil, nil, fmt.Errorf("annotation %s: it has no selector", before)
	}
	return out, labels, nil
}

// parts gives a copy of a Service, with its spec and annotations copied too.
func parts(s object) (out, spec, notes object, err error) {
	out = maps.Clone(s)
	was, ok1 := s["spec"].(object)
	m, ok2 := s["metadata"].(object)
	if !ok1 || !ok2 {
		return nil, nil, nil, errors.New("the Service has no metadata or spec")
	}
	spec, m = maps.Clone(was), maps.Clone(m)
	notes, _ = m["annotations"].(object)
	if notes = maps.Clone(notes); notes == nil {
		notes = object{}
	}
	m["annotations"], out["metadata"], out["spec"] = notes, m, spec
	return out, spec, notes, nil
}

// withoutNearest is for servers that do not know the value.
func withoutNearest(s object) object {
	out, spec, _, err := parts(s)
	if err != nil {
		return s
	}
	delete(spec, "trafficDistribution")
	return out
}
