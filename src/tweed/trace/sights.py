"""Events of a probe as sights: at which node and device, in which direction, and on which leg of the way. Pure.

sights(events, places, probe, tunnels) -> (Sight, ...)       in the order of time
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from tweed.trace.events import CAPTURED, QUEUED, RECEIVED, ROUTED, Event
from tweed.trace.frames import Probe
from tweed.wire.packet import Carried, Layer, Packet, decode

Leg = Literal["there", "back", "error", ""]
NETWORKS = ("ipv4", "ipv6")
AT_ONCE_NS = 1_000_000
MOST_LOOK_UPS = 8  # of one node for one destination: a packet makes one for each table that its rules name


class Sight(msgspec.Struct, frozen=True):
    """`node` "": a namespace that is no node's and no container's (what joins a lab's nodes). `leg`: "there" the probe, "back" its answer (from
    the destination, an error too), "error" one that somebody else sent about it, "" a look-up of neither.
    """

    event: Event
    node: str
    leg: Leg
    direction: Literal["in", "out", ""] = ""
    packet: Packet | None = None

    @property
    def moves(self) -> bool:
        """Whether it shows the packet at a device, and not its end or a look-up."""
        return self.event.kind in (QUEUED, RECEIVED, CAPTURED)

    @property
    def inner(self) -> Layer | None:
        """The IP header of the container's packet."""
        return innermost(self.packet) if self.packet is not None else None


class Recognised:
    """Whether a frame is of the probe, for who has no tracer: its nonce, of TCP its addresses and ports, of a later fragment its identification."""

    def __init__(self, nonce: bytes, probe: Probe, tunnels: Mapping[int, Carried]) -> None:
        self.nonce, self.probe, self.tunnels = nonce, probe, tunnels
        self.pieces: set[tuple[int, str]] = set()

    def __call__(self, frame: bytes) -> bool:
        found = self.nonce in frame if self.nonce else self.is_tcp(frame)
        if found or self.pieces:
            key = piece(decode(frame, tunnels=self.tunnels))
            if key is not None and found:
                self.pieces.add(key)
            return found or key in self.pieces
        return False

    def those_of(self, event: Event) -> list[Event]:
        """The probe's frames in what a packet socket gave. Most frames are nobody's and cost a search for the nonce."""
        if self.nonce and not self.pieces and self.nonce not in event.data:
            return []
        return [each for each in datagrams(event, self.tunnels) if self(each.frame)]

    def is_tcp(self, frame: bytes) -> bool:
        packet = decode(frame, tunnels=self.tunnels)
        ports = {self.probe.sport, self.probe.dport}
        return leg_of(packet, self.probe) != "" and any(
            layer.name == "tcp" and {layer.number("src_port"), layer.number("dst_port")} == ports for layer in packet.layers if len(layer.fields) > 1
        )


def datagrams(event: Event, tunnels: Mapping[int, Carried]) -> Iterator[Event]:
    """The frames on the wire that a packet socket's frame stands for: those of UDP mode are cut after it (UDP_SEGMENT) or joined before (UDP_GRO)."""
    layers = decode(event.data, tunnels=tunnels).layers if event.network >= 14 else ()
    udp, inner = next(((one, two) for one, two in itertools.pairwise(layers) if (one.name, two.name, two.level) == ("udp", "ipv4", 1)), (None, None))
    if udp is None or inner is None or inner.end >= udp.end:
        yield event
        return
    headers, at = event.data[: inner.offset], inner.offset
    while at + inner.length <= udp.end:
        size = int.from_bytes(event.data[at + 2 : at + 4], "big")
        if event.data[at] >> 4 != 4 or size < inner.length or at + size > udp.end:
            return
        yield msgspec.structs.replace(event, data=headers + event.data[at : at + size], length=len(headers) + size, burst=event.length)
        at += size


