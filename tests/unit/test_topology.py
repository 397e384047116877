"""Topologies: the seed's cluster, N alike nodes, files, and one line for whatever cannot work."""

import json

import pytest

from tweed.addr import Prefix, format_address, is_unicast_mac, parse_address
from tweed.errors import UsageError
from tweed.lab import topology as topologies

FILE = """
underlay = "10.9.0.0/24"
gateway = "10.9.0.1"

[network]
Network = "10.50.0.0/16"
Backend = { Type = "vxlan", VNI = 7 }

[[node]]
name = "a"
address = "10.9.0.10"
subnet = "10.50.7.0/24"
pods = ["web", "db"]

[[node]]
name = "b"
address = "10.9.0.11"
"""


def test_the_seed_is_the_documents_cluster():
    seed = topologies.seed()
    assert [(n.name, format_address(n.address), str(n.subnet), n.pods) for n in seed.nodes] == [
        ("master", "192.168.2.200", "10.244.0.0/24", ("pod1", "pod2")),
        ("node1", "192.168.2.201", "10.244.1.0/24", ("pod1", "pod2")),
        ("node2", "192.168.2.202", "10.244.2.0/24", ("pod1", "pod2")),
    ]
    assert (str(seed.underlay), format_address(seed.gateway), seed.ipv6) == ("192.168.2.0/24", "192.168.2.1", False)
    assert json.loads(seed.config) == {"Network": "10.244.0.0/16", "SubnetMin": "10.244.0.0", "Backend": {"Type": "vxlan"}}
    outside = [(n.name, n.outside.bridge, str(n.outside.address)) for n in seed.nodes if n.outside]
    assert outside == [("master", "docker0", "172.17.0.1/16")]
    assert all(n.spare_device == "ens34" for n in seed.nodes)


def test_the_seed_with_both_families():
    seed = topologies.seed(ipv6=True)
    assert [(format_address(n.address6), str(n.subnet6)) for n in seed.nodes] == [
        ("fd00:192:168:2::200", "fd00:10:244::/64"),
        ("fd00:192:168:2::201", "fd00:10:244:1::/64"),
        ("fd00:192:168:2::202", "fd00:10:244:2::/64"),
    ]
    assert format_address(seed.gateway6) == "fd00:192:168:2::1"
    config = json.loads(seed.config)
    assert (config["EnableIPv6"], config["IPv6Network"], config["IPv6SubnetMin"]) == (True, "fd00:10:244::/56", "fd00:10:244::")


@pytest.mark.parametrize("count", [1, 10, 11, 250])
@pytest.mark.parametrize("ipv6", [False, True])
def test_any_number_of_nodes_has_distinct_addresses(count, ipv6):
    made = topologies.generic(count, ipv6=ipv6)
    assert [n.name for n in made.nodes] == [f"node{i}" for i in range(1, count + 1)]
    addresses = [a for n in made.nodes for a in (n.address, n.address6) if a] + [made.gateway] + ([made.gateway6] if ipv6 else [])
    assert len(set(addresses)) == len(addresses) == (count + 1) * (2 if ipv6 else 1)
    assert {len(n.pods) for n in made.nodes} == {2 if count <= 10 else 1}
    assert len({n.mac for n in made.nodes}) == count and all(is_unicast_mac(n.mac) for n in made.nodes)


def test_pods_per_node_rules():
    assert topologies.seed(0).nodes[0].pods == ()
    assert topologies.generic(20, 3).nodes[19].pods == ("pod1", "pod2", "pod3")


