"""Predicted frames against captured ones: every known byte, at every device from pod to pod, in both families and all protocols.

The values come from `ip`, asked by the test itself; a frame that the prediction does not have, or lacks, fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator

import msgspec
import pytest
from tests.system.conftest import Lab, Pod, ping

from tweed.addr import parse_address, parse_mac
from tweed.kernel.capture import Capture
from tweed.kernel.netns import open_netns, run_in
from tweed.trace.bits import Frame
from tweed.trace.frames import PROTOCOLS, Hop, Probe, Stage, Tunnel, frames, transport
from tweed.wire.packet import Packet, decode

SEEN_S = 5.0
SPORT, DPORT = 0x7477, 33434


def links(lab: Lab, where: str) -> dict[str, dict]:
    return {link["ifname"]: link for link in json.loads(lab.run(where, "ip -d -j link show"))}


def neighbour(lab: Lab, where: str, address: str, device: str) -> bytes:
    (row,) = json.loads(lab.run(where, f"ip -j neigh show {address} dev {device}"))
    return parse_mac(row["lladdr"])


def the_way(lab: Lab, a: Pod, b: Pod, family: int) -> list[Hop]:
    """The hops from a pod of one node to a pod of another."""
    here, there = links(lab, a.node), links(lab, b.node)
    pod_here, pod_there = links(lab, str(a))["eth0"], links(lab, str(b))["eth0"]
    device = "flannel.1" if family == 4 else "flannel-v6.1"
    gateway = json.loads(lab.run(a.node, f"ip -{family} -j route get {b.ip(family)}"))[0]["gateway"]
    vtep = neighbour(lab, a.node, gateway, device)
    assert vtep == parse_mac(there[device]["address"])
    host = next(row["dst"] for row in json.loads(lab.run(a.node, f"bridge -j fdb show dev {device}")) if parse_mac(row["mac"]) == vtep)
    vxlan = here[device]["linkinfo"]["info_data"]
    tunnel = Tunnel(
        parse_address(host),
        parse_address(vxlan["local" if family == 4 else "local6"]),
        neighbour(lab, a.node, host, "ens33"),
        parse_mac(here["ens33"]["address"]),
        vxlan["id"],
        vxlan["port"],
        checksum=vxlan["udp_csum"] if family == 4 else not vxlan["udp_zero_csum6_tx"],
    )
    at_pod = parse_mac(here["cni0"]["address"]), parse_mac(pod_here["address"])
    # With this sysctl connection tracking sees, and joins, what comes to the bridge.
    joined = lab.run(a.node, f"sysctl -n net.bridge.bridge-nf-call-ip{'6' if family == 6 else ''}tables").strip() == "1"
    overlay = vtep, parse_mac(here[device]["address"])
    to_pod = parse_mac(pod_there["address"]), parse_mac(there["cni0"]["address"])
    return [
        Hop(str(a), "eth0", "out", *at_pod, 64, pod_here["mtu"]),
        Hop(a.node, "cni0", "in", *at_pod, 64, joined=joined),
        Hop(a.node, device, "out", *overlay, 63, here[device]["mtu"]),
        Hop(a.node, "ens33", "out", *overlay, 63, here["ens33"]["mtu"], tunnel),
        Hop(b.node, "ens33", "in", *overlay, 63, None, tunnel),
        Hop(b.node, device, "in", *overlay, 63),
        Hop(b.node, "cni0", "out", *to_pod, 62, there["cni0"]["mtu"], joined=True),
        Hop(str(b), "eth0", "in", *to_pod, 62),
    ]


def between(packet: Packet, probe: Probe) -> bool:
    """Whether it is (a fragment of) the probe: its innermost addresses, and no neighbour discovery."""
    network = [layer for layer in packet.layers if layer.name in ("ipv4", "ipv6")][-1:]
    control = packet.find("icmpv6")
    return (
        bool(network)
        and (network[0].octets("src"), network[0].octets("dst")) == (probe.src, probe.dst)
        and (control is None or control.number("type") in (128, 129))
    )


@contextlib.contextmanager
def captures(lab: Lab, hops: list[Hop]) -> Iterator[dict[str, Capture]]:
    """All devices of the way, by namespace."""
    with contextlib.ExitStack() as stack:
        opened: dict[str, Capture] = {}
        for node in dict.fromkeys(hop.node for hop in hops):
            descriptor = stack.enter_context(contextlib.closing(Descriptor(lab.netns(node)))).number
            opened[node] = stack.enter_context(Capture([hop.device for hop in hops if hop.node == node], descriptor))
        yield opened


class Descriptor:
    """A namespace for as long as it is not closed."""

    def __init__(self, netns: str) -> None:
        self.number = open_netns(netns)

    def close(self) -> None:
        os.close(self.number)


def observe(lab: Lab, probe: Probe, stages: tuple[Stage, ...]) -> dict[tuple[str, str], list[bytes]]:
    """Send the probe and collect its frames, until every device has as many as predicted."""
    hops = [stage.hop for stage in stages]
    found: dict[tuple[str, str], list[bytes]] = {(hop.node, hop.device): [] for hop in hops}
    directions = {(hop.node, hop.device): hop.direction for hop in hops}
    wanted = sum(len(stage.frames) for stage in stages)
    kind = socket.AF_INET if probe.family == 4 else socket.AF_INET6
    with captures(lab, hops) as opened, contextlib.closing(Descriptor(lab.netns(hops[0].node))) as source:
        with run_in(source.number, lambda: socket.socket(kind, socket.SOCK_RAW, PROTOCOLS[probe.proto, probe.family])) as sender:
            sender.sendto(transport(probe).data, (lab_address(probe.dst), 0))
        deadline = time.monotonic() + SEEN_S
        while sum(map(len, found.values())) < wanted and time.monotonic() < deadline:
            for node, capture in opened.items():
                for frame in capture.drain(0.05):
                    place = node, frame.device
                    if frame.direction == directions[place] and between(decode(frame.data), probe):
                        found[place].append(frame.data)
    return found


def overwritten(stage: Stage, frame: Frame) -> range:
    """Of IPv6 fragments that connection tracking joins further on, the headers are no longer those that passed here.

    When it cuts the packet again, the kernel writes the next headers over the old ones even where a capture still holds them
    (ip6_fragment asks skb_shared() and not skb_cloned()); 16 bytes at a time, so the two before the Ethernet header too.
    """
    if stage.hop.node == "node2/pod2" or len(stage.frames) == 1 or frame.packet.find("ipv6", frame.packet.levels - 1) is None:
        return range(0)
    return range(max(frame.added - 2, 0), frame.added + 14 + 48)


def lab_address(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("proto", "size"), [("icmp", 84), ("icmp", 1430), ("icmp", 4000), ("udp", 200), ("udp", 3001), ("tcp", 60)])
def test_known_bytes_are_those_on_the_wire(lab6: Lab, family: int, proto: str, size: int):
    a, b = lab6.pod("master/pod1"), lab6.pod("node2/pod2")
    assert not ping([(a.netns, b.ip(family))])  # now the dynamic neighbours are there
    probe = Probe(parse_address(a.ip(family)), parse_address(b.ip(family)), proto, size, SPORT, DPORT, sequence=1)
    stages = frames(probe, the_way(lab6, a, b, family))
    found = observe(lab6, probe, stages)
    for stage in stages:
        seen = found[stage.hop.node, stage.hop.device]
        where = f"{stage.hop.node} {stage.hop.device} {stage.hop.direction}"
        assert len(seen) == len(stage.frames), where
        for frame, data in zip(stage.frames, seen, strict=True):
            wrong = tuple(at for at in frame.differences(data) if at not in overwritten(stage, frame))
            assert wrong == (), f"{where}: bytes {wrong}\n{decode(data)}\n{frame.packet}"
            assert len(frame.unknown) <= 9, frame.unknown  # the test has something to compare


def test_a_wrong_prediction_is_noticed(lab: Lab):
    """The test above can fail: one TTL and one MAC that are others are found at their very bytes."""
    a, b = lab.pod("master/pod1"), lab.pod("node1/pod1")
    assert not ping([(a.netns, b.ip())])
    probe = Probe(parse_address(a.ip()), parse_address(b.ip()), sport=SPORT, sequence=1)
    right = the_way(lab, a, b, 4)[:3]
    wrong = [*right[:2], msgspec.structs.replace(right[2], ttl=64, dst_mac=bytes(6))]
    stages = frames(probe, wrong)
    found = observe(lab, probe, stages)
    (data,) = found["master", "flannel.1"]
    assert stages[2].frames[0].differences(data) == (0, 1, 2, 3, 4, 5, 22)
