"""The Internet checksum (RFC 1071): ones' complement of the ones' complement sum of 16-bit words."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal

import msgspec

from tweed.wire.packet.layer import Layer, Packet
from tweed.wire.packet.tables import ICMPV6, TCP, UDP

AT = {"ipv4": 10, "icmp": 2, "icmpv6": 2, "udp": 6, "tcp": 16}
OVER_PSEUDO_HEADER = {"icmpv6": ICMPV6, "udp": UDP, "tcp": TCP}


def fold(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def word_sum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    return fold(sum(struct.unpack(f"!{len(data) // 2}H", data)))


def internet_checksum(data: bytes) -> int:
    """The checksum of bytes in which the checksum's own field is zero. Over right bytes including it, 0."""
    return word_sum(data) ^ 0xFFFF


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """What TCP, UDP and ICMPv6 sum up beside their own bytes (RFC 9293 3.1, RFC 8200 8.1). `length`: header and payload."""
    return src + dst + (struct.pack("!BBH", 0, protocol, length) if len(src) == 4 else struct.pack("!IBBBB", length, 0, 0, 0, protocol))


class Checksum(msgspec.Struct, frozen=True):
    """What is known about one checksum: `layer` is its layer's place in the packet, `found` its value, `right` the value it should have.

    partial   it holds the sum of the pseudo header only: the packet was caught before a device filled it in (checksum offload)
    absent    UDP's 0: none was computed
    unknown   not all that is summed is in this frame: a fragment, a truncated capture, a quotation (`right` is None)
    """

    layer: int
    found: int
    right: int | None
    state: Literal["right", "wrong", "partial", "absent", "unknown"]


def checksums(packet: Packet) -> tuple[Checksum, ...]:
    """The state of every checksum in the packet, outermost first.

    Linux computes a tunnel's checksum as if an inner one that is left to a device were filled in already (local checksum offload), so
    outer sums are judged over the bytes as they will leave.
    """
    found: list[Checksum] = []
    leaving = bytearray(packet.data)
    for place in range(len(packet.layers) - 1, -1, -1):
        layer = packet.layers[place]
        field = layer.get("checksum")
        if field is None or not isinstance(field.value, int):
            continue
        checksum = judge(packet, leaving, place, field.value)
        if checksum.state == "partial" and checksum.right is not None:
            leaving[field.offset : field.end] = checksum.right.to_bytes(2, "big")
        found.append(checksum)
    return tuple(found[::-1])


def judge(packet: Packet, leaving: bytearray, place: int, value: int) -> Checksum:
    layer = packet.layers[place]
    if layer.name == "udp" and value == 0:
        return Checksum(place, value, None, "absent")
    at = AT[layer.name]
    covered = bytes(leaving[layer.offset : layer.offset + layer.length if layer.name == "ipv4" else layer.end])
    covered = covered[:at] + b"\0\0" + covered[at + 2 :]
    if layer.name == "ipv4":
        if layer.length < 20:
            return Checksum(place, value, None, "unknown")
        right = internet_checksum(covered)
        return Checksum(place, value, right, "right" if value == right else "wrong")
    network = whole_datagram(packet.layers, place)
    if network is None:
        return Checksum(place, value, None, "unknown")
    above = b""
    if layer.name in OVER_PSEUDO_HEADER:
        above = pseudo_header(network.octets("src"), network.octets("dst"), OVER_PSEUDO_HEADER[layer.name], len(covered))
    right = internet_checksum(above + covered)
    if layer.name == "udp":
        right = right or 0xFFFF  # 0 would say that there is none (RFC 768)
    if value == right:
        return Checksum(place, value, right, "right")
    # A device that fills checksums in finds the folded sum of the pseudo header in their place (linux/skbuff.h, CHECKSUM_PARTIAL).
    return Checksum(place, value, right, "partial" if above and value == word_sum(above) else "wrong")


def whole_datagram(layers: Sequence[Layer], place: int) -> Layer | None:
    """The IP header above a layer that carries all of its datagram here and now; None when part of it is elsewhere or unknown."""
    if layers[place].quoted or layers[place].problems:
        return None
    for layer in layers[place - 1 :: -1] if place else ():
        if layer.name == "routing":  # the sum is over the last destination, which is not the header's
            return None
        if any((field := layer.get(name)) is not None and field.value for name in ("more_fragments", "fragment_offset")):
            return None
        if layer.name in ("ipv4", "ipv6"):
            return None if layer.problems else layer
    return None
