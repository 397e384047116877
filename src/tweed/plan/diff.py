"""From what is to what should be: ordered changes.

Order (tailscale's rule, and measured here): add before delete, so that nothing is without a way in between. Adds go
address, fdb, neighbour, route: a packet finds the whole chain or none of it. Removals go the other way round, and an
old MAC's fdb row goes last, after no neighbour points to it (the other way frames are lost).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tweed.addr import Prefix
from tweed.model import METRIC_IPV6_DEFAULT, Change, Changes, Failure, FdbEntry, InterfaceAddress, KernelState, Neighbour, Route, Row


def diff(want: KernelState, have: KernelState) -> Changes:
    """Changes that turn `have` into `want`. Both are multisets: a surplus copy of a wanted row is removed and the row put again."""
    adds: list[Row] = []
    deletes: list[Row] = []
    # An IPv4 add is checked against the rows of its own kind; `nodad` is never read back.
    for wanted, there in (
        ([_as_read(a) for a in want.addresses], have.addresses),
        (want.fdb, have.fdb),
        (want.neighbours, have.neighbours),
        (want.routes, have.routes),
    ):
        missing, surplus = _compare(wanted, there)
        adds += missing
        deletes += surplus
    nodad = {a.address for a in want.addresses if a.nodad}
    kept = {(n.address, n.device) for n in want.neighbours} if deletes else set()
    changes = [Change("replace", InterfaceAddress(r.device, r.address, r.scope, r.address in nodad) if isinstance(r, InterfaceAddress) else r) for r in adds]
    # A neighbour is keyed by its address: the replace has already overwritten the old one, a delete would hit ours.
    gone = [row for row in reversed(deletes) if not (isinstance(row, Neighbour) and (row.address, row.device) in kept)]
    passages = _passages(adds, deletes)
    if passages:
        first = next(at for at, change in enumerate(changes) if isinstance(change.row, Route))
        changes[first:first] = [Change("replace", row) for row in passages]
        gone += passages
    # The kernel takes no gateway that is the host's own, as that of whoever has this node's earlier subnet.
    gateways = {row.gateway for row in adds if isinstance(row, Route)}
    before = [row for row in gone if isinstance(row, InterfaceAddress) and row.address.address in gateways]
    return (*(Change("delete", row) for row in before), *changes, *(Change("delete", row) for row in gone if row not in before))


def _passages(adds: Iterable[Row], deletes: Iterable[Row]) -> list[Route]:
    """Routes that exist only while others are put.

    IPv6 refuses a route whose onlink gateway has a route to another device (net/ipv6/route.c ip6_route_check_nh_onlink), and ours has one
    while a peer's subnet, in which the gateway lies, changes from there into the tunnel. With a row for the gateway alone it is one replace.
    """
    elsewhere = {(row.dst, row.device) for row in deletes if isinstance(row, Route) and row.dst.family == 6}
    return [
        Route(Prefix(row.gateway, 128), row.device, metric=METRIC_IPV6_DEFAULT)
        for row in adds
        if isinstance(row, Route)
        and row.onlink
        and row.gateway is not None
        and row.dst.family == 6
        and row.dst.contains(row.gateway)
        and any(dst == row.dst and device != row.device for dst, device in elsewhere)
    ]


def _as_read(address: InterfaceAddress) -> InterfaceAddress:
    return InterfaceAddress(address.device, address.address, address.scope) if address.nodad else address


def _compare(want: Sequence[Row], have: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to put and rows to delete, of one kind."""
    if not have:
        return list(want), []
    wanted, there = set(want), set(have)
    missing = [row for row in want if row not in there]
    surplus = [row for row in have if row not in wanted]
    if len(there) != len(have):  # doubled rows: remove the copies, then put the wanted one back
        for row, copies in Counter(have).items():
            if copies > 1 and row in wanted:
                surplus += [row] * (copies - 1)
                missing.append(row)
    return missing, surplus


def confirmed(changes: Changes, again: Changes) -> Changes:
    """`changes` without the deletions that a second look did not ask for: a dump under churn may show rows twice or not at all."""
    second = Counter(change for change in again if change.op == "delete")
    kept = []
    for change in changes:
        if change.op == "delete":
            if not second[change]:
                continue
            second[change] -= 1
        kept.append(change)
    return tuple(kept)


def split(changes: Changes) -> tuple[Changes, Changes]:
    """Puts, with what has to go before them, then deletions."""
    last = max((at for at, change in enumerate(changes, 1) if change.op == "replace"), default=0)
    return changes[:last], changes[last:]


def held(deletes: Changes, failures: Iterable[Failure], have: KernelState) -> Changes:
    """The deletions that must wait because the put that replaces their row failed.

    A route stays while ours for the same prefix could not be added, and an fdb row while a neighbour that should have
    moved away from its MAC still points there.
    """
    failed = [failure.change.row for failure in failures if failure.change.op == "replace"]
    prefixes = {row.dst for row in failed if isinstance(row, Route)}
    stuck = {(row.address, row.device) for row in failed if isinstance(row, Neighbour)}
    macs = {n.mac for n in have.neighbours if (n.address, n.device) in stuck}
    return tuple(c for c in deletes if (isinstance(c.row, Route) and c.row.dst in prefixes) or (isinstance(c.row, FdbEntry) and c.row.mac in macs))
