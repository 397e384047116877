"""A long packet cut into its segments, and segments put together again, all rows of an array at once. native/packet.c does the same in C.

Sums are taken modulo 65535, where RFC 1071's end-around carry comes by itself, and where swapping the bytes is multiplying by 256.
"""

from __future__ import annotations

import functools
import sys

import numpy as np
from numpy.typing import NDArray

from tweed.udp.packet import Bytes, number, ones_sum

TCP, UDP = 6, 17
FIN, PSH, ACK, ECE, CWR = 1, 8, 16, 64, 128
PACKET_MAX = 65535
SWAP = np.uint64(256 if sys.byteorder == "little" else 1)
FEW = 3
FAR = 65535 << 40  # more than any of the sums, and nothing modulo 65535
SEGMENTS_MAX = 64  # UDP_MAX_SEGMENTS of kernels before 6.9

Rows = NDArray[np.uint8]
Numbers = NDArray[np.uint64]

INDEX = np.arange(SEGMENTS_MAX, dtype=np.uint32)


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


def sums(rows: Rows, more: int) -> NDArray[np.uint32]:
    """Of each row the sum of its 16-bit words as they stand on the wire and of `more`, modulo 65535."""
    total: Numbers = np.add.reduce(rows.view(np.uint16 if rows.shape[1] & 3 else np.uint32), axis=1, dtype=np.uint64)
    total *= SWAP
    total += np.uint64(more)
    total %= np.uint64(65535)
    return total.astype(np.uint32)


