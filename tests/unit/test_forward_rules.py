"""What is done about a firewall that drops the overlay's traffic: where our rules go, when they move, what is only named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from tests.unit.nft_json import ct, ip, meta, prefix
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix
from tweed.plan import iptables_chains
from tweed.plan.filters import Path
from tweed.plan.forward_rules import Decision, Obstacle, Overlay, Saved, decide, removal
from tweed.plan.nft_chains import made_by_iptables

OVERLAY = Overlay(Prefix.parse("10.244.0.0/16"), Prefix.parse("10.244.1.0/24"), "cni0", "flannel.1")
OVERLAY6 = Overlay(Prefix.parse("fd00:10:244::/48"), Prefix.parse("fd00:10:244:1::/64"), "cni0", "flannel-v6.1")


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


@pytest.mark.parametrize(("rules", "policy", "place"), PLACES)
def test_a_second_device_of_the_same_network_needs_no_second_pair_of_rules(rules: str, policy: str, place: tuple[str, int] | None) -> None:
    direct = Overlay(OVERLAY.network, OVERLAY.subnet, OVERLAY.bridge, "ens33")
    assert [str(edit) for edit in decide([], [OVERLAY, direct], [saved(rules, policy)], vni=1).edits] == edits(saved(rules, policy))


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


RULES = [
    "-j DROP",
    "-s 10.244.0.0/16 -j ACCEPT",
    "! -s 10.244.0.0/16 -j ACCEPT",
    "-s 10.244.1.7/32 -j DROP",
    "-p tcp -m tcp --dport 80 -j REJECT",
    "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-m mark --mark 0x4000/0x4000 -j ACCEPT",
    "-m set --match-set x src -j DROP",
    "-p udp -j RETURN",
    "-j RETURN",
    "-j LOG",
]


@spelled(7)
def chains(choose: Choices) -> list[str]:
    return choose.several(6, lambda: choose.one_of([f"FORWARD {rule}" for rule in RULES] + BOTH.splitlines()))


@cases(40, chains, st.sampled_from(["ACCEPT", "DROP"]))
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
    assert made_by_iptables([*filter_table([match, {"accept": None}]), {"set": {"family": "inet", "table": "t", "name": "s"}}], "ip", "filter")
    assert not made_by_iptables(filter_table([lookup, {"accept": None}]), "ip", "filter")
    assert not made_by_iptables(filter_table([{"vmap": {"key": ct("state"), "data": "@x"}}]), "ip", "filter")
    assert not made_by_iptables([*filter_table(), {"set": {"family": "ip", "table": "filter", "name": "s"}}], "ip", "filter")


def test_paths_of_an_overlay() -> None:
    whole, own = OVERLAY.network, OVERLAY.subnet
    assert OVERLAY.paths == (Path("cni0", "flannel.1", own, whole), Path("flannel.1", "cni0", whole, own))
    assert OVERLAY.family == 4 and OVERLAY6.paths[0].family == 6
