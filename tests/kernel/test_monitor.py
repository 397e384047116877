"""What the monitor hears of, against the real kernel."""

from __future__ import annotations

import select
import socket

import pytest

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.kernel import attach, tables
from tweed.kernel.monitor import LINK, Monitor, Notice
from tweed.kernel.netlink import Netlink
from tweed.model import PROTOCOL_BOOT, Change, FdbEntry, InterfaceAddress, Link, Neighbour, Netconf, Route
from tweed.plan.attach import SetLink
from tweed.wire.link import RTM_DELLINK

MAC = parse_mac("00:11:22:33:44:55")
ROWS = [
    FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2")),
    Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC),
    Route(Prefix.parse("10.244.1.0/24"), "flannel.1", parse_address("10.244.1.0"), onlink=True),
    Neighbour(parse_address("fd00:1:0:1::"), "flannel.1", MAC),
    Route(Prefix.parse("fd00:1:0:1::/64"), "flannel.1", parse_address("fd00:1:0:1::"), 1024, onlink=True),
    InterfaceAddress("flannel.1", Prefix.parse("10.244.0.7/32")),
    InterfaceAddress("flannel.1", Prefix.parse("fd00:1::7/128"), nodad=True),
]


@pytest.fixture
def node(netns):
    netns.run("""
        ip link add u0 type veth peer name u1; ip link set u0 addrgenmode none; ip link set u1 addrgenmode none
        ip addr add 192.0.2.1/24 dev u0; ip link set u0 up; ip link set u1 up
        ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dev u0 dstport 8472 nolearning; ip link set flannel.1 addrgenmode none; ip link set flannel.1 up
        ip addr add 10.244.0.0/32 dev flannel.1; ip addr add fd00:1::/128 dev flannel.1 nodad
    """)
    netns.until("ip -6 route show table local | grep -q '^local fd00:1:: '")
    return netns


@pytest.fixture
def monitor(node):
    opened = Monitor(node.fd)
    yield opened
    opened.close()


def told(monitor: Monitor) -> list[tuple[str, str, str]]:
    """All notices as text; of links their names."""
    return [(notice.kind, notice.op, notice.row.name if isinstance(notice.row, Link) else str(notice.row)) for notice in monitor.drain()]


def tables_of(monitor: Monitor) -> list[Notice]:
    """Notices about unicast rows that somebody made: what the kernel does for a new device comes at any time."""
    everything = [notice for notice in monitor.drain() if notice.kind in ("route", "neighbour", "fdb", "overrun")]
    return [notice for notice in everything if not (isinstance(notice.row, Route) and notice.row.protocol == 2) and getattr(notice.row, "state", 0) != 0x40]


