"""Bytes to layers. Each function below reads one header and names the function that reads the next.

Nothing here raises, whatever the bytes: a length that does not fit is a problem of its layer, and reading goes on with what is there.
Every header takes at least one byte and nothing calls itself, so that reading always ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from tweed.addr import format_mac
from tweed.wire.packet import tables as t
from tweed.wire.packet.layer import Field, Layer, Packet
from tweed.wire.packet.tables import Row

# What a UDP port carries: VXLAN, or an IPv4 packet with nothing before it (flannel's UDP mode).
Carried = Literal["vxlan", "ip"]
INNER_AT: Mapping[Carried, int] = {"vxlan": 8 + 14, "ip": 0}  # from the UDP header's end to the inner IP header
TUNNELS: Mapping[int, Carried] = {8472: "vxlan", 4789: "vxlan"}  # Linux and flannel before the standard, and RFC 7348


class Draft:
    """A layer being read."""

    def __init__(self, name: str, offset: int, length: int, end: int, level: int, quoted: bool) -> None:
        self.name, self.offset, self.length, self.end = name, offset, length, end
        self.level, self.quoted = level, quoted
        self.fields: list[Field] = []
        self.problems: list[str] = []

    def finish(self) -> Layer:
        return Layer(self.name, self.offset, self.length, self.end, tuple(self.fields), self.level, self.quoted, tuple(self.problems))


class Cursor:
    """The only place that looks at lengths: what is read lies between `at` and `end`, and `end` only ever comes closer."""

    def __init__(self, data: bytes, tunnels: Mapping[int, Carried]) -> None:
        self.data, self.tunnels = data, tunnels
        self.at, self.end = 0, len(data)
        self.drafts: list[Draft] = []
        self.padding: list[Draft] = []
        self.level, self.quoted, self.truncated = 0, False, False

    @property
    def room(self) -> int:
        return self.end - self.at

    def peek(self, offset: int) -> int:
        """The byte `offset` ahead; 0 where there is none."""
        return self.data[self.at + offset] if offset < self.room else 0

    def open(self, name: str, length: int) -> Draft:
        """Begin a layer of `length` bytes, or of as many as there are, and step over it."""
        draft = Draft(name, self.at, min(length, self.room), self.end, self.level, self.quoted)
        self.drafts.append(draft)
        if length > self.room:
            draft.problems.append(f"{self.room} of {length} bytes are here")
            self.truncated |= not self.quoted
        self.at += draft.length
        return draft

    def header(self, name: str, rows: Sequence[Row], length: int) -> tuple[Draft, dict[str, int]] | None:
        """Read one header. None when it is cut off, else its layer and its numbers. What could be read is kept either way."""
        draft = self.open(name, length)
        numbers: dict[str, int] = {}
        for row in rows:
            if row.at + row.size <= draft.length:
                value = row.value(self.data, draft.offset)
                draft.fields.append(Field(row.name, value, row.text(value), draft.offset + row.at, row.size))
                if isinstance(value, int):
                    numbers[row.name] = value
        return (draft, numbers) if draft.length == length else None

    def limit(self, draft: Draft, length: int) -> None:
        """The layer says that it and what it carries are `length` bytes long."""
        here = self.end - draft.offset
        if length < draft.length:
            draft.problems.append(f"says {length} bytes, and its header alone has {draft.length}")
        elif length > here:
            draft.problems.append(f"says {length} bytes, {here} are here")
            self.truncated |= not self.quoted
        elif length < here:
            self.padding.append(Draft("padding", draft.offset + length, here - length, self.end, self.level, self.quoted))
            self.end = draft.end = draft.offset + length

    def payload(self) -> None:
        if self.room:
            self.open("payload", self.room)

    def packet(self) -> Packet:
        drafts = self.drafts + self.padding[::-1]
        return Packet(self.data, tuple(draft.finish() for draft in drafts), self.truncated)


Step = Callable[[Cursor], "Step | None"]


def decode(frame: bytes, *, tunnels: Mapping[int, Carried] = TUNNELS, bare: bool = False) -> Packet:
    """The layers of an Ethernet frame (`bare`: of an IP packet), through VLANs and into tunnels (by their UDP port), to any depth.

    Never raises. What is not understood is payload; what is missing or contradicts itself is a problem of its layer.
    """
    cursor = Cursor(bytes(frame), tunnels)
    step: Step | None = ethernet if not bare else ipv6 if cursor.peek(0) >> 4 == 6 else ipv4
    while step is not None and (cursor.room or not cursor.quoted):  # a quotation may end anywhere
        step = step(cursor)
    cursor.payload()
    return cursor.packet()


# ---- one function per header: it reads it and returns what reads the next, None for payload ------------------------------


def ethernet(cursor: Cursor) -> Step | None:
    read = cursor.header("ethernet", t.ETHERNET_ROWS, 14)
    return read and ETHERTYPES.get(read[1]["type"])


def vlan(cursor: Cursor) -> Step | None:
    read = cursor.header("vlan", t.VLAN_ROWS, 4)
    return read and ETHERTYPES.get(read[1]["type"])


def arp(cursor: Cursor) -> Step | None:
    if (cursor.peek(4), cursor.peek(5)) != (6, 4) and cursor.room >= 8:
        read = cursor.header("arp", t.ARP_ROWS[:5], 8)
        if read is not None:
            read[0].problems.append("not of Ethernet and IPv4 addresses")
    else:
        cursor.header("arp", t.ARP_ROWS, 28)
    return None


def ipv4(cursor: Cursor) -> Step | None:
    length = (cursor.peek(0) & 0x0F) * 4
    read = cursor.header("ipv4", t.IPV4_ROWS, max(length, 20))
    if read is None or not right_version(read, 4):
        return None
    draft, numbers = read
    options(cursor, draft, 20, t.IPV4_OPTIONS)
    if numbers["total_length"]:  # 0: a segmented packet of more than 64 KiB that never was on a wire
        cursor.limit(draft, numbers["total_length"])
    if length < 20:
        draft.problems.append(f"says that its header has {length} bytes, the least is 20")
        return None
    return None if numbers["fragment_offset"] else PROTOCOLS_V4.get(numbers["protocol"])


def ipv6(cursor: Cursor) -> Step | None:
    read = cursor.header("ipv6", t.IPV6_ROWS, 40)
    if read is None or not right_version(read, 6):
        return None
    draft, numbers = read
    if numbers["payload_length"]:  # 0: a jumbogram
        cursor.limit(draft, 40 + numbers["payload_length"])
    return PROTOCOLS_V6.get(numbers["next_header"])


def right_version(read: tuple[Draft, dict[str, int]], version: int) -> bool:
    draft, numbers = read
    if numbers["version"] != version:
        draft.problems.append(f"says version {numbers['version']}")
    return numbers["version"] == version


def extension(name: str, unit: int, extra: int, kinds: dict[int, str] | None = None) -> Step:
    """A reader of IPv6 extension headers: (`length` + `extra`) * `unit` bytes long, with options from byte 2 on when `kinds` names them."""

    def read_extension(cursor: Cursor) -> Step | None:
        read = cursor.header(name, t.EXTENSION_ROWS, (cursor.peek(1) + extra) * unit)
        if read is None:
            return None
        if kinds is not None:
            options(cursor, read[0], 2, kinds)
        return PROTOCOLS_V6.get(read[1]["next_header"])

    return read_extension


def fragment(cursor: Cursor) -> Step | None:
    read = cursor.header("fragment", t.FRAGMENT_ROWS, 8)
    if read is None or read[1]["fragment_offset"]:
        return None
    return PROTOCOLS_V6.get(read[1]["next_header"])


def udp(cursor: Cursor) -> Step | None:
    read = cursor.header("udp", t.UDP_ROWS, 8)
    if read is None:
        return None
    draft, numbers = read
    if numbers["length"]:
        cursor.limit(draft, numbers["length"])
    carried = cursor.tunnels.get(numbers["dst_port"])
    return vxlan if carried == "vxlan" else bare_ipv4(cursor) if carried == "ip" else None


def tcp(cursor: Cursor) -> Step | None:
    length = (cursor.peek(12) >> 4) * 4
    read = cursor.header("tcp", t.TCP_ROWS, max(length, 20))
    if read is not None:
        if length < 20:
            read[0].problems.append(f"says that its header has {length} bytes, the least is 20")
        options(cursor, read[0], 20, t.TCP_OPTIONS)
    return None


def vxlan(cursor: Cursor) -> Step | None:
    read = cursor.header("vxlan", t.VXLAN_GBP_ROWS if cursor.peek(0) & t.VXLAN_GBP else t.VXLAN_ROWS, 8)
    if read is None:
        return None
    if not read[1]["flags"] & t.VXLAN_VALID:
        read[0].problems.append("the flag that makes its VNI valid is not set")
        return None
    cursor.level += 1
    return ethernet if cursor.room else None


def bare_ipv4(cursor: Cursor) -> Step | None:
    """Anybody may send to the port: what does not begin as the packet would is payload."""
    if cursor.peek(0) >> 4 != 4:
        return None
    cursor.level += 1
    return ipv4


def icmp(cursor: Cursor) -> Step | None:
    kind = cursor.peek(0)
    rest = t.ICMP_TOO_BIG_REST if (kind, cursor.peek(1)) == t.ICMP_TOO_BIG else t.ICMP_REST.get(kind, ())
    return control(cursor, "icmp", t.ICMP_START + rest, kind in t.ICMP_ERRORS, ipv4)


def icmpv6(cursor: Cursor) -> Step | None:
    kind = cursor.peek(0)
    return control(cursor, "icmpv6", t.ICMPV6_START + t.ICMPV6_REST.get(kind, ()), kind in t.ICMPV6_ERRORS, ipv6, kind in t.ND_TYPES)


def control(cursor: Cursor, name: str, rows: Sequence[Row], is_error: bool, quoted: Step, discovery: bool = False) -> Step | None:
    fixed = max(row.at + row.size for row in rows)
    read = cursor.header(name, rows, max(fixed, cursor.room) if discovery else fixed)
    if read is not None and discovery:
        options(cursor, read[0], fixed, t.ND_OPTIONS, unit=8)
    if read is None or not is_error or cursor.quoted or not cursor.room:
        return None
    cursor.quoted = True
    return quoted


# ---- options: type, length, value ----------------------------------------------------------------------------------------


def options(cursor: Cursor, draft: Draft, start: int, kinds: dict[int, str], unit: int = 1) -> None:
    """The options of a header, from byte `start` to its end, as fields of it. `unit`: lengths count words of so many bytes.

    Those of IPv6 leave type and length out of their length, all others count them. The lists of IPv4 and TCP have an end and a filler of
    one byte; that of IPv6 has a filler of one byte.
    """
    at, end = draft.offset + start, draft.offset + draft.length
    ipv6_style = kinds is t.IPV6_OPTIONS
    single = (0,) if ipv6_style else () if unit > 1 else (0, 1)
    while at < end:
        kind = cursor.data[at]
        name = kinds.get(kind) or f"option {kind}"
        if kind in single:
            size = 1 if kind or ipv6_style else end - at
        elif end - at < 2:
            size = 0
        else:
            size = cursor.data[at + 1] * unit + (2 if ipv6_style else 0)
        if size < (1 if kind in single else 2) or at + size > end:
            draft.problems.append(f"{name} at byte {at - draft.offset} does not fit")
            draft.fields.append(Field("options", cursor.data[at:end], t.octets(cursor.data[at:end]), at, end - at))
            return
        value = cursor.data[at : at + size]
        draft.fields.append(Field(name, value, option_text(name, value), at, size))
        at += size


def option_text(name: str, value: bytes) -> str:
    if name.endswith("link-layer address") and len(value) == 8:
        return format_mac(value[2:])
    if name in ("mss", "window scale", "timestamps"):
        words = [value[i : i + 4] for i in range(2, len(value), 4)]
        return " ".join(str(int.from_bytes(word, "big")) for word in words)
    return t.octets(value)


ETHERTYPES: dict[int, Step] = {t.IPV4: ipv4, t.ARP: arp, t.VLAN: vlan, t.QINQ: vlan, t.IPV6: ipv6}
PROTOCOLS_V4: dict[int, Step] = {t.ICMP: icmp, t.TCP: tcp, t.UDP: udp}
PROTOCOLS_V6: dict[int, Step] = {
    t.HOP_BY_HOP: extension("hop-by-hop", 8, 1, t.IPV6_OPTIONS),
    t.ROUTING: extension("routing", 8, 1),
    t.DESTINATION: extension("destination", 8, 1, t.IPV6_OPTIONS),
    t.AH: extension("ah", 4, 2),
    t.FRAGMENT: fragment,
    t.ICMPV6: icmpv6,
    t.TCP: tcp,
    t.UDP: udp,
}
