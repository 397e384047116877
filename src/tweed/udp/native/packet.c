#include "packet.h"

#include <string.h>

enum { TCP = 6, UDP = 17, NEEDS_CSUM = 1, GSO_TCPV4 = 1, GSO_UDP_L4 = 5, GSO_ECN = 0x80 };
enum { FIN = 1, PSH = 8, ACK = 16, ECE = 64, CWR = 128 };

static unsigned get16(const uint8_t *p) { return (unsigned)p[0] << 8 | p[1]; }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static void put16(uint8_t *p, unsigned value) { p[0] = (uint8_t)(value >> 8); p[1] = (uint8_t)value; }
static void put32(uint8_t *p, uint32_t value) { put16(p, value >> 16); put16(p + 2, value & 0xffff); }

/* ---- sums (RFC 1071). They are taken in the machine's byte order, which the result does not depend on, and folded at the end. */

static uint64_t sum(const uint8_t *p, size_t n)
{
    uint64_t a = 0, b = 0;
    for (; n >= 32; p += 32, n -= 32) { /* two chains, and a shape that compilers turn into vector instructions */
        uint32_t w[8];
        memcpy(w, p, 32);
        a += (uint64_t)w[0] + w[1] + w[2] + w[3];
        b += (uint64_t)w[4] + w[5] + w[6] + w[7];
    }
    a += b;
    for (; n >= 4; p += 4, n -= 4) {
        uint32_t w;
        memcpy(&w, p, 4);
        a += w;
    }
    if (n) {
        uint8_t rest[4] = {0};
        uint32_t w;
        memcpy(rest, p, n);
        memcpy(&w, rest, 4);
        a += w;
    }
    return a;
}

static uint16_t fold(uint64_t s)
{
    s = (s >> 32) + (s & 0xffffffff);
    s = (s >> 32) + (s & 0xffffffff);
    s = (s >> 16) + (s & 0xffff);
    s = (s >> 16) + (s & 0xffff);
    return (uint16_t)((s >> 16) + (s & 0xffff));
}

/* A 16-bit number as sum() would have read it from a packet. */
static uint64_t word(unsigned value)
{
    uint8_t bytes[2];
    uint16_t w;
    put16(bytes, value);
    memcpy(&w, bytes, 2);
    return w;
}

static void store(uint8_t *p, uint16_t native) { memcpy(p, &native, 2); }

uint16_t checksum(const uint8_t *bytes, size_t length, uint64_t start) { return (uint16_t)~fold(sum(bytes, length) + start); }

static uint64_t pseudo(const uint8_t *ip, unsigned length) { return sum(ip + 12, 8) + word(ip[9]) + word(length); }

static unsigned header_length(const uint8_t *ip) { return (ip[0] & 15u) * 4; }

/* RFC 1624: the sum changes by what the TTL's 16 bits changed by. */
static void lower_ttl(uint8_t *ip)
{
    ip[8]--;
    uint32_t c = get16(ip + 10) + 0x100u;
    put16(ip + 10, (c & 0xffff) + (c >> 16));
}

/* ---- who has which address */

const struct peer *find_peer(const struct table *t, uint32_t address)
{
    size_t low = 0, high = t->n_peers;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (t->peers[middle].base <= address) low = middle + 1;
        else high = middle;
    }
    return low && (address & t->peers[low - 1].mask) == t->peers[low - 1].base ? &t->peers[low - 1] : NULL;
}

struct host *find_host(const struct table *t, uint32_t address)
{
    size_t low = 0, high = t->n_hosts;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (t->hosts[middle].address < address) low = middle + 1;
        else high = middle;
    }
    return low < t->n_hosts && t->hosts[low].address == address ? &t->hosts[low] : NULL;
}

static int inside(uint32_t address, uint32_t base, uint32_t mask) { return mask && (address & mask) == base; }

/* ---- TUN to UDP */

