"""Real agents on hosts that have a firewall and a router of their own."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether
from tests.system.cluster import DUAL, Cluster
from tests.system.conftest import Lab, all_pairs, eventually, ping, running

QUIET_S = 1.0  # how long answers must stay away before they count as dropped


def between_nodes(lab: Lab) -> set[tuple[str, str]]:
    node_of = {pod.ip(family): pod.node for pod in lab.pods for family in (4, 6)}
    origin = {pod.netns: pod.node for pod in lab.pods}
    pairs = {pair for family in (4, 6) for pair in all_pairs(lab.pods, family)}
    return {(netns, ip) for netns, ip in pairs if origin[netns] != node_of[ip]}


def test_pods_talk_through_chains_that_drop_forwarded_traffic() -> None:
    """Docker's policy in FORWARD is opened; somebody's own nft chain is named with the command that opens it, and that command is right."""
    with running(f"h{os.getpid()}", "--nodes", "2", "--pods-per-node", "1", "--ipv6") as lab:
        pairs = between_nodes(lab)
        assert lab.tweed("pause").returncode == 0
        for node in lab.nodes:
            lab.run(node.name, "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
        assert ping(pairs, patience_s=QUIET_S) == pairs, "the chains drop"
        assert lab.tweed("resume").returncode == 0
        eventually(lambda: not ping(pairs, patience_s=QUIET_S), "the agents open them")

        lab.run("node1", "nft add table inet mine; nft 'add chain inet mine through { type filter hook forward priority 5; policy drop; }'")
        eventually(lambda: [p for p in lab.agent("node1")["problems"] if p["id"] == "forward-drop"], "the chain is named")
        said = [p["text"] for p in lab.agent("node1")["problems"]]
        assert ping(pairs, patience_s=QUIET_S) == pairs and len(said) == 2 and all("table inet mine chain through" in text for text in said)
        log = lab.tweed("logs", "node1").stdout
        assert all(f"WARNING problem: forward-drop: inet mine through: {text}" in log for text in said)
        assert 'tweed_problems{id="forward-drop"} 2.0' in lab.agent("node1", path="/metrics")
        for text in said:
            lab.run("node1", text.partition("to open it: ")[2])
        eventually(lambda: not lab.agent("node1")["problems"], "no longer a problem")
        assert ping(pairs) == set()


def test_the_default_route_of_a_router_advertisement_survives_an_agent(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1, DUAL) as cluster:
        (node,) = cluster.nodes
        router = "02:00:00:00:00:fe"
        packet = Ether(src=router, dst="33:33:00:00:00:01") / IPv6(src="fe80::fe", dst="ff02::1", hlim=255)
        packet = packet / ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptSrcLLAddr(lladdr=router)

        def advertise() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind(("p1", 0))
                sock.send(bytes(packet))

        def learned() -> bool:
            return "default via fe80::fe dev ens33 proto ra" in node.sh("ip -6 route show default")

        cluster.switch.do(advertise)
        eventually(learned, "the kernel takes the route")
        node.start()
        assert node.sh("sysctl -n net.ipv6.conf.all.forwarding") == "1\n" and learned()
        node.sh("ip -6 route flush default")
        cluster.switch.do(advertise)
        eventually(learned, "the next advertisement is heard too")
        assert node.tweed("cleanup", *node.flags).returncode == 0
        assert node.sh("sysctl -n net.ipv6.conf.all.forwarding net.ipv6.conf.ens33.accept_ra") == "0\n1\n" and learned()


def test_addresses_and_routes_that_come_later_do_not_move_a_node(tmp_path: Path) -> None:
    """IPv6 shows its newest address first, so autoconfiguration would move a node that all others know by another one."""
    with Cluster(tmp_path, 2, DUAL) as cluster:
        cluster.start()
        node, peer = cluster.nodes
        before, passes = node.tables() + peer.tables(), node.status()["reconcile"]["passes"]
        node.sh("ip link add vpn0 type veth peer name vpn1; ip link set vpn0 up; ip addr add 172.31.0.1/24 dev vpn0; ip route add default via 172.31.0.2")
        node.sh("ip -6 addr add 2001:db8:9::1/64 dev ens33 nodad; ip addr add 192.168.2.99/16 dev ens33")
        eventually(lambda: node.status()["reconcile"]["passes"] > passes, "the agent looks again")
        assert node.status()["underlay"]["device"] == "ens33" and node.tables() + peer.tables() == before


def test_a_privacy_address_is_not_what_others_know_a_node_by(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1, DUAL) as cluster:
        (node,) = cluster.nodes
        router = "02:00:00:00:00:fe"
        packet = Ether(src=router, dst="33:33:00:00:00:01") / IPv6(src="fe80::fe", dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=1800)
        packet = packet / ICMPv6NDOptSrcLLAddr(lladdr=router) / ICMPv6NDOptPrefixInfo(prefix="2001:db8:9::", prefixlen=64)

        def advertise() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind(("p1", 0))
                sock.send(bytes(packet))

        node.sh("sysctl -qw net.ipv6.conf.ens33.use_tempaddr=2")
        cluster.switch.do(advertise)
        shown = eventually(lambda: [line for line in node.sh("ip -6 -o addr show dev ens33").splitlines() if "temporary" in line], "a temporary address")
        node.start()
        assert node.status()["public_ip6"] and all(node.status()["public_ip6"] not in line for line in shown)


def test_a_masqueraded_flow_lives_through_restarts_of_the_agent(tmp_path: Path) -> None:
    """The kernel keeps the flow's address and random port; another one would be another connection to the far end."""
    with Cluster(tmp_path, 2) as cluster:
        node, outside = cluster.nodes
        node.start("--ip-masq")
        with (
            outside.do(lambda: socket.create_server((outside.ip, 0))) as listener,
            node.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as client,
        ):
            listener.settimeout(10)
            client.settimeout(10)
            client.bind((node.status()["subnet"].split("/")[0], 0))
            client.connect(listener.getsockname())
            server, (seen, _) = listener.accept()
            with server:
                server.settimeout(10)
                assert seen == node.ip, "masqueraded"
                for number in (signal.SIGKILL, signal.SIGTERM):
                    node.end(number)
                    client.sendall(b"while it is away")
                    assert server.recv(64) == b"while it is away"
                    node.start("--ip-masq")
                    server.sendall(b"and when it is back")
                    assert client.recv(64) == b"and when it is back"
