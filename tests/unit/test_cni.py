"""CNI's documents, configurations as networks, addresses with reservations and quarantine, and what CHECK compares."""

import ast
import json
import re
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import strategies as st
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix, format_address, parse_address, parse_mac
from tweed.model import InterfaceAddress, Link, Route
from tweed.plan import attach
from tweed.plan.addresses import QUARANTINE_S, Taken, host_name, place, usable
from tweed.plan.attachment import AttachRequest, NoAddress, NodeNetwork, Range, Refused, Span
from tweed.plan.check import Seen, differences
from tweed.plan.network import network_of, part_of, span_of
from tweed.wire import cni
from tweed.wire.cni import Call, CniError, parse_args, parse_call, parse_conf, version_of
from tweed.wire.flannel import parse_subnet_env

V4, V6 = Prefix.parse("10.244.1.0/24"), Prefix.parse("fd00:244:0:1::/64")
CLUSTER = (Prefix.parse("10.244.0.0/16"), Prefix.parse("fd00:244::/48"))
NODE = NodeNetwork(V4, V6, 1430, networks=CLUSTER)
GOOD = {"cniVersion": "1.0.0", "name": "tweed", "type": "tweed"}


def conf(**more):
    return parse_conf(json.dumps(GOOD | more).encode())


# ---- the call ---------------------------------------------------------------------------------------------------


@spelled(180)
def variables(choose: Choices):
    """What other variables hold, and a configuration of any bytes."""
    return choose.several(6, lambda: choose.bytes(1 + choose.below(30)).replace(b"\0", b"=")), choose.bytes(choose.below(60))


@cases(60, variables)
def test_a_call_is_read_as_it_was_sent(sent):
    lines, config = sent
    head = [b"CNI_COMMAND=ADD", b"CNI_CONTAINERID=c", *(b"CNI_X=" + line for line in lines), b"CNI_ARGS="]
    call = parse_call(b"tweed-cni=1\0" + b"".join(line + b"\0" for line in head) + b"\0" + config)
    assert call == Call(command="ADD", container_id="c", config=config)


@cases(60, st.binary(max_size=200))
def test_no_call_and_no_configuration_raises_anything_else(data):
    for read in (lambda: cni.check_call(parse_call(data)), lambda: parse_conf(data), lambda: parse_args(data.decode(errors="replace"))):
        try:
            read()
        except CniError as error:
            assert error.code in (1, 2, 4, 6, 7) and "\n" not in str(error)
    assert version_of(data) in cni.VERSIONS


def test_cut_short():
    with pytest.raises(CniError, match="ends within its variables"):
        parse_call(b"tweed-cni=1\0CNI_COMMAND=ADD")


# ---- configurations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "field", "value"),
    [
        ({}, "hairpin", True),
        ({"promiscMode": True}, "hairpin", False),
        ({"promiscMode": True}, "promisc", True),
        ({"promiscMode": True, "hairpinMode": False}, "hairpin", False),
        ({"hairpinMode": False}, "hairpin", False),
        ({"mtu": 1300}, "mtu", 1300),
        ({"mtu": 0}, "mtu", 1430),
        ({"isDefaultGateway": False}, "default_route", False),
        ({"bridge": "br7"}, "bridge", "br7"),
        ({"ipMasq": True}, "masquerade", True),
        ({"ipam": {"part": "2/2"}}, "ranges", ((Range.whole(Prefix.parse("10.244.1.128/25")),), (Range.whole(Prefix.parse("fd00:244:0:1:8000::/65")),))),
        ({"ipam": {"routes": [{"dst": "192.0.2.0/24"}]}}, "routes", ((Prefix.parse("192.0.2.0/24"), None),)),
        ({"ipam": {"ranges": [[{"subnet": "172.30.0.0/24"}]]}}, "networks", ()),
        ({"ipam": {"ranges": [[{"subnet": "10.244.1.0/25"}]]}}, "networks", CLUSTER),
        ({"runtimeConfig": {"ipRanges": [[{"subnet": "10.244.1.64/26"}]]}}, "ranges", ((Range.whole(Prefix.parse("10.244.1.64/26")),),)),
    ],
)
def test_what_a_configuration_asks_for(more, field, value):
    assert getattr(network_of(conf(**more), NODE), field) == value


