"""What a walk found, as values: ids and parameters, no sentences (those are in messages.py).

    Walk    verdict, steps, first divergence, findings
    Step    one decision about the packet at one device: the row that won, the rows that lost and why, what is assumed or unknown
    Seen    what the kernel was seen to do with a real packet, at the step where it did it

Every id, with the names of its parameters, is in vocabulary.WORDS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from tweed.addr import format_address as address
from tweed.trace.frames import Hop, Probe
from tweed.trace.snapshot import Unread
from tweed.trace.vocabulary import kind_of

Verdict = Literal["delivered", "dropped", "lost", "elsewhere", "detour", "unknown"]
Tier = Literal["bpf", "packet", "tables", "text"]
# From good to bad: with several branches the worst counts.
VERDICTS: tuple[Verdict, ...] = ("delivered", "detour", "unknown", "elsewhere", "lost", "dropped")
NOT_ARRIVED: tuple[Verdict, ...] = ("elsewhere", "lost", "dropped")
EXIT_CODES = {"delivered": 0, "detour": 1, "unknown": 3, "elsewhere": 1, "lost": 1, "dropped": 1}


class Said(msgspec.Struct, frozen=True, gc=False):
    """An id of vocabulary.WORDS and its parameters, which are all text: a sentence without a language."""

    id: str
    params: dict[str, str] = {}


class Quote(msgspec.Struct, frozen=True, gc=False):
    """A row as it was read: "FILE:LINE" and its words."""

    source: str
    text: str


class Loser(msgspec.Struct, frozen=True, gc=False):
    """A row that fits too, and why it did not decide."""

    row: Quote
    why: Said


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What happened to a real packet at a place.

    `event`: the kernel's tracepoint; "packet" of a packet socket; "cached" where the kernel had the answer at hand and looked nothing up.
    `t_us`: since the probe was first seen, None for what is no event. `hop_us`: since the sight before. `size` of the frame in bytes, 0 where
    the event has none. `text`: the kernel's own words: a drop's reason and function, a look-up's answer, an error's type. `differs`: fields
    that are known beforehand and are others on the frame.
    """

    event: str
    node: str
    device: str
    direction: str = ""
    t_us: float | None = None
    hop_us: float | None = None
    size: int = 0
    text: str = ""
    differs: tuple[str, ...] = ()


class Asked(msgspec.Struct, frozen=True, gc=False):
    """The question that a step's row answers, so that a kernel can be asked the same.

    `address`: of the destination or neighbour, in an fdb the MAC. `device`: of the neighbour or the fdb; `master`: it is a bridge, and the fdb its.
    Of a route: source, device that it came in by or must leave by, and what rules may ask beyond (as in rules.Flow).
    """

    table: Literal["route", "neighbour", "fdb"]
    address: bytes
    device: str = ""
    master: bool = False
    src: bytes | None = None
    iif: str | None = None
    oif: str | None = None
    proto: int | None = None
    sport: int | None = None
    dport: int | None = None


class Step(msgspec.Struct, frozen=True, gc=False):
    """One decision about the packet at one device.

    `row` None: no row decided. `hop`: the packet at this place, where it is a place (frames.frames makes its bytes), else None.
    `branch`: "" for the only way, else "1", "2" ... and "1.2" for a way that parts again: steps of "" come before all, and each branch goes on by itself.
    `question`: which of the four steps of an overlay this answers (1 route, 2 neighbour, 3 fdb, 4 underlay), 0 none.
    `kernel`: what the kernel said when it was `asked` for the row, "" when it was not.
    """

    node: str
    device: str
    decision: Said
    row: Quote | None = None
    losers: tuple[Loser, ...] = ()
    assumptions: tuple[Said, ...] = ()
    unknowns: tuple[Said, ...] = ()
    hop: Hop | None = None
    branch: str = ""
    question: int = 0
    t_us: float | None = None
    seen: tuple[Seen, ...] = ()
    asked: Asked | None = None
    kernel: Literal["", "agrees", "differs"] = ""


class Fix(msgspec.Struct, frozen=True):
    """A command as typed on a node, or in the network namespace of a container.

    `netns`: the file of that namespace on its node, where it is known and is not the node's own.
    """

    node: str
    command: str
    netns: str = ""

    @property
    def line(self) -> str:
        """With the prompt of the machine that it is typed on."""
        if not self.netns:
            return f"[root@{self.node} ~]# {self.command}"
        return f"[root@{self.node.rpartition('/')[0]} ~]# nsenter --net={self.netns} {self.command}"


