"""Headers to bytes: one small struct each, whose `pack` puts it before a payload with lengths and checksums right.

    encode(Ethernet(dst, src), Ipv4(a, b, UDP), Udp(4000, 8472, checksum=False), Vxlan(1), Ethernet(...), ..., payload=b"...")

Protocol numbers are never guessed from what follows, so that wrong ones can be built too.
"""

from __future__ import annotations

import struct
from typing import Protocol

import msgspec

from tweed.wire.packet import tables as t
from tweed.wire.packet.checksum import internet_checksum, pseudo_header


class Ipv4(msgspec.Struct, frozen=True):
    """RFC 791. `fragment_offset` in bytes, a multiple of 8; `options` are padded with zeros to a multiple of 4 bytes."""

    src: bytes
    dst: bytes
    protocol: int
    ttl: int = 64
    id: int = 0
    dont_fragment: bool = False
    more_fragments: bool = False
    fragment_offset: int = 0
    dscp: int = 0
    ecn: int = 0
    options: bytes = b""

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        options = padded(self.options, 4)
        length = 20 + len(options)
        flags = self.dont_fragment << 14 | self.more_fragments << 13 | self.fragment_offset >> 3
        header = (
            struct.pack(
                "!BBHHHBBH",
                0x40 | length >> 2,
                self.dscp << 2 | self.ecn,
                length + len(payload),
                self.id,
                flags,
                self.ttl,
                self.protocol,
                0,
            )
            + self.src
            + self.dst
            + options
        )
        return with_checksum(header, 10, b"") + payload


class Ipv6(msgspec.Struct, frozen=True):
    """RFC 8200. `next_header` is the number of what follows, be it an extension header."""

    src: bytes
    dst: bytes
    next_header: int
    hop_limit: int = 64
    dscp: int = 0
    ecn: int = 0
    flow_label: int = 0

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        first = 6 << 28 | self.dscp << 22 | self.ecn << 20 | self.flow_label
        return struct.pack("!IHBB", first, len(payload), self.next_header, self.hop_limit) + self.src + self.dst + payload


Network = Ipv4 | Ipv6


class Header(Protocol):
    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        """The header and the payload behind it. `network`: the IP header that it will stand behind, which some checksums cover."""


class Ethernet(msgspec.Struct, frozen=True):
    dst: bytes
    src: bytes
    type: int = t.IPV4

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        return self.dst + self.src + self.type.to_bytes(2, "big") + payload


class Vlan(msgspec.Struct, frozen=True):
    """802.1Q: stands behind an Ethernet header of type VLAN and says itself what follows."""

    id: int
    type: int = t.IPV4
    priority: int = 0
    drop_eligible: bool = False

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        return struct.pack("!HH", self.priority << 13 | self.drop_eligible << 12 | self.id, self.type) + payload


