package cni

import (
	"errors"
	"fmt"

	"github.com/podlane/podlane/cni/shim"
)

// del is DEL for pods that end at the same time. An attachment that is not on
// record is gone as wanted, and so is one whose namespace or link is gone.
func (p *Plugin) del(calls []*call, apply func() error) {
	known := false
	for _, c := range calls {
		if c.err != nil {
			continue
		}
		c.alloc, _ = p.record.Get(c.key())
		if c.alloc.Link != "" {
			known, p.leaving[c.key()] = true, true
		}
	}
	if known {
		// What apply could not remove of the node's end goes with the link.
		_ = apply()
	}
	each(calls, p.unwire)
}

// unwire removes the link and then the record. Without a record there may still
// be a link, of a record that was broken: its name is known.
func (p *Plugin) unwire(c *call) error {
	if c.alloc.Link != "" {
		return p.drop(c.alloc)
	}
	name := linkName(c.key(), 0)
	if p.linkTaken(name, c.key()) {
		return nil
	}
	if err := p.unlink(name); err != nil {
		return fmt.Errorf("container %s: %w", c.req.ContainerID, err)
	}
	return nil
}

// gc is GC: the network's attachments that the runtime no longer knows go.
func (p *Plugin) gc(c *call, apply func() error) error {
	if c.conf.ValidAttachments == nil {
		return &shim.Error{Code: shim.CodeConfig, Msg: `network configuration lacks "cni.dev/valid-attachments"`}
	}
	valid := map[Key]bool{}
	for _, a := range *c.conf.ValidAttachments {
		valid[Key{a.ContainerID, a.IfName}] = true
	}
	var stale []Allocation
	for _, a := range p.record.All() {
		if a.Network == c.conf.Name && !valid[a.Key()] {
			stale = append(stale, a)
			p.leaving[a.Key()] = true
		}
	}
	if len(stale) == 0 {
		return nil
	}
	_ = apply()
	var errs []error
	for _, a := range stale {
		errs = append(errs, p.drop(a))
	}
	return errors.Join(errs...)
}
