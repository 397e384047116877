"""Which interface carries the overlay, and by which addresses other nodes reach this one.

Order as flannel's: every `--iface`, then every `--iface-regex`, then `--iface-can-reach`; with none of them the owner of
`--public-ip`, else the interface of the default route with the lowest metric.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator

import msgspec

from tweed.addr import Prefix, family, format_address, parse_address
from tweed.errors import TweedError, UsageError
from tweed.model import InterfaceAddress, Link, Route

SCOPE_LINK = 253  # RT_SCOPE_LINK; a larger number is a smaller scope
# linux/if_addr.h IFA_F_…; of IPv4 the lowest bit means "secondary" instead.
TEMPORARY, DADFAILED, DEPRECATED, TENTATIVE, PERMANENT = 0x01, 0x08, 0x20, 0x40, 0x80
LINK_LOCALS = (Prefix.parse("169.254.0.0/16"), Prefix.parse("fe80::/10"))
# What VirtualBox's NAT and QEMU's user network give the first guest of every machine.
GUEST = parse_address("10.0.2.15")


class Wish(msgspec.Struct, frozen=True):
    """What the settings say about the underlay, which families are on, and the networks that are the overlay's own. `said`: where the public
    addresses come from, IPv4's first."""

    families: tuple[int, ...]
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    can_reach: str = ""
    public_ip: bytes | None = None
    public_ip6: bytes | None = None
    overlay: tuple[Prefix, ...] = ()
    said: tuple[str, str] = ("--public-ip", "--public-ipv6")


class Host(msgspec.Struct, frozen=True):
    """What the choice is made from: the kernel's tables at one moment, without our own devices. `flags`: IFA_F_… by address."""

    links: tuple[Link, ...]
    addresses: tuple[InterfaceAddress, ...]
    defaults: tuple[Route, ...]
    flags: dict[bytes, int] = {}

    def owner(self, address: bytes) -> Link | None:
        device = next((a.device for a in self.addresses if a.address.address == address), None)
        return next((link for link in self.links if link.name == device), None)

    def candidates(self, device: str, family: int) -> list[bytes]:
        """The interface's addresses of a family, the best first: a global one before a link-local one, a lasting one before one that a lease,
        a router or the kernel will take away, then in the kernel's order. One that another host has too (duplicate detection) is none."""
        found = [a for a in self.addresses if a.device == device and a.address.family == family and not self.flags.get(a.address.address, 0) & DADFAILED]
        return [a.address.address for a in sorted(found, key=self._fleeting)]

    def _fleeting(self, row: InterfaceAddress) -> tuple[int, bool, bool, bool]:
        flags = self.flags.get(row.address.address, PERMANENT)
        return row.scope, bool(flags & (DEPRECATED | TENTATIVE)), not flags & PERMANENT, row.address.family == 6 and bool(flags & TEMPORARY)

    def address(self, device: str, family: int) -> bytes | None:
        return next(iter(self.candidates(device, family)), None)


class Way(msgspec.Struct, frozen=True):
    """How the kernel would reach an address: by which device, and with which source of its own."""

    device: str
    source: bytes | None = None


class Underlay(msgspec.Struct, frozen=True):
    """The choice. The `local` addresses are the tunnel's own and what is published; `why` in words, `instead_of` a line for each thing not chosen."""

    device: str
    index: int
    mtu: int
    local: bytes | None
    local6: bytes | None
    why: str
    instead_of: tuple[str, ...] = ()

    def __str__(self) -> str:
        addresses = " and ".join(format_address(a) for a in (self.local, self.local6) if a is not None)
        return f"{self.device} with {addresses}, MTU {self.mtu}"

    @property
    def doubt(self) -> str:
        """What is likely to be wrong with the choice, "" where nothing is."""
        if self.local != GUEST or self.why.startswith(("--", "annotation")):
            return ""
        return (
            "10.0.2.15 is what VirtualBox and QEMU give every guest for its way out; other nodes cannot reach it: name the interface between them with --iface"
        )


class Choice(msgspec.Struct, frozen=True):
    """An interface, and the addresses that the choice itself names, by family."""

    link: Link
    why: str
    named: dict[int, bytes] = {}


