"""The VTEP device: what it should be, and the steps from what is there."""

import msgspec
import pytest

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.model import Endpoint, Lease, Link, Vtep, Vxlan
from tweed.plan.device import Create, Delete, SetLocal, SetMac, SetMtu, SetUp, device_steps, wanted_vteps
from tweed.plan.underlay import Underlay
from tweed.wire.flannel import parse_network

MAC, MAC6 = parse_mac("02:00:00:00:00:04"), parse_mac("02:00:00:00:00:06")
LOCAL, LOCAL6 = parse_address("192.168.2.200"), parse_address("fd00:192::200")
LEASE = Lease(Endpoint(Prefix.parse("10.244.1.0/24"), LOCAL, MAC, 1), Endpoint(Prefix.parse("fd00:244:1::/64"), LOCAL6, MAC6, 1))
UNDERLAY = Underlay("ens33", 2, 1500, LOCAL, LOCAL6, "--iface ens33")


def network(**backend):
    config = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:244::/32", "Backend": {"Type": "vxlan", **backend}}
    return parse_network(msgspec.json.encode(config).decode())


def replace(value, **fields):
    return msgspec.structs.replace(value, **fields)


WANT, WANT6 = wanted_vteps(network(), LEASE, UNDERLAY)
RIGHT = Link("flannel.1", 7, "vxlan", MAC, 1450, up=True, running=True, vxlan=Vxlan(1, 8472, LOCAL, 2))
RIGHT6 = Link("flannel-v6.1", 8, "vxlan", MAC6, 1430, up=True, running=True, vxlan=Vxlan(1, 8472, LOCAL6, 2))


# ---- what it should be --------------------------------------------------------------------------------------------


def test_one_device_per_family_as_ip_would_create_it():
    assert [str(v) for v in (WANT, WANT6)] == [
        "flannel.1 address 02:00:00:00:00:04 mtu 1450 type vxlan id 1 local 192.168.2.200 dev ens33 dstport 8472 nolearning",
        "flannel-v6.1 address 02:00:00:00:00:06 mtu 1430 type vxlan id 1 local fd00:192::200 dev ens33 dstport 8472 nolearning",
    ]
    assert [str(v.address) for v in (WANT, WANT6)] == ["10.244.1.0/32", "fd00:244:1::/128"]


@pytest.mark.parametrize(
    ("configured", "underlay", "mtus"),
    [
        (0, 1500, (1450, 1430)),
        (0, 9000, (8950, 8930)),
        (1500, 9000, (1450, 1430)),
        (1400, 1500, (1350, 1330)),
        (9000, 1500, (1450, 1430)),
        (0, 65536, (65486, 65466)),
    ],
)
def test_the_mtu_is_the_smaller_of_configuration_and_interface_less_the_overhead(configured, underlay, mtus):
    vteps = wanted_vteps(network(MTU=configured), LEASE, replace(UNDERLAY, mtu=underlay))
    assert tuple(v.mtu for v in vteps) == mtus


def test_backend_options_reach_the_device():
    (vtep, _) = wanted_vteps(network(VNI=4096, Port=4789, Learning=True, GBP=True), LEASE, UNDERLAY)
    assert (vtep.name, vtep.vni, vtep.port, vtep.learning, vtep.gbp) == ("flannel.4096", 4096, 4789, True, True)
    assert str(vtep).endswith("dstport 4789 learning gbp")


def test_a_family_without_lease_mac_or_local_address_has_no_device():
    assert [v.family for v in wanted_vteps(network(), Lease(LEASE.v4), UNDERLAY)] == [4]
    assert [v.family for v in wanted_vteps(network(), Lease(v6=LEASE.v6), UNDERLAY)] == [6]
    assert wanted_vteps(network(), Lease(replace(LEASE.v4, mac=None)), UNDERLAY) == ()
    assert [v.family for v in wanted_vteps(network(), LEASE, replace(UNDERLAY, local=None))] == [6]


# ---- the steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("want", "have"), [(WANT, RIGHT), (WANT6, RIGHT6)])
def test_a_right_device_takes_no_step(want: Vtep, have: Link):
    assert device_steps(want, have, 2) == ()


def test_a_missing_device_is_created_and_set_up():
    assert device_steps(WANT, None, 2) == (Create(WANT), SetUp("flannel.1"))


