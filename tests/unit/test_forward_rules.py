"""Who drops the overlay's traffic: small firewalls and the verdict on them, row by row."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tweed.addr import Prefix
from tweed.plan import iptables_chains
from tweed.plan.filters import Chain, Drop, Outcome, Path, Rule, Share, walk
from tweed.plan.forward_rules import Decision, Obstacle, Overlay, Saved, decide, removal
from tweed.plan.nft_chains import made_by_iptables, table_chains

OVERLAY = Overlay(Prefix.parse("10.244.0.0/16"), Prefix.parse("10.244.1.0/24"), "cni0", "flannel.1")
OVERLAY6 = Overlay(Prefix.parse("fd00:10:244::/48"), Prefix.parse("fd00:10:244:1::/64"), "cni0", "flannel-v6.1")
OUT, IN = OVERLAY.paths

# ---- one nft expression: how much of the traffic from cni0 to flannel.1 it takes -------------------------------------


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def ip(field: str, protocol: str = "ip") -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def ct(key: str) -> dict[str, Any]:
    return {"ct": {"key": key}}


def prefix(text: str) -> dict[str, Any]:
    address, _, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}}


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

shares = st.sampled_from(Share)
plain = st.tuples(shares, st.sampled_from(["accept", "drop", "return", "continue"]), st.just(""))


def chain_of(level: int) -> st.SearchStrategy[list[tuple[Share, str, str]]]:
    """Rules of chain number `level`, which jump only to higher numbers."""
    jumps = st.tuples(shares, st.sampled_from(["jump", "goto"]), st.sampled_from([str(n) for n in range(level + 1, 3)])) if level < 2 else plain
    return st.lists(st.one_of(plain, jumps), max_size=4)


@st.composite
def firewalls(draw: st.DrawFn) -> dict[str, Chain]:
    chains = {}
    for level in range(3):
        rules = tuple(Rule(f"{level}.{n}", (Outcome(*outcome),)) for n, outcome in enumerate(draw(chain_of(level))))  # type: ignore[arg-type]
        chains[str(level)] = Chain(rules, level == 0 and draw(st.booleans()))
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


@settings(max_examples=150)
@given(firewalls())
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
    """16 levels that each jump twice to the next: 65536 ways, each chain walked once."""
    chains = {str(n): Chain((Rule("a", (Outcome(A, "jump", str(n + 1)),)), Rule("b", (Outcome(A, "jump", str(n + 1)),)))) for n in range(16)}
    assert walk(chains | {"16": Chain((Rule("d", (Outcome(S, "drop"),)),))}, "0")[0] == Drop("16", "d", S, False)


# ---- decisions --------------------------------------------------------------------------------------------------


def saved(rules: str, policy: str = "DROP", program: str = "iptables-nft", legacy: bool = False) -> Saved:
    chains = dict.fromkeys(rule.split()[0] for rule in rules.splitlines() if rule.strip())
    names = "".join(f":{chain} - [0:0]\n" for chain in chains if chain != "FORWARD")
    lines = "".join(f"-A {rule.strip()}\n" for rule in rules.splitlines() if rule.strip())
    return Saved(program, 6 if program.startswith("ip6") else 4, legacy, f"*filter\n:FORWARD {policy} [0:0]\n{names}{lines}COMMIT\n")


def edits(one: Saved, overlay: Overlay = OVERLAY, vni: int = 1) -> list[str]:
    return [str(edit) for edit in decide([], [overlay], [one], vni=vni).edits]


OURS = ['-s 10.244.0.0/16 -m comment --comment "tweed forward 1" -j ACCEPT', '-d 10.244.0.0/16 -m comment --comment "tweed forward 1" -j ACCEPT']
BOTH = f"FORWARD {OURS[0]}\nFORWARD {OURS[1]}\n"

PLACES = [
    ("", "DROP", ("FORWARD", 1)),
    ("", "ACCEPT", None),
    ("FORWARD -j REJECT --reject-with icmp-host-prohibited", "ACCEPT", ("FORWARD", 1)),
    ("FORWARD -s 10.0.0.0/8 -j ACCEPT\nFORWARD -d 10.0.0.0/8 -j ACCEPT", "DROP", None),
    ("FORWARD -i cni0 -j ACCEPT", "DROP", ("FORWARD", 1)),
    ("FORWARD -p icmp -j ACCEPT\nFORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "DROP", ("FORWARD", 1)),
    ("FORWARD -m mark --mark 0x1 -j ACCEPT", "DROP", ("FORWARD", 1)),
    # Rules that drop a part keep their effect: ours go behind the last of them.
    ("FORWARD -s 10.244.1.9/32 -j DROP\nFORWARD -p tcp -m tcp --dport 25 -j REJECT\nFORWARD -j LOG", "DROP", ("FORWARD", 3)),
    ("FORWARD -p tcp -m tcp --dport 25 -j REJECT", "ACCEPT", None),
    ("FORWARD -j OWN\nOWN -s 10.244.1.9/32 -j DROP\nOWN -j DROP", "ACCEPT", ("OWN", 2)),
    # Docker's chain for users, where FORWARD leads there before it drops.
    ("FORWARD -j DOCKER-USER\nDOCKER-USER -j RETURN", "DROP", ("DOCKER-USER", 1)),
    ("FORWARD -j LOG\nDOCKER-USER -j RETURN", "DROP", ("FORWARD", 1)),
    ("FORWARD -j DROP\nFORWARD -j DOCKER-USER\nDOCKER-USER -j RETURN", "DROP", ("FORWARD", 1)),
    ("FORWARD -i eth0 -j DOCKER-USER\nDOCKER-USER -j RETURN", "DROP", ("FORWARD", 1)),
    ("FORWARD -j DOCKER-USER\nFORWARD -p tcp -m tcp --dport 25 -j DROP\nDOCKER-USER -j RETURN", "DROP", ("FORWARD", 3)),
]


@pytest.mark.parametrize(("rules", "policy", "place"), PLACES)
def test_where_our_rules_go(rules: str, policy: str, place: tuple[str, int] | None) -> None:
    expected = [f"iptables-nft -w -I {place[0]} {place[1] + n} {line}" for n, line in enumerate(OURS)] if place else []
    assert edits(saved(rules, policy)) == expected


def deleted(*lines: str, chain: str = "FORWARD") -> list[str]:
    return [f"iptables-nft -w -D {chain} {line}" for line in lines]


INSERTED = [f"iptables-nft -w -I FORWARD {n} {line}" for n, line in enumerate(OURS, 1)]
KEPT = [
    (BOTH, "DROP", []),
    # Neutral rules before ours are let be; one that drops is not.
    (f"FORWARD -j LOG\nFORWARD -i docker0 -j ACCEPT\n{BOTH}", "DROP", []),
    (f"FORWARD -j DROP\n{BOTH}", "DROP", deleted(*OURS) + INSERTED),
    # Between pods either of the two is enough: not in order, but in effect.
    (f"FORWARD {OURS[1]}\nFORWARD -j DROP\nFORWARD {OURS[0]}", "ACCEPT", []),
    (f"FORWARD {OURS[1]}", "DROP", deleted(OURS[1]) + INSERTED),
    (f"{BOTH}FORWARD {OURS[0]}", "DROP", deleted(*OURS, OURS[0]) + INSERTED),
    # No longer needed; of an earlier network; somebody else's.
    (BOTH, "ACCEPT", deleted(*OURS)),
    (BOTH.replace("10.244", "10.7"), "ACCEPT", deleted(*(line.replace("10.244", "10.7") for line in OURS))),
    (BOTH.replace("forward 1", "forward 12"), "ACCEPT", []),
    # A rule that drops a part has come to stand before ours, and then behind.
    (f"FORWARD -p tcp -m tcp --dport 25 -j DROP\n{BOTH}", "DROP", []),
]


@pytest.mark.parametrize(("rules", "policy", "expected"), KEPT)
def test_our_rules_are_kept_in_effect_and_nothing_more(rules: str, policy: str, expected: list[str]) -> None:
    assert edits(saved(rules, policy)) == expected


def test_ours_move_to_dockers_chain_when_docker_comes() -> None:
    after = edits(saved(f"FORWARD -j DOCKER-USER\nDOCKER-USER -j RETURN\n{BOTH}"))
    assert after == deleted(*OURS) + [line.replace("FORWARD 1", "DOCKER-USER 1").replace("FORWARD 2", "DOCKER-USER 2") for line in INSERTED]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([f"FORWARD {rule}" for rule, _, _ in IPTABLES if rule and " X" not in rule] + BOTH.splitlines()), max_size=6),
    st.sampled_from(["ACCEPT", "DROP"]),
)
def test_after_the_edits_nothing_is_left_to_do(rules: list[str], policy: str) -> None:
    one = saved("\n".join(rules), policy)
    table = iptables_chains.parse(one.text).without("tweed forward 1")
    decision = decide([], [OVERLAY], [one], vni=1)
    if not decision.edits:
        return
    for edit in decision.edits:
        verb, chain, rest = edit.line.split(" ", 2)
        if verb == "-I":
            position, line = rest.split(" ", 1)
            table = table.inserted(chain, int(position) - 1, (line,))
    text = "\n".join(f"{chain} {rule}" for chain, lines in table.rules.items() for rule in lines)
    assert decide([], [OVERLAY], [saved(text, policy)], vni=1).edits == ()


def test_removal_takes_out_ours_wherever_they_are() -> None:
    one = saved(f"{BOTH}FORWARD -j DOCKER-USER\nDOCKER-USER {OURS[0]}\nFORWARD -s 10.0.0.0/8 -j ACCEPT")
    assert [str(edit) for edit in removal([one], 1)] == deleted(*OURS) + deleted(OURS[0], chain="DOCKER-USER")
    assert removal([one], 2) == ()


def test_families_do_not_mix() -> None:
    decision = decide([], [OVERLAY, OVERLAY6], [saved("", program="ip6tables-legacy", legacy=True)], vni=7)
    assert [str(edit) for edit in decision.edits] == [
        'ip6tables-legacy -w -I FORWARD 1 -s fd00:10:244::/48 -m comment --comment "tweed forward 7" -j ACCEPT',
        'ip6tables-legacy -w -I FORWARD 2 -d fd00:10:244::/48 -m comment --comment "tweed forward 7" -j ACCEPT',
    ]


def native(*rules: list[dict[str, Any]], family: str = "inet", table: str = "fw", chain: str = "forward", policy: str = "accept") -> list[dict[str, Any]]:
    where = {"family": family, "table": table}
    base = {**where, "name": chain, "type": "filter", "hook": "forward", "prio": 0, "policy": policy}
    return [{"chain": base}, *({"rule": {**where, "chain": chain, "handle": n, "expr": rule}} for n, rule in enumerate(rules, 4))]


def test_an_obstacle_says_what_where_and_how_to_open_it() -> None:
    listing = native([{"match": {"op": "in", "left": ct("state"), "right": ["established"]}}, {"accept": None}], policy="drop")
    decision = decide(listing, [OVERLAY, OVERLAY6], vni=1)
    commands = [
        "nft insert rule inet fw forward ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 accept",
        "nft insert rule inet fw forward ip6 saddr fd00:10:244::/48 ip6 daddr fd00:10:244::/48 accept",
    ]
    assert decision == Decision((), tuple(Obstacle("inet", "fw", "forward", "its policy is drop", command, True) for command in commands))
    assert str(decision.obstacles[0]) == (
        "table inet fw chain forward drops forwarded overlay traffic: its policy is drop; to open it: "
        "nft insert rule inet fw forward ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 accept"
    )


@pytest.mark.parametrize(
    ("listing", "why"),
    [
        (native([{"accept": None}], policy="drop"), None),
        (native([{"match": {"op": "==", "left": meta("oifname"), "right": "docker0"}}, {"drop": None}]), None),
        (native([{"match": {"op": "==", "left": meta("iifname"), "right": "flannel.1"}}, {"drop": None}]), "rule handle 4"),
        (native([{"match": {"op": "==", "left": ip("dport", "tcp"), "right": 25}}, {"drop": None}]), "drops a part of it"),
        (native([{"match": {"op": "==", "left": meta("mark"), "right": 1}}, {"accept": None}], policy="drop"), "no rule that tweed can read accepts"),
        (native(family="ip6", policy="drop"), None),
        (native(family="bridge", policy="drop"), None),
    ],
)
def test_what_is_an_obstacle(listing: list[dict[str, Any]], why: str | None) -> None:
    obstacles = decide(listing, [OVERLAY], vni=1).obstacles
    assert len(obstacles) == (why is not None)
    for obstacle in obstacles:
        assert why in obstacle.why and obstacle.certain == ("handle 4 (" in obstacle.why and "part" not in obstacle.why)
        assert ("may drop some" in str(obstacle)) is not obstacle.certain


def test_firewalld_is_opened_its_own_way() -> None:
    (obstacle,) = decide(native([{"reject": {"type": "icmpx"}}], table="firewalld", chain="filter_FORWARD"), [OVERLAY], vni=1).obstacles
    assert obstacle.command == "firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16 && firewall-cmd --reload"


def test_iptables_chain_is_judged_by_iptables_own_words_where_they_are_exact() -> None:
    """nft's listing does not show what an xtables match asks for; iptables' text is wrong where native rules stand in the table."""
    listing = native([{"xt": {"type": "match", "name": "conntrack"}}, {"drop": None}], family="ip", table="filter", chain="FORWARD")
    text = saved("FORWARD -m conntrack --ctstate INVALID -j DROP", "ACCEPT")
    assert decide(listing, [OVERLAY], [text], vni=1) == Decision()
    (obstacle,) = decide(listing, [OVERLAY], [Saved("iptables-nft", 4, False, text.text, exact=False)], vni=1).obstacles
    assert not obstacle.certain and obstacle.table == "filter"
    assert decide(listing, [OVERLAY], vni=1).obstacles == (obstacle,)


def test_tables_that_iptables_never_made() -> None:
    def filter_table(*rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return native(*rules, family="ip", table="filter", chain="FORWARD")

    match = {"match": {"op": "==", "left": ip("saddr"), "right": prefix("10.0.0.0/8")}}
    lookup = {"match": {"op": "==", "left": ip("saddr"), "right": {"set": ["1.1.1.1"]}}}
    assert made_by_iptables([*filter_table([match, {"accept": None}]), *SETS], "ip", "filter")
    assert not made_by_iptables(filter_table([lookup, {"accept": None}]), "ip", "filter")
    assert not made_by_iptables(filter_table([{"vmap": {"key": ct("state"), "data": "@x"}}]), "ip", "filter")
    assert not made_by_iptables([*filter_table(), {"set": {"family": "ip", "table": "filter", "name": "s"}}], "ip", "filter")


def test_paths_of_an_overlay() -> None:
    whole, own = OVERLAY.network, OVERLAY.subnet
    assert OVERLAY.paths == (Path("cni0", "flannel.1", own, whole), Path("flannel.1", "cni0", whole, own))
    assert IN.family == 4 and OVERLAY6.paths[0].family == 6