class NoUnderlay(TweedError):
    """No interface fits now; one may appear later."""


def choose_underlay(wish: Wish, host: Host, reach: Callable[[bytes], Way]) -> Underlay:
    """The underlay. `reach` asks the kernel for the way to an address.

    Raises NoUnderlay when nothing fits, UsageError for a wish that never can.
    """
    choice = _choose(wish, host, reach)
    link, why = choice.link, choice.why
    if link.mtu <= 0:
        raise NoUnderlay(f"interface {link.name} has MTU {link.mtu}: set one, or choose another with --iface")
    locals_ = {}
    for number, public, said in zip((4, 6), (wish.public_ip, wish.public_ip6), wish.said, strict=True):
        if number not in wish.families:
            continue
        locals_[number] = public or choice.named.get(number) or host.address(link.name, number)
        if locals_[number] is None:
            raise NoUnderlay(f"interface {link.name} ({why}) has no IPv{number} address: give it one, or choose another with --iface")
        if public is not None and host.owner(public) is None:
            raise NoUnderlay(f"{said} {format_address(public)} is not an address of this host; the tunnel needs a local one")
    instead_of = tuple(_not_chosen(wish, host, link, {a for a in locals_.values() if a is not None}))
    return Underlay(link.name, link.index, link.mtu, locals_.get(4), locals_.get(6), why, instead_of)


def keep_underlay(now: Underlay, host: Host, aside: Collection[bytes] = ()) -> Underlay | None:
    """The one in use, with the name, index and MTU that its device has by now; None when device or address is gone and a new choice is due.

    Addresses and default routes that come later (autoconfiguration, a temporary address, a VPN) do not move a node that others know;
    only a link-local address gives way. A device that was renamed is still the same one; one of its name that was made anew takes its place.
    An address that has moved to another device (a bridge over this one) is gone, unless it is one of `aside`, which may be anywhere.
    """
    by_index = next((link for link in host.links if link.index == now.index), None)
    link = by_index or next((link for link in host.links if link.name == now.device), None)
    if link is None or link.mtu <= 0:
        return None
    there = {a.address.address for a in host.addresses if a.scope < SCOPE_LINK and (a.device == link.name or a.address.address in aside)}
    if not {now.local, now.local6} - {None} <= there:
        return None
    return msgspec.structs.replace(now, device=link.name, index=link.index, mtu=link.mtu)


def not_demoted(now: Underlay, chosen: Underlay) -> Underlay:
    """The new choice, where a family that has only a link-local address left keeps the one by which others know this node.

    A kernel drops an interface's IPv6 addresses when its link is set down, and somebody is to give them back. Nobody beyond the link
    reaches a link-local one, and on it the kernel takes the first fe80::/64 route, whichever device that is.
    """
    kept = {
        name: old for name in ("local", "local6") if (old := getattr(now, name)) is not None and is_link_local(getattr(chosen, name)) and not is_link_local(old)
    }
    return msgspec.structs.replace(chosen, **kept)


def is_link_local(address: bytes | None) -> bool:
    return address is not None and any(prefix.contains(address) for prefix in LINK_LOCALS)


def lost(underlay: Underlay, host: Host) -> str:
    """What is to be said of addresses in use that the host does not have, "" where it has all."""
    gone = [format_address(a) for a in (underlay.local, underlay.local6) if a is not None and host.owner(a) is None]
    return f"{underlay.device} has lost {' and '.join(gone)}, by which other nodes know this one: give it back" if gone else ""


def _choose(wish: Wish, host: Host, reach: Callable[[bytes], Way]) -> Choice:
    return _named(wish, host) or _matching(wish, host) or _reaching(wish, host, reach) or _by_address(wish, host) or _by_default_route(wish, host)


def _named(wish: Wish, host: Host) -> Choice | None:
    by_name = {link.name: link for link in host.links}
    for name in wish.iface:
        if name in by_name:
            return Choice(by_name[name], f"--iface {name}")
        with contextlib.suppress(ValueError):
            address = parse_address(name)
            if (link := host.owner(address)) is not None:
                return Choice(link, f"--iface {name}", {family(address): address})
    return None


