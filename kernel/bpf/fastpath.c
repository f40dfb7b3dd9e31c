//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The fast path: packets between pods past routing and netfilter.
//
//   pod ═ host veth ─► pl_from_pod ─┬─► bpf_redirect_peer   pod of the same node
//                                   ├─► bpf_redirect_neigh  uplink, next hop the peer node, or the way to it
//                                   │                       with the packet in VXLAN
//                                   └─► bpf_redirect        VTEP, Ethernet addressed to the peer's VTEP
//   uplink, VTEP ─► pl_to_pod ─────────► bpf_redirect_peer   pod of this node, out of VXLAN if need be
//
// Whatever is not plain TCP or UDP between two pods that both maps know, and
// whatever conntrack translates, gets TCX_NEXT: the kernel goes on as if the
// program were not there. Nothing is ever dropped here.
#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "maps.h"
#include "packet.h"
#include "flows.h"
#include "vxlan.h"

static const __u8 host_mac[ETH_ALEN] = { 0x02, 'p', 'o', 'd', 'l', 'n' };

// keep leaves the packet to the normal path. What is in VXLAN is counted when the VTEP has taken
// it out.
static __always_inline int keep(const struct packet *p, __u32 why)
{
	return p->wrap ? NEXT : pass(why);
}

// deliver hands the packet to a local pod.
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *p, const struct pod *to, __u32 as)
{
	if (to->normal)
		return keep(p, PASS_POD);
	if (to->ifindex == skb->ifindex)
		return keep(p, PASS_OTHER);
	if (p->ttl <= 1)
		return keep(p, PASS_TTL);
	if (!fits(skb, p, to->mtu))
		return keep(p, PASS_SIZE);
	if (nated(skb, p))
		return keep(p, PASS_NAT);
	if (p->wrap && !decapsulate(skb, p))
		return NEXT;
	if (!hop(skb, p) || !address(skb, to->mac, host_mac))
		return pass(PASS_PROTOCOL);
	note(p);
	count(as);
	return bpf_redirect_peer(to->ifindex, 0);
}

// leave sends the packet to the node that has the pod.
static __always_inline int leave(struct __sk_buff *skb, const struct packet *p, const struct peer *to)
{
	if (p->ttl <= 1)
		return pass(PASS_TTL);
	if (!fits(skb, p, to->mtu))
		return pass(PASS_SIZE);
	if (nated(skb, p))
		return pass(PASS_NAT);
	if (!hop(skb, p))
		return pass(PASS_PROTOCOL);
	note(p);
	struct bpf_redir_neigh next = { .nh_family = to->family };
	if (!to->family) {
		if (encapsulate(skb, p, to, &next)) {
			count(SHORTCUT_ENCAP);
			return bpf_redirect_neigh(to->outer.ifindex, &next, sizeof(next), 0);
		}
		if (!address(skb, to->dst, to->src))
			return pass(PASS_PROTOCOL);
		count(SHORTCUT_VXLAN);
		return bpf_redirect(to->ifindex, 0);
	}
	if (to->family == AF_INET)
		next.ipv4_nh = to->via.word[3];
	else
		__builtin_memcpy(next.ipv6_nh, &to->via, 16);
	count(SHORTCUT_DIRECT);
	return bpf_redirect_neigh(to->ifindex, &next, sizeof(next), 0);
}

SEC("tc")
int pl_from_pod(struct __sk_buff *skb)
{
	struct packet p = {};
	linear(skb);
	int why = parse(skb, &p, skb->protocol);
	if (why == PASS_OTHER)
		return pass(why);
	struct pod *to = bpf_map_lookup_elem(&pl_pods, &p.dst);
	struct peer *peer = to ? NULL : peer_of(&p.dst);
	if (!to && !peer) {
		if (why < 0)
			tell(skb, &p);
		return pass(PASS_OTHER);
	}
	if (why >= 0)
		return pass(why);
	struct pod *from = bpf_map_lookup_elem(&pl_pods, &p.src);
	if (!from || from->ifindex != skb->ifindex)
		return pass(PASS_SOURCE);
	if (from->normal)
		return pass(PASS_POD);
	if (to)
		return deliver(skb, &p, to, SHORTCUT_LOCAL);
	return leave(skb, &p, peer);
}

// from_vxlan takes in a packet that another node has put into VXLAN. The VTEP gets what is not as a
// program of ours would have sent it, and what takes more than to take it out: the outer
// header's congestion mark; UDP in segments, which the kernel would still hold for a tunnel's.
static __always_inline int from_vxlan(struct __sk_buff *skb, const struct packet *around)
{
	if (around->ecn == ECN_CE || !linear_inner(skb))
		return NEXT;
	struct encap *e = (void *)(long)skb->data + ETH_HLEN;
	if ((void *)e + ENCAP_LEN > (void *)(long)skb->data_end || e->udp.check || e->flags != VXLAN_I)
		return NEXT;
	struct encap o;
	__builtin_memcpy(&o, e, ENCAP_LEN);
	struct packet p = { .wrap = ENCAP_LEN };
	if (parse(skb, &p, o.inner.h_proto) >= 0 || (skb->gso_size && p.proto != IPPROTO_TCP) || (around->ecn == ECN_ECT_1 && p.ecn == ECN_ECT_0))
		return NEXT;
	struct pod *to = bpf_map_lookup_elem(&pl_pods, &p.dst);
	struct peer *from = to ? peer_of(&p.src) : NULL;
	if (!from || from->outer.ifindex != skb->ifindex || from->outer.dst != o.ip.saddr || from->outer.src != o.ip.daddr || from->outer.vni != o.vni || from->outer.port != o.udp.dest ||
	    !same(from->src, o.inner.h_dest))
		return NEXT;
	return deliver(skb, &p, to, SHORTCUT_DECAP);
}

SEC("tc")
int pl_to_pod(struct __sk_buff *skb)
{
	struct packet p = {};
	linear(skb);
	int why = parse(skb, &p, skb->protocol);
	if (why == PASS_OTHER)
		return pass(why);
	struct pod *to = bpf_map_lookup_elem(&pl_pods, &p.dst);
	if (!to && why < 0 && !p.v6 && p.proto == IPPROTO_UDP) {
		int action = from_vxlan(skb, &p);
		return action == NEXT ? pass(PASS_OTHER) : action;
	}
	if (!to) {
		if (why < 0)
			tell(skb, &p);
		return pass(PASS_OTHER);
	}
	if (why >= 0)
		return pass(why);
	// The peer may still take another way to here than we to there, and half of a flow on
	// the normal path would be invalid.
	struct peer *from = peer_of(&p.src);
	if (!from || (from->ifindex != skb->ifindex && !from->either))
		return pass(PASS_SOURCE);
	return deliver(skb, &p, to, SHORTCUT_IN);
}

char _license[] SEC("license") = "Dual BSD/GPL";
