"""Bridges and ports that containers depend on, changed by hand under a running agent: put back, with their traffic."""

import json
import re

import pytest
from tests.system.cluster import DUAL, Cluster, wait_for
from tests.system.conftest import ping
from tests.system.runtime import Runtime, Sandbox

NETWORK = {"cniVersion": "1.0.0", "name": "tweed", "plugins": [{"type": "tweed"}]}


class Place:
    """Two nodes; a container on the first, one on the second."""

    def __init__(self, cluster: Cluster) -> None:
        self.node, self.other = cluster.nodes
        self.boxes = [Sandbox(), Sandbox()]
        self.runtimes = []
        self.results = []
        for node, box, name in zip(cluster.nodes, self.boxes, "ab", strict=True):
            directory = node.directory / "bin"
            done = node.tweed("cni", "install", "--bin-dir", str(directory), "--conf-dir", str(node.directory / "net.d"))
            assert done.returncode == 0, done.stderr
            self.runtimes.append(Runtime(node, directory))
            self.results.append(self.runtimes[-1].add(NETWORK, name, box.path))
        self.port = self.results[0]["interfaces"][1]["name"]

    def talk(self) -> bool:
        ips = [[ip["address"].partition("/")[0] for ip in result["ips"]] for result in self.results]
        return not ping((box.name, ip) for box, there in zip(self.boxes, ips[::-1], strict=True) for ip in there)

    def state(self) -> list[str]:
        """Of bridge and port, without what changes by itself: indexes, timers, counters."""
        shown = self.node.sh(
            f"ip -d -o link show cni0; ip -d -o link show {self.port}; ip -o addr show cni0; ip route show dev cni0; ip -6 route show dev cni0"
        )
        lines = [
            re.sub(r"^\d+: |@if\d+|\w+_timer +\S+|designated_\w+ \S+|(bridge|port)_\w+ \S+|promiscuity \d+ *|allmulti \d+", "", line)
            for line in shown.splitlines()
        ]
        return sorted(line for line in lines if "fe80" not in line)

    def check(self) -> None:
        for runtime, name, box in zip(self.runtimes, "ab", self.boxes, strict=True):
            runtime.check(NETWORK, name, box.path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("upkeep"), 2, DUAL) as cluster:
        cluster.start()
        made = Place(cluster)
        wait_for(made.talk, "they talk")
        try:
            yield made
        finally:
            for box in made.boxes:
                box.remove()


HARM = {
    "bridge down": "ip link set cni0 down",
    "bridge down and up": "ip link set cni0 down; ip link set cni0 up",
    "bridge gone": "ip link del cni0",
    "addresses gone": "ip addr flush dev cni0",
    "one address gone": "ip -4 addr flush dev cni0",
    "bridge's MTU": "ip link set cni0 mtu 1300",
    "port off the bridge": "ip link set PORT nomaster",
    "port on another bridge": "ip link add other type bridge; ip link set PORT master other; ip link del other",
    "port down": "ip link set PORT down",
    "hairpin off": "bridge link set dev PORT hairpin off",
    "port's MTU": "ip link set PORT mtu 1300",
}


@pytest.mark.parametrize("what", HARM)
def test_what_is_changed_by_hand_is_put_back(place, what):
    before, repairs = place.state(), place.node.status()["reconcile"]["repairs"]
    place.node.sh(HARM[what].replace("PORT", place.port))
    wait_for(lambda: place.state() == before, "as before")
    wait_for(place.talk, "they talk")
    place.check()
    status = place.node.status()
    assert status["ready"] and not place.node.problems() and status["reconcile"]["repairs"] > repairs


def test_what_is_written_down_of_a_bridge_does_not_grow(place):
    def written():
        return json.loads((place.node.state / "attachments.json").read_text())["bridges"]["cni0"]

    before = place.state()
    place.node.sh(HARM["addresses gone"])
    wait_for(lambda: place.state() == before, "as before")
    first = written()
    place.node.sh(HARM["addresses gone"])
    wait_for(lambda: place.state() == before, "as before")
    assert written() == first


def test_a_bridge_that_cannot_be_made_whole_is_ours_all_the_same(place):
    """Its addresses are refused: the rest of it and its ports are there, and a cleanup would remove it."""
    before, off = place.state(), "sysctl -qw net.ipv6.conf.default.disable_ipv6"
    place.node.sh(f"{off}=1; ip link del cni0")
    wait_for(lambda: "container-bridge" in place.node.problems(), "it is said")
    bridge = json.loads((place.node.state / "attachments.json").read_text())["bridges"]["cni0"]
    assert bridge["up"] is None and bridge["index"] == json.loads(place.node.sh("ip -j link show cni0"))[0]["ifindex"]
    assert place.port in place.node.sh("ip link show master cni0")
    place.node.sh(f"{off}=0; sysctl -qw net.ipv6.conf.cni0.disable_ipv6=0; ip link set cni0 mtu 1300")
    wait_for(lambda: place.state() == before and not place.node.problems(), "as before")
    wait_for(place.talk, "they talk")


def test_what_happens_without_an_agent_is_put_back_at_its_start(place):
    before = place.state()
    place.node.end()
    place.node.sh(f"ip link del cni0; ip link set {place.port} mtu 1300")
    place.node.start()
    wait_for(lambda: place.state() == before, "as before")
    wait_for(place.talk, "they talk")


def test_containers_of_a_ledger_that_was_lost_are_kept_too(place):
    before = place.state()
    place.node.end()
    (place.node.state / "attachments.json").unlink()
    place.node.start()
    place.node.sh("ip link del cni0")
    wait_for(lambda: place.state() == before, "as before")
    wait_for(place.talk, "they talk")
    place.check()


def test_another_device_of_that_name_is_named_and_not_touched(place):
    before = place.state()
    with place.node.paused():
        place.node.sh("ip link del cni0; ip link add cni0 type veth peer name cni9")
    wait_for(lambda: "container-bridge" in place.node.problems(), "it is named")
    assert "not a bridge" in next(p["text"] for p in place.node.status()["problems"] if p["id"] == "container-bridge")
    assert place.node.status()["ready"] and "veth" in place.node.sh("ip -d link show cni0")
    place.node.sh("ip link del cni0")
    wait_for(lambda: place.state() == before and not place.node.problems(), "as before")
    wait_for(place.talk, "they talk")


def test_attaching_and_detaching_make_no_work(place):
    """Their own announcements are no drift."""
    box, repairs = Sandbox(), place.node.status()["reconcile"]["repairs"]
    try:
        for number in range(5):
            place.runtimes[0].add(NETWORK, f"c{number}", box.path)
            place.runtimes[0].delete(NETWORK, f"c{number}", box.path)
        place.node.sh(f"ip link set {place.port} down")  # announced after all of theirs
        wait_for(lambda: place.node.status()["reconcile"]["repairs"] > repairs, "it is put back")
    finally:
        box.remove()
    assert place.node.status()["reconcile"]["repairs"] == repairs + 1


def test_nothing_is_kept_where_no_container_is_left(place):
    for runtime, name, box in zip(place.runtimes, "ab", place.boxes, strict=True):
        runtime.delete(NETWORK, name, box.path)
    place.node.sh("ip link del cni0")
    result = place.runtimes[0].add(NETWORK, "c", place.boxes[0].path)
    assert result["interfaces"][0]["name"] == "cni0"
    place.runtimes[0].delete(NETWORK, "c", place.boxes[0].path)
