// SPDX-License-Identifier: GPL-2.0
/* Follows one probe through the kernel: every device that it enters or leaves, every look-up made for it, its drop, and errors about it.
 *
 * A packet is the probe when its payload begins with the nonce (TCP: by its ports and sequence number), as it is, inside a tunnel, quoted in
 * an ICMP error, or as a later fragment of one that was. What is compared depends on the headers before it and ends where the packet ends:
 * behind a short packet the memory of an earlier one may still hold the nonce.
 *
 * Other packets cost one short read (two inside a tunnel) and nothing more. tweed/kernel/tracer.py loads this and reads `struct event`.
 */
#include "kernel.h"

#define ETH_IPV4 0x0008 /* network byte order on a little-endian machine */
#define ETH_IPV6 0xdd86
#define ICMP 1
#define TCP 6
#define UDP 17
#define FRAGMENT 44
#define ICMPV6 58
#define LAYERS 4 /* an error about a tunnel's packet: ICMP, quoted outer, inner, and an error inside that */
#define PORTS 4
#define ADDRESSES 8
#define DATA 256
#define ROOM (1 << 22) /* for events that nobody has read yet */
#define ENOUGH 64 /* IPv6, a fragment header, and the start of what follows */
#define BURST 64  /* datagrams that UDP_SEGMENT and UDP_GRO put together at most (UDP_MAX_SEGMENTS) */
#define OUTER 64  /* bytes for Ethernet, IPv4 and UDP headers around a burst */
#define SAMPLE 72 /* of a packet in it, to know the probe by: an ICMP error, and the start of what it quotes */

enum kind { QUEUED = 1, RECEIVED, DROPPED, ICMP_SENT, ROUTED, ROUTED6 };
enum flags { SIX = 1, SCATTERED = 2 }; /* IPv6; not all of it is between `data` and `tail` */
enum found { NO, YES, ELSEWHERE };     /* ELSEWHERE: it carries IP packets that are to be read otherwise */

/* Whether what reads scattered packets is to be there at all: set before the programs are loaded. */
const volatile u32 scattered SEC(".rodata.scattered") = 0;

struct tunnel {
	u16 port; /* network byte order; 0: none */
	u16 skip; /* from behind the UDP header to the inner IP header */
};

/* What is looked for. A TCP nonce is its first eight bytes; an answer has the ports swapped and acknowledges the next number. */
struct wanted {
	u64 nonce;
	u32 answer_ports;
	u32 answer_ack;
	u8 proto; /* 0: nothing yet */
	u8 unused[3];
	struct tunnel tunnels[PORTS];
	u32 addresses[ADDRESSES][4]; /* look-ups for these are told; IPv4 in the first word, the others 0 */
};

struct event {
	u64 t_ns; /* CLOCK_MONOTONIC */
	u64 skb;
	u32 kind, cpu, netns, ifindex;
	u32 length;    /* of the packet from `data` on, as far as the kernel counts it here */
	s32 code;      /* drop reason; ICMP type and code; a look-up's error */
	u32 table;     /* of a look-up; else the size of the burst that the packet is part of, 0 for none */
	u16 captured;  /* bytes of `data` that are the packet's */
	u16 network;   /* where in `data` its IP header begins */
	char device[16];
	char function[64];
	u32 flow[12]; /* a look-up: source, destination, gateway */
	u32 iif, gateway_family;
	u8 data[DATA];
};

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct wanted);
} wanted SEC(".maps");

struct piece {
	u32 id, proto;
};

struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 64);
	TYPE(key, struct piece);
	TYPE(value, u32);
} pieces SEC(".maps"); /* of which fragmented packets the first fragment had the nonce */

struct {
	UINT(type, MAP_RINGBUF);
	UINT(max_entries, ROOM);
} events SEC(".maps");

INLINE u16 half(const u8 *at)
{
	return at[0] | at[1] << 8;
}

INLINE u32 word(const u8 *at)
{
	return at[0] | at[1] << 8 | at[2] << 16 | (u32)at[3] << 24;
}

INLINE int known_piece(u32 id, u32 proto)
{
	struct piece key = {id, proto};

	return map_lookup(&pieces, &key) != 0;
}

INLINE void remember_piece(u32 id, u32 proto)
{
	struct piece key = {id, proto};
	u32 yes = 1;

	map_update(&pieces, &key, &yes, 0);
}

