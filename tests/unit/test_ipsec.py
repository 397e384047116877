"""Which IPsec policy stops a packet, and when that is not certain. That the kernel chooses so is tests/kernel/test_xfrm.py's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tweed.addr import Prefix
from tweed.addr import parse_address as ip
from tweed.trace.firewall import Facts
from tweed.trace.snapshot import PolicyRow
from tweed.trace.xfrm import stopped

PING = Facts(ip("10.244.0.2"), ip("10.244.2.2"), 1, iif="cni0", oif="flannel.1")
OUTER = Facts(ip("192.168.2.200"), ip("10.244.2.2"), 17, None, 8472, "", "ens33")


def policy(**more: Any) -> PolicyRow:
    told: dict[str, Any] = {"src": Prefix.parse("0.0.0.0/0"), "dst": Prefix.parse("10.244.2.0/24"), "direction": "out", "action": "block", "priority": 0}
    return PolicyRow(source="", text="", family=4, **(told | more))


TEMPLATES = {"action": "allow", "transforms": True, "templates": 1}


@pytest.mark.parametrize(
    ("rows", "facts", "direction", "certain"),
    [
        ([policy()], PING, "out", True),
        ([policy()], PING, "fwd", None),
        ([policy(action="allow")], PING, "out", None),
        ([policy(proto=17)], PING, "out", None),
        ([policy(if_id=3)], PING, "out", None),  # only what goes through an interface with that number
        ([policy(mark=(7, 255))], PING, "out", None),
        ([policy(mark=(0, 255))], PING, "out", True),
        ([policy(priority=2), policy(action="allow", priority=1)], PING, "out", None),
        ([policy(), policy(action="allow")], PING, "out", None),  # of equals the oldest, which is the last
        ([policy(dport=(8472, 65535))], OUTER, "out", True),
        ([policy(dport=(8000, 65535))], OUTER, "out", None),
        ([policy(dport=(8448, 0xFFC0))], OUTER, "out", True),  # 8448 to 8511
        ([policy(action="allow", sport=(1, 65535)), policy(priority=1)], OUTER, "out", False),  # its source port is a hash
        ([policy(device="ens33", priority=0), policy(priority=1)], OUTER, "out", False),
        ([policy(**TEMPLATES)], PING, "out", False),  # there may be keys
        ([policy(**TEMPLATES, direction="in")], PING, "in", True),  # it has not come out of a tunnel of IPsec's
        ([policy(**(TEMPLATES | {"templates": 0}), direction="in")], PING, "in", False),
    ],
)
def test_a_policy(rows: list[PolicyRow], facts: Facts, direction: str, certain: bool | None):
    found = stopped(rows, direction, facts)
    assert (found[1] if found is not None else None) is certain


def test_the_other_family_is_none_of_its_business():
    assert stopped([policy(dst=Prefix.parse("0.0.0.0/0"))], "out", msgspec.structs.replace(PING, dst=ip("fd00::2"), src=ip("fd00::1"))) is None
