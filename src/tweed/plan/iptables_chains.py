"""What `iptables-save -t filter` prints, as rules to edit and as chains of `plan.filters`.

The text is read rather than nft's listing of the same chains: of an xtables match (conntrack, comment, mark) that
listing gives only the name.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise

import msgspec

from tweed.addr import Prefix
from tweed.plan.filters import Chain, Outcome, Path, Rule, Share

TARGETS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
# Extension targets after which the next rule is looked at (iptables-extensions(8)).
PASSIVE_TARGETS = frozenset(
    {"AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "HL", "HMARK", "IDLETIMER", "LED", "LOG", "MARK"}
    | {"NFLOG", "NOTRACK", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL"}
)
# Options that matter here, long and short (iptables-save prints the short ones where there is one).
SOURCE, DESTINATION, IN, OUT, PROTOCOL = ("-s", "--source"), ("-d", "--destination"), ("-i", "--in-interface"), ("-o", "--out-interface"), ("-p", "--protocol")
JUMP, GOTO, MODULE = ("-j", "--jump"), ("-g", "--goto"), ("-m", "--match")
STATES = ("--ctstate", "--state")
# Modules whose options are read one by one below, or take no traffic away.
READ_MODULES = frozenset({"comment", "conntrack", "state", "addrtype", "tcp", "udp", "icmp", "icmp6", "icmpv6"})


class Filter(msgspec.Struct, frozen=True):
    """The filter table: policies of built-in chains, and each chain's rules as `iptables-save` prints them after `-A CHAIN `."""

    policies: Mapping[str, str]
    rules: Mapping[str, tuple[str, ...]]

    def without(self, comment: str) -> Filter:
        """The table as if no rule had this comment."""
        return Filter(self.policies, {chain: tuple(r for r in rules if not has_comment(r, comment)) for chain, rules in self.rules.items()})

    def inserted(self, chain: str, position: int, lines: tuple[str, ...]) -> Filter:
        """The table with `lines` before the rule at `position` (0 is the head)."""
        rules = self.rules[chain]
        return Filter(self.policies, {**self.rules, chain: (*rules[:position], *lines, *rules[position:])})


def parse(text: str) -> Filter:
    """The `*filter` part; lines of other tables, comments and counters are skipped."""
    policies: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table == "filter" and line.startswith(":"):
            name, policy, *_ = line[1:].split()
            policies[name] = policy
            rules.setdefault(name, [])
        elif table == "filter" and line.startswith("-A "):
            _, chain, *rest = line.split(" ", 2)
            rules.setdefault(chain, []).append(rest[0] if rest else "")
    return Filter(policies, {chain: tuple(lines) for chain, lines in rules.items()})


def has_comment(rule: str, comment: str) -> bool:
    """True when the rule has exactly this comment (`-m comment --comment TEXT`)."""
    if comment not in rule:
        return False
    words = shlex.split(rule)
    return ("--comment", comment) in pairwise(words)


def chains(table: Filter, path: Path) -> dict[str, Chain]:
    """Every chain of the table, as `path` meets it. A rule's name is its text."""
    return {name: Chain(tuple(Rule(rule, _judge(rule, path)) for rule in rules), table.policies.get(name) == "DROP") for name, rules in table.rules.items()}


# The same rules are judged again for every place that is tried.
@lru_cache(maxsize=8192)
def _judge(rule: str, path: Path) -> tuple[Outcome, ...]:
    share = Share.ALL
    for negated, option, values in _options(rule):
        value = values[0] if values else ""
        if option in JUMP or option in GOTO:
            # Options after the target are the target's own.
            return _outcomes(share, value, option in GOTO)
        taken = _taken(option, value, path)
        share = min(share, taken.inverted() if negated else taken)
    return (Outcome(share, "continue"),)


def _outcomes(share: Share, target: str, goto: bool) -> tuple[Outcome, ...]:
    match TARGETS.get(target):
        case "accept":
            return (Outcome(share, "accept"),)
        case "drop":
            return (Outcome(share, "drop"),)
        case "return":
            return (Outcome(share, "return"),)
    if target in PASSIVE_TARGETS:
        return (Outcome(share, "continue"),)
    if target in ("NFQUEUE", "QUEUE", "TPROXY", "SYNPROXY"):
        share = min(share, Share.PERHAPS)
        return Outcome(share, "drop"), Outcome(share, "accept")
    return (Outcome(share, "goto" if goto else "jump", target),)


def _taken(option: str, value: str, path: Path) -> Share:
    """How much of the traffic an option takes, before its `!`."""
    if option in SOURCE:
        return _within(path.source, value)
    if option in DESTINATION:
        return _within(path.destination, value)
    if option in IN:
        return _named(path.iif, value)
    if option in OUT:
        return _named(path.oif, value)
    if option in PROTOCOL:
        return Share.ALL if value in ("all", "0") else Share.SOME
    if option in MODULE:
        return Share.ALL if value in READ_MODULES else Share.PERHAPS
    if option in STATES:
        return Share.ALL if "NEW" in value.split(",") else Share.NOTHING
    if option == "--ctstatus":
        return Share.PERHAPS
    if option == "--comment":
        return Share.ALL
    if option == "--dst-type":
        # A forwarded packet is for somebody else.
        return Share.NOTHING if set(value.split(",")) <= {"LOCAL", "BROADCAST", "MULTICAST", "ANYCAST"} else Share.PERHAPS
    if option in ("--sport", "--dport", "--tcp-flags", "--tcp-option", "--icmp-type", "--icmpv6-type", "--syn", "--source-port", "--destination-port"):
        return Share.SOME
    return Share.PERHAPS


def _options(rule: str) -> Iterator[tuple[bool, str, list[str]]]:
    """(negated, option, its values) in order."""
    negated, option, values = False, "", list[str]()
    next_negated = False
    for word in shlex.split(rule):
        if word == "!":
            next_negated = True
        elif word.startswith("-") and option != "--comment":
            if option:
                yield negated, option, values
            negated, option, values, next_negated = next_negated, word, [], False
        else:
            values.append(word)
            if option == "--comment":
                yield negated, option, values
                option, values = "", []
    if option:
        yield negated, option, values


def _within(prefix: Prefix, text: str) -> Share:
    try:
        other = Prefix.parse(text).network
    except ValueError:
        return Share.PERHAPS  # a mask with holes
    if other.contains(prefix.network):
        return Share.ALL
    return Share.PERHAPS if other.overlaps(prefix.network) else Share.NOTHING


def _named(device: str, pattern: str) -> Share:
    """`cni0`, or `veth+` for every name that begins so."""
    return Share.ALL if device == pattern or (pattern.endswith("+") and device.startswith(pattern[:-1])) else Share.NOTHING
