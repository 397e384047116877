"""What a walk found, as values: ids and parameters, no sentences (those are in one table, in every language).

    Walk    verdict, steps, first divergence, findings
    Step    one decision about the packet at one device: the row that won, the rows that lost and why, what is assumed or unknown
    Seen    what the kernel was seen to do with a real packet, at the step where it did it

WORDS lists every id that a walk can hold with the names of its parameters, which are all text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from tweed.addr import format_address as address
from tweed.trace.frames import Hop, Probe
from tweed.trace.snapshot import Unread

Verdict = Literal["delivered", "dropped", "lost", "detour", "unknown"]
Tier = Literal["bpf", "packet", "tables", "text"]
# From good to bad: with several branches the worst counts.
VERDICTS: tuple[Verdict, ...] = ("delivered", "detour", "unknown", "lost", "dropped")
EXIT_CODES = {"delivered": 0, "detour": 1, "unknown": 3, "lost": 1, "dropped": 1}

# What was decided at a device. Those of CAUSES end the walk.
DECISIONS: dict[str, tuple[str, ...]] = {
    # where it starts
    "source-container": ("address", "device"),
    "source-host": ("address",),
    "source-namespace": ("address", "device"),
    # ip rule, ip route. `table` is the one that answered; `gateway` is the next hop
    "route-via": ("dst", "device", "gateway", "table"),
    "route-connected": ("dst", "device", "table"),
    "route-local": ("dst", "table"),
    # ip neigh
    "neighbour": ("address", "device", "mac", "state"),
    "neighbour-asked": ("address", "device"),
    "neighbour-unknown": ("address", "device"),
    # vxlan
    "fdb": ("mac", "device", "host"),
    "fdb-default": ("mac", "device", "host"),
    "fdb-unknown": ("mac", "device"),
    "encapsulated": ("device", "host", "vni", "port"),
    "encapsulated-udp": ("device", "host", "port"),
    "underlay-via": ("host", "device", "gateway", "table"),
    "underlay-connected": ("host", "device", "table"),
    # the wire. `port` known; its sibling: nothing says which, `default` is flannel's
    "leaves-vxlan": ("device", "host", "port"),
    "leaves-vxlan-port-unknown": ("device", "host", "default"),
    "leaves-plain": ("device", "host"),
    "arrives-vxlan": ("device", "port", "vni"),
    "arrives-udp": ("device", "port"),
    "arrives-plain": ("device",),
    "decapsulated": ("device", "mac"),
    # bridges and containers
    "enters-bridge": ("bridge", "port"),
    "enters-bridge-port-unknown": ("bridge",),
    "bridge-port": ("mac", "bridge", "port"),
    "bridge-flood": ("mac", "bridge"),
    "bridge-unknown": ("mac", "bridge"),
    "into-container": ("address", "device"),
    "delivered-host": ("address", "device"),
    "delivered-container": ("address",),
    # where the tables end
    "ends-container-unknown": ("address", "device"),
    "ends-device-kind": ("device", "kind"),
    "ends-no-routes": ("dst",),
    "ends-remote-unknown": ("address", "device"),
    "ends-source-elsewhere": ("address",),
    "ends-nexthop-object": ("id",),
    "ends-encap": ("encap", "device"),
    "ends-multicast": ("group", "device"),
}

# Why it goes no further, or not where it should: `cause` of the first divergence, and a step's decision.
CAUSES: dict[str, tuple[str, ...]] = {
    "route-missing": ("dst",),
    "route-blackhole": ("dst", "prefix"),
    "route-unreachable": ("dst", "prefix"),
    "route-prohibit": ("dst", "prefix"),
    "route-dead": ("dst", "device"),
    "route-wrong-node": ("dst", "prefix", "host"),
    "routing-loop": ("dst", "node"),
    "rule-drops": ("dst", "action"),
    "device-down": ("device",),
    "device-missing": ("device",),
    "neighbour-missing": ("address", "device"),
    "neighbour-failed": ("address", "device", "state"),
    "fdb-missing": ("mac", "device"),
    "fdb-wrong-host": ("mac", "host", "right"),
    "fdb-own-host": ("mac", "host"),
    "vtep-mac-stale": ("mac", "right", "device"),
    "vtep-mac-duplicate": ("mac", "device"),
    "vni-mismatch": ("vni", "right", "device"),
    "port-mismatch": ("port", "right", "device"),
    "port-closed": ("port", "host"),
    "vtep-missing": ("host",),
    "local-not-ours": ("local", "device"),
    "encapsulation-loop": ("host", "device"),
    "underlay-neighbour-wrong": ("address", "mac", "right"),
    "underlay-source-dropped": ("address", "device"),
    "mtu-exceeded": ("size", "mtu", "device"),
    "rp-filter": ("src", "device", "other"),
    "forwarding-off": ("device", "key"),
    "bridge-port-blocked": ("port", "state"),
    "bridge-port-missing": ("bridge", "address"),
    "bridge-fdb-wrong": ("mac", "port", "right"),
    "bridge-port-isolated": ("port", "other"),
    "bridge-vlan": ("port", "vlan"),
    "ttl-exceeded": ("dst",),
    "detour": ("node",),
    # tables against leases
    "rule-diverts": ("dst", "table", "priority"),
    "mtu-too-large": ("device", "mtu", "room"),
    "local-wrong": ("local", "right", "device"),
    "vtep-mac-wrong": ("mac", "right", "device"),
    "underlay-route-wrong": ("host", "way", "right"),
    "route-throw": ("dst", "prefix"),
    "route-leftover": ("dst", "way"),
    "gateway-wrong": ("gateway", "right", "device"),
    "address-missing": ("address", "device"),
    "address-elsewhere": ("address", "device"),
    "address-twice": ("address", "other", "device"),
    "vtep-second": ("device", "other", "port"),
    # what only a real packet shows. `function`: of the kernel, where it dropped the packet; `hook`: whose rules did
    "firewall-drops": ("device", "hook"),
    "kernel-drops": ("device", "reason", "function"),
    "vanished": ("device",),
    "no-answer": ("address",),
    "source-replaced": ("src", "seen", "device"),
    "bytes-differ": ("device", "fields"),
    "evaluation-differs": ("question", "ours", "kernel"),
}

# What a tier of observation cannot see.
BLIND: dict[str, tuple[str, ...]] = {
    "drops": (),
    "decisions": (),
    "times-inside": (),
    "everything-sent": (),
    "other-machines": ("nodes",),
    "clock": ("machine", "offset", "uncertainty"),
    "clock-unknown": ("machine",),
}

# Why a row that also fits did not decide.
LOSSES: dict[str, tuple[str, ...]] = {
    "shorter-prefix": ("length", "winner"),
    "higher-metric": ("metric", "winner"),
    "later-row": (),
    "later-rule": ("table",),
    "dead": ("device",),
    "other-device": ("device",),
    "suppressed": ("length",),
    "unused-mac": ("host",),
    "other-branch": (),
    "other-vlan": ("vlan",),
    "other-table": (),
}

# What a step rests on beyond rows (assumptions), or what no table says (unknowns).
ASSUMPTIONS: dict[str, tuple[str, ...]] = {
    "default-rules": (),
    "local-from-addresses": (),
    "container-sends-to-gateway": ("device",),
    "container-same-subnet": ("device",),
    "forwarding-on": ("device",),
    "device-is-vxlan": ("device",),
    "device-is-bridge": ("device",),
    "table-may-be-excerpt": ("table",),
    "neighbour-device": ("address", "device"),
    "neighbour-will-confirm": ("state",),
    "neighbour-will-ask": ("address",),
    "bridge-vlans-ignored": ("bridge",),
    "nft-not-evaluated": (),
    "rule-not-evaluated": ("selector",),
    "only-vtep": ("device",),
    "branch": ("number", "count", "weight"),
    "copy": ("number", "count"),
    "fragmented": ("size", "mtu", "device"),
    "snat-possible": ("address",),
    "container-end-unknown": ("address",),
    "address-from-route": ("address", "device"),
    "udp-remote-from-tables": ("address",),
}
UNKNOWNS: dict[str, tuple[str, ...]] = {
    "port": ("device", "default"),
    "vni": ("device",),
    "vtep-mac": ("device",),
    "mtu": ("device",),
    "underlay-neighbour": ("address", "device"),
    "source-address": ("device",),
    "source-mac": ("device",),
    "rp-filter": ("device",),
    "container-mac": ("address",),
    "bridge-port": ("address", "bridge"),
    "peer-tables": ("host",),
}

# About the tables themselves, whatever walks.
FINDINGS: dict[str, tuple[str, ...]] = {
    "fdb-stale": ("mac", "device", "host"),
    "fdb-show-without-dev": ("command", "device", "devices"),
    "prose-names-other-bridge": ("named", "bridge"),
    "bridge-outside-overlay": ("bridge", "prefix", "ports"),
    "table-repeated": ("command", "first"),
    "vtep-mac-unknown": ("device", "command"),
    "vni-unknown": ("device", "command"),
    "port-unknown": ("device", "command"),
    "mtu-unknown": ("devices", "command"),
    "underlay-neighbours-unknown": ("devices", "command"),
    "neighbour-unused": ("address", "device"),
    "neighbour-without-fdb": ("address", "mac", "device"),
    "gateway-without-neighbour": ("address", "device"),
    "vtep-mac-differs": ("mac", "right", "host"),
    "vtep-mac-duplicate": ("mac", "nodes"),
    "vni-differs": ("vnis",),
    "port-differs": ("ports",),
    "vtep-second": ("device", "other", "port"),
    "mtu-too-large": ("device", "mtu", "underlay", "room"),
    "device-down": ("device",),
    "forwarding-off": ("key",),
    "route-shadowed": ("winner",),
    "subnet-twice": ("prefix", "nodes"),
    "fdb-two-hosts": ("mac", "device", "hosts"),
    "lease-row-missing": ("subnet",),
    "nft-evidence": ("lines",),
    "evaluation-differs": ("question", "ours", "kernel"),
}

WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "decision": DECISIONS,
    "cause": CAUSES,
    "loss": LOSSES,
    "assumption": ASSUMPTIONS,
    "unknown": UNKNOWNS,
    "finding": FINDINGS,
    "blind": BLIND,
}


class Said(msgspec.Struct, frozen=True, gc=False):
    """An id of WORDS and its parameters: a sentence without a language."""

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
    Of a route: source, device that it came in by or must leave by, and what rules may ask beyond (as in tables.Flow).
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
    """A command as typed on a node."""

    node: str
    command: str


class Divergence(msgspec.Struct, frozen=True):
    """Where the packet first goes another way than it should. `cause` is an id of CAUSES.

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


Say = Callable[[str, Said], str]  # kind in WORDS and what is said, as a sentence


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
            "fix": [{"node": fix.node, "command": fix.command} for fix in found.fix],
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


def kind_of(decision: str) -> str:
    """In which table of WORDS a step's decision is."""
    return "cause" if decision in CAUSES else "decision"
