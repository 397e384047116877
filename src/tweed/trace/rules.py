"""Rows of `ip rule`: which packets one applies to, and what Linux has without any."""

from __future__ import annotations

import msgspec

from tweed.trace import snapshot as s

# What Linux has until somebody changes it (fib_default_rules_init). IPv6 has no table `default`.
DEFAULT_RULES = {
    family: tuple(s.RuleRow(source="", text="", family=family, priority=p, table=t) for p, t in rows)
    for family, rows in {
        4: ((0, "local"), (32766, "main"), (32767, "default")),
        6: ((0, "local"), (32766, "main")),
    }.items()
}


class Flow(msgspec.Struct, frozen=True, gc=False):
    """What rules may ask about a packet beyond its addresses and devices; None: unknown. `proto` is the number in the IP header."""

    proto: int | None = None
    sport: int | None = None
    dport: int | None = None


ANY_FLOW = Flow()
PROTOCOLS_WITH_PORTS = (6, 17, 132)


def applies(rule: s.RuleRow, dst: bytes, src: bytes | None, iif: str | None, oif: str | None, flow: Flow, *, no_vrf: bool) -> bool | str:
    """fib_rule_match: all selectors, then `not`. The words of a selector when nobody can tell. A packet of the node's own has iif lo.

    `no_vrf`: the node is known to have none, so that nothing is of an l3mdev.
    """
    fits = (
        (rule.src is None or (src is not None and rule.src.contains(src)))
        and (rule.dst is None or rule.dst.contains(dst))
        and (rule.iif is None or rule.iif == (iif or "lo"))
        and (rule.oif is None or rule.oif == oif)
        and (rule.fwmark is None or rule.fwmark & (rule.fwmask if rule.fwmask is not None else ~0) == 0)
        and not rule.tos
    )
    if fits and (rule.others or rule.ipproto is not None or rule.sport or rule.dport or rule.uid):
        others = other_selectors(rule, iif, flow, no_vrf)
        fits = all(fit is not False for _, fit in others)
        if fits and (unknown := [words for words, fit in others if fit is None]):
            return unknown[0]
    return fits != rule.negated


def other_selectors(rule: s.RuleRow, iif: str | None, flow: Flow, no_vrf: bool) -> list[tuple[str, bool | None]]:
    """Each in words, and whether it fits. What is forwarded belongs to user 0 (ip_route_input_slow)."""
    found: list[tuple[str, bool | None]] = []
    if rule.others:
        found.append((" ".join(rule.others), False if no_vrf and rule.others == ("l3mdev",) else None))
    if rule.ipproto is not None:
        found.append((f"ipproto {rule.ipproto}", None if flow.proto is None else flow.proto == rule.ipproto))
    for name, span, port in (("sport", rule.sport, flow.sport), ("dport", rule.dport, flow.dport)):
        if span is not None:
            without = flow.proto is not None and flow.proto not in PROTOCOLS_WITH_PORTS
            fits = False if without else None if port is None else span[0] <= port <= span[1]
            found.append((f"{name} {span[0]}-{span[1]}", fits))
    if rule.uid is not None:
        found.append((f"uidrange {rule.uid[0]}-{rule.uid[1]}", rule.uid[0] == 0 if iif is not None else None))
    return found
