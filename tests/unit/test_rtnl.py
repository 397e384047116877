"""Rows to bytes and back; pyroute2 reads what we write, and we read what it writes."""

from __future__ import annotations

import socket
import struct

import msgspec
import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from tests.unit.spelling import Choices, cases, damages, spelled

from tweed.addr import Prefix, format_mac, parse_address, parse_mac
from tweed.model import Change, FdbEntry, InterfaceAddress, Neighbour, Route
from tweed.wire import netlink, route, rtnl

U16, U32 = 0xFFFF, 0xFFFFFFFF
NAMES = rtnl.Names({1: "lo", 3: "ens33", 7: "flannel.1", 2_000_000_000: "far"})
INDEX = {name: index for index, name in NAMES.items()}

DEVICES = sorted(INDEX)


def address(choose: Choices) -> bytes:
    return choose.bytes(choose.one_of((4, 16)))


def prefix(choose: Choices) -> Prefix:
    of = address(choose)
    return Prefix(of, choose.number(0, len(of) * 8))


def others(choose: Choices) -> bytes:
    """Attributes that tweed does not know, perhaps with the tos and source length that it keeps behind them."""
    found = {choose.one_of((2, 8, 11, 16, 21, 22, 26)): choose.bytes(choose.below(10)) for _ in range(choose.below(4))}
    if choose.flag() and any(fixed := choose.bytes(2)):
        found[0] = fixed
    return b"".join(netlink.attribute(kind, payload) for kind, payload in found.items())


@spelled(100)
def route_rows(choose: Choices) -> Route:
    dst = prefix(choose)
    return Route(
        dst=dst,
        device=choose.one_of(("", *DEVICES)),
        gateway=choose.one_of((None, address(choose), dst.address)),
        metric=choose.number(0, U32),
        protocol=choose.number(0, 255),
        onlink=choose.flag(),
        scope=choose.number(0, 255),
        src=choose.maybe(lambda: choose.bytes(len(dst.address))),
        table=choose.number(1, 255) if choose.flag() else choose.number(256, U32),
        type=choose.number(0, 255),
        other=others(choose) if choose.flag() else b"",
    )


@spelled(24)
def address_rows(choose: Choices) -> InterfaceAddress:
    return InterfaceAddress(choose.one_of(DEVICES), prefix(choose), choose.number(0, 255), choose.flag())


@spelled(30)
def neighbour_rows(choose: Choices) -> Neighbour:
    return Neighbour(address(choose), choose.one_of(DEVICES), choose.maybe(lambda: choose.bytes(6)), choose.number(0, U16))


@spelled(48)
def fdb_rows(choose: Choices) -> FdbEntry:
    return FdbEntry(
        mac=choose.bytes(6),
        device=choose.one_of(DEVICES),
        dst=choose.maybe(lambda: address(choose)),
        port=choose.maybe(lambda: choose.number(0, U16)),
        vni=choose.maybe(lambda: choose.number(0, U32)),
        via=choose.maybe(lambda: choose.number(0, U32)),
        vlan=choose.maybe(lambda: choose.number(0, U16)),
        master=choose.flag(),
        permanent=choose.flag(),
    )


@cases(40, route_rows)
def test_routes_round_trip(row):
    for op in ("replace", "delete"):
        assert rtnl.decode(rtnl.encode(Change(op, row), INDEX), NAMES) == [row]


@cases(25, address_rows)
def test_addresses_round_trip(row):
    for op in ("replace", "delete"):
        assert rtnl.decode(rtnl.encode(Change(op, row), INDEX), NAMES) == [msgspec.structs.replace(row, nodad=False)]


@cases(25, neighbour_rows)
def test_neighbours_round_trip(row):
    assert rtnl.decode(rtnl.encode(Change("replace", row), INDEX), NAMES) == [row]
    assert rtnl.decode(rtnl.encode(Change("delete", row), INDEX), NAMES) == [msgspec.structs.replace(row, mac=None)]


@cases(25, fdb_rows)
def test_fdb_entries_round_trip(row):
    for op in ("replace", "delete"):
        assert rtnl.decode(rtnl.encode(Change(op, row), INDEX), NAMES) == [row]


# ---- flannel's three rows, byte for byte as the kernel wants them -----------------------------------------------


