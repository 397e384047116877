"""The lab: the seed's cluster table for table, every pair of pods, the commands, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.system.conftest import SOURCE, TWEED, all_pairs, eventually, load, ping, running, tweed

from tweed.errors import TweedError
from tweed.kernel import netns
from tweed.lab import agents, cluster, processes, registry, topology

FILE = """
[network]
Network = "10.50.0.0/16"
Backend = { Type = "vxlan", VNI = 7 }
[[node]]
name = "a"
address = "192.168.2.10"
subnet = "10.50.7.0/24"
pods = ["web", "db"]
[[node]]
name = "b"
address = "192.168.2.11"
"""


def own_name(letter: str) -> str:
    return f"{letter}{os.getpid()}"


def nothing_left(name: str) -> bool:
    return not [n for n in netns.names() if n == name or n.startswith(f"{name}-")] and name not in registry.names()


# ---- the seed ---------------------------------------------------------------------------------------------------


def test_status_is_the_contract(lab):
    status = lab.status()
    assert status["name"] == lab.name
    assert [list(node) for node in status["nodes"]] == [
        ["name", "netns", "agent_pid", "public_ip", "public_ip6", "subnet", "subnet6", "vtep_mac", "vtep_mac6", "pods"]
    ] * 3
    assert [(n["name"], n["netns"], n["public_ip"], n["subnet"]) for n in status["nodes"]] == [
        ("master", f"{lab.name}-master", "192.168.2.200", "10.244.0.0/24"),
        ("node1", f"{lab.name}-node1", "192.168.2.201", "10.244.1.0/24"),
        ("node2", f"{lab.name}-node2", "192.168.2.202", "10.244.2.0/24"),
    ]
    for i, node in enumerate(status["nodes"]):
        assert node["pods"] == [{"name": f"pod{k}", "netns": f"{lab.name}-{node['name']}-pod{k}", "ips": [f"10.244.{i}.{k + 1}"]} for k in (1, 2)]
        assert (node["public_ip6"], node["subnet6"], node["vtep_mac6"]) == (None, None, None)
        assert processes.netns_inode(node["agent_pid"]) == os.stat(f"/run/netns/{node['netns']}").st_ino
        assert node["vtep_mac"] in lab.run(node["name"], "ip link show flannel.1")


def test_the_tables_of_master_are_the_seeds(lab):
    """But for the protocol and metric of the overlay's routes, and the MACs, which are the agents' own."""
    macs = {node["name"]: node["vtep_mac"] for node in lab.status()["nodes"]}
    routes = lab.lines("master", "ip route")
    assert routes == [
        "default via 192.168.2.1 dev ens33 proto static metric 100",
        "10.244.0.0/24 dev cni0 proto kernel scope link src 10.244.0.1",
        "10.244.1.0/24 via 10.244.1.0 dev flannel.1 proto 83 metric 2 onlink",
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 83 metric 3 onlink",
        "172.17.0.0/16 dev docker0 proto kernel scope link src 172.17.0.1",
        "192.168.2.0/24 dev ens33 proto kernel scope link src 192.168.2.200 metric 100",
    ]
    assert sorted(lab.lines("master", "ip neigh show dev flannel.1")) == [f"10.244.{i}.0 lladdr {macs[f'node{i}']} PERMANENT" for i in (1, 2)]
    assert sorted(lab.lines("master", "bridge fdb show dev flannel.1")) == sorted(f"{macs[f'node{i}']} dst 192.168.2.20{i} self permanent" for i in (1, 2))
    assert lab.lines("master", "ip -4 -o addr show flannel.1 | awk '{print $4}'") == ["10.244.0.0/32"]
    assert "state UP" in lab.run("master", "ip link show ens34") and lab.run("master", "ip -4 addr show ens34 | grep inet || true") == ""
    assert "02:42:70:08:59:b7" in lab.run("master", "ip link show docker0")


def test_underlay_neighbours_are_permanent(lab):
    for node in lab.nodes:
        rows = lab.lines(node.name, "ip neigh show dev ens33")
        assert len(rows) == 3 and all(row.endswith("PERMANENT") for row in rows)


def test_every_pod_reaches_every_other(lab):
    assert ping(all_pairs(lab.pods), rounds=3) == set()


def test_every_pod_reaches_every_other_in_both_families(lab6):
    assert [node["subnet6"] for node in lab6.status()["nodes"]] == ["fd00:10:244::/64", "fd00:10:244:1::/64", "fd00:10:244:2::/64"]
    assert [node["public_ip6"] for node in lab6.status()["nodes"]] == [f"fd00:192:168:2::20{i}" for i in range(3)]
    assert ping(all_pairs(lab6.pods, 4) + all_pairs(lab6.pods, 6), rounds=3) == set()


def test_pods_reach_the_world_and_nodes_and_nodes_reach_pods(lab6):
    targets = ["203.0.113.1", "192.168.2.1", "192.168.2.201", "2001:db8:ffff::1", "fd00:192:168:2::1", "fd00:192:168:2::201"]
    pairs = [(pod.netns, target) for pod in lab6.pods for target in targets]
    pairs += [(lab6.netns("master"), pod.ip(family)) for pod in lab6.pods for family in (4, 6)]
    assert ping(pairs) == set()


def test_the_container_of_docker0_is_there_and_outside_the_overlay(lab):
    box = lab.netns("master/box1")
    assert ping([(box, "172.17.0.1"), (lab.netns("master"), "172.17.0.2")]) == set()
    assert "box1" not in [pod["name"] for pod in lab.node_status("master")["pods"]]


def test_the_world_has_no_way_out(lab6):
    assert lab6.lines("world", "ip route; ip -6 route show default; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding") == [
        "192.168.2.0/24 dev eth0 proto kernel scope link src 192.168.2.1",
        "0",
        "0",
    ]
    assert lab6.run("underlay", "ip route; ip -6 route show default") == ""


def test_ip_netns_exec_works_on_the_namespaces(lab):
    here, there = lab.pod("master/pod1"), lab.pod("node2/pod1")
    listen = f"import socket; s = socket.socket(2, 2); s.bind(('{there.ip()}', 9)); s.settimeout(20); print('ready', flush=True); print(*s.recvfrom(9)[1])"
    send = f"import socket; socket.socket(2, 2).sendto(b'hi', ('{there.ip()}', 9))"
    with subprocess.Popen(["ip", "netns", "exec", there.netns, sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout.readline() == "ready\n"
        subprocess.run(["ip", "netns", "exec", here.netns, sys.executable, "-c", send], check=True)
        assert listener.stdout.readline().split()[0] == here.ip()


# ---- the commands -----------------------------------------------------------------------------------------------


def test_exec_runs_there_and_passes_the_exit_code_on(lab):
    done = lab.tweed("exec", "node1/pod2", "--", "sh", "-c", "ip -4 -o addr show eth0; exit 7")
    assert done.returncode == 7 and "10.244.1.3/24" in done.stdout
    assert lab.tweed("exec", "world", "ip", "addr", "show", "lo").stdout.count("203.0.113.1") == 1
    assert lab.tweed("exec", "master", "--", "cat", "/sys/fs/cgroup/cgroup.controllers", "/proc/self/cgroup").stdout != ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["exec", "nodex", "--", "true"], "has no node 'nodex', only master, node1, node2"),
        (["exec", "master/podx", "--", "true"], "node master of lab {name} has no pod 'podx', only pod1, pod2, box1"),
        (["logs", "nodex"], "has no node 'nodex'"),
        (["pause", "nodex"], "has no node 'nodex'"),
    ],
)
def test_a_wrong_place_is_named(lab, words, said):
    done = lab.tweed(*words)
    assert done.returncode == 1 and said.format(name=lab.name) in done.stderr and done.stderr.count("\n") == 1


def test_up_twice_says_so_and_changes_nothing(lab):
    before = lab.status()
    done = tweed("lab", "up", "--name", lab.name)
    assert done.returncode == 1 and f"lab {lab.name} is up already" in done.stderr and done.stderr.count("\n") == 1
    assert lab.status() == before


def test_a_tweed_command_inside_a_node_finds_that_nodes_agent(lab):
    for node in ("master", "node2"):
        done = lab.tweed("exec", node, "--", "env", f"PYTHONPATH={SOURCE}", *TWEED, "status", "--json")
        assert json.loads(done.stdout)["node"] == node
    assert registry.node_for_netns(os.stat("/proc/self/ns/net").st_ino) is None


def test_a_paused_agent_answers_and_changes_nothing_until_it_is_resumed(lab):
    row = "10.244.2.0/24"
    assert lab.tweed("pause", "node1").stderr == "paused: node1\n"
    try:
        assert lab.agent("node1")["paused"] and not lab.agent("master")["paused"]
        lab.run("node1", f"ip route del {row}")
        lab.run("node1", "ip link add name tmp0 type bridge; ip link del tmp0")  # more events to react to
        assert lab.run("node1", f"sleep 1; ip route show {row}") == ""
    finally:
        assert lab.tweed("resume").stderr == "resumed: master, node1, node2\n"
    eventually(lambda: lab.run("node1", f"ip route show {row}"), "the route is back")
    eventually(lab.whole, "all agents complete")


def test_logs_are_the_agents_own(lab):
    text = lab.tweed("logs", "node1").stdout
    assert "agent of node node1" in text
    assert lab.tweed("logs", "node1", "-n", "1").stdout == text.splitlines()[-1] + "\n"


def test_status_for_people(lab):
    text = lab.tweed("status").stdout
    assert "(box1 172.17.0.2)" in text and all(word in text for word in ("master", "192.168.2.202", "10.244.1.0/24", "pod2 10.244.2.3"))


# ---- other labs -------------------------------------------------------------------------------------------------


def test_a_lab_from_a_file_with_another_network(tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text(FILE)
    with running(own_name("f"), "--topology", str(path), "--pods-per-node", "1") as lab:
        assert lab.node_status("a")["subnet"] == "10.50.7.0/24" and [str(pod) for pod in lab.pods] == ["a/web", "a/db", "b/pod1"]
        assert "vxlan id 7 " in lab.run("b", "ip -d link show flannel.7")
        assert ping(all_pairs(lab.pods)) == set()
        # an agent that ended is said, and what it programmed carries packets on
        os.kill(lab.node_status("b")["agent_pid"], signal.SIGKILL)
        done = eventually(lambda: (done := lab.tweed("status", "--json")).returncode == 1 and done, "status notices")
        assert [node["agent_pid"] is None for node in json.loads(done.stdout)["nodes"]] == [False, True]
        assert "silent" in lab.tweed("status").stdout
        assert ping(all_pairs(lab.pods)) == set()


def test_fifty_nodes_and_every_pair():
    with running(own_name("n"), "--nodes", "50") as lab:
        assert len({node["subnet"] for node in lab.status()["nodes"]}) == 50
        assert ping(all_pairs(lab.pods)) == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "0"], "--nodes 0: between 1 and 250"),
        (["--nodes", "2", "--topology", "seed"], "--nodes and --topology"),
        (["--topology", "/nonexistent"], "--topology /nonexistent: No such file"),
        (["--backend", "vxlan:{"], "not a JSON object"),
        (["--backend", "nosuch"], 'Backend.Type "nosuch"'),
        (["--backend", 'vxlan:{"VNI": 10000}', "--ipv6"], "Backend.VNI 10000: the device name flannel-v6.10000 has 16 characters"),
        (["--name", "my-lab"], "--name 'my-lab': use 1 to 12 of a-z and 0-9"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(words, said):
    done = tweed("lab", "up", *(["--name", own_name("x")] if "--name" not in words else []), *words)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert nothing_left(own_name("x"))


# ---- nothing is left --------------------------------------------------------------------------------------------


def test_down_leaves_nothing():
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    name = own_name("d")
    with running(name, "--nodes", "2") as lab:
        spaces = [lab.netns("node1"), lab.pod("node2/pod1").netns]
        inodes = [os.stat(f"/run/netns/{space}").st_ino for space in spaces]
        # whatever runs in the lab's namespaces ends with it, also when it does not want to
        sleeper = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{spaces[1]}", "sh", "-c", "trap '' TERM; echo on; while :; do sleep 1; done"], stdout=subprocess.PIPE
        )
        assert sleeper.stdout.readline() == b"on\n"
        agent = lab.node_status("node1")["agent_pid"]
    assert sleeper.wait(timeout=20) == -signal.SIGKILL
    sleeper.stdout.close()
    assert nothing_left(name) and processes.inside(inodes) == [] and processes.started(agent) == 0
    assert not Path(f"/run/tweed/labs/.{name}.lock").exists()
    assert subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout == links
    done = tweed("lab", "down", "--name", name)
    assert done.returncode == 1 and done.stderr == f"tweed: no lab {name} is up\n"


def start_up(name: str, until: str) -> subprocess.Popen:
    """`lab up`, as far as the line that begins with `until`."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [*TWEED, "lab", "up", "--name", name, "--nodes", "3"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    for line in process.stderr:
        if until in line:
            return process
    raise AssertionError(f"lab up ended before {until!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("until", ["joined", "stored"])
def test_an_interrupted_start_leaves_nothing(number, until):
    name = own_name("i")
    process = start_up(name, until)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "removing what was made" in said and said.endswith("tweed: interrupted\n")
    assert nothing_left(name)


def test_what_a_killed_start_left_is_removed_by_down_and_by_the_next_up():
    name = own_name("k")
    for remedy in ("down", "up"):
        process = start_up(name, "stored")
        process.kill()
        process.communicate(timeout=60)
        assert not nothing_left(name)
        assert "was interrupted" in tweed("lab", "status", "--name", name).stderr
        done = tweed("lab", remedy, "--name", name)
        assert done.returncode == 0, done.stderr
        if remedy == "up":
            assert "removing what an interrupted start" in done.stderr and ping(all_pairs(load(name).pods)) == set()
            assert tweed("lab", "down", "--name", name).returncode == 0
        assert nothing_left(name)


def test_an_agent_that_ends_at_its_start_is_quoted_and_nothing_is_left(monkeypatch):
    name = own_name("b")
    monkeypatch.setattr(agents, "command", lambda *_: ["sh", "-c", "echo out of luck; exit 3"])
    with pytest.raises(TweedError, match=r"the agent of node\d ended at its start \(exit 3\): out of luck"):
        cluster.up(name, topology.generic(2), lambda _: None)
    assert nothing_left(name)


def test_a_namespace_of_that_name_that_is_somebodys_is_left_alone():
    name = own_name("o")
    netns.create(f"{name}-node2")
    try:
        done = tweed("lab", "up", "--name", name, "--nodes", "2")
        assert done.returncode == 1 and f"network namespace {name}-node2 exists and is no lab's" in done.stderr
        assert [n for n in netns.names() if n.startswith(name)] == [f"{name}-node2"]
    finally:
        netns.delete(f"{name}-node2")
    assert nothing_left(name)


def test_two_at_once_with_one_name():
    name = own_name("l")
    with registry.locked(name):
        for command in ("up", "down"):
            done = tweed("lab", command, "--name", name)
            assert done.returncode == 1 and f"lab {name} is being brought up, taken down, broken or healed by another tweed" in done.stderr
    assert nothing_left(name)
