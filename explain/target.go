package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/podlane/podlane/cluster"
)

// NotFoundError is a pod, node or Service of the question that there is not.
type NotFoundError struct{ What string }

func (e *NotFoundError) Error() string { return e.What }

func notFound(format string, args ...any) error {
	return &NotFoundError{fmt.Sprintf(format, args...)}
}

// question is a parsed Access.
type question struct {
	Access
	from End
	name string     // to be resolved
	addr netip.Addr // else
	port uint16
}

func (w *World) parse(a Access) (question, error) {
	q := question{Access: a}
	var err error
	if q.from, err = w.from(a.From); err != nil {
		return q, err
	}
	return q, w.to(&q)
}

// from finds where packets start.
func (w *World) from(text string) (End, error) {
	if text == "outside" {
		if len(w.Outside) == 0 {
			return End{}, notFound("FROM outside: give an address, such as 203.0.113.9")
		}
		return End{Kind: "outside", Name: text, Addrs: w.Outside}, nil
	}
	if name, is := strings.CutPrefix(text, "node/"); is {
		n := w.Snapshot.Nodes.Get(cluster.Key{Name: name})
		if n == nil {
			return End{}, notFound("no node %s (there are: %s)", name, strings.Join(w.nodeNames(), ", "))
		}
		return End{Kind: "node", Name: name, Node: name, Addrs: n.Addresses}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		if end := w.whose(a.Unmap()); end.Kind != "outside" {
			end.Addr = a.Unmap()
			return end, nil
		}
		return End{Kind: "outside", Name: text, Addrs: []netip.Addr{a.Unmap()}}, nil
	}
	return w.pod(strings.TrimPrefix(text, "pod/"))
}

func (w *World) nodeNames() []string {
	var names []string
	for _, k := range w.Snapshot.Nodes.Keys() {
		names = append(names, k.Name)
	}
	return names
}

// pod finds a pod by "namespace/name" or "name".
func (w *World) pod(text string) (End, error) {
	k := keyOf(text)
	p := w.podNamed(k)
	switch {
	case p == nil:
		return End{}, notFound("no pod %s%s", k, w.similar(k))
	case p.Done:
		return End{}, notFound("pod %s has ended", k)
	case len(p.IPs) == 0:
		return End{}, notFound("pod %s has no address yet", k)
	}
	return End{Kind: "pod", Pod: p.Key, Name: p.Key.String(), Node: p.Node, Addrs: p.IPs, HostNetwork: p.HostNetwork}, nil
}

func keyOf(text string) cluster.Key {
	ns, name, found := strings.Cut(text, "/")
	if !found {
		return cluster.Key{Namespace: "default", Name: text}
	}
	return cluster.Key{Namespace: ns, Name: name}
}

// podNamed gives the pod of that name from the Snapshot or the nodes' own
// records, or nil; an agent that follows an API server has only its own pods.
func (w *World) podNamed(k cluster.Key) *cluster.Pod {
	if p := w.Snapshot.Pods.Get(k); p != nil {
		return p
	}
	for node, links := range w.Names {
		for dev, name := range links {
			if name != k || w.Plans[node] == nil {
				continue
			}
			for _, p := range w.Plans[node].Pods {
				if p.Link == dev {
					return &cluster.Pod{Key: k, Node: node, IPs: p.Addrs}
				}
			}
		}
	}
	return nil
}

// similar names a pod that was perhaps meant.
func (w *World) similar(k cluster.Key) string {
	for _, o := range w.Snapshot.Pods.Keys() {
		if o.Name == k.Name || o.Namespace == k.Namespace && strings.HasPrefix(o.Name, k.Name) {
			return fmt.Sprintf(" (there is %s)", o)
		}
	}
	return ""
}

// to finds where packets are sent.
func (w *World) to(q *question) error {
	text := q.To
	if ap, err := netip.ParseAddrPort(text); err == nil {
		q.addr, q.port = ap.Addr().Unmap(), ap.Port()
		return nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return fmt.Errorf("TO %s: the port is missing: %s", text, netip.AddrPortFrom(a, 80))
	}
	text, port, hasPort := cutPort(text)
	q.port = port
	if key, is := strings.CutPrefix(text, "svc/"); is {
		return w.toService(q, keyOf(key), hasPort)
	}
	if strings.Contains(text, "/") {
		return w.toPod(q, strings.TrimPrefix(text, "pod/"), hasPort)
	}
	if !hasPort {
		return fmt.Errorf("TO %s: want NAME:PORT, IP:PORT, svc/NAMESPACE/NAME:PORT or NAMESPACE/POD", q.To)
	}
	q.name = text
	return nil
}

func cutPort(text string) (host string, port uint16, ok bool) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return text, 0, false
	}
	n, err := strconv.ParseUint(text[i+1:], 10, 16)
	if err != nil || n == 0 {
		return text, 0, false
	}
	return text[:i], uint16(n), true
}

func (w *World) toService(q *question, k cluster.Key, hasPort bool) error {
	s := w.Snapshot.Services.Get(k)
	switch {
	case s == nil:
		return notFound("no Service %s", k)
	case len(s.ClusterIPs) == 0:
		return notFound("Service %s has no cluster IP: ask by its name, %s.%s:PORT", k, k.Name, k.Namespace)
	case !hasPort && len(s.Ports) != 1:
		return fmt.Errorf("TO %s: Service %s has %d ports: say which", q.To, k, len(s.Ports))
	case !hasPort:
		q.port = s.Ports[0].Port
	}
	var err error
	q.addr, err = pick(s.ClusterIPs, q.IPv6, "Service "+k.String())
	return err
}

