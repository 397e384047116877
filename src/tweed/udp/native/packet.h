/* Packets of the UDP mode: what is checked, cut into segments, and put together again. No I/O, no Python.
 *
 * udp/packet.py says the same for one packet at a time, udp/vector.py in numpy; the property tests hold all to one oracle. */
#ifndef TWEED_UDP_PACKET_H
#define TWEED_UDP_PACKET_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
    VNET = 10,               /* struct virtio_net_hdr, linux/virtio_net.h */
    PACKET_MAX = 65535,      /* of an IPv4 packet, RFC 791 */
    DATAGRAM_MAX = 65507,    /* of a UDP payload over IPv4 */
    SEGMENTS_MAX = 64,       /* of one UDP_SEGMENT send: UDP_MAX_SEGMENTS of kernels before 6.9 */
    HEADERS_MAX = 60 + 60,   /* IPv4 and TCP, each with all options */
    QUOTE_MAX = 60 + 8,      /* what an ICMP error quotes: RFC 792 */
};

/* The order is that of COUNTERS in module.c. */
enum counter {
    TX_PACKETS, TX_BYTES, TX_SENDS, RX_PACKETS, RX_BYTES, RX_WRITES, RX_FOREIGN, FALLBACKS,
    TX_NOT_IPV4, TX_LENGTH, TX_TTL, TX_NO_PEER, TX_OFFLOAD, TX_QUEUE_FULL, TX_REFUSED,
    RX_STRANGER, RX_SHORT, RX_VERSION, RX_LENGTH, RX_HEADER_CHECKSUM, RX_SOURCE_MARTIAN, RX_SOURCE_SPOOFED, RX_SOURCE_FOREIGN,
    RX_DESTINATION, RX_TTL, RX_REFUSED,
    COUNTERS_END,
};

struct host {                /* one outer address; peers may share it */
    uint32_t address;        /* addresses are in host order everywhere here */
    uint32_t shown_fast;     /* its outer packets say that it takes long bursts */
    int32_t no_segment;      /* errno of the UDP_SEGMENT send that failed, else 0 */
};

struct peer { uint32_t base, mask; uint32_t host; /* index into hosts */ };

struct table {
    uint32_t own, own_mask, strict;
    uint32_t n_peers, n_hosts;
    struct peer *peers;      /* by base; they do not overlap */
    struct host *hosts;      /* by address */
};

const struct peer *find_peer(const struct table *, uint32_t address);
struct host *find_host(const struct table *, uint32_t address);

uint16_t checksum(const uint8_t *bytes, size_t length, uint64_t start);

/* Packets of one destination and one size (the last may be shorter), as they lie in memory: iov of each packet's parts. */
struct burst {
    struct iovec iov[2 * SEGMENTS_MAX];
    size_t parts, bytes;
    unsigned segments, size; /* size: of the first */
};

/* ---- TUN to UDP: `packet` is a virtio header and what follows it; it is changed in place. */

struct outbound {
    uint8_t *ip;             /* the packet without its virtio header */
    size_t length;
    unsigned header, cut;    /* cut: payload bytes of each segment, 0 for a packet that is sent as it is */
    const struct peer *peer;
};

/* 0, or why it is dropped (an enum counter of TX_). With TX_TTL and TX_NO_PEER the IP header is as it came. */
int look_outbound(const struct table *, uint8_t *packet, size_t length, struct outbound *);

/* The next segments of a packet with `cut`, at most `most`, the first at payload byte `*at`. Headers go to `headers`. */
void next_segments(const struct outbound *, size_t *at, unsigned most, uint8_t (*headers)[HEADERS_MAX], struct burst *);

/* ---- UDP to TUN: `bytes` holds datagrams of `size` bytes each, the last may be shorter (UDP_GRO). */

struct inbound {
    struct iovec iov[1 + SEGMENTS_MAX];
    size_t parts, bytes;
    unsigned packets;        /* how many datagrams this is */
    uint8_t head[VNET + HEADERS_MAX];
    int foreign;             /* the source is in nobody's subnet */
};

/* Takes datagrams from the front: *used bytes. 0 when `out` is to be written, else why out->packets datagrams are dropped.
 * `merge_tcp` and `merge_udp`: the TUN takes them merged. `virtio`: it takes a virtio header at all. */
int next_inbound(const struct table *, uint32_t sender, uint8_t *bytes, size_t length, size_t size, int virtio, int merge_tcp, int merge_udp,
                 struct inbound *out, size_t *used);

#endif
