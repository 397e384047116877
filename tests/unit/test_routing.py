"""Route choice against the slow oracle, and what losing rows say."""

from __future__ import annotations

from typing import NamedTuple

from tests.oracles import routes as oracle
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix
from tweed.trace.rules import Flow
from tweed.trace.snapshot import NextHop, Node, RouteRow, RuleRow, Shown
from tweed.trace.tables import Tables

AT = {"source": "a:1", "text": "row"}
TABLES = ("main", "5", "6")


def address(choose: Choices, family: int) -> bytes:
    """Of few bits, so that prefixes meet."""
    last = choose.number(0, 255)
    return bytes([10, 0, 0, last]) if family == 4 else bytes([0xFD, *bytes(14), last])


def prefix(choose: Choices, family: int) -> Prefix:
    bits = 32 if family == 4 else 128
    return Prefix(address(choose, family), choose.one_of((0, 8, bits - 7, bits - 4, bits - 2, bits))).network


def route(choose: Choices, family: int) -> RouteRow:
    kind = choose.one_of(("unicast", "unicast", "unicast", "blackhole", "throw"))
    hop = NextHop(device=choose.one_of(("x", "y")), flags=("dead",) if choose.below(6) == 1 else ())
    return RouteRow(
        **AT,
        dst=prefix(choose, choose.one_of((family, family, 4, 6))),
        type=kind,
        table=choose.one_of(TABLES),
        metric=choose.one_of((None, 1, 1024, 2000)),
        hops=(hop,) if kind == "unicast" else (),
    )


def rule(choose: Choices, family: int) -> RuleRow:
    action = choose.one_of(("lookup", "lookup", "lookup", "prohibit"))
    return RuleRow(
        **AT,
        family=family,
        priority=choose.below(10),
        action=action,
        table=choose.one_of(TABLES) if action == "lookup" else None,
        src=choose.maybe(lambda: prefix(choose, choose.one_of((4, 6)))),
        dst=choose.maybe(lambda: prefix(choose, choose.one_of((4, 6)))),
        iif=choose.one_of((None, None, "x", "lo")),
        negated=choose.flag(),
        suppress_length=choose.one_of((None, None, 0, 25)),
        fwmark=choose.one_of((None, None, 7)),
        **choose.one_of(({}, {}, {}, {"tos": 16}, {"ipproto": 6}, {"ipproto": 1}, {"dport": (80, 80)}, {"dport": (50, 90), "ipproto": 6})),
    )


class Question(NamedTuple):
    rows: list[RouteRow]
    rules: list[RuleRow]
    dst: bytes
    src: bytes | None
    iif: str | None
    flow: tuple[int, int]


@spelled(170)
def questions(choose: Choices) -> Question:
    family = choose.one_of((4, 6))
    return Question(
        choose.several(12, lambda: route(choose, family)),
        choose.several(4, lambda: rule(choose, family), least=1),
        address(choose, family),
        choose.maybe(lambda: address(choose, choose.one_of((4, 6)))),
        choose.one_of((None, "x")),
        choose.one_of(((1, 0), (6, 80), (6, 90))),
    )


@cases(120, questions)
def test_route_choice_equals_the_oracle(question: Question):
    rows, rule_rows, dst, src, iif, flow = question
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
