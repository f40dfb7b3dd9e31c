// Package cluster holds what a cluster's network is wanted to be: nodes, pods,
// Services and their endpoints, as one immutable Snapshot.
//
// It knows neither where a Snapshot comes from (cluster/kube, cluster/file) nor
// what is made of it (overlay, proxy, dns), and it uses the standard library
// alone.
package cluster

// Snapshot is the state of the cluster at one moment. It never changes after
// publication; the next one shares every object that did not change, by
// pointer, so that two Snapshots are compared with Map.Changed in time that
// grows with what changed.
type Snapshot struct {
	Nodes      Map[Node]      // by name
	Namespaces Map[Namespace] // by name
	Pods       Map[Pod]
	Services   Map[Service]
	Slices     Map[EndpointSlice]
	// ServiceCIDRs are by name. There may be none, where nobody told.
	ServiceCIDRs Map[ServiceCIDR]
	// Endpoints has the slices of each Service, by the Service's key, sorted by
	// the slices' names. It is derived from Slices.
	Endpoints Map[ServiceSlices]
	// Version names the state of the source that this was read from, where the
	// source can tell: for a folder, file.Version. Nothing is compiled from it; it
	// tells who waits for a change whether it has arrived.
	Version string
}

// Problem is a condition of one object that keeps it, and it alone, from being
// used as it was meant.
type Problem struct {
	Kind  string // "Node", "Service", ...
	Key   Key
	Field string // path inside the object, such as "spec.clusterIPs[1]"
	Err   string // what is wrong and what to do
}

func (p Problem) String() string {
	s := p.Kind + " " + p.Key.String()
	if p.Field != "" {
		s += ": " + p.Field
	}
	return s + ": " + p.Err
}

// Problems gives the problems of all objects, in no particular order. It walks
// everything: for status and plan, not for each change.
func (s *Snapshot) Problems() []Problem {
	var ps []Problem
	for _, o := range s.Nodes.All() {
		ps = append(ps, o.Problems...)
	}
	for _, o := range s.Pods.All() {
		ps = append(ps, o.Problems...)
	}
	for _, o := range s.Services.All() {
		ps = append(ps, o.Problems...)
	}
	for _, o := range s.Slices.All() {
		ps = append(ps, o.Problems...)
	}
	for _, o := range s.ServiceCIDRs.All() {
		ps = append(ps, o.Problems...)
	}
	return ps
}
