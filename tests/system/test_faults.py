"""`tweed lab break`: each fault really breaks the walk that it names and nothing is left of it after `tweed lab heal`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.system.conftest import Lab, eventually, running, tweed

from tweed.lab.faults import CATALOGUE

SILENCE_S = 0.4
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3


@pytest.fixture(scope="module")
def own() -> Iterator[Lab]:
    """Its agents are paused and its devices made anew: not for others."""
    with running(f"f{os.getpid()}") as made:
        yield made


@contextlib.contextmanager
def broken(lab: Lab, fault: str, *options: str) -> Iterator[dict[str, str]]:
    done = lab.tweed("break", fault, "--json", *options)
    try:
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)
    finally:
        healed = lab.tweed("heal")
        assert healed.returncode == 0, healed.stderr


def tables(lab: Lab) -> dict[str, list[str]]:
    """What the nodes' and pods' kernels hold, without counters, indices and what moves by itself."""
    script = """
        ip -d -o link | grep -v veth | sed -E 's/^[0-9]+: //; s/@if[0-9]+//; s/[a-z_]+timer +[0-9.]+//g; s/ link-netns[^ ]* [^ ]+//; s/qlen [0-9]+//'
        ip -o addr | grep -v fe80: | sed -E 's/^[0-9]+: //'
        ip rule; ip route show table all | grep -v fe80:; ip neigh show nud permanent; bridge fdb show dev flannel.1
        nft --terse list tables; cat /proc/sys/net/ipv4/ip_forward; sysctl -e net/ipv4/conf/flannel.1/rp_filter; bridge -d link | sed -E 's/^[0-9]+: //'
    """
    places = [*(node.name for node in lab.nodes), *map(str, lab.pods)]
    return {
        place: sorted(lab.run(place, script if "/" not in place else "ip route; ip -o link show eth0 | grep -o 'mtu [0-9]*'").splitlines()) for place in places
    }


def arrives(lab: Lab, walk: dict[str, str]) -> bool:
    """A datagram as large as the pod's MTU allows, with DF, and with a TTL that suffices for the way over two nodes, comes whole."""
    with lab.socket(walk["dst"], socket.AF_INET, socket.SOCK_DGRAM) as sink, lab.socket(walk["src"], socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sink.bind((lab.pod(walk["dst"]).ip(), 9))
        sink.settimeout(SILENCE_S)
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 3)
        payload = bytes(int(lab.run(walk["src"], "ip -o link show eth0 | grep -o 'mtu [0-9]*'").split()[1]) - 28)
        with contextlib.suppress(OSError):
            sender.sendto(payload, sink.getsockname())
            return sink.recv(4096) == payload
    return False


@pytest.mark.parametrize("fault", CATALOGUE)
def test_breaks_what_it_says_and_leaves_nothing(own: Lab, fault: str) -> None:
    eventually(own.whole, "the lab is whole")
    before = tables(own)
    with broken(own, fault) as walk:
        assert walk["fault"] == fault and walk["node"] == "master" and walk["peer"] == "node2"
        assert {walk["src"], walk["dst"]} == {"master/pod1", "node2/pod1"}
        assert tables(own) != before
        assert not arrives(own, walk)
    eventually(lambda: tables(own) == before, f"the tables are as they were:\n{difference(before, tables(own))}", 5)
    eventually(lambda: arrives(own, walk), "the walk is whole again")


def difference(before: dict[str, list[str]], after: dict[str, list[str]]) -> str:
    gone = [f"{place}: - {line}" for place in before for line in before[place] if line not in after[place]]
    new = [f"{place}: + {line}" for place in after for line in after[place] if line not in before[place]]
    return "\n".join(gone + new)


def test_faults_may_be_put_on_any_node_and_on_top_of_each_other(own: Lab) -> None:
    eventually(own.whole, "the lab is whole")
    before = tables(own)
    with broken(own, "fdb-missing", "--node", "node2") as walk:
        assert (walk["node"], walk["peer"], walk["src"], walk["dst"]) == ("node2", "node1", "node2/pod1", "node1/pod1")
        assert own.tweed("break", "route-blackhole").returncode == 0
        done = own.tweed("break", "fdb-missing", "--node", "node2")
        assert done.returncode == 1 and "heal the lab first" in done.stderr
    eventually(lambda: tables(own) == before, "the tables are as they were", 5)


def test_one_that_the_lab_cannot_have_is_refused_and_the_agents_go_on(own: Lab) -> None:
    eventually(own.whole, "the lab is whole")
    own.run("master", "ip link set ens33 down")
    try:
        done = own.tweed("break", "rule-other-table")
        assert done.returncode == 1 and "master has no default route by ens33 now: heal the lab first (tweed lab heal)" in done.stderr
        assert not any(own.agent(node.name)["paused"] for node in own.nodes)
    finally:
        own.run("master", "ip link set ens33 up && ip route add default via 192.168.2.1 dev ens33 proto static metric 100")
        for node in ("node1", "node2", "world"):
            address = own.node(node).public_ip if node != "world" else "192.168.2.1"
            mac = "52:54:" + ":".join(f"{int(part):02x}" for part in address.split("."))
            own.run("master", f"ip neigh replace {address} dev ens33 lladdr {mac} nud permanent")


def test_what_somebody_has_mended_already_is_no_failure_of_heal(own: Lab) -> None:
    eventually(own.whole, "the lab is whole")
    with broken(own, "route-blackhole") as walk:
        own.run("master", f"ip route del blackhole {own.pod(walk['dst']).ip()}")
    with broken(own, "udp-dropped"):
        own.run("master", "nft delete table inet intruder")


def test_one_that_was_killed_halfway_is_healed(own: Lab) -> None:
    """The commands of vni-mismatch take long enough to be interrupted between two."""
    eventually(own.whole, "the lab is whole")
    before = tables(own)
    process = subprocess.Popen([os.fspath(word) for word in (sys.executable, "-c", KILLED)], env=os.environ | {"PYTHONPATH": "src", "LAB": own.name})
    assert process.wait(30) == -9
    assert own.tweed("heal").returncode == 0
    eventually(lambda: tables(own) == before, "the tables are as they were", 5)


KILLED = """
import os
from tweed.lab import breakage, registry
done, carry_out = [], breakage.carry_out
def stop(lab, deed):
    if len(done) == 1: os.kill(os.getpid(), 9)
    done.append(deed)
    return carry_out(lab, deed)
breakage.carry_out = stop
breakage.break_(registry.load(os.environ["LAB"]), "vni-mismatch", None)
"""


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["break", "nonsense"], 2, "no fault 'nonsense': `tweed lab faults` lists those that there are"),
        (["break", "fdb-missing", "--node", "x"], 1, "has no node 'x', only master, node1, node2"),
        (["break"], 2, "Missing argument 'FAULT'"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(own: Lab, words: list[str], code: int, text: str) -> None:
    done = own.tweed(*words)
    assert done.returncode == code and text in done.stderr
    assert own.whole() and not any(own.agent(node.name)["paused"] for node in own.nodes)


def test_the_catalogue() -> None:
    found = json.loads(tweed("lab", "faults", "--json").stdout)
    assert [set(each) for each in found] == [{"name", "title"}] * len(CATALOGUE) and len(found) >= 25
    assert tweed("lab", "faults").stdout.count("\n") == len(found)