def test_flannels_defaults_are_flannels():
    """No default route, no hairpin, and masquerading exactly when the agent does not: see flannel's plugin."""
    env = parse_subnet_env("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=false\n")
    node = msgspec.structs.replace(NODE, subnet6=None)
    network = network_of(conf(type="flannel"), node, env)
    assert (network.default_route, network.hairpin, network.promisc, network.mtu, network.masquerade) == (False, False, False, 1400, True)
    shipped = network_of(conf(type="flannel", delegate={"hairpinMode": True, "isDefaultGateway": True, "ipMasq": False, "mtu": 1300}), node, env)
    assert (shipped.default_route, shipped.hairpin, shipped.mtu, shipped.masquerade) == (True, True, 1300, False)


@pytest.mark.parametrize(
    ("text", "subnet", "part"),
    [
        ("1/1", "10.0.0.0/24", "10.0.0.0/24"),
        ("1/2", "10.0.0.0/24", "10.0.0.0/25"),
        ("4/4", "10.0.0.0/24", "10.0.0.192/26"),
        ("2/2", "fd00::/64", "fd00::8000:0:0:0/65"),
    ],
)
def test_parts(text, subnet, part):
    assert str(part_of(text, Prefix.parse(subnet))) == part


@cases(40, st.integers(0, 6), st.integers(24, 24))
def test_parts_are_the_whole_and_nothing_twice(bits, length):
    subnet = Prefix(parse_address("10.9.0.0"), length)
    parts = [part_of(f"{i}/{1 << bits}", subnet) for i in range(1, (1 << bits) + 1)]
    assert sum(p.step for p in parts) == subnet.step and all(subnet.contains(p) for p in parts) and len(set(parts)) == len(parts)


@pytest.mark.parametrize(
    ("text", "first", "last"), [("10.0.0.9", "10.0.0.9", "10.0.0.9"), ("10.0.0.8/30", "10.0.0.8", "10.0.0.11"), ("fd00::1-fd00::9", "fd00::1", "fd00::9")]
)
def test_spans(text, first, last):
    assert span_of(text) == Span(parse_address(first), parse_address(last))


# ---- results ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", cni.VERSIONS)
def test_a_result_is_of_the_configurations_version(version):
    ends = [cni.Interface("cni0", bytes(6), 1450), cni.Interface("eth0", bytes(6), 1450, "/run/netns/x")]
    ips = [cni.Address(Prefix.parse("10.244.1.2/24"), parse_address("10.244.1.1")), cni.Address(Prefix.parse("fd00::2/64"), parse_address("fd00::1"))]
    found = cni.result(parse_conf(json.dumps(GOOD | {"cniVersion": version}).encode()), ends, ips, [(Prefix.parse("0.0.0.0/0"), parse_address("10.244.1.1"))])
    assert found["cniVersion"] == version and found["interfaces"][1]["sandbox"] == "/run/netns/x" and "sandbox" not in found["interfaces"][0]
    assert [ip.get("version") for ip in found["ips"]] == ([None, None] if version >= "1" else ["4", "6"])
    assert ("mtu" in found["interfaces"][0]) == (version == "1.1.0") and {ip["interface"] for ip in found["ips"]} == {1}


def test_what_the_agent_answers_is_code_log_and_document():
    assert cni.answer(1, {"a": "b"}, "one\0two") == b'\1one two\0{"a":"b"}' and cni.answer(0) == b"\0\0"


# ---- addresses --------------------------------------------------------------------------------------------------


def attachment(container="c", **more):
    return place(AttachRequest(container, "eth0", "/n", **more), NODE, (), (), 0.0)


SMALL = Prefix.parse("10.9.9.64/27")


class Pool(NamedTuple):
    """A range of SMALL in which hosts are held, freed a while ago, and reserved, all by their number in it."""

    gateway: int
    ends: list[int]
    held: set[int]
    freed: dict[int, int]
    reserved: list[list[int]]
    full_first: bool


