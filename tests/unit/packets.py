"""Random packets for the tests of the codec: stacks of headers that make sense, with a payload."""

from __future__ import annotations

from hypothesis import strategies as st

from tweed.wire.packet import Ethernet, HopByHop, Icmp, Icmpv6, Ipv4, Ipv6, Ipv6Fragment, Tcp, Udp, Vlan, Vxlan
from tweed.wire.packet import tables as t

macs = st.binary(min_size=6, max_size=6)
u8, u16, u32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
flags = st.booleans()


def addresses(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


# A VXLAN port would make the payload another frame; tunnels are built on purpose below.
ports = u16.filter(lambda port: port not in (8472, 4789))
echo = st.tuples(u16, u16, flags)
no_fragments = {"more_fragments": st.just(False), "fragment_offset": st.just(0)}
ipv4_options = st.sampled_from([b"", b"\1\1\1\0", b"\x94\4\0\0", b"\7\7\4\0\0\0\0\0"])
tcp_options = st.sampled_from([b"", b"\2\4\5\xb4", b"\2\4\5\xb4\1\3\3\7", b"\1\1\x08\x0a" + bytes(range(8))])
tcp = st.builds(Tcp, src_port=u16, dst_port=u16, sequence=u32, acknowledgment=u32, flags=st.integers(0, 0x1FF), window=u16, urgent=u16, options=tcp_options)
udp = st.builds(Udp, src_port=u16, dst_port=ports, checksum=flags)


def ipv4(protocol: int) -> st.SearchStrategy[Ipv4]:
    return st.builds(
        Ipv4,
        src=addresses(4),
        dst=addresses(4),
        protocol=st.just(protocol),
        ttl=u8,
        id=u16,
        dont_fragment=flags,
        dscp=st.integers(0, 63),
        ecn=st.integers(0, 3),
        options=ipv4_options,
        **no_fragments,
    )


def ipv6(next_header: int) -> st.SearchStrategy[Ipv6]:
    return st.builds(
        Ipv6,
        src=addresses(16),
        dst=addresses(16),
        next_header=st.just(next_header),
        hop_limit=u8,
        dscp=st.integers(0, 63),
        ecn=st.integers(0, 3),
        flow_label=st.integers(0, 0xFFFFF),
    )


def transports(icmp: type) -> st.SearchStrategy[tuple[int, object]]:
    control = echo.map(lambda e: icmp.echo(e[0], e[1], reply=e[2]))
    return st.one_of(
        st.tuples(st.just(t.ICMP if icmp is Icmp else t.ICMPV6), control),
        st.tuples(st.just(t.TCP), tcp),
        st.tuples(st.just(t.UDP), udp),
    )


@st.composite
def frames(draw: st.DrawFn) -> tuple[object, ...]:
    """The headers of one frame that is not a tunnel's."""
    if draw(flags):
        number, transport = draw(transports(Icmp))
        ethertype, network = t.IPV4, (draw(ipv4(number)),)
    else:
        number, transport = draw(transports(Icmpv6))
        extension = draw(st.sampled_from(["", "hop", "fragment"]))
        if extension == "hop":
            network = (draw(ipv6(t.HOP_BY_HOP)), HopByHop(number, draw(st.sampled_from([b"", b"\5\2\0\0", b"\5\2\0\0\0"]))))
        elif extension == "fragment":
            network = (draw(ipv6(t.FRAGMENT)), Ipv6Fragment(number, draw(u32)))
        else:
            network = (draw(ipv6(number)),)
        ethertype = t.IPV6
    if draw(flags):
        vlan = Vlan(draw(st.integers(0, 0xFFF)), ethertype, draw(st.integers(0, 7)), draw(flags))
        return (Ethernet(draw(macs), draw(macs), t.VLAN), vlan, *network, transport)
    return (Ethernet(draw(macs), draw(macs), ethertype), *network, transport)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[object, ...]:
    """The headers of a frame, in a VXLAN tunnel or not."""
    inner = draw(frames())
    if draw(flags):
        return inner
    outer = draw(st.one_of(st.tuples(st.just(t.IPV4), ipv4(t.UDP)), st.tuples(st.just(t.IPV6), ipv6(t.UDP))))
    port = draw(st.sampled_from([8472, 4789]))
    tunnel = Vxlan(draw(st.integers(0, 0xFFFFFF)), draw(st.none() | u16))
    return (Ethernet(draw(macs), draw(macs), outer[0]), outer[1], Udp(draw(u16), port, draw(flags)), tunnel, *inner)


payloads = st.binary(max_size=40)
