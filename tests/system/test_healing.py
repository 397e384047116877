"""Drift of every kind, on real agents: what is lost comes back, what is surplus goes, what is not ours stays, and others' traffic never stops."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from tests.system.cluster import DEAF, DUAL, Cluster, Node, wait_for
from tests.system.stream import Stream

from tweed.agent.client import call

DEVICE = {4: "flannel.1", 6: "flannel-v6.1"}
STRANGER = {4: "192.168.2.99", 6: "fd00:192::99"}
UNUSED = {4: "10.244.200.0/24", 6: "fd00:244:0:c8::/64"}
NARROW = {4: 25, 6: 65}
BY_EVENT, BY_TICK = ("--resync", "0"), ("--resync", "0.1")

ROW_FAULTS = {
    "route deleted": "ip -{f} route del {subnet} dev {dev}",
    "neighbour deleted": "ip neigh del {gw} dev {dev}",
    "fdb entry deleted": "bridge fdb del {mac} dev {dev} dst {host}",
    "neighbour with another MAC": "ip neigh replace {gw} dev {dev} lladdr 02:00:00:00:00:fe nud permanent",
    "neighbour not permanent": "ip neigh replace {gw} dev {dev} lladdr {mac} nud stale",
    "fdb entry to another host": "bridge fdb replace {mac} dev {dev} dst {stranger}",
    "a default fdb entry with two hosts": "for h in {stranger} {host}; do bridge fdb append 00:00:00:00:00:00 dev {dev} dst $h; done",
    "a stranger's neighbour": "ip neigh add {unused_gw} dev {dev} lladdr 02:00:00:00:00:fe nud permanent",
    "a stranger's fdb entry": "bridge fdb add 02:00:00:00:00:fe dev {dev} dst {host}",
    "a route to nobody": "ip -{f} route add {unused} via {gw} dev {dev} onlink",
    "flannel's route, which wins": "ip -{f} route add {subnet} via {gw} dev {dev} onlink metric {winning}",
    "two metrics": "ip -{f} route add {subnet} via {gw} dev {dev} onlink metric 5000",
    "the same again by another gateway": "ip -{f} route append {subnet} via {unused_gw} dev {dev} onlink proto 83 metric {metric}",
    "a more specific route": "ip -{f} route add {narrow} via {unused_gw} dev {dev} onlink",
    "all three rows": "ip -{f} route del {subnet} dev {dev}; ip neigh del {gw} dev {dev}; bridge fdb del {mac} dev {dev} dst {host}",
}
DEVICE_FAULTS = {
    "address deleted": "ip -{f} addr del {own} dev {dev}",
    "link down and up": "ip link set {dev} down; ip link set {dev} up",
    "link down": "ip link set {dev} down",
    "MAC set to the same value": "ip link set {dev} address {own_mac}",
    "MAC changed": "ip link set {dev} address 02:00:00:00:00:fd",
    "MTU changed": "ip link set {dev} mtu 1300",
    "local address changed": "ip link set {dev} type vxlan id 1 local {stranger} dev ens33",
    "all neighbours flushed": "ip neigh flush dev {dev} nud permanent",
    "device deleted": "ip link del {dev}",
}


class Words(NamedTuple):
    """What the faults speak of: one node's rows for one peer in one family."""

    values: dict[str, str]

    def __call__(self, script: str) -> str:
        return script.format(**self.values)

    def __getitem__(self, key: str) -> str:  # type: ignore[override]
        return self.values[key]