@spelled(100)
def pools(choose: Choices) -> Pool:
    def host() -> int:
        return choose.number(0, 31)

    held, freed = set(choose.several(31, host)), {host(): choose.number(0, 100) for _ in range(choose.below(12))}
    return Pool(host(), sorted((host(), host())), held, freed, choose.several(2, lambda: sorted((host(), host()))), choose.flag())


@cases(100, pools)
def test_what_is_handed_out_is_free_usable_and_not_reserved(case):
    """Against the list of all addresses of a small range, looked at one by one; beside it in the set a range that is full."""
    subnet, ends, clock = SMALL, case.ends, 60.0
    pool = Range.whole(subnet, subnet.host(case.gateway), subnet.host(ends[0]), subnet.host(ends[1]))
    held = {subnet.host(i) for i in case.held}
    freed = {subnet.host(i): float(at) for i, at in case.freed.items()}
    reserved = tuple(Span(subnet.host(first), subnet.host(last)) for first, last in case.reserved)
    possible = [subnet.host(i) for i in range(ends[0], ends[1] + 1) if 0 < i < 31 and subnet.host(i) != pool.gateway and subnet.host(i) not in held]
    free = [a for a in possible if not any(a in span for span in reserved) and not 0 <= clock - freed.get(a, -QUARANTINE_S) < QUARANTINE_S]
    full = Range.whole(Prefix.parse("10.9.8.0/30"))
    taken = Taken((), held | {full.subnet.host(2)}, freed, clock)
    try:
        assert taken.pick([full, pool] if case.full_first else [pool, full], (), reserved) == (pool, free[0])
    except NoAddress as error:
        assert not free
        assert error.wait_s is None or 0 < error.wait_s <= QUARANTINE_S
    assert usable(pool) is not None or not possible


def test_quarantine_says_when_it_ends():
    subnet = Prefix.parse("10.9.9.0/30")
    taken = Taken((), (), {subnet.host(2): 100.0}, 110.0)
    with pytest.raises(NoAddress, match=f"the first is free in {QUARANTINE_S - 10:.0f} s") as error:
        taken.pick([Range.whole(subnet)], (), ())
    assert error.value.wait_s == QUARANTINE_S - 10
    assert Taken((), (), {subnet.host(2): 100.0}, 100.0 + QUARANTINE_S).pick([Range.whole(subnet)], (), ())[1] == subnet.host(2)


def test_the_ranges_of_a_set_are_used_up_in_turn():
    """A container has one address of each set, with the length and the gateway of the range that it is of."""
    small = {"subnet": "10.244.1.0/29", "rangeStart": "10.244.1.5"}
    sets = [[small, small | {"rangeStart": "10.244.1.2", "rangeEnd": "10.244.1.3"}, {"subnet": "10.244.1.128/30"}]]
    network, attached, last = network_of(conf(ipam={"ranges": sets}), NODE), [], ()
    for expected in ("10.244.1.5/29", "10.244.1.6/29", "10.244.1.2/29", "10.244.1.3/29", "10.244.1.130/30"):
        made = place(AttachRequest(expected, "eth0", "/n"), network, attached, last, 0.0)
        assert [str(address) for address in made.addresses] == [expected]
        assert made.gateways == (made.addresses[0].network.host(1),) and {via.gateway for via in made.routes} == set(made.gateways)
        attached, last = [*attached, made], (*last, made.addresses[0].address)
    with pytest.raises(NoAddress, match=r"in 10\.244\.1\.0/29 and 10\.244\.1\.128/30: "):
        place(AttachRequest("c", "eth0", "/n"), network, attached, last, 0.0)
    assert [str(gateway) for gateway in attach.gateways(network)] == ["10.244.1.1/29", "10.244.1.129/30"]


