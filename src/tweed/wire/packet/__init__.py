"""Packets: bytes to layers of fields (`decode`), headers to bytes (`encode`), and whether checksums are right (`checksums`).

layer.py     the values: Packet, Layer, Field
tables.py    every header as a literal table of fields, and the names of their numbers
decode.py    which header follows which
headers.py   the other direction: one small struct per header
checksum.py  the Internet checksum (RFC 1071), computed and judged
"""

from tweed.wire.packet.checksum import Checksum, checksums, internet_checksum
from tweed.wire.packet.decode import INNER_AT, TUNNELS, Carried, decode
from tweed.wire.packet.headers import Arp, Ethernet, Header, HopByHop, Icmp, Icmpv6, Ipv4, Ipv6, Ipv6Fragment, Tcp, Udp, Vlan, Vxlan, encode
from tweed.wire.packet.layer import Field, Layer, Packet

__all__ = [
    "INNER_AT",
    "TUNNELS",
    "Arp",
    "Carried",
    "Checksum",
    "Ethernet",
    "Field",
    "Header",
    "HopByHop",
    "Icmp",
    "Icmpv6",
    "Ipv4",
    "Ipv6",
    "Ipv6Fragment",
    "Layer",
    "Packet",
    "Tcp",
    "Udp",
    "Vlan",
    "Vxlan",
    "checksums",
    "decode",
    "encode",
    "internet_checksum",
]
