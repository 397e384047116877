"""What each Backend.Type wants of a node's kernel."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.errors import UsageError
from tweed.model import PROTOCOL_BOOT, Endpoint, KernelState, Lease, Route
from tweed.plan.backend import backend, check_supported, refused, way
from tweed.plan.diff import diff
from tweed.plan.rows import Reach, divide, lease_rows, reach
from tweed.plan.underlay import Underlay
from tweed.wire.flannel import Network, parse_network

HOST, HOST6 = parse_address("192.168.2.201"), parse_address("fd00:192::201")
UNDERLAY = Underlay("ens33", 2, 1500, parse_address("192.168.2.200"), parse_address("fd00:192::200"), "it was asked for")
DUAL = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
OWN = Lease(Endpoint(Prefix.parse("10.244.0.0/24")), Endpoint(Prefix.parse("fd00:244::/64")))
MAC = parse_mac("02:00:00:00:00:01")
PEER = Lease(Endpoint(Prefix.parse("10.244.1.0/24"), HOST), Endpoint(Prefix.parse("fd00:244:0:1::/64"), HOST6), "host-gw")
VXLAN_PEER = Lease(replace(PEER.v4, mac=MAC, vni=1), replace(PEER.v6, mac=MAC, vni=1))
VTEPS = {4: "flannel.1", 6: "flannel-v6.1"}
ON_LINK = {host: Reach("ens33", "on-link") for host in (HOST, HOST6)}
BEHIND = {host: Reach(None, "behind a gateway") for host in (HOST, HOST6)}


def network(kind: str, fields: dict = DUAL, **options: object) -> Network:
    return parse_network(json.dumps({**fields, "Backend": {"Type": kind, **options}}))


def own(kind: str) -> Lease:
    mac = MAC if kind == "vxlan" else None
    return Lease(replace(OWN.v4, mac=mac), replace(OWN.v6, mac=mac))


@pytest.mark.parametrize(
    ("configuration", "devices", "mtu", "direct", "carriers"),
    (
        (network("vxlan"), ["flannel.1", "flannel-v6.1"], 1430, False, {4: ("flannel.1",), 6: ("flannel-v6.1",)}),
        (network("vxlan", DirectRouting=True), ["flannel.1", "flannel-v6.1"], 1430, True, {4: ("flannel.1", "ens33"), 6: ("flannel-v6.1", "ens33")}),
        (network("host-gw"), [], 1500, True, {4: ("ens33",), 6: ("ens33",)}),
        (network("udp", {"Network": "10.244.0.0/16"}), ["flannel0"], 1472, False, {4: ("flannel0",)}),
    ),
)
def test_devices_and_mtu(configuration, devices, mtu, direct, carriers):
    lease = own(configuration.backend) if configuration.enable_ipv6 else Lease(OWN.v4)
    made = backend(configuration, lease, UNDERLAY)
    assert ([d.name for d in made.devices], made.mtu, made.direct, made.carriers) == (devices, mtu, direct, carriers)


def test_the_tun_takes_the_whole_network():
    rows = backend(network("udp", {"Network": "10.244.0.0/16"}), Lease(OWN.v4), UNDERLAY).rows
    assert [str(row) for row in rows.rows] == ["10.244.0.0/32 dev flannel0", "10.244.0.0/16 dev flannel0 proto 83 scope link"]


def test_udp_carries_no_ipv6():
    with pytest.raises(UsageError):
        check_supported(network("udp"))


@pytest.mark.parametrize(
    ("row", "device", "why"),
    (
        (Route(Prefix.parse("192.168.2.0/24"), "ens33", scope=253), "ens33", "192.168.2.201 is on-link on ens33"),
        (Route(Prefix.parse("192.168.2.201/32"), "ens33", scope=253), "ens33", "192.168.2.201 is on-link on ens33"),
        (Route(Prefix.parse("0.0.0.0/0"), "ens33", parse_address("192.168.2.1")), None, "192.168.2.201 is behind the gateway 192.168.2.1"),
        (Route(Prefix.parse("192.168.2.0/24"), "wg0"), None, "192.168.2.201 is reached through wg0, not through the underlay ens33"),
        (Route(Prefix.parse("0.0.0.0/0"), "ens33"), None, "only the default route leads to 192.168.2.201"),
        (Route(Prefix.parse("192.168.2.0/24"), "", type=6), None, "192.168.2.201 is reached through nothing, not through the underlay ens33"),
        (None, None, "there is no route to 192.168.2.201"),
    ),
)
def test_only_a_neighbour_on_the_underlay_is_reached_directly(row, device, why):
    assert reach(HOST, row, "ens33") == Reach(device, why)


def test_host_gw_has_one_route_for_a_neighbour_and_nothing_for_others():
    rows = [str(row) for row in lease_rows([PEER], {}, ON_LINK).rows]
    assert rows == [
        "10.244.1.0/24 via 192.168.2.201 dev ens33 proto 83 metric 2",
        "fd00:244:0:1::/64 via fd00:192::201 dev ens33 proto 83 metric 1024",
    ]
    assert not len(lease_rows([PEER], {}, BEHIND))


def test_a_direct_route_keeps_the_tunnels_other_rows():
    tunnelled, direct = lease_rows([VXLAN_PEER], VTEPS, BEHIND), lease_rows([VXLAN_PEER], VTEPS, ON_LINK)
    assert (tunnelled.fdb, tunnelled.neighbours) == (direct.fdb, direct.neighbours)
    assert tunnelled == lease_rows([VXLAN_PEER], VTEPS)
    assert {(r.dst, r.metric) for r in tunnelled.routes} == {(r.dst, r.metric) for r in direct.routes}, "a replace hits the other one"


def test_from_direct_into_the_tunnel_an_ipv6_gateway_has_a_route_of_its_own_meanwhile():
    want, have = lease_rows([VXLAN_PEER], VTEPS, BEHIND), lease_rows([VXLAN_PEER], VTEPS, ON_LINK)
    assert [str(change) for change in diff(want, have)] == [
        "ip -6 route replace fd00:244:0:1:: dev flannel-v6.1 proto 83 metric 1024",
        "ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 proto 83 metric 2 onlink",
        "ip -6 route replace fd00:244:0:1::/64 via fd00:244:0:1:: dev flannel-v6.1 proto 83 metric 1024 onlink",
        "ip -6 route del fd00:244:0:1::/64 via fd00:192::201 dev ens33 proto 83 metric 1024",
        "ip route del 10.244.1.0/24 via 192.168.2.201 dev ens33 proto 83 metric 2",
        "ip -6 route del fd00:244:0:1:: dev flannel-v6.1 proto 83 metric 1024",
    ]
    assert not [change for change in diff(have, want) if change.row.dst.is_host], "the other way needs none"
    assert not [change for change in diff(want, KernelState()) if isinstance(change.row, Route) and change.row.dst.is_host]


def test_a_flannels_direct_route_is_ours_where_it_says_what_we_want():
    want = lease_rows([PEER], {}, ON_LINK).routes
    theirs = tuple(replace(row, protocol=PROTOCOL_BOOT, metric=0) for row in want)
    others = tuple(replace(row, gateway=HOST[:3] + b"x") for row in theirs if row.dst.family == 4)
    found = divide(KernelState(routes=theirs + others), (), [Prefix.parse("10.244.0.0/16"), Prefix.parse("fd00:244::/48")], want)
    assert found.ours.routes == theirs and found.foreign == others


def test_what_is_said_of_a_peer():
    hostgw, vxlan = backend(network("host-gw"), own("host-gw"), UNDERLAY), backend(network("vxlan", DirectRouting=True), own("vxlan"), UNDERLAY)
    assert way(hostgw, PEER.v4, BEHIND) == "refused because behind a gateway"
    assert way(vxlan, PEER.v4, BEHIND) == "tunnel because behind a gateway"
    assert way(vxlan, PEER.v4, ON_LINK) == way(hostgw, PEER.v4, ON_LINK) == "direct because on-link"
    assert way(backend(network("vxlan"), own("vxlan"), UNDERLAY), PEER.v4, {}) == "tunnel because DirectRouting is off"
    assert [p.id for p in refused(hostgw, {"key": PEER}, BEHIND)] == ["not-on-link"] * 2
    assert refused(hostgw, {"key": PEER}, ON_LINK) == refused(vxlan, {"key": VXLAN_PEER}, BEHIND) == []
