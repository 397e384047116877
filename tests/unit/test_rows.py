"""Leases to rows, and whose a row is."""

import pytest

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.model import (
    NUD_PERMANENT,
    NUD_STALE,
    PROTOCOL,
    PROTOCOL_BOOT,
    PROTOCOL_KERNEL,
    Change,
    Endpoint,
    FdbEntry,
    InterfaceAddress,
    KernelState,
    Lease,
    Neighbour,
    Route,
    Vtep,
)
from tweed.plan.rows import device_address, divide, lease_rows, metric, shadows

MAC = parse_mac("86:22:66:41:77:3d")
V4 = Endpoint(Prefix.parse("10.244.2.0/24"), parse_address("192.168.2.202"), MAC, 1)
V6 = Endpoint(Prefix.parse("fd00:244:2::/64"), parse_address("fd00:192::202"), MAC, 1)
NETWORKS = (Prefix.parse("10.244.0.0/16"), Prefix.parse("fd00:244::/32"))
ADDRESS = {4: Prefix.parse("10.244.0.0/32"), 6: Prefix.parse("fd00:244::/128")}
VTEPS = tuple(Vtep(name, 1, 8472, b"", "ens33", MAC, 1450, ADDRESS[f]) for f, name in ((4, "flannel.1"), (6, "flannel-v6.1")))


def route(text: str, device: str, **fields) -> Route:
    return Route(Prefix.parse(text), device, **fields)


def test_a_lease_is_flannels_three_rows_per_family():
    rows = [str(row) for row in lease_rows([Lease(V4, V6)], {4: "flannel.1", 6: "flannel-v6.1"}).rows]
    assert rows == [
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 83 metric 3 onlink",
        "fd00:244:2::/64 via fd00:244:2:: dev flannel-v6.1 proto 83 metric 1024 onlink",
        "10.244.2.0 dev flannel.1 lladdr 86:22:66:41:77:3d PERMANENT",
        "fd00:244:2:: dev flannel-v6.1 lladdr 86:22:66:41:77:3d PERMANENT",
        "86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 self permanent",
        "86:22:66:41:77:3d dev flannel-v6.1 dst fd00:192::202 self permanent",
    ]


def test_a_family_without_a_device_has_no_rows():
    assert len(lease_rows([Lease(V4, V6)], {4: "flannel.1"})) == 3


def test_the_metric_is_a_function_of_the_subnet_and_spreads_over_1024_values():
    metrics = [metric(p) for p in Prefix.parse("10.0.0.0/12").subnets(24)]
    assert set(metrics) == set(range(1, 1025))
    assert max(metrics.count(m) for m in (1, 2, 1024)) == 4  # 4096 subnets
    assert metric(V6.subnet) == 1024


def test_the_ipv6_device_address_is_asked_for_without_duplicate_detection():
    assert [str(device_address(v)) for v in VTEPS] == ["10.244.0.0/32 dev flannel.1", "fd00:244::/128 dev flannel-v6.1 nodad"]


OURS = [
    route("10.244.2.0/24", "flannel.1", protocol=PROTOCOL_BOOT, onlink=True),  # a flannel's
    route("10.244.9.0/24", "flannel.1", protocol=4),
    route("10.244.2.128/25", "flannel.1", protocol=PROTOCOL),
    route("10.244.7.0/24", "ens33", protocol=PROTOCOL),  # ours by protocol, wherever it points
    route("10.244.7.0/24", "", type=6, protocol=PROTOCOL),
    route("fd00:244:9::/64", "flannel-v6.1", protocol=PROTOCOL_BOOT),
]
NOT_OURS = [
    route("10.244.0.0/24", "cni0", protocol=PROTOCOL_KERNEL),
    route("fd00:244::/128", "flannel-v6.1", protocol=PROTOCOL_KERNEL),
    route("10.99.0.0/24", "flannel.1", protocol=PROTOCOL_BOOT),  # outside the cluster network
    route("10.99.0.0/24", "flannel.2", protocol=PROTOCOL),  # another tweed's network
    route("10.244.2.0/24", "flannel.1", table=100),
    route("10.244.2.0/24", "ens33", protocol=4),
    route("0.0.0.0/0", "flannel.1", protocol=4),
]


@pytest.mark.parametrize("row", OURS + NOT_OURS, ids=str)
def test_whose_a_route_is(row):
    found = divide(KernelState(routes=(row,)), VTEPS, NETWORKS)
    assert found.ours.routes == ((row,) if row in OURS else ())


@pytest.mark.parametrize(
    ("row", "ours"),
    [
        (Neighbour(V4.subnet.address, "flannel.1", MAC), True),
        (Neighbour(V4.subnet.address, "flannel.1", MAC, NUD_STALE), False),
        (Neighbour(V4.subnet.address, "cni0", MAC, NUD_PERMANENT), False),
        (FdbEntry(MAC, "flannel.1", V4.public_ip), True),
        (FdbEntry(bytes(6), "flannel.1", V4.public_ip), True),
        (FdbEntry(MAC, "flannel.1", V4.public_ip, permanent=False), False),
        (FdbEntry(MAC, "cni0", None), False),
        (InterfaceAddress("flannel.1", Prefix.parse("10.244.5.0/32")), True),
        (InterfaceAddress("flannel.1", Prefix.parse("198.51.100.1/32")), False),
        (InterfaceAddress("cni0", Prefix.parse("10.244.0.1/24")), False),
    ],
    ids=str,
)
def test_whose_another_row_is(row, ours):
    field = {Neighbour: "neighbours", FdbEntry: "fdb", InterfaceAddress: "addresses"}[type(row)]
    found = divide(KernelState(**{field: (row,)}), VTEPS, NETWORKS)
    assert list(found.ours.rows) == ([row] if ours else [])


WANT = lease_rows([Lease(V4, V6)], {4: "flannel.1", 6: "flannel-v6.1"}).routes


@pytest.mark.parametrize(
    ("row", "beats"),
    [
        (route("10.244.2.0/24", "ens33", protocol=4, metric=0), True),
        (route("10.244.2.0/24", "ens33", protocol=4, metric=3), True),
        (route("10.244.2.0/24", "ens33", protocol=4, metric=4), False),
        (route("10.244.2.7/32", "ens33", protocol=4, metric=900), True),
        (route("10.244.0.0/16", "ens33", protocol=4), False),  # wider: ours is more specific
        (route("10.244.3.0/24", "ens33", protocol=4), False),  # no peer there
        (route("fd00:244:2::/64", "ens33", protocol=4, metric=1), True),
    ],
    ids=str,
)
def test_which_foreign_routes_shadow_a_peer(row, beats):
    found = shadows([row], WANT)
    assert [s.row for s in found] == ([row] if beats else [])
    assert all(str(s).endswith(f"remove it with: {Change('delete', row)}") for s in found)
