//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Flows: what conntrack translates, and what it is told of those that it does not see.

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
