"""Choosing addresses, and the steps that attach a container: rows of expected commands."""

import json

import msgspec
import pytest
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix, format_address, format_mac, is_unicast_mac, parse_address, parse_mac
from tweed.errors import UsageError
from tweed.model import Link
from tweed.plan import attach, upkeep
from tweed.plan.addresses import Taken, free_address, host_name, place
from tweed.plan.attach import Facts
from tweed.plan.attachment import AttachRequest, NoAddress, NodeNetwork, Range, Refused, as_json, from_json, request_from_json
from tweed.wire.packet import internet_checksum

V4 = Prefix.parse("10.244.1.0/24")
V6 = Prefix.parse("fd00:10:244:1::/64")
NETWORKS = (Prefix.parse("10.244.0.0/16"), Prefix.parse("fd00:10:244::/56"))
ONE = NodeNetwork(V4, None, 1450, networks=NETWORKS[:1])
BOTH = NodeNetwork(V4, V6, 1430, networks=NETWORKS)
REQUEST = AttachRequest("c1", "eth0", "/run/netns/pod")
CNI0 = Link("cni0", 5, "bridge", parse_mac("0a:58:0a:f4:01:01"), 1450, up=True)


def placed(request=REQUEST, network=ONE, attached=(), last=(), now=100.0):
    return place(request, network, attached, last, now)


def test_the_commands_for_a_first_container():
    attachment = placed()
    veth = attachment.host_name
    assert attach.commands(attach.steps(attachment, ONE, Facts(bridge=None)), "/run/netns/pod") == [
        "ip link add cni0 address 0a:58:0a:f4:01:01 mtu 1450 type bridge",
        "ip link set cni0 addrgenmode none alias 'tweed'",
        "sysctl -w net/ipv6/conf/cni0/accept_ra=0",
        "ip addr replace 10.244.1.1/24 dev cni0",
        "ip link set cni0 up",
        f"ip link add {veth} address 0a:59:{':'.join(veth[i : i + 2] for i in range(4, 12, 2))} mtu 1450"
        " type veth peer name eth0 address 0a:58:0a:f4:01:02 mtu 1450 netns /run/netns/pod",
        "nsenter --net=/run/netns/pod sysctl -w net/ipv6/conf/eth0/accept_ra=0",
        "nsenter --net=/run/netns/pod ip link set lo up",
        "nsenter --net=/run/netns/pod ip link set eth0 addrgenmode none",
        "nsenter --net=/run/netns/pod ip link set eth0 up",
        f"ip link set {veth} addrgenmode none alias 'tweed 10.244.1.2/24 0a:58:0a:f4:01:02 eth0 c1'",
        f"ip link set {veth} master cni0 up",
        f"bridge link set dev {veth} hairpin on",
        "nsenter --net=/run/netns/pod ip addr replace 10.244.1.2/24 dev eth0",
        "nsenter --net=/run/netns/pod ip route replace 10.244.0.0/16 via 10.244.1.1 dev eth0 proto boot",
        "nsenter --net=/run/netns/pod ip route replace default via 10.244.1.1 dev eth0 proto boot",
        "nsenter --net=/run/netns/pod arping -U 10.244.1.2 eth0",
    ]


def test_the_second_family_adds_addresses_without_detection_and_its_routes():
    facts = Facts(bridge=CNI0, bridge_addresses=frozenset([Prefix.parse("10.244.1.1/24")]), loopback_up=True)
    lines = attach.commands(attach.steps(placed(network=BOTH), BOTH, facts), "/n")
    assert lines[:3] == [
        "ip link set cni0 mtu 1430",
        "ip -6 addr replace fd00:10:244:1::1/64 dev cni0 nodad",
        "ip -6 addr replace fe80::858:aff:fef4:101/64 dev cni0 scope link nodad",
    ]
    assert [line.removeprefix("nsenter --net=/n ") for line in lines if " -6 " in line][2:] == [
        "ip -6 addr replace fe80::858:aff:fef4:102/64 dev eth0 scope link nodad",
        "ip -6 addr replace fd00:10:244:1::2/64 dev eth0 nodad",
        "ip -6 route replace fd00:10:244::/56 via fd00:10:244:1::1 dev eth0 proto boot",
        "ip -6 route replace default via fd00:10:244:1::1 dev eth0 proto boot",
    ]
    assert not any("lo up" in line or "cni0 address" in line for line in lines)


def test_an_existing_bridge_that_is_right_is_not_touched():
    facts = Facts(bridge=CNI0, bridge_addresses=frozenset([Prefix.parse("10.244.1.1/24")]))
    assert attach.bridge_steps(ONE, facts) == ()


