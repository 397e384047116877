"""RTM_NEWNETCONF to values: rows, and whatever else a kernel might send."""

import contextlib
import struct

import pytest
from hypothesis import strategies as st
from tests.unit.spelling import cases

from tweed.model import Netconf
from tweed.wire import netconf
from tweed.wire.netlink import attribute, message

NAMES = {2: "ens33"}


def announced(family: int, *parts: tuple[int, int], kind: int = netconf.RTM_NEWNETCONF) -> bytes:
    return message(kind, 0, bytes([family, 0, 0, 0]), *(attribute(number, struct.pack("=i", value)) for number, value in parts))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (announced(2, (1, 2), (2, 0)), [Netconf(4, "ens33", False)]),
        (announced(10, (1, -1), (2, 1), (3, 0)), [Netconf(6, "all", True)]),
        (announced(2, (1, -2), (2, 0)) + announced(10, (1, 2), (2, 1)), [Netconf(4, "default", False), Netconf(6, "ens33", True)]),
        (announced(2, (1, 2), (3, 1)), []),  # rp_filter alone
        (announced(28, (1, 2), (2, 0)), []),  # MPLS
        (announced(2, (1, 2), (2, 0), kind=81), []),  # a device that went
        (b"", []),
    ],
)
def test_what_is_announced(data, expected):
    assert netconf.decode(data, NAMES) == expected


@cases(100, st.binary(max_size=60), st.sampled_from([2, 10]))
def test_rubbish_is_refused_or_passed_over(rubbish, family):
    data = message(netconf.RTM_NEWNETCONF, 0, bytes([family, 0, 0, 0]), rubbish)
    with contextlib.suppress(ValueError, KeyError):
        assert all(isinstance(each, Netconf) for each in netconf.decode(data, dict.fromkeys(range(1 << 8), "x")))
