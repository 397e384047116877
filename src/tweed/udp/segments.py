"""A long packet cut into its segments, and segments put together again, all rows of an array at once. native/packet.c does the same in C.

Sums are taken modulo 65535, where RFC 1071's end-around carry comes by itself, and where swapping the bytes is multiplying by 256.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from tweed.udp.packet import Bytes, number, ones_sum

TCP, UDP = 6, 17
FIN, PSH, ACK, ECE, CWR = 1, 8, 16, 64, 128
PACKET_MAX = 65535
SWAP = np.uint64(256 if sys.byteorder == "little" else 1)
FEW = 3
SEGMENTS_MAX = 64  # UDP_MAX_SEGMENTS of kernels before 6.9

Rows = NDArray[np.uint8]
Numbers = NDArray[np.uint64]


def table(data: Bytes, count: int, size: int) -> Rows:
    """`data` in `count` rows of `size` bytes and a zero where that is odd; the last row is filled up with zeros."""
    given = np.frombuffer(data, np.uint8)
    if not size & 1 and len(given) >= count * size:
        return given[: count * size].reshape(count, size)  # as it lies
    rows = np.zeros((count, size + (size & 1)), np.uint8)
    full = min(len(given) // size, count)
    rows[:full, :size] = given[: full * size].reshape(full, size)
    if full < count:
        rows[full, : len(given) - full * size] = given[full * size :]
    return rows


def sums(rows: Rows) -> Numbers:
    """Of each row the sum of its 16-bit words as they stand on the wire, modulo 65535."""
    native: Numbers = np.add.reduce(rows.view(np.uint16 if rows.shape[1] & 3 else np.uint32), axis=1, dtype=np.uint64)
    return native * SWAP % np.uint64(65535)


def checksums(total: Numbers) -> Numbers:
    """The complement, for a sum that is not of zeros only."""
    return (np.uint64(65535) - total % np.uint64(65535)) % np.uint64(65535)


def cut_up(ip: Bytes, header: int, cut: int) -> Rows:
    """The segments of a packet with `header` bytes of IPv4 and TCP or UDP headers, `cut` bytes of payload each, in rows of an even width."""
    ihl, tcp = (ip[0] & 15) * 4, ip[9] == TCP
    payload = len(ip) - header
    count = -(-payload // cut)
    width = header + cut
    rows = np.empty((count, width + (width & 1)), np.uint8)
    given = np.frombuffer(ip, np.uint8)
    full = payload // cut
    rows[:, :header] = given[:header]
    rows[:, width:] = 0
    rows[:full, header:width] = given[header : header + full * cut].reshape(full, cut)
    if full < count:
        rows[full, header:] = 0
        rows[full, header : len(ip) - full * cut] = given[header + full * cut :]
    words = rows.view(">u2")
    index = np.arange(count, dtype=np.uint64)
    lengths = np.full(count, width, np.uint64)
    lengths[-1] = len(ip) - cut * (count - 1)
    words[:, 1] = lengths
    words[:, 2] = index + np.uint64(number(ip, 4)) & np.uint64(0xFFFF)
    words[:, 5] = 0
    words[:, 5] = checksums(sums(rows[:, :ihl]))
    if tcp:
        field = ihl + 16
        sequence = index * np.uint64(cut) + np.uint64(number(ip, ihl + 4, 4))
        words[:, ihl // 2 + 2] = sequence >> np.uint64(16) & np.uint64(0xFFFF)
        words[:, ihl // 2 + 3] = sequence & np.uint64(0xFFFF)
        rows[:-1, ihl + 13] &= 0xFF ^ (FIN | PSH)
        rows[1:, ihl + 13] &= 0xFF ^ CWR
    else:
        field = ihl + 6
        words[:, ihl // 2 + 2] = lengths - np.uint64(ihl)
    words[:, field // 2] = 0
    pseudo = np.uint64(ones_sum(ip[12:20]) + ip[9] - ihl)
    found = checksums(sums(rows[:, ihl:]) + lengths + pseudo)
    if not tcp:
        found[found == 0] = 0xFFFF
    words[:, field // 2] = found
    return rows


def mergeable(ip: Bytes, *, tcp: bool, udp: bool) -> int:
    """Bytes of headers when this valid packet may be merged with its like, else 0: unfragmented, no IP options, payload, a right checksum;
    of TCP's flags only ACK, PSH and ECE; UDP with a checksum (zero is legal, and passes alone). `tcp`, `udp`: what the TUN takes merged."""
    n = len(ip)
    if ip[0] != 0x45 or number(ip, 6) & ~0x4000 or n < 28:
        return 0
    if ip[9] == TCP and tcp and n >= 40:
        header = 20 + (ip[32] >> 4) * 4
        if header < 40 or ip[33] & ~(PSH | ECE) != ACK:
            return 0
    elif ip[9] == UDP and udp:
        header = 28
        if number(ip, 24) != n - 20 or not number(ip, 26):
            return 0
    else:
        return 0
    if n <= header:
        return 0
    return header if (ones_sum(ip[20:]) + ones_sum(ip[12:20]) + ip[9] + n - 20) % 65535 == 0 else 0


