"""The packet at each place of its way, as bytes of which some are unknown.

    stages = frames(Probe(src, dst), [Hop("master", "cni0", "in", ...), Hop("master", "flannel.1", "out", ...), ...])

A table says some of the bytes and not all: which of them are known is in each frame (tweed.trace.bits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from tweed.errors import UsageError
from tweed.trace.bits import VXLAN_PORT, Bits, Frame, missing, put
from tweed.wire.packet import Ethernet, Icmp, Icmpv6, Ipv4, Ipv6, Ipv6Fragment, Tcp, Udp, Vxlan
from tweed.wire.packet import tables as t

Protocol = Literal["icmp", "udp", "tcp"]
NO_MAC = bytes(6)
OTHER_PORT = 9  # stands for an unknown port: one that nothing is decoded by
TTL = 64  # net.ipv4.ip_default_ttl, net.ipv6.conf.*.hop_limit
PING_SIZE = 84  # of the IP packet that `ping` sends
FILLING = b"tweed walk "  # what a probe carries, repeated
# RFC 791: every host takes 576 bytes, so that a sender whose MTU is unknown may still be known not to fragment.
EVERY_HOST_TAKES = 576
ETHERNET_SIZE, UDP_SIZE, VXLAN_AND_UDP = 14, 8, 16

PROTOCOLS = {("icmp", 4): t.ICMP, ("icmp", 6): t.ICMPV6, ("udp", 4): t.UDP, ("udp", 6): t.UDP, ("tcp", 4): t.TCP, ("tcp", 6): t.TCP}
TRANSPORT_SIZE = {"icmp": 8, "udp": 8, "tcp": 20}
SYN, ACK = 0x02, 0x10


# ---- what is asked ------------------------------------------------------------------------------------------------------


class Probe(msgspec.Struct, frozen=True):
    """The packet that walks: an echo request (or reply), a UDP datagram, or a TCP segment that opens a connection (or answers that).

    size            of the IP packet in bytes, as MTUs count; a TCP segment here has no options
    sport, dport    of UDP and TCP, None unknown; `sport` is an echo's identifier
    sequence        of an echo or of TCP, None unknown
    id              IPv4 identification, or of IPv6 fragments; None unknown
    dont_fragment   of IPv4; None is what Linux does by itself: set when the packet fits the device it leaves by, never on an echo reply
    payload         None: FILLING
    """

    src: bytes
    dst: bytes
    proto: Protocol = "icmp"
    size: int = PING_SIZE
    sport: int | None = None
    dport: int | None = None
    sequence: int | None = None
    id: int | None = None
    dont_fragment: bool | None = None
    reply: bool = False
    payload: bytes | None = None

    @property
    def family(self) -> int:
        return 4 if len(self.dst) == 4 else 6

    @property
    def least(self) -> int:
        """The size of its headers."""
        return (20 if self.family == 4 else 40) + TRANSPORT_SIZE[self.proto]

    def check(self) -> None:
        """Raises UsageError when there is no such packet."""
        if len(self.src) != len(self.dst):
            raise UsageError("one address is IPv4 and the other IPv6: no packet can have both")
        largest = 65535 if self.family == 4 else 65535 + 40
        if not self.least <= self.size <= largest:
            raise UsageError(f"--size {self.size}: an IPv{self.family} packet with {self.proto.upper()} has {self.least} to {largest} bytes")
        if self.payload is not None and len(self.payload) != self.size - self.least:
            raise ValueError(f"a payload of {len(self.payload)} bytes does not make a packet of {self.size}")


class Tunnel(msgspec.Struct, frozen=True):
    """VXLAN around the packet: all that decides the added bytes. None: unknown. Without `vxlan` UDP alone around the IP packet (flannel's UDP mode).

    `checksum`: whether the outer UDP checksum is computed (0 otherwise). `group`: policy id of a `gbp` device, None: a device without.
    """

    dst: bytes
    src: bytes | None = None
    dst_mac: bytes | None = None
    src_mac: bytes | None = None
    vni: int | None = None
    port: int | None = None
    src_port: int | None = None
    checksum: bool | None = True
    ttl: int | None = TTL
    id: int | None = None
    group: int | None = None
    vxlan: bool = True


class Hop(msgspec.Struct, frozen=True):
    """The packet at one device. `dst_mac` and `src_mac` are of the container's own frame, the inner one in a tunnel.

    `bare`: there is no such frame, the device (a TUN) has IP packets.
    `ttl`: what is left in the container's packet here. `mtu`: of the device when it leaves by it, None: unknown, or no matter.
    `joined`: connection tracking on this node has put fragments together before the packet is here. On the way in they are seen as one
    (at a bridge with bridge-nf-call-iptables), on the way out they are cut anew: IPv4 no larger than they were unless a bridge forgot how
    large that was, IPv6 as they were (net/ipv4/ip_output.c, net/ipv6/ip6_output.c, frag_max_size; measured).
    """

    node: str
    device: str
    direction: Literal["in", "out"]
    dst_mac: bytes | None = None
    src_mac: bytes | None = None
    ttl: int | None = TTL
    mtu: int | None = None
    tunnel: Tunnel | None = None
    comment: str = ""
    joined: bool = False
    bare: bool = False


# ---- what is answered ---------------------------------------------------------------------------------------------------


class Stage(msgspec.Struct, frozen=True):
    """A hop and what is on it: one frame, or the fragments in order."""

    hop: Hop
    frames: tuple[Frame, ...]


# ---- from the one to the other ------------------------------------------------------------------------------------------

Piece = tuple[int, int]  # of a datagram behind its IP header: offset and length in bytes


def frames(probe: Probe, hops: Sequence[Hop]) -> tuple[Stage, ...]:
    """The packet at each hop, in order. Raises UsageError for a packet that cannot be.

    A packet larger than the MTU of a device is cut there as Linux cuts it: IPv4 unless it must not be, IPv6 by its sender only (RFC 8200
    5). One that may not be cut stays whole: that it goes no further is the walk's to say. What a tunnel cut is whole again behind it.
    """
    probe.check()
    first = hops[0].mtu if hops else None
    body = transport(probe)
    pieces: list[Piece] = [(0, len(body.data))]
    cuts: dict[Piece, list[Piece]] = {}
    stages = []
    for number, hop in enumerate(hops):
        may_cut = not must_stay_whole(probe, first) if probe.family == 4 else number == 0
        if hop.tunnel is None:
            cuts = {}
            limit = hop.mtu if hop.direction == "out" and may_cut else None
            if hop.joined and probe.family == 4:
                if hop.direction == "out":
                    largest = 20 + max(length for _, length in pieces)
                    limit = largest if limit is None else min(limit, largest)
                pieces = [(0, len(body.data))]
            if limit is not None:
                pieces = [cut for piece in pieces for cut in split(piece, limit, probe.family, len(body.data), sender=True)]
        made: list[Frame] = []
        for piece in [(0, len(body.data))] if hop.joined and hop.direction == "in" else pieces:
            inner = ip(probe, hop.ttl, body, piece, first)
            if not hop.bare and (hop.tunnel is None or hop.tunnel.vxlan):
                inner = ethernet(hop.dst_mac, hop.src_mac, probe.family, inner)
            if hop.tunnel is None:
                made.append(Frame(inner.data, inner.known, bare=hop.bare))
                continue
            family = 4 if len(hop.tunnel.dst) == 4 else 6
            around = encapsulate(hop.tunnel, inner)
            outer = cuts.get(piece, [(0, len(around.data))])
            if hop.direction == "out" and hop.mtu is not None and (family == 4 or piece not in cuts):
                outer = [cut for whole in outer for cut in split(whole, hop.mtu, family, len(around.data))]
            cuts[piece] = outer
            made += [on_the_wire(hop.tunnel, family, around, cut) for cut in outer]
        stages.append(Stage(hop, tuple(made)))
    return tuple(stages)


def must_stay_whole(probe: Probe, mtu: int | None) -> bool:
    """Whether an IPv4 packet says "don't fragment". Linux's default (ip(7), IP_MTU_DISCOVER): when it fits the device it leaves by."""
    if probe.dont_fragment is not None:
        return probe.dont_fragment
    return not (probe.reply and probe.proto == "icmp") and (mtu is None or probe.size <= mtu)


def split(piece: Piece, mtu: int, family: int, total: int, *, sender: bool = False) -> list[Piece]:
    """One piece as those that fit. All but the last of a datagram are multiples of 8 bytes (RFC 791 3.2, RFC 8200 4.5).

    A `sender` of IPv6 cuts while it composes and keeps the last within that multiple too (ip6_output.c, __ip6_append_data).
    """
    offset, length = piece
    header = 20 if family == 4 else 40
    if length + header + (8 if family == 6 and length < total else 0) <= mtu:
        return [piece]
    last = mtu - header - (8 if family == 6 else 0)
    room = last // 8 * 8
    if family == 6 and sender:
        last = room
    if room <= 0:  # no device has such an MTU
        return [piece]
    pieces = []
    end = offset + length
    while end - offset > last:
        pieces.append((offset, room))
        offset += room
    return [*pieces, (offset, end - offset)]


def transport(probe: Probe) -> Bits:
    """What is behind the IP header, fragmented or not."""
    room = probe.size - probe.least
    payload = probe.payload if probe.payload is not None else (FILLING * (room // len(FILLING) + 1))[:room]
    network: Ipv4 | Ipv6 = Ipv4(probe.src, probe.dst, 0) if probe.family == 4 else Ipv6(probe.src, probe.dst, 0)
    if probe.proto == "icmp":
        kind = Icmp if probe.family == 4 else Icmpv6
        return put(
            kind.echo(probe.sport or 0, probe.sequence or 0, reply=probe.reply), Bits.of(payload), network, missing(id=probe.sport, sequence=probe.sequence)
        )
    sport, dport = (OTHER_PORT if port is None else port for port in (probe.sport, probe.dport))
    unknown = missing(src_port=probe.sport, dst_port=probe.dport)
    if probe.proto == "udp":
        return put(Udp(sport, dport), Bits.of(payload), network, unknown)
    unknown += [*missing(sequence=probe.sequence), "window", *(["acknowledgment"] if probe.reply else [])]
    return put(Tcp(sport, dport, probe.sequence or 0, flags=SYN | ACK if probe.reply else SYN), Bits.of(payload), network, unknown)


def ip(probe: Probe, ttl: int | None, body: Bits, piece: Piece, mtu: int | None) -> Bits:
    """One packet of the probe, or one fragment. `mtu`: of the device that it first left by."""
    offset, length = piece
    more = offset + length < len(body.data)
    part = body.part(offset, offset + length)
    protocol = PROTOCOLS[probe.proto, probe.family]
    left = TTL if ttl is None else ttl
    if probe.family == 4:
        unknown = missing(id=probe.id, ttl=ttl)
        if probe.dont_fragment is None and mtu is None and not probe.reply and probe.size > EVERY_HOST_TAKES:
            unknown.append("dont_fragment")
        header = Ipv4(probe.src, probe.dst, protocol, left, probe.id or 0, must_stay_whole(probe, mtu), more, offset)
        return put(header, part, None, unknown)
    unknown = ["flow_label", *missing(hop_limit=ttl)]  # random per flow, net.ipv6.auto_flowlabels
    if length < len(body.data):
        part = put(Ipv6Fragment(protocol, probe.id or 0, offset, more), part, None, missing(id=probe.id))
        protocol = t.FRAGMENT
    return put(Ipv6(probe.src, probe.dst, protocol, left), part, None, unknown)


def ethernet(dst: bytes | None, src: bytes | None, family: int, payload: Bits) -> Bits:
    return put(Ethernet(dst or NO_MAC, src or NO_MAC, t.IPV4 if family == 4 else t.IPV6), payload, None, missing(dst=dst, src=src))


def encapsulate(tunnel: Tunnel, inner: Bits) -> Bits:
    """Outer UDP, VXLAN and the inner frame. The UDP source port is a hash of the inner flow, its key the kernel's secret."""
    src = tunnel.src or bytes(len(tunnel.dst))
    network: Ipv4 | Ipv6 = Ipv4(src, tunnel.dst, t.UDP) if len(tunnel.dst) == 4 else Ipv6(src, tunnel.dst, t.UDP)
    vxlan = put(Vxlan(1 if tunnel.vni is None else tunnel.vni, tunnel.group), inner, None, missing(vni=tunnel.vni)) if tunnel.vxlan else inner
    unknown = missing(src_port=tunnel.src_port, dst_port=tunnel.port, checksum=tunnel.checksum)
    if tunnel.src is None and tunnel.checksum is not False:
        unknown.append("checksum")
    port = VXLAN_PORT if tunnel.port is None else tunnel.port
    return put(Udp(OTHER_PORT if tunnel.src_port is None else tunnel.src_port, port, tunnel.checksum is not False), vxlan, network, unknown)


def on_the_wire(tunnel: Tunnel, family: int, body: Bits, piece: Piece) -> Frame:
    """The outer packet, or one fragment of it. Linux lets outer IPv4 be fragmented (`df unset`) and writes 0 as outer flow label."""
    offset, length = piece
    more = offset + length < len(body.data)
    part = body.part(offset, offset + length)
    ttl = TTL if tunnel.ttl is None else tunnel.ttl
    src = tunnel.src or bytes(len(tunnel.dst))
    headers = ETHERNET_SIZE + 20
    if family == 4:
        unknown = missing(src=tunnel.src, ttl=tunnel.ttl, id=tunnel.id)
        unknown += [] if tunnel.vxlan else ["dont_fragment"]  # as the daemon's socket was set
        packet = put(Ipv4(src, tunnel.dst, t.UDP, ttl, tunnel.id or 0, False, more, offset), part, None, unknown)
    else:
        headers = ETHERNET_SIZE + 40
        protocol = t.UDP
        if length < len(body.data):
            headers += 8
            part = put(Ipv6Fragment(t.UDP, tunnel.id or 0, offset, more), part, None, missing(id=tunnel.id))
            protocol = t.FRAGMENT
        packet = put(Ipv6(src, tunnel.dst, protocol, ttl), part, None, missing(src=tunnel.src, hop_limit=tunnel.ttl))
    frame = ethernet(tunnel.dst_mac, tunnel.src_mac, family, packet)
    if offset:
        return Frame(frame.data, frame.known, headers)
    port = VXLAN_PORT if tunnel.port is None else tunnel.port
    if not tunnel.vxlan:
        return Frame(frame.data, frame.known, headers + UDP_SIZE, port, "ip")
    return Frame(frame.data, frame.known, headers + VXLAN_AND_UDP, port)
