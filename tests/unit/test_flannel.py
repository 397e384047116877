"""The network configuration and subnet.env: as flannel reads and writes them, and refused in one line where it would misread them."""

import json

import msgspec
import pytest
from tests.unit import junk
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix
from tweed.errors import UsageError
from tweed.model import Endpoint, Lease
from tweed.wire.flannel import SubnetEnv, format_subnet_env, host_overlaps, parse_network, parse_subnet_env

P = Prefix.parse

# ---- network configuration ----------------------------------------------------------------------------------------


def test_defaults():
    net = parse_network('{"Network": "10.244.7.9/16"}')
    assert (net.network, net.subnet_len, net.subnet_min, net.subnet_max) == (P("10.244.0.0/16"), 24, P("10.244.1.0/24"), P("10.244.255.0/24"))
    assert (net.enable_ipv4, net.enable_ipv6, net.enable_nftables, net.network6, net.subnet_min6) == (True, False, False, None, None)
    assert (net.backend, net.backend_given, net.vni, net.port, net.mtu) == ("vxlan", False, 1, 8472, 0)
    assert (net.learning, net.gbp, net.direct_routing, net.raw) == (False, False, False, {})
    assert (net.range(4).first, net.range(6), net.networks) == (P("10.244.1.0/24"), None, (P("10.244.0.0/16"),))


EVERYTHING = (
    '{"NETWORK": "10.0.0.0/8", "subnetlen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0", "enableipv6": true, "IPv6Network": "fd00::/56",'
    ' "IPv6SubnetLen": 60, "IPv6SubnetMin": "fd00:0:0:20::", "IPv6SubnetMax": "fd00:0:0:c0::", "EnableNFTables": true, "Unknown": [1],'
    ' "Backend": {"Type": "VXLAN", "vni": 42, "PORT": 4789, "MTU": 9000, "GBP": true, "Learning": true, "DirectRouting": true}}'
)


def test_everything_given_in_any_case():
    net = parse_network(EVERYTHING)
    assert (net.subnet_len, net.subnet_min, net.subnet_max) == (20, P("10.10.0.0/20"), P("10.99.0.0/20"))
    assert (net.network6, net.subnet_len6, net.subnet_min6, net.subnet_max6) == (P("fd00::/56"), 60, P("fd00:0:0:20::/60"), P("fd00:0:0:c0::/60"))
    assert (net.backend, net.vni, net.port, net.mtu, net.gbp, net.learning, net.direct_routing) == ("vxlan", 42, 4789, 9000, True, True, True)
    assert (net.enable_nftables, net.backend_given) == (True, True)
    assert net.range(6).fits(P("fd00:0:0:30::/60"))
    assert not net.range(6).fits(P("fd00:0:0:10::/60"))


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("10.1.0.0/22", 24, "10.1.1.0/24", "10.1.3.0/24"),
        ("10.1.0.0/23", 25, "10.1.0.128/25", "10.1.1.128/25"),
        ("10.1.0.0/28", 30, "10.1.0.4/30", "10.1.0.12/30"),
    ],
)
def test_a_default_length_leaves_four_subnets(network, length, first, last):
    net = parse_network(json.dumps({"Network": network}))
    assert (net.subnet_len, net.subnet_min, net.subnet_max) == (length, P(first), P(last))