def run_length(data: Bytes, size: int, header: int) -> int:
    """How many datagrams at the beginning of `data`, `size` bytes each (the last may be shorter), make one packet. The first is mergeable."""
    if len(data) <= FEW * size:
        return short_run(data, size, header)
    tcp, step = data[9] == TCP, size - header
    count = min(-(-len(data) // size), SEGMENTS_MAX, (PACKET_MAX - header) // step + 1)
    rows = table(data[: count * size], count, size)
    lengths = np.full(count, size, np.uint64)
    lengths[-1] = min(len(data) - (count - 1) * size, size)
    words = rows.view(">u2").astype(np.uint64) if size < 64 else rows[:, :40].view(">u2").astype(np.uint64)
    index = np.arange(count, dtype=np.uint64)
    mask = np.full(header, 0xFF, np.uint8)
    mask[2:6] = mask[10:12] = mask[24:28] = 0
    if tcp:
        mask[33] ^= PSH
        mask[36:38] = 0
    fits = ~((rows[:, :header] ^ rows[0, :header]) & mask).any(axis=1)
    fits &= (lengths > header) & (words[:, 1] == lengths) & (lengths + index * np.uint64(step) <= PACKET_MAX)
    if not rows[0, 6] & 0x40:  # without DF the identification matters (RFC 6864), and the kernel will count it up when it cuts again
        fits &= words[:, 2] == (words[0, 2] + index) & np.uint64(0xFFFF)
    if tcp:
        sequence = words[:, 12] << np.uint64(16) | words[:, 13]
        fits &= sequence == (sequence[0] + index * np.uint64(step)) & np.uint64(0xFFFFFFFF)
        fits[1:] &= rows[:-1, 33] & PSH == 0
    else:
        fits &= (words[:, 12] == lengths - np.uint64(20)) & (words[:, 13] != 0)
    fits &= sums(rows[:, :20]) == 0
    pseudo = np.uint64(ones_sum(data[12:20]) + data[9] - 20)
    fits &= (sums(rows[:, 20:]) + lengths + pseudo) % np.uint64(65535) == 0
    return count if fits.all() else int(fits.argmin())


def short_run(data: Bytes, size: int, header: int) -> int:
    """The same one by one: numpy is slower below a handful, and what is left of a long packet after a full burst is one or two."""
    first, last, count = data[:size], data[:size], 1
    for at in range(size, len(data), size):
        ip = data[at : at + size]
        if header + count * (size - header) + len(ip) - header > PACKET_MAX or not follows(first, last, ip, header, count):
            break
        last, count = ip, count + 1
    return count


def follows(first: Bytes, last: Bytes, ip: Bytes, header: int, index: int) -> bool:
    """True when `ip` continues the run that `first` begins and `last` ends, `index` packets long so far."""
    if len(ip) <= header or number(ip, 2) != len(ip) or ip[:2] != first[:2] or ip[6:10] != first[6:10] or ip[12:24] != first[12:24]:
        return False
    if not ip[6] & 0x40 and number(ip, 4) != (number(first, 4) + index) & 0xFFFF:
        return False
    if ip[9] == TCP:
        expected = number(first, 24, 4) + index * (len(first) - header) & 0xFFFFFFFF
        if last[33] & PSH or number(ip, 24, 4) != expected or ip[28:33] != first[28:33] or (ip[33] ^ first[33]) & ~PSH:
            return False
        if ip[34:36] != first[34:36] or ip[38:header] != first[38:header]:
            return False
    return ones_sum(ip[:20]) == 0xFFFF and mergeable(ip, tcp=True, udp=True) == header


def merged_header(data: Bytes, header: int, total: int, last: Bytes) -> bytearray:
    """The headers of the packet of `total` bytes that begins with `data` and ends with the segment `last`: one hop less, and in place of
    TCP's or UDP's checksum the sum of its pseudo header."""
    ip, tcp = bytearray(data[:header]), data[9] == TCP
    ip[2:4] = total.to_bytes(2)
    ip[8] -= 1
    ip[10:12] = bytes(2)
    ip[10:12] = (0xFFFF ^ ones_sum(ip[:20])).to_bytes(2)
    if tcp:
        ip[33] |= last[33] & PSH
    else:
        ip[24:26] = (total - 20).to_bytes(2)
    pseudo = (ones_sum(ip[12:20]) + ip[9] + total - 20) % 65535 or 65535
    field = 36 if tcp else 26
    ip[field : field + 2] = pseudo.to_bytes(2)
    return ip
