"""What a packet filter does to the overlay's packets: one walk over chains, for nftables and iptables alike.

`plan.nft_chains` and `plan.iptables_chains` read a firewall and say of each rule how much of the traffic it takes
(`Share`) and what it then does; `walk` follows jumps and verdicts and returns every place where something is dropped.
Nothing here guesses: an expression that is not understood takes `PERHAPS` all, and what follows from it is uncertain.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Literal

import msgspec

from tweed.addr import Prefix


class Path(msgspec.Struct, frozen=True):
    """The traffic that is asked about: the first packet (conntrack state new) of any flow from `source` to `destination`,
    any protocol and port, forwarded from device `iif` to device `oif`."""

    iif: str
    oif: str
    source: Prefix
    destination: Prefix

    @property
    def family(self) -> int:
        return self.source.family


class Share(IntEnum):
    """How much of the traffic a match takes. All matches of a rule must hold, so a rule's share is their least."""

    NOTHING = 0
    SOME = 1  # a part and never all: one protocol, one port
    PERHAPS = 2  # not known: an expression we cannot read, or a part of the addresses
    ALL = 3

    def inverted(self) -> Share:
        return {Share.NOTHING: Share.ALL, Share.ALL: Share.NOTHING}.get(self, self)


Verdict = Literal["accept", "drop", "return", "jump", "goto", "continue"]


class Outcome(msgspec.Struct, frozen=True):
    """What happens to a share. `target`: the chain of a jump or goto."""

    share: Share
    verdict: Verdict
    target: str = ""


class Rule(msgspec.Struct, frozen=True):
    """`name` as its own tool knows it. More than one outcome: a verdict map, whose elements exclude each other."""

    name: str
    outcomes: tuple[Outcome, ...]


class Chain(msgspec.Struct, frozen=True):
    """`drops`: a base chain whose policy is drop."""

    rules: tuple[Rule, ...]
    drops: bool = False


class Drop(msgspec.Struct, frozen=True):
    """A place where traffic ends: `rule` is None for the policy of `chain`.

    `share` ALL: everything that gets there is dropped. `certain`: and some traffic gets there for sure.
    """

    chain: str
    rule: str | None
    share: Share
    certain: bool


class _Walked(msgspec.Struct, frozen=True):
    drops: tuple[Drop, ...] = ()
    out: Share = Share.NOTHING  # how much comes back out, to the rule behind the jump
    doubt: bool = False  # perhaps all of it has been accepted


def walk(chains: Mapping[str, Chain], base: str) -> tuple[Drop, ...]:
    """Every drop that the traffic may meet in base chain `base`, once, in the order it meets them. A chain that is not there is empty.

    Ends where all traffic has been accepted or dropped. The answer holds for this base chain only: an accept ends the
    chain it stands in, and the packet still has to pass every other base chain at the same hook.
    """
    seen: dict[tuple[str, Share], _Walked] = {}

    def follow(name: str, entering: Share) -> _Walked:
        """`entering`: how much of all traffic comes in here. The kernel allows no loops and 16 levels of jumps."""
        if (name, entering) not in seen:
            seen[name, entering] = _Walked()
            seen[name, entering] = through(chains.get(name, Chain(())), name, entering)
        return seen[name, entering]

    def through(chain: Chain, name: str, here: Share) -> _Walked:
        drops: dict[Drop, None] = {}  # each once: by 16 levels of jumps there can be more ways to a rule than fit into memory
        out, doubt = Share.NOTHING, False
        for rule in chain.rules:
            for outcome in rule.outcomes:
                share = min(here, outcome.share)
                if share is Share.NOTHING:
                    continue
                rest = Share.NOTHING  # how much of what the rule took comes to the next one
                match outcome.verdict:
                    case "drop":
                        drops[Drop(name, rule.name, share, share is Share.ALL and not doubt)] = None
                    case "accept":
                        doubt = doubt or share is Share.PERHAPS
                    case "return":
                        doubt = doubt or share is Share.PERHAPS
                        out = max(out, share)
                    case "jump" | "goto" as verdict:
                        inner = follow(outcome.target, share)
                        drops |= dict.fromkeys(msgspec.structs.replace(d, certain=d.certain and not doubt) for d in inner.drops)
                        doubt = doubt or inner.doubt or (verdict == "goto" and share is Share.PERHAPS)
                        if verdict == "jump":
                            rest = inner.out
                        else:
                            out = max(out, inner.out)
                    case "continue":
                        rest = share
                if outcome.share is Share.ALL:
                    here = rest
        return _Walked(tuple(drops), max(out, here), doubt)

    walked = follow(base, Share.ALL)
    if walked.out is Share.NOTHING or not (base in chains and chains[base].drops):
        return walked.drops
    return (*walked.drops, Drop(base, None, walked.out, walked.out is Share.ALL and not walked.doubt))