@pytest.mark.parametrize(
    "sets",
    [
        [[]],
        [[{"subnet": "10.9.9.0/24"}, {"subnet": "fd09::/64"}]],
        [[{"subnet": "10.9.9.0/24"}, {"subnet": "10.9.9.0/24"}]],
        [[{"subnet": "10.9.9.0/24"}, {"subnet": "10.9.9.128/25"}]],
        [[{"subnet": "10.9.9.0/24", "rangeEnd": "10.9.9.9"}, {"subnet": "10.9.9.0/24", "rangeStart": "10.9.9.10", "gateway": "10.9.9.254"}]],
        [[{"subnet": "10.9.9.0/24", "rangeEnd": "10.9.9.9"}], [{"subnet": "10.9.9.0/24", "rangeStart": "10.9.9.10"}]],
        [[{"subnet": f"10.{number}.0.0/24"}] for number in range(65)],
    ],
)
def test_ranges_that_cannot_be(sets):
    with pytest.raises(CniError, match="ranges: ") as error:
        network_of(conf(ipam={"ranges": sets}), NODE)
    assert error.value.code == 7


def test_what_cannot_be_attached_can_still_be_deleted():
    """A configuration that was edited in between must not keep a container from being deleted."""
    edited = parse_conf(msgspec.json.encode(GOOD | {"vlan": 5}), "DEL")
    with pytest.raises(CniError, match="unsupported field vlan: 5") as error:
        network_of(edited, NODE)
    assert error.value.code == 2


def test_reservations_are_bounded_together():
    with pytest.raises(CniError, match="more than 65536 addresses together"):
        network_of(conf(ipam={"reserved": ["10.0.0.0/17", "10.1.0.0/17", "10.2.0.1"]}), NODE)


def test_a_part_is_one_of_the_lease_also_where_docker_has_half_of_it():
    halves = (Prefix.parse("10.244.1.0/25"), Prefix.parse("fd00:244:0:1::/65"))
    beside_docker = msgspec.structs.replace(NODE, ranges=tuple((Range.whole(half),) for half in halves))
    for more in ({}, {"part": "1/2"}):
        assert [pool.subnet for pool in network_of(conf(ipam=more), beside_docker).pools] == list(halves)
    outside = {"subnet": "172.30.0.0/24"}
    assert network_of(conf(ipam={"ranges": [[outside]]}), beside_docker).pools[0].subnet == Prefix.parse("172.30.0.0/24")
    for more in ({"part": "2/2"}, {"part": "1/1"}, {"ranges": [[outside], [{"subnet": "10.244.1.0/24"}]]}, {"ranges": [[{"subnet": "10.244.1.128/26"}]]}):
        with pytest.raises(CniError, match=r"is not within 10\.244\.1\.0/25 and fd00:244:0:1::/65, which is what Docker leaves") as error:
            network_of(conf(ipam=more), beside_docker)
        assert error.value.code == 7


def test_whoever_names_an_address_need_not_wait_for_it():
    """podman network reload: DEL, then ADD with the same address."""
    address = parse_address("10.244.1.9")
    request = AttachRequest("c", "eth0", "/n", (address,))
    assert place(request, NODE, (), (), 0.0, Taken((), (), {address: 5.0}, 6.0)).addresses[0].address == address
    with pytest.raises(Refused, match="attached already"):
        place(request, NODE, (), (), 0.0, Taken((), (address,)))


def test_the_first_network_of_a_container_keeps_the_default_route():
    routed = frozenset([Prefix.parse("0.0.0.0/0"), CLUSTER[0]])
    second = place(AttachRequest("c", "eth1", "/n"), NODE, (), (), 0.0, routed=routed)
    assert [str(via.dst) for via in second.routes] == [str(CLUSTER[1]), "::/0"]


@pytest.mark.parametrize("network", ["", "tweed", "x" * 255])
def test_the_alias_brings_an_attachment_back(network):
    """The network's name only where it fits whole: a longer one is left out, as agents did before that wrote none."""
    made = msgspec.structs.replace(attachment(), network=network)
    link = Link(made.host_name, 7, "veth", alias=attach.alias(made), mtu=1430, hairpin=False)
    found = attach.from_alias(link, "cni0", 5.0)
    assert (found.key, found.addresses, found.mac, found.host_name, found.bridge) == (made.key, made.addresses, made.mac, made.host_name, "cni0")
    assert (found.network, found.mtu, found.hairpin) == (network if len(network) < 10 else "", 1430, False)
    for other in ({"name": "veth00000000"}, {"kind": "bridge"}, {"alias": ""}, {"alias": "tweed x y eth0 c"}, {"alias": link.alias.replace("10.", "x.")}):
        assert attach.from_alias(msgspec.structs.replace(link, **other), "cni0", 5.0) is None


