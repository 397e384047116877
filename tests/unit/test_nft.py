"""The text of our tables, and whether a listing shows them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tweed.addr import Prefix
from tweed.kernel.nft import _error
from tweed.plan.nft import CHAIN, Table, masquerade, table_name

V4 = masquerade(Prefix.parse("10.244.0.0/16"), Prefix.parse("10.244.1.0/24"), vni=1)
V6 = masquerade(Prefix.parse("fd00:10:244::/48"), Prefix.parse("fd00:10:244:1::/64"), vni=4096, fully_random=False)


def listing(table: Table) -> list[dict[str, Any]]:
    """As `nft -j list table` prints it, handles included."""
    where = {"family": table.family, "table": table.name}
    chain = {**where, "name": CHAIN, "handle": 1, "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}
    rules = [{"rule": {**where, "chain": CHAIN, "handle": n, "expr": copy.deepcopy(r.listed)}} for n, r in enumerate(table.rules, 2)]
    return [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": table.family, "name": table.name, "handle": 7}}, {"chain": chain}, *rules]


def test_the_rules_are_the_issues_in_their_order() -> None:
    assert [rule.text for rule in V4.rules] == [
        "meta mark & 0x4000 == 0x4000 return",
        "ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return",
        "ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return",
        "ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 return",
        "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random",
    ]


def test_ipv6_has_its_own_table_and_multicast() -> None:
    assert (V6.family, V6.name) == ("ip6", table_name(4096)) == ("ip6", "tweed-4096")
    assert [rule.text for rule in V6.rules][4:] == [
        "ip6 saddr fd00:10:244::/48 ip6 daddr != ff00::/8 masquerade",
        "ip6 saddr != fd00:10:244::/48 ip6 daddr fd00:10:244::/48 masquerade",
    ]


def test_the_text_replaces_whatever_is_there_in_one_transaction() -> None:
    assert V4.text.splitlines()[:5] == [
        "add table ip tweed-1",
        "delete table ip tweed-1",
        "table ip tweed-1 {",
        "\tchain postrouting {",
        "\t\ttype nat hook postrouting priority 100; policy accept;",
    ]
    assert V4.text.splitlines()[5:] == [*(f"\t\t{rule.text}" for rule in V4.rules), "\t}", "}"]


def test_host_bits_do_not_reach_the_rules() -> None:
    assert masquerade(Prefix.parse("10.244.9.9/16"), Prefix.parse("10.244.1.7/24"), vni=1).text == V4.text


@pytest.mark.parametrize("table", [V4, V6])
def test_its_own_listing_is_right(table: Table) -> None:
    assert table.is_in(listing(table))
    assert table.is_in([*listing(table), {"table": {"family": "ip", "name": "other"}}, *listing(V4 if table is V6 else V6)])


def test_flags_as_newer_versions_of_nft_list_them() -> None:
    listed = listing(V4)
    for entry in listed[-2:]:
        entry["rule"]["expr"][-1] = {"masquerade": {"flags": ["fully-random"]}}
    assert V4.is_in(listed)


EDITS: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "gone": lambda listed: listed.clear(),
    "rule deleted": lambda listed: listed.pop(3),
    "rule doubled": lambda listed: listed.append(listed[-1]),
    "two rules exchanged": lambda listed: listed.insert(4, listed.pop(5)),
    "rule with a counter": lambda listed: listed[3]["rule"]["expr"].insert(0, {"counter": {"packets": 0, "bytes": 0}}),
    "not random": lambda listed: listed[-1]["rule"]["expr"].__setitem__(-1, {"masquerade": None}),
    "policy": lambda listed: listed[2]["chain"].update(policy="drop"),
    "priority": lambda listed: listed[2]["chain"].update(prio=99),
    "no hook": lambda listed: [listed[2]["chain"].pop(k) for k in ("type", "hook", "prio", "policy")],
    "chain of somebody": lambda listed: listed.append({"chain": {"family": "ip", "table": "tweed-1", "name": "x", "handle": 9}}),
    "set of somebody": lambda listed: listed.append({"set": {"family": "ip", "table": "tweed-1", "name": "x", "handle": 9}}),
    "another prefix": lambda listed: listed[-1]["rule"]["expr"][1]["match"]["right"]["prefix"].update(len=17),
    "another family": lambda listed: [body.update(family="ip6") for entry in listed[1:] for body in entry.values()],
}


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_is_seen(name: str) -> None:
    listed = listing(V4)
    EDITS[name](listed)
    assert not V4.is_in(listed)


@pytest.mark.parametrize(
    ("text", "errno", "words"),
    [
        ("/dev/stdin:2:13-19: Error: Could not process rule: No such file or directory\nadd rule\n  ^^^", 2, "No such file or directory"),
        ("Error: No such file or directory; did you mean table ‘x’ in family ip?\nlist", 2, "No such file or directory; did you mean table ‘x’ in family ip?"),
        ("<cmdline>:1:5-9: Error: syntax error, unexpected string\nadd tabel", 22, "syntax error, unexpected string"),
        ("netlink: Error: cache initialization failed: Operation not permitted\n", 1, "Operation not permitted (CAP_NET_ADMIN is needed: run as root)"),
        ("", 22, "failed without a word"),
    ],
)
def test_an_error_is_nfts_first_line_without_the_position(text: str, errno: int, words: str) -> None:
    error = _error("\nadd rule ip x y\nadd more", text)
    assert (error.operation, error.errno, error.text) == ("nft add rule ip x y", errno, words)
