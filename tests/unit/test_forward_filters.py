"""What one expression, one rule and one chain do to the overlay's traffic, row by row and against a slow oracle."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tests.unit.nft_json import ct, ip, meta, prefix
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix
from tweed.plan import iptables_chains
from tweed.plan.filters import Chain, Drop, Outcome, Path, Rule, Share, walk
from tweed.plan.nft_chains import table_chains

OUT = Path("cni0", "flannel.1", Prefix.parse("10.244.1.0/24"), Prefix.parse("10.244.0.0/16"))

# ---- one nft expression: how much of the traffic it takes --------------------------------------------------------

SETS = [
    {"set": {"family": "inet", "table": "t", "name": "up", "elem": ["flannel.1", "cni*"]}},
    {"set": {"family": "inet", "table": "t", "name": "bad", "elem": [{"elem": {"val": prefix("10.0.0.0/8"), "timeout": 9}}, "1.2.3.4"]}},
    {"set": {"family": "inet", "table": "t", "name": "empty"}},
    {"set": {"family": "inet", "table": "elsewhere", "name": "far", "elem": ["cni0"]}},
]
N, S, P, A = Share.NOTHING, Share.SOME, Share.PERHAPS, Share.ALL

EXPRESSIONS = [
    (meta("iifname"), "==", "cni0", A),
    (meta("iifname"), "==", "cni", N),
    (meta("iifname"), "==", "cn*", A),
    (meta("iifname"), "!=", "cni0", N),
    (meta("iif"), "==", 17, N),
    (meta("oifname"), "==", {"set": ["cni0", "flannel*"]}, A),
    (meta("oifname"), "!=", {"set": ["cni0", "lo"]}, A),
    (meta("iifname"), "==", "@up", A),
    (meta("iifname"), "==", "@empty", N),
    (meta("iifname"), "==", "@far", N),
    (meta("iifgroup"), "==", 3, P),
    (meta("nfproto"), "==", "ipv4", A),
    (meta("nfproto"), "==", "ipv6", N),
    (meta("protocol"), "==", {"set": ["ip", "ip6"]}, A),
    (meta("l4proto"), "==", "tcp", S),
    (meta("l4proto"), "!=", "tcp", S),
    (meta("mark"), "==", 7, P),
    (ip("saddr"), "==", prefix("10.244.0.0/16"), A),
    (ip("saddr"), "==", prefix("10.244.1.0/24"), A),
    (ip("saddr"), "==", prefix("10.244.1.128/25"), P),
    (ip("saddr"), "==", {"set": [prefix("10.244.1.128/25"), {"range": ["10.244.1.0", "10.244.1.127"]}]}, A),
    (ip("saddr"), "==", {"set": [prefix("10.244.1.128/25"), {"range": ["10.244.1.0", "10.244.1.126"]}]}, P),
    (ip("saddr"), "==", prefix("10.244.2.0/24"), N),
    (ip("saddr"), "!=", prefix("10.0.0.0/8"), N),
    (ip("saddr"), "!=", prefix("192.168.0.0/16"), A),
    (ip("daddr"), "==", "10.244.2.5", P),
    (ip("daddr"), "==", "@bad", A),
    (ip("saddr"), "==", "gateway.example", P),
    (ip("saddr"), "<", "11.0.0.0", P),
    (ip("daddr", "ip6"), "==", prefix("::/0"), N),
    (ip("daddr", "ip6"), "!=", "::1", N),
    (ip("ttl"), "==", 1, P),
    (ip("protocol"), "==", "icmp", S),
    (ip("dport", "tcp"), "==", 22, S),
    (ip("dport", "tcp"), "!=", {"set": [22, 80]}, S),
    (ip("dport", "th"), "!=", 53, P),
    ({"&": [ip("flags", "tcp"), ["syn", "ack"]]}, "==", "syn", S),
    ({"&": [ip("saddr"), "255.0.0.255"]}, "==", "10.0.0.1", P),
    ({"tcp option": {"name": "mptcp"}}, "==", 1, S),
    (ct("state"), "in", ["established", "related"], N),
    (ct("state"), "in", ["established", "new"], A),
    (ct("state"), "!=", "new", N),
    (ct("state"), "!", "established", A),
    (ct("state"), "==", {"set": ["invalid", "untracked"]}, N),
    (ct("direction"), "==", "reply", N),
    (ct("status"), "in", "dnat", S),
    (ct("mark"), "==", 1, P),
    ({"fib": {"result": "type", "flags": ["daddr"]}}, "==", "local", N),
    ({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, "==", False, P),
    ({"concat": [meta("iifname"), ip("daddr")]}, "==", {"set": [{"concat": ["cni0", prefix("10.0.0.0/8")]}]}, A),
    ({"concat": [meta("iifname"), ip("daddr")]}, "==", {"set": [{"concat": ["eth0", prefix("10.0.0.0/8")]}]}, N),
    ({"something": "new"}, "==", 1, P),
]


def nft_outcomes(*expressions: dict[str, Any]) -> tuple[Outcome, ...]:
    where = {"family": "inet", "table": "t"}
    listing = [*SETS, {"chain": {**where, "name": "c"}}, {"rule": {**where, "chain": "c", "handle": 5, "expr": list(expressions)}}]
    (rule,) = table_chains(listing, "inet", "t", OUT)["c"].rules
    assert rule.name == "handle 5"
    return rule.outcomes


@pytest.mark.parametrize(("left", "op", "right", "share"), EXPRESSIONS)
def test_nft_match(left: Any, op: str, right: Any, share: Share) -> None:
    assert nft_outcomes({"match": {"op": op, "left": left, "right": right}}, {"drop": None}) == (Outcome(share, "drop"),)


STATEMENTS: list[tuple[list[dict[str, Any]], list[tuple[Share, str, str]]]] = [
    ([{"counter": {}}, {"log": {"prefix": "x"}}, {"accept": None}], [(A, "accept", "")]),
    ([{"reject": {"type": "icmpx"}}], [(A, "drop", "")]),
    ([{"jump": {"target": "x"}}], [(A, "jump", "x")]),
    ([{"goto": {"target": "x"}}], [(A, "goto", "x")]),
    ([{"return": None}], [(A, "return", "")]),
    ([{"mangle": {"key": meta("mark"), "value": 1}}], [(A, "continue", "")]),
    ([{"limit": {"rate": 5, "per": "second"}}, {"accept": None}], [(P, "accept", "")]),
    ([{"brand new": {}}, {"drop": None}], [(P, "drop", "")]),
    ([{"queue": {"num": 1}}], [(P, "drop", ""), (P, "accept", "")]),
    ([{"xt": {"type": "match", "name": "comment"}}, {"accept": None}], [(A, "accept", "")]),
    ([{"xt": {"type": "match", "name": "conntrack"}}, {"accept": None}], [(P, "accept", "")]),
    ([{"xt": None}, {"accept": None}], [(P, "accept", "")]),
    ([{"xt": {"type": "target", "name": "REJECT"}}], [(A, "drop", "")]),
    (
        [{"vmap": {"key": ct("state"), "data": {"set": [["invalid", {"drop": None}], ["new", {"jump": {"target": "n"}}]]}}}],
        [(N, "drop", ""), (A, "jump", "n")],
    ),
    (
        [{"vmap": {"key": ip("daddr"), "data": {"set": [["*", {"drop": None}], [prefix("10.0.0.0/8"), {"accept": None}]]}}}],
        [(A, "accept", ""), (N, "drop", "")],
    ),
    ([{"vmap": {"key": ip("daddr"), "data": {"set": [["*", {"drop": None}], ["1.1.1.1", {"accept": None}]]}}}], [(N, "accept", ""), (A, "drop", "")]),
    ([{"vmap": {"key": ip("dport", "tcp"), "data": {"set": [[80, {"drop": None}], ["*", {"accept": None}]]}}}], [(S, "drop", ""), (S, "accept", "")]),
]


@pytest.mark.parametrize(("expressions", "expected"), STATEMENTS)
def test_nft_statements(expressions: list[dict[str, Any]], expected: list[tuple[Share, str, str]]) -> None:
    assert [(o.share, o.verdict, o.target) for o in nft_outcomes(*expressions)] == expected


# ---- one iptables rule ------------------------------------------------------------------------------------------

IPTABLES = [
    ("-j DROP", A, "drop"),
    ("", A, "continue"),
    ("-s 10.244.0.0/16 -j ACCEPT", A, "accept"),
    ("! -s 10.244.0.0/16 -j ACCEPT", N, "accept"),
    ("-s 10.244.1.7/32 -j ACCEPT", P, "accept"),
    ("-s 10.0.0.0/255.0.0.255 -j ACCEPT", P, "accept"),
    ("-i docker0 ! -o docker0 -j X", N, "jump"),
    ("! -i docker0 -o flannel+ -g X", A, "goto"),
    ("-p tcp -m tcp --dport 80 -j REJECT --reject-with tcp-reset", S, "drop"),
    ("-p tcp -m tcp ! --dport 80 -j DROP", S, "drop"),
    ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", N, "accept"),
    ("-m conntrack ! --ctstate RELATED,ESTABLISHED -j ACCEPT", A, "accept"),
    ("-m conntrack --ctstate INVALID -m nfacct --nfacct-name x -j DROP", N, "drop"),
    ("-m state --state NEW -j DROP", A, "drop"),
    ("-m addrtype --dst-type LOCAL -j X", N, "jump"),
    ("-m addrtype ! --dst-type LOCAL -j X", A, "jump"),
    ('-m comment --comment "drop -s 1.2.3.4 ! or \\"not\\"" -j DROP', A, "drop"),
    ("-m mark --mark 0x4000/0x4000 -j ACCEPT", P, "accept"),
    ("-m set --match-set x src -j ACCEPT", P, "accept"),
    ("-m limit --limit 3/sec -j LOG --log-prefix -j", P, "continue"),
    ("-j MARK --set-xmark 0x1/0x1", A, "continue"),
    ("-j RETURN", A, "return"),
]


@pytest.mark.parametrize(("rule", "share", "verdict"), IPTABLES)
def test_iptables_rule(rule: str, share: Share, verdict: str) -> None:
    table = iptables_chains.parse(f"*nat\n:FORWARD DROP [0:0]\n-A FORWARD -j DROP\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {rule}\nCOMMIT\n")
    chain = iptables_chains.chains(table, OUT)["FORWARD"]
    assert not chain.drops
    assert [(o.share, o.verdict) for r in chain.rules for o in r.outcomes] == [(share, verdict)]


# ---- the walk, against a slow oracle ----------------------------------------------------------------------------


def outcome(choose: Choices, level: int) -> Outcome:
    """Of a rule in chain number `level`, which jumps only to higher numbers."""
    share, jumps = choose.one_of(tuple(Share)), level < 2 and choose.flag()
    if not jumps:
        return Outcome(share, choose.one_of(("accept", "drop", "return", "continue")))
    return Outcome(share, choose.one_of(("jump", "goto")), choose.one_of([str(n) for n in range(level + 1, 3)]))


@spelled(70)
def firewalls(choose: Choices) -> dict[str, Chain]:
    chains = {}
    for level in range(3):
        rules = tuple(Rule(f"{level}.{n}", (outcome(choose, level),)) for n in range(choose.below(5)))
        chains[str(level)] = Chain(rules, level == 0 and choose.flag())
    return chains


def fate(chains: dict[str, Chain], taken: dict[str, bool], name: str = "0") -> str | None:
    """What becomes of one packet, of which it is known which rules match it. The name of the rule or "policy", None for accepted."""

    def run(name: str) -> tuple[str, str | None]:
        for rule in chains[name].rules:
            if not taken[rule.name]:
                continue
            (outcome,) = rule.outcomes
            match outcome.verdict:
                case "accept":
                    return "ended", None
                case "drop":
                    return "ended", rule.name
                case "return":
                    return "back", None
                case "jump" | "goto" as verdict:
                    how, dropped = run(outcome.target)
                    if how == "ended" or verdict == "goto":
                        return how, dropped
        return "back", None

    how, dropped = run(name)
    return dropped if how == "ended" else "policy" if chains[name].drops else None


@cases(33, firewalls)
def test_the_walk_against_every_packet(chains: dict[str, Chain]) -> None:
    """Each rule that takes a part may match a packet or not: all combinations are tried.

    What drops some packet is reported; and what is called certain drops packets however the unknown (PERHAPS) rules match:
    there is always one, that of the other protocol, which no SOME rule takes.
    """
    drops = walk(chains, "0")
    rules = [rule for chain in chains.values() for rule in chain.rules]
    known = {rule.name: rule.outcomes[0].share is Share.ALL for rule in rules}
    open_rules = [rule for rule in rules if rule.outcomes[0].share in (Share.SOME, Share.PERHAPS)]
    if len(open_rules) > 8:
        open_rules = open_rules[:8]
    reported = {drop.rule or "policy" for drop in drops}
    certain = any(drop.certain for drop in drops)
    for choice in itertools.product([False, True], repeat=len(open_rules)):
        taken = known | {rule.name: match for rule, match in zip(open_rules, choice, strict=True)}
        dropped = fate(chains, taken)
        assert dropped is None or dropped in reported
        other_protocol = not any(match and rule.outcomes[0].share is Share.SOME for rule, match in zip(open_rules, choice, strict=True))
        if certain and other_protocol:
            assert dropped is not None


def test_a_walk_through_many_jumps_stays_short() -> None:
    """16 levels that each jump ten times to the next: 10**16 ways, each chain walked once and its drop told once."""
    chains = {str(n): Chain(tuple(Rule(str(i), (Outcome(A, "jump", str(n + 1)),)) for i in range(10))) for n in range(16)}
    assert walk(chains | {"16": Chain((Rule("d", (Outcome(S, "drop"),)),))}, "0") == (Drop("16", "d", S, False),)