@cases(60, st.integers(1, cni.CONTAINER_ID_MAX), st.sampled_from(["eth0", "e" * 15, "é" * 7]), st.integers(1, 255))
def test_no_alias_is_longer_than_linux_takes(container_id, ifname, network):
    """Nor is anything but the network's name left out, or cut."""
    made = msgspec.structs.replace(attachment("c" * container_id), ifname=ifname, network="n" * network)
    made = msgspec.structs.replace(made, host_name=host_name(*made.key))
    text = attach.alias(made)
    found = attach.from_alias(Link(made.host_name, 7, "veth", alias=text), "cni0", 5.0)
    assert len(text.encode()) <= attach.ALIAS_MAX and found.key == made.key
    assert found.network == made.network or (found.network == "" and len(text.encode()) + 1 + network > attach.ALIAS_MAX)


def test_two_bridges_of_one_subnet_are_refused():
    network = msgspec.structs.replace(NODE, bridge="br1")
    facts = attach.Facts(bridge=None, elsewhere=(InterfaceAddress("cni0", Prefix.parse("10.244.1.1/24")),))
    with pytest.raises(Refused, match=r"10\.244\.1\.0/24 of br1 overlaps 10\.244\.1\.1/24 on cni0"):
        attach.check_elsewhere(network, facts)
    vtep = attach.Facts(bridge=None, elsewhere=(InterfaceAddress("flannel.1", Prefix.parse("10.244.1.0/32")),))
    attach.check_elsewhere(network, vtep)


# ---- check ------------------------------------------------------------------------------------------------------


def as_made(made):
    rows = attach.rows(made)
    return Seen(
        Link("cni0", 3, "bridge", up=True),
        frozenset(Prefix.parse(text) for text in ("10.244.1.1/24", "fd00:244:0:1::1/64")),
        Link(made.host_name, 4, "veth", mtu=1430, up=True, master=3, hairpin=True),
        Link("eth0", 2, "veth", made.mac, 1430, up=True),
        tuple(row for row in rows if isinstance(row, InterfaceAddress)),
        (*(row for row in rows if isinstance(row, Route)), Route(Prefix.parse("198.51.100.0/24"), "eth0")),
    )


def test_what_was_made_is_as_it_was_made():
    made = attachment()
    seen = as_made(made)
    assert differences(made, seen, cni.After()) == []
    assert differences(made, msgspec.structs.replace(seen, inside=None, port=None, bridge=None), cni.After()) == [
        "bridge cni0 is gone",
        f"{made.host_name}, the container's device on the node, is gone",
        "eth0 is gone from the container",
    ]
    assert len(differences(made, msgspec.structs.replace(seen, addresses=(), routes=()), cni.After())) == 3 + 4
    assert format_address(made.gateways[0]) == "10.244.1.1" and parse_mac("0a:58:0a:f4:01:02") == made.mac


ROUTES = [("10.244.0.0/16", "10.244.1.1"), ("fd00:244::/48", "fd00:244:0:1::1"), ("::/0", "fd00:244:0:1::1")]
WITHOUT_DEFAULT = frozenset((Prefix.parse(dst), parse_address(gateway)) for dst, gateway in ROUTES)
DEFAULT = Prefix.parse("0.0.0.0/0")


