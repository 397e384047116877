"""The overlay carries packets: all pairs, both families, all sizes; and what is on the wire is VXLAN to other people's eyes too."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tweed.addr import parse_address, parse_mac
from tweed.agent.client import call
from tweed.kernel.capture import Capture, Frame
from tweed.kernel.netns import open_netns, run_in
from tweed.lab.registry import Lab, Pod
from tweed.lab.traffic import ping, transfer

MTU = {4: 1450, 6: 1430}
# Payload bytes of an echo that fill the pod's MTU exactly: IPv4 20 + ICMP 8, IPv6 40 + ICMPv6 8.
HEADERS = {4: 28, 6: 48}


@contextmanager
def namespace(name: str) -> Iterator[int]:
    descriptor = open_netns(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def address(pod: Pod, family: int) -> bytes:
    return next(a for a in (parse_address(text) for text in pod.ips) if len(a) == (4 if family == 4 else 16))


def pods(lab: Lab) -> list[Pod]:
    return [pod for node in lab.nodes for pod in node.pods if not pod.outside]


@pytest.mark.parametrize("family", [4, 6])
def test_all_pairs_of_pods_answer_each_other(lab6: Lab, family: int) -> None:
    lost = []
    for a, b in itertools.permutations(pods(lab6), 2):
        with namespace(a.netns) as netns:
            times = ping(netns, address(a, family), address(b, family), id=os.getpid() & 0xFFFF, count=1)
        if times[0] is None:
            lost.append(f"{a.ips} -> {b.ips}")
    assert not lost


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("over", [-1450, -1, 0, 1, 1600, 7000])
def test_sizes_up_to_and_above_the_mtu(lab6: Lab, family: int, over: int) -> None:
    """`over` bytes above the pod's MTU: smaller packets go whole, larger ones in fragments."""
    a, b = lab6.nodes[0].pods[0], lab6.nodes[-1].pods[0]
    mtu = call(lab6.nodes[0].socket, "GET", "/v1/status")["mtu"]
    size = max(0, mtu - HEADERS[family] + over)
    with namespace(a.netns) as netns:
        assert ping(netns, address(a, family), address(b, family), id=1, count=1, payload=bytes(size))[0] is not None


@pytest.mark.parametrize("family", [4, 6])
def test_udp_and_tcp_between_nodes(lab6: Lab, family: int) -> None:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    for a, b in itertools.permutations([node.pods[0] for node in lab6.nodes], 2):
        with namespace(a.netns) as from_, namespace(b.netns) as to:
            done = transfer(from_, to, address(b, family), size=300_000)
            assert done.sent == done.received
            with (
                closing(run_in(to, lambda: socket.socket(kind, socket.SOCK_DGRAM))) as server,
                closing(run_in(from_, lambda: socket.socket(kind, socket.SOCK_DGRAM))) as client,
            ):
                server.settimeout(5)
                server.bind((str_of(b, family), 0))
                for size in (0, 1, 1400, 4000):
                    client.sendto(bytes(size), (str_of(b, family), server.getsockname()[1]))
                    data, sender = server.recvfrom(65536)
                    assert (len(data), sender[0]) == (size, str_of(a, family))


def str_of(pod: Pod, family: int) -> str:
    return next(text for text in pod.ips if (":" in text) == (family == 6))


def test_a_pod_reaches_the_world_and_a_node_reaches_a_remote_pod(lab6: Lab) -> None:
    pod, node = lab6.nodes[0].pods[0], lab6.nodes[0]
    with namespace(pod.netns) as netns:
        assert ping(netns, address(pod, 4), parse_address("203.0.113.1"), id=2, count=1)[0] is not None
        assert ping(netns, address(pod, 6), parse_address("2001:db8:ffff::1"), id=2, count=1)[0] is not None
    with namespace(node.netns) as netns:  # from the node's own address: masqueraded to flannel.1's
        assert ping(netns, parse_address(node.public_ip), address(lab6.nodes[1].pods[0], 4), id=3, count=1)[0] is not None


def wire_frames(lab: Lab, family: int) -> list[Frame]:
    """What leaves the first node's NIC while one of its pods pings a pod of the last node once."""
    a, b = lab.nodes[0].pods[0], lab.nodes[-1].pods[0]
    with namespace(lab.nodes[0].netns) as node, namespace(a.netns) as netns, Capture(["ens33"], node) as capture:
        assert ping(netns, address(a, family), address(b, family), id=0x7EED, count=1, payload=b"seed" * 14)[0] is not None
        time.sleep(0.05)
        return [frame for frame in capture.drain(0.5) if b"seedseed" in frame.data and frame.direction == "out"]


