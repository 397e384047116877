"""The kernel's answers as rows: what is cut or damaged is read or refused with a ValueError, whatever it is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import strategies as st
from tests.unit.spelling import cases, damages

from tweed.addr import Prefix
from tweed.model import Change, FdbEntry, InterfaceAddress, Neighbour, Route, Vtep
from tweed.trace import rtnetlink as r
from tweed.trace import rtnetlink_routes as routing
from tweed.wire import link, rtnl, rule
from tweed.wire.netlink import attribute, message, u32

MAC, HOST = bytes.fromhex("862266410001"), bytes([192, 168, 2, 1])
INDEX = {"flannel.1": 7}
RULE = message(
    rule.RTM_NEWRULE,
    0,
    rule.RULE.pack(2, 0, 16, 0, 100, 1, 0),
    u32(rule.FRA_PRIORITY, 10),
    attribute(rule.FRA_SRC, bytes([10, 244, 0, 0])),
    attribute(rule.FRA_IP_PROTO, b"\6"),
    attribute(rule.FRA_DPORT_RANGE, routing.U16_PAIR.pack(80, 90)),
)
NEXTHOP = message(
    routing.RTM_NEWNEXTHOP, 0, routing.NHMSG.pack(2, 0, 0, 0, 0), u32(routing.NHA_ID, 5), u32(routing.NHA_OIF, 7), attribute(routing.NHA_GATEWAY, HOST)
)
VTEP = Vtep("flannel.1", 1, 8472, HOST, "eth0", MAC, 1450, Prefix(HOST, 32))


def rows(row) -> bytes:
    return rtnl.encode(Change("replace", row), INDEX)


SAMPLES = [
    (link.new_vtep(VTEP, 3), lambda data: r.devices(data, {3: "eth0"})),
    (rows(InterfaceAddress("flannel.1", Prefix(HOST, 24))), lambda data: r.addresses(data, {7: "flannel.1"})),
    (rows(Route(Prefix(bytes([10, 0, 0, 0]), 8), "flannel.1", HOST, 5, onlink=True)), lambda data: routing.routes(data, {7: "flannel.1"})),
    (rows(Neighbour(HOST, "flannel.1", MAC)), lambda data: r.neighbours(data, {7: "flannel.1"})),
    (rows(FdbEntry(MAC, "flannel.1", HOST, port=1, vni=2, via=3)), lambda data: r.fdb(data, {7: "flannel.1", 3: "eth0"})),
    (RULE, routing.rules),
    (NEXTHOP, lambda data: routing.nexthops(data, {7: "flannel.1"})),
]
TEXTS = [
    "0: flannel.1: <> mtu 1450\n    link/ether 86:22:66:41:00:01 promiscuity 0\n    vxlan id 1 local 192.168.2.1 dev eth0 dstport 8472 nolearning ttl auto",
    "inet 192.168.2.1/24 scope global dynamic flannel.1",
    "10.0.0.0/8 via 192.168.2.1 dev flannel.1 proto 83 metric 5 onlink",
    "192.168.2.1 dev flannel.1 lladdr 86:22:66:41:00:01 PERMANENT",
    "86:22:66:41:00:01 dev flannel.1 dst 192.168.2.1 port 1 vni 2 via eth0 self permanent",
    "10: from 10.244.0.0/16 ipproto 6 dport 80-90 lookup 100",
    "id 5 via 192.168.2.1 dev flannel.1",
]


@pytest.mark.parametrize(("number", "text"), [*enumerate(TEXTS)])
def test_a_row_says_what_iproute2_would(number: int, text: str):
    data, read = SAMPLES[number]
    (row,) = read([data])
    assert row.text.replace(" state DOWN", "") == text


@cases(100, st.sampled_from(SAMPLES), damages)
def test_what_is_damaged_is_read_or_refused(sample, damage):
    message, read = sample
    changed = damage.done_to(message, head=16)
    with contextlib.suppress(ValueError):
        assert isinstance(read([len(changed).to_bytes(4, "little") + changed[4:]]), list)
