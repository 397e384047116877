"""Every header as a table: name, offset in the header, size in bytes, bits of it, and how a person writes it.

Offsets are literal so that each row can be held against its RFC: Ethernet IEEE 802.3, VLAN 802.1Q, ARP RFC 826, IPv4 791, IPv6 8200,
ICMP 792, ICMPv6 4443, neighbour discovery 4861, UDP 768, TCP 9293, VXLAN 7348 and its group policy extension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tweed.addr import format_address, format_mac

IPV4, ARP, VLAN, QINQ, IPV6 = 0x0800, 0x0806, 0x8100, 0x88A8, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60

ETHERTYPES = {IPV4: "IPv4", ARP: "ARP", VLAN: "802.1Q", QINQ: "802.1ad", IPV6: "IPv6", 0x88CC: "LLDP"}
PROTOCOLS = {
    HOP_BY_HOP: "hop-by-hop options",
    ICMP: "ICMP",
    2: "IGMP",
    4: "IPv4",
    TCP: "TCP",
    UDP: "UDP",
    41: "IPv6",
    ROUTING: "routing header",
    FRAGMENT: "fragment header",
    47: "GRE",
    50: "ESP",
    AH: "AH",
    ICMPV6: "ICMPv6",
    59: "no next header",
    DESTINATION: "destination options",
    132: "SCTP",
}
ARP_OPERATIONS = {1: "request", 2: "reply"}
ICMP_TYPES = {0: "echo reply", 3: "unreachable", 4: "source quench", 5: "redirect", 8: "echo request", 11: "time exceeded", 12: "parameter problem"}
ICMP_ERRORS = (3, 4, 5, 11, 12)
ICMPV6_TYPES = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    4: "parameter problem",
    128: "echo request",
    129: "echo reply",
    130: "multicast listener query",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    137: "redirect",
    143: "multicast listener report",
}
ICMPV6_ERRORS = (1, 2, 3, 4)
TCP_FLAGS = ((0x02, "SYN"), (0x10, "ACK"), (0x08, "PSH"), (0x01, "FIN"), (0x04, "RST"), (0x20, "URG"), (0x40, "ECE"), (0x80, "CWR"), (0x100, "AE"))
IPV4_OPTIONS = {
    0: "end of options",
    1: "no operation",
    7: "record route",
    68: "timestamp",
    131: "loose source route",
    137: "strict source route",
    148: "router alert",
}
TCP_OPTIONS = {0: "end of options", 1: "no operation", 2: "mss", 3: "window scale", 4: "sack permitted", 5: "sack", 8: "timestamps"}
IPV6_OPTIONS = {0: "pad1", 1: "padn", 5: "router alert", 0xC2: "jumbo payload"}
ND_OPTIONS = {1: "source link-layer address", 2: "target link-layer address", 3: "prefix information", 4: "redirected header", 5: "mtu"}


# ---- how values are written ---------------------------------------------------------------------------------------


def octets(value: bytes) -> str:
    return value.hex(" ")


def hexadecimal(digits: int) -> Callable[[int], str]:
    return lambda value: f"0x{value:0{digits}x}"


def named(names: Mapping[int, str], digits: int = 0) -> Callable[[int], str]:
    """The name of a number, with the number where it has none. `digits`: written in hexadecimal."""
    return lambda value: names.get(value) or (f"0x{value:0{digits}x}" if digits else str(value))


def scaled(unit: int) -> Callable[[int], str]:
    """A length that is counted in words of `unit` bytes."""
    return lambda value: f"{value * unit} bytes"


def ethertype(value: int) -> str:
    return ETHERTYPES.get(value) or (f"length {value}" if value < 0x600 else f"0x{value:04x}")


def tcp_flags(value: int) -> str:
    return " ".join(name for bit, name in TCP_FLAGS if value & bit) or "none"


class Row(NamedTuple):
    """One field: where in its header, which bits (0: all), and how it is written. Rows with `show` of bytes hold bytes."""

    name: str
    at: int
    size: int
    mask: int = 0
    show: Callable[[int], str] = str
    show_bytes: Callable[[bytes], str] | None = None

    def value(self, data: bytes, base: int) -> int | bytes:
        raw = data[base + self.at : base + self.at + self.size]
        if self.show_bytes is not None:
            return raw
        number = int.from_bytes(raw, "big")
        return (number & self.mask) // (self.mask & -self.mask) if self.mask else number

    def text(self, value: int | bytes) -> str:
        if isinstance(value, bytes):
            return (self.show_bytes or octets)(value)
        return self.show(value)


def mac(name: str, at: int) -> Row:
    return Row(name, at, 6, show_bytes=format_mac)


def address(name: str, at: int, size: int) -> Row:
    return Row(name, at, size, show_bytes=format_address)


# ---- the headers ----------------------------------------------------------------------------------------------------

HEX16 = hexadecimal(4)

ETHERNET_ROWS = (mac("dst", 0), mac("src", 6), Row("type", 12, 2, show=ethertype))
VLAN_ROWS = (Row("priority", 0, 2, 0xE000), Row("drop_eligible", 0, 2, 0x1000), Row("id", 0, 2, 0x0FFF), Row("type", 2, 2, show=ethertype))
ARP_ROWS = (
    Row("hardware_type", 0, 2),
    Row("protocol_type", 2, 2, show=ethertype),
    Row("hardware_size", 4, 1),
    Row("protocol_size", 5, 1),
    Row("operation", 6, 2, show=named(ARP_OPERATIONS)),
    mac("sender_mac", 8),
    address("sender", 14, 4),
    mac("target_mac", 18),
    address("target", 24, 4),
)
IPV4_ROWS = (
    Row("version", 0, 1, 0xF0),
    Row("header_length", 0, 1, 0x0F, scaled(4)),
    Row("dscp", 1, 1, 0xFC),
    Row("ecn", 1, 1, 0x03),
    Row("total_length", 2, 2),
    Row("id", 4, 2, show=HEX16),
    Row("reserved", 6, 2, 0x8000),
    Row("dont_fragment", 6, 2, 0x4000),
    Row("more_fragments", 6, 2, 0x2000),
    Row("fragment_offset", 6, 2, 0x1FFF, scaled(8)),
    Row("ttl", 8, 1),
    Row("protocol", 9, 1, show=named(PROTOCOLS)),
    Row("checksum", 10, 2, show=HEX16),
    address("src", 12, 4),
    address("dst", 16, 4),
)
IPV6_ROWS = (
    Row("version", 0, 1, 0xF0),
    Row("dscp", 0, 2, 0x0FC0),
    Row("ecn", 1, 1, 0x30),
    Row("flow_label", 1, 3, 0x0FFFFF, hexadecimal(5)),
    Row("payload_length", 4, 2),
    Row("next_header", 6, 1, show=named(PROTOCOLS)),
    Row("hop_limit", 7, 1),
    address("src", 8, 16),
    address("dst", 24, 16),
)
# The frame that all IPv6 extension headers share but the fragment header.
EXTENSION_ROWS = (Row("next_header", 0, 1, show=named(PROTOCOLS)), Row("length", 1, 1))
FRAGMENT_ROWS = (
    Row("next_header", 0, 1, show=named(PROTOCOLS)),
    Row("reserved", 1, 1),
    Row("fragment_offset", 2, 2, 0xFFF8, scaled(8)),
    Row("reserved2", 2, 2, 0x0006),
    Row("more_fragments", 2, 2, 0x0001),
    Row("id", 4, 4, show=hexadecimal(8)),
)
UDP_ROWS = (Row("src_port", 0, 2), Row("dst_port", 2, 2), Row("length", 4, 2), Row("checksum", 6, 2, show=HEX16))
TCP_ROWS = (
    Row("src_port", 0, 2),
    Row("dst_port", 2, 2),
    Row("sequence", 4, 4),
    Row("acknowledgment", 8, 4),
    Row("header_length", 12, 1, 0xF0, scaled(4)),
    Row("reserved", 12, 1, 0x0E),
    Row("flags", 12, 2, 0x01FF, tcp_flags),
    Row("window", 14, 2),
    Row("checksum", 16, 2, show=HEX16),
    Row("urgent", 18, 2),
)
VXLAN_ROWS = (Row("flags", 0, 1, show=hexadecimal(2)), Row("reserved", 1, 3, show=hexadecimal(6)), Row("vni", 4, 3), Row("reserved2", 7, 1))
VXLAN_VALID, VXLAN_GBP = 0x08, 0x80
VXLAN_GBP_ROWS = (
    Row("flags", 0, 1, show=hexadecimal(2)),
    Row("policy_flags", 1, 1, show=hexadecimal(2)),
    Row("group", 2, 2),
    Row("vni", 4, 3),
    Row("reserved2", 7, 1),
)

ICMP_START = (Row("type", 0, 1, show=named(ICMP_TYPES)), Row("code", 1, 1), Row("checksum", 2, 2, show=HEX16))
ICMPV6_START = (Row("type", 0, 1, show=named(ICMPV6_TYPES)), Row("code", 1, 1), Row("checksum", 2, 2, show=HEX16))
ECHO = (Row("id", 4, 2), Row("sequence", 6, 2))
UNUSED = (Row("unused", 4, 4, show=hexadecimal(8)),)
# What follows the first four bytes, by type. The size of a header is where its last row ends.
ICMP_REST: dict[int, tuple[Row, ...]] = {
    0: ECHO,
    8: ECHO,
    3: UNUSED,
    4: UNUSED,
    5: (address("gateway", 4, 4),),
    11: UNUSED,
    12: (Row("pointer", 4, 1), Row("unused", 5, 3)),
}
ICMP_TOO_BIG = (3, 4)  # type and code: only then is there an MTU (RFC 1191)
ICMP_TOO_BIG_REST = (Row("unused", 4, 2), Row("mtu", 6, 2))
TARGET = address("target", 8, 16)
ICMPV6_REST: dict[int, tuple[Row, ...]] = {
    1: UNUSED,
    2: (Row("mtu", 4, 4),),
    3: UNUSED,
    4: (Row("pointer", 4, 4),),
    128: ECHO,
    129: ECHO,
    133: (Row("reserved", 4, 4),),
    134: (
        Row("hop_limit", 4, 1),
        Row("managed", 5, 1, 0x80),
        Row("other", 5, 1, 0x40),
        Row("lifetime_s", 6, 2),
        Row("reachable_ms", 8, 4),
        Row("retransmit_ms", 12, 4),
    ),
    135: (Row("reserved", 4, 4), TARGET),
    136: (Row("router", 4, 1, 0x80), Row("solicited", 4, 1, 0x40), Row("override", 4, 1, 0x20), Row("reserved", 4, 4, 0x1FFFFFFF), TARGET),
}
ND_TYPES = (133, 134, 135, 136)

# ---- names and short forms ------------------------------------------------------------------------------------------

TITLES = {
    "ethernet": "Ethernet",
    "vlan": "VLAN",
    "arp": "ARP",
    "ipv4": "IPv4",
    "ipv6": "IPv6",
    "hop-by-hop": "IPv6 hop-by-hop options",
    "routing": "IPv6 routing header",
    "destination": "IPv6 destination options",
    "ah": "AH",
    "fragment": "IPv6 fragment",
    "icmp": "ICMP",
    "icmpv6": "ICMPv6",
    "udp": "UDP",
    "tcp": "TCP",
    "vxlan": "VXLAN",
    "payload": "payload",
    "padding": "padding",
}
# The first line of which all fields are there is used.
BRIEF = {
    "ethernet": ("{src} > {dst} {type}",),
    "vlan": ("{id} {type}",),
    "arp": ("{operation} {sender} {sender_mac} > {target} {target_mac}",),
    "ipv4": ("{src} > {dst} ttl {ttl} {protocol}",),
    "ipv6": ("{src} > {dst} hop limit {hop_limit} {next_header}",),
    "hop-by-hop": ("{next_header}",),
    "routing": ("{next_header}",),
    "destination": ("{next_header}",),
    "fragment": ("id {id} at {fragment_offset} {next_header}",),
    "udp": ("{src_port} > {dst_port} length {length}",),
    "tcp": ("{src_port} > {dst_port} {flags} seq {sequence} ack {acknowledgment}",),
    "vxlan": ("vni {vni} group {group}", "vni {vni}"),
    "icmp": ("{type} id {id} seq {sequence}", "{type} code {code}"),
    "icmpv6": ("{type} id {id} seq {sequence}", "{type} {target}", "{type} code {code}"),
}