def test_a_bridge_with_a_link_local_address_keeps_it():
    have = frozenset(Prefix.parse(text) for text in ("10.244.1.1/24", "fd00:10:244:1::1/64", "fe80::1234/64"))
    assert attach.missing_addresses(BOTH, Facts(bridge=CNI0, bridge_addresses=have)) == ()


def test_a_bridge_name_that_is_something_else_is_refused():
    with pytest.raises(Refused, match="cni0 is a veth device here"):
        attach.bridge_steps(ONE, Facts(bridge=Link("cni0", 5, "veth")))


def test_what_is_undone():
    steps = attach.steps(placed(), ONE, Facts(bridge=None))
    assert [str(step.undo) for step in steps if step.undo] == [
        "ip link del cni0",
        "ip addr del 10.244.1.1/24 dev cni0",
        "ip link set cni0 down",
        f"ip link del {placed().host_name}",
        "ip link set lo down",
    ]
    changed = attach.bridge_steps(BOTH, Facts(bridge=CNI0, bridge_addresses=frozenset([Prefix.parse("10.244.1.1/24")])))
    assert [str(step.undo) for step in changed] == [
        "ip link set cni0 mtu 1450",
        "ip -6 addr del fd00:10:244:1::1/64 dev cni0 nodad",
        "ip -6 addr del fe80::858:aff:fef4:101/64 dev cni0 scope link nodad",
    ]


def test_without_ipv6_in_the_kernel_its_sysctls_are_left_alone():
    lines = attach.commands(attach.steps(placed(), ONE, Facts(bridge=None, ipv6=False)), "/n")
    assert lines and not any("sysctl" in line for line in lines)


@pytest.mark.parametrize(
    ("subnet", "taken", "last", "chosen"),
    [
        ("10.0.0.0/24", [], None, "10.0.0.2"),
        ("10.0.0.0/24", ["10.0.0.2"], None, "10.0.0.3"),
        ("10.0.0.0/24", [], "10.0.0.2", "10.0.0.3"),
        ("10.0.0.0/24", [], "10.0.0.254", "10.0.0.2"),
        ("10.0.0.0/24", ["10.0.0.2"], "10.0.0.254", "10.0.0.3"),
        ("10.0.0.0/24", [], "10.9.9.9", "10.0.0.2"),
        ("10.0.0.0/30", [], "10.0.0.2", "10.0.0.2"),
        ("fd00::/64", [], None, "fd00::2"),
        ("fd00::/64", [], "fd00::ffff:ffff:ffff:ffff", "fd00::2"),
        ("fd00::/126", ["fd00::2"], "fd00::2", "fd00::3"),
    ],
)
def test_addresses_rotate(subnet, taken, last, chosen):
    found = free_address(Range.whole(Prefix.parse(subnet)), [parse_address(t) for t in taken], parse_address(last) if last else None)
    assert format_address(found) == chosen


@pytest.mark.parametrize(("subnet", "taken"), [("10.0.0.0/30", ["10.0.0.2"]), ("fd00::/126", ["fd00::2", "fd00::3"]), ("10.0.0.0/31", [])])
def test_a_full_subnet_is_said(subnet, taken):
    pool, held = Range.whole(Prefix.parse(subnet)), [parse_address(t) for t in taken]
    assert free_address(pool, held, None) is None
    with pytest.raises(NoAddress, match=f"no address is left in {subnet}: ") as error:
        Taken((), held).pick([pool], (), ())
    assert error.value.wait_s is None


@spelled(24)
def ranges(choose: Choices):
    return choose.one_of((4, 6)), choose.number(2, 4), set(choose.several(15, lambda: choose.below(16))), choose.number(0, 15)


@cases(40, ranges)
def test_the_choice_is_the_first_free_one_after_the_last(case):
    family, bits, taken_offsets, last_offset = case
    base = parse_address("10.7.0.16" if family == 4 else "fd00::10")
    subnet = Prefix(base, len(base) * 8 - bits).network
    usable = range(2, subnet.step - (family == 4))
    taken = [subnet.host(o) for o in taken_offsets if o < subnet.step]
    last = subnet.host(last_offset % subnet.step)
    free = [o for o in usable if subnet.host(o) not in taken]
    offset = last_offset % subnet.step
    expected = next((o for o in free if o > offset), free[0]) if free else None
    assert free_address(Range.whole(subnet), taken, last) == (None if expected is None else subnet.host(expected))


def test_what_a_container_gets():
    attachment = placed(network=BOTH)
    assert [str(a) for a in attachment.addresses] == ["10.244.1.2/24", "fd00:10:244:1::2/64"]
    assert format_mac(attachment.mac) == "0a:58:0a:f4:01:02" and attachment.pending
    assert len(attachment.host_name) == 12 and attachment.host_name != host_name("c1", "eth1")
    only6 = placed(network=NodeNetwork(None, V6, 1430))
    assert format_mac(only6.mac) == "0a:58:00:00:00:02" and is_unicast_mac(only6.mac)


