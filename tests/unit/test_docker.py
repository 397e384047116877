"""dockerd's options, as flannel's mk-docker-opts.sh writes them, and what bridges beside cni0 do wrong."""

from __future__ import annotations

import pytest

from tweed.addr import Prefix
from tweed.errors import TweedError
from tweed.plan.docker import Options, bridge_problems, check_free, docker_half, environment, merged, options, pods_half, pods_subnet
from tweed.wire.flannel import parse_subnet_env

P = Prefix.parse
V4 = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
V6 = "FLANNEL_IPV6_NETWORK=fd00::/56\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n"


@pytest.mark.parametrize(
    ("text", "asked", "expected"),
    [
        (V4, {}, ["--bip=10.244.1.1/24", "--ip-masq=false", "--mtu=1450"]),
        (V4.replace("true", "false"), {}, ["--bip=10.244.1.1/24", "--mtu=1450"]),
        (V4, {"ip_masq": False}, ["--bip=10.244.1.1/24", "--mtu=1450"]),
        (V4, {"split": True}, ["--bip=10.244.1.129/25", "--ip-masq=false", "--mtu=1450"]),
        (V4 + V6, {}, ["--bip=10.244.1.1/24", "--ipv6 --fixed-cidr-v6=fd00:0:0:1::/64", "--ip-masq=false", "--mtu=1450"]),
        (V6, {"split": True}, ["--ipv6 --fixed-cidr-v6=fd00:0:0:1:8000::/65"]),
        (V4.replace("1450", "x"), {}, ["--bip=10.244.1.1/24", "--ip-masq=false"]),
    ],
)
def test_options(text: str, asked: dict[str, bool], expected: list[str]) -> None:
    assert list(options(parse_subnet_env(text), **asked).individual.values()) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"individual": True, "combined": False}, 'DOCKER_OPT_BIP="--bip=10.244.1.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=false"\nDOCKER_OPT_MTU="--mtu=1450"\n'),
        ({"individual": False, "combined": True}, 'DOCKER_OPTS=" --bip=10.244.1.1/24 --ip-masq=false --mtu=1450 "\n'),
        ({"individual": False, "combined": True, "key": "X", "earlier": "-D"}, 'X="-D --bip=10.244.1.1/24 --ip-masq=false --mtu=1450 "\n'),
    ],
)
def test_the_text_is_that_of_flannels_script(asked: dict[str, object], expected: str) -> None:
    assert environment(options(parse_subnet_env(V4)), **{"key": "DOCKER_OPTS"} | asked) == expected  # type: ignore[arg-type]


def test_a_daemon_json_keeps_what_is_not_ours() -> None:
    there = '{"data-root": "/d", "bip": "10.1.1.1/24", "fixed-cidr-v6": "fd01::/64", "ipv6": true}'
    text = merged(there, options(parse_subnet_env(V4)), "daemon.json")
    assert text == '{\n    "data-root": "/d",\n    "bip": "10.244.1.1/24",\n    "ip-masq": false,\n    "mtu": 1450\n}\n'
    assert merged("", Options(mtu=1400), "daemon.json") == '{\n    "mtu": 1400\n}\n'
    for junk in ("{", "[]", "7"):
        with pytest.raises(TweedError, match=r"daemon\.json: .*; mend or remove it first"):
            merged(junk, Options(), "daemon.json")


@pytest.mark.parametrize("text", ["FLANNEL_SUBNET=10.0.0.1/30", "FLANNEL_SUBNET=10.0.0.1/32", "FLANNEL_IPV6_SUBNET=fd00::1/127"])
def test_what_is_too_small_is_not_split(text: str) -> None:
    with pytest.raises(TweedError, match="is too small to split: each half needs 4 addresses"):
        options(parse_subnet_env(text + "\n"), split=True)


@pytest.mark.parametrize("text", ["10.244.1.0/24", "fd00:0:0:1::/64", "10.0.0.0/30"])
def test_the_halves_are_the_whole(text: str) -> None:
    subnet = P(text)
    low, high = pods_half(subnet), docker_half(subnet)
    assert low.contains(subnet.host(1)) and not low.overlaps(high) and low.step + high.step == subnet.step and subnet.contains(high)