int look_outbound(const struct table *t, uint8_t *packet, size_t length, struct outbound *out)
{
    if (length < VNET + 20 || packet[VNET] >> 4 != 4) return TX_NOT_IPV4;
    uint8_t *ip = packet + VNET;
    size_t n = length - VNET;
    unsigned ihl = header_length(ip), flags = packet[0], kind = packet[1] & ~(unsigned)GSO_ECN;
    if (ihl < 20 || ihl > n || n > PACKET_MAX || get16(ip + 2) != n) return TX_LENGTH;
    *out = (struct outbound){.ip = ip, .length = n};
    out->peer = find_peer(t, get32(ip + 16));
    if (!out->peer) return TX_NO_PEER;
    if (ip[8] <= 1) return TX_TTL;

    uint16_t cut, start, offset; /* in the machine's order: a virtio header of the legacy kind */
    memcpy(&cut, packet + 4, 2);
    memcpy(&start, packet + 6, 2);
    memcpy(&offset, packet + 8, 2);
    if (kind) {
        unsigned l4 = kind == GSO_TCPV4 && ip[9] == TCP ? 20 : kind == GSO_UDP_L4 && ip[9] == UDP ? 8 : 0;
        if (!l4 || !cut || n < ihl + l4) return TX_OFFLOAD;
        if (l4 == 20) l4 = (ip[ihl + 12] >> 4) * 4u;
        if (l4 < 8 || (ip[9] == TCP && l4 < 20) || n <= ihl + l4 || ihl + l4 + cut > DATAGRAM_MAX) return TX_OFFLOAD;
        out->header = ihl + l4;
        out->cut = cut;
    } else if (flags & NEEDS_CSUM) { /* the field holds the sum of the pseudo header: finish it */
        if (start < ihl || (size_t)start + offset + 2 > n) return TX_OFFLOAD;
        uint16_t c = checksum(ip + start, n - start, 0);
        store(ip + start + offset, !c && ip[9] == UDP ? 0xffff : c);
    }
    lower_ttl(ip);
    return 0;
}

void next_segments(const struct outbound *out, size_t *at, unsigned most, uint8_t (*headers)[HEADERS_MAX], struct burst *burst)
{
    const uint8_t *ip = out->ip;
    unsigned ihl = header_length(ip), tcp = ip[9] == TCP, header = out->header, cut = out->cut;
    size_t payload = out->length - header;
    unsigned number = (unsigned)(*at / cut);
    uint64_t addresses = sum(ip + 12, 8) + word(ip[9]);
    burst->parts = burst->bytes = 0;
    burst->segments = burst->size = 0;
    while (*at < payload && burst->segments < most) {
        size_t left = payload - *at, take = left < cut ? left : cut;
        if (burst->bytes + header + take > DATAGRAM_MAX) break;
        uint8_t *h = headers[burst->segments], *l4 = h + ihl;
        memcpy(h, ip, header);
        put16(h + 2, (unsigned)(header + take));
        put16(h + 4, (get16(ip + 4) + number) & 0xffff);
        h[10] = h[11] = 0;
        store(h + 10, checksum(h, ihl, 0));
        uint8_t *field = l4 + (tcp ? 16 : 6);
        if (tcp) {
            put32(l4 + 4, get32(ip + ihl + 4) + (uint32_t)*at);
            if (left > take) l4[13] &= (uint8_t)~(FIN | PSH);
            if (number) l4[13] &= (uint8_t)~CWR;
        } else {
            put16(l4 + 4, (unsigned)(header - ihl + take));
        }
        field[0] = field[1] = 0;
        uint64_t s = addresses + word((unsigned)(header - ihl + take)) + sum(l4, header - ihl);
        /* The payload begins at an even distance from the checksummed part's start (headers are multiples of 4). */
        uint16_t c = (uint16_t)~fold(s + sum(ip + header + *at, take));
        store(field, !c && !tcp ? 0xffff : c);
        if (!burst->segments) burst->size = (unsigned)(header + take);
        burst->iov[burst->parts++] = (struct iovec){h, header};
        burst->iov[burst->parts++] = (struct iovec){(void *)(uintptr_t)(ip + header + *at), take};
        burst->bytes += header + take;
        burst->segments++;
        number++;
        *at += take;
    }
}

/* ---- UDP to TUN */

/* 0 or why this datagram is dropped. Addresses that no host can send from: RFC 1122 section 3.2.1.3, RFC 5735. */
static int look_inbound(const struct table *t, uint32_t sender, const uint8_t *ip, size_t n, int *foreign)
{
    if (n < 20) return RX_SHORT;
    if (ip[0] >> 4 != 4) return RX_VERSION;
    unsigned ihl = header_length(ip);
    if (ihl < 20 || ihl > n || get16(ip + 2) != n) return RX_LENGTH;
    if (fold(sum(ip, ihl)) != 0xffff) return RX_HEADER_CHECKSUM;
    uint32_t from = get32(ip + 12), to = get32(ip + 16);
    if (from >> 24 == 0 || from >> 24 == 127 || from >> 28 >= 14) return RX_SOURCE_MARTIAN;
    const struct peer *owner = find_peer(t, from);
    if (inside(from, t->own, t->own_mask) || (owner && t->hosts[owner->host].address != sender)) return RX_SOURCE_SPOOFED;
    *foreign = !owner;
    if (!owner && t->strict) return RX_SOURCE_FOREIGN;
    if (!inside(to, t->own, t->own_mask)) return RX_DESTINATION;
    if (ip[8] <= 1) return RX_TTL;
    return 0;
}

/* Bytes of headers when this (valid) packet may be merged with its like, else 0: an unfragmented one without IP options, with payload
 * and a right checksum; TCP's flags no more than ACK, PSH and ECE; UDP's checksum there (zero is legal, and passes alone). */
