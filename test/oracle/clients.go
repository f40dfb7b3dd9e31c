package oracle

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/world"
)

// client is where connections come from.
type client struct {
	name string
	kind proxy.Client
	from world.Place
	// fresh says that each connection has another source address, of a great many.
	fresh bool
	// source gives an address, or the zero Addr where such a client makes no sense.
	source func(*rand.Rand, *group) netip.Addr
}

func of(ranges []netip.Prefix) func(*rand.Rand, *group) netip.Addr {
	return func(r *rand.Rand, g *group) netip.Addr {
		return history.Nth(ranges[proxy.Family(g.v6())], uint32(r.IntN(60000)+1))
	}
}

// clients are all there are; of a group, one.
var clients = []client{
	{"local pod", proxy.LocalPod, world.Pods, false, func(r *rand.Rand, g *group) netip.Addr {
		pods := history.ClientPods(g.v6())
		return pods[r.IntN(len(pods))]
	}},
	// A pod that may reach itself.
	{"endpoint", proxy.LocalPod, world.Pods, false, func(r *rand.Rand, g *group) netip.Addr {
		var pods []netip.Addr
		for _, b := range g.backends {
			if slices.Contains(history.EndpointPods(g.v6()), b.Addr()) {
				pods = append(pods, b.Addr())
			}
		}
		if len(pods) == 0 {
			return netip.Addr{}
		}
		return pods[r.IntN(len(pods))]
	}},
	{"remote pod", proxy.RemotePod, world.Uplink, true, of(history.RemoteRanges)},
	{"host", proxy.Host, world.Node, false, func(_ *rand.Rand, g *group) netip.Addr { return history.NodeAddrs[proxy.Family(g.v6())] }},
	// The node takes a load balancer's address that is its own for its source.
	{"host at the VIP", proxy.Host, world.Node, false, func(_ *rand.Rand, g *group) netip.Addr {
		if !g.bound {
			return netip.Addr{}
		}
		return g.to.Addr()
	}},
	{"outside", proxy.Outside, world.Uplink, true, of(history.Allowed)},
	{"outside, blocked", proxy.Outside, world.Uplink, true, of(history.Blocked)},
}
