"""Route choice, slowly: look at every row of every table, in the order in which rules name them."""

from __future__ import annotations

from collections.abc import Sequence

from tweed.trace.snapshot import RouteRow, RuleRow


def rank(row: RouteRow, iif: str | None) -> tuple[int, int, bool]:
    """Higher beats lower; of equals the first in the table wins. IPv6 likes the device that the packet came in by."""
    default = 1024 if row.dst.family == 6 else 0
    near = row.dst.family == 6 and iif is not None and any(hop.device == iif for hop in row.hops)
    return row.dst.length, -(default if row.metric is None else row.metric), near


def best(rows: Sequence[RouteRow], table: str, dst: bytes, iif: str | None) -> RouteRow | None:
    winner = None
    for row in rows:
        fits = row.table == table and not row.tos and row.dst.contains(dst)
        alive = not row.hops or any("dead" not in hop.flags for hop in row.hops)
        if fits and alive and (winner is None or rank(row, iif) > rank(winner, iif)):
            winner = row
    return winner


def choose(
    rules: Sequence[RuleRow], rows: Sequence[RouteRow], dst: bytes, src: bytes | None, iif: str | None, proto: int = 0, dport: int = 0
) -> RouteRow | str | None:
    """The winning row, the action of a rule that ends it, or None. Only TCP (6) has ports here."""
    for rule in sorted(rules, key=lambda rule: rule.priority):
        fits = (rule.src is None or (src is not None and rule.src.contains(src))) and (rule.dst is None or rule.dst.contains(dst))
        fits = fits and rule.iif in (None, iif or "lo") and not rule.fwmark and not rule.tos and rule.ipproto in (None, proto)
        fits = fits and (rule.dport is None or (proto == 6 and dport in range(rule.dport[0], rule.dport[1] + 1)))
        if fits == rule.negated:
            continue
        if rule.action != "lookup":
            return rule.action
        row = best(rows, rule.table or "", dst, iif)
        if row is None or row.type == "throw" or (rule.suppress_length is not None and row.dst.length <= rule.suppress_length):
            continue
        return row
    return None
