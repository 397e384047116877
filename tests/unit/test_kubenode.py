"""Leases in a Node's annotations: to the byte what flanneld writes, and nothing that anybody writes there is more than a reason."""

import json

import msgspec
import pytest
from tests.unit import junk
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.errors import UsageError
from tweed.model import Endpoint, Lease, Owner
from tweed.wire import kubenode
from tweed.wire.kubenode import Metadata, Names, Node, NodeStatus, Spec

NAMES = Names.under("flannel.alpha.coreos.com")
PREFIX = "flannel.alpha.coreos.com/"
MAC, MAC6 = parse_mac("12:c6:65:89:b4:e3"), parse_mac("56:4e:6b:10:49:50")
V4 = Endpoint(Prefix.parse("10.244.1.0/24"), parse_address("192.168.1.5"), MAC, 1)
V6 = Endpoint(Prefix.parse("fd00:10:244:1::/64"), parse_address("fd00:192::5"), MAC6, 1)
# What flanneld v0.28.9 writes for these leases, as it stands in `kubectl get node -o yaml`.
GOLDEN4 = {
    PREFIX + "kube-subnet-manager": "true",
    PREFIX + "backend-type": "vxlan",
    PREFIX + "backend-data": '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}',
    PREFIX + "public-ip": "192.168.1.5",
}
GOLDEN6 = {PREFIX + "backend-v6-data": '{"VNI":1,"VtepMAC":"56:4e:6b:10:49:50"}', PREFIX + "public-ipv6": "fd00:192::5"}
HEAD = {PREFIX + name: value for name, value in (("kube-subnet-manager", "true"), ("backend-type", "vxlan"))}


def node(annotations, *cidrs, name="n1"):
    return Node(Metadata(name, "7", annotations), Spec(cidrs[0] if cidrs else "", list(cidrs)))


@pytest.mark.parametrize(
    ("lease", "golden", "cidrs"),
    [
        (Lease(V4), GOLDEN4, ["10.244.1.0/24"]),
        (Lease(V4, V6), GOLDEN4 | GOLDEN6, ["10.244.1.0/24", "fd00:10:244:1::/64"]),
        (Lease(V4, V6), GOLDEN4 | GOLDEN6, ["fd00:10:244:1::/64", "10.244.1.0/24"]),
        (Lease(None, V6), HEAD | GOLDEN6, ["fd00:10:244:1::/64"]),
        (Lease(V4), GOLDEN4, ["10.244.1.0/24", "fd00:10:244:1::/64"]),
        (Lease(None, V6), HEAD | GOLDEN6, ["10.244.1.0/24", "fd00:10:244:1::/64"]),
    ],
)
def test_a_lease_is_what_flannel_writes_to_the_byte(lease, golden, cidrs):
    written = kubenode.lease_annotations(lease, Owner("n1", "boot"), 6, NAMES)
    assert {k: v for k, v in written.items() if v is not None and k != NAMES.owner} == golden
    assert kubenode.read_lease(node(golden, *cidrs), NAMES) == lease
    ours = node({k: v for k, v in written.items() if v is not None}, *cidrs)
    assert (kubenode.read_lease(ours, NAMES), kubenode.read_owner(ours, NAMES)) == (lease, (Owner("n1", "boot"), 6))


def test_what_is_not_of_the_lease_is_removed_and_what_is_the_operators_is_not_touched():
    written = kubenode.lease_annotations(Lease(V4), None, 0, NAMES)
    assert {k for k, v in written.items() if v is None} == GOLDEN6.keys()
    assert not any("overwrite" in key or "node-public" in key for key in written)


def test_backend_data_is_what_flannels_own_parser_takes_its_mac_from():
    """It cuts the text at every quotation mark: exactly one string, and no blanks."""
    for endpoint in (V4, V6):
        text = kubenode.lease_annotations(Lease(endpoint), Owner("n1", "b"), 1, NAMES)[NAMES.backend_data]
        assert text.count('"') == 6 and " " not in text
        assert text.split('"')[5] == endpoint.mac.hex(":")


@pytest.mark.parametrize("text", ["null", " null ", None])
@pytest.mark.parametrize("backend", ["host-gw", ""])
def test_backends_without_data_have_an_address_only(text, backend):
    annotations = {NAMES.managed: "true", NAMES.backend_type: backend, NAMES.public_ip: "192.168.1.5"}
    read = kubenode.read_lease(node(annotations | ({NAMES.backend_data: text} if text else {}), "10.244.1.0/24"), NAMES)
    assert read == Lease(Endpoint(V4.subnet, V4.public_ip), backend=backend)


@pytest.mark.parametrize("annotations", [None, {}, {NAMES.managed: "false"}, {k: v for k, v in GOLDEN4.items() if k != NAMES.managed}])
def test_a_node_without_flannel_has_no_lease(annotations):
    assert kubenode.read_lease(node(annotations, "10.244.1.0/24"), NAMES) is None


