//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// What the programs know, which the agent writes, and what they count.

#define NEXT (-1) // TCX_NEXT and TC_ACT_UNSPEC: the next program, then the normal path
#define AF_INET 2
#define AF_INET6 10

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

static __always_inline struct peer *peer_of(const struct addr *a)
{
	struct peer_key key = { .bits = 128, .addr = *a };
	return bpf_map_lookup_elem(&pl_peers, &key);
}