@pytest.mark.parametrize("family", [4, 6])
def test_scapy_and_tshark_read_the_wire_as_vxlan(lab6: Lab, family: int, tmp_path) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether
    from scapy.layers.vxlan import VXLAN
    from scapy.utils import wrpcap

    own, peer = (call(node.socket, "GET", "/v1/status") for node in (lab6.nodes[0], lab6.nodes[-1]))
    suffix, ip = ("", IP) if family == 4 else ("6", IPv6)
    (frame,) = wire_frames(lab6, family)
    outer = Ether(frame.data)
    assert (outer[ip].src, outer[ip].dst) == (own[f"public_ip{suffix}"], peer[f"public_ip{suffix}"])
    assert outer[UDP].dport == 8472
    assert outer[UDP].len == len(frame.data) - 14 - (20 if family == 4 else 40)
    vxlan = VXLAN(bytes(outer[UDP].payload))
    assert (vxlan.vni, int(vxlan.flags)) == (1, 0x08)
    inner = vxlan[Ether]
    assert (inner.src, inner.dst) == (own[f"vtep_mac{suffix}"], peer[f"vtep_mac{suffix}"])
    assert (inner[ip].src, inner[ip].dst) == (str_of(lab6.nodes[0].pods[0], family), str_of(lab6.nodes[-1].pods[0], family))
    assert (inner[ip].ttl if family == 4 else inner[ip].hlim) == 63
    assert len(frame.data) - len(bytes(inner)) == (50 if family == 4 else 70)

    wrpcap(str(tmp_path / "wire.pcap"), [outer])
    shown = subprocess.run(
        ["tshark", "-r", tmp_path / "wire.pcap", "-d", "udp.port==8472,vxlan", "-T", "json"], capture_output=True, text=True, check=True, timeout=60
    )
    layers = json.loads(shown.stdout)[0]["_source"]["layers"]
    assert layers["vxlan"]["vxlan.vni"] == "1"
    assert {"icmp" if family == 4 else "icmpv6", "udp"} <= set(layers)
    assert "_ws.malformed" not in shown.stdout


def shown(lab: Lab, *command: str) -> list[str]:
    done = subprocess.run(["nsenter", f"--net=/run/netns/{lab.nodes[0].netns}", *command], capture_output=True, text=True, check=True)
    return [line.strip() for line in done.stdout.splitlines()]


def test_the_tables_have_flannels_shapes(lab6: Lab) -> None:
    """Apart from protocol number and metric (issue 2, 6.2; the lines are the seed's)."""
    routes = {re.sub(r" proto \d+| metric \d+", "", line) for line in shown(lab6, "ip", "route")}
    assert {"10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink", "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"} <= routes
    assert "10.244.0.0/24 dev cni0 kernel scope link src 10.244.0.1" in {line.replace(" proto", "") for line in shown(lab6, "ip", "route")}
    peers = [call(node.socket, "GET", "/v1/status") for node in lab6.nodes[1:]]
    neighbours = shown(lab6, "ip", "neigh", "show", "dev", "flannel.1")
    fdb = shown(lab6, "bridge", "fdb", "show", "dev", "flannel.1")
    assert set(neighbours) == {f"{p['subnet'].removesuffix('/24')} lladdr {p['vtep_mac']} PERMANENT" for p in peers}
    assert {f"{p['vtep_mac']} dst {p['public_ip']} self permanent" for p in peers} == {line for line in fdb if "dst" in line}
    (device,) = [line for line in shown(lab6, "ip", "-d", "link", "show", "flannel.1") if line.startswith("vxlan")]
    golden = "vxlan id 1 local 192.168.2.200 dev ens33 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx"
    assert device.startswith(golden)


def test_mtu_and_subnet_env_fit_both_families(lab6: Lab) -> None:
    own = call(lab6.nodes[0].socket, "GET", "/v1/status")
    assert {device["name"]: device["mtu"] for device in own["devices"]} == {"flannel.1": MTU[4], "flannel-v6.1": MTU[6]}
    assert own["mtu"] == MTU[6]
    env = (lab6.nodes[0].directory / "subnet.env").read_text()
    assert "FLANNEL_SUBNET=10.244.0.1/24\n" in env and "FLANNEL_IPV6_SUBNET=fd00:10:244::1/64\n" in env and "FLANNEL_MTU=1430\n" in env


def test_no_two_nodes_share_a_mac(lab6: Lab) -> None:
    states = [call(node.socket, "GET", "/v1/status") for node in lab6.nodes]
    macs = [parse_mac(state[key]) for state in states for key in ("vtep_mac", "vtep_mac6")]
    assert len(set(macs)) == len(macs) == 6