/* Whether IP packets are behind this UDP header. */
INLINE int carries_ip(const struct wanted *want, const u8 *udp)
{
	u16 port;

	if (read_kernel(&port, 2, udp + 2))
		return 0;
#pragma unroll
	for (int i = 0; i < PORTS; i++)
		if (want->tunnels[i].port && want->tunnels[i].port == port && !want->tunnels[i].skip)
			return 1;
	return 0;
}

/* Whether the IP packet at offset `at` of the buffer is the probe, holds it or quotes it. */
static __attribute__((noinline)) int is_probe(const struct wanted *want, const u8 *head, u32 at, u32 end, u32 flags)
{
	u8 h[ENOUGH];
	u32 id = 0, first_id = 0, first_proto = 0, six = flags & SIX;
	u64 nonce;

	for (int layer = 0; layer < LAYERS; layer++) {
		u32 size = six ? 40 : 20, proto, offset = 0, more = 0, inner = 0;

		if (at + size + 8 > end)
			return NO;
		if (six) {
			if (read_kernel(h, 56, head + at))
				return NO;
			proto = h[6];
			if (proto == FRAGMENT) {
				proto = h[40];
				offset = (h[42] << 8 | h[43]) & 0xfff8;
				more = h[43] & 1;
				id = word(h + 44);
				size = 48;
			}
		} else {
			if (read_kernel(h, 20, head + at))
				return NO;
			size = (h[0] & 15) * 4;
			proto = h[9];
			offset = (h[6] << 8 | h[7]) & 0x1fff;
			more = h[6] & 0x20;
			id = half(h + 4);
		}
		if (offset)
			return known_piece(id, proto);
		if (more && !first_proto) {
			first_id = id;
			first_proto = proto;
		}
		at += size;
		if (flags & SCATTERED && !layer && proto == UDP && !more && at + 8 <= end && carries_ip(want, head + at))
			return ELSEWHERE;
		if (at + 16 > end)
			return NO;
		if (proto == UDP) {
			if (read_kernel(h, 4, head + at))
				return NO;
#pragma unroll
			for (int i = 0; i < PORTS; i++)
				if (want->tunnels[i].port && want->tunnels[i].port == half(h + 2))
					inner = 8 + want->tunnels[i].skip;
			if (inner) {
				at += inner;
				if (at + 20 > end || read_kernel(h, 1, head + at))
					return NO;
				six = h[0] >> 4 == 6;
				continue;
			}
		} else if (proto == ICMP || proto == ICMPV6) {
			if (read_kernel(h, 1, head + at))
				return NO;
			if (proto == ICMP ? h[0] == 3 || h[0] == 5 || h[0] == 11 || h[0] == 12 : h[0] < 128) {
				at += 8;
				continue;
			}
		} else if (proto == TCP) {
			if (want->proto != TCP || read_kernel(h, 12, head + at))
				return NO;
			nonce = word(h) | (u64)word(h + 4) << 32;
			if (nonce != want->nonce && (word(h) != want->answer_ports || word(h + 8) != want->answer_ack))
				return NO;
			goto yes;
		}
		if (proto != want->proto || read_kernel(&nonce, 8, head + at + 8) || nonce != want->nonce)
			return NO;
		goto yes;
	}
	return NO;
yes:
	if (first_proto)
		remember_piece(first_id, first_proto);
	return YES;
}

INLINE struct event *begin(u32 kind, u32 size)
{
	struct event *e = ringbuf_reserve(&events, size, 0);

	if (!e)
		return 0;
	e->t_ns = ktime_ns();
	e->skb = 0;
	e->kind = kind;
	e->cpu = cpu_number();
	e->netns = e->ifindex = e->length = e->table = e->iif = e->gateway_family = 0;
	e->code = 0;
	e->captured = e->network = 0;
	e->device[0] = e->function[0] = 0;
	return e;
}

INLINE void name_device(struct event *e, struct net_device *dev)
{
	e->ifindex = dev->ifindex;
	e->netns = dev->nd_net.net->ns.inum;
	read_kernel(e->device, sizeof(e->device), dev->name);
}

/* How far from skb->head its `data` is. The difference of pointers has all 64 bits, which the compiler must not cut before the verifier saw it. */
INLINE u32 data_at(struct sk_buff *skb)
{
	u64 at = skb->data - skb->head;

	asm volatile("" : "+r"(at));
	return at;
}

/* Where the frame begins: with its MAC header, where it has one. */
INLINE u32 frame_at(struct sk_buff *skb, u32 network)
{
	u32 mac = skb->mac_header;

	return mac != 0xffff && mac < network && network - mac <= 32 ? mac : network;
}

