"""What is decided about one packet: where it goes, or why it is dropped. native/packet.c decides the same, bursts at a time."""

from __future__ import annotations

from tweed.udp.peers import Lookup

# What a forwarding process counts. Of what it drops the name says why; the first eight are of what it carries.
CARRIED = ("tx-packets", "tx-bytes", "tx-sends", "rx-packets", "rx-bytes", "rx-writes", "rx-foreign", "fallbacks")
DROPPED = {
    "tx-not-ipv4": "packets from the TUN that are no IPv4",
    "tx-length": "packets from the TUN whose length field is wrong",
    "tx-ttl": "packets whose time to live ended on the way out; the sender is told",
    "tx-no-peer": "packets to an address in nobody's subnet; the sender is told",
    "tx-offload": "packets from the TUN with an offload that was not asked for",
    "tx-queue-full": "packets that the underlay's queue had no room for",
    "tx-refused": "packets that the kernel refused to send",
    "rx-stranger": "datagrams from an address that is no peer's",
    "rx-short": "datagrams shorter than an IPv4 header",
    "rx-version": "datagrams that are no IPv4",
    "rx-length": "datagrams whose length fields are wrong",
    "rx-header-checksum": "datagrams whose IPv4 header is damaged",
    "rx-source-martian": "inner sources that no host has: loopback, multicast, broadcast, reserved",
    "rx-source-spoofed": "inner sources in the subnet of another node, or of this one",
    "rx-source-foreign": "inner sources in nobody's subnet, with StrictSource",
    "rx-destination": "inner destinations outside of this node's subnet",
    "rx-ttl": "packets whose time to live ended on arrival; the sender is told",
    "rx-refused": "packets that the TUN refused",
}
COUNTERS = (*CARRIED, *DROPPED)

Bytes = bytearray | memoryview


def ones_sum(data: Bytes | bytes) -> int:
    """RFC 1071's sum, folded to 16 bits: a number modulo 65535 is the sum of its 16-bit digits with end-around carry."""
    value = int.from_bytes(data) << 8 * (len(data) & 1)
    return value % 65535 or (65535 if value else 0)


def lower_ttl(ip: Bytes) -> None:
    """One hop less, and RFC 1624's correction of the header's checksum."""
    ip[8] -= 1
    total = (ip[10] << 8 | ip[11]) + 0x100
    total = (total & 0xFFFF) + (total >> 16)
    ip[10], ip[11] = total >> 8, total & 0xFF


def number(ip: Bytes, at: int, size: int = 2) -> int:
    return int.from_bytes(ip[at : at + size])


def look_outbound(table: Lookup, ip: Bytes) -> tuple[str, int]:
    """("", the peer's outer address) for a packet from the TUN, or (counter, 0) for one that is dropped."""
    if len(ip) < 20 or ip[0] >> 4 != 4:
        return "tx-not-ipv4", 0
    if not 20 <= (ip[0] & 15) * 4 <= len(ip) or number(ip, 2) != len(ip):
        return "tx-length", 0
    host = table.host(number(ip, 16, 4))
    if host is None:
        return "tx-no-peer", 0
    return ("tx-ttl", 0) if ip[8] <= 1 else ("", host)


def look_inbound(table: Lookup, sender: int, ip: Bytes) -> tuple[str, bool]:
    """("", is its source in nobody's subnet) for a datagram of the peer `sender`, or (counter, ...) for one that is dropped.

    No host sends from the addresses of RFC 1122 section 3.2.1.3 and the classes D and E.
    """
    if len(ip) < 20:
        return "rx-short", False
    if ip[0] >> 4 != 4:
        return "rx-version", False
    header = (ip[0] & 15) * 4
    if not 20 <= header <= len(ip) or number(ip, 2) != len(ip):
        return "rx-length", False
    if ones_sum(ip[:header]) != 0xFFFF:
        return "rx-header-checksum", False
    source = number(ip, 12, 4)
    if source >> 24 in (0, 127) or source >> 28 >= 14:
        return "rx-source-martian", False
    owner = table.host(source)
    if table.is_own(source) or owner not in (None, sender):
        return "rx-source-spoofed", False
    foreign = owner is None
    if foreign and table.strict:
        return "rx-source-foreign", True
    if not table.is_own(number(ip, 16, 4)):
        return "rx-destination", foreign
    return ("rx-ttl" if ip[8] <= 1 else ""), foreign
