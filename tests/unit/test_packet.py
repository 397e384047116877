"""The packet codec: what it reads, what it says about bytes that are wrong, and that no bytes upset it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.packets import payloads, stacks
from tests.unit.spelling import Damage, cases, damages

from tweed.addr import parse_address as ip
from tweed.addr import parse_mac as mac
from tweed.wire.packet import (
    Arp,
    Ethernet,
    HopByHop,
    Icmp,
    Icmpv6,
    Ipv4,
    Ipv6,
    Ipv6Fragment,
    Tcp,
    Udp,
    Vlan,
    Vxlan,
    checksums,
    decode,
    encode,
    internet_checksum,
)
from tweed.wire.packet import tables as t

A, B = mac("0a:58:0a:f4:00:02"), mac("0a:58:0a:f4:00:01")
POD1, POD2 = ip("10.244.0.2"), ip("10.244.2.2")
HOST1, HOST2 = ip("192.168.2.200"), ip("192.168.2.202")
POD1_6, POD2_6 = ip("fd00:10:244::2"), ip("fd00:10:244:2::2")

# An echo request through the seed's tunnel, byte for byte; written by hand from the RFCs, its checksums computed by hand too.
SEED = bytes.fromhex(
    "5254c0a802ca 5254c0a802c8 0800"  # outer Ethernet
    "4500 0086 0000 4000 4011 b384 c0a802c8 c0a802ca"  # outer IPv4, 134 bytes, DF, UDP
    "d208 2118 0072 0000"  # outer UDP 53768 > 8472, 114 bytes, no checksum
    "08000000 00000100"  # VXLAN, VNI 1
    "86226641773d ca597dc25e0f 0800"  # inner Ethernet
    "4500 0054 0000 4000 3f01 23be 0af40002 0af40202"  # inner IPv4, 84 bytes, ttl 63
    "0800 dfc1 1234 0001" + "00" * 50 + "000102030405"  # echo request, id 0x1234, seq 1, 56 bytes
)


def names(frame: bytes) -> list[str]:
    return [layer.name for layer in decode(frame).layers]


def states(frame: bytes) -> list[str]:
    return [checksum.state for checksum in checksums(decode(frame))]


def test_the_seed_packet_is_read_layer_by_layer():
    packet = decode(SEED)
    assert [(layer.name, layer.level, layer.offset, layer.length) for layer in packet.layers] == [
        ("ethernet", 0, 0, 14),
        ("ipv4", 0, 14, 20),
        ("udp", 0, 34, 8),
        ("vxlan", 0, 42, 8),
        ("ethernet", 1, 50, 14),
        ("ipv4", 1, 64, 20),
        ("icmp", 1, 84, 8),
        ("payload", 1, 92, 56),
    ]
    assert str(packet) == (
        "Ethernet 52:54:c0:a8:02:c8 > 52:54:c0:a8:02:ca IPv4 | IPv4 192.168.2.200 > 192.168.2.202 ttl 64 UDP | UDP 53768 > 8472 length 114 | VXLAN vni 1"
        " | Ethernet ca:59:7d:c2:5e:0f > 86:22:66:41:77:3d IPv4 | IPv4 10.244.0.2 > 10.244.2.2 ttl 63 ICMP | ICMP echo request id 4660 seq 1 | payload 56 bytes"
    )
    assert not list(packet.problems) and not packet.truncated and packet.levels == 2
    assert [checksum.state for checksum in checksums(packet)] == ["right", "absent", "right", "right"]


def test_the_seed_packet_is_built():
    frame = encode(
        Ethernet(mac("52:54:c0:a8:02:ca"), mac("52:54:c0:a8:02:c8")),
        Ipv4(HOST1, HOST2, t.UDP, dont_fragment=True),
        Udp(53768, 8472, checksum=False),
        Vxlan(1),
        Ethernet(mac("86:22:66:41:77:3d"), mac("ca:59:7d:c2:5e:0f")),
        Ipv4(POD1, POD2, t.ICMP, ttl=63, dont_fragment=True),
        Icmp.echo(0x1234, 1),
        payload=bytes(50) + bytes(range(6)),
    )
    assert frame.hex() == SEED.hex()


def test_fields_know_their_bytes():
    layer = decode(SEED).find("ipv4", level=1)
    assert layer is not None
    assert [(field.name, field.value, field.text, field.offset, field.length) for field in layer.fields] == [
        ("version", 4, "4", 64, 1),
        ("header_length", 5, "20 bytes", 64, 1),
        ("dscp", 0, "0", 65, 1),
        ("ecn", 0, "0", 65, 1),
        ("total_length", 84, "84", 66, 2),
        ("id", 0, "0x0000", 68, 2),
        ("reserved", 0, "0", 70, 2),
        ("dont_fragment", 1, "1", 70, 2),
        ("more_fragments", 0, "0", 70, 2),
        ("fragment_offset", 0, "0 bytes", 70, 2),
        ("ttl", 63, "63", 72, 1),
        ("protocol", 1, "ICMP", 73, 1),
        ("checksum", 0x23BE, "0x23be", 74, 2),
        ("src", POD1, "10.244.0.2", 76, 4),
        ("dst", POD2, "10.244.2.2", 80, 4),
    ]
    assert layer.number("ttl") == 63 and layer.octets("src") == POD1
    with pytest.raises(KeyError, match="ipv4 has no number vni"):
        layer.number("vni")
    with pytest.raises(KeyError, match="ipv4 has no bytes ttl"):
        layer.octets("ttl")


V4, V6 = Ethernet(A, B), Ethernet(A, B, t.IPV6)
BRIEF = [
    (encode(Ethernet(b"\xff" * 6, A, t.ARP), Arp(1, A, POD1, bytes(6), POD2)), "ARP request 10.244.0.2 0a:58:0a:f4:00:02 > 10.244.2.2 00:00:00:00:00:00"),
    (encode(Ethernet(A, B, t.VLAN), Vlan(7, t.IPV4, 3), Ipv4(POD1, POD2, 50)), "VLAN 7 IPv4 | IPv4 10.244.0.2 > 10.244.2.2 ttl 64 ESP"),
    (encode(Ethernet(A, B, t.QINQ), Vlan(7, t.VLAN), Vlan(8, 0x9999)), "VLAN 7 802.1Q | VLAN 8 0x9999"),
    (encode(Ethernet(A, B, 38), payload=b"\x42\x42\3" + bytes(35)), "payload 38 bytes"),
    (encode(V4, Ipv4(POD1, POD2, t.TCP), Tcp(40000, 80, 1, 0, 2)), "IPv4 10.244.0.2 > 10.244.2.2 ttl 64 TCP | TCP 40000 > 80 SYN seq 1 ack 0"),
    (encode(V4, Ipv4(POD1, POD2, t.TCP), Tcp(40000, 80, 1, 2, 0)), "IPv4 10.244.0.2 > 10.244.2.2 ttl 64 TCP | TCP 40000 > 80 none seq 1 ack 2"),
    (encode(V4, Ipv4(POD1, POD2, t.ICMP), Icmp(3, 4, b"\0\0\5\xaa")), "IPv4 10.244.0.2 > 10.244.2.2 ttl 64 ICMP | ICMP unreachable code 4"),
    (
        encode(V6, Ipv6(POD1_6, POD2_6, t.HOP_BY_HOP), HopByHop(t.ICMPV6, b"\5\2\0\0"), Icmpv6.echo(1, 2)),
        "IPv6 fd00:10:244::2 > fd00:10:244:2::2 hop limit 64 hop-by-hop options | IPv6 hop-by-hop options ICMPv6 | ICMPv6 echo request id 1 seq 2",
    ),
    (
        encode(V6, Ipv6(POD1_6, POD2_6, t.FRAGMENT), Ipv6Fragment(t.UDP, 0xABC, 1448, True), payload=b"rest"),
        "IPv6 fd00:10:244::2 > fd00:10:244:2::2 hop limit 64 fragment header | IPv6 fragment id 0x00000abc at 1448 bytes UDP | payload 4 bytes",
    ),
    (
        encode(V4, Ipv4(POD1, POD2, t.UDP, more_fragments=True, fragment_offset=1480), payload=b"\x20\x20\x21\x18middle"),
        "IPv4 10.244.0.2 > 10.244.2.2 ttl 64 UDP | payload 10 bytes",
    ),
    (
        encode(V4, Ipv4(POD1, POD2, t.UDP), Udp(1, 4789), Vxlan(9, group=77)),
        "IPv4 10.244.0.2 > 10.244.2.2 ttl 64 UDP | UDP 1 > 4789 length 16 | VXLAN vni 9 group 77",
    ),
]


@pytest.mark.parametrize(("frame", "text"), BRIEF, ids=[text.split("|")[-1].strip() for _, text in BRIEF])
def test_protocols_have_their_short_form(frame: bytes, text: str):
    packet = decode(frame)
    assert " | ".join(map(str, packet.layers[1:])) == text
    assert not list(packet.problems)


def test_neighbour_discovery():
    asks, body = Icmpv6.solicit(POD2_6, A)
    packet = decode(encode(V6, Ipv6(POD1_6, POD2_6, t.ICMPV6, 255), asks, payload=body))
    assert str(packet.layers[-1]) == "ICMPv6 neighbour solicitation fd00:10:244:2::2"
    assert packet.layers[-1].get("source link-layer address").text == "0a:58:0a:f4:00:02"
    answers, body = Icmpv6.advertise(POD2_6, B)
    layer = decode(encode(V6, Ipv6(POD2_6, POD1_6, t.ICMPV6, 255), answers, payload=body)).layers[-1]
    assert [(f.name, f.text) for f in layer.fields[3:]] == [
        ("router", "0"),
        ("solicited", "1"),
        ("override", "1"),
        ("reserved", "0"),
        ("target", "fd00:10:244:2::2"),
        ("target link-layer address", "0a:58:0a:f4:00:01"),
    ]


def test_options_are_fields():
    tcp = decode(encode(V4, Ipv4(POD1, POD2, t.TCP, options=b"\x94\4\0\0"), Tcp(1, 2, options=b"\2\4\5\xb4\4\2\x08\x0a\0\0\0\1\0\0\0\2\1\3\3\7"))).layers
    assert [(f.name, f.text) for f in tcp[1].fields[15:]] == [("router alert", "94 04 00 00")]
    assert [(f.name, f.text) for f in tcp[2].fields[10:]] == [
        ("mss", "1460"),
        ("sack permitted", "04 02"),
        ("timestamps", "1 2"),
        ("no operation", "01"),
        ("window scale", "7"),
    ]


def test_an_icmp_error_quotes_a_packet():
    lost = encode(Ipv4(POD1, POD2, t.UDP), Udp(4000, 8472), payload=bytes(1400))
    packet = decode(encode(V4, Ipv4(HOST1, POD1, t.ICMP), Icmp(3, 4, b"\0\0\5\xaa"), payload=lost[:28]))
    assert [(layer.name, layer.quoted) for layer in packet.layers] == [("ethernet", False), ("ipv4", False), ("icmp", False), ("ipv4", True), ("udp", True)]
    assert packet.layers[2].number("mtu") == 1450
    assert packet.layers[3].octets("dst") == POD2 and packet.find("ipv4").octets("dst") == POD1
    assert not packet.truncated, "errors quote only the beginning"
    assert [checksum.state for checksum in checksums(packet)] == ["right", "right", "right", "unknown"]


def test_padding_is_told_apart():
    packet = decode(encode(V4, Ipv4(POD1, POD2, t.UDP), Udp(1, 2), payload=b"ab") + bytes(16))
    assert [(layer.name, layer.length) for layer in packet.layers][-2:] == [("payload", 2), ("padding", 16)]
    tunnel = encode(V4, Ipv4(HOST1, HOST2, t.UDP), Udp(1, 8472), Vxlan(1), V4, payload=encode(Ipv4(POD1, POD2, t.ICMP), Icmp.echo(1, 1)) + b"inner") + b"outer"
    assert [(layer.name, layer.level, layer.offset) for layer in decode(tunnel).layers][-2:] == [("padding", 1, 92), ("padding", 0, 97)]


WRONG = [
    (SEED[:10], ["Ethernet: 10 of 14 bytes are here"], True),
    (SEED[:30], ["IPv4: 16 of 20 bytes are here"], True),
    (SEED[:60], ["IPv4: says 134 bytes, 46 are here", "UDP: says 114 bytes, 26 are here", "Ethernet: 10 of 14 bytes are here"], True),
    (encode(V4, payload=b"\x65" + SEED[15:148]), ["IPv4: says version 6"], False),
    (encode(V6, payload=SEED[14:148]), ["IPv6: says version 4"], False),
    (encode(V4, payload=b"\x43" + SEED[15:148]), ["IPv4: says that its header has 12 bytes, the least is 20"], False),
    (encode(V4, payload=b"\x45\0\0\x0a" + SEED[18:148]), ["IPv4: says 10 bytes, and its header alone has 20"], False),
    (encode(V4, Ipv4(POD1, POD2, t.UDP), payload=b"\0\1\0\2\0\7\0\0data"), ["UDP: says 7 bytes, and its header alone has 8"], False),
    (
        encode(V4, Ipv4(POD1, POD2, t.TCP), payload=Tcp(1, 2).pack(b"", Ipv4(POD1, POD2, 6)).replace(b"\x50\x02", b"\x10\x02")),
        ["TCP: says that its header has 4 bytes, the least is 20"],
        False,
    ),
    (encode(V4, Ipv4(POD1, POD2, t.TCP), Tcp(1, 2, options=b"\2\0\0\0")), ["TCP: mss at byte 20 does not fit"], False),
    (encode(V4, Ipv4(POD1, POD2, t.TCP), Tcp(1, 2, options=b"\1\1\1\3")), ["TCP: window scale at byte 23 does not fit"], False),
    (encode(V6, Ipv6(POD1_6, POD2_6, t.ICMPV6), Icmpv6(135), payload=POD2_6 + bytes(8)), ["ICMPv6: option 0 at byte 24 does not fit"], False),
    (encode(V4, Ipv4(HOST1, HOST2, t.UDP), Udp(1, 8472), payload=bytes(8) + SEED[50:]), ["VXLAN: the flag that makes its VNI valid is not set"], False),
    (encode(Ethernet(A, B, t.ARP), payload=b"\0\x06\x08\0\x08\4\0\1" + bytes(20)), ["ARP: not of Ethernet and IPv4 addresses"], False),
]


@pytest.mark.parametrize(("frame", "problems", "truncated"), WRONG, ids=[wrong[1][-1] for wrong in WRONG])
def test_what_is_wrong_is_said(frame: bytes, problems: list[str], truncated: bool):
    packet = decode(frame)
    assert list(packet.problems) == problems
    assert packet.truncated is truncated


def test_a_segmented_packet_longer_than_its_length_field_is_whole():
    frame = bytearray(encode(V4, Ipv4(POD1, POD2, t.UDP), Udp(1, 2), payload=bytes(100)))
    frame[16:18] = frame[38:40] = b"\0\0"
    packet = decode(frame)
    assert not list(packet.problems) and packet.layers[-1].length == 100


CHECKSUMS = [
    ("right", encode(V4, Ipv4(POD1, POD2, t.TCP), Tcp(1, 2), payload=b"odd"), ["right", "right"]),
    ("a bit flipped", encode(V4, Ipv4(POD1, POD2, t.TCP), Tcp(1, 2), payload=b"odd")[:-1] + b"D", ["right", "wrong"]),
    ("ttl changed", SEED[:72] + b"\x3e" + SEED[73:], ["right", "absent", "wrong", "right"]),
    ("first fragment", encode(V4, Ipv4(POD1, POD2, t.UDP, more_fragments=True), Udp(1, 2), payload=bytes(64)), ["right", "unknown"]),
    ("IPv6 fragment", encode(V6, Ipv6(POD1_6, POD2_6, t.FRAGMENT), Ipv6Fragment(t.UDP, 1, 0, True), Udp(1, 2), payload=bytes(64)), ["unknown"]),
    ("cut off", SEED[:120], ["right", "absent", "right", "unknown"]),
    ("padded", encode(V4, Ipv4(POD1, POD2, t.ICMP), Icmp.echo(1, 2)) + b"padding", ["right", "right"]),
]


@pytest.mark.parametrize(("frame", "expected"), [case[1:] for case in CHECKSUMS], ids=[case[0] for case in CHECKSUMS])
def test_checksums_are_judged(frame: bytes, expected: list[str]):
    assert states(frame) == expected


def test_a_checksum_left_to_the_device_is_not_called_wrong():
    whole = encode(V4, Ipv4(POD1, POD2, t.TCP), Tcp(1, 2), payload=b"data")
    # linux: th->check = ~tcp_v4_check(len, saddr, daddr, 0), the sum of the pseudo header, not inverted
    pseudo = POD1 + POD2 + b"\0\6" + (len(whole) - 34).to_bytes(2, "big")
    left = whole[:50] + (internet_checksum(pseudo) ^ 0xFFFF).to_bytes(2, "big") + whole[52:]
    assert states(left) == ["right", "partial"]
    assert checksums(decode(left))[1].right == int.from_bytes(whole[50:52], "big")


def test_a_tunnel_checksum_over_one_left_to_the_device():
    """Linux: lco_csum() sums the inner packet as it will be, so the outer checksum is right before the inner one is."""
    whole = encode(V4, Ipv4(HOST1, HOST2, t.UDP), Udp(1, 8472), Vxlan(1), V4, Ipv4(POD1, POD2, t.TCP), Tcp(1, 2), payload=b"data")
    assert states(whole) == ["right", "right", "right", "right"]
    pseudo = POD1 + POD2 + b"\0\6\0\x18"
    left = whole[:100] + (internet_checksum(pseudo) ^ 0xFFFF).to_bytes(2, "big") + whole[102:]
    assert states(left) == ["right", "right", "right", "partial"]
    assert states(left[:41] + bytes([left[41] ^ 1]) + left[42:]) == ["right", "wrong", "right", "partial"]


def test_a_computed_udp_checksum_of_zero_is_written_as_its_other_form():
    payload = Udp(0, 0).pack(bytes(2), Ipv4(bytes(4), bytes(4), t.UDP))[6:8]  # the checksum with it is 0
    assert Udp(0, 0).pack(payload, Ipv4(bytes(4), bytes(4), t.UDP))[6:8] == b"\xff\xff"
    assert states(encode(V4, Ipv4(bytes(4), bytes(4), t.UDP), Udp(0, 0), payload=payload)) == ["right", "right"]


def test_a_checksum_over_addresses_needs_them():
    with pytest.raises(ValueError, match="an IP header must come before"):
        encode(Udp(1, 2), payload=b"x")
    assert encode(Udp(1, 2, checksum=False)) == b"\0\1\0\2\0\x08\0\0"


def check_cover(frame: bytes) -> None:
    """Every byte in exactly one layer, every field inside its layer and true to the bytes; text and checksums of all of it."""
    packet = decode(frame)
    at = 0
    for layer in packet.layers:
        assert layer.offset == at and layer.offset + layer.length <= layer.end <= len(frame)
        at += layer.length
        for field in layer.fields:
            assert layer.offset <= field.offset and field.end <= at
            if isinstance(field.value, bytes):
                assert field.value == frame[field.offset : field.end]
    assert at == len(frame)
    assert str(packet).isprintable() and all(text.isprintable() for text in packet.problems)
    for checksum in checksums(packet):
        assert packet.layers[checksum.layer].get("checksum").value == checksum.found


@cases(33, stacks, payloads)
def test_what_is_built_is_read_back(headers: tuple, payload: bytes):
    frame = encode(*headers, payload=payload)
    packet = decode(frame)
    check_cover(frame)
    assert not list(packet.problems)
    assert all(checksum.state in ("right", "absent") for checksum in checksums(packet))
    layers = [layer for layer in packet.layers if layer.name != "payload"]
    assert len(layers) == len(headers)
    for header, layer in zip(headers, layers, strict=True):
        for name in set(header.__struct_fields__) & {field.name for field in layer.fields} - {"checksum", "options"}:
            assert layer.get(name).value == getattr(header, name), (layer.name, name)
    carried = packet.layers[-1] if packet.layers[-1].name == "payload" else None
    assert (frame[carried.offset :] if carried else b"") == payload


@cases(22, stacks, payloads, damages)
def test_a_frame_cut_or_changed_anywhere_is_still_read(headers: tuple, payload: bytes, damage: Damage):
    frame = damage.done_to(encode(*headers, payload=payload))
    for length in range(len(frame) % 9, len(frame) + 1, 9):
        check_cover(frame[:length])


@settings(max_examples=33, deadline=None)
@given(st.sampled_from([0x0800, 0x86DD, 0x0806, 0x8100]), st.binary(max_size=120))
@example(0x86DD, b"\x60" + bytes(5) + b"\0\0" + bytes(32 + 80))  # hop-by-hop headers without end
@example(0x8100, b"\0\1\x81\0" * 400)
def test_any_bytes_are_read(ethertype: int, data: bytes):
    check_cover(data)
    check_cover(bytes(12) + ethertype.to_bytes(2, "big") + data)


def test_tunnels_in_tunnels_end():
    frame = b""
    for _ in range(300):
        frame = encode(V4, Ipv4(HOST1, HOST2, t.UDP), Udp(1, 8472, checksum=False), Vxlan(1), payload=frame)
    assert decode(frame).levels == 300
    check_cover(frame)


def test_udp_mode_has_the_ip_packet_behind_the_udp_header():
    inner = encode(Ipv4(HOST1, HOST2, t.UDP), Udp(1, 2), payload=b"x" * 9)
    frame = encode(V4, Ipv4(HOST2, HOST1, t.UDP), Udp(8285, 8285), payload=inner)
    packet = decode(frame, tunnels={8285: "ip"})
    assert [(layer.name, layer.level) for layer in packet.layers] == [("ethernet", 0), ("ipv4", 0), ("udp", 0), ("ipv4", 1), ("udp", 1), ("payload", 1)]
    assert not list(packet.problems) and [each.state for each in checksums(packet)] == ["right"] * 4
    assert [layer.name for layer in decode(inner, bare=True).layers] == ["ipv4", "udp", "payload"]
    for junk in (b"", b"\x60" + bytes(50), b"x"):  # anybody may send to the port
        assert decode(encode(V4, Ipv4(HOST2, HOST1, t.UDP), Udp(1, 8285), payload=junk), tunnels={8285: "ip"}).levels == 1


def test_tunnels_are_the_callers():
    frame = encode(V4, Ipv4(HOST1, HOST2, t.UDP), Udp(1, 9999), Vxlan(1), Ethernet(A, B, 0x9999))
    assert names(frame) == ["ethernet", "ipv4", "udp", "payload"]
    assert [layer.name for layer in decode(frame, tunnels={9999: "vxlan"}).layers] == ["ethernet", "ipv4", "udp", "vxlan", "ethernet"]