@pytest.mark.parametrize(
    ("changes", "cidrs", "why"),
    [
        ({}, [], "no pod CIDR"),
        ({}, ["10.244.1.0/24", "10.244.2.0/24", "fd00::/64"], "pod cidrs should be IPv4/IPv6 only or dualstack"),
        ({}, ["10.244.1.7/24"], "host bits"),
        ({}, ["0.0.0.0/0"], "length"),
        ({}, ["10.244.1.0/32"], "length"),
        ({}, ["garbage"], "garbage"),
        ({NAMES.backend_data: "{"}, ["10.244.1.0/24"], "backend-data is not JSON"),
        ({NAMES.backend_data: '["x"]'}, ["10.244.1.0/24"], "not a JSON object"),
        ({NAMES.backend_data: '{"VtepMAC":7}'}, ["10.244.1.0/24"], "VtepMAC"),
        ({NAMES.backend_data: '{"VtepMAC":"ff:ff:ff:ff:ff:ff"}'}, ["10.244.1.0/24"], "no device"),
        ({NAMES.backend_data: "[" * 100_000}, ["10.244.1.0/24"], "is 100000 bytes"),
        ({NAMES.public_ip: "fd00::1"}, ["10.244.1.0/24"], "not an IPv4 address"),
        ({NAMES.backend_type: "x\ny"}, ["10.244.1.0/24"], "BackendType"),
    ],
)
def test_what_is_no_lease_says_why_in_one_line(changes, cidrs, why):
    with pytest.raises(ValueError, match=why) as error:
        kubenode.read_lease(node(GOLDEN4 | changes, *cidrs), NAMES)
    assert str(error.value).isprintable()


TEXTS = ["true", "vxlan", "null", "{}", '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}', "192.168.1.5", "fd00::5"]


@spelled(150)
def strange_nodes(choose: Choices) -> Node:
    names, texts, cidrs = (*NAMES.of_lease, NAMES.overwrite), (*TEXTS, choose.text(20)), ("10.244.1.0/24", "fd00::/64", choose.text(20))
    return node({choose.one_of(names): choose.one_of(texts) for _ in range(choose.below(12))}, *choose.several(4, lambda: choose.one_of(cidrs)))


@cases(100, strange_nodes)
def test_nothing_that_is_written_is_worse_than_a_reason(strange):
    try:
        lease = kubenode.read_lease(strange, NAMES)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert lease is None or list(lease.endpoints)
    owner, created = kubenode.read_owner(strange, NAMES)
    assert created >= 0 and (owner is None or owner.node)


@spelled(100)
def strange_owners(choose: Choices) -> str:
    return json.dumps(junk.damaged(choose, {"node": "n1", "boot_id": "b", "created": 6}, ("node", "boot_id", "created", choose.text(9))))


@cases(100, strange_owners)
def test_an_owner_that_is_none_is_unknown(text):
    owner, created = kubenode.read_owner(node({NAMES.owner: text}, "10.244.1.0/24"), NAMES)
    assert (owner is None or isinstance(owner, Owner)) and created >= 0


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/backend-type"),
        ("org.com", "org.com/backend-type"),
        ("org.com/", "org.com/backend-type"),
        ("org.com/pfx", "org.com/pfx-backend-type"),
        ("org.com/pfx-", "org.com/pfx-backend-type"),
    ],
)
def test_annotation_prefixes(prefix, name):
    assert Names.under(prefix).backend_type == name


@pytest.mark.parametrize("prefix", ["", "/", "org", "Org.com", "org.com/a/b", "org.com/A", "org..com", "org.com/ä", "org.com/x\n"])
def test_annotation_prefixes_that_are_none(prefix):
    with pytest.raises(UsageError, match="--kube-annotation-prefix="):
        Names.under(prefix)


@pytest.mark.parametrize(("text", "family", "address"), [("10.0.0.1", 4, "10.0.0.1"), (" 10.0.0.1 ", 4, "10.0.0.1"), ("fd00::1", 6, "fd00::1"), ("", 4, None)])
def test_an_operators_address(text, family, address):
    assert kubenode.read_address(node({NAMES.overwrite: text}), NAMES.overwrite, family) == (parse_address(address) if address else None)


@pytest.mark.parametrize(("text", "family"), [("fd00::1", 4), ("10.0.0.1", 6), ("x", 4), ("10.0.0.1\n10.0.0.2", 4)])
def test_an_operators_address_that_is_none_names_annotation_and_node(text, family):
    with pytest.raises(ValueError, match=r"public-ip-overwrite=.* of node n1"):
        kubenode.read_address(node({NAMES.overwrite: text}), NAMES.overwrite, family)


def test_the_condition_is_said_in_flannels_words_with_timestamps():
    assert kubenode.condition_patch("2026-01-02T03:04:05Z") == {
        "status": {
            "conditions": [
                {
                    "type": "NetworkUnavailable",
                    "status": "False",
                    "reason": "FlannelIsUp",
                    "message": "Flannel is running on this node",
                    "lastTransitionTime": "2026-01-02T03:04:05Z",
                    "lastHeartbeatTime": "2026-01-02T03:04:05Z",
                }
            ]
        }
    }


@pytest.mark.parametrize(
    ("conditions", "available"),
    [
        (None, False),
        ([], False),
        ([{"type": "NetworkUnavailable", "status": "True"}], False),
        ([{"type": "Ready"}, {"type": "NetworkUnavailable", "status": "False"}], True),
    ],
)
def test_whether_the_network_is_said_to_work(conditions, available):
    assert msgspec.convert({"status": {"conditions": conditions}}, NodeStatus).network_available is available
