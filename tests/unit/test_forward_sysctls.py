"""Which sysctls are set for forwarding, and how they go back: the decisions, on values."""

from __future__ import annotations

import pytest

from tweed.addr import Prefix, parse_address
from tweed.model import Route
from tweed.plan.forwarding import lost, notes, restoration, routes_matter, writes

DEFAULT = Prefix(bytes(16), 0)


def conf(family: int, **interfaces: tuple[int, int]) -> dict[str, str]:
    """Sysctls of a family: `eth0=(forwarding, accept_ra or accept_redirects)`."""
    leaf = {4: "accept_redirects", 6: "accept_ra"}[family]
    return {f"net/ipv{family}/conf/{n}/{k}": str(v) for n, values in interfaces.items() for k, v in zip(("forwarding", leaf), values, strict=True)}


def route(device: str, protocol: int = 9, metric: int = 1024) -> Route:
    return Route(DEFAULT, device, parse_address("fe80::1"), metric=metric, protocol=protocol)


HOST6 = conf(6, all=(0, 1), default=(0, 1), lo=(0, 1), eth0=(0, 1), eth1=(0, 0), cni0=(0, 1))


@pytest.mark.parametrize(
    ("have", "routes", "expected"),
    [
        (conf(4, all=(0, 1), eth0=(0, 1)), [], ["net/ipv4/conf/all/forwarding=1"]),
        (conf(4, all=(1, 0), eth0=(1, 1), cni0=(1, 1)), [], []),
        (conf(4, all=(1, 0), eth0=(0, 1), cni0=(0, 1)), [], ["net/ipv4/conf/cni0/forwarding=1"]),
        (HOST6, [], ["net/ipv6/conf/eth0/accept_ra=2", "net/ipv6/conf/all/forwarding=1"]),
        (HOST6, [route("eth1")], ["net/ipv6/conf/eth0/accept_ra=2", "net/ipv6/conf/all/forwarding=1"]),
        (conf(6, all=(0, 1), eth0=(0, 2)), [route("eth0")], ["net/ipv6/conf/all/forwarding=1"]),
        # A single interface that forwards ignores advertisements already: nothing to keep there, unless a route says otherwise.
        (conf(6, all=(0, 1), eth0=(1, 1)), [], ["net/ipv6/conf/all/forwarding=1"]),
        (conf(6, all=(0, 1), eth0=(1, 1)), [route("eth0")], ["net/ipv6/conf/eth0/accept_ra=2", "net/ipv6/conf/all/forwarding=1"]),
        # Somebody set accept_ra back to 1 while the route still lives; and the same without one, as on every veth.
        (conf(6, all=(1, 1), eth0=(1, 1), veth=(1, 1)), [route("eth0")], ["net/ipv6/conf/eth0/accept_ra=2"]),
        (conf(6, all=(1, 1), eth0=(1, 1)), [route("eth0", protocol=4)], []),
        (conf(6, all=(1, 1), cni0=(1, 1)), [route("cni0")], []),
        ({}, [], []),
    ],
)
def test_writes(have: dict[str, str], routes: list[Route], expected: list[str]) -> None:
    assert [str(w) for w in writes(have, (4, 6), ("cni0",), routes)] == [f"sysctl -w {line}" for line in expected]


def test_only_the_families_asked_for() -> None:
    assert not writes(HOST6, (4,), (), [])


def test_routes_are_read_only_when_they_could_be_lost() -> None:
    assert routes_matter(HOST6, ())
    assert routes_matter(conf(6, all=(1, 1), eth0=(1, 1)), ())
    assert not routes_matter(conf(6, all=(1, 1), eth0=(1, 2), eth1=(1, 0), lo=(1, 1), cni0=(1, 1)), ("cni0",))


def test_what_the_kernel_spreads_is_noted_too() -> None:
    have = conf(4, all=(0, 0), default=(0, 1), eth0=(0, 1), eth1=(1, 1)) | conf(6, all=(0, 1), eth0=(0, 1), eth1=(1, 0))
    assert dict(notes(have, writes(have, (4, 6), (), []))) == {
        "net/ipv4/conf/all/forwarding": "0",
        "net/ipv4/conf/all/accept_redirects": "0",
        "net/ipv4/conf/eth1/forwarding": "1",
        "net/ipv6/conf/all/forwarding": "0",
        "net/ipv6/conf/eth0/accept_ra": "1",
        "net/ipv6/conf/eth1/forwarding": "1",
    }


ALL6, RA = "net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/accept_ra"


@pytest.mark.parametrize(
    ("noted", "now", "expected"),
    [
        ([(RA, "1"), (ALL6, "0")], {RA: "2", ALL6: "1"}, [(ALL6, "0"), (RA, "1")]),
        ([(RA, "1"), (ALL6, "0")], {RA: "0", ALL6: "1"}, [(ALL6, "0")]),
        ([(RA, "1"), (ALL6, "0")], {RA: "2", ALL6: "0"}, [(RA, "1")]),
        ([(RA, "1"), (ALL6, "0")], {ALL6: "1"}, [(ALL6, "0")]),
        # The first note is from before any agent.
        ([(ALL6, "0"), (ALL6, "1")], {ALL6: "1"}, [(ALL6, "0")]),
        # What `all` will trample on is written again after it, though it reads right before.
        (
            [("net/ipv6/conf/eth1/forwarding", "1"), (ALL6, "0")],
            {ALL6: "1", "net/ipv6/conf/eth1/forwarding": "1"},
            [(ALL6, "0"), ("net/ipv6/conf/eth1/forwarding", "1")],
        ),
        ([("net/ipv6/conf/eth1/forwarding", "1"), (ALL6, "0")], {ALL6: "0", "net/ipv6/conf/eth1/forwarding": "1"}, []),
        ([("net/core/rmem_max", "5")], {"net/core/rmem_max": "6"}, [("net/core/rmem_max", "5")]),
    ],
)
def test_restoration(noted: list[tuple[str, str]], now: dict[str, str], expected: list[tuple[str, str]]) -> None:
    assert [(w.key, w.value) for w in restoration(noted, now)] == expected


def test_a_lost_route_is_told_by_what_identifies_it() -> None:
    there = route("eth0")
    assert lost([there, route("eth1")], [route("eth1"), route("eth0", metric=5)]) == [there]
    assert lost([Route(DEFAULT, "eth0", bytes(16), other=b"expires")], []) == [Route(DEFAULT, "eth0", bytes(16))]
    assert not lost([Route(DEFAULT, "eth0", bytes(16), other=b"1799 s")], [Route(DEFAULT, "eth0", bytes(16), other=b"1798 s")])