def sights(events: Iterable[Event], places: Mapping[int, str], probe: Probe, tunnels: Mapping[int, Carried]) -> tuple[Sight, ...]:
    """`places`: node by the inode of its namespace. `tunnels`: what UDP ports carry."""
    found: list[Sight] = []
    pieces: dict[tuple[int, str], Leg] = {}  # of fragments, of which only the first tells
    for event in sorted(events, key=moment):
        node = places.get(event.netns, "")
        if event.kind == ROUTED:
            ends = (event.src, event.dst)
            looked: Leg = "there" if ends == (probe.src, probe.dst) else "back" if ends == (probe.dst, probe.src) else ""
            found.append(Sight(event, node or node_of(found, event), looked))
            continue
        packet = decode(event.frame, tunnels=tunnels)
        leg: Leg = leg_of(packet, probe)
        key = piece(packet)
        if key is not None:
            leg = pieces.setdefault(key, leg) if leg else pieces.get(key, "")
        found.append(Sight(event, node, leg, direction(event), packet))
    return nearest(found)


def nearest(found: Sequence[Sight]) -> tuple[Sight, ...]:
    """Without look-ups that others made for the same addresses (they have no nonce), where there are more than a packet makes: those stay that are
    nearest in time to where it was on that node."""
    moments: dict[str, list[int]] = {}
    alike: dict[tuple[str, bytes], list[int]] = {}
    for position, sight in enumerate(found):
        if sight.event.kind != ROUTED:
            moments.setdefault(sight.node, []).append(sight.event.t_ns)
        else:
            alike.setdefault((sight.node, sight.event.dst), []).append(position)
    others: set[int] = set()
    for (node, _), positions in alike.items():
        if len(positions) > MOST_LOOK_UPS:
            distance = {position: apart(moments.get(node, []), found[position].event.t_ns) for position in positions}
            others |= set(sorted(positions, key=distance.__getitem__)[MOST_LOOK_UPS:])
    return tuple(sight for position, sight in enumerate(found) if position not in others)


def apart(moments: Sequence[int], t_ns: int) -> int:
    """From the nearest of them, which are in order."""
    at = bisect.bisect(moments, t_ns)
    return min((abs(t_ns - moment) for moment in moments[max(at - 1, 0) : at + 1]), default=0)


def moment(event: Event) -> tuple[int, int]:
    """Packet sockets give a frame and what was unwrapped from it one time: the longer one came first."""
    return event.t_ns, -event.length if event.kind == CAPTURED else 0


def direction(event: Event) -> Literal["in", "out", ""]:
    if event.kind == CAPTURED:
        return "out" if event.direction == "out" else "in"
    return "out" if event.kind == QUEUED else "in" if event.kind == RECEIVED else ""


def node_of(found: list[Sight], event: Event) -> str:
    """A look-up that fails has no device, so no namespace: it is made for the packet that this CPU handled last."""
    near = (sight for sight in reversed(found) if sight.event.cpu == event.cpu and sight.moves and event.t_ns - sight.event.t_ns < AT_ONCE_NS)
    return next((sight.node for sight in near), "")


def innermost(packet: Packet) -> Layer | None:
    """The IP header that is in the most tunnels and no quotation."""
    return next((layer for layer in reversed(packet.layers) if layer.name in NETWORKS and not layer.quoted), None)


def is_error(packet: Packet) -> bool:
    """Whether it is an ICMP error, which quotes another packet."""
    return any(layer.name in NETWORKS and layer.quoted for layer in packet.layers)


def leg_of(packet: Packet, probe: Probe) -> Leg:
    """By its addresses. One of them may have been replaced (masquerading), so the other suffices."""
    network = innermost(packet)
    if network is None:
        return ""
    src, dst = network.octets("src"), network.octets("dst")
    if is_error(packet):
        return "back" if src == probe.dst else "error"
    if (src, dst) == (probe.src, probe.dst):
        return "there"
    if (src, dst) == (probe.dst, probe.src):
        return "back"
    return "there" if dst == probe.dst or src == probe.src else "back" if src == probe.dst or dst == probe.src else ""


def piece(packet: Packet) -> tuple[int, str] | None:
    """What fragments of one packet share: the identification of the innermost header that is fragmented; None for a whole packet."""
    for layer in packet.layers:
        if layer.quoted:
            continue
        if layer.name == "ipv4" and (layer.number("more_fragments") or layer.number("fragment_offset")):
            return layer.number("id"), "4"
        if layer.name == "fragment":
            return layer.number("id"), "6"
    return None


def later_piece(packet: Packet) -> bool:
    """Whether it is a fragment behind the first: of a tunnel's, nobody can see what is inside."""
    offsets = (layer.get("fragment_offset") for layer in packet.layers if not layer.quoted)
    return any(offset is not None and offset.value for offset in offsets)
