"""The four tables against the real kernel, with `ip` and `bridge` as the second opinion."""

from __future__ import annotations

import errno

import msgspec
import pytest

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.errors import KernelError
from tweed.kernel import links, tables
from tweed.model import NUD_PERMANENT, NUD_REACHABLE, PROTOCOL_BOOT, PROTOCOL_KERNEL, Change, FdbEntry, InterfaceAddress, Neighbour, Route

MAC, MAC2 = parse_mac("00:11:22:33:44:55"), parse_mac("00:11:22:33:44:66")
NETWORK, NETWORK6 = Prefix.parse("10.244.0.0/16"), Prefix.parse("fd00:1::/32")


@pytest.fixture
def node(netns):
    """A namespace with an underlay 192.0.2.1 and 2001:db8::1 on u0, flannel.1 and flannel-v6.1, and a bridge cni0 with the port p0."""
    netns.run("""
        ip link add u0 type veth peer name u1; ip link set u0 addrgenmode none; ip link set u1 addrgenmode none
        ip addr add 192.0.2.1/24 dev u0; ip addr add 2001:db8::1/64 dev u0 nodad
        ip link set u0 up; ip link set u1 up
        ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dev u0 dstport 8472 nolearning
        ip link add flannel-v6.1 type vxlan id 1 local 2001:db8::1 dev u0 dstport 8472 nolearning
        ip link add cni0 address 02:00:00:00:00:01 type bridge; ip link add p0 type veth peer name p1; ip link set p0 master cni0
        for d in flannel.1 flannel-v6.1 cni0 p0 p1; do ip link set $d addrgenmode none; ip link set $d up; done
        ip addr add 10.244.0.0/32 dev flannel.1; ip addr add fd00:1::/128 dev flannel-v6.1 nodad
        ip addr add 10.244.0.1/24 dev cni0
    """)
    return netns


def subnet_route(text: str, device: str = "flannel.1", **fields) -> Route:
    dst = Prefix.parse(text)
    return Route(dst, device, **{"gateway": dst.address, "onlink": True, "metric": 1024 if dst.family == 6 else 0, **fields})


def put(node, *rows) -> None:
    assert tables.apply(node.nl, tuple(Change("replace", row) for row in rows)) == ()


def remove(node, *rows) -> None:
    assert tables.apply(node.nl, tuple(Change("delete", row) for row in rows)) == ()


# ---- put, replace, delete ---------------------------------------------------------------------------------------


def dump_of(node, row):
    """The table that the row lives in, with its own filter."""
    if isinstance(row, Route):
        return tables.routes(node.nl, row.dst.family, table=row.table, device=row.device or None)
    if isinstance(row, Neighbour):
        return tables.neighbours(node.nl, row.device, 4 if len(row.address) == 4 else 6)
    if isinstance(row, FdbEntry):
        return tables.fdb(node.nl, row.device)
    return tables.addresses(node.nl, row.device, row.address.family)


ROWS = [
    subnet_route("10.244.1.0/24"),
    subnet_route("10.244.1.0/24", metric=7, protocol=PROTOCOL_BOOT),
    subnet_route("10.244.1.0/24", table=1000),
    subnet_route("10.244.1.0/24", table=100, src=parse_address("10.244.0.1")),
    subnet_route("fd00:1:0:1::/64", "flannel-v6.1"),
    subnet_route("fd00:1:0:1::/64", "flannel-v6.1", metric=5, protocol=PROTOCOL_BOOT, src=parse_address("fd00:1::")),
    Route(Prefix.parse("10.99.0.0/16"), "u0", parse_address("192.0.2.9"), metric=3),
    Route(Prefix.parse("10.98.0.0/16"), "u0", scope=253),
    Route(Prefix.parse("10.97.0.1/32"), "u0", parse_address("2001:db8::9")),
    Route(Prefix.parse("0.0.0.0/0"), "u0", parse_address("192.0.2.9"), protocol=PROTOCOL_BOOT),
    Route(Prefix.parse("::/0"), "u0", parse_address("2001:db8::9"), metric=1024),
    Route(Prefix.parse("10.96.0.0/16"), "", type=6),
    Route(Prefix.parse("10.95.0.0/16"), "", type=7, metric=9),
    Route(Prefix.parse("fd09::/16"), "lo", type=6, metric=1024),
    Route(Prefix.parse("10.94.0.1/32"), "u0", type=2, scope=254, table=255),
    Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC),
    Neighbour(parse_address("10.244.1.1"), "flannel.1", MAC, NUD_REACHABLE),
    Neighbour(parse_address("fd00:1:0:1::"), "flannel-v6.1", MAC),
    FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2")),
    FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2"), permanent=False),
    FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2"), port=4789, vni=7, via=1),
    FdbEntry(MAC, "flannel-v6.1", parse_address("2001:db8::2")),
    FdbEntry(MAC, "p0", master=True),
    FdbEntry(MAC, "p0", master=True, permanent=False),
    InterfaceAddress("flannel.1", Prefix.parse("10.244.0.7/32")),
    InterfaceAddress("flannel.1", Prefix.parse("10.244.0.9/24"), scope=253),
    InterfaceAddress("flannel-v6.1", Prefix.parse("fd00:1::7/128"), nodad=True),
]