def test_wanted_addresses_and_macs_are_given():
    wanted = AttachRequest("c1", "eth0", "/n", (parse_address("fd00:10:244:1::77"),), parse_mac("02:00:00:00:00:77"))
    attachment = placed(wanted, BOTH)
    assert [str(a) for a in attachment.addresses] == ["10.244.1.2/24", "fd00:10:244:1::77/64"]
    assert format_mac(attachment.mac) == "02:00:00:00:00:77"


@pytest.mark.parametrize(
    ("addresses", "mac", "said"),
    [
        (["10.244.2.5"], None, "10.244.2.5 is not of this node's 10.244.1.0/24 or fd00:10:244:1::/64"),
        (["10.244.1.0"], None, "is the base of"),
        (["fd00:10:244:1::1"], None, "is the gateway of"),
        (["10.244.1.255"], None, "is the broadcast address of"),
        (["10.244.1.2"], None, "10.244.1.2 is attached already"),
        (["10.244.1.8", "10.244.1.9"], None, "one of each family"),
        ([], "0a:58:0a:f4:01:02", "MAC 0a:58:0a:f4:01:02 is in use on cni0 already"),
        ([], "0a:58:0a:f4:01:01", "is in use on cni0 already"),
    ],
)
def test_wanted_addresses_that_cannot_be_had(addresses, mac, said):
    first = placed(network=BOTH)
    request = AttachRequest("c2", "eth0", "/n", tuple(parse_address(a) for a in addresses), parse_mac(mac) if mac else None)
    with pytest.raises(Refused) as error:
        placed(request, BOTH, [first])
    assert said in str(error.value)


def test_one_interface_is_attached_once_but_a_container_may_have_several():
    first = placed()
    with pytest.raises(Refused, match="has its eth0 already"):
        placed(attached=[first])
    second = placed(AttachRequest("c1", "eth1", "/n"), attached=[first])
    assert second.addresses != first.addresses and second.host_name != first.host_name


def test_a_node_without_subnets_attaches_nothing():
    with pytest.raises(Refused, match="no subnet yet"):
        placed(network=NodeNetwork(None, None, 1450))


def test_announcements():
    mac = parse_mac("0a:58:0a:f4:01:02")
    arp = attach.announcement(mac, parse_address("10.244.1.2"))
    assert arp.hex(" ", -2) == "ffff ffff ffff 0a58 0af4 0102 0806 0001 0800 0604 0001 0a58 0af4 0102 0af4 0102 0000 0000 0000 0af4 0102"
    advertisement = attach.announcement(mac, parse_address("fd00:10:244:1::2"))
    assert len(advertisement) == 14 + 40 + 32 and advertisement[:6] == bytes.fromhex("333300000001")
    packet = advertisement[14:]
    # RFC 1071: summed with its checksum, the pseudo header and the body give all ones.
    summed = packet[8:40] + (32).to_bytes(4, "big") + b"\0\0\0\x3a" + packet[40:]
    assert internet_checksum(summed) == 0 and packet[40] == 136 and packet[44] == 0x20


def test_an_attachment_survives_its_json():
    attachment = placed(network=BOTH)
    text = json.dumps(as_json(attachment))
    assert from_json(json.loads(text)) == attachment
    assert json.loads(text)["addresses"] == ["10.244.1.2/24", "fd00:10:244:1::2/64"]


def test_a_request_from_json():
    body = {"container_id": "c1", "ifname": "eth0", "netns": "/n", "addresses": ["10.244.1.9"], "mac": "02:00:00:00:00:01"}
    assert request_from_json(body) == AttachRequest("c1", "eth0", "/n", (parse_address("10.244.1.9"),), parse_mac("02:00:00:00:00:01"))
    assert request_from_json({"container_id": "c1", "ifname": "eth0", "netns": "/n"}) == AttachRequest("c1", "eth0", "/n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"container_id": "../x"}, "container id '../x'"),
        ({"container_id": ""}, "container id ''"),
        ({"ifname": ".."}, "interface name '..'"),
        ({"ifname": "a/b"}, "interface name 'a/b'"),
        ({"ifname": "sixteencharacter"}, "1 to 15 characters"),
        ({"ifname": "a b"}, "interface name 'a b'"),
        ({"netns": "pod"}, "netns 'pod' is not an absolute path"),
        ({"addresses": ["10.0.0.300"]}, "'10.0.0.300' is not an IP address"),
        ({"addresses": "10.0.0.3"}, "Expected `array`"),
        ({"mac": "02:00"}, "'02:00' is not a MAC"),
        ({"mac": "01:00:5e:00:00:01"}, "not one that a device can have"),
        ({"colour": "red"}, "unknown field `colour`"),
    ],
)
def test_a_bad_request_is_named(change, said):
    with pytest.raises(UsageError) as error:
        request_from_json({"container_id": "c1", "ifname": "eth0", "netns": "/n"} | change)
    assert said in str(error.value) and "\n" not in str(error.value)