def test_the_three_rows_of_a_lease():
    subnet, mac, host = parse_address("10.244.2.0"), parse_mac("86:22:66:41:77:3d"), parse_address("192.168.2.202")
    neighbour = rtnl.encode(Change("replace", Neighbour(subnet, "flannel.1", mac)), INDEX)
    assert neighbour == struct.pack("=IHHII BxxxiHBB HH4s HH6sxx", 48, 28, 0x501, 0, 0, 2, 7, 0x80, 0, 0, 8, 1, subnet, 10, 2, mac)
    fdb = rtnl.encode(Change("replace", FdbEntry(mac, "flannel.1", host)), INDEX)
    assert fdb == struct.pack("=IHHII BxxxiHBB HH6sxx HH4s", 48, 28, 0x501, 0, 0, 7, 7, 0x80, 2, 0, 10, 2, mac, 8, 1, host)
    route = rtnl.encode(Change("replace", Route(Prefix(subnet, 24), "flannel.1", subnet, metric=3, onlink=True)), INDEX)
    fixed = struct.pack("=IHHII BBBBBBBBI", 60, 24, 0x501, 0, 0, 2, 24, 0, 0, 254, 83, 0, 1, 4)
    assert route == fixed + struct.pack("=HH4s HH4s HHI HHI", 8, 1, subnet, 8, 5, subnet, 8, 4, 7, 8, 6, 3)
    delete = rtnl.encode(Change("delete", Route(Prefix(subnet, 24), "flannel.1", subnet, metric=3, onlink=True)), INDEX)
    assert delete[:8] == struct.pack("=IHH", 60, 25, 0x1)
    assert delete[8:] == route[8:]


# ---- pyroute2 ---------------------------------------------------------------------------------------------------


def theirs(form, data: bytes):
    read = form(data)
    read.decode()
    return read


def by_pyroute2(form, kind: int, fields: dict, attrs: list) -> bytes:
    made = form()
    made.setvalue({**fields, "attrs": attrs})
    made["header"]["type"] = kind
    made.encode()
    return bytes(made.data)


def text(address: bytes | None) -> str | None:
    return None if address is None else socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


@cases(25, route_rows)
def test_pyroute2_reads_our_routes(row):
    row = msgspec.structs.replace(row, other=b"", gateway=row.gateway if row.gateway is None or len(row.gateway) == len(row.dst.address) else None)
    read = theirs(rtmsg, rtnl.encode(Change("replace", row), INDEX))
    assert (read["header"]["type"], read["header"]["flags"]) == (24, 0x501)
    assert (read["family"], read["dst_len"], read["proto"], read["scope"], read["type"]) == (
        2 if row.dst.family == 4 else 10,
        row.dst.length,
        row.protocol,
        row.scope,
        row.type,
    )
    assert read["flags"] == (4 if row.onlink else 0)
    assert (read.get_attr("RTA_TABLE") or read["table"]) == row.table
    assert read.get_attr("RTA_DST") == text(row.dst.address)
    assert read.get_attr("RTA_GATEWAY") == text(row.gateway)
    assert read.get_attr("RTA_PREFSRC") == text(row.src)
    assert (read.get_attr("RTA_OIF") or 0) == INDEX.get(row.device, 0)
    assert (read.get_attr("RTA_PRIORITY") or 0) == row.metric


@cases(25, route_rows)
def test_we_read_pyroute2s_routes(row):
    row = msgspec.structs.replace(row, other=b"", gateway=row.gateway if row.gateway is None or len(row.gateway) == len(row.dst.address) else None)
    attrs = [("RTA_TABLE", row.table), ("RTA_DST", text(row.dst.address)), ("RTA_PRIORITY", row.metric)]
    if row.gateway is not None:
        attrs.append(("RTA_GATEWAY", text(row.gateway)))
    if row.src is not None:
        attrs.append(("RTA_PREFSRC", text(row.src)))
    if row.device:
        attrs.append(("RTA_OIF", INDEX[row.device]))
    fields = {"family": 2 if row.dst.family == 4 else 10, "dst_len": row.dst.length, "proto": row.protocol, "scope": row.scope, "type": row.type}
    data = by_pyroute2(rtmsg, 24, {**fields, "flags": 4 if row.onlink else 0}, attrs)
    assert rtnl.decode(data, NAMES) == [row]


