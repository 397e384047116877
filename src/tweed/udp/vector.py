"""Bursts without a compiler: the TUN gives and takes packets of up to 64 KiB, the socket many datagrams at once, numpy does the cutting."""

from __future__ import annotations

import errno
import os
import socket
import sys
from struct import Struct

from tweed.udp import outer, segments
from tweed.udp.naive import TURNS, Naive
from tweed.udp.packet import look_inbound, look_outbound, lower_ttl, ones_sum

VIRTIO = Struct("=BBHHHH")  # linux/virtio_net.h: flags, kind of segmentation, bytes of headers, payload of a segment, where the checksum is
NEEDS_CSUM = 1
GSO_TCPV4, GSO_UDP_L4, GSO_ECN = 1, 5, 0x80
DATAGRAM_MAX = 65507
PLAIN = bytes(VIRTIO.size)
RECEIVES = 16
SHAPES = 64  # of packets to cut; each is remembered with an array of its size

Parts = list[bytes | bytearray | memoryview]


class Vector(Naive):
    """`segment`: the socket cuts a send into datagrams. `merge_tcp`, `merge_udp`: the TUN takes such packets merged. `burst`: the most
    datagrams at once to a peer that has not said that it takes long bursts (outer.BURST_TTL)."""

    def __init__(self, tun: int, opened: socket.socket, port: int, *, segment: bool, merge_tcp: bool, merge_udp: bool, burst: int) -> None:
        super().__init__(tun, opened, port)
        self.segment, self.merge_tcp, self.merge_udp, self.burst = segment, merge_tcp, merge_udp, burst
        self.read = memoryview(bytearray(VIRTIO.size + segments.PACKET_MAX))
        self.received = memoryview(bytearray(3 * outer.RECEIVE))
        self.shown_fast: set[int] = set()
        self.no_segment: dict[int, int] = {}
        self.cuts: dict[tuple[int, ...], segments.Cut] = {}

    def set_table(self, packed: bytes) -> None:
        super().set_table(packed)
        self.shown_fast &= self.table.hosts
        self.no_segment = {host: error for host, error in self.no_segment.items() if host in self.table.hosts}

    def hosts(self) -> list[tuple[int, int, int]]:
        return [(host, host in self.shown_fast, self.no_segment.get(host, 0)) for host in sorted(self.table.hosts)]

    # ---- TUN to UDP

    def turn_outbound(self) -> None:
        waiting: list[bytes | memoryview] = []
        to = size = total = 0

        def flush() -> None:
            nonlocal waiting, total
            if waiting:
                self.send_burst(waiting[0] if len(waiting) == 1 else b"".join(waiting), size, to)
            waiting, total = [], 0

        for _ in range(TURNS):
            try:
                n = os.readv(self.tun, [self.read])
            except BlockingIOError:
                break
            out = self.look(self.read[:n])
            if out is None:
                continue
            wire, width, host = out
            if width < len(wire):
                flush()
                self.send_all(wire, width, host)
                continue
            if waiting and (host != to or width > size or total + width > DATAGRAM_MAX):
                flush()
            if not waiting:
                to, size = host, width
            waiting.append(wire)
            total += width
            if width < size or len(waiting) >= self.most(host):
                flush()
        flush()

    def most(self, host: int) -> int:
        return segments.SEGMENTS_MAX if host in self.shown_fast else self.burst

    def outbound(self, packet: bytes) -> list[tuple[bytes, int]]:
        """The datagrams for one packet of the TUN behind its virtio header, and the host that they go to."""
        out = self.look(memoryview(bytearray(packet)))
        if out is None:
            return []
        wire, width, host = out
        return [(bytes(wire[at : at + width]), host) for at in range(0, len(wire), width)]

    def look(self, packet: memoryview) -> tuple[bytes | memoryview, int, int] | None:
        """Datagrams one behind the other, the bytes of each (the last may be shorter), and their host; None when the packet is dropped."""
        ip = packet[VIRTIO.size :]
        why, host = look_outbound(self.table, ip)
        if why:
            self.drop(why, ip)
            return None
        flags, kind, _, cut, start, offset = VIRTIO.unpack_from(packet)
        kind &= ~GSO_ECN
        ihl = (ip[0] & 15) * 4
        if kind:
            header = self.header(ip, ihl, kind)
            if not header or not cut or len(ip) <= header or header + cut > DATAGRAM_MAX:
                self.drop("tx-offload", ip)
                return None
            ip[8] -= 1
            shape = (ihl, header, cut, len(ip), ip[9])
            how = self.cuts.get(shape)
            if how is None:
                if len(self.cuts) == SHAPES:
                    self.cuts.clear()
                how = self.cuts[shape] = segments.Cut(*shape)
            return how(ip), min(how.width, how.whole), host
        if flags & NEEDS_CSUM:  # the field holds the sum of the pseudo header: finish it
            field = start + offset
            if start < ihl or field + 2 > len(ip):
                self.drop("tx-offload", ip)
                return None
            found = 0xFFFF ^ ones_sum(ip[start:])
            ip[field : field + 2] = (found or (0xFFFF if ip[9] == segments.UDP else 0)).to_bytes(2)
        lower_ttl(ip)
        return bytes(ip), len(ip), host

    @staticmethod
    def header(ip: memoryview, ihl: int, kind: int) -> int:
        """Bytes of headers of a packet to cut, 0 when it is none."""
        if kind == GSO_UDP_L4 and ip[9] == segments.UDP:
            return ihl + 8
        if kind == GSO_TCPV4 and ip[9] == segments.TCP and len(ip) >= ihl + 20 and ip[ihl + 12] >> 4 >= 5:
            return ihl + (ip[ihl + 12] >> 4) * 4
        return 0

    def send_all(self, wire: bytes | memoryview, size: int, host: int) -> None:
        """Any number of datagrams, in as many bursts as it takes."""
        step = size * min(self.most(host), DATAGRAM_MAX // size)
        for at in range(0, len(wire), step):
            self.send_burst(wire[at : at + step], size, host)

    def send_burst(self, wire: bytes | memoryview, size: int, host: int) -> None:
        """Datagrams of `size` bytes, the last may be shorter, in one system call where the kernel can."""
        count = -(-len(wire) // size)
        if count > 1 and self.segment and host not in self.no_segment:
            control = [(socket.IPPROTO_UDP, outer.UDP_SEGMENT, size.to_bytes(2, sys.byteorder))]
            self.count["tx-sends"] += 1
            try:
                sent = self.socket.sendmsg([wire], control, 0, (outer.text(host), self.port))
            except OSError as error:
                # EMSGSIZE, EINVAL: longer than the route's MTU; EIO: IPsec on the way, before Linux 6.11 any egress without checksums in hardware.
                # Anything else (no route just now) says nothing of bursts.
                if error.errno not in (errno.EMSGSIZE, errno.EINVAL, errno.EIO):
                    self.count["tx-queue-full" if error.errno in (errno.EAGAIN, errno.ENOBUFS) else "tx-refused"] += count
                    return
                self.no_segment[host] = error.errno
                self.count["fallbacks"] += 1
            else:
                self.count["tx-packets"] += count
                self.count["tx-bytes"] += sent
                return
        for at in range(0, len(wire), size):
            self.send(wire[at : at + size], host)

    # ---- UDP to TUN

    def turn_inbound(self) -> None:
        """Bursts that continue one another lie one behind the other in the buffer, so that what a peer had to send in two becomes one packet."""
        start = end = size = who = 0
        for _ in range(RECEIVES):
            got = outer.receive(self.socket, self.received[end : end + outer.RECEIVE])
            if got is None:
                break
            n, each, sender, fast = got
            if sender in self.table.hosts:  # anybody else's address would be kept for ever
                (self.shown_fast.add if fast else self.shown_fast.discard)(sender)
            if start < end and (not n or sender != who or each > size or (each < size and n > each)):
                self.take(who, self.received[start:end], size)
                start = end
            if start == end:
                size, who = each, sender
            end += n
            if not n or n % size or end - start >= min(segments.PACKET_MAX, segments.SEGMENTS_MAX * size) or end > len(self.received) - outer.RECEIVE:
                self.take(who, self.received[start:end], size)
                start = end = 0
        if start < end:
            self.take(who, self.received[start:end], size)

    def take(self, sender: int, data: memoryview, size: int) -> None:
        for parts, count in self.merge(sender, data, size):
            self.count["rx-writes"] += 1
            try:
                written = os.writev(self.tun, parts)
            except OSError:
                self.count["rx-refused"] += count
                continue
            self.count["rx-packets"] += count
            self.count["rx-bytes"] += written - VIRTIO.size

    def inbound(self, sender: int, datagram: bytes, size: int = 0) -> list[bytes]:
        return [b"".join(parts) for parts, _ in self.merge(sender, memoryview(bytearray(datagram)), size)]

    def merge(self, sender: int, data: memoryview, size: int) -> list[tuple[Parts, int]]:
        """What the TUN is given for datagrams of `size` bytes each (0: a single one), as parts, and how many datagrams each is."""
        if sender not in self.table.hosts:
            self.count["rx-stranger"] += -(-len(data) // size) if size and len(data) else 1
            return []
        if not 0 < size < len(data):
            size = len(data)
        written: list[tuple[Parts, int]] = []
        at = 0
        while True:
            first = data[at : at + size]
            why, foreign = look_inbound(self.table, sender, first)
            if why:
                self.drop(why, bytearray(first))
                at += len(first)
            else:
                rest = data[at:]
                header = segments.mergeable(first, tcp=self.merge_tcp, udp=self.merge_udp) if len(rest) > size else 0
                count = segments.run_length(rest, size, header) if header else 1
                self.count["rx-foreign"] += count * foreign
                written.append((self.join(rest[: count * size], size, header) if count > 1 else self.alone(first), count))
                at += count * size
            if at >= len(data):
                return written

    @staticmethod
    def alone(ip: memoryview) -> Parts:
        lower_ttl(ip)
        return [PLAIN, ip]

    @staticmethod
    def join(data: memoryview, size: int, header: int) -> Parts:
        """One packet of datagrams that belong together."""
        bodies = [data[at + header : at + size] for at in range(0, len(data), size)]
        total = header + sum(map(len, bodies))
        tcp = data[9] == segments.TCP
        head = VIRTIO.pack(NEEDS_CSUM, GSO_TCPV4 if tcp else GSO_UDP_L4, header, size - header, 20, 16 if tcp else 6)
        last = data[(len(bodies) - 1) * size :]
        return [head, segments.merged_header(data, header, total, last), *bodies]
