"""Clocks of machines, compared by a probe's own time stamps. Pure.

A frame that leaves A at its time a and enters B at its time b says offset(B) - offset(A) <= b - a, since no frame travels backwards in time.
Every crossing bounds two clocks so, in its own direction; what follows from all of them together is a shortest path (difference constraints).
With one crossing each way the middle is the classic ((t2 - t1) + (t3 - t4)) / 2, and half of what lies between is how far it may be off.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Crossing(msgspec.Struct, frozen=True):
    """A frame left machine `out` and entered machine `into`, each by its own clock, in nanoseconds."""

    out: str
    into: str
    left_ns: int
    entered_ns: int


class Clock(msgspec.Struct, frozen=True):
    """How far a machine's clock is ahead of the sender's. `uncertainty_ns` None: nothing came back, so only one side is bounded."""

    machine: str
    offset_ns: int
    uncertainty_ns: int | None


def compare(sender: str, crossings: Iterable[Crossing]) -> dict[str, Clock]:
    """The clock of every machine that the crossings reach from the sender's, whose own is exact."""
    limits: dict[tuple[str, str], int] = {}  # offset(second) - offset(first) is at most this
    for each in crossings:
        key = (each.out, each.into)
        limits[key] = min(limits.get(key, each.entered_ns - each.left_ns), each.entered_ns - each.left_ns)
    machines = {sender} | {machine for pair in limits for machine in pair}
    most = bounds(sender, limits, len(machines))
    least = bounds(sender, {(into, out): limit for (out, into), limit in limits.items()}, len(machines))
    found = {sender: Clock(sender, 0, 0)}
    for machine in sorted(machines - {sender}):
        high, low = most.get(machine), None if machine not in least else -least[machine]
        if high is not None and low is not None:
            found[machine] = Clock(machine, (high + low) // 2, (high - low + 1) // 2)
        elif (known := high if high is not None else low) is not None:
            found[machine] = Clock(machine, known, None)
    return found


def bounds(start: str, limits: dict[tuple[str, str], int], rounds: int) -> dict[str, int]:
    """Shortest paths (Bellman and Ford): the tightest upper bound of each offset. Bounds that contradict each other stop after `rounds`."""
    found = {start: 0}
    for _ in range(rounds):
        for (first, second), limit in limits.items():
            if first in found and found[first] + limit < found.get(second, found[first] + limit + 1):
                found[second] = found[first] + limit
    return found