@pytest.mark.parametrize(
    ("bridges", "expected"),
    [
        ([("docker0", "172.17.0.1/16")], []),
        ([("docker0", "10.244.1.1/24")], []),
        ([("cni0", "10.244.1.1/24")], []),
        ([("docker0", "10.244.7.1/24")], ["bridge-subnet: docker0: has 10.244.7.1/24, but this node's subnet is 10.244.1.0/24"]),
        ([("docker0", "10.244.1.1/24"), ("cni0", "10.244.1.1/24")], ["shared-subnet: docker0: has 10.244.1.1/24, and cni0 is on the same subnet"]),
        ([("docker0", "10.244.1.129/25"), ("cni0", "10.244.1.1/24")], ["shared-subnet: docker0: has 10.244.1.129/25, and cni0 is on the same subnet"]),
        ([("docker0", "10.244.1.129/25"), ("cni0", "10.244.1.1/25")], []),
        (
            [("docker0", "10.244.1.1/24"), ("cni0", "10.244.1.1/24"), ("cni0", "fd00:0:0:1::1/64")],
            ["shared-subnet: docker0: has 10.244.1.1/24, and cni0 is on the same subnet", "bridge-subnet: cni0: has fd00:0:0:1::1/64"],
        ),
        (
            [("cni0", "10.244.1.1/24"), ("cni0", "10.244.1.1/25"), ("docker0", "10.244.1.129/25")],
            ["shared-subnet: docker0: has 10.244.1.129/25, and cni0 is on the same subnet"],
        ),
        (
            [("cni0", "10.244.7.1/24"), ("cni0", "10.244.1.1/24")],
            ["bridge-subnet: cni0: has 10.244.7.1/24, but this node's subnet is 10.244.1.0/24: no other node reaches its containers; make them anew"],
        ),
        ([("docker0", "fd00::1/64")], ["bridge-subnet: docker0: has fd00::1/64, but this node's subnet is none"]),
    ],
)
def test_problems_of_bridges(bridges: list[tuple[str, str]], expected: list[str]) -> None:
    found = bridge_problems((P("10.244.0.0/16"), P("fd00::/56")), (P("10.244.1.0/24"),), {"cni0"}, [(name, P(text)) for name, text in bridges])
    assert [str(problem)[: len(text)] for problem, text in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("bridges", "expected"),
    [
        ([], "10.244.1.0/24"),
        ([("docker0", "172.17.0.1/16")], "10.244.1.0/24"),
        ([("cni0", "10.244.1.1/24")], "10.244.1.0/24"),
        ([("docker0", "10.244.1.129/25")], "10.244.1.0/25"),
        ([("docker0", "10.244.1.193/26")], "10.244.1.0/25"),
        ([("docker0", "10.244.1.1/24")], None),
        ([("docker0", "10.244.1.1/25")], None),
        ([("docker0", "10.244.0.1/16")], None),
    ],
)
def test_pods_get_what_no_other_bridge_has(bridges: list[tuple[str, str]], expected: str | None) -> None:
    found = [(name, P(text)) for name, text in bridges]
    if expected is not None:
        assert pods_subnet(P("10.244.1.0/24"), {"cni0"}, found) == P(expected)
        return
    with pytest.raises(TweedError, match=r"docker0 has 10\.244\..*, so its containers and the pods would share 10.244.1.0/24: .*--split"):
        pods_subnet(P("10.244.1.0/24"), {"cni0"}, found)


@pytest.mark.parametrize(
    ("split", "bridges", "expected"),
    [
        (False, [], None),
        (False, [("docker0", "10.244.1.1/24"), ("br-1", "172.18.0.1/16"), ("cni0", "10.244.2.1/24")], None),
        (True, [("cni0", "10.244.1.1/25")], None),
        (False, [("cni0", "10.244.1.1/25")], "cni0 has 10.244.1.1/25, so its containers and Docker's would share 10.244.1.0/24: use --split"),
        (
            False,
            [("cni0", "10.244.1.1/24")],
            r"cni0 has .* share 10.244.1.0/24: while .*, take 10.244.1.1/24 from cni0, .* \(ip link del cni0\), and use --split to have both",
        ),
        (True, [("cni0", "10.244.1.1/24")], r"cni0 has .* share 10.244.1.128/25: while .*, take 10.244.1.1/24 from cni0, .* \(ip link del cni0\)"),
        (True, [("cni0", "10.244.1.1/25"), ("cni1", "10.244.1.129/25")], "cni1 has 10.244.1.129/25, .* share 10.244.1.128/25: while .*, take"),
        (False, [("br0", "10.0.0.1/8")], "br0 has 10.0.0.1/8"),
        (True, [("cni0", "fd00:0:0:1::1/64")], "cni0 has fd00:0:0:1::1/64, .* share fd00:0:0:1:8000::/65"),
    ],
)
def test_docker_gets_only_what_no_other_bridge_has(split: bool, bridges: list[tuple[str, str]], expected: str | None) -> None:
    subnets, found = (P("10.244.1.0/24"), P("fd00:0:0:1::/64")), [(name, P(text)) for name, text in bridges]
    if expected is None:
        check_free(subnets, found, split=split)
        return
    with pytest.raises(TweedError, match=f"^{expected}"):
        check_free(subnets, found, split=split)