def shape(row) -> str:
    return f"{type(row).__name__}-{row}".replace(" ", "_")


@pytest.mark.parametrize("row", ROWS, ids=shape)
def test_every_kind_of_row_is_put_seen_and_deleted(node, row):
    seen = msgspec.structs.replace(row, nodad=False) if isinstance(row, InterfaceAddress) else row
    before = dump_of(node, row)
    assert not tables.present(node.nl, row)
    put(node, row)
    assert sorted(map(str, dump_of(node, row))) == sorted([*map(str, before), str(seen)])
    assert seen in dump_of(node, row)
    assert tables.present(node.nl, row)
    put(node, row)  # once more is once
    assert dump_of(node, row).count(seen) == 1
    remove(node, row)
    assert not tables.present(node.nl, row)
    assert dump_of(node, row) == before
    remove(node, row)  # gone already is no failure


@pytest.mark.parametrize("row", ROWS, ids=shape)
def test_every_change_prints_as_a_command_that_works(node, row):
    seen = msgspec.structs.replace(row, nodad=False) if isinstance(row, InterfaceAddress) else row
    before = dump_of(node, row)
    node.run(str(Change("replace", row)))
    assert seen in dump_of(node, row)
    assert len(dump_of(node, row)) == len(before) + 1
    node.run(str(Change("delete", row)))
    assert dump_of(node, row) == before


SHOWN = [row for row in ROWS if not isinstance(row, InterfaceAddress)]


@pytest.mark.parametrize("row", SHOWN, ids=shape)
def test_every_row_prints_as_its_tool_prints_it(node, row):
    put(node, row)
    if isinstance(row, Route):
        lines, wanted = [line.removesuffix(" pref medium") for line in node.lines(f"ip -{row.dst.family} route show table all")], str(row)
    elif isinstance(row, Neighbour):
        lines, wanted = node.lines("ip neigh show; ip -6 neigh show"), str(row)
    else:
        lines, wanted = node.lines("bridge fdb show"), str(row).replace(" master", " master cni0").replace("via if1", "via lo")
    assert wanted in lines


def test_replacing_changes_what_a_row_leads_to(node):
    put(node, ROWS[0], Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC), FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2")))
    other = subnet_route("10.244.1.0/24", gateway=parse_address("10.244.1.9"))
    put(node, other, Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC2), FdbEntry(MAC, "flannel.1", parse_address("192.0.2.3")))
    assert tables.routes(node.nl, 4, device="flannel.1", inside=NETWORK) == [other]
    assert tables.neighbours(node.nl, "flannel.1", 4) == [Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC2)]
    assert tables.fdb(node.nl, "flannel.1") == [FdbEntry(MAC, "flannel.1", parse_address("192.0.2.3"))]


# ---- dumps ------------------------------------------------------------------------------------------------------


