"""The packet at each place of its way: bytes against scapy's, masks against what is not known, fragments against RFC 791 and 8200."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import format_mac
from tweed.addr import parse_address as ip
from tweed.addr import parse_mac as mac
from tweed.errors import UsageError
from tweed.trace.bits import Frame
from tweed.trace.frames import FILLING, Hop, Probe, Tunnel, frames, split
from tweed.wire.packet import checksums, decode

POD, GATEWAY, VTEP, PEER = mac("0a:58:0a:f4:00:02"), mac("0a:58:0a:f4:00:01"), mac("ca:59:7d:c2:5e:0f"), mac("86:22:66:41:77:3d")
NIC, PEER_NIC = mac("52:54:c0:a8:02:c8"), mac("52:54:c0:a8:02:ca")
A, B, A6, B6 = ip("10.244.0.2"), ip("10.244.2.2"), ip("fd00::2"), ip("fd00:2::2")
HOST, PEER_HOST = ip("192.168.2.200"), ip("192.168.2.202")
TUNNEL = Tunnel(PEER_HOST, HOST, PEER_NIC, NIC, vni=1, port=8472, src_port=53768, checksum=False, id=7)
WAY = (
    Hop("master", "eth0", "out", GATEWAY, POD, 64, 1450),
    Hop("master", "cni0", "in", GATEWAY, POD, 64),
    Hop("master", "flannel.1", "out", PEER, VTEP, 63, 1450),
    Hop("master", "ens33", "out", PEER, VTEP, 63, 1500, TUNNEL),
    Hop("node2", "ens33", "in", PEER, VTEP, 63, None, TUNNEL),
    Hop("node2", "flannel.1", "in", PEER, VTEP, 63),
    Hop("node2", "cni0", "out", POD, GATEWAY, 62, 1450),
)
KNOWN = Probe(A, B, sport=0x1234, sequence=1, id=0)


def one(probe: Probe, hop: Hop = WAY[0]) -> Frame:
    """The frame at a single hop."""
    ((stage),) = frames(probe, [hop])
    (frame,) = stage.frames
    return frame


def test_every_stage_equals_scapys_bytes():
    inner = IP(src="10.244.0.2", dst="10.244.2.2", id=0, flags="DF") / ICMP(id=0x1234, seq=1) / Raw((FILLING * 9)[:56])

    def plain(dst: bytes, src: bytes, ttl: int) -> Ether:
        packet = inner.copy()
        packet.ttl = ttl
        return Ether(dst=format_mac(dst), src=format_mac(src)) / packet

    outer = Ether(dst=format_mac(PEER_NIC), src=format_mac(NIC)) / IP(src="192.168.2.200", dst="192.168.2.202", id=7) / UDP(sport=53768, dport=8472, chksum=0)
    wire = outer / VXLAN(vni=1, flags=8) / plain(PEER, VTEP, 63)
    expected = [plain(GATEWAY, POD, 64)] * 2 + [plain(PEER, VTEP, 63), wire, wire, plain(PEER, VTEP, 63), plain(POD, GATEWAY, 62)]
    stages = frames(KNOWN, WAY)
    assert [stage.hop for stage in stages] == list(WAY)
    for stage, packet in zip(stages, expected, strict=True):
        (frame,) = stage.frames
        assert frame.data.hex() == bytes(packet).hex()
        assert not frame.known.strip(b"\xff") and frame.unknown == () and frame.differences(bytes(packet)) == ()
        assert {checksum.state for checksum in checksums(frame.packet)} <= {"right", "absent"}
    assert [(len(stage.frames[0]), stage.frames[0].added) for stage in stages] == [(98, 0), (98, 0), (98, 0), (148, 50), (148, 50), (98, 0), (98, 0)]


@pytest.mark.parametrize("proto", ["udp", "tcp"])
@pytest.mark.parametrize("family", [4, 6])
def test_udp_and_tcp_equal_scapys(proto: str, family: int):
    src, dst = (A, B) if family == 4 else (A6, B6)
    frame = one(Probe(src, dst, proto, 100, 4000, 80, sequence=5, id=9))
    network = IP(src="10.244.0.2", dst="10.244.2.2", id=9, flags="DF") if family == 4 else IPv6(src="fd00::2", dst="fd00:2::2", hlim=64)
    header = UDP(sport=4000, dport=80) if proto == "udp" else TCP(sport=4000, dport=80, seq=5, flags="S", window=65535)
    room = 100 - (20 if family == 4 else 40) - (8 if proto == "udp" else 20)
    theirs = bytes(Ether(dst=format_mac(GATEWAY), src=format_mac(POD)) / network / header / Raw((FILLING * 9)[:room]))
    assert len(theirs) == 114 and frame.differences(theirs) == ()
    assert frame.data == theirs  # also where it says that it cannot know: the filling makes a well-formed packet
    assert frame.unknown == (("IPv6 flow_label",) if family == 6 else ()) + (("TCP window", "TCP checksum") if proto == "tcp" else ())


@spelled(60)
def tunnels(choose: Choices) -> tuple[Tunnel, bytes, bytes, int, int, int, int]:
    """With the MACs, TTL, size, IP id and identifier of the echo in it."""
    u16, dst = 0xFFFF, choose.one_of((PEER_HOST, ip("fd77::202")))
    macs, vni, port, checksum = (choose.bytes(6), choose.bytes(6)), choose.number(0, 0xFFFFFF), choose.number(0, u16), choose.flag()
    tunnel = Tunnel(dst, None, *macs, vni, 8472, port, checksum, choose.number(1, 255), choose.number(0, u16))
    return tunnel, choose.bytes(6), choose.bytes(6), choose.number(1, 255), choose.number(48, 1400), choose.number(0, u16), choose.number(0, u16)


@cases(20, tunnels)
def test_any_tunnel_equals_scapys(case: tuple[Tunnel, bytes, bytes, int, int, int, int]):
    """The outer header of either family around an inner echo of IPv4."""
    tunnel, dst, src, ttl, size, id, identifier = case
    four = len(tunnel.dst) == 4
    tunnel = msgspec.structs.replace(tunnel, src=HOST if four else ip("fd77::200"))
    frame = one(Probe(A, B, size=size, sport=identifier, sequence=9, id=id), Hop("x", "nic", "out", dst, src, ttl, None, tunnel))
    inner = Ether(dst=format_mac(dst), src=format_mac(src), type=0x0800) / IP(src="10.244.0.2", dst="10.244.2.2", id=id, ttl=ttl, flags="DF")
    inner /= ICMP(id=identifier, seq=9) / Raw((FILLING * 200)[: size - 28])
    outer = IP(src="192.168.2.200", dst="192.168.2.202", id=tunnel.id, ttl=tunnel.ttl) if four else IPv6(src="fd77::200", dst="fd77::202", hlim=tunnel.ttl)
    udp = UDP(sport=tunnel.src_port, dport=8472, **({} if tunnel.checksum else {"chksum": 0}))
    theirs = (
        Ether(dst=format_mac(tunnel.dst_mac), src=format_mac(tunnel.src_mac), type=0x0800 if four else 0x86DD)
        / outer
        / udp
        / VXLAN(vni=tunnel.vni, flags=8)
        / inner
    )
    assert frame.data.hex() == bytes(theirs).hex()
    # The MTU of the first device is not known, so neither is what a large packet says about fragments.
    assert set(frame.unknown) == (
        set() if size <= 576 else {"inner IPv4 dont_fragment", "inner IPv4 checksum"} | ({"outer UDP checksum"} if tunnel.checksum else set())
    )


def test_ipv6_in_ipv6_adds_seventy_bytes():
    tunnel = msgspec.structs.replace(TUNNEL, dst=ip("fd77::202"), src=ip("fd77::200"), checksum=True)
    frame = one(Probe(A6, B6, sport=1, sequence=2), msgspec.structs.replace(WAY[3], tunnel=tunnel))
    inner = (
        Ether(dst=format_mac(PEER), src=format_mac(VTEP))
        / IPv6(src="fd00::2", dst="fd00:2::2", hlim=63)
        / ICMPv6EchoRequest(id=1, seq=2, data=(FILLING * 9)[:36])
    )
    outer = Ether(dst=format_mac(PEER_NIC), src=format_mac(NIC)) / IPv6(src="fd77::200", dst="fd77::202") / UDP(sport=53768, dport=8472) / VXLAN(vni=1, flags=8)
    assert (frame.added, len(frame)) == (70, 168) and frame.data == bytes(outer / inner)
    assert frame.unknown == ("outer UDP checksum", "inner IPv6 flow_label")


def test_what_is_not_known_is_unknown_and_not_zero():
    tunnel = Tunnel(PEER_HOST)
    frame = one(Probe(A, B), Hop("master", "ens33", "out", PEER, None, None, 1500, tunnel))
    assert frame.unknown == (
        "outer Ethernet dst",
        "outer Ethernet src",
        "outer IPv4 id",
        "outer IPv4 checksum",
        "outer IPv4 src",
        "outer UDP src_port",
        "outer UDP dst_port",
        "outer UDP checksum",
        "inner VXLAN vni".replace("inner", "outer"),
        "inner Ethernet src",
        "inner IPv4 id",
        "inner IPv4 ttl",
        "inner IPv4 checksum",
        "inner ICMP checksum",
        "inner ICMP id",
        "inner ICMP sequence",
    )
    assert frame.hex.split()[:14] == ["??"] * 12 + ["08", "00"] and frame.hex.split()[30:34] == ["c0", "a8", "02", "ca"]
    texts = {(layer.name, layer.level, field.name): field.text for layer in frame.packet.layers for field in layer.fields}
    assert texts["udp", 0, "dst_port"] == "?" and texts["ethernet", 1, "dst"] == "86:22:66:41:77:3d"


def test_half_known_bytes():
    frame = one(Probe(A6, B6))
    assert frame.hex.split()[14:18] == ["60", "0?", "??", "??"]
    assert "IPv4 dont_fragment" in one(Probe(A, B, size=1000), Hop("x", "eth0", "out")).unknown
    assert "IPv4 dont_fragment" not in one(Probe(A, B, size=576), Hop("x", "eth0", "out")).unknown


def test_checksums_are_known_when_all_below_them_is():
    assert "IPv4 checksum" not in one(Probe(A, B, id=1)).unknown
    assert one(Probe(A, B, "udp", dport=53)).unknown == ("IPv4 id", "IPv4 checksum", "UDP src_port", "UDP checksum")


def test_a_port_that_only_looks_like_a_tunnel():
    frame = one(Probe(A, B, "udp", 80, 8472, 8472))
    assert [layer.name for layer in frame.packet.layers] == ["ethernet", "ipv4", "udp", "payload"]
    tunnelled = one(Probe(A, B, "udp", 80, 8472, None), WAY[3])
    assert [layer.name for layer in tunnelled.packet.layers].count("vxlan") == 1


def test_differences_are_offsets_of_known_bytes():
    frame = one(msgspec.structs.replace(KNOWN, id=None))
    seen = bytearray(frame.data)
    seen[18], seen[22], seen[50] = 0xAB, 63, 0
    assert frame.differences(bytes(seen)) == (22, 50)
    assert frame.differences(frame.data + b"xy") == (98, 99) and frame.differences(frame.data[:-1]) == (97,)


@pytest.mark.parametrize(
    ("probe", "whole"),
    [
        (Probe(A, B, size=1450), True),
        (Probe(A, B, size=1451), False),
        (Probe(A, B, size=1451, dont_fragment=True), True),
        (Probe(A, B, size=60, dont_fragment=False), False),
        (Probe(A, B, reply=True), False),
        (Probe(A, B, "tcp", reply=True), True),
    ],
)
def test_dont_fragment_as_linux_sets_it(probe: Probe, whole: bool):
    (stage,) = frames(probe, WAY[:1])
    assert {frame.packet.find("ipv4").number("dont_fragment") for frame in stage.frames} == {int(whole)}
    assert len(stage.frames) == (2 if probe.size == 1451 and not whole else 1)


def joined(stage_frames: tuple[Frame, ...], mtu: int, level: int = 0) -> bytes:
    """The datagram that fragments make: the slow way. Every one fits, all but the last are multiples of 8, none overlaps."""
    found, more = b"", True
    for frame in stage_frames:
        packet = decode(frame.data)
        layers = [layer for layer in packet.layers if layer.level == level]
        network = next(layer for layer in layers if layer.name in ("ipv4", "ipv6"))
        header = next((layer for layer in layers if layer.name == "fragment"), network)
        end = network.end
        assert end - network.offset <= mtu and more
        if header.get("fragment_offset") is None:
            return packet.data[header.offset + header.length : end]
        part = packet.data[header.offset + header.length : end]
        assert header.number("fragment_offset") * 8 == len(found)
        more = bool(header.number("more_fragments"))
        assert not more or len(part) % 8 == 0
        found += part
    assert not more
    return found


@cases(22, st.integers(600, 9000), st.integers(1280, 1600), st.sampled_from([4, 6]))
def test_fragments_make_the_datagram_again(size: int, mtu: int, family: int):
    probe = Probe(A, B, size=size, id=3) if family == 4 else Probe(A6, B6, size=size, id=3)
    (stage,) = frames(probe, [Hop("x", "eth0", "out", POD, GATEWAY, 64, mtu)])
    (whole,) = frames(probe, [Hop("x", "eth0", "out", POD, GATEWAY, 64, 65535)])
    expected = whole.frames[0].data[34 if family == 4 else 54 :]
    assert (len(stage.frames) > 1) == (size > mtu)
    assert joined(stage.frames, mtu) == expected


def test_a_router_cuts_fragments_again_and_ipv6_only_at_the_source():
    way = [Hop("x", "eth0", "out", mtu=1500), Hop("x", "flannel.1", "out", mtu=1000)]
    first, second = frames(Probe(A, B, size=3000, id=3), way)
    assert len(first.frames) == 3 and len(second.frames) > 3 and joined(second.frames, 1000) == joined(first.frames, 1500)
    first, second = frames(Probe(A6, B6, size=1500), [way[0], msgspec.structs.replace(way[1], mtu=1280)])
    assert len(first.frames) == len(second.frames) == 1


@pytest.mark.parametrize("family", [4, 6])
def test_a_tunnel_that_is_too_large_for_its_network_is_cut_outside(family: int):
    tunnel = TUNNEL if family == 4 else msgspec.structs.replace(TUNNEL, dst=ip("fd77::202"), src=ip("fd77::200"), id=None)
    way = [msgspec.structs.replace(hop, mtu=hop.mtu and 1500, tunnel=hop.tunnel and tunnel) for hop in WAY]
    stages = frames(msgspec.structs.replace(KNOWN, size=1500), way)
    assert [len(stage.frames) for stage in stages] == [1, 1, 1, 2, 2, 1, 1]
    first, rest = stages[3].frames
    assert [frame.added for frame in (first, rest)] == ([50, 34] if family == 4 else [78, 62])
    assert joined(stages[3].frames, 1500)[16:] == stages[2].frames[0].data
    assert [layer.name for layer in rest.packet.layers] == ["ethernet", "ipv4", "payload"] if family == 4 else ["ethernet", "ipv6", "fragment", "payload"]
    assert list(first.packet.problems) == []


def test_pieces_that_no_mtu_can_carry_are_left_whole():
    assert split((0, 100), 20, 4, 100) == [(0, 100)]


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (Probe(A, B, size=27), "--size 27: an IPv4 packet with ICMP has 28 to 65535 bytes"),
        (Probe(A6, B6, "tcp", 59), "an IPv6 packet with TCP has 60"),
        (Probe(A, B6), "one address is IPv4 and the other IPv6"),
        (Probe(A, B, size=65536), "28 to 65535"),
    ],
)
def test_packets_that_cannot_be(probe: Probe, said: str):
    with pytest.raises(UsageError, match=said):
        frames(probe, WAY)


def test_connection_tracking_joins_fragments_and_they_are_cut_anew():
    way = [
        Hop("x/p", "eth0", "out", mtu=1430),
        Hop("x", "cni0", "in", joined=True),
        Hop("x", "flannel.1", "out", mtu=1450),
        Hop("y", "cni0", "out", mtu=1500, joined=True),
    ]
    sizes = [[len(frame) - 34 for frame in stage.frames] for stage in frames(Probe(A, B, size=4000), way)]
    assert sizes == [[1408, 1408, 1164], [3980], [1424, 1424, 1132], [1424, 1424, 1132]]
    sizes = [[len(frame) - 54 for frame in stage.frames] for stage in frames(Probe(A6, B6, size=4000), way)]
    assert sizes == [[1384, 1384, 1216], [3960], [1384, 1384, 1216], [1384, 1384, 1216]]


def test_udp_mode_puts_udp_alone_around_the_ip_packet():
    """Flannel's daemon sends from and to its own port; the container's Ethernet header has stayed in its node."""
    probe = Probe(b"\x0a\xf4\0\2", b"\x0a\xf4\2\2", size=100, sport=1, sequence=2, id=7, dont_fragment=True)
    tunnel = Tunnel(b"\xc0\xa8\2\xca", b"\xc0\xa8\2\xc8", bytes(6), bytes(6), port=8285, src_port=8285, id=9, vxlan=False)
    (stage,) = frames(probe, [Hop("n", "eth0", "out", None, None, 62, 1500, tunnel)])
    (frame,) = stage.frames
    outer = Ether(frame.data)
    inner = IP(bytes(outer[UDP].payload))
    assert (outer[IP].src, outer[IP].dst, outer[UDP].sport, outer[UDP].dport) == ("192.168.2.200", "192.168.2.202", 8285, 8285)
    assert (inner.src, inner.dst, inner.ttl, inner.id, len(inner)) == ("10.244.0.2", "10.244.2.2", 62, 7, 100)
    assert (len(frame), frame.added) == (14 + 20 + 8 + 100, 14 + 20 + 8)
    sums = outer[IP].chksum, outer[UDP].chksum, inner.chksum
    again = Ether(frame.data)
    del again[IP].chksum, again[UDP].chksum
    made = Ether(bytes(again))
    assert (made[IP].chksum, made[UDP].chksum) == sums[:2]
    assert "outer IPv4 dont_fragment" in frame.unknown and "outer IPv4 src" not in frame.unknown
