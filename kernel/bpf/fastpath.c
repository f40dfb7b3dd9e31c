//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The fast path: packets between pods past routing and netfilter.
//
//   pod ═ host veth ─► pl_from_pod ─┬─► bpf_redirect_peer   pod of the same node
//                                ├─► bpf_redirect_neigh  uplink, next hop the peer node, or the way to it
//                                │                        with the packet in VXLAN
//                                └─► bpf_redirect        VTEP, Ethernet addressed to the peer's VTEP
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

#define NEXT (-1) // TCX_NEXT and TC_ACT_UNSPEC: the next program, then the normal path
#define AF_INET 2
#define AF_INET6 10
#define ECN_MASK 3
#define ECN_ECT_1 1
#define ECN_ECT_0 2
#define ECN_CE 3
#define DECAP_L3_IPV6 (1ULL << 8) // BPF_F_ADJ_ROOM_DECAP_L3_IPV6, Linux 6.3

// Reasons, in the order of reasons in counters.go.
enum reason {
	SHORTCUT_LOCAL,
	SHORTCUT_DIRECT,
	SHORTCUT_VXLAN,
	SHORTCUT_IN,
	SHORTCUT_ENCAP, // put into VXLAN here, not by the VTEP
	SHORTCUT_DECAP, // taken out of VXLAN here
	PASS_OTHER,    // not from pod to pod
	PASS_PROTOCOL, // neither TCP nor UDP: ICMP and its errors, SCTP, ESP, IPv6 extension headers
	PASS_FRAGMENT,
	PASS_OPTIONS, // IPv4 options
	PASS_NAT,     // conntrack translates the flow, or would have to
	PASS_TTL,     // ends here, and the normal path says so to the sender
	PASS_SIZE,    // longer than the way behind takes
	PASS_POD,     // one of the pods keeps to the normal path
	PASS_SOURCE,  // the source is not the pod's own, or not of a peer's pods
	REASONS,
};

struct addr {
	__u32 word[4]; // IPv4 as ::ffff:a.b.c.d
};

struct pod {
	__u32 ifindex; // of the host's end
	__u32 mtu;
	__u8 mac[ETH_ALEN];
	__u8 normal; // keeps to the normal path
	__u8 pad;
};

struct peer_key {
	__u32 bits; // 96 more for IPv4
	struct addr addr;
};

// What is around a packet in VXLAN, and where it leaves.
struct outer {
	__u32 ifindex;   // the uplink; 0: the VTEP encapsulates and decapsulates
	__be32 src, dst; // the nodes'
	__be32 vni;      // as it is in the header
	__be16 port;
	__u16 pad;
};

struct peer {
	__u32 ifindex;
	__u32 mtu;
	__u32 family; // of via; 0: the VTEP
	__u32 either; // its packets may come by another device too
	struct addr via;
	__u8 dst[ETH_ALEN]; // the two VTEPs'
	__u8 src[ETH_ALEN];
	struct outer outer;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct addr);
	__type(value, struct pod);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct peer_key);
	__type(value, struct peer);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_counters SEC(".maps");

// An address and port from which a pod has opened a TCP connection by the fast path,
// and a part of a hash of where to: it may have opened several.
struct opener {
	struct addr addr;
	__be16 port;
	__u16 part;
};

struct opened {
	struct addr addr;
	__be16 port;
	__u8 fin[2]; // the opener's side has ended, the other one has
};

#define PARTS 4

// The connections that are open, of which conntrack does not know. Those of pods that ended
// without a word go when there is no more room.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct opener);
	__type(value, struct opened);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_opened SEC(".maps");

// The kernel can be told of a connection: Linux 6.0.
const volatile bool tells = false;

struct nf_conn {
	unsigned long status;
} __attribute__((preserve_access_index));

// The first form of the kernel's struct, of 12 bytes, which later kernels take
// too.
struct bpf_ct_opts___v1 {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct bpf_ct_opts___v1 *opts, __u32 opts_size) __ksym;
extern void bpf_ct_release(struct nf_conn *ct) __ksym;
extern struct nf_conn *bpf_skb_ct_alloc(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					struct bpf_ct_opts___v1 *opts, __u32 opts_size) __ksym __weak;
extern void bpf_ct_set_timeout(struct nf_conn *ct, __u32 timeout) __ksym __weak;
extern int bpf_ct_change_timeout(struct nf_conn *ct, __u32 timeout) __ksym __weak;
extern struct nf_conn *bpf_ct_insert_entry(struct nf_conn *ct) __ksym __weak;

// enum ip_conntrack_status: SRC_NAT, DST_NAT, SEQ_ADJUST, HELPER.
#define TRANSLATED (1 << 4 | 1 << 5 | 1 << 6 | 1 << 13)

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

static __always_inline int pass(__u32 why)
{
	__u64 *n = bpf_map_lookup_elem(&pl_counters, &why);
	if (n)
		(*n)++;
	return NEXT;
}

