"""Which parser reads the rows of which table, plain and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tweed.trace import snapshot as s
from tweed.trace.parse import links, neighbours, routes
from tweed.trace.parse.words import Where

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError)  # of the JSON of strangers, any of them


def one(parser: Callable[[Where], s.Row]) -> Callable[[Where], list[s.Row]]:
    return lambda where: [parser(where)]


def one_json(parser: Callable[[dict[str, Any], Where], s.Row]) -> Callable[[dict[str, Any], Where], list[s.Row]]:
    return lambda fields, where: [parser(fields, where)]


def device_block(where: Where) -> list[s.Row]:
    device, addresses = links.block(where) if links.HEADER.fullmatch(where.text.split("\n")[0].strip()) else links.brief(where)
    return [device, *addresses]


def device_json(fields: dict[str, Any], where: Where) -> list[s.Row]:
    device, addresses = links.block_json(fields, where)
    return [device, *addresses]


def vlans_json(fields: dict[str, Any], where: Where) -> list[s.Row]:
    return [*links.vlans_json(fields, where)]


def nft_json(fields: dict[str, Any], where: Where) -> list[s.Row]:
    return [s.EvidenceRow(source=where.source, text=json.dumps(each)) for each in fields["nftables"]]


PARSE: dict[s.Table, Callable[[Where], list[s.Row]]] = {
    "link": device_block,
    "address": device_block,
    "rule": one(routes.rule),
    "route": one(routes.route),
    "neighbour": one(neighbours.neighbour),
    "fdb": one(neighbours.fdb),
    "port": one(links.port),
    "nexthop": one(routes.nexthop),
    "vlan": one(links.vlan),
    "socket": one(neighbours.socket),
    "sysctl": one(neighbours.sysctl),
}
PARSE_JSON: dict[s.Table, Callable[[dict[str, Any], Where], list[s.Row]]] = {
    "link": device_json,
    "address": device_json,
    "rule": one_json(routes.rule_json),
    "route": one_json(routes.route_json),
    "neighbour": one_json(neighbours.neighbour_json),
    "fdb": one_json(neighbours.fdb_json),
    "port": one_json(links.port_json),
    "nexthop": one_json(routes.nexthop_json),
    "vlan": vlans_json,
    "nft": nft_json,
}
# In this order: the first whose keys are all there.
JSON_SHAPES: tuple[tuple[s.Table, set[str]], ...] = (
    ("fdb", {"mac"}),
    ("vlan", {"ifname", "vlans"}),
    ("address", {"ifname", "addr_info"}),
    ("port", {"ifname", "master", "state", "priority"}),
    ("link", {"ifname", "flags"}),
    ("rule", {"priority", "src"}),
    ("neighbour", {"dst", "state"}),
    ("neighbour", {"dst", "lladdr"}),
    ("route", {"dst"}),
    ("nexthop", {"id", "flags"}),
)


def json_kind(element: dict[str, Any], told: s.Table | None) -> s.Table | None:
    """The table that an element is of, where a command told which; None: of none that is read here."""
    if "nftables" in element:
        return "nft"
    for kind, keys in JSON_SHAPES:
        if keys <= element.keys():
            return told if told in ("link", "address", "port") and kind in ("link", "address", "port") else kind
    return None


# ---- where the elements of a JSON list are --------------------------------------------------------------------------------


def elements_of(text: str, start: int, decoder: json.JSONDecoder) -> list[tuple[Any, int, int]]:
    """The elements of a JSON list (or one object) that begins at `start`: value, begin, end. The last end is behind the list."""
    if text[start] == "{":
        value, end = decoder.raw_decode(text, start)
        return [(value, start, end)]
    found: list[tuple[Any, int, int]] = []
    space = re.compile(r"\s*")
    at = start + 1
    while True:
        at = skip(space, text, at)
        if at < len(text) and text[at] == "]":
            return [*found, (None, at, at + 1)]
        value, end = decoder.raw_decode(text, at)
        found.append((value, at, end))
        at = skip(space, text, end)
        if at < len(text) and text[at] == ",":
            at += 1
        elif at >= len(text) or text[at] != "]":
            raise ValueError("a list that does not end")


def skip(space: re.Pattern[str], text: str, at: int) -> int:
    matched = space.match(text, at)
    assert matched is not None
    return matched.end()