def test_route_dumps_are_narrowed(node):
    ours, boot = subnet_route("10.244.1.0/24"), subnet_route("10.244.2.0/24", protocol=PROTOCOL_BOOT)
    elsewhere, outside = Route(Prefix.parse("10.244.3.0/24"), "u0", parse_address("192.0.2.9")), subnet_route("10.7.0.0/24")
    put(node, ours, boot, elsewhere, outside, subnet_route("10.244.4.0/24", table=77))
    by_device = tables.routes(node.nl, 4, device="flannel.1")
    assert set(by_device) == {ours, boot, outside}
    assert set(tables.routes(node.nl, 4, protocol=83)) == {ours, elsewhere, outside}
    assert tables.routes(node.nl, 4, device="flannel.1", protocol=PROTOCOL_BOOT) == [boot]
    assert {row.device for row in tables.routes(node.nl, 4, inside=NETWORK)} == {"flannel.1", "u0", "cni0"}
    assert tables.routes(node.nl, 4, table=77) == [subnet_route("10.244.4.0/24", table=77)]
    assert tables.routes(node.nl, 4, table=78) == []
    assert tables.routes(node.nl, 4, device="nosuch") == []
    everything = tables.routes(node.nl, 4, table=None)
    assert {77, 254, 255} == {row.table for row in everything}
    connected = Route(Prefix.parse("10.244.0.0/24"), "cni0", protocol=PROTOCOL_KERNEL, scope=253, src=parse_address("10.244.0.1"))
    assert connected in tables.routes(node.nl, 4)


def test_ipv6_route_dumps_are_narrowed(node):
    ours, outside = subnet_route("fd00:1:0:1::/64", "flannel-v6.1"), subnet_route("fd77::/64", "flannel-v6.1")
    put(node, ours, outside)
    assert tables.routes(node.nl, 6, protocol=83, inside=NETWORK6) == [ours]
    assert set(tables.routes(node.nl, 6, device="flannel-v6.1", protocol=83)) == {ours, outside}
    assert tables.routes(node.nl, 6, device="u0", protocol=83) == []
    assert tables.routes(node.nl, 6, table=4711) == []


def test_dumps_hold_what_the_tools_show(node):
    """Every row of every table prints as a line of `ip` or `bridge`, and there are no others."""
    put(node, *(row for row in ROWS if not isinstance(row, InterfaceAddress)))
    for family in (4, 6):
        lines = [line.removesuffix(" pref medium").replace(" metric 0", "") for line in node.lines(f"ip -{family} route show table all")]
        assert sorted(map(str, tables.routes(node.nl, family, table=None))) == sorted(lines)
        for device in ("flannel.1", "flannel-v6.1", "u0"):
            shown = [line.replace(" lladdr", f" dev {device} lladdr") for line in node.lines(f"ip -{family} neigh show dev {device}")]
            assert sorted(map(str, tables.neighbours(node.nl, device, family))) == sorted(shown)
    for device in ("flannel.1", "flannel-v6.1", "p0", "u0"):
        shown = [
            f"{line[:17]} dev {device}{line[17:]}".replace("master cni0", "master").replace("via lo", "via if1")
            for line in node.lines(f"bridge fdb show dev {device}")
        ]
        assert sorted(map(str, tables.fdb(node.nl, device))) == sorted(shown)
        assert device == "u0" or shown
    shown = [line.replace("master cni0", "master") for line in node.lines("bridge fdb show br cni0")]
    assert sorted(map(str, tables.fdb(node.nl, "cni0"))) == sorted(shown)
    assert {row.device for row in tables.fdb(node.nl, "cni0")} == {"cni0", "p0"}


def test_addresses(node):
    own, own6 = InterfaceAddress("flannel.1", Prefix.parse("10.244.0.0/32")), InterfaceAddress("flannel-v6.1", Prefix.parse("fd00:1::/128"))
    assert tables.addresses(node.nl, "flannel.1") == [own]
    assert tables.addresses(node.nl, "flannel-v6.1", 6) == [own6]
    assert tables.addresses(node.nl, "flannel-v6.1", 4) == []
    assert tables.addresses(node.nl, "nosuch") == []
    everything = tables.addresses(node.nl)
    assert {own, own6, InterfaceAddress("lo", Prefix.parse("127.0.0.1/8"), 254), InterfaceAddress("u0", Prefix.parse("192.0.2.1/24"))} <= set(everything)
    assert {row.address.family for row in tables.addresses(node.nl, family=6)} == {6}