@pytest.mark.parametrize(("network", "length"), [("fd00::/48", 64), ("fd00::/62", 64), ("fd00::/63", 65), ("fd00::/124", 126)])
def test_a_default_ipv6_length_leaves_four_subnets(network, length):
    net = parse_network(json.dumps({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": network}))
    assert net.subnet_len6 == length
    assert net.subnet_min6.value == net.network6.value + net.subnet_min6.step


@pytest.mark.parametrize("backend", [{"Type": "udp"}, {"Type": "Host-GW"}, {"Type": "wireguard", "PSK": "x"}])
def test_other_backends_keep_their_options(backend):
    net = parse_network(json.dumps({"Network": "10.1.0.0/16", "Backend": backend}))
    assert net.backend == backend["Type"].lower()
    assert net.raw == {k.lower(): v for k, v in backend.items()}
    assert (net.port == 8285) == (net.backend == "udp")


BAD_NETWORKS = [
    ("", "is not JSON"),
    ("[]", "is not a JSON object"),
    ("{}", "please define a correct Network parameter in the flannel config"),
    ({"EnableIPv4": False}, "none defined stack"),
    ({"EnableIPv4": "false"}, 'EnableIPv4 "false": expected true or false'),
    ({"EnableIPv6": True}, "please define a correct IPv6Network parameter"),
    ({"Network": 5}, "Network 5: expected a string"),
    ({"Network": "10.1.0.0"}, 'Network "10.1.0.0": expected an IPv4 network'),
    ({"Network": "10.1.0.0/33"}, "expected an IPv4 network"),
    ({"Network": "fd00::/48"}, "expected an IPv4 network"),
    ({"Network": "0.0.0.0/0"}, "holds loopback"),
    ({"Network": "224.0.0.0/8"}, "holds loopback"),
    ({"Network": "10.1.0.0/29"}, "network is too small. Minimum useful network prefix is /28"),
    ({"SubnetLen": 31}, "SubnetLen 31: SubnetLen must be less than /31"),
    ({"SubnetLen": -1}, "SubnetLen -1"),
    ({"SubnetLen": 24.0}, "SubnetLen 24.0: expected a whole number"),
    ({"SubnetLen": True}, "SubnetLen true: expected a whole number"),
    ({"SubnetLen": 17}, "SubnetLen 17: network must be able to accommodate at least four subnets"),
    ({"SubnetMin": "10.2.0.0"}, "SubnetMin is not in the range of the Network"),
    ({"SubnetMin": "10.1.0.7"}, "SubnetMin is not on a SubnetLen boundary: use 10.1.0.0"),
    ({"SubnetMax": "10.2.0.0"}, "SubnetMax is not in the range of the Network"),
    ({"SubnetMax": "10.1.9.7"}, "SubnetMax is not on a SubnetLen boundary"),
    ({"SubnetMax": "fd00::"}, "expected an IPv4 address in 10.1.0.0/16"),
    ({"SubnetMax": "x\ny"}, 'SubnetMax "x\\ny": expected'),
    ({"SubnetMin": "10.1.9.0", "SubnetMax": "10.1.8.0"}, "SubnetMin 10.1.9.0 is above SubnetMax 10.1.8.0"),
    ({"EnableIPv6": True, "IPv6Network": "fd00::/125"}, "Minimum useful network prefix is /124"),
    ({"EnableIPv6": True, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 127}, "must be less than /127"),
    ({"EnableIPv6": True, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 49}, "four subnets"),
    ({"EnableIPv6": True, "IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd01::"}, "IPv6SubnetMin is not in the range"),
    ({"EnableIPv6": True, "IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd00::1"}, "IPv6SubnetMax is not on a SubnetLen boundary"),
    ({"EnableIPv6": True, "IPv6Network": "ff00::/48"}, 'IPv6Network "ff00::/48": holds'),
    ({"Backend": "vxlan"}, 'Backend "vxlan": expected an object'),
    ({"Backend": {}}, "unknown backend type"),
    ({"Backend": {"Type": "vx"}}, "unknown backend type: vx"),
    ({"Backend": {"Type": 1}}, "Backend.Type 1: expected a string"),
    ({"Backend": {"Type": "vxlan", "VNI": 0}}, "Backend.VNI 0: use 1 to 16777215"),
    ({"Backend": {"Type": "vxlan", "VNI": 1 << 24}}, "Backend.VNI 16777216: use 1 to 16777215"),
    ({"Backend": {"Type": "vxlan", "VNI": "1"}}, 'Backend.VNI "1": expected a whole number'),
    ({"Backend": {"Type": "vxlan", "VNI": 10000000}}, "the device name flannel.10000000 has 16 characters, the kernel takes 15; use a VNI up to 9999999"),
    (
        {"EnableIPv6": True, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan", "VNI": 10000}},
        "the device name flannel-v6.10000 has 16 characters, the kernel takes 15; use a VNI up to 9999",
    ),
    ({"Backend": {"Type": "vxlan", "Port": 65536}}, "Backend.Port 65536: use 0 to 65535"),
    ({"Backend": {"Type": "vxlan", "Port": -1}}, "Backend.Port -1"),
    ({"Backend": {"Type": "vxlan", "MTU": 65536}}, "Backend.MTU 65536"),
    ({"Backend": {"Type": "vxlan", "MTU": 100}}, "Backend.MTU 100: too small for IPv4 through VXLAN; use 118"),
    ({"EnableIPv6": True, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan", "MTU": 1300}}, "too small for IPv6 through VXLAN; use 1350"),
    ({"Backend": {"Type": "vxlan", "GBP": 1}}, "Backend.GBP 1: expected true or false"),
]


@pytest.mark.parametrize(("config", "why"), BAD_NETWORKS, ids=[str(i) for i in range(len(BAD_NETWORKS))])
def test_a_bad_configuration_is_refused_in_one_line(config, why):
    text = config if isinstance(config, str) else json.dumps({"Network": "10.1.0.0/16"} | config)
    with pytest.raises(UsageError) as error:
        parse_network(text)
    assert why in str(error.value)
    assert str(error.value).startswith("network configuration: ")
    assert "\n" not in str(error.value)


def test_the_largest_vnis_that_have_a_device_name():
    assert parse_network('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "VNI": 9999999}}').vni == 9999999
    assert parse_network('{"Network": "10.1.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan", "VNI": 9999}}').vni == 9999


def test_port_zero_is_the_default():
    assert parse_network('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "Port": 0}}').port == 8472


def test_host_addresses_in_the_network():
    net = parse_network('{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}')
    addresses = [
        ("lo", P("127.0.0.1/8")),
        ("ens33", P("10.244.3.7/24")),
        ("cni0", P("10.244.1.1/24")),
        ("ens34", P("10.1.0.5/8")),
        ("ens35", P("fd00::5/64")),
    ]
    assert host_overlaps(net, addresses, {"cni0"}) == [
        "Network 10.244.0.0/16 holds the address 10.244.3.7/24 of ens33: use another network, or move that address",
        "IPv6Network fd00::/48 holds the address fd00::5/64 of ens35: use another network, or move that address",
    ]


WORDS = ("Network", "SubnetLen", "EnableIPv6", "Backend", "Type", "VNI", "udp", "10.0.0.0/8", "fd00::/48")


@spelled(150)
def junk_texts(choose: Choices) -> str:
    if choose.below(5) == 4:
        return choose.text(40)
    return json.dumps(junk.damaged(choose, choose.one_of([json.loads(EVERYTHING), {"Network": "10.1.0.0/16"}]), (*WORDS, choose.text(20))))


@cases(200, junk_texts)
def test_junk_is_a_configuration_or_refused_in_one_line(text):
    try:
        parse_network(text)
    except UsageError as error:
        assert "\n" not in str(error)


# ---- subnet.env ---------------------------------------------------------------------------------------------------


def test_subnet_env_as_flannel_writes_it():
    net = parse_network('{"Network": "10.0.0.0/8", "EnableIPv6": true, "IPv6Network": "fd00::/48"}')
    lease = Lease(Endpoint(P("10.0.62.0/24")), Endpoint(P("fd00:0:0:1::/64")))
    text = (
        "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.0.62.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    assert format_subnet_env(net, lease, 1450, True) == text
    assert parse_subnet_env(text) == SubnetEnv(P("10.0.0.0/8"), P("10.0.62.0/24"), P("fd00::/48"), P("fd00:0:0:1::/64"), 1450, True)


def test_one_family_writes_only_its_own_lines():
    net, lease = parse_network('{"Network": "10.0.0.0/8"}'), Lease(Endpoint(P("10.5.52.0/24")))
    assert format_subnet_env(net, lease, 1450, False) == "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


@pytest.mark.parametrize(
    ("text", "subnet"),
    [
        ("", None),
        ("garbage\n===\n\x00", None),
        ("FLANNEL_SUBNET=10.0.62.1/24", "10.0.62.0/24"),
        ("# FLANNEL_SUBNET=10.0.1.1/24\n export FLANNEL_SUBNET = '10.0.62.1/24'  # mine\r\n", "10.0.62.0/24"),
        ("FLANNEL_SUBNET=10.0.1.1/24\nFLANNEL_SUBNET=10.0.62.1/24\n", "10.0.62.0/24"),
        ("FLANNEL_SUBNET=10.0.62.1/24,nonsense,fd00::1/64", "10.0.62.0/24"),
        ("FLANNEL_SUBNET=10.0.62.1/24,10.0.63.1/24", None),
        ("FLANNEL_SUBNET=10.0.62.1", None),
        ("FLANNEL_SUBNET=10.0.62.1/99", None),
        ("FLANNEL_IPV6_SUBNET=10.0.62.1/24", None),
    ],
)
def test_subnet_env_is_read_with_its_faults(text, subnet):
    assert parse_subnet_env(text) == SubnetEnv(subnet=P(subnet) if subnet else None)


def test_equal_texts_are_equal_networks():
    text = '{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}'
    assert parse_network(text) == parse_network(text)
    assert msgspec.structs.replace(parse_network(text), vni=2) != parse_network(text)
