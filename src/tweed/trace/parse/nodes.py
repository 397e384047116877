"""A node from the tables that were read of it."""

from __future__ import annotations

from typing import Any

import msgspec

from tweed.trace import snapshot as s


class Table:
    """Rows of one table while they are being read: those of one command, or of one shape."""

    def __init__(self, shown: s.Shown) -> None:
        self.shown = shown
        self.rows: list[s.Row] = []


PLACES: dict[type, str] = {
    s.AddressRow: "addresses",
    s.RuleRow: "rules",
    s.RouteRow: "routes",
    s.NeighbourRow: "neighbours",
    s.FdbRow: "fdb",
    s.PortRow: "ports",
    s.NexthopRow: "nexthops",
    s.VlanRow: "vlans",
    s.SocketRow: "sockets",
    s.SysctlRow: "sysctls",
}


def build(name: str, tables: list[Table]) -> s.Node:
    """One node. A row that is pasted twice is one row; what several commands tell of a device is one device."""
    devices: dict[str, s.DeviceRow] = {}
    rows: dict[str, dict[s.Row, Any]] = {place: {} for place in PLACES.values()}
    nft: list[s.EvidenceRow] = []
    iptables: list[s.EvidenceRow] = []
    shown: list[s.Shown] = []
    seen: dict[tuple[Any, ...], str] = {}
    for table in tables:
        keys = []
        for row in table.rows:
            key = bare(row)
            keys.append(key)
            if isinstance(row, s.DeviceRow):
                devices[row.name] = together(devices[row.name], row) if row.name in devices else row
            elif isinstance(row, s.EvidenceRow):
                (iptables if table.shown.table == "iptables" else nft).append(row)
            else:
                rows[PLACES[type(row)]].setdefault(key, row)
        told = table.shown
        identity = (told.table, told.device, told.family, told.route_table, tuple(keys))
        first = seen.setdefault(identity, told.source) if keys else told.source
        shown.append(msgspec.structs.replace(told, repeats=first if first != told.source else None))
        if told.table == "address" or (told.table == "link" and any(isinstance(row, s.AddressRow) for row in table.rows)):
            shown.append(s.Shown(table="link" if told.table == "address" else "address", device=told.device, source=told.source, command=told.command))
    others = {place: tuple(found.values()) for place, found in rows.items()}
    return s.Node(name=name, devices=tuple(devices.values()), nft=tuple(nft), iptables=tuple(iptables), shown=tuple(shown), **others)


def bare(row: s.Row) -> s.Row:
    """What a row says, without where and in which words."""
    if isinstance(row, s.RouteRow):
        hops = tuple(msgspec.structs.replace(hop, source=None, text=None) for hop in row.hops)
        return msgspec.structs.replace(row, source="", text="", hops=hops)
    return msgspec.structs.replace(row, source="", text="")


def together(first: s.DeviceRow, second: s.DeviceRow) -> s.DeviceRow:
    """What both say of a device; where both say something, the first, where it was read too unless the second says more (`-d`)."""
    ahead, behind = (second, first) if second.kind is not None and first.kind is None else (first, second)
    return msgspec.structs.replace(ahead, **{name: getattr(behind, name) for name in ahead.__struct_fields__ if getattr(ahead, name) is None})
