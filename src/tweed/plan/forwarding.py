"""Which sysctls make a node forward, and how they go back: decided on values that were read, never read here.

Two traps, both the kernel's:

* Turning IPv6 forwarding on (net/ipv6/addrconf.c addrconf_fixup_forwarding -> rt6_purge_dflt_routers) deletes every
  default route learned from a router advertisement on an interface whose `accept_ra` is not 2, and `accept_ra=1` means
  from then on "ignore them". So `accept_ra=2` comes first, wherever the kernel listens to advertisements now. Where it
  does not (`accept_ra=0`: systemd-networkd and NetworkManager handle them in user space) nothing is touched.
* `conf.all.forwarding` is no mere default: writing it sets every interface and `default`, and IPv4's also flips
  `conf.all.accept_redirects` (net/ipv4/devinet.c inet_forward_change). What it tramples on is noted too.

`conf.default.accept_ra` is left alone although later interfaces inherit it: with 2, every container could make itself
the host's router by sending an advertisement through its veth (CVE-2020-10749).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tweed.model import Route

PROTOCOL_RA = 9  # RTPROT_RA: learned from a router advertisement, by the kernel or by a daemon
# What decides, per family, for each interface and for `all` and `default`.
LEAVES = {4: ("forwarding", "accept_redirects"), 6: ("forwarding", "accept_ra")}
# What we (or the kernel, for accept_redirects) set them to: a noted key with another value has been changed by somebody since.
SET_TO = {"forwarding": "1", "accept_ra": "2", "accept_redirects": "0"}
NO_INTERFACE = ("all", "default", "lo")

Note = tuple[str, str]  # a key and the value before us


class Write(msgspec.Struct, frozen=True):
    """Prints as the command that does it."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"sysctl -w {self.key}={self.value}"


def key(family: int, interface: str, leaf: str) -> str:
    """In the form with slashes, which needs no escape for the dot in `flannel.1`."""
    return f"net/ipv{family}/conf/{interface}/{leaf}"


def _interfaces(have: Mapping[str, str], family: int) -> list[str]:
    return [parts[3] for k in have if (parts := k.split("/"))[1] == f"ipv{family}" and parts[4] == "forwarding"]


def _off(have: Mapping[str, str], family: int, interface: str) -> bool:
    return have.get(key(family, interface, "forwarding")) == "0"


def _listening(have: Mapping[str, str], ours: Iterable[str]) -> list[str]:
    """Interfaces of others on which the kernel's `accept_ra` is 1."""
    skip = {*NO_INTERFACE, *ours}
    return [name for name in _interfaces(have, 6) if name not in skip and have.get(key(6, name, "accept_ra")) == "1"]


def routes_matter(have: Mapping[str, str], ours: Iterable[str]) -> bool:
    """False when no IPv6 default route is in danger, so that nobody needs to read them: forwarding is on, nobody listens with 1."""
    return _off(have, 6, "all") or bool(_listening(have, ours))


def writes(have: Mapping[str, str], families: Iterable[int], ours: Iterable[str], default_routes: Iterable[Route], through: Iterable[str] = ()) -> list[Write]:
    """What to set, in this order. Empty when all is right.

    `have`: `kernel.sysctl.snapshot`. `families`: 4, 6. `ours`: names of our devices; `through`: of others that
    have to forward. `default_routes`: the IPv6 ones.
    """
    ours = tuple(ours)
    wanted: list[Write] = []
    for family in sorted(families):
        turn_on = _off(have, family, "all")
        if family == 6:
            advertised = {route.device for route in default_routes if route.protocol == PROTOCOL_RA}
            # An interface that forwards already ignores advertisements with 1: only one with a route to lose is changed.
            keep = [name for name in _listening(have, ours) if name in advertised or (turn_on and _off(have, 6, name))]
            wanted += [Write(key(6, name, "accept_ra"), "2") for name in keep]
        if turn_on:
            wanted.append(Write(key(family, "all", "forwarding"), "1"))
        elif family == 4:
            # IPv4 asks the interface a packet came in by; IPv6 asks only `all` (net/ipv6/ip6_output.c ip6_forward).
            wanted += [Write(key(4, name, "forwarding"), "1") for name in (*ours, *through) if _off(have, 4, name)]
    return wanted


def notes(have: Mapping[str, str], wanted: Iterable[Write]) -> list[Note]:
    """The value of every key that `wanted` changes, directly or because the kernel spreads `all`."""
    noted: dict[str, str] = {}
    for write in wanted:
        noted[write.key] = have[write.key]
        family, interface, leaf = _parts(write.key)
        if (interface, leaf) == ("all", "forwarding"):
            spread = [key(family, name, "forwarding") for name in _interfaces(have, family)]
            if family == 4:
                spread.append(key(4, "all", "accept_redirects"))
            # Those that are 0 become 0 again by themselves when `all` goes back.
            noted |= {k: have[k] for k in spread if k in have and (k.endswith("accept_redirects") or have[k] != "0")}
    return list(noted.items())


def restoration(noted: Iterable[Note], now: Mapping[str, str]) -> list[Write]:
    """What to write so that the noted values are back. `now`: the noted keys as they read at this moment, absent when gone.

    A value that is no longer what we set belongs to whoever changed it. The first note of a key stands. `all` goes first, since
    it tramples on the others.
    """
    first = dict(reversed(list(noted)))
    still = [(k, old) for k, old in first.items() if k in now and now[k] == SET_TO.get(_parts(k)[2], now[k])]
    still.sort(key=lambda note: _parts(note[0])[1:] != ("all", "forwarding"))
    spread = {_parts(k)[0] for k, old in still if _parts(k)[1:] == ("all", "forwarding") and old != now[k]}
    return [Write(k, old) for k, old in still if old != now[k] or _parts(k)[0] in spread]


def lost(before: Iterable[Route], after: Iterable[Route]) -> list[Route]:
    """Default routes that were there before and are not any more, fit to be added again (without what tweed does not read)."""

    def identity(route: Route) -> tuple[object, ...]:
        return route.dst, route.device, route.gateway, route.table, route.metric

    there = {identity(route) for route in after}
    return [msgspec.structs.replace(route, other=b"") for route in before if identity(route) not in there]


def _parts(key: str) -> tuple[int, str, str]:
    """(family, interface, leaf) of a key made by `key`; (0, "", key) for any other."""
    parts = key.split("/")
    if len(parts) == 5 and parts[0] == "net" and parts[2] == "conf":
        return int(parts[1].removeprefix("ipv")), parts[3], parts[4]
    return 0, "", key
