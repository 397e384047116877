"""Packets of the UDP mode's tests: as the TUN has them, with the kernel's offloads, and as a peer sends them."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from tests.oracles import udp as oracle
from tests.unit.spelling import Choices, spelled

OWN = IPv4Network("10.244.1.0/24")
PEERS = {IPv4Network("10.244.2.0/24"): IPv4Address("192.0.2.2"), IPv4Network("10.244.4.0/22"): IPv4Address("192.0.2.3")}
SENDER = IPv4Address("192.0.2.2")
HERE, THERE, ELSEWHERE, OUTSIDE = (IPv4Address(text) for text in ("10.244.1.7", "10.244.2.7", "10.244.5.9", "198.51.100.1"))


def header(source: IPv4Address, target: IPv4Address, proto: int, length: int, *, ttl: int = 64, number: int = 7, frag: int = 0x4000, tos: int = 0) -> bytes:
    return oracle.with_header_sum(struct.pack("!BBHHHBBH4s4s", 0x45, tos, 20 + length, number, frag, ttl, proto, 0, source.packed, target.packed))


def tcp(
    source: IPv4Address, target: IPv4Address, body: bytes, *, seq: int = 1000, flags: int = oracle.ACK, ack: int = 5, options: bytes = b"", **ip: int
) -> bytes:
    h = struct.pack("!HHIIBBHHH", 1234, 80, seq % 2**32, ack, (5 + len(options) // 4) << 4, flags, 500, 0, 0) + options
    return oracle.with_inner_sum(header(source, target, 6, len(h) + len(body), **ip) + h + body)


def udp(source: IPv4Address, target: IPv4Address, body: bytes, *, ports: tuple[int, int] = (1234, 53), **ip: int) -> bytes:
    h = struct.pack("!HHHH", *ports, 8 + len(body), 0)
    return oracle.with_inner_sum(header(source, target, 17, 8 + len(body), **ip) + h + body)


def partial(packet: bytes) -> bytes:
    """As the kernel leaves it to a device that computes checksums: the field holds the pseudo header's sum."""
    size, at = (packet[0] & 15) * 4, oracle.field_at(packet)
    found = oracle.total(oracle.pseudo(packet, len(packet) - size))
    return packet[:at] + struct.pack("!H", found) + packet[at + 2 :]


def virtio(packet: bytes, kind: int = 0, cut: int = 0) -> bytes:
    size = (packet[0] & 15) * 4
    return struct.pack(oracle.VIRTIO, 1, kind, size, cut, size, 16 if packet[9] == 6 else 6) + partial(packet)


OPTIONS = (b"", b"\1\1\x08\x0a" + bytes(8), bytes(40))


def body(choose: Choices, most: int) -> bytes:
    return random.Random(choose.below(10)).randbytes(choose.number(1, most))


@spelled(40)
def tun_packets(choose: Choices) -> bytes:
    target = choose.one_of((THERE, ELSEWHERE, OUTSIDE, THERE))
    common = {
        "ttl": choose.one_of((0, 1, 2, 64, 255)),
        "number": choose.one_of((0, 65535, 65500)),
        "frag": choose.one_of((0, 0x4000)),
        "tos": choose.below(4),
    }
    if choose.flag():
        flags, seq = choose.number(0, 255), choose.one_of((1, 2**32 - 100))
        packet = tcp(HERE, target, body(choose, 4000), seq=seq, flags=flags, options=choose.one_of(OPTIONS), **common)
        kind = choose.one_of((0, 1, 0x81))
    else:
        packet = udp(HERE, target, body(choose, 4000), **common)
        kind = choose.one_of((0, 5))
    return virtio(packet, kind, 1 + choose.below(1500) if kind else 0)


ODD = ("", "", "", "psh", "seq", "ack", "id", "tos", "ttl", "sum", "zero", "source", "syn", "fragment")


@spelled(50)
def bursts(choose: Choices) -> list[bytes]:
    """Datagrams as one peer's connection sends them, nearly: each rule that keeps them apart is broken at times."""
    n, size, seq = 1 + choose.below(12), choose.number(1, 200), choose.one_of((1, 2**32 - 150))
    options, frag, number = choose.one_of(OPTIONS), choose.one_of((0, 0x4000)), choose.number(65530, 65535)
    whole, datagram = choose.flag(), choose.one_of((tcp, udp))
    found = []
    for i in range(n):
        last = i == n - 1
        carried = random.Random(i).randbytes(choose.number(1, size) if last else size)
        odd = "" if whole else choose.one_of(ODD)
        ip = {"number": (number + i + (odd == "id")) % 65536, "frag": 0x2000 if odd == "fragment" else frag, "tos": 2 * (odd == "tos")}
        ip["ttl"] = 1 if odd == "ttl" and i % 2 else 9 if odd == "ttl" else 64
        source = choose.one_of((ELSEWHERE, OUTSIDE, HERE, IPv4Address("127.0.0.1"))) if odd == "source" else THERE
        control = oracle.ACK | (oracle.PSH if odd == "psh" or last else 0) | (2 if odd == "syn" else 0)
        if datagram is tcp and options != bytes(40):
            packet = tcp(source, HERE, carried, seq=seq + i * size + (odd == "seq"), flags=control, ack=5 + (odd == "ack"), options=options, **ip)
        else:
            packet = udp(source, HERE, carried + bytes(12 + len(options)) if not last else carried, **ip)
        if odd == "sum":
            packet = packet[:-1] + bytes([packet[-1] ^ 0x55])
        if odd == "zero" and packet[9] == 17:
            packet = packet[:26] + bytes(2) + packet[28:]
        found.append(packet)
    return found


def equal_sizes(datagrams: Sequence[bytes]) -> tuple[list[bytes], int]:
    """Those at the beginning that the kernel would deliver together: one size, the last may be shorter."""
    size, taken = len(datagrams[0]), []
    for datagram in datagrams:
        if len(datagram) > size:
            break
        taken.append(datagram)
        if len(datagram) < size:
            break
    return taken, size