def test_neighbours_of_other_devices_and_states(node):
    put(node, Neighbour(parse_address("192.0.2.9"), "u0", MAC), Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC))
    node.run("ip neigh add proxy 10.244.9.9 dev flannel.1; ip neigh add 10.244.8.8 lladdr 00:11:22:33:44:99 dev flannel.1 nud noarp")
    assert tables.neighbours(node.nl, "flannel.1", 4) == [Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC)]
    node.run("ip neigh add 10.244.7.7 dev flannel.1 nud failed")
    (failed,) = (row for row in tables.neighbours(node.nl, "flannel.1", 4) if row.state != NUD_PERMANENT)
    assert str(failed) == "10.244.7.7 dev flannel.1 FAILED"
    assert tables.neighbours(node.nl, "flannel.1", 6) == []
    assert tables.neighbours(node.nl, "nosuch", 4) == []
    assert tables.fdb(node.nl, "nosuch") == []


# ---- rows that are nearly the same ------------------------------------------------------------------------------


def ours_and(node, command: str, ours: Route) -> Route:
    """Puts our route, runs a stranger's command, and returns the one row that this added beside ours."""
    put(node, ours)
    node.run(command)
    rows = tables.routes(node.nl, ours.dst.family, inside=ours.dst)
    assert len(rows) == 2 and ours in rows
    rows.remove(ours)
    return rows[0]


