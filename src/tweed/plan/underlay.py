"""Which interface carries the overlay, and by which addresses other nodes reach this one.

Order as flannel's: every `--iface`, then every `--iface-regex`, then `--iface-can-reach`; with none of them the owner of
`--public-ip`, else the interface of the default route with the lowest metric.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence

import msgspec

from tweed.addr import format_address, parse_address
from tweed.errors import TweedError, UsageError
from tweed.model import InterfaceAddress, Link, Route

SCOPE_LINK = 253  # RT_SCOPE_LINK; a larger number is a smaller scope


class Wish(msgspec.Struct, frozen=True):
    """What the settings say about the underlay, and which families are on."""

    families: tuple[int, ...]
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    can_reach: str = ""
    public_ip: bytes | None = None
    public_ip6: bytes | None = None


class Host(msgspec.Struct, frozen=True):
    """What the choice is made from: the kernel's tables at one moment, without our own devices."""

    links: tuple[Link, ...]
    addresses: tuple[InterfaceAddress, ...]
    defaults: tuple[Route, ...]
    temporary: frozenset[bytes] = frozenset()

    def owner(self, address: bytes) -> Link | None:
        device = next((a.device for a in self.addresses if a.address.address == address), None)
        return next((link for link in self.links if link.name == device), None)

    def address(self, device: str, family: int) -> bytes | None:
        """The interface's address of a family: a global one before a link-local one, a lasting one before a temporary one, then in the kernel's order."""
        found = [a for a in self.addresses if a.device == device and a.address.family == family]
        return min(found, key=lambda a: (a.scope, a.address.address in self.temporary)).address.address if found else None


class Underlay(msgspec.Struct, frozen=True):
    """The choice. The `local` addresses are the tunnel's own and what is published; `why` in words."""

    device: str
    index: int
    mtu: int
    local: bytes | None
    local6: bytes | None
    why: str


class NoUnderlay(TweedError):
    """No interface fits now; one may appear later."""


def choose_underlay(wish: Wish, host: Host, reach: Callable[[bytes], Route]) -> Underlay:
    """The underlay. `reach` asks the kernel for the route to an address.

    Raises NoUnderlay when nothing fits, UsageError for a wish that never can.
    """
    link, why = _interface(wish, host, reach)
    if link.mtu <= 0:
        raise NoUnderlay(f"interface {link.name} has MTU {link.mtu}: set one, or choose another with --iface")
    locals_ = {}
    for family, public in ((4, wish.public_ip), (6, wish.public_ip6)):
        if family not in wish.families:
            continue
        locals_[family] = public or host.address(link.name, family)
        if locals_[family] is None:
            raise NoUnderlay(f"interface {link.name} ({why}) has no IPv{family} address: give it one, or choose another with --iface")
        if public is not None and host.owner(public) is None:
            raise NoUnderlay(f"--public-ip{'' if family == 4 else 'v6'} {format_address(public)} is not an address of this host; the tunnel needs a local one")
    return Underlay(link.name, link.index, link.mtu, locals_.get(4), locals_.get(6), why)


def keep_underlay(now: Underlay, host: Host) -> Underlay | None:
    """The one in use, with the index and MTU that its device has by now; None when device or address is gone and a new choice is due.

    Addresses and default routes that come later (autoconfiguration, a temporary address, a VPN) do not move a node that others know;
    only a link-local address gives way.
    """
    link = next((link for link in host.links if link.name == now.device), None)
    there = {a.address.address for a in host.addresses if a.scope < SCOPE_LINK}
    if link is None or link.mtu <= 0 or not {now.local, now.local6} - {None} <= there:
        return None
    return msgspec.structs.replace(now, index=link.index, mtu=link.mtu)


def _interface(wish: Wish, host: Host, reach: Callable[[bytes], Route]) -> tuple[Link, str]:
    by_name = {link.name: link for link in host.links}
    for name in wish.iface:
        link = by_name.get(name)
        with contextlib.suppress(ValueError):
            link = link or host.owner(parse_address(name))
        if link is not None:
            return link, f"--iface {name}"
    for pattern in wish.iface_regex:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--iface-regex {pattern!r}: {error}") from None
        for link in host.links:
            texts = [format_address(a.address.address) for a in host.addresses if a.device == link.name]
            if any(expression.search(text) for text in texts):
                return link, f"--iface-regex {pattern} matches an address"
        for link in host.links:
            if expression.search(link.name):
                return link, f"--iface-regex {pattern} matches the name"
    if wish.can_reach:
        try:
            route = reach(parse_address(wish.can_reach))
        except ValueError as error:
            raise UsageError(f"--iface-can-reach: {error}") from None
        if route.device in by_name:
            return by_name[route.device], f"the route to {wish.can_reach}"
    if wish.iface or wish.iface_regex or wish.can_reach:
        given = [f"--iface {n}" for n in wish.iface] + [f"--iface-regex {p}" for p in wish.iface_regex]
        given += [f"--iface-can-reach {wish.can_reach}"] if wish.can_reach else []
        raise NoUnderlay(f"no interface matches {', '.join(given)}; there are: {_names(host.links)}")
    for flag, public in (("--public-ip", wish.public_ip), ("--public-ipv6", wish.public_ip6)):
        if public is not None:
            link = host.owner(public)
            if link is None:
                raise NoUnderlay(f"{flag} {format_address(public)}: no interface has this address")
            return link, f"{flag} {format_address(public)}"
    for family in wish.families:
        defaults = [r for r in host.defaults if r.dst.family == family and r.dst.length == 0 and r.device in by_name]
        if defaults:
            best = min(defaults, key=lambda r: r.metric)
            return by_name[best.device], f"the IPv{family} default route"
    raise NoUnderlay("no default route: name the interface that reaches the other nodes with --iface")


def _names(links: Sequence[Link]) -> str:
    return ", ".join(link.name for link in links) or "none"