CHANGED_IN_PLACE = {
    "down": (replace(RIGHT, up=False), [SetUp("flannel.1")]),
    "mac": (replace(RIGHT, mac=MAC6), [SetMac("flannel.1", MAC)]),
    "mtu": (replace(RIGHT, mtu=1500), [SetMtu("flannel.1", 1450)]),
    "local": (replace(RIGHT, vxlan=Vxlan(1, 8472, parse_address("192.168.2.9"), 2)), [SetLocal(WANT)]),
    "no local": (replace(RIGHT, vxlan=Vxlan(1, 8472, None, 2)), [SetLocal(WANT)]),
    "underlay": (replace(RIGHT, vxlan=Vxlan(1, 8472, LOCAL, 3)), [SetLocal(WANT)]),
    "learning": (replace(RIGHT, vxlan=Vxlan(1, 8472, LOCAL, 2, learning=True)), [SetLocal(WANT)]),
    "all": (
        replace(RIGHT, up=False, mac=MAC6, mtu=1500, vxlan=Vxlan(1, 8472, None, 0)),
        [SetLocal(WANT), SetMtu("flannel.1", 1450), SetMac("flannel.1", MAC), SetUp("flannel.1")],
    ),
}


@pytest.mark.parametrize("case", CHANGED_IN_PLACE)
def test_what_can_be_changed_in_place_is(case: str):
    have, steps = CHANGED_IN_PLACE[case]
    assert list(device_steps(WANT, have, 2)) == steps


UNCHANGEABLE = {
    "id": Vxlan(2, 8472, LOCAL, 2),
    "dstport": Vxlan(1, 4789, LOCAL, 2),
    "gbp": Vxlan(1, 8472, LOCAL, 2, gbp=True),
    "group": Vxlan(1, 8472, LOCAL, 2, group=parse_address("239.1.1.1")),
    "external": Vxlan(1, 8472, LOCAL, 2, collect_metadata=True),
}


@pytest.mark.parametrize("attribute", UNCHANGEABLE)
def test_what_only_a_new_device_can_have_takes_a_new_device(attribute: str):
    steps = device_steps(WANT, replace(RIGHT, vxlan=UNCHANGEABLE[attribute]), 2)
    assert [type(step) for step in steps] == [Delete, Create, SetUp]
    assert steps[0].why.startswith(f"{attribute} is ") and steps[1].device == WANT


def test_flannels_device_is_kept_as_it_is():
    """Whatever the wire does not see: checksums, of which a receiver takes both kinds, and whom the kernel tells of misses."""
    for hidden in ({"udp_csum": False}, {"l2miss": True, "l3miss": True}, {"ageing_s": 60}, {"udp6_zero_csum_rx": True}):
        assert device_steps(WANT, replace(RIGHT, vxlan=replace(RIGHT.vxlan, **hidden)), 2) == ()


def test_ipv6_without_checksums_is_what_receivers_drop():
    zero = replace(RIGHT6, vxlan=replace(RIGHT6.vxlan, udp6_zero_csum_tx=True))
    assert [type(step) for step in device_steps(WANT6, zero, 2)] == [Delete, Create, SetUp]
    assert device_steps(WANT, replace(RIGHT, vxlan=replace(RIGHT.vxlan, udp6_zero_csum_tx=True)), 2) == ()


@pytest.mark.parametrize("kind", ["", "bridge", "dummy"])
def test_somebody_elses_device_of_our_name_is_not_touched(kind: str):
    with pytest.raises(ValueError, match=f"a device named flannel.1 exists and is a {kind or 'physical'} device"):
        device_steps(WANT, Link("flannel.1", 7, kind, MAC, 1450, up=True), 2)


def test_steps_print_as_commands():
    have = replace(RIGHT, up=False, mac=MAC6, mtu=1500, vxlan=Vxlan(1, 8472, None, 0))
    assert [str(s) for s in (*device_steps(WANT, have, 2), *device_steps(WANT, replace(RIGHT, vxlan=UNCHANGEABLE["id"]), 2)[:2])] == [
        "ip link set flannel.1 type vxlan id 1 local 192.168.2.200 dev ens33 nolearning",
        "ip link set flannel.1 mtu 1450",
        "ip link set flannel.1 address 02:00:00:00:00:04",
        "ip link set flannel.1 up",
        "ip link del flannel.1",
        f"ip link add {WANT}",
    ]