def _matching(wish: Wish, host: Host) -> Choice | None:
    """All addresses of all interfaces before any name, as flannel does."""
    for pattern in wish.iface_regex:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--iface-regex {pattern!r}: {error}") from None
        for link in host.links:
            named = {f: a for f in wish.families for a in reversed(host.candidates(link.name, f)) if expression.search(format_address(a))}
            if named:
                return Choice(link, f"--iface-regex {pattern} matches an address", named)
        for link in host.links:
            if expression.search(link.name):
                return Choice(link, f"--iface-regex {pattern} matches the name")
    return None


def _reaching(wish: Wish, host: Host, reach: Callable[[bytes], Way]) -> Choice | None:
    """By the kernel's route to an address, of either family, and from the source that it would use."""
    if wish.can_reach:
        try:
            target = parse_address(wish.can_reach)
        except ValueError as error:
            raise UsageError(f"--iface-can-reach: {error}") from None
        if (link := host.owner(target)) is not None:
            return Choice(link, f"--iface-can-reach {wish.can_reach} is its own address")
        way = reach(target)
        for link in host.links:
            if link.name == way.device:
                there = way.source in host.candidates(link.name, family(target))
                return Choice(link, f"--iface-can-reach {wish.can_reach} is routed there", {family(target): way.source} if way.source and there else {})
    if wish.iface or wish.iface_regex or wish.can_reach:
        given = [f"--iface {n}" for n in wish.iface] + [f"--iface-regex {p}" for p in wish.iface_regex]
        given += [f"--iface-can-reach {wish.can_reach}"] if wish.can_reach else []
        raise NoUnderlay(f"no interface matches {', '.join(given)}; there are: {', '.join(link.name for link in host.links) or 'none'}")
    return None


def _by_address(wish: Wish, host: Host) -> Choice | None:
    for said, public in zip(wish.said, (wish.public_ip, wish.public_ip6), strict=True):
        if public is not None:
            text = f"{said} {format_address(public)}"
            link = host.owner(public)
            if link is None:
                raise NoUnderlay(f"{text}: no interface has this address")
            return Choice(link, text)
    return None


def _by_default_route(wish: Wish, host: Host) -> Choice:
    """The lowest metric first; of interfaces that lack a family none is taken while another has all."""
    for number in wish.families:
        by_device = _default_metrics(host, number)
        having = [name for name in by_device if all(host.address(name, f) is not None for f in wish.families)]
        for name in having or by_device:
            link = next(link for link in host.links if link.name == name)
            return Choice(link, f"the IPv{number} default route" + (f" with metric {by_device[name]}" if len(by_device) > 1 else ""))
    raise NoUnderlay("no default route: name the interface that reaches the other nodes with --iface")


def _default_metrics(host: Host, number: int) -> dict[str, int]:
    """The best default route's metric of each interface that has one, the best interface first."""
    names = {link.name for link in host.links}
    found: dict[str, int] = {}
    for row in sorted((r for r in host.defaults if r.dst.family == number and r.dst.length == 0 and r.device in names), key=lambda r: r.metric):
        found.setdefault(row.device, row.metric)
    return found


def _not_chosen(wish: Wish, host: Host, chosen: Link, used: set[bytes]) -> Iterator[str]:
    """Every other address that this node could have been reached by, with what is known of it."""
    for link in host.links:
        for number in wish.families:
            default = _default_metrics(host, number).get(link.name)
            for address in host.candidates(link.name, number):
                row = next(a for a in host.addresses if a.device == link.name and a.address.address == address)
                if address in used or row.scope >= SCOPE_LINK or any(network.contains(address) for network in wish.overlay):
                    continue
                route = "" if link == chosen else f", default route with metric {default}" if default is not None else ", no default route"
                yield f"{link.name} {format_address(address)} ({_lasting(host.flags.get(address, PERMANENT), number)}{route})"


def _lasting(flags: int, number: int) -> str:
    for bit, word in ((DEPRECATED, "deprecated"), (TENTATIVE, "tentative"), (TEMPORARY if number == 6 else 0, "temporary")):
        if flags & bit:
            return word
    return "lasting" if flags & PERMANENT else "dynamic"
