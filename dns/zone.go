// Package dns is the cluster's DNS: Compile makes a Zone of a Snapshot, and
// Zone.Answer says what a question gets by the Kubernetes DNS specification.
// It is no recursive resolver and no general name server: what is outside the
// cluster's zone goes to other resolvers.
//
// The package is pure but for the files server*.go, which own the sockets, and
// forward*.go, which ask other resolvers.
//
//	*cluster.Snapshot ──Compile──▶ *Zone ──atomic.Pointer──▶ Server ──▶ Zone.Answer
//	                                                           └─ outside ─▶ Forwarder
package dns

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
)

// Schema is the version of the Kubernetes DNS specification that the zone
// follows: the text of its dns-version record.
const Schema = "1.1.0"

// PodMode says which pod records ("10-0-0-1.namespace.pod.zone") there are.
type PodMode string

// The modes of pod records, by CoreDNS's names.
const (
	PodsDisabled PodMode = "disabled"
	// PodsInsecure gives back whatever address the name spells, in namespaces that
	// exist.
	PodsInsecure PodMode = "insecure"
	// PodsVerified gives an address only where a pod of the namespace has it. It
	// needs a Snapshot with all pods.
	PodsVerified PodMode = "verified"
)

// Config is the settings of a zone. It is comparable: another Config compiles
// anew.
type Config struct {
	// Domain is the zone, such as "cluster.local": at most 200 bytes, so that its
	// own records are legal names. Below it, names that would be too long are left
	// out.
	Domain Name
	TTL    uint32 // of every record, in seconds
	Pods   PodMode
	// AllEndpoints gives names, and PTR records, to the endpoints of Services with
	// cluster IPs too, as CoreDNS does; the specification has them for headless ones.
	AllEndpoints bool
	// Service is the Service that clients reach this DNS at: its cluster IPs are
	// the addresses of ns.dns.<zone>, the zone's name server.
	Service cluster.Key
	// Serial is the first serial number of the zone's SOA record; every change
	// adds one.
	Serial uint32
}

// Zone is the cluster's zone at one moment. It never changes. It answers from
// the Snapshot itself and keeps beside it only what a question cannot find there
// in one step.
type Zone struct {
	cfg      Config
	serial   uint32
	snapshot *cluster.Snapshot
	headless cluster.Map[headless]
	// owners finds the Services that an address belongs to, by the address's
	// bytes: cluster IPs, and ready endpoints of headless Services.
	owners cluster.Map[owners]
	// inhabited counts the Services (and for PodsVerified the pods) of a namespace:
	// one that has any exists, also where the source gives no Namespace objects.
	inhabited cluster.Map[int]
	// pods counts the pods with an address in a namespace (PodsVerified alone).
	pods cluster.Map[int]
}

// owners is the Services of an address, sorted.
type owners struct{ services []cluster.Key }

var noSnapshot = &cluster.Snapshot{}

// Compile gives the zone of a Snapshot. With prev, a zone of an earlier Snapshot
// of the same source, it takes time that grows with what changed; without, it
// does the whole. Where nothing of the zone changed, its serial stays.
func Compile(prev *Zone, snapshot *cluster.Snapshot, cfg Config) *Zone {
	if prev == nil || prev.cfg != cfg {
		prev = &Zone{cfg: cfg, serial: cfg.Serial - 1, snapshot: noSnapshot}
	}
	c := compiler{
		old: prev, now: snapshot,
		headless: map[cluster.Key]*headless{}, owners: map[cluster.Key]*owners{},
		inhabited: map[cluster.Key]*int{}, pods: map[cluster.Key]*int{},
	}
	c.run()
	return c.zone()
}

// Config gives the settings the zone was compiled with.
func (z *Zone) Config() Config { return z.cfg }

// Serial gives the zone's SOA serial.
func (z *Zone) Serial() uint32 { return z.serial }

// compiler collects the changes of one Compile.
type compiler struct {
	old       *Zone
	now       *cluster.Snapshot
	changed   bool
	headless  map[cluster.Key]*headless
	owners    map[cluster.Key]*owners
	inhabited map[cluster.Key]*int
	pods      map[cluster.Key]*int
}

func (c *compiler) run() {
	done := map[cluster.Key]bool{}
	for ch := range c.now.Services.Changed(c.old.snapshot.Services) {
		done[ch.Key] = true
		c.service(ch.Key, ch.Old, ch.New)
	}
	for ch := range c.now.Endpoints.Changed(c.old.snapshot.Endpoints) {
		if s := c.now.Services.Get(ch.Key); s != nil && (s.Headless || c.old.cfg.AllEndpoints) && !done[ch.Key] {
			c.service(ch.Key, s, s)
		}
	}
	for range c.now.Namespaces.Changed(c.old.snapshot.Namespaces) {
		c.changed = true
		break
	}
	if c.old.cfg.Pods == PodsVerified {
		for ch := range c.now.Pods.Changed(c.old.snapshot.Pods) {
			c.pod(ch.Old, -1)
			c.pod(ch.New, 1)
		}
	}
}

