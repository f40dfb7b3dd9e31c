//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// A packet's headers: read, judged and changed.

#define ECN_MASK 3
#define ECN_ECT_1 1
#define ECN_ECT_0 2
#define ECN_CE 3

struct packet {
	struct addr src, dst;
	__be16 sport, dport;
	__u8 proto;
	__u8 ttl;
	__u8 ecn;
	bool v6;
	bool opens;   // may be the first packet of a flow
	bool ends;    // is one of the last of a TCP connection: a FIN, or
	bool resets;  // a reset
	__u16 headers; // bytes of IP and TCP or UDP headers
	__u16 wrap;    // bytes of VXLAN in front of them, with what is around it
};

// linear has the headers in the packet's linear part.
static __always_inline void linear(struct __sk_buff *skb)
{
	__u32 need = ETH_HLEN + sizeof(struct tcphdr);
	need += skb->protocol == bpf_htons(ETH_P_IP) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	if (need > skb->len)
		need = skb->len;
	if ((long)skb->data_end - (long)skb->data < need)
		bpf_skb_pull_data(skb, need);
}

// transport reads the ports at l4.
static __always_inline int transport(struct packet *p, void *l4, void *end)
{
	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;
		if ((void *)(tcp + 1) > end)
			return PASS_PROTOCOL;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->opens = tcp->syn && !tcp->ack;
		p->ends = tcp->fin || tcp->rst;
		p->resets = tcp->rst;
		p->headers += tcp->doff * 4;
		return -1;
	}
	if (p->proto == IPPROTO_UDP) {
		struct udphdr *udp = l4;
		if ((void *)(udp + 1) > end)
			return PASS_PROTOCOL;
		p->sport = udp->source;
		p->dport = udp->dest;
		p->opens = true;
		p->headers += sizeof(*udp);
		return -1;
	}
	return PASS_PROTOCOL;
}

// parse reads the headers of a packet, of which protocol Ethernet tells. It gives -1, or why the
// packet is not plain.
static __always_inline int parse(struct __sk_buff *skb, struct packet *p, __be16 protocol)
{
	void *data = (void *)(long)skb->data + p->wrap, *end = (void *)(long)skb->data_end;
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return PASS_OTHER;
	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return PASS_PROTOCOL;
		p->src.word[2] = p->dst.word[2] = bpf_htonl(0xffff);
		p->src.word[3] = ip->saddr;
		p->dst.word[3] = ip->daddr;
		p->proto = ip->protocol;
		p->ttl = ip->ttl;
		p->ecn = ip->tos & ECN_MASK;
		if (ip->version != 4 || ip->ihl != 5)
			return PASS_OPTIONS;
		if (ip->frag_off & bpf_htons(0x3fff)) // MF and offset
			return PASS_FRAGMENT;
		p->headers = sizeof(*ip);
		return transport(p, ip + 1, end);
	}
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return PASS_PROTOCOL;
		__builtin_memcpy(&p->src, &ip->saddr, sizeof(p->src));
		__builtin_memcpy(&p->dst, &ip->daddr, sizeof(p->dst));
		p->proto = ip->nexthdr;
		p->ttl = ip->hop_limit;
		p->ecn = ip->flow_lbl[0] >> 4 & ECN_MASK;
		p->v6 = true;
		p->headers = sizeof(*ip);
		if (ip->version != 6)
			return PASS_PROTOCOL;
		if (ip->nexthdr == IPPROTO_FRAGMENT)
			return PASS_FRAGMENT;
		return transport(p, ip + 1, end);
	}
	return PASS_OTHER;
}

static __always_inline bool fits(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	if (skb->gso_size)
		return p->headers + skb->gso_size <= mtu;
	return skb->len - ETH_HLEN - p->wrap <= mtu;
}

// hop takes one from the TTL. The IPv4 header's sum stays what it was, as the
// checksum in it changes with the TTL; IPv6 has none, so that a checksum of the
// whole packet that came from a device has to be set right.
static __always_inline bool hop(struct __sk_buff *skb, const struct packet *p)
{
	if (p->v6) {
		__u8 ttl = p->ttl - 1;
		return bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &ttl, 1, BPF_F_RECOMPUTE_CSUM) == 0;
	}
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > end)
		return false;
	__u32 check = ip->check + bpf_htons(0x0100);
	ip->check = check + (check >= 0xffff);
	ip->ttl--;
	return true;
}

static __always_inline bool address(struct __sk_buff *skb, const __u8 *dst, const __u8 *src)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	if ((void *)(eth + 1) > end)
		return false;
	__builtin_memcpy(eth->h_dest, dst, ETH_ALEN);
	if (src)
		__builtin_memcpy(eth->h_source, src, ETH_ALEN);
	return true;
}

static __always_inline bool same(const __u8 *a, const __u8 *b)
{
	bool same = true;
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		same = same && a[i] == b[i];
	return same;
}
