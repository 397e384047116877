"""Backend.Type udp with real agents and pods: the forwarding process is found, told, and started again; a packet is followed through it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.conftest import PATIENCE_S, SOURCE, TWEED, Lab, all_pairs, eventually, ping, running, tweed

from tweed.commands import spaces
from tweed.kernel.capture import Capture
from tweed.trace.cluster import Cluster
from tweed.trace.ends import ends as addresses_of
from tweed.trace.frames import Probe
from tweed.trace.live import Captured, live, netns, up


@pytest.fixture(scope="module")
def udp() -> Iterator[Lab]:
    with running("udpmode", "--nodes", "2", "--pods-per-node", "1", "--backend", "udp") as made:
        yield made


def test_pods_talk_through_the_processes(udp: Lab) -> None:
    assert ping(all_pairs(udp.pods, 4), rounds=3) == set()
    for node in udp.nodes:
        said = udp.agent(node.name)
        assert said["mtu"] == 1472 and said["problems"] == []
        assert said["forwarding"]["data_path"] == "fast"
        assert set(said["forwarding"]["offloads"].values()) == {"on"}
        assert said["forwarding"]["counters"]["rx-packets"] >= 3
        assert udp.lines(node.name, "ip route show proto 83") == ["10.244.0.0/16 dev flannel0 scope link"]
        text = udp.tweed("exec", node.name, "--", *TWEED, "status").stdout
        assert f"process    {said['forwarding']['pid']}: data path fast; outer packets have no DF" in text and "without" not in text


# ---- a packet is followed through both processes --------------------------------------------------------------------------

PLACES = ["node1/pod1 eth0", "node1 cni0", "node1 flannel0", "node1 ens33", "node2 ens33", "node2 flannel0", "node2 cni0", "node2/pod1 eth0"]


def walk(lab: Lab, *options: str) -> dict[str, Any]:
    done = tweed("walk", "--live", "node1/pod1", "node2/pod1", "--lab", lab.name, "--json", *options)
    assert done.returncode in (0, 1), done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def moves(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [sight for step in document["steps"] for sight in step["seen"] if sight["event"] in ("net_dev_queue", "netif_receive_skb")]


def is_whole(document: dict[str, Any], there: list[str]) -> None:
    """Each device saw it, the outer frames too, as predicted byte for byte."""
    assert (document["verdict"], document["first_divergence"]) == ("delivered", None)
    seen = moves(document)
    assert set(there) <= {f"{sight['node']} {sight['device']}" for sight in seen}
    assert not [sight for sight in seen if sight["differs"]]


@pytest.mark.parametrize("options", [(), ("--proto", "udp"), ("--proto", "tcp"), ("--size", "4000")], ids=["icmp", "udp", "tcp", "burst"])
def test_a_packet_is_seen_between_the_processes(udp: Lab, options: tuple[str, ...]) -> None:
    document = walk(udp, *options)
    is_whole(document, PLACES)
    outer = [sight["size"] - 14 - 28 for sight in moves(document) if sight["device"] == "ens33"]
    inner = [sight["size"] for sight in moves(document) if sight["device"] == "flannel0"]
    is_whole(document["reply"], PLACES)
    if options == ("--size", "4000"):  # fragments that the process sends at once, each as it is on the wire
        assert [sight["size"] for sight in moves(document) if sight["device"] == "ens33"] == [1510, 1510, 1146] * 2
        return
    assert len(outer) == 2 and outer == inner
    if not options:
        is_whole(document["whole"], PLACES)
        assert [sight["size"] for sight in moves(document["whole"]) if sight["device"] == "ens33"] == [14 + 1500] * 2


def test_packet_sockets_see_it_there_too(udp: Lab) -> None:
    with spaces.opened(udp) as opened:
        cluster = Cluster(spaces.take(udp, opened))
        with contextlib.ExitStack() as stack:
            captures = {netns(opened[name]): stack.enter_context(Capture(up(cluster, name), opened[name])) for name in opened}
            for proto, size in (("icmp", 84), ("tcp", 40), ("icmp", 4000)):
                probe = Probe(*addresses_of(cluster, "node1/pod1", "node2/pod1"), proto=proto, size=size)  # type: ignore[arg-type]
                found = live(cluster, opened, probe, Captured(captures))
                assert (found.verdict, found.tier, found.first_divergence) == ("delivered", "packet", None)
                for each in (found, found.reply):
                    assert each is not None and all(step.seen for step in each.steps if step.hop is not None)


# What tables show, what nft's own trace names, and what only the kernel's word does.
OUTER_DROPS = [
    ("node2", "nft 'table inet f { chain c { type filter hook input priority 0; udp dport 8285 drop; }; }'", "nft delete table inet f", "firewall-drops"),
    ("node1", "nft 'table ip f { chain c { type filter hook output priority 0; meta length 112 drop; }; }'", "nft delete table ip f", "firewall-drops"),
    ("node1", "tc qdisc add dev ens33 root pfifo limit 0", "tc qdisc del dev ens33 root", "kernel-drops"),
]  # fmt: skip


@pytest.mark.parametrize(("node", "do", "undo", "cause"), OUTER_DROPS, ids=["tables", "trace", "qdisc"])
def test_what_becomes_of_the_outer_packet_is_named(udp: Lab, node: str, do: str, undo: str, cause: str) -> None:
    udp.run(node, do)
    try:
        document = walk(udp, "--fix")
    finally:
        with contextlib.suppress(AssertionError):  # the fix has done it
            udp.run(node, undo)
    found = document["first_divergence"]
    assert (document["verdict"], found["node"], found["device"], found["cause"]) == ("dropped", node, "ens33", cause)
    assert any("ens33" in row or "kfree_skb" in row for row in found["evidence"])
    assert found["fix"] and [each["error"] for each in document["fixed"]["commands"]] == [""] * len(found["fix"])
    assert (document["fixed"]["after"]["verdict"], document["fixed"]["after"]["first_divergence"]) == ("delivered", None)


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_process_that_takes_it_and_hangs_is_named(udp: Lab, node: str) -> None:
    pid = udp.agent(node)["forwarding"]["pid"]
    assert udp.tweed("pause").returncode == 0  # the agent would kill it
    try:
        os.kill(pid, signal.SIGSTOP)
        document = walk(udp)
    finally:
        os.kill(pid, signal.SIGCONT)
        udp.tweed("resume")
    found = document["first_divergence"]
    assert (document["verdict"], found["node"], found["device"], found["cause"]) == ("lost", node, "flannel0", "process-silent")
    assert found["params"] == {"device": "flannel0", "port": "8285"}


def test_across_machines(udp: Lab, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}

    def command(node: str) -> list[str]:
        ends = (udp.pod(f"{name}/pod1").ip() for name in ("node1", "node2"))
        return ["nsenter", f"--net=/run/netns/{udp.netns(node)}", *TWEED, "walk", "--record", str(tmp_path / node), *ends]

    with subprocess.Popen(command("node2"), stderr=subprocess.PIPE, text=True, env=environment) as waiting:
        try:
            assert waiting.stderr is not None and waiting.stderr.readline().startswith("listening for the packet")
            sent = subprocess.run(command("node1"), capture_output=True, text=True, timeout=60, check=False, env=environment)
            assert sent.returncode == 0 and waiting.wait(60) == 0, sent.stderr
        finally:
            waiting.kill()
    done = tweed("walk", "--join", str(tmp_path / "node1"), str(tmp_path / "node2"), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    is_whole(document, PLACES)
    is_whole(document["reply"], PLACES)
    assert {"clock"} <= {each["id"] for each in document["blind"]}


# ---- the process ends -----------------------------------------------------------------------------------------------------


def test_a_process_that_is_killed_is_started_again(udp: Lab) -> None:
    ends(udp, signal.SIGKILL)


@pytest.mark.parametrize("victim", [0, 1])
def test_no_packet_is_lost_with_a_process_that_is_killed(udp: Lab, victim: int) -> None:
    """Of the sending node, and of the receiving one. What it had read and not yet sent is lost, so it is killed while nothing is under way."""
    source, target = udp.pods
    name = udp.nodes[victim].name
    with udp.socket(str(target), socket.AF_INET, socket.SOCK_DGRAM) as receiver, udp.socket(str(source), socket.AF_INET, socket.SOCK_DGRAM) as sender:
        receiver.bind((target.ip(), 0))
        receiver.settimeout(PATIENCE_S)
        pid = udp.agent(name)["forwarding"]["pid"]
        with open(os.pidfd_open(pid)) as end:
            os.kill(pid, signal.SIGKILL)
            assert select.select([end], [], [], PATIENCE_S)[0]
        for number in range(100):
            sender.sendto(bytes([number]), receiver.getsockname())
        assert [receiver.recv(1)[0] for _ in range(100)] == list(range(100))
    assert udp.agent(name)["forwarding"]["pid"] != pid
    held = udp.run(name, f"ls -l /proc/{udp.node_status(name)['agent_pid']}/fd 2>/dev/null | grep -c /dev/net/tun")
    assert int(held) == 1, "the agent gathers no descriptors"


def test_where_nobody_comes_the_carrier_goes(udp: Lab) -> None:
    """A paused agent starts no process: packets are to fail, not to wait."""
    name = udp.nodes[0].name
    before = udp.agent(name)["forwarding"]["pid"]
    udp.agent(name, "POST", "/v1/pause")
    try:
        os.kill(before, signal.SIGKILL)
        eventually(lambda: "NO-CARRIER" in udp.run(name, "ip link show flannel0"), "the agent lets go")
    finally:
        udp.agent(name, "POST", "/v1/resume")
    eventually(lambda: "LOWER_UP" in udp.run(name, "ip link show flannel0") and ping(all_pairs(udp.pods, 4), patience_s=1.0) == set(), "pods talk again")


def test_a_process_that_hangs_is_killed_and_another_started(udp: Lab) -> None:
    ends(udp, signal.SIGSTOP)


def ends(udp: Lab, how: signal.Signals) -> None:
    name = udp.nodes[0].name
    before = udp.agent(name)["forwarding"]
    os.kill(before["pid"], how)
    udp.agent(name, "POST", "/v1/resume")  # one of its looks

    def another() -> bool:
        with contextlib.suppress(KeyError, TypeError):
            return bool(udp.agent(name)["forwarding"]["pid"] != before["pid"])
        return False

    eventually(another, "another process forwards")
    assert udp.agent(name)["forwarding"]["starts"] == before["starts"] + 1
    # The kernel looks at carriers once a second: what was sent before that is lost, and not to be waited for.
    eventually(lambda: ping(all_pairs(udp.pods, 4), rounds=3, patience_s=1.0) == set(), "pods talk again")