@cases(25, neighbour_rows)
def test_pyroute2_and_neighbours(row):
    read = theirs(ndmsg, rtnl.encode(Change("replace", row), INDEX))
    assert (read["header"]["type"], read["family"], read["ifindex"], read["state"], read["flags"]) == (
        28,
        2 if len(row.address) == 4 else 10,
        INDEX[row.device],
        row.state,
        0,
    )
    assert read.get_attr("NDA_DST") == text(row.address)
    assert read.get_attr("NDA_LLADDR") == (None if row.mac is None else format_mac(row.mac))
    attrs = [("NDA_DST", text(row.address))] + ([("NDA_LLADDR", format_mac(row.mac))] if row.mac is not None else [])
    fields = {"family": 2 if len(row.address) == 4 else 10, "ifindex": INDEX[row.device], "state": row.state}
    assert rtnl.decode(by_pyroute2(ndmsg, 28, fields, attrs), NAMES) == [row]


@cases(25, fdb_rows.map(lambda row: msgspec.structs.replace(row, dst=row.dst and row.dst[:4])))
def test_pyroute2_and_fdb_entries(row):
    read = theirs(ndmsg, rtnl.encode(Change("replace", row), INDEX))
    assert (read["family"], read["ifindex"], read["state"], read["flags"]) == (
        7,
        INDEX[row.device],
        0x80 if row.permanent else 2,
        4 if row.master else 2,
    )
    got = [read.get_attr(name) for name in ("NDA_LLADDR", "NDA_DST", "NDA_PORT", "NDA_VNI", "NDA_IFINDEX", "NDA_VLAN")]
    assert got == [format_mac(row.mac), text(row.dst), row.port, row.vni, row.via, row.vlan]
    attrs = [("NDA_LLADDR", format_mac(row.mac))]
    for name, value in (("NDA_DST", text(row.dst)), ("NDA_PORT", row.port), ("NDA_VNI", row.vni), ("NDA_IFINDEX", row.via), ("NDA_VLAN", row.vlan)):
        if value is not None:
            attrs.append((name, value))
    if row.master:
        attrs.append(("NDA_MASTER", 9))
    fields = {"family": 7, "ifindex": INDEX[row.device], "state": 0x80 if row.permanent else 2, "flags": 0}
    assert rtnl.decode(by_pyroute2(ndmsg, 28, fields, attrs), NAMES) == [row]


@cases(25, address_rows)
def test_pyroute2_and_addresses(row):
    read = theirs(ifaddrmsg, rtnl.encode(Change("replace", row), INDEX))
    family = 2 if row.address.family == 4 else 10
    assert (read["header"]["type"], read["family"], read["prefixlen"], read["scope"], read["index"]) == (
        20,
        family,
        row.address.length,
        row.scope,
        INDEX[row.device],
    )
    assert read.get_attr("IFA_LOCAL") == read.get_attr("IFA_ADDRESS") == text(row.address.address)
    assert bool((read.get_attr("IFA_FLAGS") or 0) & 2) == row.nodad
    fields = {"family": family, "prefixlen": row.address.length, "scope": row.scope, "index": INDEX[row.device]}
    data = by_pyroute2(ifaddrmsg, 20, fields, [("IFA_ADDRESS", text(row.address.address)), ("IFA_FLAGS", 0x80)])
    assert rtnl.decode(data, NAMES) == [msgspec.structs.replace(row, nodad=False)]


# ---- reading what the kernel sends ------------------------------------------------------------------------------


def route_message(*attributes: bytes, family: int = 2, length: int = 24, tos: int = 0, source_length: int = 0, flags: int = 0) -> bytes:
    return netlink.message(24, 2, route.RTMSG.pack(family, length, source_length, tos, 254, 83, 0, 1, flags), *attributes)


DST = netlink.attribute(1, parse_address("10.1.1.0"))


def test_rows_that_differ_only_in_what_we_do_not_know_stay_two():
    plain, mtu = route_message(DST), route_message(DST, netlink.attribute(8, netlink.u32(2, 1400)))
    tos, source = route_message(DST, tos=16), route_message(DST, netlink.attribute(2, bytes(4)), source_length=8)
    rows = rtnl.decode(plain + mtu + tos + source, NAMES)
    assert len(set(rows)) == 4
    assert [rtnl.decode(rtnl.encode(Change("delete", row), INDEX), NAMES) for row in rows] == [[row] for row in rows]


