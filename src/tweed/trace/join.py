"""Recordings of several machines as one walk, on the sender's clock. Pure.

join(recordings) -> Joined        tables, events and clocks put together
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tweed.errors import UsageError
from tweed.trace import snapshot as s
from tweed.trace.clocks import Clock, Crossing, compare
from tweed.trace.events import Event
from tweed.trace.frames import Probe
from tweed.trace.recording import Heading, Recording
from tweed.trace.result import Seen, Step, Walk
from tweed.trace.sights import NETWORKS, Sight, sights


class Joined(msgspec.Struct, frozen=True):
    """`sights`: all of them, on the sender's clock."""

    snapshot: s.Snapshot
    sender: Heading
    sights: tuple[Sight, ...]
    clocks: dict[str, Clock]


def join(recordings: Sequence[Recording]) -> Joined:
    """Raises UsageError when they are not of one probe, or of one machine twice, or nobody sent it."""
    headings = [each.heading for each in recordings]
    names = [heading.machine for heading in headings]
    if len(set(names)) != len(names):
        raise UsageError(f"--join: two files are of machine {next(name for name in names if names.count(name) > 1)}")
    senders = [heading for heading in headings if heading.sent]
    if len(senders) != 1:
        raise UsageError(f"--join: {'none of the files is' if not senders else 'several files are'} of the machine that sent the packet, which has SRC")
    sender = senders[0]
    if any(identity(heading.probe) != identity(sender.probe) for heading in headings):
        raise UsageError("--join: the files are of different packets: SRC, DST and the packet's options must be the same on every machine")
    # The sender's come first: of equal times, that a clock bounded on one side only makes, the one that left counts as earlier.
    seen = {each.heading.machine: seen_by(each) for each in sorted(recordings, key=lambda each: not each.heading.sent)}
    clocks = compare(sender.machine, crossings(seen))
    moved = [sight for machine, mine in seen.items() for sight in on_clock(mine, clocks.get(machine))]
    snapshots = [each.snapshot for each in recordings]
    nodes = {node.name: node for snapshot in snapshots for node in snapshot.nodes}
    leases = next((snapshot.leases for snapshot in snapshots if snapshot.leases), ())
    return Joined(s.Snapshot(nodes=tuple(nodes.values()), leases=leases), sender, tuple(sorted(moved, key=lambda sight: sight.event.t_ns)), clocks)


def identity(probe: Probe) -> tuple[object, ...]:
    return probe.src, probe.dst, probe.proto, probe.size, probe.payload, probe.sport, probe.dport


def seen_by(recording: Recording) -> tuple[Sight, ...]:
    """What a machine saw at its own places."""
    heading = recording.heading
    return tuple(sight for sight in sights(recording.events, heading.places, heading.probe, heading.tunnels) if sight.node)


def crossings(seen: Mapping[str, Sequence[Sight]]) -> list[Crossing]:
    """Frames that left one machine and are the next thing that another saw: the last sight of a leg on the one, the first on the other."""
    found = []
    for leg in ("there", "back"):
        ends = {machine: [sight for sight in mine if sight.leg == leg and sight.moves] for machine, mine in seen.items()}
        leaving = {machine: moves[-1] for machine, moves in ends.items() if moves and moves[-1].direction == "out"}
        entering = {machine: moves[0] for machine, moves in ends.items() if moves and moves[0].direction == "in"}
        for out, left in leaving.items():
            for into, entered in entering.items():
                if out != into and same_frame(left, entered):
                    found.append(Crossing(out, into, left.event.t_ns, entered.event.t_ns))
    return found


def same_frame(left: Sight, entered: Sight) -> bool:
    """Whether it is the same packet on both sides of the wire, by the addresses of its outermost IP header."""
    return outer(left) == outer(entered)


def outer(sight: Sight) -> tuple[bytes, ...]:
    packet = sight.packet
    network = next((layer for layer in packet.layers if layer.name in NETWORKS), None) if packet is not None else None
    return (network.octets("src"), network.octets("dst")) if network is not None else ()


def on_clock(mine: Sequence[Sight], clock: Clock | None) -> list[Sight]:
    """The sights with the sender's time. A machine that nothing binds to the sender keeps its own."""
    offset = clock.offset_ns if clock is not None else 0
    return [msgspec.structs.replace(sight, event=moved(sight.event, offset)) for sight in mine]


def moved(event: Event, offset_ns: int) -> Event:
    return msgspec.structs.replace(event, t_ns=event.t_ns - offset_ns)


def coarse(walk: Walk, clocks: Mapping[str, Clock], sender: str) -> Walk:
    """No time between machines finer than it is known: None where one side only is bounded. Times within a machine stay."""
    steps = []
    before = sender
    for step in walk.steps:
        told = []
        for sight in step.seen:
            machine = sight.node.partition("/")[0]
            told.append(coarser(sight, clocks, before, machine, sender))
            before = machine
        steps.append(with_seen(step, tuple(told)))
    others = {name: coarse(other, clocks, sender) for name in ("reply", "whole") if (other := getattr(walk, name)) is not None}
    return msgspec.structs.replace(walk, steps=tuple(steps), **others)


def coarser(sight: Seen, clocks: Mapping[str, Clock], before: str, machine: str, sender: str) -> Seen:
    t_us = sight.t_us if machine == sender else rounded(sight.t_us, clocks.get(machine))
    hop_us = sight.hop_us if machine == before else rounded(sight.hop_us, worse(clocks.get(before), clocks.get(machine)))
    return msgspec.structs.replace(sight, t_us=t_us, hop_us=hop_us)


def worse(one: Clock | None, other: Clock | None) -> Clock | None:
    """The uncertainty of a time between two machines is the sum of both."""
    if one is None or other is None or one.uncertainty_ns is None or other.uncertainty_ns is None:
        return None
    return Clock(other.machine, 0, one.uncertainty_ns + other.uncertainty_ns)


def rounded(time_us: float | None, clock: Clock | None) -> float | None:
    """To a multiple of the uncertainty."""
    if time_us is None or clock is None or clock.uncertainty_ns is None:
        return None
    unit = max(clock.uncertainty_ns, 1) / 1000
    return round(time_us / unit) * unit


def with_seen(step: Step, told: tuple[Seen, ...]) -> Step:
    return msgspec.structs.replace(step, seen=told, t_us=next((sight.t_us for sight in told if sight.t_us is not None), None))
