"""Bytes of which some are unknown: headers put before payloads, and frames that can be held against captured ones.

Beside the bytes stands a mask of the bits that are known. What is unknown holds some value that makes a well-formed packet and means
nothing. A checksum over anything unknown is unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from tweed.wire.packet import Carried, Ethernet, Field, Header, Icmp, Icmpv6, Ipv4, Ipv6, Ipv6Fragment, Packet, Tcp, Udp, Vxlan, checksums, decode
from tweed.wire.packet import tables as t

VXLAN_PORT = 8472  # of Linux and flannel

ROWS: dict[type, tuple[str, tuple[t.Row, ...]]] = {
    Ethernet: ("ethernet", t.ETHERNET_ROWS),
    Ipv4: ("ipv4", t.IPV4_ROWS),
    Ipv6: ("ipv6", t.IPV6_ROWS),
    Ipv6Fragment: ("fragment", t.FRAGMENT_ROWS),
    Icmp: ("icmp", t.ICMP_START + t.ECHO),
    Icmpv6: ("icmpv6", t.ICMPV6_START + t.ECHO),
    Udp: ("udp", t.UDP_ROWS),
    Tcp: ("tcp", t.TCP_ROWS),
    Vxlan: ("vxlan", t.VXLAN_ROWS),
}
# Fields of a few bits share their bytes with others.
MASKS = {(name, row.name): row.mask for name, rows in ROWS.values() for row in rows if row.mask}


class Bits(msgspec.Struct, frozen=True):
    """Bytes, and beside them a mask: 1 for each bit that is known."""

    data: bytes
    known: bytes

    @classmethod
    def of(cls, data: bytes) -> Bits:
        return cls(data, b"\xff" * len(data))

    def part(self, start: int, end: int) -> Bits:
        return Bits(self.data[start:end], self.known[start:end])


def put(header: Header, payload: Bits, network: Ipv4 | Ipv6 | None = None, unknown: Collection[str] = ()) -> Bits:
    """A header before a payload. `unknown` names its fields (as in the packet tables) that are not known; its checksum follows from that."""
    data = header.pack(payload.data, network)
    size = len(data) - len(payload.data)
    known = bytearray(b"\xff" * size)
    rows = {row.name: row for row in ROWS[type(header)][1]}
    for name in unknown:
        forget(known, rows[name])
    if "checksum" in rows and (not isinstance(header, Udp) or header.checksum):
        covered = bytes(known) if isinstance(header, Ipv4) else bytes(known) + payload.known
        if covered.strip(b"\xff"):
            forget(known, rows["checksum"])
    return Bits(data, bytes(known) + payload.known)


def forget(known: bytearray, row: t.Row) -> None:
    mask = row.mask or (1 << 8 * row.size) - 1
    value = int.from_bytes(known[row.at : row.at + row.size], "big") & ~mask
    known[row.at : row.at + row.size] = value.to_bytes(row.size, "big")


def missing(**values: object) -> list[str]:
    """The names whose value is None."""
    return [name for name, value in values.items() if value is None]


class Frame(msgspec.Struct, frozen=True):
    """One frame. `added`: how many bytes at its start a tunnel put there (50 with IPv4, 70 with IPv6; 34 or 62 on a later fragment).

    `port`: the outer UDP port that the bytes hold, known or not; 0 where there is no outer UDP header. `carried`: what is behind that header.
    `bare`: it begins with its IP header, as at a TUN device.
    """

    data: bytes
    known: bytes
    added: int = 0
    port: int = 0
    carried: Carried = "vxlan"
    bare: bool = False

    def __len__(self) -> int:
        return len(self.data)

    @property
    def packet(self) -> Packet:
        """Its layers. The text of a field that is unknown, in whole or in part, is `?`."""
        found = decode(self.data, tunnels=self.tunnels, bare=self.bare)
        layers = []
        for layer in found.layers:
            fields = tuple(field if self.knows(layer.name, field) else msgspec.structs.replace(field, text="?") for field in layer.fields)
            # A fragment's UDP header speaks of more than is here: no problem of this frame.
            layers.append(msgspec.structs.replace(layer, fields=fields, problems=()))
        return msgspec.structs.replace(found, layers=tuple(layers))

    @property
    def tunnels(self) -> Mapping[int, Carried]:
        """What is to be read as a tunnel here: nothing that only looks like it."""
        return {self.port: self.carried} if self.port else {}

    def knows(self, layer: str, field: Field) -> bool:
        """Whether all bits of a field are known."""
        mask = MASKS.get((layer, field.name)) or (1 << 8 * field.length) - 1
        return int.from_bytes(self.known[field.offset : field.end], "big") & mask == mask

    @property
    def hex(self) -> str:
        """Two digits a byte, `?` for each digit that is not known."""
        return " ".join(
            (f"{value >> 4:x}" if known >> 4 == 0xF else "?") + (f"{value & 0xF:x}" if known & 0xF == 0xF else "?")
            for value, known in zip(self.data, self.known, strict=True)
        )

    @property
    def unknown(self) -> tuple[str, ...]:
        """The fields that are not known, by layer: `outer Ethernet dst`."""
        packet = self.packet
        return tuple(
            f"{'outer ' if packet.levels > 1 and layer.level == 0 else 'inner ' if layer.level else ''}{layer.title} {field.name}"
            for layer in packet.layers
            for field in layer.fields
            if field.text == "?"
        )

    def differences(self, observed: bytes) -> tuple[int, ...]:
        """The offsets of known bytes that are others in a captured frame; where one of the two is longer, all offsets that only one has.

        Checksums that a device would still have filled in are filled in first.
        """
        seen = as_sent(observed, self.tunnels, bare=self.bare)
        short, long = sorted((len(self.data), len(seen)))
        return tuple(at for at in range(short) if (self.data[at] ^ seen[at]) & self.known[at]) + tuple(range(short, long))


def as_sent(data: bytes, tunnels: Mapping[int, Carried], *, bare: bool = False) -> bytes:
    """A captured frame with the checksums that were left to a device (checksum offload) as the device would have written them."""
    filled = bytearray(data)
    packet = decode(data, tunnels=tunnels, bare=bare)
    for checksum in checksums(packet):
        field = packet.layers[checksum.layer].get("checksum")
        if checksum.state == "partial" and checksum.right is not None and field is not None:
            filled[field.offset : field.end] = checksum.right.to_bytes(2, "big")
    return bytes(filled)
