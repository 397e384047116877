"""The packet codec against scapy: the same bytes for the same headers, and the same fields from the same bytes."""

from __future__ import annotations

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as ScapyPacket
from scapy.packet import Raw
from tests.unit.packets import payloads, stacks
from tests.unit.spelling import cases

from tweed.addr import format_address, format_mac
from tweed.wire.packet import Arp, Ethernet, HopByHop, Icmp, Icmpv6, Ipv4, Ipv6, Ipv6Fragment, Tcp, Udp, Vlan, Vxlan, decode, encode

ECHO = {128: ICMPv6EchoRequest, 129: ICMPv6EchoReply}
# The same header in scapy's words. Lengths and checksums are left for scapy to compute.
SCAPY = {
    Ethernet: lambda h: Ether(dst=format_mac(h.dst), src=format_mac(h.src), type=h.type),
    Vlan: lambda h: Dot1Q(prio=h.priority, dei=int(h.drop_eligible), vlan=h.id, type=h.type),
    Arp: lambda h: ARP(op=h.operation, hwsrc=h.sender_mac, psrc=format_address(h.sender), hwdst=h.target_mac, pdst=format_address(h.target)),
    Ipv4: lambda h: IP(
        src=format_address(h.src),
        dst=format_address(h.dst),
        proto=h.protocol,
        ttl=h.ttl,
        id=h.id,
        flags="DF" if h.dont_fragment else 0,
        tos=h.dscp << 2 | h.ecn,
        options=[Raw(h.options)] if h.options else [],
    ),
    Ipv6: lambda h: IPv6(src=format_address(h.src), dst=format_address(h.dst), nh=h.next_header, hlim=h.hop_limit, tc=h.dscp << 2 | h.ecn, fl=h.flow_label),
    HopByHop: lambda h: IPv6ExtHdrHopByHop(h.pack(b"")),
    Ipv6Fragment: lambda h: IPv6ExtHdrFragment(nh=h.next_header, id=h.id, offset=h.fragment_offset >> 3, m=int(h.more_fragments)),
    Icmp: lambda h: ICMP(type=h.type, code=h.code, id=int.from_bytes(h.rest[:2], "big"), seq=int.from_bytes(h.rest[2:], "big")),
    Icmpv6: lambda h: ECHO[h.type](id=int.from_bytes(h.rest[:2], "big"), seq=int.from_bytes(h.rest[2:], "big")),
    Tcp: lambda h: TCP(
        sport=h.src_port,
        dport=h.dst_port,
        seq=h.sequence,
        ack=h.acknowledgment,
        flags=h.flags,
        window=h.window,
        urgptr=h.urgent,
        options=TCP(bytes(12) + bytes((0x50 + (len(h.options) << 2), 0)) + bytes(6) + h.options).options,
    ),
    Udp: lambda h: UDP(sport=h.src_port, dport=h.dst_port, **({} if h.checksum else {"chksum": 0})),
    Vxlan: lambda h: VXLAN(vni=h.vni, flags=0x08) if h.group is None else VXLAN(vni=h.vni, flags=0x88, gpid=h.group),
}
# Our layer and field names in scapy's; the place of a header is the same on both sides.
FIELDS = {
    "ethernet": (Ether, {"dst": "dst", "src": "src", "type": "type"}),
    "vlan": (Dot1Q, {"id": "vlan", "priority": "prio", "drop_eligible": "dei", "type": "type"}),
    "ipv4": (
        IP,
        {
            "version": "version",
            "header_length": "ihl",
            "total_length": "len",
            "id": "id",
            "fragment_offset": "frag",
            "ttl": "ttl",
            "protocol": "proto",
            "checksum": "chksum",
            "src": "src",
            "dst": "dst",
        },
    ),
    "ipv6": (IPv6, {"version": "version", "flow_label": "fl", "payload_length": "plen", "next_header": "nh", "hop_limit": "hlim", "src": "src", "dst": "dst"}),
    "fragment": (IPv6ExtHdrFragment, {"next_header": "nh", "fragment_offset": "offset", "more_fragments": "m", "id": "id"}),
    "udp": (UDP, {"src_port": "sport", "dst_port": "dport", "length": "len", "checksum": "chksum"}),
    "tcp": (
        TCP,
        {
            "src_port": "sport",
            "dst_port": "dport",
            "sequence": "seq",
            "acknowledgment": "ack",
            "header_length": "dataofs",
            "flags": "flags",
            "window": "window",
            "checksum": "chksum",
            "urgent": "urgptr",
        },
    ),
    "icmp": (ICMP, {"type": "type", "code": "code", "checksum": "chksum", "id": "id", "sequence": "seq"}),
    "vxlan": (VXLAN, {"flags": "flags", "vni": "vni", "group": "gpid"}),
}