func (w *World) toPod(q *question, name string, hasPort bool) error {
	end, err := w.pod(name)
	if err != nil {
		return err
	}
	if !hasPort {
		q.port = w.someTarget(end.Pod)
	}
	q.addr, err = pick(end.Addrs, q.IPv6, "pod "+end.Name)
	return err
}

// someTarget gives a port at which a Service would reach the pod, or 80.
func (w *World) someTarget(pod cluster.Key) uint16 {
	for _, k := range w.Snapshot.Slices.Keys() {
		s := w.Snapshot.Slices.Get(k)
		if len(s.Ports) > 0 && slices.ContainsFunc(s.Endpoints, func(e cluster.Endpoint) bool { return e.Pod == pod }) {
			return s.Ports[0].Port
		}
	}
	return 80
}

// pick gives the first address, or with v6 the first of IPv6.
func pick(addrs []netip.Addr, v6 bool, what string) (netip.Addr, error) {
	if !v6 {
		return addrs[0], nil
	}
	for _, a := range addrs {
		if a.Is6() {
			return a, nil
		}
	}
	return netip.Addr{}, notFound("%s has no IPv6 address", what)
}

// source settles the address that packets start with and, from outside, the node
// at which they come in.
func (w *World) source(q *question, enter string) error {
	v6 := q.addr.Is6()
	for _, a := range q.from.Addrs {
		if a.Is6() == v6 && !q.from.Addr.IsValid() {
			q.from.Addr = a
		}
	}
	if !q.from.Addr.IsValid() || q.from.Addr.Is6() != v6 {
		return notFound("%s %s has no %s address, and %s is one", q.from.Kind, q.from.Name, family(v6), q.addr)
	}
	if q.from.Kind != "outside" {
		return nil
	}
	q.from.Node = enter
	if enter == "" {
		q.from.Node = w.nodeOf(q.addr)
	}
	if q.from.Node == "" {
		return fmt.Errorf("%s is no address of a node or pod: say with --enter at which node packets from outside come in", q.addr)
	}
	if w.Snapshot.Nodes.Get(cluster.Key{Name: q.from.Node}) == nil {
		return notFound("no node %s (there are: %s)", q.from.Node, strings.Join(w.nodeNames(), ", "))
	}
	w.nearest(q)
	return nil
}

// nearest takes, of several addresses outside, the one on the segment of the node
// at which packets come in.
func (w *World) nearest(q *question) {
	p := w.plan(q.from.Node)
	if p == nil {
		return
	}
	for _, a := range q.from.Addrs {
		if slices.ContainsFunc(p.Underlay.Addrs, func(u netip.Prefix) bool { return u.Contains(a) }) && a.Is6() == q.addr.Is6() {
			q.from.Addr = a
			return
		}
	}
}

func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// nodeOf gives the node that has an address or the pod CIDR of it.
func (w *World) nodeOf(a netip.Addr) string {
	for _, n := range w.Snapshot.Nodes.All() {
		if slices.Contains(n.Addresses, a) || slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return n.Name
		}
	}
	return ""
}

// whose names what has an address: a pod, a node, or else the outside.
func (w *World) whose(a netip.Addr) End {
	for node, p := range w.Plans {
		if p == nil {
			continue
		}
		for _, pod := range p.Pods {
			if slices.Contains(pod.Addrs, a) {
				k := w.podOfLink(node, pod.Link, a)
				return End{Kind: "pod", Pod: k, Name: k.String(), Node: node, Addrs: pod.Addrs}
			}
		}
	}
	for _, n := range w.Snapshot.Nodes.All() {
		if slices.Contains(n.Addresses, a) {
			return End{Kind: "node", Name: n.Name, Node: n.Name, Addrs: n.Addresses}
		}
	}
	for _, p := range w.Snapshot.Pods.All() {
		if !p.HostNetwork && !p.Done && slices.Contains(p.IPs, a) {
			return End{Kind: "pod", Pod: p.Key, Name: p.Key.String(), Node: p.Node, Addrs: p.IPs}
		}
	}
	return End{Kind: "outside", Name: a.String(), Addrs: []netip.Addr{a}}
}

// podOfLink names the pod behind a node's link.
func (w *World) podOfLink(node, dev string, a netip.Addr) cluster.Key {
	if k, ok := w.Names[node][dev]; ok {
		return k
	}
	if k, ok := w.podAt(a); ok {
		return k
	}
	return cluster.Key{Name: dev}
}

// podAt names the pod of an address, by the cluster's pods or, where these are not
// known, by the endpoint slices.
func (w *World) podAt(a netip.Addr) (cluster.Key, bool) {
	if w.podsAt == nil {
		w.podsAt = map[netip.Addr]cluster.Key{}
		for _, s := range w.Snapshot.Slices.All() {
			for _, e := range s.Endpoints {
				if e.Pod.Name != "" {
					w.podsAt[e.Address] = e.Pod
				}
			}
		}
		for _, p := range w.Snapshot.Pods.All() {
			for _, ip := range p.IPs {
				if !p.HostNetwork && !p.Done {
					w.podsAt[ip] = p.Key
				}
			}
		}
	}
	k, ok := w.podsAt[a]
	return k, ok
}
