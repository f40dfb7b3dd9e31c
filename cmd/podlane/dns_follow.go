package main

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/dns"
)

// dnsClients are the addresses of the pods that may ask: those of a node, or
// where none is given, all that are followed.
type dnsClients struct {
	node  string
	pods  cluster.Map[cluster.Pod]
	addrs map[netip.Addr]cluster.Key
}

// take takes in a Snapshot and says whether that changed anything.
func (c *dnsClients) take(s *cluster.Snapshot) (changed bool) {
	if c.addrs == nil {
		c.addrs = map[netip.Addr]cluster.Key{}
	}
	for ch := range s.Pods.Changed(c.pods) {
		for _, a := range c.addresses(ch.Old) {
			if c.addrs[a] == ch.Key {
				delete(c.addrs, a)
				changed = true
			}
		}
		for _, a := range c.addresses(ch.New) {
			c.addrs[a], changed = ch.Key, true
		}
	}
	c.pods = s.Pods
	return changed
}

// addresses gives those that are the pod's alone.
func (c *dnsClients) addresses(p *cluster.Pod) []netip.Addr {
	if p == nil || p.Done || p.HostNetwork || c.node != "" && p.Node != c.node {
		return nil
	}
	return p.IPs
}

// resolvConfInterval is how often resolv.conf is looked at.
const resolvConfInterval = 2 * time.Second

// followResolvers takes over what resolv.conf names whenever it changes. A file
// that is broken or names nobody changes nothing: it may be half written.
func (d *dnsServer) followResolvers(ctx context.Context) {
	if len(d.flags.upstreams) > 0 {
		return
	}
	last, _ := os.ReadFile(d.flags.resolvConf)
	tick := time.NewTicker(resolvConfInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		text, err := os.ReadFile(d.flags.resolvConf)
		if err != nil || slices.Equal(text, last) {
			continue
		}
		last = text
		d.takeResolvers()
	}
}

func (d *dnsServer) takeResolvers() {
	named, err := dns.Resolvers(d.flags.resolvConf)
	if err != nil || len(named) == 0 {
		d.log.Warn("dns: the changed file names no resolvers: the old ones stay", "file", d.flags.resolvConf, "err", err)
		return
	}
	ups, err := d.flags.resolvers(d.server.Addrs(), d.log)
	if err != nil {
		d.log.Warn("dns: the old resolvers stay", "err", err)
		return
	}
	d.log.Info("dns: resolvers changed", "upstreams", ups)
	d.forwarder.SetUpstreams(ups)
}
