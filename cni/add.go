package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

// add is ADD for pods that start at the same time.
func (p *Plugin) add(calls []*call, apply func() error) {
	p.plan(calls)
	each(calls, p.wire)
	p.rollback(calls) // so that apply sees no pod without a link
	if err := apply(); err != nil {
		p.blame(calls, err)
	}
	for _, c := range calls {
		if c.err == nil {
			p.kernel.AwaitPod(c.alloc.spec(), c.req.SocketFD)
		}
	}
	each(calls, (*call).finish)
	if p.rollback(calls) {
		// An error stays the agent's to repeat: it knows what it has not applied.
		_ = apply()
	}
}

// blame fails the calls whose pods cannot be reached from the node. An error of
// apply may be about another object (a peer's route that somebody else has, a
// Service), and that must not stop the pods.
func (p *Plugin) blame(calls []*call, err error) {
	have, unread := p.kernel.Read()
	each(calls, func(c *call) error {
		if unread == nil && c.alloc.routed(have) {
			return nil
		}
		return tryAgain(fmt.Errorf("pod %s on node %s: %w", c.alloc.PodName(), p.config.Node, err))
	})
}

// routed says whether the node has a route to each of the pod's addresses.
func (a Allocation) routed(have link.State) bool {
	for _, addr := range a.Addrs {
		if have.Routes[link.RouteKey{Dst: netip.PrefixFrom(addr, addr.BitLen())}].Dev != a.Link {
			return false
		}
	}
	return true
}

// tryAgain makes an error that the runtime may repeat the request after.
func tryAgain(err error) error {
	return &shim.Error{Code: shim.CodeTryAgain, Msg: err.Error()}
}

// plan takes addresses and writes the records. An attachment that exists keeps
// what it has: the same request again gets the same result.
func (p *Plugin) plan(calls []*call) {
	each(calls, p.allocate)
	var pending []*call
	var allocs []Allocation
	for _, c := range calls {
		if c.err == nil && (c.fresh || c.moved) {
			pending, allocs = append(pending, c), append(allocs, c.alloc)
		}
	}
	if len(pending) == 0 {
		return
	}
	for i, err := range p.record.Put(allocs...) {
		if err != nil {
			pending[i].err = tryAgain(err)
		}
	}
	// Only a hint is lost where this fails.
	_ = p.record.saveCursors(p.ipam.last)
}

// allocate decides what the attachment gets.
func (p *Plugin) allocate(c *call) error {
	if old, ok := p.record.Get(c.key()); ok {
		if old.BootID == p.config.BootID && !p.leaving[c.key()] {
			c.alloc = old
			c.alloc.Netns, c.alloc.NetnsCookie = c.req.Netns, cookie(c.req)
			c.moved = old.Netns != c.alloc.Netns || old.NetnsCookie != c.alloc.NetnsCookie
			return nil
		}
		if err := p.drop(old); err != nil {
			return tryAgain(err)
		}
	}
	if p.network.Problem != "" {
		return tryAgain(errors.New(p.network.Problem))
	}
	now := time.Now()
	addrs, gateways, err := p.ipam.Take(now)
	if err != nil {
		return tryAgain(err)
	}
	c.fresh = true
	c.alloc = Allocation{
		Network: c.conf.Name, ContainerID: c.req.ContainerID, IfName: c.req.IfName, Netns: c.req.Netns, NetnsCookie: cookie(c.req),
		BootID: p.config.BootID, Addrs: addrs, Gateways: gateways, MTU: p.network.MTU,
		Link: p.freeLink(c.key()), MAC: podMAC(c.key()), HostMAC: overlay.HostMAC, Created: now.UTC(),
	}
	c.alloc.Namespace, c.alloc.Pod, c.alloc.UID = podArgs(c.req.Args)
	c.alloc.Bandwidth = c.conf.RuntimeConfig.Bandwidth
	c.alloc.Ports = c.conf.RuntimeConfig.PortMappings
	return nil
}

// cookie gives that of the pod's network namespace, or 0 from a kernel that has
// none.
func cookie(r *Request) uint64 {
	if r.SocketFD < 0 {
		return 0
	}
	c, _ := link.NetnsCookie(r.SocketFD)
	return c
}

// freeLink gives a link name that no other attachment has.
func (p *Plugin) freeLink(k Key) string {
	for salt := 0; ; salt++ {
		if name := linkName(k, salt); !p.linkTaken(name, k) {
			return name
		}
	}
}

func (p *Plugin) linkTaken(name string, but Key) bool {
	for k, a := range p.record.pods {
		if a.Link == name && k != but {
			return true
		}
	}
	return false
}

// wire makes the veth pair and the pod's end of it. A pod that is wired already
// is left as it is.
func (p *Plugin) wire(c *call) error {
	if c.req.NetnsFD < 0 || c.req.SocketFD < 0 {
		return &shim.Error{Code: shim.CodeEnvironment, Msg: "ADD without descriptors of the pod's network namespace"}
	}
	spec := c.alloc.spec()
	if !c.fresh && p.kernel.CheckPod(spec, c.req.SocketFD) == nil {
		return nil
	}
	c.fresh = true // from here on a failure leaves nothing of an old pod either
	// There may be a link: of a pod to be mended, or of one whose record was lost.
	err := p.kernel.DeletePod(c.alloc.Link)
	if err == nil {
		err = p.kernel.AddPod(spec, c.req.NetnsFD, c.req.SocketFD)
	}
	if err == nil {
		err = p.limit(c.alloc)
	}
	if err != nil {
		return fmt.Errorf("pod %s: %w", c.alloc.PodName(), err)
	}
	return nil
}

// spec is what the kernel has to have of the allocation.
func (a Allocation) spec() link.PodSpec {
	return link.PodSpec{
		HostLink: a.Link, HostMAC: a.HostMAC, PodLink: a.IfName, PodMAC: a.MAC,
		Addrs: a.Addrs, Gateways: a.Gateways, MTU: a.MTU,
	}
}

// rollback takes back what the failed calls made, and says whether there was
// any. A pod that was there before the call, and is as it should be, stays.
func (p *Plugin) rollback(calls []*call) (some bool) {
	for _, c := range calls {
		if c.err == nil || !c.fresh {
			continue
		}
		some, c.fresh = true, false
		if err := p.drop(c.alloc); err != nil {
			c.err = fmt.Errorf("%w; and not rolled back: %w", c.err, err)
		}
	}
	return some
}
