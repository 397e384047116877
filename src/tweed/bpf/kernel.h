/* SPDX-License-Identifier: GPL-2.0 */
/* What our programs know of the kernel: only the fields that they read. libbpf moves each access to where the running kernel has the
 * field (preserve_access_index, CO-RE), so neither its headers nor a 3 MB vmlinux.h are needed to build.
 */
#ifndef TWEED_KERNEL_H
#define TWEED_KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define KERNEL_FUNCTION __attribute__((section(".ksyms"), weak)) /* no kernel need have it where it is not called */

/* ---- maps, as libbpf reads them from the object's BTF ---- */

#define UINT(name, value) int(*name)[value]
#define TYPE(name, type) typeof(type) *name
enum { MAP_ARRAY = 2, MAP_LRU_HASH = 9, MAP_RINGBUF = 27 };

/* ---- helpers: linux/bpf.h numbers them ---- */

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*const ktime_ns)(void) = (void *)5;
static u32 (*const cpu_number)(void) = (void *)8;
static long (*const read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static void *(*const ringbuf_reserve)(void *ringbuf, u64 size, u64 flags) = (void *)131;
static void (*const ringbuf_submit)(void *data, u64 flags) = (void *)132;
static u64 (*const ringbuf_query)(void *ringbuf, u64 what) = (void *)134; /* 0: bytes that wait to be read */
static long (*const print_to)(char *to, u32 size, const char *format, u64 *values, u32 values_size) = (void *)165;

/* ---- a packet that lies in several places, Linux 6.4; tracepoints may use it since 6.12 ---- */

struct __sk_buff {
	u32 len;
};

struct bpf_dynptr {
	u64 words[2];
};

extern int bpf_dynptr_from_skb(struct __sk_buff *skb, u64 flags, struct bpf_dynptr *to) KERNEL_FUNCTION;
static long (*const loop)(u32 times, void *function, void *context, u64 flags) = (void *)181;
static long (*const dynptr_read)(void *to, u64 size, const struct bpf_dynptr *from, u64 offset, u64 flags) = (void *)201;

/* ---- the kernel's structures ---- */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	u32 inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
	char name[16];
	possible_net_t nd_net;
};

struct sock_common {
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	u32 len;
	u32 data_len; /* of it, what is not between `data` and `tail` */
	u32 tail; /* offsets from `head`, as on every 64-bit kernel */
	u16 protocol;
	u16 network_header;
	u16 mac_header;
	u8 *head;
	u8 *data;
};

struct flowi_common {
	int flowic_iif;
};

struct flowi4 {
	struct flowi_common __fl_common;
	u32 saddr;
	u32 daddr;
};

struct in6_addr {
	union {
		u32 u6_addr32[4];
	} in6_u;
};

struct flowi6 {
	struct flowi_common __fl_common;
	struct in6_addr daddr;
	struct in6_addr saddr;
};

struct fib_nh_common {
	struct net_device *nhc_dev;
	u8 nhc_gw_family;
	union {
		u32 ipv4;
		struct in6_addr ipv6;
	} nhc_gw;
};

struct fib6_nh {
	struct fib_nh_common nh_common;
};

struct fib6_result {
	struct fib6_nh *nh;
};

struct fib6_table {
	u32 tb6_id;
};

#pragma clang attribute pop

#endif