def scapy_packet(headers: tuple, payload: bytes) -> ScapyPacket:
    packet = Raw(payload) if payload else None
    for header in reversed(headers):
        packet = SCAPY[type(header)](header) if packet is None else SCAPY[type(header)](header) / packet
    return packet


@cases(17, stacks, payloads)
def test_scapy_builds_the_same_bytes_and_reads_the_same_fields(headers: tuple, payload: bytes):
    frame = encode(*headers, payload=payload)
    assert bytes(scapy_packet(headers, payload)).hex() == frame.hex()
    theirs = Ether(frame)
    seen: dict[type, int] = {}
    for layer in decode(frame).layers:
        if layer.name not in FIELDS:
            continue
        kind, names = FIELDS[layer.name]
        seen[kind] = seen.get(kind, 0) + 1
        their = theirs.getlayer(kind, seen[kind])
        for ours, name in names.items():
            if (field := layer.get(ours)) is not None:
                value = getattr(their, name)
                assert (field.text if isinstance(value, str) else field.value) == (value if isinstance(value, str) else int(value)), (layer.name, ours)


@pytest.mark.parametrize("operation", [1, 2])
def test_arp(operation: int):
    arp = Arp(operation, bytes(range(6)), b"\x0a\xf4\0\2", bytes(6), b"\x0a\xf4\2\0")
    headers = (Ethernet(b"\xff" * 6, bytes(range(6)), 0x0806), arp)
    frame = encode(*headers)
    assert bytes(scapy_packet(headers, b"")) == frame
    their, ours = Ether(frame)[ARP], decode(frame).layers[1]
    assert [ours.get(name).text for name in ("sender_mac", "sender", "target_mac", "target")] == [their.hwsrc, their.psrc, their.hwdst, their.pdst]


MAC1, MAC2, A6, B6 = bytes(range(6)), bytes(range(6, 12)), bytes(15) + b"\1", bytes(15) + b"\2"
DISCOVERY = [
    (Icmpv6.solicit(B6, MAC1), ICMPv6ND_NS(tgt="::2") / ICMPv6NDOptSrcLLAddr(lladdr=format_mac(MAC1))),
    (Icmpv6.advertise(B6, MAC1), ICMPv6ND_NA(tgt="::2", R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=format_mac(MAC1))),
    (Icmpv6.advertise(B6, MAC1, solicited=False, override=False), ICMPv6ND_NA(tgt="::2", R=0, S=0, O=0) / ICMPv6NDOptDstLLAddr(lladdr=format_mac(MAC1))),
]


@pytest.mark.parametrize(("ours", "theirs"), DISCOVERY, ids=["solicitation", "answer", "announcement"])
def test_neighbour_discovery(ours: tuple, theirs: ScapyPacket):
    header, body = ours
    frame = encode(Ethernet(MAC2, MAC1, 0x86DD), Ipv6(A6, B6, 58, 255), header, payload=body)
    assert bytes(Ether(dst=format_mac(MAC2), src=format_mac(MAC1)) / IPv6(src="::1", dst="::2", hlim=255) / theirs) == frame
    layer = decode(frame).layers[-1]
    assert (layer.octets("target"), layer.fields[-1].text) == (B6, format_mac(MAC1))


@pytest.mark.parametrize("family", [4, 6])
def test_fragments(family: int):
    if family == 4:
        whole = IP(src="10.0.0.1", dst="10.0.0.2", id=7) / UDP(sport=1, dport=2) / Raw(bytes(3000))
        header, parts = Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 17, id=7), fragment(whole, 1480)
    else:
        whole = IPv6(src="::1", dst="::2") / IPv6ExtHdrFragment(id=7) / UDP(sport=1, dport=2) / Raw(bytes(3000))
        header, parts = Ipv6(A6, B6, 44), fragment6(whole, 1496)
    datagram = Udp(1, 2).pack(bytes(3000), header)
    at = 0
    for part in parts:
        theirs = bytes(Ether(dst=format_mac(MAC2), src=format_mac(MAC1)) / part)
        layers = decode(theirs).layers
        size = len(theirs) - (34 if family == 4 else 62)
        more = at + size < len(datagram)
        if family == 4:
            headers = (Ethernet(MAC2, MAC1), msgspec.structs.replace(header, more_fragments=more, fragment_offset=at))
        else:
            headers = (Ethernet(MAC2, MAC1, 0x86DD), header, Ipv6Fragment(17, 7, at, more))
        assert encode(*headers, payload=datagram[at : at + size]) == theirs
        assert [layer.name for layer in layers][-2:] == (["udp", "payload"] if at == 0 else [layers[-2].name, "payload"])
        assert (layers[-3] if at == 0 else layers[-2]).number("fragment_offset") * 8 == at
        at += size
    assert at == len(datagram) and len(parts) > 1
