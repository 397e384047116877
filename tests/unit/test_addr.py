"""Addresses and prefixes as bytes, against Python's own ipaddress."""

from __future__ import annotations

import ipaddress

import pytest
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix


def dotted(choose: Choices) -> str:
    return ".".join(choose.one_of(("0", "10", "255", "256", "010", "", "1a", str(choose.number(0, 255)))) for _ in range(choose.one_of((4, 4, 4, 3, 5))))


@spelled(60)
def texts(choose: Choices) -> str:
    address = choose.one_of((dotted(choose), dotted(choose), "::", "fd00::1", "fe80::1%eth0", "::ffff:10.0.0.1", choose.text(6)))
    length = choose.one_of(
        ("", "/0", "/8", "/024", "/08", "/32", "/33", "/128", "/129", "/-1", "/", "/255.0.0.0", "/0.0.0.255", "/٨", f"/{choose.number(0, 130)}")
    )
    return choose.one_of(("", " ")) + address + length + choose.one_of(("", "\n"))


@cases(100, texts)
def test_a_prefix_is_read_as_ipaddress_reads_it(text: str):
    try:
        interface = ipaddress.ip_interface(text.strip())
    except ValueError:
        with pytest.raises(ValueError, match="is not a network in CIDR form"):
            Prefix.parse(text)
    else:
        assert Prefix.parse(text) == Prefix(interface.ip.packed, interface.network.prefixlen)


@spelled(30)
def prefixes(choose: Choices) -> list[Prefix]:
    """Two that are often near each other."""
    size = choose.one_of((4, 16))
    base = choose.bytes(size - 1)
    pair = [Prefix(base + choose.bytes(1), choose.one_of((0, 8 * size, choose.number(8 * size - 9, 8 * size)))) for _ in range(2)]
    return [pair[0], choose.one_of((pair[1], pair[1], Prefix(bytes(20 - size), 0)))]


@cases(100, prefixes)
def test_what_is_inside_is_what_has_all_its_addresses_inside(pair: list[Prefix]):
    outer, inner = (ipaddress.ip_interface((prefix.address, prefix.length)).network for prefix in pair)
    same = outer.version == inner.version
    assert pair[0].contains(pair[1]) == (same and inner.subnet_of(outer))
    assert pair[0].contains(pair[1].address) == (ipaddress.ip_address(pair[1].address) in outer)
    assert pair[0].overlaps(pair[1]) == (same and outer.overlaps(inner))