class Cut:
    """How packets of one shape are cut: what depends on the shape alone is computed once, and the rows are filled again for each packet.

    `width`: bytes of a segment but the last; `whole`: of all together.
    """

    def __init__(self, ihl: int, header: int, cut: int, length: int, proto: int) -> None:
        self.ihl, self.header, self.tcp, self.proto = ihl, header, proto == TCP, proto
        self.full, self.rest = divmod(length - header, cut)
        self.width, count = header + cut, self.full + bool(self.rest)
        self.whole = length + header * (count - 1)
        self.rows = np.zeros((count, self.width + (self.width & 1)), np.uint8)
        self.index = np.arange(count, dtype=np.uint64)
        self.offsets = self.index * np.uint64(cut)
        self.lengths = np.full(count, self.width, np.uint64)
        self.lengths[-1] = length - cut * (count - 1)
        self.total_lengths = self.lengths.astype(">u2")
        self.udp_lengths = (self.lengths - np.uint64(ihl)).astype(">u2")
        words = self.rows.view(">u2")
        self.total_length, self.identification, self.header_sum = words[:, 1], words[:, 2], words[:, 5]
        self.udp_length, self.field = words[:, ihl // 2 + 2], words[:, (ihl + (16 if self.tcp else 6)) // 2]
        self.sequence = self.rows[:, ihl + 4 : ihl + 8].view(">u4")[:, 0]
        self.payload = self.rows[:, header:].view(np.uint16 if (self.rows.shape[1] - header) & 3 else np.uint32)
        self.wire = self.rows.reshape(-1).data

    def __call__(self, ip: Bytes) -> memoryview:
        """The segments of a packet of this shape, one behind the other. They are overwritten by the next packet's."""
        given, header, ihl = np.frombuffer(ip, np.uint8), self.header, self.ihl
        cut = self.width - header
        self.rows[:, :header] = given[:header]
        end = header + self.full * cut
        self.rows[: self.full, header : self.width] = given[header:end].reshape(self.full, cut)
        if self.rest:
            self.rows[-1, header : header + self.rest] = given[end:]
        first = number(ip, 4)
        self.total_length[:] = self.total_lengths
        ids = self.index + np.uint64(first)
        ids &= np.uint64(0xFFFF)
        self.identification[:] = ids
        same = ones_sum(ip[:ihl]) - number(ip, 2) - first - number(ip, 10)
        ids += self.lengths
        self.header_sum[:] = complement(ids, same)
        total = np.add.reduce(self.payload, axis=1, dtype=np.uint64)
        total *= SWAP
        total += self.lengths
        same = ones_sum(ip[12:20]) + self.proto - ihl + ones_sum(ip[ihl:header])
        if self.tcp:
            sequence = number(ip, ihl + 4, 4)
            numbers = self.offsets + np.uint64(sequence)
            numbers &= np.uint64(0xFFFFFFFF)
            self.sequence[:] = numbers
            total += numbers
            flags = ip[ihl + 13]
            if ends := flags & (FIN | PSH):
                self.rows[:-1, ihl + 13] ^= ends
                total[:-1] += np.uint64(65535 - ends)
            if begins := flags & CWR:
                self.rows[1:, ihl + 13] ^= begins
                total[1:] += np.uint64(65535 - begins)
            self.field[:] = complement(total, same - sequence - number(ip, ihl + 16))
        else:
            self.udp_length[:] = self.udp_lengths
            total += self.lengths
            found = complement(total, same - ihl - number(ip, ihl + 4) - number(ip, ihl + 6))
            found[found == 0] = 0xFFFF
            self.field[:] = found
        if self.width & 1:
            return self.rows[:, : self.width].reshape(-1).data[: self.whole]
        return self.wire[: self.whole]


def complement(totals: Numbers, same: int) -> Numbers:
    """The checksums of sums that are not of zeros only, to which all of them have `same` to be added."""
    return (np.uint64(FAR - same % 65535) - totals) % np.uint64(65535)


def mergeable(ip: Bytes, *, tcp: bool, udp: bool) -> int:
    """Bytes of headers when this valid packet may be merged with its like if its checksum is right (has_right_sum), else 0: unfragmented,
    no IP options, payload; of TCP's flags only ACK, PSH and ECE; UDP with a checksum (zero is legal, and passes alone). `tcp`, `udp`: what
    the TUN takes merged."""
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
    return header if n > header else 0


def has_right_sum(ip: Bytes) -> bool:
    """Of a TCP or UDP packet without IP options."""
    return (ones_sum(ip[20:]) + ones_sum(ip[12:20]) + ip[9] + len(ip) - 20) % 65535 == 0


def run_length(data: Bytes, size: int, header: int) -> int:
    """How many datagrams at the beginning of `data`, `size` bytes each (the last may be shorter), make one packet. The first is mergeable
    but for its checksum; 1 when that is wrong."""
    step = size - header
    count = min(len(data) // size, SEGMENTS_MAX, (PACKET_MAX - header) // step)
    if count <= FEW:
        return short_run(data, size, header, 1) if has_right_sum(data[:size]) else 1
    tcp = data[9] == TCP
    rows = table(data[: count * size], count, size)
    # What is not zero here is wrong with a row.
    wrong: NDArray[np.uint32] = np.bitwise_or.reduce(((rows[:, :header] ^ rows[0, :header]) & mask(header, data[6], tcp)).view(np.uint32), axis=1)
    if not data[6] & 0x40:  # without DF the identification matters (RFC 6864), and the kernel will count it up when it cuts again
        wrong |= (rows[:, 4:6].view(">u2")[:, 0] - INDEX[:count] ^ number(data, 4)) & np.uint32(0xFFFF)
    if tcp:
        wrong |= rows[:, 24:28].view(">u4")[:, 0] - INDEX[:count] * np.uint32(step) ^ np.uint32(number(data, 24, 4))
        wrong[1:] |= rows[:-1, 33] & PSH
    else:
        wrong |= rows[:, 26:28].view(">u2")[:, 0] == 0
    wrong |= sums(rows[:, :20], 0)
    wrong |= sums(rows[:, 20:], ones_sum(data[12:20]) + data[9] + size - 20)
    if wrong.any():
        return int((wrong != 0).argmax()) or 1
    return short_run(data, size, header, count) if count < SEGMENTS_MAX and count * size < len(data) else count


@functools.cache
def mask(header: int, flags: int, tcp: bool) -> Rows:
    """The bits of headers that are the same in all packets of a run of one length."""
    same = np.full(header, 0xFF, np.uint8)
    same[4:6] = same[10:12] = 0
    if tcp:
        same[24:28] = same[36:38] = 0
        same[33] ^= PSH
    else:
        same[26:28] = 0
    return same


def short_run(data: Bytes, size: int, header: int, count: int) -> int:
    """The same one by one, after the first `count`: numpy is slower below a handful, and only the last of a burst has another length."""
    first, last = data[:size], data[(count - 1) * size : count * size]
    for at in range(count * size, len(data), size):
        ip = data[at : at + size]
        if count == SEGMENTS_MAX or header + count * (size - header) + len(ip) - header > PACKET_MAX or not follows(first, last, ip, header, count):
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
    return ones_sum(ip[:20]) == 0xFFFF and mergeable(ip, tcp=True, udp=True) == header and has_right_sum(ip)


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