def wait_for(monitor: Monitor, wanted: set[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
    """What is told until all that is wanted has been: new IPv6 addresses are announced from a work queue."""
    found = set(told(monitor))
    for _ in range(100):
        if found >= wanted:
            break
        select.select([monitor], [], [], 0.05)
        found |= set(told(monitor))
    return found


def apply(nl: Netlink, op: str, rows: list) -> None:
    assert tables.apply(nl, tuple(Change(op, row) for row in rows)) == ()


def test_foreign_changes_come_with_their_rows(node, monitor):
    node.run("""
        ip neigh add 10.244.1.0 lladdr 00:11:22:33:44:55 dev flannel.1
        bridge fdb add 00:11:22:33:44:55 dev flannel.1 dst 192.0.2.2
        ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink
        ip -6 route add fd00:1:0:1::/64 via fd00:1:0:1:: dev flannel.1 onlink
    """)
    neighbour, fdb, route, route6 = notices = tables_of(monitor)
    assert [(notice.kind, notice.op) for notice in notices] == [("neighbour", "new"), ("fdb", "new"), ("route", "new"), ("route", "new")]
    assert neighbour.row == Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC)
    assert fdb.row == FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2"))
    assert route.row == Route(Prefix.parse("10.244.1.0/24"), "flannel.1", parse_address("10.244.1.0"), protocol=PROTOCOL_BOOT, onlink=True)
    assert route6.row.gateway == parse_address("fd00:1:0:1::")
    assert neighbour.port != 0 and route.port not in (0, neighbour.port)
    node.run("""
        ip route del 10.244.1.0/24
        ip neigh del 10.244.1.0 dev flannel.1
        bridge fdb del 00:11:22:33:44:55 dev flannel.1
    """)
    notices = tables_of(monitor)
    assert [(notice.kind, notice.row) for notice in notices if notice.op == "del"] == [("route", route.row), ("neighbour", notices[-2].row), ("fdb", fdb.row)]
    assert notices[-2].row.address == parse_address("10.244.1.0")
    assert tables_of(monitor) == []


def test_our_own_changes_are_not_told(node, monitor):
    monitor.own.add(node.nl.port)
    for op in ("replace", "delete"):
        changes = tuple(Change(op, row) for row in ROWS)
        assert tables.apply(node.nl, changes) == ()
        monitor.expect(changes)
        # The IPv6 address is announced a moment later, together with the route that the kernel makes for it.
        local = ("route", {"replace": "new", "delete": "del"}[op], "local fd00:1::7 dev flannel.1 table local proto kernel")
        left = wait_for(monitor, {local})
        assert local in left
        assert not [kind for kind, _, text in left if kind not in ("link", "route") or (kind == "route" and "proto kernel" not in text)], left


def test_the_same_rows_of_somebody_else_are_told(node, monitor):
    monitor.own.add(node.nl.port)
    with Netlink(node.fd) as stranger:
        apply(stranger, "replace", ROWS)
        kinds = ["fdb", "neighbour", "route", "neighbour", "route", "address", "address"]
        wanted = {(kind, "new", str(row).removesuffix(" nodad")) for kind, row in zip(kinds, ROWS, strict=True)}
        assert wait_for(monitor, wanted) >= wanted


def test_what_was_expected_is_forgotten(node, monitor):
    fdb = ROWS[0]
    monitor.expect((Change("replace", fdb),))
    assert tables_of(monitor) == []
    with Netlink(node.fd) as stranger:
        apply(stranger, "replace", [fdb])
        assert tables_of(monitor) == [Notice("fdb", "new", fdb)]
        monitor.expect((Change("replace", fdb),))
        apply(stranger, "delete", [fdb])
        assert tables_of(monitor) == [Notice("fdb", "del", fdb)]  # the opposite of what was expected


def test_forwarding_is_told(node, monitor):
    node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    monitor.drain()
    node.run("sysctl -qw net.ipv4.conf.u0.forwarding=0 net.ipv4.conf.u0.rp_filter=1 net.ipv6.conf.u1.forwarding=0")
    assert [notice.row for notice in monitor.drain() if notice.kind == "netconf"] == [Netconf(4, "u0", False), Netconf(6, "u1", False)]
    node.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    told = {notice.row for notice in monitor.drain() if notice.kind == "netconf"}
    assert {Netconf(family, name, False) for family in (4, 6) for name in ("all", "default", "u0")} <= told | {Netconf(4, "u0", False)}


def test_one_kind_of_message_alone(node):
    monitor = Monitor(node.fd, LINK, RTM_DELLINK)
    try:
        node.run("ip link add b0 type bridge; ip link set b0 up; ip link set b0 mtu 1400; ip link del b0; ip link add b1 type bridge")
        assert {(notice.op, notice.row.name) for notice in monitor.drain()} == {("del", "b0")}
    finally:
        monitor.close()


def test_devices_come_and_go_by_name(node, monitor):
    node.run("ip link add b0 address 02:00:00:00:00:01 type bridge")
    (notice,) = [notice for notice in monitor.drain() if notice.kind == "link"]
    assert (notice.op, notice.row.name, notice.row.kind, notice.row.mac) == ("new", "b0", "bridge", parse_mac("02:00:00:00:00:01"))
    node.run("ip link set b0 name b1; ip link set b1 addrgenmode none; ip link set b1 up; ip addr add 10.1.1.1/32 dev b1")
    notices = told(monitor)
    assert ("address", "new", "10.1.1.1/32 dev b1") in notices
    assert ("link", "new", "b1") in notices
    node.run("ip link del b1")
    notices = told(monitor)
    assert ("link", "del", "b1") in notices
    assert ("address", "del", "10.1.1.1/32 dev b1") in notices  # by its name to the last
    assert not [text for _, _, text in notices if "dev if" in text]


def test_the_device_going_down_is_told_with_what_goes_with_it(node, monitor):
    apply(node.nl, "replace", ROWS)
    monitor.drain()
    node.run("ip link set flannel.1 down")
    notices = told(monitor)
    assert ("link", "new", "flannel.1") in notices
    assert ("neighbour", "del") in {(kind, op) for kind, op, _ in notices}
    node.run("ip link del flannel.1")
    assert ("link", "del", "flannel.1") in told(monitor)


def test_every_next_hop_is_a_notice(node, monitor):
    node.run("ip route add 10.244.1.0/24 proto 83 nexthop via 10.244.1.0 dev flannel.1 onlink nexthop via 192.0.2.9 dev u0")
    assert [(notice.kind, notice.row.device) for notice in tables_of(monitor)] == [("route", "flannel.1"), ("route", "u0")]


def test_an_overrun_is_told(node, monitor):
    monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least that the kernel allows
    rows = [Neighbour(bytes([10, 244, 1, last]), "flannel.1", MAC) for last in range(200)]
    apply(node.nl, "replace", rows)
    kinds = [notice.kind for notice in tables_of(monitor)]
    assert "overrun" in kinds
    assert len(kinds) < len(rows)
    apply(node.nl, "replace", [ROWS[2]])
    assert tables_of(monitor) == [Notice("route", "new", ROWS[2], node.nl.port)]  # it goes on


def test_one_drain_is_bounded(node, monitor, monkeypatch):
    monkeypatch.setattr("tweed.kernel.monitor.DRAIN", 5)
    rows = [Neighbour(bytes([10, 244, 1, last]), "flannel.1", MAC) for last in range(12)]
    apply(node.nl, "replace", rows)
    assert [len(tables_of(monitor)) for _ in range(4)] == [5, 5, 2, 0]


def test_it_can_be_waited_for(node, monitor):
    monitor.drain()
    apply(node.nl, "replace", [ROWS[2]])
    assert select.select([monitor], [], [], 5)[0] == [monitor]


def test_groups_and_namespaces(node, netns2):
    quiet, elsewhere = Monitor(node.fd, groups=0), Monitor(netns2.fd)
    try:
        apply(node.nl, "replace", ROWS)
        assert tables_of(quiet) == tables_of(elsewhere) == []
        attach.apply(node.nl, [SetLink("flannel.1", alias="of ours")], {})
        assert [notice.row.alias for notice in quiet.drain() if notice.row.name == "flannel.1"][-1] == "of ours"
    finally:
        quiet.close()
        elsewhere.close()