class Arp(msgspec.Struct, frozen=True):
    """ARP for IPv4 on Ethernet. `operation` 1 asks, 2 answers."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes

    def pack(self, payload: bytes = b"", network: Network | None = None) -> bytes:
        return struct.pack("!HHBBH", 1, t.IPV4, 6, 4, self.operation) + self.sender_mac + self.sender + self.target_mac + self.target + payload


class HopByHop(msgspec.Struct, frozen=True):
    """IPv6 hop-by-hop options; padded with PadN (Pad1 for a single byte)."""

    next_header: int
    options: bytes = b""

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        missing = -(2 + len(self.options)) % 8
        padding = b"" if not missing else b"\0" if missing == 1 else bytes((1, missing - 2)) + bytes(missing - 2)
        body = self.options + padding
        return bytes((self.next_header, (2 + len(body)) // 8 - 1)) + body + payload


class Ipv6Fragment(msgspec.Struct, frozen=True):
    """`fragment_offset` in bytes, a multiple of 8."""

    next_header: int
    id: int
    fragment_offset: int = 0
    more_fragments: bool = False

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        return struct.pack("!BBHI", self.next_header, 0, self.fragment_offset | self.more_fragments, self.id) + payload


class Icmp(msgspec.Struct, frozen=True):
    """`rest`: the four bytes behind the checksum. `Icmp.echo` fills them for a ping."""

    type: int
    code: int = 0
    rest: bytes = bytes(4)

    @classmethod
    def echo(cls, id: int, sequence: int, *, reply: bool = False) -> Icmp:
        return cls(0 if reply else 8, 0, struct.pack("!HH", id, sequence))

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        return with_checksum(bytes((self.type, self.code, 0, 0)) + self.rest + payload, 2, b"")


class Icmpv6(msgspec.Struct, frozen=True):
    """As `Icmp`; its checksum covers the IPv6 addresses too."""

    type: int
    code: int = 0
    rest: bytes = bytes(4)

    @classmethod
    def echo(cls, id: int, sequence: int, *, reply: bool = False) -> Icmpv6:
        return cls(129 if reply else 128, 0, struct.pack("!HH", id, sequence))

    @classmethod
    def solicit(cls, target: bytes, mac: bytes) -> tuple[Icmpv6, bytes]:
        """A neighbour solicitation and its payload: who has `target`? Tell `mac`."""
        return cls(135), target + b"\1\1" + mac

    @classmethod
    def advertise(cls, target: bytes, mac: bytes, *, solicited: bool = True, override: bool = True) -> tuple[Icmpv6, bytes]:
        """A neighbour advertisement and its payload: `target` is at `mac`."""
        return cls(136, 0, bytes((solicited << 6 | override << 5, 0, 0, 0))), target + b"\2\1" + mac

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        message = bytes((self.type, self.code, 0, 0)) + self.rest + payload
        return with_checksum(message, 2, above(network, t.ICMPV6, len(message)))


class Udp(msgspec.Struct, frozen=True):
    """`checksum` False writes 0, "none", as VXLAN over IPv4 does unless told otherwise."""

    src_port: int
    dst_port: int
    checksum: bool = True

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        datagram = struct.pack("!HHHH", self.src_port, self.dst_port, 8 + len(payload), 0) + payload
        if not self.checksum:
            return datagram
        summed = with_checksum(datagram, 6, above(network, t.UDP, len(datagram)))
        return summed if summed[6:8] != b"\0\0" else summed[:6] + b"\xff\xff" + summed[8:]


class Tcp(msgspec.Struct, frozen=True):
    """`flags` as in the header: 2 is SYN. `options` are padded with zeros to a multiple of 4 bytes."""

    src_port: int
    dst_port: int
    sequence: int = 0
    acknowledgment: int = 0
    flags: int = 0x02
    window: int = 65535
    urgent: int = 0
    options: bytes = b""

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        options = padded(self.options, 4)
        size = (20 + len(options)) >> 2
        segment = (
            struct.pack("!HHIIHHHH", self.src_port, self.dst_port, self.sequence, self.acknowledgment, size << 12 | self.flags, self.window, 0, self.urgent)
            + options
            + payload
        )
        return with_checksum(segment, 16, above(network, t.TCP, len(segment)))


class Vxlan(msgspec.Struct, frozen=True):
    """`group`: the 16-bit group policy id of the GBP extension; None for plain VXLAN."""

    vni: int
    group: int | None = None

    def pack(self, payload: bytes, network: Network | None = None) -> bytes:
        first = t.VXLAN_VALID << 24 if self.group is None else (t.VXLAN_VALID | t.VXLAN_GBP) << 24 | self.group
        return struct.pack("!II", first, self.vni << 8) + payload


def encode(*headers: Header, payload: bytes = b"") -> bytes:
    """The headers, outermost first, and the payload as one run of bytes. Raises ValueError when a checksum needs an IP header that is missing."""
    data = payload
    for place in range(len(headers) - 1, -1, -1):
        network = next((header for header in headers[place - 1 :: -1] if isinstance(header, Ipv4 | Ipv6)), None) if place else None
        data = headers[place].pack(data, network)
    return data


def padded(options: bytes, unit: int) -> bytes:
    return options + bytes(-len(options) % unit)


def above(network: Network | None, protocol: int, length: int) -> bytes:
    if network is None:
        raise ValueError("the checksum covers the IP addresses: an IP header must come before this one")
    return pseudo_header(network.src, network.dst, protocol, length)


def with_checksum(data: bytes, at: int, above: bytes) -> bytes:
    return data[:at] + internet_checksum(above + data).to_bytes(2, "big") + data[at + 2 :]
