"""`tweed walk --live`: one real packet through a whole lab, healthy and broken, beside what the tables say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.conftest import SOURCE, TWEED, Lab, eventually, ping, running, tweed
from tests.system.test_diagnosis import FAULTS, fits

from tweed.commands import spaces
from tweed.kernel.capture import Capture
from tweed.trace.cluster import Cluster
from tweed.trace.ends import ends
from tweed.trace.frames import Probe
from tweed.trace.live import Captured, live, netns, up

# A quiet end, one that waits for a neighbour, a loop of another kind each: the rest of the catalogue differs in its tables alone.
CHOSEN = ("route-missing", "route-wrong-node", "route-leftover", "vtep-mac-stale", "fdb-missing", "fdb-wrong-host", "vni-mismatch", "local-wrong")
CHOSEN += ("nic-down", "veth-detached", "pod-mtu", "udp-dropped", "rp-filter", "pod-route-missing")


@pytest.fixture(scope="module")
def own() -> Iterator[Lab]:
    """Its agents are paused: what the tests break stays broken until they mend it."""
    with running(f"w{os.getpid()}", "--ipv6") as made:
        assert made.tweed("pause").returncode == 0
        yield made


def walk(lab: Lab, *words: str) -> dict[str, Any]:
    done = tweed("walk", "--live", *words, "--lab", lab.name, "--json")
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(done.stdout)
    assert not [each for each in document["findings"] if each["id"] == "evaluation-differs"]
    return document


def places(document: dict[str, Any]) -> list[str]:
    """Where the packet was seen, in order, each once."""
    moves = ("net_dev_queue", "netif_receive_skb")
    seen = sorted((sight["t_us"], sight["node"], sight["device"]) for step in document["steps"] for sight in step["seen"] if sight["event"] in moves)
    return list(dict.fromkeys(f"{node} {'veth' if device.startswith('veth') else device}" for _, node, device in seen))


THERE = ["master/pod1 eth0", "master veth", "master cni0", "master flannel.1", "master ens33"]
THERE += ["node2 ens33", "node2 flannel.1", "node2 cni0", "node2 veth", "node2/pod1 eth0"]


@pytest.mark.parametrize(
    "options", [(), ("--proto", "udp"), ("--proto", "tcp"), ("--size", "1400", "--df"), ("--size", "4000")], ids=["icmp", "udp", "tcp", "large", "fragments"]
)
def test_a_healthy_walk(own: Lab, options: tuple[str, ...]) -> None:
    document = walk(own, "master/pod1", "node2/pod1", *options)
    assert (document["verdict"], document["tier"], document["first_divergence"]) == ("delivered", "bpf", None)
    assert places(document) == THERE
    assert document["reply"]["verdict"] == "delivered" and set(places(document["reply"])) == set(THERE)
    assert not [sight for step in document["steps"] for sight in step["seen"] if sight["differs"]]
    if options == ():
        assert document["whole"]["verdict"] == "delivered"
        sizes = {sight["size"] for step in document["whole"]["steps"] for sight in step["seen"] if sight["device"] == "ens33" and sight["size"]}
        assert sizes == {14 + 50 + 1430}  # the MTU of pods of both families, and what a tunnel adds
    if options == ("--size", "4000"):
        at_nic = [
            sight["size"] for step in document["steps"] for sight in step["seen"] if (sight["node"], sight["device"]) == ("master", "ens33") and sight["size"]
        ]
        assert len(at_nic) == 3


def test_ipv6(own: Lab) -> None:
    document = walk(own, own.pod("master/pod1").ip(6), own.pod("node2/pod1").ip(6))
    assert (document["verdict"], document["first_divergence"]) == ("delivered", None)
    assert places(document) == [place.replace("flannel.1", "flannel-v6.1") for place in THERE]


def test_ipv6_echo_requests_that_are_ignored(own: Lab) -> None:
    """Its kernel frees them with no reason given."""
    own.run("node2/pod1", "sysctl -qw net.ipv6.icmp.echo_ignore_all=1")
    try:
        document = walk(own, own.pod("master/pod1").ip(6), own.pod("node2/pod1").ip(6))
    finally:
        own.run("node2/pod1", "sysctl -qw net.ipv6.icmp.echo_ignore_all=0")
    assert (document["verdict"], document["first_divergence"]["cause"]) == ("dropped", "echo-ignored")
    assert document["first_divergence"]["fix"][0]["command"] == "sysctl -w net/ipv6/icmp/echo_ignore_all=0"


def test_on_one_node_the_bridge_alone_carries_it(own: Lab) -> None:
    document = walk(own, "master/pod1", "master/pod2")
    assert (document["verdict"], document["first_divergence"]) == ("delivered", None)
    assert places(document) == ["master/pod1 eth0", "master veth", "master/pod2 eth0"]


def test_from_a_host_and_to_itself(own: Lab) -> None:
    for src, dst in (("master", "node2/pod1"), ("node2/pod1", "node1"), ("node2", "node1"), ("master/pod1", "master/pod1")):
        document = walk(own, src, dst)
        assert (document["verdict"], document["first_divergence"]) == ("delivered", None), (src, dst)


@pytest.mark.parametrize("fault", CHOSEN)
def test_a_broken_walk_is_named_and_mended(own: Lab, fault: str) -> None:
    row = next(row for row in FAULTS if row[0] == fault)
    done = own.tweed("break", fault, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    try:
        document = walk(own, told["src"], told["dst"], "--fix")
        divergence = document["first_divergence"]
        assert document["verdict"] in ("dropped", "lost", "detour")
        pod = next(end for end in (told["src"], told["dst"]) if end.startswith(told["node"]))
        place = {"node": told["node"], "peer": told["peer"], "node/pod": pod}[row[1]]
        assert (divergence["node"], divergence["cause"]) == (place, row[3]) and fits(row[2], divergence["device"])
        assert [each["error"] for each in document["fixed"]["commands"]] == [""] * len(divergence["fix"]) and divergence["fix"]
        assert (document["fixed"]["after"]["verdict"], document["fixed"]["after"]["first_divergence"]) == ("delivered", None)
        src, dst = own.pod(told["src"]), own.pod(told["dst"])
        assert not ping([(src.netns, dst.ip()), (dst.netns, src.ip())])
    finally:
        healed = own.tweed("heal")
    assert healed.returncode == 0, healed.stderr
    own.tweed("pause")


# What no table of ours tells: the kernel's word alone names it.
BRIDGED = "nft 'table bridge f { chain c { type filter hook output priority 0; ip daddr 10.244.2.2 drop; }; }'"
REJECTED = "nft 'table ip f { chain c { type filter hook input priority 0; reject; }; }'"
OTHERS = [
    ("node2/pod1", REJECTED, "nft delete table ip f", "node2/pod1", "firewall-drops"),
    ("node2", BRIDGED, "nft delete table bridge f", "node2", "firewall-drops"),
    ("master", "tc qdisc add dev ens33 root pfifo limit 0", "tc qdisc del dev ens33 root", "master", "kernel-drops"),
    ("master/pod1", "sysctl -qw net.ipv4.ip_default_ttl=1", "sysctl -qw net.ipv4.ip_default_ttl=64", "master/pod1", "ttl-exceeded"),
    ("node2", "ip route add blackhole 10.244.0.2", "ip route del blackhole 10.244.0.2", "node2", "route-blackhole"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "do", "undo", "node", "cause"), OTHERS, ids=[row[1].split()[0] + "-" + row[4] for row in OTHERS])
def test_what_only_the_packet_shows(own: Lab, where: str, do: str, undo: str, node: str, cause: str) -> None:
    own.run(where, do)
    try:
        document = walk(own, "master/pod1", "node2/pod1")
    finally:
        own.run(where, undo)
    assert document["verdict"] in ("dropped", "lost")
    assert (document["first_divergence"]["node"], document["first_divergence"]["cause"]) == (node, cause)


DNAT = (
    "nft 'table ip f { chain c { type nat hook prerouting priority -110; ip daddr 10.244.2.2 %sdnat to 10.244.1.3; ip daddr 9.9.9.9 dnat to 10.244.1.3; }; }'"
)
# Where it is put in, commands there, what takes them back, verdict, cause, and the one command that mends it, typed there.
MENDED = {
    "a rule of iptables' old tables": (
        "node2",
        "iptables-legacy -A FORWARD -d 10.244.2.3 -j DROP; iptables-legacy -A FORWARD -d 10.244.2.2 -m comment --comment 'by night' -j DROP",
        "iptables-legacy -F",
        "dropped",
        "firewall-drops",
        "iptables-legacy -t filter -D FORWARD -d 10.244.2.2/32 -m comment --comment 'by night' -j DROP",
    ),
    "one that only its counter tells of": (
        "node2",
        "iptables-legacy -t mangle -A POSTROUTING -m u32 --u32 '0>>28=4' -j DROP",
        "iptables-legacy -t mangle -F",
        "dropped",
        "firewall-drops",
        "iptables-legacy -t mangle -D POSTROUTING -m u32 --u32 '0x0>>0x1c=0x4' -j DROP",
    ),
    "a policy of IPsec": (
        "master",
        "ip xfrm policy add src 10.244.0.0/24 dst 10.244.2.0/24 dir fwd action block; ip xfrm policy add dst 10.244.2.0/24 dir in action block",
        "ip xfrm policy flush",
        "dropped",
        "ipsec-blocks",
        "ip xfrm policy delete src 10.244.0.0/24 dst 10.244.2.0/24 dir fwd",
    ),
    "one for the tunnel": (
        "node2",
        "ip xfrm policy add src 192.168.2.200 dst 192.168.2.202 proto udp dport 8472 dir in action block",
        "ip xfrm policy flush",
        "dropped",
        "ipsec-blocks",
        "ip xfrm policy delete src 192.168.2.200/32 dst 192.168.2.202/32 proto udp dport 8472 dir in",
    ),
    "one that encrypts, and no keys": (
        "master",
        "ip xfrm policy add dst 10.244.2.0/24 dir out tmpl src 192.168.2.200 dst 192.168.2.202 proto esp mode tunnel",
        "ip xfrm policy flush; ip xfrm state flush",
        "dropped",
        "ipsec-without-keys",
        "ip xfrm policy delete src 0.0.0.0/0 dst 10.244.2.0/24 dir out",
    ),
    "echo requests that are ignored": (
        "node2/pod1",
        "sysctl -qw net.ipv4.icmp_echo_ignore_all=1",
        "sysctl -qw net.ipv4.icmp_echo_ignore_all=0",
        "dropped",
        "echo-ignored",
        "sysctl -w net/ipv4/icmp_echo_ignore_all=0",
    ),
    "another destination": ("master", DNAT % "", "nft delete table ip f", "elsewhere", "destination-replaced", "nft delete rule ip f c handle 2"),
    "another destination, by a rule that is not evaluated": (
        "master",
        DNAT % "ct mark 0 ",
        "nft delete table ip f",
        "elsewhere",
        "destination-replaced",
        "nft delete rule ip f c handle 2",
    ),
}


@pytest.mark.parametrize("title", MENDED)
def test_the_one_command_that_mends_it(own: Lab, title: str) -> None:
    where, do, undo, verdict, cause, command = MENDED[title]
    own.run(where, do)
    try:
        document = walk(own, "master/pod1", "node2/pod1", "--fix")
    finally:
        own.run(where, undo)
    found = document["first_divergence"]
    inside = {"netns": f"/run/netns/{own.netns(where)}"} if "/" in where else {}
    assert (document["verdict"], found["node"], found["cause"]) == (verdict, where, cause)
    assert found["fix"] == [{"node": where, "command": command} | inside] and found["evidence"]
    assert (document["fixed"]["after"]["verdict"], document["fixed"]["after"]["first_divergence"]) == ("delivered", None)


def test_a_service_is_for_being_passed_on(own: Lab) -> None:
    """Its address is nobody's: that a rule puts a container's in its place is told, and no fault; nothing is to be mended."""
    own.run("master", "nft 'table ip f { chain c { type nat hook prerouting priority -110; ip daddr 10.96.0.10 dnat to 10.244.2.2; }; }'")
    try:
        document = walk(own, "master/pod1", "10.96.0.10")
    finally:
        own.run("master", "nft delete table ip f")
    found = document["first_divergence"]
    assert (document["verdict"], found["cause"], found["fix"]) == ("delivered", "destination-replaced", [])
    assert found["params"]["seen"] == "10.244.2.2"


def without(*capabilities: str) -> list[str]:
    """The command `tweed` without some rights."""
    return ["setpriv", f"--bounding-set={','.join(f'-{each}' for each in capabilities)}", f"--inh-caps={','.join(f'-{each}' for each in capabilities)}", *TWEED]


@pytest.mark.parametrize(
    ("capabilities", "tier", "blind"),
    [
        (("bpf", "perfmon", "sys_admin"), "packet", {"drops", "decisions", "times-inside"}),
        (("bpf", "perfmon", "sys_admin", "net_raw"), "tables", {"everything-sent"}),
        (("net_raw",), "tables", {"everything-sent"}),  # it could look, and has nothing to send
    ],
)
def test_with_fewer_rights_it_says_what_it_cannot_see(own: Lab, capabilities: tuple[str, ...], tier: str, blind: set[str]) -> None:
    """In a node's own namespace, to enter which the right is lacking."""
    dst = own.pod("node2/pod1").ip()
    src = own.node("master").public_ip
    command = ["nsenter", f"--net=/run/netns/{own.netns('master')}", *without(*capabilities), "walk", "--live", src, dst, "--json"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode in (0, 3), done.stderr
    document = json.loads(done.stdout)
    assert document["tier"] == tier and blind <= {each["id"] for each in document["blind"]}


def test_killed_in_the_middle_it_leaves_nothing(own: Lab) -> None:
    """A walk that waits for a neighbour, ended by SIGKILL while it does: no rule table, no program, no socket is left."""
    own.run("master", "ip neigh del 10.244.2.0 dev flannel.1")
    try:
        environment = os.environ | {"PYTHONPATH": str(SOURCE)}
        command = [sys.executable, "-m", "tweed", "walk", "--live", "master/pod1", "node2/pod1", "--lab", own.name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
            eventually(lambda: "10.244.2.0" in own.run("master", "ip neigh show dev flannel.1 nud incomplete"), "the packet waits")
            process.send_signal(signal.SIGKILL)
        assert "tweed-walk" not in own.run("master", "nft list tables")
    finally:
        own.run("master", f"ip neigh replace 10.244.2.0 lladdr {own.node_status('node2')['vtep_mac']} dev flannel.1 nud permanent")
    assert walk(own, "master/pod1", "node2/pod1")["verdict"] == "delivered"


def test_packet_sockets_alone_see_the_way_and_where_it_ends(own: Lab) -> None:
    """A process that may enter namespaces may use BPF too: so the tier is chosen here by hand."""
    with spaces.opened(own) as opened:
        cluster = Cluster(spaces.take(own, opened))
        probe = Probe(*ends(cluster, "master/pod1", "node2/pod1"))
        with contextlib.ExitStack() as stack:
            captures = {netns(opened[name]): stack.enter_context(Capture(up(cluster, name), opened[name])) for name in opened}
            found = live(cluster, opened, probe, Captured(captures))
            assert (found.verdict, found.tier, found.first_divergence) == ("delivered", "packet", None)
            assert not [f"{step.node} {step.device}: {step.decision}" for step in found.steps if step.hop is not None and not step.seen]
            assert {said.id for said in found.blind} == {"drops", "decisions", "times-inside"}
            own.run("node2", BRIDGED)
            try:
                lost = live(cluster, opened, probe, Captured(captures))
            finally:
                own.run("node2", "nft delete table bridge f")
    assert lost.verdict == "lost" and lost.first_divergence is not None
    assert (lost.first_divergence.node, lost.first_divergence.device, lost.first_divergence.cause.id) == ("node2", "cni0", "vanished")


def test_across_machines(own: Lab, tmp_path: Path) -> None:
    """Each node records in its own namespaces, as machines do that share nothing; what they saw is put together."""
    src, dst = own.pod("master/pod1").ip(), own.pod("node2/pod1").ip()
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}

    def command(node: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{own.netns(node)}", *TWEED, "walk", "--record", str(tmp_path / f"{node}.jsonl"), src, dst]

    with subprocess.Popen(command("node2"), stderr=subprocess.PIPE, text=True, env=environment) as waiting:
        try:
            assert waiting.stderr is not None and waiting.stderr.readline().startswith("listening for the packet")
            sent = subprocess.run(command("master"), capture_output=True, text=True, timeout=60, check=False, env=environment)
            assert sent.returncode == 0 and "which sent it" in sent.stderr, sent.stderr
            assert waiting.wait(60) == 0
        finally:
            waiting.kill()
    done = tweed("walk", "--join", *(str(tmp_path / f"{node}.jsonl") for node in ("master", "node2")), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["verdict"], document["reply"]["verdict"], document["first_divergence"]) == ("delivered", "delivered", None)
    assert set(places(document)) == set(THERE)
    blind = {each["id"]: each["params"] for each in document["blind"]}
    assert blind["clock"]["machine"] == "node2" and blind["other-machines"] == {"nodes": "node1"}
    assert abs(float(blind["clock"]["offset"].split()[0])) <= float(blind["clock"]["uncertainty"].split()[0])  # one clock, in truth
    alone = tweed("walk", "--join", str(tmp_path / "node2.jsonl"))
    assert alone.returncode == 2 and "none of the files is of the machine that sent the packet" in alone.stderr
