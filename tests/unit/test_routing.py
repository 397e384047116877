"""Route choice against the slow oracle, and what losing rows say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import routes as oracle

from tweed.addr import Prefix
from tweed.trace.rules import Flow
from tweed.trace.snapshot import NextHop, Node, RouteRow, RuleRow, Shown
from tweed.trace.tables import Tables

AT = {"source": "a:1", "text": "row"}
TABLES = ("main", "5", "6")
# Few bits, so that prefixes meet.
addresses = st.tuples(st.sampled_from([4, 6]), st.integers(0, 255)).map(
    lambda pair: bytes([10, *bytes(2), pair[1]]) if pair[0] == 4 else bytes([0xFD, *bytes(14), pair[1]])
)


def prefixes(address: bytes) -> st.SearchStrategy[Prefix]:
    bits = len(address) * 8
    return st.sampled_from([0, 8, bits - 7, bits - 4, bits - 2, bits]).map(lambda length: Prefix(address, length).network)


routes = st.builds(
    lambda dst, kind, table, metric, dead, device: RouteRow(
        **AT,
        dst=dst,
        type=kind,
        table=table,
        metric=metric,
        hops=(NextHop(device=device, flags=("dead",) if dead else ()),) if kind == "unicast" else (),
    ),
    addresses.flatmap(prefixes),
    st.sampled_from(["unicast", "unicast", "unicast", "blackhole", "throw"]),
    st.sampled_from(TABLES),
    st.sampled_from([None, 1, 1024, 2000]),
    st.integers(0, 5).map(lambda n: n == 0),
    st.sampled_from(["x", "y"]),
)
rules = st.builds(
    lambda priority, action, table, src, dst, iif, negated, suppress, fwmark, more: RuleRow(
        **AT,
        family=4,
        priority=priority,
        action=action,
        table=table if action == "lookup" else None,
        src=src,
        dst=dst,
        iif=iif,
        negated=negated,
        suppress_length=suppress,
        fwmark=fwmark,
        **more,
    ),
    st.integers(0, 9),
    st.sampled_from(["lookup", "lookup", "lookup", "prohibit"]),
    st.sampled_from(TABLES),
    st.none() | addresses.flatmap(prefixes),
    st.none() | addresses.flatmap(prefixes),
    st.sampled_from([None, None, "x", "lo"]),
    st.booleans(),
    st.sampled_from([None, None, 0, 25]),
    st.sampled_from([None, None, 7]),
    st.sampled_from([{}, {}, {}, {"tos": 16}, {"ipproto": 6}, {"ipproto": 1}, {"dport": (80, 80)}, {"dport": (50, 90), "ipproto": 6}]),
)


@settings(max_examples=80)
@given(
    st.lists(routes, max_size=12),
    st.lists(rules, min_size=1, max_size=4),
    addresses,
    st.none() | addresses,
    st.sampled_from([None, "x"]),
    st.sampled_from([(1, 0), (6, 80), (6, 90)]),
)
def test_route_choice_equals_the_oracle(rows: list[RouteRow], rule_rows: list[RuleRow], dst: bytes, src: bytes | None, iif: str | None, flow: tuple[int, int]):
    family = 4 if len(dst) == 4 else 6
    rule_rows = [RuleRow(**{name: getattr(rule, name) for name in rule.__struct_fields__} | {"family": family}) for rule in rule_rows]
    node = Node(name="n", routes=tuple(rows), rules=tuple(rule_rows), shown=(Shown(table="route", route_table="all", command="ip route show table all"),))
    answer = Tables(node).lookup(dst, src=src, iif=iif, flow=Flow(flow[0], None, flow[1] or None))
    expected = oracle.choose(rule_rows, rows, dst, src, iif, *flow)
    if isinstance(expected, RouteRow):
        assert (answer.row, answer.kind) == (expected, expected.type)
        assert all(loser.row != answer.row or loser.why.id == "later-row" for loser in answer.losers)
    else:
        assert (answer.row, answer.kind) == (None, expected or "missing")


def test_a_table_that_a_rule_names_and_nobody_showed_is_not_known_to_be_empty():
    rule = RuleRow(**AT, family=4, priority=1, table="5")
    node = Node(name="n", rules=(rule,), shown=(Shown(table="route", route_table="main", family=4, command="ip route"),))
    assert Tables(node).lookup(b"\x0a\0\0\1").kind == "unknown"