def test_rows_that_differ_only_in_what_moves_by_itself_are_one():
    medium, cache = netlink.attribute(20, b"\0"), netlink.attribute(12, bytes(range(32)))
    dst6 = netlink.attribute(1, parse_address("fd00:1::"))
    rows = rtnl.decode(route_message(dst6, medium, cache, family=10, length=64) + route_message(dst6, family=10, length=64, flags=16), NAMES)
    assert rows[0] == rows[1] == Route(Prefix.parse("fd00:1::/64"), "")
    high = rtnl.decode(route_message(dst6, netlink.attribute(20, b"\1"), family=10, length=64), NAMES)
    assert high[0].other == netlink.attribute(20, b"\1")


def hop(gateway: str, index: int, flags: int = 0, weight: int = 0) -> bytes:
    packed = netlink.attribute(5, parse_address(gateway))
    return route.RTNEXTHOP.pack(8 + len(packed), flags, weight, index) + packed


def test_multipath_is_a_row_per_next_hop():
    message = route_message(DST, netlink.attribute(9, hop("10.0.0.1", 3, 4 | 16) + hop("10.0.0.2", 7, weight=5)))
    rows = rtnl.decode(message, NAMES)
    assert [(row.device, row.gateway, row.onlink) for row in rows] == [
        ("ens33", parse_address("10.0.0.1"), True),
        ("flannel.1", parse_address("10.0.0.2"), False),
    ]
    same = rtnl.decode(route_message(DST, netlink.attribute(9, hop("10.0.0.1", 3, 4) + hop("10.0.0.2", 7, 1, weight=9))), NAMES)
    assert rows == same  # linkdown, dead and weights do not count
    deleted = theirs(rtmsg, rtnl.encode(Change("delete", rows[0]), INDEX))  # the whole object: it cannot lose one hop
    assert deleted.get_attr("RTA_GATEWAY") is None and deleted.get_attr("RTA_OIF") is None
    assert [each["oif"] for each in deleted.get_attr("RTA_MULTIPATH")] == [3, 7]
    first, second = "fd00::1", "fd00::2"
    six = rtnl.decode(route_message(netlink.attribute(9, hop(first, 3, 4) + hop(second, 7, 4)), family=10, length=0), NAMES)
    assert six == [Route(Prefix.parse("::/0"), name, parse_address(gw), onlink=True) for name, gw in (("ens33", first), ("flannel.1", second))]


def test_a_route_by_next_hop_object_is_deleted_by_its_id():
    message = route_message(DST, netlink.u32(30, 42), netlink.attribute(5, parse_address("10.0.0.1")), netlink.u32(4, 7))
    (row,) = rtnl.decode(message, NAMES)
    assert (row.gateway, row.device, row.other) == (parse_address("10.0.0.1"), "flannel.1", netlink.u32(30, 42))
    encoded = rtnl.encode(Change("delete", row), INDEX)
    found = netlink.attributes(encoded, 28, len(encoded))
    assert sorted(found) == [1, 30]  # the kernel refuses an id together with a gateway or a device


@pytest.mark.parametrize("first", [b"", netlink.u32(15, 254)], ids=["destination first", "table first"])
def test_inside_leaves_out_what_is_outside(first):
    def message(dst: str) -> bytes:
        prefix = Prefix.parse(dst)
        return route_message(first, netlink.attribute(1, prefix.address), family=2 if prefix.family == 4 else 10, length=prefix.length)

    everything = ["10.244.0.0/16", "10.244.1.0/24", "10.244.255.255/32", "10.0.0.0/8", "10.245.0.0/24", "0.0.0.0/0", "fd00::/64", "::/0"]
    data = b"".join(map(message, everything))

    def within(inside: str, exact: bool = False) -> list[str]:
        return [str(row.dst) for row in rtnl.decode(data, NAMES, Prefix.parse(inside), exact=exact)]

    assert within("10.244.0.0/16") == everything[:3]
    assert within("0.0.0.0/0") == everything[:6]
    assert within("fd00::/8") == ["fd00::/64"]
    assert within("10.244.1.0/24") == ["10.244.1.0/24"]
    assert [within(dst, exact=True) for dst in everything] == [[dst] for dst in everything]
    assert within("10.244.0.0/15", exact=True) == []
    assert [str(row.dst) for row in rtnl.decode(data, NAMES)] == everything