static unsigned mergeable(const uint8_t *ip, size_t n, int tcp, int udp)
{
    if (ip[0] != 0x45 || get16(ip + 6) & ~0x4000u || n < 28) return 0;
    unsigned header;
    if (ip[9] == TCP && tcp) {
        if (n < 40) return 0;
        header = 20 + (ip[32] >> 4) * 4u;
        if (header < 40 || (ip[33] & ~(PSH | ECE)) != ACK) return 0;
    } else if (ip[9] == UDP && udp) {
        header = 28;
        if (get16(ip + 24) != n - 20 || !get16(ip + 26)) return 0;
    } else {
        return 0;
    }
    if (n <= header) return 0;
    return fold(pseudo(ip, (unsigned)(n - 20)) + sum(ip + 20, n - 20)) == 0xffff ? header : 0;
}

/* True when `b`, of length n, continues the run that began with `a`: `index` packets of `step` payload bytes come before it. */
static int continues(const uint8_t *a, const uint8_t *b, size_t n, unsigned header, unsigned index, unsigned step)
{
    if (n <= header || get16(b + 2) != n || b[0] != a[0] || b[1] != a[1] || memcmp(a + 6, b + 6, 4) || memcmp(a + 12, b + 12, 12)) return 0;
    /* Without DF the identification matters (RFC 6864), and the kernel will count it up when it cuts again. */
    if (!(a[6] & 0x40) && get16(b + 4) != ((get16(a + 4) + index) & 0xffff)) return 0;
    if (a[9] == TCP) {
        if (get32(b + 24) != get32(a + 24) + index * step || memcmp(a + 28, b + 28, 5) || (a[33] ^ b[33]) & ~PSH) return 0;
        if (memcmp(a + 34, b + 34, 2) || memcmp(a + 38, b + 38, header - 38)) return 0;
    } else if (get16(b + 24) != n - 20 || !get16(b + 26)) {
        return 0;
    }
    return fold(sum(b, 20)) == 0xffff && fold(pseudo(b, (unsigned)(n - 20)) + sum(b + 20, n - 20)) == 0xffff;
}

int next_inbound(const struct table *t, uint32_t sender, uint8_t *bytes, size_t length, size_t size, int virtio, int merge_tcp, int merge_udp,
                 struct inbound *out, size_t *used)
{
    size_t n = length < size ? length : size;
    *used = n;
    out->packets = 1;
    out->foreign = 0;
    int why = look_inbound(t, sender, bytes, n, &out->foreign);
    if (why) return why;
    unsigned header = virtio && length > n ? mergeable(bytes, n, merge_tcp, merge_udp) : 0;
    unsigned tcp = bytes[9] == TCP, step = (unsigned)n - header, last_flags = 0;
    size_t total = n;
    if (header) {
        out->parts = 1;
        out->iov[out->parts++] = (struct iovec){bytes + header, step};
        if (tcp) last_flags = bytes[33];
        while (*used < length && out->packets < SEGMENTS_MAX && !(last_flags & PSH)) {
            uint8_t *next = bytes + *used;
            size_t m = length - *used < size ? length - *used : size;
            if (total + m - header > PACKET_MAX || !continues(bytes, next, m, header, out->packets, step)) break;
            out->iov[out->parts++] = (struct iovec){next + header, m - header};
            total += m - header;
            out->packets++;
            *used += m;
            if (tcp) last_flags = next[33];
        }
    }
    out->bytes = total;
    memset(out->head, 0, VNET);
    if (out->packets == 1) {
        lower_ttl(bytes);
        out->iov[0] = (struct iovec){out->head, virtio ? VNET : 0};
        out->iov[1] = (struct iovec){bytes, n};
        out->parts = 2;
        return 0;
    }
    /* One packet with the sum of its pseudo header where the checksum goes: each part's own has just been verified. */
    uint8_t *ip = out->head + VNET, *field = ip + 20 + (tcp ? 16 : 6);
    uint16_t numbers[4] = {(uint16_t)header, (uint16_t)step, 20, tcp ? 16 : 6};
    out->head[0] = NEEDS_CSUM;
    out->head[1] = tcp ? GSO_TCPV4 : GSO_UDP_L4;
    memcpy(out->head + 2, numbers, 8);
    memcpy(ip, bytes, header);
    put16(ip + 2, (unsigned)total);
    ip[8]--;
    ip[10] = ip[11] = 0;
    store(ip + 10, checksum(ip, 20, 0));
    if (tcp) ip[33] |= last_flags & PSH;
    else put16(ip + 24, (unsigned)total - 20);
    store(field, fold(pseudo(ip, (unsigned)total - 20)));
    out->iov[0] = (struct iovec){out->head, VNET + header};
    return 0;
}
