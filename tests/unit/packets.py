"""Random packets for the tests of the codec: stacks of headers that make sense, with a payload."""

from __future__ import annotations

from hypothesis import strategies as st
from tests.unit.spelling import Choices, spelled

from tweed.wire.packet import Ethernet, HopByHop, Icmp, Icmpv6, Ipv4, Ipv6, Ipv6Fragment, Tcp, Udp, Vlan, Vxlan
from tweed.wire.packet import tables as t

U8, U16, U32 = 0xFF, 0xFFFF, 0xFFFFFFFF
IPV4_OPTIONS = [b"", b"\1\1\1\0", b"\x94\4\0\0", b"\7\7\4\0\0\0\0\0"]
TCP_OPTIONS = [b"", b"\2\4\5\xb4", b"\2\4\5\xb4\1\3\3\7", b"\1\1\x08\x0a" + bytes(range(8))]
TUNNELS = (8472, 4789)


def ipv4(choose: Choices, protocol: int) -> Ipv4:
    return Ipv4(
        src=choose.bytes(4),
        dst=choose.bytes(4),
        protocol=protocol,
        ttl=choose.number(0, U8),
        id=choose.number(0, U16),
        dont_fragment=choose.flag(),
        dscp=choose.number(0, 63),
        ecn=choose.number(0, 3),
        options=choose.one_of(IPV4_OPTIONS),
    )


def ipv6(choose: Choices, next_header: int) -> Ipv6:
    return Ipv6(
        src=choose.bytes(16),
        dst=choose.bytes(16),
        next_header=next_header,
        hop_limit=choose.number(0, U8),
        dscp=choose.number(0, 63),
        ecn=choose.number(0, 3),
        flow_label=choose.number(0, 0xFFFFF),
    )


def transport(choose: Choices, icmp: type[Icmp] | type[Icmpv6]) -> tuple[int, object]:
    kind = choose.one_of(("icmp", "tcp", "udp"))
    if kind == "icmp":
        header = icmp.echo(choose.number(0, U16), choose.number(0, U16), reply=choose.flag())
        return (t.ICMP if icmp is Icmp else t.ICMPV6), header
    src, dst = choose.number(0, U16), choose.number(0, U16)
    if kind == "udp":
        # A VXLAN port would make the payload another frame; tunnels are built on purpose below.
        return t.UDP, Udp(src, dst + 1 if dst in TUNNELS else dst, choose.flag())
    return t.TCP, Tcp(
        src,
        dst,
        sequence=choose.number(0, U32),
        acknowledgment=choose.number(0, U32),
        flags=choose.number(0, 0x1FF),
        window=choose.number(0, U16),
        urgent=choose.number(0, U16),
        options=choose.one_of(TCP_OPTIONS),
    )


def frame(choose: Choices) -> tuple[object, ...]:
    """The headers of one frame that is not a tunnel's."""
    network: tuple[object, ...]
    if choose.flag():
        number, carried = transport(choose, Icmp)
        ethertype, network = t.IPV4, (ipv4(choose, number),)
    else:
        number, carried = transport(choose, Icmpv6)
        ethertype, extension = t.IPV6, choose.one_of(("", "hop", "fragment"))
        if extension == "hop":
            network = (ipv6(choose, t.HOP_BY_HOP), HopByHop(number, choose.one_of((b"", b"\5\2\0\0", b"\5\2\0\0\0"))))
        elif extension == "fragment":
            network = (ipv6(choose, t.FRAGMENT), Ipv6Fragment(number, choose.number(0, U32)))
        else:
            network = (ipv6(choose, number),)
    if choose.flag():
        vlan = Vlan(choose.number(0, 0xFFF), ethertype, choose.number(0, 7), choose.flag())
        return (Ethernet(choose.bytes(6), choose.bytes(6), t.VLAN), vlan, *network, carried)
    return (Ethernet(choose.bytes(6), choose.bytes(6), ethertype), *network, carried)


@spelled(160)
def stacks(choose: Choices) -> tuple[object, ...]:
    """The headers of a frame, in a VXLAN tunnel or not."""
    inner = frame(choose)
    if choose.flag():
        return inner
    ethertype, outer = (t.IPV4, ipv4(choose, t.UDP)) if choose.flag() else (t.IPV6, ipv6(choose, t.UDP))
    udp = Udp(choose.number(0, U16), choose.one_of(TUNNELS), choose.flag())
    tunnel = Vxlan(choose.number(0, 0xFFFFFF), choose.one_of((None, choose.number(0, U16))))
    return (Ethernet(choose.bytes(6), choose.bytes(6), ethertype), outer, udp, tunnel, *inner)


payloads = st.binary(max_size=40)
