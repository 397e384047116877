"""Recordings of a lab's nodes (`tweed walk --record`), joined and judged."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import msgspec

from tweed.trace.cluster import Cluster
from tweed.trace.events import Event
from tweed.trace.join import join
from tweed.trace.judge import Outcome, judge
from tweed.trace.live import first_seen, predict
from tweed.trace.probe import Shot, reply_to
from tweed.trace.recording import Recording, decode
from tweed.trace.result import Tier, Walk

DIRECTORY = Path(__file__).parent / "recordings"


@cache
def recordings(name: str) -> tuple[Recording, ...]:
    return tuple(decode(gzip.decompress(path.read_bytes()), path.name) for path in sorted((DIRECTORY / name).iterdir()))


def judged(those: Sequence[Recording], tier: Tier = "bpf") -> Walk:
    together = join(those)
    cluster = Cluster(together.snapshot)
    shot = Shot(together.sender.probe, b"")
    outcome = Outcome(together.sights, first_seen(together.sights), together.sender.refused)
    return judge(predict(cluster, shot, tier), shot.probe, reply_to(shot), cluster, outcome, tier)


def changed(those: Sequence[Recording], change: Callable[[Event], Event | None]) -> list[Recording]:
    """The recordings with other events: `change(event)` is the event or None."""
    return [msgspec.structs.replace(each, events=tuple(new for event in each.events if (new := change(event)) is not None)) for each in those]