SIBLINGS = [
    ("ip route append 10.244.1.0/24 via 10.244.1.9 dev flannel.1 onlink metric 5 proto 83", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route append 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink metric 5 proto boot", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route append 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink metric 5 proto 83 mtu 1400", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route append 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink metric 5 proto 83 advmss 900", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route append 10.244.1.0/24 via 192.0.2.9 dev u0 metric 5 proto 83", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route append 10.244.1.0/24 dev flannel.1 metric 5 proto 83", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route append 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink metric 5 proto 83 src 10.244.0.1", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route append blackhole 10.244.1.0/24 metric 5 proto 83", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink proto 83", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink proto 83 metric 6", subnet_route("10.244.1.0/24", metric=5)),
    ("ip route add 10.244.1.0/24 tos 0x10 via 10.244.1.0 dev flannel.1 onlink proto 83 metric 5", subnet_route("10.244.1.0/24", metric=5)),
    ("ip -6 route append fd00:1:0:1::/64 via fd00:1:0:1::9 dev flannel-v6.1 onlink metric 1024 proto 83", subnet_route("fd00:1:0:1::/64", "flannel-v6.1")),
    ("ip -6 route append fd00:1:0:1::/64 via 2001:db8::9 dev u0 metric 1024 proto 83", subnet_route("fd00:1:0:1::/64", "flannel-v6.1")),
    ("ip -6 route add fd00:1:0:1::/64 via fd00:1:0:1:: dev flannel-v6.1 onlink metric 5 proto 83", subnet_route("fd00:1:0:1::/64", "flannel-v6.1")),
    ("ip -6 route add fd00:1:0:1::/64 from fd00:9::/64 via fd00:1:0:1:: dev flannel-v6.1 onlink proto 83", subnet_route("fd00:1:0:1::/64", "flannel-v6.1")),
]


@pytest.mark.parametrize(("command", "ours"), SIBLINGS, ids=[command for command, _ in SIBLINGS])
def test_a_sibling_is_deleted_without_hurting_ours(node, command, ours):
    sibling = ours_and(node, command, ours)
    assert tables.present(node.nl, sibling)
    remove(node, sibling)
    assert tables.routes(node.nl, ours.dst.family, inside=ours.dst) == [ours]


@pytest.mark.parametrize(("command", "ours"), SIBLINGS, ids=[command for command, _ in SIBLINGS])
def test_ours_is_deleted_without_hurting_a_sibling(node, command, ours):
    sibling = ours_and(node, command, ours)
    remove(node, ours)
    assert tables.routes(node.nl, ours.dst.family, inside=ours.dst) == [sibling]


def test_an_equal_row_of_another_table_stays(node):
    ours = subnet_route("10.244.1.0/24", metric=5)
    put(node, ours, msgspec.structs.replace(ours, table=99))
    remove(node, msgspec.structs.replace(ours, table=99))
    assert tables.routes(node.nl, 4, table=None, inside=ours.dst) == [ours]


def test_ipv4_multipath_goes_as_a_whole(node):
    node.run("ip route add 10.244.1.0/24 proto 83 metric 5 nexthop via 10.244.1.0 dev flannel.1 onlink weight 3 nexthop via 192.0.2.9 dev u0")
    rows = tables.routes(node.nl, 4, inside=NETWORK, protocol=83)
    assert [(row.device, row.onlink) for row in rows] == [("flannel.1", True), ("u0", False)]
    assert subnet_route("10.244.1.0/24", metric=5) not in rows  # a hop among several is not our route
    assert [row.device for row in tables.routes(node.nl, 4, device="u0", protocol=83)] == ["u0"]
    assert all(tables.present(node.nl, row) for row in rows)
    assert tables.apply(node.nl, tuple(Change("delete", row) for row in rows)) == ()
    assert tables.routes(node.nl, 4, inside=NETWORK, protocol=83) == []


def test_ipv6_siblings_are_rows_of_their_own(node):
    hops = "nexthop via fd00:1:0:1:: dev flannel-v6.1 onlink nexthop via 2001:db8::9 dev u0 nexthop via 2001:db8::8 dev u0"
    node.run(f"ip -6 route add fd00:1:0:1::/64 proto 83 {hops}")
    rows = tables.routes(node.nl, 6, inside=NETWORK6, protocol=83)
    assert len(rows) == 3 and subnet_route("fd00:1:0:1::/64", "flannel-v6.1") in rows
    remove(node, *(row for row in rows if row.device == "u0"))
    assert tables.routes(node.nl, 6, inside=NETWORK6, protocol=83) == [subnet_route("fd00:1:0:1::/64", "flannel-v6.1")]


def test_routes_by_next_hop_object(node):
    node.run("ip nexthop add id 42 via 10.244.1.0 dev flannel.1 onlink; ip route add 10.244.1.0/24 nhid 42 metric 5 proto 83")
    (foreign,) = tables.routes(node.nl, 4, inside=NETWORK, protocol=83)
    ours = subnet_route("10.244.1.0/24", metric=5)
    assert (foreign.gateway, foreign.device) == (ours.gateway, ours.device)
    assert foreign != ours
    node.run("ip route append 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink metric 5 proto 83")
    remove(node, foreign)
    assert tables.routes(node.nl, 4, inside=NETWORK, protocol=83) == [ours]


@pytest.mark.parametrize("mac", ["00:00:00:00:00:00", "01:00:5e:00:00:01"])
def test_fdb_rows_of_one_mac(node, mac):
    """Only the zero MAC and groups can have several destinations."""
    rows = [FdbEntry(parse_mac(mac), "flannel.1", parse_address(f"192.0.2.{last}")) for last in (2, 3, 4)]
    rows.append(msgspec.structs.replace(rows[0], port=1))
    for row in rows:
        node.run(str(Change("replace", row)).replace("fdb replace", "fdb append"))
    assert sorted(tables.fdb(node.nl, "flannel.1"), key=str) == sorted(rows, key=str)
    assert all(tables.present(node.nl, row) for row in rows)
    assert not tables.present(node.nl, FdbEntry(parse_mac(mac), "flannel.1", parse_address("192.0.2.9")))
    remove(node, rows[1], rows[3])
    assert sorted(tables.fdb(node.nl, "flannel.1"), key=str) == [rows[0], rows[2]]


def test_a_unicast_mac_has_one_destination(node):
    """The kernel takes an append without a word and ignores it."""
    put(node, FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2")))
    node.run("bridge fdb append 00:11:22:33:44:55 dev flannel.1 dst 192.0.2.3")
    assert tables.fdb(node.nl, "flannel.1") == [FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2"))]


def test_vlans_of_a_bridge(node):
    if "unsupported" in node.run("ip link set cni0 type bridge vlan_filtering 1 2>/dev/null || echo unsupported"):
        pytest.skip("this kernel has no VLANs in bridges")
    node.run("bridge vlan add dev p0 vid 7; bridge vlan add dev p0 vid 8")
    seven, eight = (FdbEntry(MAC, "p0", master=True, vlan=vlan) for vlan in (7, 8))
    put(node, seven)
    node.run(str(Change("replace", eight)))
    assert {row for row in tables.fdb(node.nl, "p0") if row.mac == MAC} == {seven, eight}
    assert str(seven).replace("master", "master cni0") in node.lines("bridge fdb show")
    assert tables.lookup_fdb(node.nl, MAC, "cni0", master=True, vlan=7) == seven
    assert tables.lookup_fdb(node.nl, MAC, "cni0", master=True) is None
    remove(node, seven)
    assert (tables.present(node.nl, seven), tables.present(node.nl, eight)) == (False, True)
    node.run(str(Change("delete", eight)))
    assert not tables.present(node.nl, eight)


# ---- batches ----------------------------------------------------------------------------------------------------


def test_exactly_the_refused_come_back(node):
    good = [subnet_route(f"10.244.{number}.0/24") for number in range(1, 9)]
    unreachable = Route(Prefix.parse("10.244.50.0/24"), "flannel.1", parse_address("10.244.50.1"))
    no_device = [Neighbour(parse_address("10.244.50.0"), "nosuch", MAC), FdbEntry(MAC, "nosuch", parse_address("192.0.2.2"))]
    rows = [*good[:4], unreachable, *good[4:], *no_device]
    failures = tables.apply(node.nl, tuple(Change("replace", row) for row in rows))
    assert [(failure.change.row, failure.errno, failure.text) for failure in failures] == [
        (unreachable, errno.ENETUNREACH, "Nexthop has invalid gateway"),
        (no_device[0], errno.ENODEV, "No such device"),
        (no_device[1], errno.ENODEV, "No such device"),
    ]
    assert str(failures[0]) == "ip route replace 10.244.50.0/24 via 10.244.50.1 dev flannel.1 proto 83: Nexthop has invalid gateway"
    assert set(tables.routes(node.nl, 4, protocol=83)) == set(good)
    assert tables.apply(node.nl, ()) == ()


def test_deleting_what_is_not_there_is_no_failure(node):
    absent = [*ROWS, InterfaceAddress("u0", Prefix.parse("10.1.1.1/24")), Neighbour(parse_address("10.244.77.0"), "flannel.1", MAC)]
    assert tables.apply(node.nl, tuple(Change("delete", row) for row in absent)) == ()
    (failure,) = tables.apply(node.nl, (Change("delete", FdbEntry(MAC, "nosuch", parse_address("192.0.2.2"))),))
    assert failure.errno == errno.ENODEV


def test_thousands_of_leases_in_one_call(node):
    """4,000 leases are 12,000 messages, several batches; the bad ones are named, everything else is there."""
    rows, bad = [], []
    for number in range(4000):
        base = (10 << 24 | 244 << 16) + (number + 16 << 4)
        address, mac = base.to_bytes(4, "big"), b"\2\0" + base.to_bytes(4, "big")
        rows += [FdbEntry(mac, "flannel.1", address), Neighbour(address, "flannel.1", mac)]
        rows.append(Route(Prefix(address, 28), "flannel.1", address, metric=1 + number % 1023, onlink=number % 1000 != 999))
        bad += [] if rows[-1].onlink else [rows[-1]]
    failures = tables.apply(node.nl, tuple(Change("replace", row) for row in rows))
    assert [failure.change.row for failure in failures] == bad
    assert len(bad) == 4
    have = [*tables.fdb(node.nl, "flannel.1"), *tables.neighbours(node.nl, "flannel.1", 4), *tables.routes(node.nl, 4, protocol=83)]
    assert len(have) == len(rows) - 4
    assert set(have) == set(rows) - set(bad)
    assert tables.apply(node.nl, tuple(Change("delete", row) for row in reversed(rows))) == ()
    assert tables.fdb(node.nl, "flannel.1") == tables.neighbours(node.nl, "flannel.1", 4) == tables.routes(node.nl, 4, protocol=83) == []


# ---- single questions -------------------------------------------------------------------------------------------


def test_the_route_that_decides(node):
    wide, narrow, six = subnet_route("10.244.128.0/17", metric=3), subnet_route("10.244.129.0/24", metric=9), subnet_route("fd00:1:0:1::/64", "flannel-v6.1")
    put(node, wide, narrow, six)
    assert tables.lookup_route(node.nl, parse_address("10.244.129.77")) == narrow
    assert tables.lookup_route(node.nl, parse_address("10.244.200.77")) == wide
    assert tables.lookup_route(node.nl, parse_address("fd00:1:0:1::77")) == six
    assert tables.lookup_route(node.nl, parse_address("192.0.2.1")).type == 2
    for nowhere in ("172.16.0.1", "fd99::1"):
        with pytest.raises(KernelError, match=rf"^ip route get fibmatch {nowhere}: Network is unreachable$") as refused:
            tables.lookup_route(node.nl, parse_address(nowhere))
        assert refused.value.errno == errno.ENETUNREACH
    with pytest.raises(KernelError, match="no device nosuch"):
        tables.lookup_route(node.nl, parse_address("10.244.1.77"), src=parse_address("10.244.0.5"), iif="nosuch")


def test_the_route_that_decides_by_mark_source_device_and_ports(node):
    main, marked, by_source, by_port = (subnet_route("10.244.1.0/24", table=table) for table in (254, 101, 102, 103))
    put(node, main, marked, by_source, by_port)
    node.run("""
        sysctl -qw net.ipv4.ip_forward=1
        ip rule add fwmark 7 lookup 101; ip rule add from 10.244.0.5 iif cni0 lookup 102; ip rule add ipproto tcp sport 1000 dport 80 lookup 103
    """)
    dst, pod = parse_address("10.244.1.77"), parse_address("10.244.0.5")
    assert tables.lookup_route(node.nl, dst) == main
    assert tables.lookup_route(node.nl, dst, mark=7) == marked
    assert tables.lookup_route(node.nl, dst, src=pod, iif="cni0") == by_source
    assert tables.lookup_route(node.nl, dst, proto=6, sport=1000, dport=80) == by_port
    assert tables.lookup_route(node.nl, dst, proto=17, sport=1000, dport=80) == main
    node.run("ip rule del fwmark 7 lookup 101; ip rule add fwmark 7 prohibit")
    with pytest.raises(KernelError, match="Permission denied"):
        tables.lookup_route(node.nl, dst, mark=7)


def test_one_neighbour_and_one_fdb_row(node):
    neighbour, six = Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC), Neighbour(parse_address("fd00:1:0:1::"), "flannel-v6.1", MAC)
    far, port = FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2")), FdbEntry(MAC2, "p0", master=True)
    put(node, neighbour, far, six, port)
    assert tables.lookup_neighbour(node.nl, neighbour.address, "flannel.1") == neighbour
    assert tables.lookup_neighbour(node.nl, six.address, "flannel-v6.1") == six
    assert tables.lookup_neighbour(node.nl, neighbour.address, "u0") is None
    assert tables.lookup_neighbour(node.nl, neighbour.address, "nosuch") is None
    assert tables.lookup_fdb(node.nl, MAC, "flannel.1") == far
    assert tables.lookup_fdb(node.nl, MAC2, "flannel.1") is None
    assert tables.lookup_fdb(node.nl, MAC2, "nosuch") is None
    assert tables.lookup_fdb(node.nl, MAC2, "p0", master=True) == port
    assert tables.lookup_fdb(node.nl, MAC2, "cni0", master=True) == port
    assert tables.lookup_fdb(node.nl, MAC, "cni0", master=True) is None


def test_present_is_about_the_exact_row(node):
    route = subnet_route("10.244.1.0/24", metric=5)
    neighbour, far = Neighbour(parse_address("10.244.1.0"), "flannel.1", MAC), FdbEntry(MAC, "flannel.1", parse_address("192.0.2.2"))
    address = InterfaceAddress("flannel.1", Prefix.parse("10.244.0.7/32"))
    put(node, route, neighbour, far, address)
    nearly = [
        msgspec.structs.replace(route, metric=6),
        msgspec.structs.replace(route, protocol=PROTOCOL_BOOT),
        msgspec.structs.replace(route, device="u0"),
        msgspec.structs.replace(route, device="nosuch"),
        msgspec.structs.replace(route, dst=Prefix.parse("10.244.1.0/25")),
        msgspec.structs.replace(route, table=99),
        msgspec.structs.replace(neighbour, mac=MAC2),
        msgspec.structs.replace(neighbour, state=NUD_REACHABLE),
        msgspec.structs.replace(far, dst=parse_address("192.0.2.9")),
        msgspec.structs.replace(far, mac=MAC2),
        msgspec.structs.replace(address, address=Prefix.parse("10.244.0.7/24")),
        msgspec.structs.replace(address, device="u0"),
    ]
    assert [tables.present(node.nl, row) for row in nearly] == [False] * len(nearly)
    shadowed = msgspec.structs.replace(route, metric=50)  # the other route wins every lookup
    put(node, shadowed)
    assert tables.present(node.nl, route) and tables.present(node.nl, shadowed)


# ---- what the kernel does by itself -----------------------------------------------------------------------------


def lease_rows(device: str = "flannel.1") -> list:
    return [FdbEntry(MAC, device, parse_address("192.0.2.2")), Neighbour(parse_address("10.244.1.0"), device, MAC), subnet_route("10.244.1.0/24", device)]


def test_link_down_takes_routes_and_neighbours_but_not_the_fdb(node):
    fdb, neighbour, route = lease_rows()
    put(node, fdb, neighbour, route)
    links.set_link(node.nl, "flannel.1", up=False)
    links.set_link(node.nl, "flannel.1", up=True)
    assert [tables.present(node.nl, row) for row in (fdb, neighbour, route)] == [True, False, False]


def test_setting_the_same_mac_takes_permanent_neighbours(node):
    fdb, neighbour, route = lease_rows()
    put(node, fdb, neighbour, route)
    links.set_link(node.nl, "flannel.1", mac=links.link(node.nl, "flannel.1").mac)
    assert [tables.present(node.nl, row) for row in (fdb, neighbour, route)] == [True, False, True]


def test_losing_the_only_address_takes_every_route_and_neighbour(node):
    """Why addresses are changed by adding first: the last IPv4 address of a device goes with the device's IPv4 (inetdev_destroy)."""
    fdb, neighbour, route = lease_rows()
    put(node, fdb, neighbour, route)
    old, new = InterfaceAddress("flannel.1", Prefix.parse("10.244.0.0/32")), InterfaceAddress("flannel.1", Prefix.parse("10.244.9.0/32"))
    put(node, new)
    remove(node, old)
    assert [tables.present(node.nl, row) for row in (fdb, neighbour, route)] == [True, True, True]
    remove(node, new)
    assert [tables.present(node.nl, row) for row in (fdb, neighbour, route)] == [True, False, False]


def test_deleting_the_device_takes_everything(node):
    rows = lease_rows()
    put(node, *rows)
    links.delete_link(node.nl, "flannel.1")
    assert [tables.present(node.nl, row) for row in rows] == [False, False, False]
    assert tables.routes(node.nl, 4, inside=Prefix.parse("10.244.1.0/24")) == []


def test_a_metricless_route_wins_over_ours(node):
    ours = subnet_route("10.244.1.0/24", metric=7)
    flannels = msgspec.structs.replace(ours, metric=0, protocol=PROTOCOL_BOOT)
    put(node, flannels, ours)
    assert tables.lookup_route(node.nl, parse_address("10.244.1.5")) == flannels
    remove(node, flannels)
    assert tables.lookup_route(node.nl, parse_address("10.244.1.5")) == ours


def test_the_tables_that_rules_lead_an_address_to(netns):
    """A rule that asks for more than the source is for some packets only."""
    netns.run("""
        ip rule add from 10.244.1.2 lookup 100 pref 10; ip rule add from 10.244.1.0/24 lookup 1000 pref 20; ip rule add from 10.244.2.0/24 lookup 101 pref 30
        ip rule add not from 10.9.0.0/16 lookup 102 pref 40; ip rule add fwmark 1 lookup 103 pref 50; ip rule add to 10.0.0.0/8 lookup 104 pref 60
        ip rule add iif lo lookup 105 pref 70; ip rule add ipproto tcp dport 80 lookup 106 pref 80; ip rule add uidrange 0-9 lookup 107 pref 90
        ip rule add lookup main suppress_prefixlength 0 pref 100; ip rule add from 10.244.1.2 blackhole pref 110; ip rule add tos 4 lookup 108 pref 120
        ip -6 rule add from fd00:1::/64 lookup 200 pref 10; ip -6 rule del lookup main
    """)
    found = {text: tables.tables_of(netns.nl, parse_address(text)) for text in ("10.244.1.2", "10.244.1.3", "10.9.0.1", "fd00:1::5", "fd00:2::5")}
    assert found == {
        "10.244.1.2": [255, 100, 1000, 254, 253],
        "10.244.1.3": [255, 1000, 254, 253],
        "10.9.0.1": [255, 254, 253],
        "fd00:1::5": [255, 200],
        "fd00:2::5": [255],
    }
