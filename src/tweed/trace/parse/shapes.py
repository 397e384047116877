"""What a line looks like: which table has rows of its shape, or what else it may be."""

from __future__ import annotations

import re

from tweed.trace import snapshot as s
from tweed.trace.parse import links, neighbours, routes
from tweed.trace.parse.words import MAC, looks_like_address

RULE = re.compile(r"\d+:\s+(?:not\s+)?(?:from|to|iif|fwmark)\s.*")
SOCKET = re.compile(r"(?:udp6?\s+)?(?:UNCONN|ESTAB)\s+\d+\s+\d+\s.*|udp6?\s+\d+\s+\d+\s.*")
SOCKET_HEADER = re.compile(r"(?:Netid\s+)?State\s+Recv-Q.*|Active Internet connections.*|Proto\s+Recv-Q.*")
NEXTHOP = re.compile(r"id \d+ (?:via|dev|group|blackhole|encap)\b.*")
VLAN = re.compile(r"(?:\S+\s+)?\d+(?:-\d+)?(?:\s+PVID)?(?:\s+Egress Untagged)?")
VLAN_HEADER = re.compile(r"port\s+vlan[ -]ids?.*")
# First words of an indented line that belongs to the device above it.
LINK_MORE = re.compile(
    r"(?:link/|inet6?\s|valid_lft|vxlan\s|veth\b|bridge|tun\b|alias|altname|vlan\s|bond|ipip|wireguard|geneve|dummy|macvlan|ipvlan|RX|TX|vf\s|\d+\s|hairpin|numtx).*"
)
ROW_WORDS = routes.KEYWORDS | {"lladdr", "self", "master", "vlan", "dst", "permanent", "static", "lookup"} | neighbours.NUD


def shape(text: str, told: s.Table | None) -> s.Table | None:
    """The table that has rows of this shape; of two that of the command before it, `told`."""
    if links.HEADER.fullmatch(text):
        if told in ("link", "address", "port"):
            return told
        return "port" if " master " in text and " state " in text and "priority" in text else "link"
    if RULE.fullmatch(text):
        return "rule"
    if SOCKET.fullmatch(text):
        return "socket"
    if neighbours.SYSCTL.fullmatch(text):
        return "sysctl"
    if NEXTHOP.fullmatch(text):
        return "nexthop"
    if told == "vlan" and VLAN.fullmatch(text):
        return "vlan"
    if told in ("link", "address") and links.BRIEF.fullmatch(text):
        return told
    words = text.split()
    if len(words) > 1 and words[1:] and MAC.fullmatch(words[0]):
        return "fdb" if words[1] in ("dev", "dst", "vlan", "self", "master", "via", "nhid", "permanent", "offload", "extern_learn", "used") else None
    if words[0] in routes.TYPES and len(words) > 1 and (looks_like_address(words[1]) or words[1] == "default"):
        return "route"
    if words[0] == "default" and len(words) > 1 and (words[1] in routes.KEYWORDS):
        return "route"
    if looks_like_address(words[0]):
        if "lladdr" in words or any(word in neighbours.NUD for word in words[1:]):
            return "neighbour"
        if len(words) > 1 and words[1] in routes.KEYWORDS:
            return "route"
        # `ip route show dev X` may leave nothing but the prefix of a row.
        if told == "route" and len(words) == 1:
            return "route"
    return None


def is_header(text: str) -> bool:
    """Whether it only names the columns of the rows below."""
    return SOCKET_HEADER.fullmatch(text) is not None or VLAN_HEADER.fullmatch(text) is not None


def is_more_of_link(text: str) -> bool:
    """Whether an indented line belongs to the device above it."""
    return LINK_MORE.fullmatch(text) is not None and links.HEADER.fullmatch(text) is None


def goes_on(last: str, first: str) -> bool:
    """Whether a line is the rest of the row before it: its first word begins no row, or is what the last word before it asks for."""
    if first in ROW_WORDS:
        return True
    if last in ("via", "src", "dst"):
        return looks_like_address(first) and "/" not in first
    if last == "lladdr":
        return MAC.fullmatch(first) is not None
    return last in ("dev", "proto", "scope", "metric", "table", "vlan", "weight", "lookup") and not looks_like_address(first) and not MAC.fullmatch(first)


def is_suspicious(text: str) -> bool:
    """Whether a line wants to be a row: it begins with an address, a MAC or `default`, and is no sentence."""
    words = text.split()
    return text.isascii() and len(words) > 1 and (words[0] == "default" or looks_like_address(words[0]) or bool(MAC.fullmatch(words[0])))