static __always_inline void count(__u32 why)
{
	pass(why);
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

// tuple_of names a flow as conntrack does, and gives how long the name is.
static __always_inline __u32 tuple_of(struct bpf_sock_tuple *t, bool v6, const struct addr *src, __be16 sport, const struct addr *dst, __be16 dport)
{
	if (v6) {
		__builtin_memcpy(t->ipv6.saddr, src, 16);
		__builtin_memcpy(t->ipv6.daddr, dst, 16);
		t->ipv6.sport = sport;
		t->ipv6.dport = dport;
		return sizeof(t->ipv6);
	}
	t->ipv4.saddr = src->word[3];
	t->ipv4.daddr = dst->word[3];
	t->ipv4.sport = sport;
	t->ipv4.dport = dport;
	return sizeof(t->ipv4);
}

// translates asks conntrack for the flow of a packet, or of answers to it, and says that it
// is translated.
static __always_inline bool translates(struct __sk_buff *skb, const struct packet *p, bool answers)
{
	struct bpf_sock_tuple t = {};
	__u32 size = answers ? tuple_of(&t, p->v6, &p->dst, p->dport, &p->src, p->sport) : tuple_of(&t, p->v6, &p->src, p->sport, &p->dst, p->dport);
	struct bpf_ct_opts___v1 opts = { .netns_id = BPF_F_CURRENT_NETNS, .l4proto = p->proto };
	struct nf_conn *ct = bpf_skb_ct_lookup(skb, &t, size, &opts, sizeof(opts));
	if (!ct)
		return false;
	bool yes = ct->status & TRANSLATED;
	bpf_ct_release(ct);
	return yes;
}

// nated says that the flow is translated here. A packet that may open a flow is
// looked up the other way round too: where answers to it would be taken for those
// of a translated flow, conntrack has to find it another source port.
static __always_inline bool nated(struct __sk_buff *skb, const struct packet *p)
{
	return translates(skb, p, false) || (p->opens && translates(skb, p, true));
}

static __always_inline struct opener opener_of(const struct addr *src, __be16 sport, const struct addr *dst, __be16 dport)
{
	struct opener o = { .addr = *src, .port = sport, .part = (bpf_ntohl(dst->word[3]) + bpf_ntohs(dport)) % PARTS };
	return o;
}

// side notes that one side of a connection has ended, and forgets it with both or a
// reset. Another connection that has its place stays. Each side has a byte of its own: both may end at once.
static __always_inline void side(const struct opener *o, const struct addr *dst, __be16 dport, int which, bool reset)
{
	struct opened *to = bpf_map_lookup_elem(&pl_opened, o);
	if (!to || to->port != dport || to->addr.word[3] != dst->word[3] || to->addr.word[2] != dst->word[2] ||
	    to->addr.word[1] != dst->word[1] || to->addr.word[0] != dst->word[0])
		return;
	to->fin[which] = 1;
	if (reset || to->fin[!which])
		bpf_map_delete_elem(&pl_opened, o);
}

// note remembers a TCP connection from its first packet until both sides have sent
// FIN, or one a reset: half of a connection may go on for long.
static __always_inline void note(const struct packet *p)
{
	if (p->proto != IPPROTO_TCP || !(p->opens || p->ends))
		return;
	struct opener o = opener_of(&p->src, p->sport, &p->dst, p->dport);
	if (p->opens) {
		struct opened to = { .addr = p->dst, .port = p->dport };
		bpf_map_update_elem(&pl_opened, &o, &to, BPF_ANY);
		return;
	}
	side(&o, &p->dst, p->dport, 0, p->resets);
	o = opener_of(&p->dst, p->dport, &p->src, p->sport);
	side(&o, &p->src, p->sport, 1, p->resets);
}

#define TOLD 2000 // ms

// tell lets conntrack know of the connections from a source that opens one to an address
// that may be translated to theirs: then conntrack gives the new one another source port. On the
// normal path it would have known them. It is for the first packet alone, and soon forgotten.
static __always_inline void tell(struct __sk_buff *skb, const struct packet *p)
{
	if (!tells || p->proto != IPPROTO_TCP || !p->opens)
		return;
#pragma unroll
	for (int part = 0; part < PARTS; part++) {
		struct opener o = { .addr = p->src, .port = p->sport, .part = part };
		struct opened *to = bpf_map_lookup_elem(&pl_opened, &o);
		if (!to)
			continue;
		struct bpf_sock_tuple t = {};
		struct opened copy = *to;
		__u32 size = tuple_of(&t, p->v6, &p->src, p->sport, &copy.addr, copy.port);
		struct bpf_ct_opts___v1 opts = { .netns_id = BPF_F_CURRENT_NETNS, .l4proto = IPPROTO_TCP };
		struct nf_conn *ct = bpf_skb_ct_lookup(skb, &t, size, &opts, sizeof(opts));
		if (!ct) {
			struct nf_conn *made = bpf_skb_ct_alloc(skb, &t, size, &opts, sizeof(opts));
			if (!made)
				continue;
			bpf_ct_set_timeout(made, TOLD);
			ct = bpf_ct_insert_entry(made);
			if (ct)
				bpf_ct_change_timeout(ct, TOLD); // Linux 6.0 to 6.5 took the first for a time since boot
		}
		if (ct)
			bpf_ct_release(ct);
	}
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

static const __u8 host_mac[ETH_ALEN] = { 0x02, 'p', 'o', 'd', 'l', 'n' };

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

static __always_inline struct peer *peer_of(const struct addr *a)
{
	struct peer_key key = { .bits = 128, .addr = *a };
	return bpf_map_lookup_elem(&pl_peers, &key);
}

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

static __always_inline bool same(const __u8 *a, const __u8 *b)
{
	bool same = true;
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		same = same && a[i] == b[i];
	return same;
}

// linear_inner has the headers of what is in VXLAN in the packet's linear part.
static __always_inline bool linear_inner(struct __sk_buff *skb)
{
	__u32 need = ETH_HLEN + ENCAP_LEN + sizeof(struct ipv6hdr) + sizeof(struct tcphdr);
	if (need > skb->len)
		need = skb->len;
	return (long)skb->data_end - (long)skb->data >= need || !bpf_skb_pull_data(skb, need);
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