def words(node: Node, peer: Node, family: int) -> Words:
    """For `node`'s rows about `peer`."""
    status = node.status()
    (entry,) = [p for p in status["peers"] if p["node"] == peer.node]
    (end,) = [e for e in entry["endpoints"] if (":" in e["subnet"]) == (family == 6)]
    (device,) = [d for d in status["devices"] if d["name"] == DEVICE[family]]
    base, length = end["subnet"].split("/")
    metric = str(1 + (int(base.split(".")[2]) | 244 << 8) % 1024) if family == 4 else "1024"
    found = {"f": str(family), "dev": DEVICE[family], "subnet": end["subnet"], "gw": base, "mac": end["vtep_mac"], "host": end["public_ip"], "metric": metric}
    found |= {"stranger": STRANGER[family], "unused": UNUSED[family], "unused_gw": UNUSED[family].split("/")[0], "narrow": f"{base}/{NARROW[family]}"}
    return Words(found | {"own": device["address"], "own_mac": device["mac"], "winning": "0" if family == 4 else "1", "length": length})


def vtep(node: Node, family: int) -> str:
    return str(node.status()["subnet" if family == 4 else "subnet6"]).split("/")[0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("healing"), 3, DUAL) as cluster:
        cluster.start(*BY_EVENT)
        yield cluster


@pytest.fixture
def by_event(cluster: Cluster) -> Cluster:
    """The subject's agent, young: it has restored no MAC yet."""
    cluster.nodes[0].end()
    cluster.nodes[0].start(*BY_EVENT)
    return cluster


@pytest.fixture
def by_tick(cluster: Cluster) -> Cluster:
    cluster.nodes[0].end()
    cluster.nodes[0].start(*BY_TICK, driver=DEAF)
    return cluster


def healed(node: Node, script: str, what: str) -> float:
    """Break, and wait until all tables are as before. Returns the seconds it took, the looking included."""
    before, repairs = node.tables(), node.status()["reconcile"]["repairs"]
    node.sh(script)
    started = time.monotonic()
    try:
        wait_for(lambda: node.status()["reconcile"]["repairs"] > repairs and node.tables() == before, what)
    except AssertionError:
        assert node.tables() == before, f"{what}: {script}"
        raise
    took = time.monotonic() - started
    wait_for(lambda: node.status()["ready"], f"ready after: {what}")
    return took


def every_row_fault(cluster: Cluster) -> None:
    """Break node 2's rows on node 1 in every way, while node 1 sends to node 3 in both families."""
    subject, peer, bystander = cluster.nodes
    with (
        Stream(subject, vtep(subject, 4), bystander, vtep(bystander, 4)) as stream,
        Stream(subject, vtep(subject, 6), bystander, vtep(bystander, 6)) as stream6,
    ):
        took = [healed(subject, words(subject, peer, f)(script), f"IPv{f}: {what}") for f in (4, 6) for what, script in ROW_FAULTS.items()]
    assert min(stream.sent, stream6.sent) > 100
    assert stream.lost == [] and stream6.lost == []
    print(f"\n{len(took)} single-row faults: healed after {statistics.median(took) * 1000:.0f} ms (median), {max(took) * 1000:.0f} ms (longest)")


def test_rows_by_event_alone(by_event: Cluster) -> None:
    every_row_fault(by_event)


def test_rows_by_tick_alone(by_tick: Cluster) -> None:
    every_row_fault(by_tick)


@pytest.mark.parametrize("family", [4, 6])
def test_device_by_event_alone(by_event: Cluster, family: int) -> None:
    """The kernel itself forgets every peer here: there is a hole, and this prints how long it is."""
    subject, peer, _ = by_event.nodes
    for what, script in DEVICE_FAULTS.items():
        say = words(subject, peer, family)
        with Stream(subject, vtep(subject, family), peer, vtep(peer, family)) as stream:
            wait_for(lambda stream=stream: len(stream.came) > 3, "the stream runs")
            took = healed(subject, say(script), f"IPv{family}: {what}")
            after = stream.sent
            wait_for(lambda stream=stream, after=after: any(n > after for n in stream.came), "the stream goes on")
        assert all(n <= after for n in stream.lost)
        print(f"\nIPv{family}: {what}: healed after {took * 1000:.0f} ms, {len(stream.lost)} of {stream.sent} lost, hole of {stream.hole_s * 1000:.0f} ms")


