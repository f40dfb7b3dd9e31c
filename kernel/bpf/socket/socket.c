//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Service translation at the socket: a pod's connect() to a cluster IP becomes a
// connect() to an endpoint, so that no packet of the connection is ever
// translated.
//
//   connect ─► pl_connect4/6 ─┬─► the endpoint, where all of these hold:
//                             │     TCP, from a pod's network namespace, to a
//                             │     frontend that has endpoints here
//                             └─► as it was: the node's rules decide
//   getpeername ─► the frontend
//
// Nothing is ever refused here: what is missing in a map is the rules' to do.
#include <stdbool.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define SOCK_STREAM 1
#define ASIS 1 // the system call goes on

// Reasons, in the order of reasons in counters.go.
enum reason {
	TRANSLATED,
	PASS_CLIENT,  // not from a pod that takes part
	PASS_SERVICE, // to no frontend that is translated here
	REASONS,
};

struct place {
	__u32 addr[4]; // IPv4 as ::ffff:a.b.c.d
	__u16 port;    // as in a packet
	__u16 slot;    // 0 in a frontend, 1 to count in a slot
};

struct service {
	__u32 count;   // of endpoints, in the slots 1 to count
	__u32 counted; // each endpoint has a counter
};

struct pair {
	struct place frontend, endpoint;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); // cookie of a network namespace
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_clients SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct place);
	__type(value, struct service);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct place);
	__type(value, struct place);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_slots SEC(".maps");

// New connections to each frontend, and to each endpoint of those that ask for it.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct place);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct pair);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_pair_flows SEC(".maps");

// What getpeername is to show. It goes with its socket.
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct pair);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pl_reasons SEC(".maps");

// add counts. The task may be preempted in the middle, even by another connect().
static __always_inline void add(__u64 *n)
{
	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline void count(__u32 why)
{
	add(bpf_map_lookup_elem(&pl_reasons, &why));
}

static __always_inline bool same(const struct place *a, const struct place *b)
{
	return a->addr[0] == b->addr[0] && a->addr[1] == b->addr[1] && a->addr[2] == b->addr[2] && a->addr[3] == b->addr[3] && a->port == b->port;
}

// slot_of copies an endpoint. The maps give the memory of an element that goes or is
// replaced to the next one that comes, whichever key that has, while a program may
// still read it (BPF_F_NO_PREALLOC makes it likely). So a copy counts only if a second
// look-up finds the same.
static __always_inline bool slot_of(const struct place *at, struct place *copy)
{
	struct place *p = bpf_map_lookup_elem(&pl_slots, at);
	if (!p)
		return false;
	*copy = *p;
	p = bpf_map_lookup_elem(&pl_slots, at);
	return p && same(p, copy);
}

// choose takes one of a frontend's endpoints at random. The service is compared after
// the slot was: where it changes meanwhile, even by slots that come and go, all is tried again.
#define TRIES 4

static __always_inline bool choose(struct place *at, struct service *copy, struct place *to)
{
#pragma unroll
	for (int i = 0; i < TRIES; i++) {
		struct service *s = bpf_map_lookup_elem(&pl_services, at);
		if (!s)
			return false;
		*copy = *s;
		if (!copy->count)
			return false;
		at->slot = 1 + bpf_get_prandom_u32() % copy->count;
		bool found = slot_of(at, to);
		at->slot = 0;
		s = bpf_map_lookup_elem(&pl_services, at);
		if (found && s && s->count == copy->count && s->counted == copy->counted)
			return true;
	}
	return false;
}

// endpoint says where the connection is to go, or with false that it goes on as it is.
static __always_inline bool endpoint(struct bpf_sock_addr *ctx, struct place *at, struct place *to)
{
	if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
		return false;
	__u64 cookie = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&pl_clients, &cookie)) {
		count(PASS_CLIENT);
		return false;
	}
	struct service s;
	if (!choose(at, &s, to)) {
		count(PASS_SERVICE);
		return false;
	}
	count(TRANSLATED);
	add(bpf_map_lookup_elem(&pl_flows, at));
	if (s.counted) {
		struct pair p = { .frontend = *at, .endpoint = *to };
		add(bpf_map_lookup_elem(&pl_pair_flows, &p));
	}
	return true;
}

// remember has getpeername show the frontend.
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct place *at, const struct place *to)
{
	struct pair *p = bpf_sk_storage_get(&pl_peers, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!p)
		return; // no memory: the endpoint is shown
	p->frontend = *at;
	p->endpoint = *to;
}

// forget is for a socket that connects anew, to something else.
static __always_inline void forget(struct bpf_sock_addr *ctx)
{
	bpf_sk_storage_delete(&pl_peers, ctx->sk);
}

SEC("cgroup/connect4")
int pl_connect4(struct bpf_sock_addr *ctx)
{
	struct place at = { .addr = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 }, .port = ctx->user_port }, to = {};
	if (!endpoint(ctx, &at, &to)) {
		forget(ctx);
		return ASIS;
	}
	remember(ctx, &at, &to);
	ctx->user_ip4 = to.addr[3];
	ctx->user_port = to.port;
	return ASIS;
}

static __always_inline struct place place6(struct bpf_sock_addr *ctx)
{
	struct place at = { .port = ctx->user_port };
	at.addr[0] = ctx->user_ip6[0];
	at.addr[1] = ctx->user_ip6[1];
	at.addr[2] = ctx->user_ip6[2];
	at.addr[3] = ctx->user_ip6[3];
	return at;
}

static __always_inline void show6(struct bpf_sock_addr *ctx, const struct place *p)
{
	ctx->user_ip6[0] = p->addr[0];
	ctx->user_ip6[1] = p->addr[1];
	ctx->user_ip6[2] = p->addr[2];
	ctx->user_ip6[3] = p->addr[3];
	ctx->user_port = p->port;
}

// An IPv6 socket connects to IPv4 by ::ffff:a.b.c.d, which is how the maps have it.
SEC("cgroup/connect6")
int pl_connect6(struct bpf_sock_addr *ctx)
{
	struct place at = place6(ctx), to = {};
	if (!endpoint(ctx, &at, &to)) {
		forget(ctx);
		return ASIS;
	}
	remember(ctx, &at, &to);
	show6(ctx, &to);
	return ASIS;
}

static __always_inline struct place *shown(struct bpf_sock_addr *ctx, const struct place *peer)
{
	struct pair *p = bpf_sk_storage_get(&pl_peers, ctx->sk, NULL, 0);
	return p && same(&p->endpoint, peer) ? &p->frontend : NULL;
}

SEC("cgroup/getpeername4")
int pl_getpeername4(struct bpf_sock_addr *ctx)
{
	struct place peer = { .addr = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 }, .port = ctx->user_port };
	struct place *p = shown(ctx, &peer);
	if (p) {
		ctx->user_ip4 = p->addr[3];
		ctx->user_port = p->port;
	}
	return ASIS;
}

SEC("cgroup/getpeername6")
int pl_getpeername6(struct bpf_sock_addr *ctx)
{
	struct place peer = place6(ctx);
	struct place *p = shown(ctx, &peer);
	if (p)
		show6(ctx, p);
	return ASIS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