# ---- upkeep -----------------------------------------------------------------------------------------------------


def on_cni0(number=2, **more):
    """A container as the ledger has it, and the port that it has."""
    entry = placed(AttachRequest(f"c{number}", "eth0", "/n"), last=(parse_address(f"10.244.1.{number - 1}"),))
    entry = msgspec.structs.replace(entry, pending=False, **more)
    return entry, Link(entry.host_name, 10 + number, "veth", b"\x0a\x59\0\0\0\1", 1450, up=True, master=5, hairpin=True)


GATEWAY = frozenset([Prefix.parse("10.244.1.1/24")])
UP = msgspec.structs.replace(CNI0, mtu=1450)


def mending(entries, bridge, ports, addresses=GATEWAY, ours=True):
    network = upkeep.network_of(entries, bridge, ours=ours)
    steps = upkeep.steps(entries, network, Facts(bridge, addresses, ipv6=False), {port.name: port for port in ports})
    return [str(step.action) for step in steps]


@pytest.mark.parametrize(
    ("bridge", "addresses", "port", "expected"),
    [
        ({}, GATEWAY, {}, []),
        ({"up": False}, GATEWAY, {}, ["ip link set cni0 up"]),
        ({"mtu": 1300}, GATEWAY, {}, ["ip link set cni0 mtu 1450"]),
        ({}, frozenset(), {}, ["ip addr replace 10.244.1.1/24 dev cni0"]),
        ({}, GATEWAY, {"up": False}, ["ip link set PORT up"]),
        ({}, GATEWAY, {"mtu": 1300}, ["ip link set PORT mtu 1450"]),
        ({}, GATEWAY, {"hairpin": False}, ["bridge link set dev PORT hairpin on"]),
        ({}, GATEWAY, {"master": 0, "hairpin": None}, ["ip link set PORT master cni0", "bridge link set dev PORT hairpin on"]),
        ({}, GATEWAY, {"master": 9, "up": False}, ["ip link set PORT master cni0 up", "bridge link set dev PORT hairpin on"]),
    ],
)
def test_what_is_put_right(bridge, addresses, port, expected):
    entry, right = on_cni0()
    found = mending([entry], msgspec.structs.replace(UP, **bridge), [msgspec.structs.replace(right, **port)], addresses)
    assert found == [line.replace("PORT", entry.host_name) for line in expected]


@pytest.mark.parametrize(("asked", "is_on", "expected"), [(True, False, ["ip link set cni0 promisc on"]), (True, True, []), (False, True, [])])
def test_a_bridge_is_promiscuous_as_long_as_a_container_asked_for_it(asked, is_on, expected):
    (one, first), (two, second) = on_cni0(2, promisc=asked), on_cni0(3)
    assert mending([one, two], msgspec.structs.replace(UP, promisc=is_on), [first, second]) == expected


def test_a_bridge_that_is_gone_comes_back_with_its_ports():
    (one, first), (two, second) = on_cni0(2), on_cni0(3, hairpin=False)
    gone = [msgspec.structs.replace(port, master=0, hairpin=None) for port in (first, second)]
    assert mending([one, two], None, gone, frozenset()) == [
        "ip link add cni0 address 0a:58:0a:f4:01:01 mtu 1450 type bridge",
        "ip link set cni0 addrgenmode none alias 'tweed'",
        "ip addr replace 10.244.1.1/24 dev cni0",
        "ip link set cni0 up",
        f"ip link set {one.host_name} master cni0",
        f"bridge link set dev {one.host_name} hairpin on",
        f"ip link set {two.host_name} master cni0",
    ]


def test_what_upkeep_leaves_alone():
    entry, port = on_cni0()
    assert mending([entry], UP, []) == []  # its veth is gone: a matter of its runtime
    assert mending([entry], msgspec.structs.replace(UP, mtu=9000), [port], ours=False) == []  # somebody else's bridge
    adopted = msgspec.structs.replace(entry, gateways=(), routes=(), mtu=0)
    assert mending([adopted], UP, [port], frozenset()) == []  # nobody knows its gateway
    assert mending([adopted], None, [port], frozenset()) == []
    with pytest.raises(Refused, match="not a bridge"):
        mending([entry], msgspec.structs.replace(UP, kind="veth"), [port])
