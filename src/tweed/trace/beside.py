"""One leg of a walk and what was seen of it, side by side. Pure.

    laid = beside(walk, probe, cluster, sights)     the predicted steps, each with its sights; how far it came; how it ended

A predicted place (frames.Hop) and a sight meet at the same node, device and direction; a bridge's port counts as the bridge, since what
is switched is never seen at the bridge itself. Everything else that was seen on the way belongs to the step before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from tweed.addr import format_address
from tweed.model import TABLE_NAMES
from tweed.trace.bits import MASKS, Frame
from tweed.trace.cluster import Cluster
from tweed.trace.events import CAPTURED, DROPPED, ICMP_SENT, ROUTED, TRACEPOINTS
from tweed.trace.frames import Probe, Stage, frames
from tweed.trace.result import Seen, Step, Walk
from tweed.trace.sights import Leg, Sight, is_error, later_piece
from tweed.wire.packet import Field, decode

# Frees that are a matter of course: a socket's queue thrown away, a fragment together with the packet that it was joined to, a reply that no
# datagram socket asked for, a packet socket's filter.
NORMAL_REASONS = ("QUEUE_PURGE", "SOCKET_FILTER", "CONSUMED", "NOT_DROPPED_YET", "SOCKET_CLOSE")
NORMAL_FUNCTIONS = ("skb_release_data", "ping_rcv", "packet_rcv", "tpacket_rcv", "raw_rcv", "rawv6_rcv")
ETHERNET = 14
# Fields that are of all datagrams together until they are cut.
OF_THE_BURST = ("outer IPv4 total_length", "outer IPv4 checksum", "outer UDP length", "outer UDP checksum")
SOURCES = {"icmp": "id", "icmpv6": "id", "udp": "src_port", "tcp": "src_port"}
ERRNO_TABLES = {-11: "no row", -22: "blackhole", -13: "prohibit", -113: "unreachable", -101: "unreachable"}


class Laid(msgspec.Struct, frozen=True):
    """`seen`: positions of the steps whose place the packet was seen at, in order. `last`: where it was seen last; `drop`: how it ended."""

    steps: tuple[Step, ...]
    stages: tuple[Stage, ...]
    branch: str
    seen: tuple[int, ...]
    last: Sight | None
    drop: Sight | None
    errors: tuple[Sight, ...] = ()

    @property
    def far(self) -> int:
        """The last step whose place it was seen at, -1 for none."""
        return self.seen[-1] if self.seen else -1


def beside(walk: Walk, probe: Probe, cluster: Cluster, every: Sequence[Sight], leg: Leg, began_ns: int) -> Laid:
    """`every`: the sights of a probe and its answer. `began_ns`: when the probe was first seen. Of several branches the one that it took."""
    mine = of_leg(every, leg)
    laid = [lay(walk, branch, probe, cluster, mine, began_ns) for branch in walk.outcomes or {"": walk.verdict}]
    return max(laid, key=lambda each: len(each.seen))


def of_leg(every: Sequence[Sight], leg: Leg) -> list[Sight]:
    """From the first move of this leg on: a look-up before it was made for the other, to check its source."""
    start = next((sight.event.t_ns for sight in every if sight.leg == leg and sight.moves), None)
    errors = ("error",) if leg == "there" else ()
    found = []
    for sight in every:
        if sight.event.kind == ROUTED and sight.leg in (leg, ""):
            if leg == "there" or (start is not None and sight.event.t_ns >= start - ROUTED_BEFORE_NS):
                found.append(sight)
        elif sight.leg == leg or sight.leg in errors:
            found.append(sight)
    return found


ROUTED_BEFORE_NS = 200_000  # the sender's own look-up comes before the packet is anywhere


def lay(walk: Walk, branch: str, probe: Probe, cluster: Cluster, mine: Sequence[Sight], began_ns: int) -> Laid:
    steps = list(walk.way(branch))
    places = [number for number, step in enumerate(steps) if step.hop is not None]
    stages = frames(probe, [hop for step in steps if (hop := step.hop) is not None])
    owner: dict[int, int] = {}  # position in `mine`: step
    seen: list[int] = []
    after = -1
    previous: Stage | None = None
    for number, stage in zip(places, stages, strict=True):
        if previous is not None and where(previous) == where(stage):  # two decisions about one arrival
            seen += [number] if places[places.index(number) - 1] in seen else []
            continue
        previous = stage
        found = at_place(stage, cluster, mine, after)
        if not found:
            continue
        seen.append(number)
        owner |= dict.fromkeys(found, number)
        after = found[0]
    way = {step.node for step in steps} | {""}
    told: dict[int, list[Seen]] = {}
    before_ns: int | None = None
    last: Sight | None = None
    drop: Sight | None = None
    elsewhere: Sight | None = None  # a drop at a device that has no part in the prediction
    devices = {(each.node, name) for each in steps for name in (each.device, *each.decision.params.values())}
    ends = {owner.tables.name for address in (probe.src, probe.dst) for owner in cluster.owners.get(address, ())}
    errors: list[Sight] = []
    step = 0
    # What lies between the nodes frees copies as a matter of course (a switch floods): of its drops only the end of all is told.
    final = max((position for position, sight in enumerate(mine) if sight.moves and sight.node in way - {""}), default=-1)
    hops = dict(zip(places, stages, strict=True))
    bare = {(stage.hop.node, stage.hop.device) for stage in stages if stage.hop.bare}
    masked = False
    for position, sight in enumerate(mine):
        if sight.event.kind == ROUTED:
            place = look_up_step(steps, sight, step)
            if place is not None:
                told.setdefault(place, []).append(of_look_up(sight, began_ns))
            continue
        if sight.node not in way or (sight.node == "" and (sight.moves or position < final)):
            continue
        step = owner.get(position, step)
        if sight.leg == "error" or sight.event.kind == ICMP_SENT:
            errors.append(sight)
        elif sight.moves:
            last, drop, elsewhere = sight, None, None
        elif not normal(sight, ends):
            if not sight.event.device or (sight.node, sight.event.device) in devices:
                drop = sight
            else:
                elsewhere = sight
        differs = differences(hops[step], sight, masked or snat_possible(steps[: step + 1])) if position in owner else ()
        masked = masked or translated(sight, probe)  # told where it happens, and a matter of course from there on
        moment = sight.event.t_ns
        seen_now = of_event(sight, began_ns, None if before_ns is None else (moment - before_ns) / 1000, differs)
        if (sight.node, sight.event.device) in bare:
            seen_now = msgspec.structs.replace(seen_now, size=seen_now.size - ETHERNET)
        told.setdefault(step, []).append(seen_now)
        before_ns = moment
    if any(sight.event.kind == ROUTED for sight in mine):
        for number, each in enumerate(steps[: max(seen, default=-1)]):
            if number not in told and each.decision.id.startswith(("route-", "underlay-")):  # decided, and nothing was looked up
                told[number] = [Seen("cached", each.node, each.device, text=each.row.text.split("\n")[0] if each.row is not None else "")]
    made = [with_sights(each, told.get(number, [])) for number, each in enumerate(steps)]
    if drop is None and (not places or places[-1] not in seen):
        drop = elsewhere
    return Laid(tuple(made), stages, branch, tuple(seen), last, drop, tuple(errors))


def where(stage: Stage) -> tuple[str, str, str, bool]:
    hop = stage.hop
    return hop.node, hop.device, hop.direction, hop.tunnel is not None


def snat_possible(steps: Sequence[Step]) -> bool:
    return any(said.id == "snat-possible" for step in steps for said in step.assumptions)


def translated(sight: Sight, probe: Probe) -> bool:
    """Whether masquerading has given the probe another source: an address, or (with the same address) another port or identifier."""
    network = sight.inner
    if sight.leg != "there" or network is None or sight.packet is None or later_piece(sight.packet):
        return False
    if network.octets("src") != probe.src:
        return True
    layers = [layer for layer in sight.packet.layers if layer.level == network.level and not layer.quoted and layer.name in SOURCES]
    field = layers[-1].get(SOURCES[layers[-1].name]) if layers else None
    return field is not None and probe.sport is not None and field.value != probe.sport


def at_place(stage: Stage, cluster: Cluster, mine: Sequence[Sight], after: int) -> list[int]:
    """Positions of the sights at one place, as many as it should have frames: at the device, else at a port of the bridge that it is."""
    hop = stage.hop
    fits = [
        position
        for position, sight in enumerate(mine)
        if position > after
        and sight.moves
        and sight.leg != "error"
        and sight.node == hop.node
        and sight.direction == hop.direction
        and in_tunnel(sight) == (hop.tunnel is not None)
    ]
    own = [position for position in fits if mine[position].event.device == hop.device]
    ports = [position for position in fits if master(cluster, hop.node, mine[position].event.device) == hop.device]
    return (own or ports)[: max(1, len(stage.frames))]


def in_tunnel(sight: Sight) -> bool:
    """Whether the packet is in a tunnel there."""
    return sight.packet is not None and sight.packet.levels > 1


def master(cluster: Cluster, node: str, device: str) -> str | None:
    tables = cluster.tables.get(node)
    row = tables.devices.get(device) if tables is not None else None
    return row.master if row is not None else None


def normal(sight: Sight, ends: Collection[str]) -> bool:
    """Whether a free is a matter of course. `ends`: where the probe and its answer go; that nobody listens there is no fault of the way."""
    event = sight.event
    if event.reason == "NO_SOCKET" and sight.node in ends and not in_tunnel(sight):
        return True
    return event.reason in NORMAL_REASONS or event.function.partition("+")[0] in NORMAL_FUNCTIONS


# ---- look-ups -----------------------------------------------------------------------------------------------------------


def look_up_step(steps: Sequence[Step], sight: Sight, now: int) -> int | None:
    """The step that a look-up decided: on its node, about its destination; the next one from where the packet is."""
    dst = format_address(sight.event.dst)
    for number, step in enumerate(steps):
        if step.node != sight.node or number < now - 1:
            continue
        if step.question == 4 and step.decision.params.get("host") == dst and sight.leg == "":
            return number
        if sight.leg and step.decision.id.startswith(("route-", "rule-")):
            return number
    return None


def of_look_up(sight: Sight, began_ns: int) -> Seen:
    event = sight.event
    table = TABLE_NAMES.get(event.table, str(event.table))
    if event.code or (len(event.dst) == 16 and event.device == "lo"):  # IPv6 answers with its null entry, on lo
        answer = ERRNO_TABLES.get(event.code, f"error {event.code}") if event.code else "no row"
    else:
        answer = f"{f'via {format_address(event.gateway)} ' if event.gateway else ''}dev {event.device or '?'}"
    tracepoint = "fib6_table_lookup" if len(event.dst) == 16 else TRACEPOINTS[ROUTED]
    return Seen(tracepoint, sight.node, event.device, "", micro(event.t_ns, began_ns), None, 0, f"table {table}: {format_address(event.dst)} {answer}")


# ---- frames -------------------------------------------------------------------------------------------------------------


def of_event(sight: Sight, began_ns: int, hop_us: float | None, differs: tuple[str, ...]) -> Seen:
    event = sight.event
    text = ""
    if event.kind == DROPPED:
        text = f"{event.reason} {event.function}".strip()
    elif event.kind == ICMP_SENT:
        text = f"ICMP type {event.code >> 8} code {event.code & 255}"
    elif sight.packet is not None and is_error(sight.packet):
        text = next((str(layer) for layer in sight.packet.layers if layer.name in ("icmp", "icmpv6")), "")
    if event.burst:
        text = f"{text} in a burst of {event.burst} bytes".strip()
    shown = "packet" if event.kind == CAPTURED else TRACEPOINTS[event.kind]
    return Seen(shown, sight.node, event.device, sight.direction, micro(event.t_ns, began_ns), hop_us, event.size, text, differs)


def micro(t_ns: int, began_ns: int) -> float:
    return (t_ns - began_ns) / 1000


def differences(stage: Stage, sight: Sight, masked: bool) -> tuple[str, ...]:
    """Names of the fields that are known and others on the frame. Fragments are counted and not compared byte by byte.

    `masked`: masquerading may have given it another source, so that addresses, ports and what is computed over them tell nothing.
    """
    if len(stage.frames) != 1 or sight.packet is None or is_error(sight.packet):
        return ()
    frame, event = stage.frames[0], sight.event
    if event.network < ETHERNET and not frame.bare:
        return ()
    data, size = (event.data[event.network :], event.length - event.network) if frame.bare else (event.data, event.length)
    if size != len(frame):
        return () if fragmented(sight) else ("length",)
    if len(data) < len(frame):  # the tracer keeps the first bytes: what a device would still compute is not known from them
        frame = msgspec.structs.replace(frame, data=frame.data[: len(data)], known=frame.known[: len(data)])
        offsets = [at for at in range(len(data)) if (frame.data[at] ^ data[at]) & frame.known[at]]
    else:
        offsets = list(frame.differences(data))
    names = [name for name in named(frame, data, offsets) if not event.burst or name not in OF_THE_BURST]
    if len(data) < len(stage.frames[0]):
        names = [name for name in names if not name.endswith("checksum") or "IPv4" in name]
    if masked:
        names = [name for name in names if not name.endswith(("src", "checksum", "id", "port"))]
    return tuple(names)


def fragmented(sight: Sight) -> bool:
    packet = sight.packet
    return packet is not None and any(
        layer.name == "fragment" or (layer.name == "ipv4" and layer.number("more_fragments") + layer.number("fragment_offset")) for layer in packet.layers
    )


def named(frame: Frame, data: bytes, offsets: Iterable[int]) -> list[str]:
    """The fields of a frame that are others in `data` at these bytes. Fields of a few bits share a byte: those count whose bits differ."""
    packet = decode(frame.data, tunnels=frame.tunnels, bare=frame.bare)
    inside = packet.levels > 1
    names: dict[str, None] = {}
    for at in offsets:
        for layer in packet.layers:
            if layer.offset <= at < layer.offset + layer.length:
                there = [field for field in layer.fields if field.offset <= at < field.end]
                fields = [field for field in there if len(there) == 1 or other_bits(layer.name, field, frame, data)]
                where = "" if not inside else "inner " if layer.level else "outer "
                names |= dict.fromkeys(f"{where}{layer.title} {name}" for name in ([field.name for field in fields] or ["bytes"]))
    return list(names)


def other_bits(layer: str, field: Field, frame: Frame, data: bytes) -> bool:
    values = [int.from_bytes(each[field.offset : field.end], "big") for each in (frame.data, data, frame.known)]
    return bool((values[0] ^ values[1]) & values[2] & MASKS.get((layer, field.name), -1))


def with_sights(step: Step, sights: list[Seen]) -> Step:
    if not sights:
        return step
    first = next((sight.t_us for sight in sights if sight.t_us is not None), None)
    return msgspec.structs.replace(step, t_us=first, seen=tuple(sights))