@pytest.mark.parametrize("setting", ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.flannel/1.forwarding"])
def test_forwarding_by_event_alone(by_event: Cluster, setting: str) -> None:
    node = by_event.nodes[0]
    node.sh(f"sysctl -qw {setting}=0")
    wait_for(lambda: node.sh(f"sysctl -n {setting}") == "1\n", "it is on again", 10.0)
    wait_for(lambda: node.status()["ready"] and not node.problems(), "ready")


def test_device_by_tick_alone(by_tick: Cluster) -> None:
    subject, peer, _ = by_tick.nodes
    for family in (4, 6):
        for what, script in DEVICE_FAULTS.items():
            healed(subject, words(subject, peer, family)(script), f"IPv{family}: {what}")


def test_the_underlay_address_is_followed(by_event: Cluster) -> None:
    """An address that is given back, as a DHCP client does, and another one."""
    subject, *others = by_event.nodes
    before = subject.tables()
    assert subject.ip == "192.168.2.1"
    subject.sh("ip addr del 192.168.2.1/16 dev ens33")
    wait_for(lambda: "underlay" in subject.problems(), "no address is a problem")
    assert [line for line in subject.tables() if "lladdr" in line] == [line for line in before if "lladdr" in line]
    subject.sh("ip addr add 192.168.2.77/16 dev ens33")
    wait_for(lambda: all("192.168.2.77" in "".join(other.tables()) for other in others), "the others know the new address")
    wait_for(lambda: "local 192.168.2.77" in "".join(subject.tables()), "the device has the new address")
    subject.sh("ip addr del 192.168.2.77/16 dev ens33; ip addr add 192.168.2.1/16 dev ens33")
    wait_for(lambda: subject.tables() == before and not any("192.168.2.77" in "".join(other.tables()) for other in others), "all as before")
    wait_for(lambda: not subject.problems(), "no problem left")


def test_an_underlay_that_is_down_is_named(cluster: Cluster) -> None:
    subject = cluster.nodes[2]
    before = subject.tables()
    subject.sh("ip link set ens33 down")
    wait_for(lambda: "ip link set ens33 up" in "".join(p["text"] for p in subject.status()["problems"]), "it is named, with what to do")
    cluster.switch.sh("ip link set p3 down")
    subject.sh("ip link set ens33 up")
    wait_for(lambda: "no carrier" in "".join(p["text"] for p in subject.status()["problems"]), "no carrier is, too")
    cluster.switch.sh("ip link set p3 up")
    subject.sh(f"ip addr replace {subject.ip6}/64 dev ens33 nodad")  # the kernel drops IPv6 addresses of a device that goes down
    wait_for(lambda: not subject.problems() and subject.tables() == before, "all as before")


FOREIGN = {
    "a route of an administrator": "{subnet} via {stranger} dev ens33",
    "a blackhole for a part": "blackhole {narrow}",
    "with the metric that ours has": "{subnet} via {stranger} dev ens33 metric {metric}",
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("what", FOREIGN)
def test_somebody_elses_route_is_named_and_left_alone(cluster: Cluster, what: str, family: int) -> None:
    """Also when ours is missing and a replace with our metric would overwrite theirs."""
    subject, peer, _ = cluster.nodes
    say = words(subject, peer, family)
    before = subject.tables()
    with paused(subject):
        subject.sh(say("ip -{f} route del {subnet} dev {dev}"))
        subject.sh(say(f"ip -{{f}} route add {FOREIGN[what]}"))
        theirs = subject.sh(f"ip -{family} route show").splitlines()
        passes = subject.status()["reconcile"]["passes"]
    wait_for(lambda: subject.status()["reconcile"]["passes"] > passes, "a pass")
    problem = wait_for(lambda: [p for p in subject.status()["problems"] if p["id"] == "shadowing-route"], "it is named")[0]
    assert set(theirs) <= set(subject.sh(f"ip -{family} route show").splitlines())
    assert say["subnet"] in problem["text"] and subject.status()["failures"] == []
    subject.sh(problem["text"].rpartition("with: ")[2])  # the command that the message gives
    wait_for(lambda: subject.tables() == before and not subject.problems(), "all as before")


@contextlib.contextmanager
def paused(node: Node) -> Iterator[None]:
    """The agent answers and changes nothing."""
    call(node.socket, "POST", "/v1/pause")
    try:
        yield
    finally:
        call(node.socket, "POST", "/v1/resume")


def test_a_device_that_cannot_be_changed_in_place_is_made_anew(cluster: Cluster) -> None:
    subject = cluster.nodes[0]
    before = subject.tables()
    with paused(subject):
        subject.sh("ip link del flannel.1; ip link add flannel.1 type vxlan id 7 dstport 4789 dev ens33")
    wait_for(lambda: subject.tables() == before, "the device is as it was")
    assert "id is 7, should be 1" in subject.log.read_text()


def test_somebody_elses_device_of_our_name_is_named_and_left_alone(cluster: Cluster) -> None:
    """The other family goes on meanwhile."""
    subject, peer, _ = cluster.nodes
    before = subject.tables()
    with paused(subject):
        subject.sh("ip link del flannel.1; ip link add flannel.1 type bridge")
    wait_for(lambda: not subject.status()["ready"], "it is not ready")
    (failure,) = subject.status()["failures"]
    assert failure["text"] == "flannel.1: a device named flannel.1 exists and is a bridge device: rename or remove it"
    subject.sh(words(subject, peer, 6)("ip -6 route del {subnet} dev {dev}"))
    rows6 = [line for line in before if line.startswith("flannel-v6.1")]
    wait_for(lambda: subject.tables() == rows6, "the other family heals")
    assert "bridge" in subject.sh("ip -d link show flannel.1")
    subject.sh("ip link del flannel.1")
    wait_for(lambda: subject.tables() == before and subject.status()["ready"], "all as before")


def test_who_keeps_rewriting_the_mac_is_named_and_traffic_flows(by_event: Cluster) -> None:
    """Fought for ever, every peer would lose its neighbours every time; published, all know the MAC that the device has."""
    subject, peer, _ = by_event.nodes
    for n in range(1, 6):
        mac = f"02:00:00:00:01:0{n}"
        subject.sh(f"ip link set flannel.1 address {mac}")
        wait_for(lambda mac=mac: mac not in "".join(subject.tables()) or "mac-rewritten" in subject.problems(), f"rewritten {n} times")
    status = wait_for(lambda: "mac-rewritten" in subject.problems() and subject.status(), "it is named")
    (text,) = [p["text"] for p in status["problems"] if p["id"] == "mac-rewritten"]
    assert "tweed node-files" in text and text in subject.log.read_text()
    wait_for(lambda: mac in subject.status()["devices"][0]["mac"] and mac in "".join(peer.tables()), "the peer knows the MAC that stands")
    for a, b in ((subject, peer), (peer, subject)):
        with Stream(a, vtep(a, 4), b, vtep(b, 4)) as stream:
            wait_for(lambda stream=stream: len(stream.came) > 10, "traffic flows")
        assert stream.lost == []


def test_a_storm_of_drift_does_not_end_the_agent(by_event: Cluster) -> None:
    """Devices that go between the agent's questions, a thousand events at once: it works itself out of it."""
    subject, peer, _ = by_event.nodes
    assert subject.process is not None
    before, say = subject.tables(), words(subject, peer, 4)
    subject.sh("for i in $(seq 20); do ip link del flannel.1 2>/dev/null || :; ip link del flannel-v6.1 2>/dev/null || :; done")
    subject.sh(say("for i in $(seq 60); do ip route flush dev {dev}; ip neigh flush dev {dev} nud permanent; done 2>/dev/null || :"))
    wait_for(lambda: subject.tables() == before and subject.status()["ready"], "all as before")
    assert subject.process.poll() is None