func (c *compiler) zone() *Zone {
	first := c.old.snapshot == noSnapshot
	z := *c.old
	z.snapshot = c.now
	if !first && !c.changed {
		// The contents are the old ones; the next Compile compares with this
		// Snapshot all the same.
		return &z
	}
	z.serial++
	z.headless = z.headless.With(c.headless)
	z.owners = z.owners.With(c.owners)
	z.inhabited = z.inhabited.With(c.inhabited)
	z.pods = z.pods.With(c.pods)
	return &z
}

// service takes in a change of a Service or of its endpoints.
func (c *compiler) service(k cluster.Key, was, is *cluster.Service) {
	c.changed = true
	before := c.old.headless.Get(k)
	after := compileHeadless(is, c.now.Endpoints.Get(k), c.old.cfg.AllEndpoints)
	if after != before {
		c.headless[k] = after
	}
	c.own(k, addresses(was, before), addresses(is, after))
	switch ns := (cluster.Key{Name: k.Namespace}); {
	case was == nil && is != nil:
		count(c.old.inhabited, c.inhabited, ns, 1)
	case was != nil && is == nil:
		count(c.old.inhabited, c.inhabited, ns, -1)
	}
}

// addresses gives the addresses whose PTR records lead to a Service or to its
// endpoints, sorted.
func addresses(s *cluster.Service, h *headless) []netip.Addr {
	switch {
	case s == nil:
		return nil
	case s.Headless && h != nil:
		return h.addrs
	}
	ips := slices.Clone(s.ClusterIPs)
	if h != nil {
		ips = append(ips, h.addrs...)
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return slices.Compact(ips)
}

// own moves a Service from its old addresses to its new ones.
func (c *compiler) own(k cluster.Key, old, now []netip.Addr) {
	for _, a := range old {
		if !sortedHas(now, a) {
			c.setOwners(a, func(l []cluster.Key) []cluster.Key {
				return slices.DeleteFunc(l, func(o cluster.Key) bool { return o == k })
			})
		}
	}
	alone := &owners{[]cluster.Key{k}} // shared by all addresses that are this Service's alone
	for _, a := range now {
		ak := addrKey(a)
		switch {
		case sortedHas(old, a):
		case c.ownersOf(ak) == nil:
			c.owners[ak] = alone
		default:
			c.setOwners(a, func(l []cluster.Key) []cluster.Key {
				i, _ := slices.BinarySearchFunc(l, k, cluster.Key.Compare)
				return slices.Insert(l, i, k)
			})
		}
	}
}

func sortedHas(l []netip.Addr, a netip.Addr) bool {
	_, has := slices.BinarySearchFunc(l, a, netip.Addr.Compare)
	return has
}

func (c *compiler) ownersOf(k cluster.Key) *owners {
	if o, ok := c.owners[k]; ok {
		return o
	}
	return c.old.owners.Get(k)
}

func (c *compiler) setOwners(a netip.Addr, edit func([]cluster.Key) []cluster.Key) {
	k := addrKey(a)
	var l []cluster.Key
	if o := c.ownersOf(k); o != nil {
		l = slices.Clone(o.services)
	}
	if l = edit(l); len(l) == 0 {
		c.owners[k] = nil
		return
	}
	c.owners[k] = &owners{l}
}

// pod takes in the addresses of a pod, or with by -1 takes them out.
func (c *compiler) pod(p *cluster.Pod, by int) {
	if p == nil || p.Done {
		return
	}
	c.changed = true
	count(c.old.inhabited, c.inhabited, cluster.Key{Name: p.Namespace}, by)
	for _, a := range p.IPs {
		count(c.old.pods, c.pods, cluster.Key{Namespace: p.Namespace, Name: addrKey(a).Name}, by)
	}
}

func count(published cluster.Map[int], pending map[cluster.Key]*int, k cluster.Key, by int) {
	n, ok := pending[k]
	if !ok {
		n = published.Get(k)
	}
	sum := by
	if n != nil {
		sum += *n
	}
	if sum == 0 {
		pending[k] = nil
		return
	}
	pending[k] = &sum
}

// addrKey is the key of an address in a Map: its 4 or 16 bytes.
func addrKey(a netip.Addr) cluster.Key {
	return cluster.Key{Name: string(a.AsSlice())}
}