class Divergence(msgspec.Struct, frozen=True):
    """Where the packet first goes another way than it should. `cause` is an id of vocabulary.CAUSES.

    Node and device are those of the row, device or rule that is wrong, which is where `fix` mends it: the packet may get further.
    """

    node: str
    device: str
    cause: Said
    evidence: tuple[Quote, ...] = ()
    fix: tuple[Fix, ...] = ()


class Finding(msgspec.Struct, frozen=True):
    """Something about a node's tables. `rows`: what shows it, the first is its source."""

    node: str
    said: Said
    rows: tuple[Quote, ...] = ()


class Walk(msgspec.Struct, frozen=True):
    """The whole answer. `outcomes`: the verdict of each branch by its name.

    Of a real packet: `reply` is the answer's way, `whole` the way of a second one that fills the sender's MTU and may not be cut. The
    verdict and the first divergence are then those of all three, the first that fails. `blind`: what was not to be seen. `probe`: as it was sent.
    """

    src: bytes
    dst: bytes
    verdict: Verdict
    tier: Tier
    steps: tuple[Step, ...]
    first_divergence: Divergence | None = None
    findings: tuple[Finding, ...] = ()
    outcomes: dict[str, Verdict] = {}
    reply: Walk | None = None
    whole: Walk | None = None
    blind: tuple[Said, ...] = ()
    probe: Probe | None = None

    @property
    def exit_code(self) -> int:
        """0 delivered, 1 a problem, 3 the tables do not say enough."""
        return EXIT_CODES[self.verdict]

    def way(self, branch: str | None = None) -> tuple[Step, ...]:
        """The steps of one branch from the start to its end; None: of the first."""
        name = branch if branch is not None else next(iter(self.outcomes), "")
        return tuple(step for step in self.steps if step.branch == "" or name == step.branch or name.startswith(step.branch + "."))

    def along(self, branch: str) -> Walk:
        """This branch alone, as a walk."""
        verdict = self.outcomes.get(branch, self.verdict)
        return msgspec.structs.replace(self, steps=self.way(branch), outcomes={branch: verdict}, verdict=verdict)


Say = Callable[[str, Said], str]  # kind in vocabulary.WORDS and what is said, as a sentence


def as_json(walk: Walk, say: Say, unread: tuple[Unread, ...] = ()) -> dict[str, Any]:
    """The document of `tweed walk --json` (docs/walk.md). `say` makes sentences; `unread`: lines of the input that could not be read."""
    found = walk.first_divergence
    return {
        "src": address(walk.src),
        "dst": address(walk.dst),
        "verdict": walk.verdict,
        "tier": walk.tier,
        "outcomes": walk.outcomes,
        "steps": [step_json(step, say) for step in walk.steps],
        "first_divergence": None
        if found is None
        else {
            "node": found.node,
            "device": found.device,
            "cause": found.cause.id,
            "params": found.cause.params,
            "text": say("cause", found.cause),
            "evidence": [f"{quote.source}: {quote.text}" for quote in found.evidence],
            "fix": [{"node": fix.node, "command": fix.command} | ({"netns": fix.netns} if fix.netns else {}) for fix in found.fix],
        },
        "findings": [
            {
                "id": finding.said.id,
                "node": finding.node,
                "params": finding.said.params,
                "text": say("finding", finding.said),
                "source": finding.rows[0].source if finding.rows else None,
                "rows": [{"source": row.source, "row": row.text} for row in finding.rows],
            }
            for finding in walk.findings
        ],
        "unread": [{"source": line.source, "row": line.text, "why": line.why} for line in unread],
        "reply": None if walk.reply is None else as_json(walk.reply, say),
        "whole": None if walk.whole is None else as_json(walk.whole, say),
        "blind": [{"id": said.id, "params": said.params, "text": say("blind", said)} for said in walk.blind],
    }


def step_json(step: Step, say: Say) -> dict[str, Any]:
    def sentences(kind: str, those: tuple[Said, ...]) -> list[dict[str, Any]]:
        return [{"id": said.id, "params": said.params, "text": say(kind, said)} for said in those]

    return {
        "node": step.node,
        "device": step.device,
        "decision": step.decision.id,
        "params": step.decision.params,
        "text": say(kind_of(step.decision.id), step.decision),
        "row": step.row.text if step.row else None,
        "source": step.row.source if step.row else None,
        "losers": [
            {"row": loser.row.text, "source": loser.row.source, "why": loser.why.id, "params": loser.why.params, "text": say("loss", loser.why)}
            for loser in step.losers
        ],
        "assumptions": sentences("assumption", step.assumptions),
        "unknowns": sentences("unknown", step.unknowns),
        "branch": step.branch,
        "question": step.question or None,
        "t_us": step.t_us,
        "kernel": step.kernel or None,
        "seen": [msgspec.structs.asdict(seen) for seen in step.seen],
    }
