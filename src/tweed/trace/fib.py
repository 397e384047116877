"""One route table (a FIB): the rows that fit an address, the best first, and what makes one row better than another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from tweed.model import METRIC_IPV6_DEFAULT
from tweed.trace import snapshot as s
from tweed.trace.result import Said


class Fib:
    """One route table of one family: rows by network, under each prefix length, longest first."""

    def __init__(self, rows: Iterable[s.RouteRow], bits: int) -> None:
        by_length: dict[int, dict[int, list[s.RouteRow]]] = {}
        for row in rows:
            if not row.tos:  # the packet's is 0
                shift = bits - row.dst.length
                by_length.setdefault(row.dst.length, {}).setdefault(row.dst.value >> shift, []).append(row)
        self.lengths = [(bits - length, by_length[length]) for length in sorted(by_length, reverse=True)]
        for _, networks in self.lengths:
            for rows_here in networks.values():
                if len(rows_here) > 1:
                    rows_here.sort(key=metric)  # stable: of equals the first that was shown

    def matches(self, value: int, near: str | None = None) -> Iterator[s.RouteRow]:
        """The rows that contain an address, the best first. `near`: of equals those on this device come first."""
        for shift, networks in self.lengths:
            rows = networks.get(value >> shift, ())
            if near is not None and len(rows) > 1:
                rows = sorted(rows, key=lambda row: (metric(row), all(hop.device != near for hop in row.hops)))
            yield from rows


def metric(row: s.RouteRow) -> int:
    """Smaller is better. An IPv6 row that shows none has the default (ip6_fib.h); only the kernel's own local rows have 0."""
    if row.metric is not None:
        return row.metric
    return METRIC_IPV6_DEFAULT if len(row.dst.address) == 16 else 0


def siblings(winner: s.RouteRow, row: s.RouteRow) -> bool:
    """Whether IPv6 rows are next hops of one route: an iproute2 of 4.x shows each as a row (ip6_fib.h, rt6_qualify_for_ecmp)."""
    return (
        len(row.dst.address) == 16
        and metric(row) == metric(winner)
        and winner.type == row.type == "unicast"
        and all(hop.gateway is not None for hop in (*winner.hops, *row.hops))
        and bool(winner.hops and row.hops)
    )


def with_source(row: s.RouteRow) -> tuple[s.NextHop, ...]:
    return tuple(msgspec.structs.replace(hop, source=hop.source or row.source, text=hop.text or row.text) for hop in row.hops)


def why_later(row: s.RouteRow, winner: s.RouteRow) -> Said:
    if row.dst.length < winner.dst.length:
        return Said("shorter-prefix", {"length": str(row.dst.length), "winner": str(winner.dst.length)})
    if metric(row) > metric(winner):
        return Said("higher-metric", {"metric": str(metric(row)), "winner": str(metric(winner))})
    return Said("later-row")