def test_a_file():
    made = topologies.parse(FILE, "lab.toml", 1)
    assert [(n.name, n.pods, n.subnet) for n in made.nodes] == [("a", ("web", "db"), Prefix.parse("10.50.7.0/24")), ("b", ("pod1",), None)]
    assert made.gateway == parse_address("10.9.0.1") and not made.ipv6
    assert json.loads(made.config) == {"Network": "10.50.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}


def test_a_file_made_dual_stack_by_the_flag():
    made = topologies.parse(FILE, "lab.toml", ipv6=True)
    assert [format_address(n.address6) for n in made.nodes] == ["fd00:192:168:2::10", "fd00:192:168:2::11"]
    assert json.loads(made.config)["IPv6Network"] == "fd00:10:244::/56"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "a"', 'name = "A"', "lab.toml: node 'A': use 1 to 12 of a-z and 0-9"),
        ('name = "a"', 'name = "averylongname"', "use 1 to 12 of a-z and 0-9"),
        ('name = "a"', 'name = "world"', "node 'world': the name is"),
        ('name = "a"', 'name = "b"', "node 'b': the name is used twice"),
        ('name = "a"', "name = 3", "lab.toml: Expected `str`, got `int` - at `node[0].name`"),
        ('name = "a"', 'nmae = "a"', "unknown field `nmae` - at `node[0]`"),
        ('name = "a"', "name = ", "lab.toml: not TOML"),
        ('"10.9.0.10"', '"10.9.0.1"', "10.9.0.1 is the gateway's already"),
        ('"10.9.0.10"', '"10.9.0.11"', "10.9.0.11 is a's already"),
        ('"10.9.0.10"', '"10.8.0.10"', "node 'a': address 10.8.0.10: not an address that a host of 10.9.0.0/24 can have"),
        ('"10.9.0.10"', '"10.9.0.255"', "not an address that a host"),
        ('"10.9.0.10"', '"ten"', "node 'a': address: 'ten' is not an IP address"),
        ('"10.9.0.1"\n', '"10.9.1.1"\n', "gateway 10.9.1.1: not an address"),
        ('"10.50.7.0/24"', '"10.51.7.0/24"', "subnet 10.51.7.0/24 is outside of 10.50.0.0/16"),
        ('"10.50.0.0/16"', '"10.9.0.0/16"', "underlay 10.9.0.0/24 and network Network 10.9.0.0/16 overlap"),
        ('"10.50.0.0/16"', '"x"', "network: Network: 'x' is not a network"),
        ('["web", "db"]', '["web", "web"]', "two pods of one name"),
        ('["web", "db"]', '["we_b"]', "pod 'we_b': use 1 to 12"),
        ('"10.9.0.11"\n', '"10.9.0.11"\nsubnet = "10.50.7.128/25"\n', "overlaps 10.50.7.0/24 of node 'a'"),
        ('"10.9.0.11"\n', '"10.9.0.11"\naddress6 = "fd00::1"\n', "address6 needs underlay6"),
        ('"10.9.0.0/24"', '"10.9.0.0/31"', "between /8 and /29"),
    ],
)
def test_a_file_that_cannot_work_is_named_in_one_line(old, new, said):
    assert old in FILE
    with pytest.raises(UsageError) as error:
        topologies.parse(FILE.replace(old, new, 1), "lab.toml")
    assert said in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("lab.toml")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: topologies.generic(0), "--nodes 0"),
        (lambda: topologies.generic(251), "--nodes 251"),
        (lambda: topologies.seed(-1), "--pods-per-node -1"),
        (lambda: topologies.with_backend(topologies.seed(), "vxlan:{"), "--backend vxlan:{"),
        (lambda: topologies.with_backend(topologies.seed(), "vxlan:[1]"), "not a JSON object"),
        (lambda: topologies.with_backend(topologies.seed(), ":{}"), "a type is missing"),
        (lambda: topologies.check_name("--name", "my-lab"), "--name 'my-lab'"),
    ],
)
def test_wrong_flags(make, said):
    with pytest.raises(UsageError) as error:
        make()
    assert said in str(error.value)


def test_the_backend_goes_into_the_configuration():
    config = json.loads(topologies.with_backend(topologies.seed(), 'vxlan:{"DirectRouting": true}').config)
    assert config["Backend"] == {"Type": "vxlan", "DirectRouting": True} and config["Network"] == "10.244.0.0/16"
    assert json.loads(topologies.with_backend(topologies.seed(), "host-gw").config)["Backend"] == {"Type": "host-gw"}
