// Package cni is the agent's side of the CNI plugin: a runtime's request becomes
// an allocation on record, a wired pod, and the result that the runtime gets. It
// is not the plugin that the runtime executes (package shim), and it decides
// nothing about how packets find the pod (package overlay, from Allocations).
//
// An ADD, and what a kill of the agent after each step leaves:
//
//	1 plan    addresses taken, record written     a record without a link: the next start collects it
//	2 wire    veth pair, the pod's end            a record with a link: the next start adopts the pod; the runtime,
//	                                              which got no answer, repeats ADD (checked, mended, same result) or DELs
//	3 apply   the node's end: routes, neighbours  as 2
//	4 answer                                      as 2
//
// A DEL, which takes the steps back:
//
//	1 apply   without the pod                     record and link: adopted again, until the runtime repeats DEL
//	2 unwire  the link, and with it the pod's end a record without a link: collected
//	3 forget  the record                          nothing
//
// What fails at a step is taken back at once. Many requests that wait at the same
// time go through each step together.
package cni

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/kernel/link"
)

// DefaultHold is how long a released address is held back while others are free.
const DefaultHold = 60 * time.Second

// Config is what does not change while the agent runs.
type Config struct {
	Node   string        // the node's name, for messages
	Dir    string        // the record's folder: STATE/allocations/v1
	BootID string        // /proc/sys/kernel/random/boot_id
	Hold   time.Duration // 0: DefaultHold
}

// Network is what the node has to give to pods.
type Network struct {
	PodCIDRs []netip.Prefix // in the order of the Node object; any number a family
	MTU      int            // of a pod's link
	// Problem is why the node can serve no new pods, in words for its operator
	// ("node n2 has no podCIDR: start kube-controller-manager with
	// --allocate-node-cidrs"); empty where it can.
	Problem string
}

// Plugin answers CNI requests. It belongs to the agent's loop: it is not for
// concurrent use, and it writes the kernel.
type Plugin struct {
	config  Config
	kernel  *link.Handle
	record  *Record
	ipam    *IPAM
	network Network
	leaving map[Key]bool // on record, and no longer wanted
}

// Open reads the record. The problems name the files that were no records and
// have been moved aside. Until SetNetwork has been called no pod is served.
func Open(c Config, kernel *link.Handle) (p *Plugin, problems []error, err error) {
	if c.Hold == 0 {
		c.Hold = DefaultHold
	}
	record, problems, err := OpenRecord(c.Dir)
	if err != nil {
		return nil, nil, err
	}
	p = &Plugin{
		config: c, kernel: kernel, record: record, ipam: NewIPAM(c.Node, c.Hold),
		network: Network{Problem: "node " + c.Node + " is not known yet: the agent waits for the cluster's first state"},
		leaving: map[Key]bool{},
	}
	for _, a := range record.All() {
		p.ipam.Claim(a.Addrs...)
	}
	maps.Copy(p.ipam.last, record.loadCursors())
	return p, problems, nil
}

// SetNetwork says what the node gives to pods from now on. Pods that have an
// address of a CIDR that is gone keep it.
func (p *Plugin) SetNetwork(n Network) {
	p.network = n
	p.ipam.SetCIDRs(n.PodCIDRs)
}

// Problem is why the node can serve no new pods; "" where it can.
func (p *Plugin) Problem() string { return p.network.Problem }

// Prepare makes ready what the next ADDs need. It is for moments when no pod waits; an
// ADD takes longer without, and does not fail.
func (p *Plugin) Prepare() { p.record.Prepare() }

// Allocations gives the pods that the node should carry, sorted by their keys:
// the input of Compile beside the Snapshot.
func (p *Plugin) Allocations() []Allocation {
	return slices.DeleteFunc(p.record.All(), func(a Allocation) bool { return p.leaving[a.Key()] })
}

// Outcome is what became of a request, for the log.
type Outcome struct {
	Command    string
	Allocation Allocation // zero for STATUS, VERSION and GC, and where there is none
	Err        error
}

// Handle answers a batch of requests, in their order as far as it matters, and
// replies to each. It calls apply, which compiles from Allocations and brings the
// result to the kernel, once for each run of ADDs or of DELs. After an error of
// apply an ADD whose pod has no route on the node is rolled back; the error is
// the caller's to report. DELs go on.
func (p *Plugin) Handle(batch []*Request, apply func() error) []Outcome {
	var outcomes []Outcome
	for len(batch) > 0 {
		n := run(batch)
		calls := make([]*call, 0, n)
		for _, r := range batch[:n] {
			calls = append(calls, parse(r))
		}
		p.handle(batch[0].Command, calls, apply)
		for _, c := range calls {
			c.answer()
			outcomes = append(outcomes, Outcome{c.req.Command, c.alloc, c.err})
		}
		batch = batch[n:]
	}
	return outcomes
}

// run gives how many requests at the head of the batch have the same command and
// different attachments.
func run(batch []*Request) int {
	seen := map[Key]bool{}
	for i, r := range batch {
		k := Key{r.ContainerID, r.IfName}
		if r.Command != batch[0].Command || seen[k] {
			return i
		}
		seen[k] = true
	}
	return len(batch)
}

// handle does calls of one command.
func (p *Plugin) handle(command string, calls []*call, apply func() error) {
	switch command {
	case "ADD":
		p.add(calls, apply)
	case "DEL":
		p.del(calls, apply)
	case "CHECK":
		each(calls, p.check)
	case "STATUS":
		each(calls, p.status)
	case "GC":
		each(calls, func(c *call) error { return p.gc(c, apply) })
	}
}

// each does what has not failed yet.
func each(calls []*call, do func(*call) error) {
	for _, c := range calls {
		if c.err == nil {
			c.err = do(c)
		}
	}
}

// Collect removes the allocations of an earlier boot and those that are not
// alive: whose host link is gone, or whose pod the caller knows to have ended. It
// gives what it removed; what it could not remove stays, and is in the error.
func (p *Plugin) Collect(alive func(Allocation) bool) (collected []Allocation, err error) {
	var errs []error
	for _, a := range p.record.All() {
		if a.BootID == p.config.BootID && alive(a) {
			continue
		}
		if err := p.drop(a); err != nil {
			errs = append(errs, err)
			continue
		}
		collected = append(collected, a)
	}
	return collected, errors.Join(errs...)
}

// drop takes an allocation out of the kernel and off the record.
func (p *Plugin) drop(a Allocation) error {
	p.leaving[a.Key()] = true
	if err := p.unlink(a.Link); err != nil {
		return fmt.Errorf("pod %s: %w", a.PodName(), err)
	}
	return p.forget(a)
}

// unlink removes a pair. A link of its name that somebody else made means that
// ours is gone.
func (p *Plugin) unlink(name string) error {
	if err := p.kernel.DeletePod(name); err != nil && !errors.Is(err, link.ErrNameInUse) {
		return err
	}
	return nil
}

// forget is the last step of every removal.
func (p *Plugin) forget(a Allocation) error {
	if err := p.record.Remove(a.Key()); err != nil {
		return err
	}
	delete(p.leaving, a.Key())
	p.ipam.Release(time.Now(), a.Addrs...)
	return nil
}

// status is STATUS: whether an ADD could be served now.
func (p *Plugin) status(*call) error {
	if err := p.ready(); err != nil {
		return &shim.Error{Code: shim.CodeNotAvailable, Msg: err.Error()}
	}
	return nil
}

func (p *Plugin) ready() error {
	if p.network.Problem != "" {
		return errors.New(p.network.Problem)
	}
	return p.ipam.Full()
}
