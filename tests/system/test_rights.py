"""An agent with the rights of its container in deploy/kubernetes, and with less: what works, and what is named that does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.cluster import DUAL, Cluster, Node, wait_for


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Cluster(tmp_path, 1, DUAL) as cluster:
        (here,) = cluster.nodes
        try:
            yield here
        finally:
            here.end()


def confine(node: Node, *capabilities: str) -> None:
    """Commands in this node have these capabilities only, and a /proc/sys that cannot be written, as in a container that is not privileged."""
    caps = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    locked = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"
    confined = f'{locked}; exec setpriv --bounding-set={caps} --inh-caps={caps} -- "$@"'
    plain = node.argv
    node.argv = lambda *words: plain("unshare", "--mount", "--propagation", "private", "sh", "-ec", confined, "sh", *words)  # type: ignore[method-assign]


def test_two_capabilities_are_enough_once_the_node_forwards(node: Node) -> None:
    """Devices of both families, rows, nftables and iptables. Forwarding is what the privileged init container has turned on."""
    node.sh("sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv6.conf.all.forwarding=1; iptables -P FORWARD DROP")
    plain = node.argv
    confine(node, "net_admin", "net_raw")
    node.start("--ip-masq")
    status = node.status()
    assert status["firewall"]["forwarding"] == "on for IPv4 and IPv6" and not status["failures"]
    assert "capability" not in node.problems()
    node.argv = plain  # type: ignore[method-assign]
    assert "flannel-v6.1" in node.sh("ip -o link show type vxlan") and "tweed-1" in node.sh("nft list tables")
    assert "tweed forward 1" in node.sh("iptables -S FORWARD")


def test_forwarding_that_cannot_be_turned_on_is_said_and_the_rest_is_done(node: Node) -> None:
    plain = node.argv
    confine(node, "net_admin", "net_raw")
    node.start(ready=False)
    wait_for(lambda: "/proc/sys is mounted read-only here" in (node.status()["reason"] or ""), "the reason")
    node.argv = plain  # type: ignore[method-assign]
    assert "flannel.1" in node.sh("ip -o link show type vxlan")
    node.sh("sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv6.conf.all.forwarding=1")
    wait_for(lambda: node.status()["ready"], "ready as soon as somebody has done it")


@pytest.mark.parametrize(("held", "lacks"), [("net_admin", "NET_RAW"), ("net_raw", "NET_ADMIN")])
def test_a_capability_that_is_missing_is_named_with_what_it_is_for(node: Node, held: str, lacks: str) -> None:
    node.sh("sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv6.conf.all.forwarding=1")
    confine(node, held)
    node.start(ready=False)
    problem = wait_for(lambda: [p for p in node.status()["problems"] if p["id"] == "capability"], "it is named")
    assert [p["subject"] for p in problem] == [lacks]
    wait_for(lambda: node.status()["ready"] is (lacks == "NET_RAW"), "only NET_ADMIN cannot be done without")