@pytest.mark.parametrize(
    ("after", "mtu", "tuned", "expected"),
    [
        (cni.After(), 1300, None, ["eth0 has MTU 1300 instead of 1430", "lost"]),
        (cni.After(mtu=1300), 1300, None, ["lost"]),
        (cni.After(mtu=1300), 1430, None, ["eth0 has MTU 1430 instead of 1300", "lost"]),
        (cni.After(), 1300, 1430, ["lost"]),
        (cni.After(), 1300, 1400, ["eth0 has MTU 1300 instead of 1430", "lost"]),
        (cni.After(mtu=1350), 1300, 1350, ["lost"]),
        (cni.After(routes=WITHOUT_DEFAULT), 1430, None, []),
        (cni.After(routes=WITHOUT_DEFAULT | {(DEFAULT, parse_address("10.244.1.9"))}), 1430, None, []),
        (cni.After(routes=WITHOUT_DEFAULT | {(DEFAULT, parse_address("10.244.1.1"))}), 1430, None, ["lost"]),
        (cni.After(routes=WITHOUT_DEFAULT | {(DEFAULT, None)}), 1430, None, ["lost"]),
        (cni.After(mac=parse_mac("02:00:00:00:00:01"), routes=frozenset()), 1430, None, ["eth0 has the MAC 0a:58:0a:f4:01:02 instead of 02:00:00:00:00:01"]),
    ],
)
def test_what_the_chain_says_that_it_changed_is_right(after, mtu, tuned, expected):
    """The default route is gone here; of the MTU tuning tells nobody, but it notes what it found."""
    made = attachment()
    seen = as_made(made)
    inside = msgspec.structs.replace(seen.inside, mtu=mtu)
    routes = tuple(route for route in seen.routes if route.dst != DEFAULT)
    found = differences(made, msgspec.structs.replace(seen, inside=inside, routes=routes, tuned=tuned), after)
    assert found == [line.replace("lost", "the container has lost its route default via 10.244.1.1 dev eth0") for line in expected]


INSIDE = {"name": "eth0", "sandbox": "/n", "mac": "02:00:00:00:00:01", "mtu": 1300}
IPS = [{"address": "10.244.1.2/24"}]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (None, cni.After()),
        ({}, cni.After()),
        ({"interfaces": [{**INSIDE, "sandbox": ""}, INSIDE]}, cni.After(parse_mac("02:00:00:00:00:01"), 1300)),
        ({"interfaces": [{**INSIDE, "name": "eth1"}]}, cni.After()),
        ({"interfaces": [{**INSIDE, "mac": 5, "mtu": "1300"}]}, cni.After()),
        ({"interfaces": [{**INSIDE, "mac": "x", "mtu": True}, 7]}, cni.After()),
        ({"interfaces": [{**INSIDE, "mac": None, "mtu": -1}]}, cni.After()),
        ({"interfaces": 5, "routes": "x", "ips": {}}, cni.After()),
        ({"ips": IPS}, cni.After(routes=frozenset())),
        ({"routes": [{"dst": "0.0.0.0/0"}]}, cni.After()),
        ({"ips": IPS, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "x"}, {"dst": "::/0", "gw": "y"}, 5, {}]}, cni.After(routes=frozenset([(DEFAULT, None)]))),
        ({"ips": IPS, "routes": [{"dst": "::/0", "gw": "fd00::1"}]}, cni.After(routes=frozenset([(Prefix.parse("::/0"), parse_address("fd00::1"))]))),
    ],
)
def test_what_a_result_says_of_the_containers_device(result, expected):
    assert cni.after(conf(prevResult=result), "eth0") == expected


# ---- the relays -------------------------------------------------------------------------------------------------

RELAYS = Path(cni.__file__).parents[1] / "cni"


@pytest.mark.parametrize(("name", "wanted"), [("plugin.py", {"posix", "sys", "relay"}), ("relay.py", {"posix", "sys", "_socket"})])
def test_the_python_relay_imports_next_to_nothing(name, wanted):
    """Each import costs every container start milliseconds."""
    tree = ast.parse((RELAYS / name).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == wanted


def test_both_relays_say_the_same():
    python, c = (RELAYS / "relay.py").read_text(), (RELAYS / "relay.c").read_text().replace('\\"', '"')
    for text in (*re.findall(r"b'(\"msg\".*?)'", python), json.dumps(list(cni.VERSIONS), separators=(",", ":"))):
        assert text in c and text in python, text
    for name, value in (("TRIES", 195), ("QUEUE_MAX", 1000), ("UNANSWERED", 100), ("ANSWER_S", 60)):
        assert re.search(rf"#define {name} {value}\b", c) and re.search(rf"\b{name}\b[^=\n]*= [^\n]*\b{value}\b", python), name
