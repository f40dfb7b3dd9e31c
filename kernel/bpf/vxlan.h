//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Packets into VXLAN and out of it.

#define DECAP_L3_IPV6 (1ULL << 8) // BPF_F_ADJ_ROOM_DECAP_L3_IPV6, Linux 6.3

// encap is what VXLAN puts between a packet's Ethernet header and its IP header (RFC 7348, section 5).
struct encap {
	struct iphdr ip;
	struct udphdr udp;
	__be32 flags;
	__be32 vni;
	struct ethhdr inner;
};

#define ENCAP_LEN (offsetof(struct encap, inner) + ETH_HLEN)
#define VXLAN_I bpf_htonl(1 << 27)

#define ENCAP_FLAGS (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | \
		     BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

// decapsulate takes a packet out of VXLAN. It says false where the kernel cannot: IPv6 in IPv4
// before Linux 6.3. The packet is as it was then.
static __always_inline bool decapsulate(struct __sk_buff *skb, const struct packet *p)
{
	if (bpf_skb_adjust_room(skb, -(__s32)ENCAP_LEN, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | (p->v6 ? DECAP_L3_IPV6 : 0)))
		return false;
	__be16 protocol = bpf_htons(p->v6 ? ETH_P_IPV6 : ETH_P_IP);
	bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &protocol, sizeof(protocol), 0);
	return true;
}

// linear_inner has the headers of what is in VXLAN in the packet's linear part.
static __always_inline bool linear_inner(struct __sk_buff *skb)
{
	__u32 need = ETH_HLEN + ENCAP_LEN + sizeof(struct ipv6hdr) + sizeof(struct tcphdr);
	if (need > skb->len)
		need = skb->len;
	return (long)skb->data_end - (long)skb->data >= need || !bpf_skb_pull_data(skb, need);
}

// outer_of is what a VTEP of Linux would put around a packet, but for the checksum of UDP, which
// may be none. len is from the outer IP header on.
static __always_inline struct encap outer_of(const struct packet *p, const struct peer *to, __u16 len, __u32 hash)
{
	struct encap e = {
		.ip = { .version = 4, .ihl = 5, .tos = p->ecn == ECN_CE ? ECN_ECT_0 : p->ecn, .tot_len = bpf_htons(len), .id = bpf_get_prandom_u32(),
			.ttl = 64, .protocol = IPPROTO_UDP, .saddr = to->outer.src, .daddr = to->outer.dst },
		.udp = { .source = bpf_htons(0xc000 | (hash ^ hash >> 16)), .dest = to->outer.port, .len = bpf_htons(len - sizeof(struct iphdr)) },
		.flags = VXLAN_I,
		.vni = to->outer.vni,
		.inner = { .h_proto = bpf_htons(p->v6 ? ETH_P_IPV6 : ETH_P_IP) },
	};
	__builtin_memcpy(e.inner.h_dest, to->dst, ETH_ALEN);
	__builtin_memcpy(e.inner.h_source, to->src, ETH_ALEN);
	__u32 sum = bpf_csum_diff(0, 0, (__be32 *)&e.ip, sizeof(e.ip), 0);
	sum = (sum & 0xffff) + (sum >> 16);
	e.ip.check = ~((sum & 0xffff) + (sum >> 16));
	return e;
}

// encapsulate puts a packet into VXLAN and says where it goes then. It says false where the VTEP has to
// do it: the way to the node is not the uplink's, its neighbour is not known, the packet would have
// to be cut, or the kernel cannot (Linux 5.14). The packet is as it was then.
static __always_inline bool encapsulate(struct __sk_buff *skb, const struct packet *p, const struct peer *to, struct bpf_redir_neigh *next)
{
	__u32 len = skb->len - ETH_HLEN + ENCAP_LEN;
	struct bpf_fib_lookup way = {
		.family = AF_INET, .l4_protocol = IPPROTO_UDP, .ifindex = skb->ifindex, .ipv4_src = to->outer.src, .ipv4_dst = to->outer.dst,
		.tot_len = skb->gso_size ? p->headers + skb->gso_size + ENCAP_LEN : len,
	};
	if (!to->outer.ifindex || len > 0xffff)
		return false;
	if (bpf_fib_lookup(skb, &way, sizeof(way), 0) != BPF_FIB_LKUP_RET_SUCCESS || way.ifindex != to->outer.ifindex || way.family != AF_INET)
		return false;
	__u32 hash = bpf_get_hash_recalc(skb);
	if (bpf_skb_adjust_room(skb, ENCAP_LEN, BPF_ADJ_ROOM_MAC, ENCAP_FLAGS))
		return false;
	struct encap e = outer_of(p, to, len, hash);
	bpf_skb_store_bytes(skb, ETH_HLEN, &e, ENCAP_LEN, 0);
	next->nh_family = AF_INET;
	next->ipv4_nh = way.ipv4_dst;
	return true;
}
