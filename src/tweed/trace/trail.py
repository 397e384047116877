"""What is told of one packet on its way: its steps, where each of its branches ends, and the first divergence.

A packet that parts (several next hops, several remotes) is followed along each branch. It ends with one of the verdicts of
result.VERDICTS; the first end that is no delivery and not just the end of the tables is the divergence.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tweed.trace.frames import TTL, Hop
from tweed.trace.result import Asked, Divergence, Fix, Loser, Quote, Said, Step, Verdict
from tweed.trace.tables import Tables

MOST_BRANCHES = 16
NOTHING: tuple[Said, ...] = ()


class Packet(msgspec.Struct, frozen=True, gc=False):
    """Where the packet is. `device`: what it came in by, "" for one that the node makes itself. The MACs are of the container's own frame.

    `size`: of its largest fragment in bytes, 0 while it is whole.
    `masked`: a firewall may have replaced its source (masquerading), so that what depends on the source is not known any more.
    """

    at: Tables
    device: str = ""
    ttl: int = TTL
    dst_mac: bytes | None = None
    src_mac: bytes | None = None
    branch: str = ""
    seen: tuple[tuple[str, str], ...] = ()
    masked: bool = False
    size: int = 0


class Trail:
    """`steps` and `outcomes` are the walk's, `divergence` its first."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.outcomes: dict[str, Verdict] = {}
        self.divergence: Divergence | None = None

    def step(
        self,
        packet: Packet,
        device: str,
        decision: str,
        params: dict[str, str],
        row: Quote | None = None,
        *,
        losers: tuple[Loser, ...] = (),
        assumptions: Sequence[Said] = NOTHING,
        unknowns: Sequence[Said] = NOTHING,
        hop: Hop | None = None,
        question: int = 0,
        asked: Asked | None = None,
    ) -> None:
        said = Said(decision, params)
        self.steps.append(Step(packet.at.name, device, said, row, losers, tuple(assumptions), tuple(unknowns), hop, packet.branch, question, asked=asked))

    def end(self, packet: Packet, verdict: Verdict) -> None:
        """A branch is over."""
        self.outcomes[packet.branch] = verdict

    def fail(
        self,
        packet: Packet,
        device: str,
        verdict: Verdict,
        cause: str,
        params: dict[str, str],
        row: Quote | None = None,
        *,
        evidence: tuple[Quote, ...] = (),
        fix: tuple[Fix, ...] = (),
        losers: tuple[Loser, ...] = (),
        assumptions: Sequence[Said] = NOTHING,
        asked: Asked | None = None,
    ) -> None:
        """It goes no further, for a cause."""
        self.step(packet, device, cause, params, row, losers=losers, assumptions=assumptions, asked=asked)
        self.end(packet, verdict)
        if self.divergence is None:
            rows = (*((row,) if row is not None else ()), *evidence)
            self.divergence = Divergence(packet.at.name, device, Said(cause, params), tuple(q for q in rows if q.text), fix)

    def parted(self, packet: Packet, count: int) -> list[Packet]:
        """A packet for each of several ways. More ways than anyone reads are left out, all but the first few."""
        if count == 1:
            return [packet]
        prefix = f"{packet.branch}." if packet.branch else ""
        room = max(1, MOST_BRANCHES - len(self.outcomes))
        return [msgspec.structs.replace(packet, branch=f"{prefix}{number}") for number in range(1, min(count, room) + 1)]

    def note_unknown(self, said: Said) -> None:
        """Add to the step that was told last."""
        last = self.steps[-1]
        if said not in last.unknowns:
            self.steps[-1] = msgspec.structs.replace(last, unknowns=(*last.unknowns, said))

    def assume_last(self, said: Said) -> None:
        """Add to the step that was told last."""
        last = self.steps[-1]
        if said not in last.assumptions:
            self.steps[-1] = msgspec.structs.replace(last, assumptions=(*last.assumptions, said))