def test_what_is_no_row_is_left_out():
    cached = route_message(DST, flags=route.RTM_F_CLONED)
    label_switched = route_message(family=28, length=20)
    proxy = netlink.message(28, 0, rtnl.NDMSG.pack(2, 7, 0, rtnl.NTF_PROXY, 0), DST)
    done = netlink.message(netlink.DONE, 2, bytes(4))
    link = netlink.message(16, 0, bytes(16))
    assert rtnl.decode(cached + label_switched + proxy + done + link, NAMES) == []


def test_unknown_devices_have_iproute2s_name():
    data = netlink.message(28, 0, rtnl.NDMSG.pack(2, 99, 0x80, 0, 0), DST)
    assert rtnl.decode(data, NAMES) == [Neighbour(parse_address("10.1.1.0"), "if99", None)]
    assert 99 not in NAMES


def test_a_peer_is_not_our_own_address():
    data = netlink.message(20, 0, rtnl.IFADDRMSG.pack(2, 32, 0, 0, 7), netlink.attribute(1, bytes([10, 0, 0, 2])), netlink.attribute(2, bytes([10, 0, 0, 1])))
    assert rtnl.decode(data, NAMES) == [InterfaceAddress("flannel.1", Prefix.parse("10.0.0.1/32"))]


def test_ipv4_through_an_ipv6_gateway():
    row = Route(Prefix.parse("10.1.1.0/24"), "ens33", parse_address("fe80::1"))
    read = theirs(rtmsg, rtnl.encode(Change("replace", row), INDEX))
    assert read.get_attr("RTA_VIA") == {"family": 10, "addr": "fe80::1"}
    assert read.get_attr("RTA_GATEWAY") is None
    assert str(row) == "10.1.1.0/24 via inet6 fe80::1 dev ens33 proto 83"


@pytest.mark.parametrize(
    "data",
    [
        netlink.message(24, 0, bytes(8)),
        netlink.message(28, 0, bytes(8)),
        netlink.message(20, 0, bytes(4)),
        route_message(netlink.attribute(1, b"\1\2\3")),
        route_message(DST, length=33),
        route_message(DST, netlink.attribute(4, b"\1\2")),
        route_message(DST, netlink.attribute(5, b"\1\2\3")),
        route_message(DST, netlink.attribute(7, b"")),
        route_message(DST, netlink.attribute(18, b"\1\2\3")),
        route_message(DST, netlink.attribute(6, bytes(8))),
        route_message(DST, netlink.attribute(9, b"\0\0\0\0\0\0\0\0")),
        route_message(DST, netlink.attribute(9, b"\x09\0\0\0\0\0\0\0")),
        route_message(DST, netlink.attribute(9, b"\x0c\0\0\0\0\0\0\0\3\0\5\0")),
        route_message(DST, netlink.attribute(9, b"\1\2\3")),
        route_message(DST, netlink.attribute(9, route.RTNEXTHOP.pack(16, 0, 0, 1) + netlink.attribute(5, b"\1"))),
        netlink.message(28, 0, rtnl.NDMSG.pack(2, 7, 0, 0, 0)),
        netlink.message(28, 0, rtnl.NDMSG.pack(7, 7, 0, 0, 0)),
        netlink.message(28, 0, rtnl.NDMSG.pack(7, 7, 0, 0, 0), netlink.attribute(2, bytes(6)), netlink.attribute(1, b"\1\2")),
        netlink.message(28, 0, rtnl.NDMSG.pack(7, 7, 0, 0, 0), netlink.attribute(2, bytes(6)), netlink.attribute(5, b"\1")),
        netlink.message(20, 0, rtnl.IFADDRMSG.pack(2, 24, 0, 0, 7)),
    ],
)
def test_malformed_rows_are_one_error(data):
    with pytest.raises(ValueError, match="netlink"):
        rtnl.decode(data, NAMES)


@cases(100, route_rows | neighbour_rows | fdb_rows | address_rows, damages)
def test_truncated_and_damaged_rows_are_read_or_refused(row, damage):
    """Every field of every kind of row cut short or overwritten: rows that print, or one ValueError."""
    changed = damage.done_to(rtnl.encode(Change("replace", row), INDEX), head=16)
    try:
        found = rtnl.decode(len(changed).to_bytes(4, "little") + changed[4:], NAMES)
    except ValueError as error:
        assert "netlink" in str(error)
    else:
        assert all(str(each) for each in found)