INLINE struct event *begin_packet(struct sk_buff *skb, struct net_device *dev, u32 kind, s32 code, void *function)
{
	static const char symbol[] = "%pS";
	struct event *e = begin(kind, sizeof(*e));
	struct sock *sk;

	if (!e)
		return 0;
	e->skb = (u64)skb;
	e->code = code;
	sk = skb->sk;
	if (dev)
		name_device(e, dev);
	else if (sk) /* what a socket sends has no device before it is routed */
		e->netns = sk->__sk_common.skc_net.net->ns.inum;
	if (function) {
		u64 values[] = {(u64)function};

		print_to(e->function, sizeof(e->function), symbol, values, sizeof(values));
	}
	return e;
}

/* A buffer of several datagrams. `offset`: of the packet that is next, and `end`, from `data` on; `outer`: bytes of the headers before it.
 * `length`: of all of it with these headers. */
struct burst {
	const struct wanted *want;
	struct sk_buff *skb;
	struct net_device *dev;
	void *function;
	struct bpf_dynptr packet;
	u32 kind, from, network, outer, offset, end, length;
	s32 code;
};

/* Tells of one packet in it, if that is the probe, as of the frame that it is on the wire. 1 at the end. */
static long tell_next(u64 number, struct burst *burst)
{
	u8 h[SAMPLE];
	u32 offset = burst->offset, outer = burst->outer, left = burst->end - offset, size, total;
	struct event *e;

	if (offset > burst->end || left < 28)
		return 1;
	size = left < SAMPLE ? left : SAMPLE;
	if (dynptr_read(h, size, &burst->packet, offset, 0))
		return 1;
	total = h[2] << 8 | h[3];
	if (h[0] >> 4 != 4 || total < 28 || total > left)
		return 1;
	burst->offset = offset + total;
	if (is_probe(burst->want, h, 0, total < size ? total : size, 0) != YES)
		return 0;
	e = begin_packet(burst->skb, burst->dev, burst->kind, burst->code, burst->function);
	if (!e)
		return 1;
	e->length = outer + total;
	if (outer + total != burst->length)
		e->table = burst->length;
	size = total < DATA - OUTER ? total : DATA - OUTER;
	if (outer <= OUTER && !read_kernel(e->data, outer, burst->skb->head + burst->from) && !dynptr_read(e->data + outer, size, &burst->packet, offset, 0)) {
		e->captured = outer + size;
		e->network = burst->network;
	}
	ringbuf_submit(e, 0);
	return 0;
}

/* What a process sends or receives at once (UDP_SEGMENT, UDP_GRO) is one buffer: the IP packets that its datagrams carry lie behind each other, in
 * pages of their own. */
INLINE void tell_each(const struct wanted *want, struct sk_buff *skb, struct net_device *dev, u32 kind, u32 at, s32 code, void *function)
{
	struct burst burst = {.want = want, .skb = skb, .dev = dev, .function = function, .kind = kind, .code = code, .end = skb->len};
	u8 first;

	if (read_kernel(&first, 1, skb->head + at) || bpf_dynptr_from_skb((struct __sk_buff *)skb, 0, &burst.packet))
		return;
	burst.from = frame_at(skb, at);
	burst.network = at - burst.from;
	burst.outer = burst.network + (first & 15) * 4 + 8;
	burst.offset = burst.from + burst.outer - data_at(skb); /* `data` is nowhere behind the UDP header */
	burst.length = burst.outer + burst.end - burst.offset;
	loop(BURST, tell_next, &burst, 0);
}

/* `at`: where the IP header is, as an offset from skb->head. */
INLINE int tell(struct sk_buff *skb, struct net_device *dev, u32 kind, u32 at, s32 code, void *function)
{
	u32 none = 0, end = skb->tail, from, size, flags = 0;
	const struct wanted *want = map_lookup(&wanted, &none);
	const u8 *head = skb->head;
	u16 protocol = skb->protocol;
	struct event *e;
	int found;

	if (!want || !want->proto || (protocol != ETH_IPV4 && protocol != ETH_IPV6))
		return 0;
	if (protocol == ETH_IPV6)
		flags = SIX;
	else if (scattered && kind != ICMP_SENT && skb->data_len)
		flags = SCATTERED;
	found = is_probe(want, head, at, end, flags);
	if (found == NO)
		return 0;
	if (scattered && kind != ICMP_SENT && found == ELSEWHERE) {
		tell_each(want, skb, dev, kind, at, code, function);
		return 0;
	}
	e = begin_packet(skb, dev, kind, code, function);
	if (!e)
		return 0;
	from = frame_at(skb, at);
	e->network = at - from;
	e->length = skb->len + data_at(skb) - from;
	size = end - from;
	if (size > DATA)
		size = DATA;
	if (size && !read_kernel(e->data, size, head + from))
		e->captured = size;
	ringbuf_submit(e, 0);
	return 0;
}

