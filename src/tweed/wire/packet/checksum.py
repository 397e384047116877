"""The Internet checksum (RFC 1071): ones' complement of the ones' complement sum of 16-bit words."""

from __future__ import annotations

import struct
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
    """The state of every checksum in the packet, outermost first."""
    found = []
    network: Layer | None = None
    partial = False
    for place, layer in enumerate(packet.layers):
        if layer.name in ("ipv4", "ipv6"):
            network, partial = layer, False
        if layer.name in ("ipv4", "fragment"):
            partial = any((part := layer.get(name)) is not None and part.value for name in ("more_fragments", "fragment_offset"))
        elif layer.name == "routing":  # the sum is over the last destination, which is not the header's
            partial = True
        field = layer.get("checksum")
        if field is not None and isinstance(field.value, int):
            found.append(judge(packet, place, layer, field.value, network, partial))
    return tuple(found)


def judge(packet: Packet, place: int, layer: Layer, value: int, network: Layer | None, partial: bool) -> Checksum:
    if layer.name == "udp" and value == 0:
        return Checksum(place, value, None, "absent")
    covered = packet.data[layer.offset : layer.offset + layer.length if layer.name == "ipv4" else layer.end]
    at = AT[layer.name]
    covered = covered[:at] + b"\0\0" + covered[at + 2 :]
    if layer.name == "ipv4":
        if layer.problems and layer.length < 20:
            return Checksum(place, value, None, "unknown")
        right = internet_checksum(covered)
        return Checksum(place, value, right, "right" if value == right else "wrong")
    if partial or layer.quoted or layer.problems or network is None or network.problems:
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