SEC("tp_btf/net_dev_queue")
int queued(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	return tell(skb, skb->dev, QUEUED, skb->network_header, 0, 0);
}

/* The stack sets network_header after this, and `data` is what it sets it to. */
SEC("tp_btf/netif_receive_skb")
int received(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	return tell(skb, skb->dev, RECEIVED, data_at(skb), 0, 0);
}

SEC("tp_btf/kfree_skb")
int dropped(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	return tell(skb, skb->dev, DROPPED, skb->network_header, ctx[2], (void *)ctx[1]);
}

SEC("tp_btf/icmp_send")
int icmp_sent(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	return tell(skb, skb->dev, ICMP_SENT, skb->network_header, (s32)ctx[1] << 8 | (s32)ctx[2], 0);
}

/* Look-ups have no nonce: busy addresses make many thousand a second, which are not to take the packet's own room. */
INLINE struct event *begin_look_up(u32 kind)
{
	if (ringbuf_query(&events, 0) > ROOM / 2)
		return 0;
	return begin(kind, sizeof(struct event) - DATA);
}

INLINE void gateway_of(struct event *e, struct fib_nh_common *nhc)
{
	struct net_device *dev = nhc->nhc_dev;

	e->gateway_family = nhc->nhc_gw_family;
	if (e->gateway_family == 2)
		e->flow[8] = nhc->nhc_gw.ipv4;
	else if (e->gateway_family == 10)
		read_kernel(e->flow + 8, 16, &nhc->nhc_gw.ipv6);
	if (dev)
		name_device(e, dev);
}

/* trace_fib_table_lookup(table, flow, next hop or null, error) */
SEC("tp_btf/fib_table_lookup")
int routed(u64 *ctx)
{
	struct flowi4 *flow = (void *)ctx[1];
	struct fib_nh_common *nhc = (void *)ctx[2];
	u32 none = 0, dst = flow->daddr;
	const struct wanted *want = map_lookup(&wanted, &none);
	struct event *e;

	if (!want)
		return 0;
#pragma unroll
	for (int i = 0; i < ADDRESSES; i++)
		if (want->addresses[i][0] == dst && !want->addresses[i][3])
			goto ours;
	return 0;
ours:
	e = begin_look_up(ROUTED);
	if (!e)
		return 0;
	e->table = ctx[0];
	e->code = (s32)ctx[3];
	e->iif = flow->__fl_common.flowic_iif;
	e->flow[0] = flow->saddr;
	e->flow[4] = dst;
	e->flow[8] = 0;
	if (nhc)
		gateway_of(e, nhc);
	ringbuf_submit(e, 0);
	return 0;
}

/* trace_fib6_table_lookup(net, result, table, flow) */
SEC("tp_btf/fib6_table_lookup")
int routed6(u64 *ctx)
{
	struct net *net = (void *)ctx[0];
	struct fib6_result *result = (void *)ctx[1];
	struct fib6_table *table = (void *)ctx[2];
	struct flowi6 *flow = (void *)ctx[3];
	struct fib6_nh *nh;
	u32 none = 0, dst[4];
	const struct wanted *want = map_lookup(&wanted, &none);
	struct event *e;

	if (!want || read_kernel(dst, 16, &flow->daddr))
		return 0;
#pragma unroll
	for (int i = 0; i < ADDRESSES; i++) {
		const u32 *each = want->addresses[i];

		if (each[0] == dst[0] && each[1] == dst[1] && each[2] == dst[2] && each[3] == dst[3])
			goto ours;
	}
	return 0;
ours:
	e = begin_look_up(ROUTED6);
	if (!e)
		return 0;
	e->iif = flow->__fl_common.flowic_iif;
	read_kernel(e->flow, 16, &flow->saddr);
	read_kernel(e->flow + 4, 16, &flow->daddr);
	e->table = table->tb6_id;
	nh = result->nh;
	if (nh)
		gateway_of(e, &nh->nh_common);
	e->netns = net->ns.inum;
	ringbuf_submit(e, 0);
	return 0;
}

const char licence[] SEC("license") = "GPL";
