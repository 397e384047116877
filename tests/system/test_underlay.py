"""The interface and the address that a node is reached by: chosen, explained, and followed when they change. By events alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.system.cluster import DUAL, Cluster, Node, wait_for
from tests.system.stream import Stream

BY_EVENT = ("--resync", "0")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("underlay"), 2, DUAL) as cluster:
        cluster.start(*BY_EVENT)
        yield cluster


def device_number(node: Node) -> list[str]:
    return [line.split(":")[0] for line in node.sh("ip -o link show type vxlan").splitlines()]


def knows(node: Node, address: str) -> bool:
    return f"dst {address} " in node.sh("bridge fdb show dev flannel.1; bridge fdb show dev flannel-v6.1")


def well(cluster: Cluster) -> bool:
    """Both are ready, and each has the rows that lead to the other."""
    documents = [node.status() for node in cluster.nodes]
    peers = [(p["state"], [e["public_ip"] for e in p["endpoints"]]) for d in documents for p in d["peers"]]
    want = [("programmed", [d["public_ip"], d["public_ip6"]]) for d in reversed(documents)]
    return peers == want and all(d["ready"] and not d["problems"] for d in documents)


def test_a_new_address_is_published_and_followed_without_a_new_device(cluster: Cluster) -> None:
    a, b = cluster.nodes
    numbers, rows = device_number(a), a.sh("ip route show dev flannel.1; ip neigh show dev flannel.1; bridge fdb show dev flannel.1")
    a.sh("ip addr del 192.168.2.1/16 dev ens33; ip addr add 192.168.2.77/16 dev ens33")
    a.sh("ip addr add fd00:192::77/64 dev ens33 nodad; ip addr del fd00:192::1/64 dev ens33")
    wait_for(lambda: knows(b, "192.168.2.77") and knows(b, "fd00:192::77"), "the peer follows")
    wait_for(lambda: well(cluster), "all is well")
    assert not knows(b, "192.168.2.1") and not knows(b, "fd00:192::1")
    assert device_number(a) == numbers and rows == a.sh("ip route show dev flannel.1; ip neigh show dev flannel.1; bridge fdb show dev flannel.1")
    assert "local 192.168.2.77 " in a.sh("ip -d link show flannel.1") and "local fd00:192::77 " in a.sh("ip -d link show flannel-v6.1")
    for there, back in (("subnet", 4), ("subnet6", 6)):
        ends = [str(node.status()[there]).split("/")[0] for node in (a, b)]
        with Stream(a, ends[0], b, ends[1]) as stream:
            wait_for(lambda: len(stream.came) > 3, f"IPv{back} flows")
    # And back, while nobody was looking: the address changes under an agent that is down, whose lease and name it keeps.
    subnet = a.status()["subnet"]
    a.end()
    a.sh("ip addr flush dev ens33; ip addr add 192.168.2.1/16 dev ens33; ip addr add fd00:192::1/64 dev ens33 nodad")
    a.start(*BY_EVENT)
    wait_for(lambda: knows(b, "192.168.2.1") and well(cluster), "the peer follows back")
    assert a.status()["subnet"] == subnet and device_number(a) == numbers


def test_an_ipv6_address_that_the_kernel_drops_is_missed_and_not_given_up(cluster: Cluster) -> None:
    """Setting the link down drops it, and leaves a link-local one, which would reach nobody beyond the link."""
    a, b = cluster.nodes
    before, lease = a.tables(), a.status()["lease"]["revision"]
    a.sh("ip link set ens33 down; ip link set ens33 up")
    wait_for(lambda: any("has lost fd00:192::1, by which" in problem["text"] for problem in a.status()["problems"]), "it is said")
    assert a.status()["ready"] and a.tables() == before and knows(b, "fd00:192::1") and a.status()["lease"]["revision"] == lease
    a.sh("ip addr add fd00:192::1/64 dev ens33 nodad")
    wait_for(lambda: well(cluster), "all is well")
    ends = [str(node.status()["subnet6"]).split("/")[0] for node in (a, b)]
    with Stream(a, ends[0], b, ends[1]) as stream:
        wait_for(lambda: len(stream.came) > 3, "it flows")
    assert a.tables() == before


def test_a_renamed_interface_is_still_the_one(cluster: Cluster) -> None:
    """The flag names it as it was called at the start."""
    a, b = cluster.nodes
    numbers = device_number(a)
    with Stream(b, str(b.status()["subnet"]).split("/")[0], a, str(a.status()["subnet"]).split("/")[0]) as stream:
        wait_for(lambda: len(stream.came) > 3, "it flows")
        a.sh("ip link set ens33 name wan0")
        wait_for(lambda: a.status()["underlay"]["device"] == "wan0", "the new name is known")
        wait_for(lambda: well(cluster), "all is well")
        a.sh("ip link set wan0 name ens33")
        wait_for(lambda: a.status()["underlay"]["device"] == "ens33", "the old name again")
    assert stream.lost == [] and device_number(a) == numbers


def test_an_interface_that_is_made_anew_brings_everything_back(cluster: Cluster) -> None:
    """The kernel deletes a VXLAN device with what it is bound to. MAC, addresses and rows come back with the interface."""
    a, _ = cluster.nodes
    before = a.tables()
    a.sh("ip link del ens33")
    wait_for(lambda: a.problems() >= {"underlay"} and not a.status()["ready"], "it is missed")
    switch = cluster.switch
    switch.sh(f"ip link add p1 type veth peer name ens33 netns {a.name}; ip link set p1 master switch up")
    a.sh("ip link set ens33 up; ip addr add 192.168.2.1/16 dev ens33; ip addr add fd00:192::1/64 dev ens33 nodad")
    wait_for(lambda: well(cluster), "all is well")
    assert a.tables() == before


def test_without_a_wish_it_is_the_best_default_route_and_said_why(cluster: Cluster) -> None:
    """Another interface with another address takes over when the first is gone: the device stays, its local address is another."""
    a, b = cluster.nodes
    a.end()
    cluster.switch.sh(f"ip link add q1 type veth peer name ens34 netns {a.name}; ip link set q1 master switch up")
    a.sh("ip link set ens34 up; ip addr add 192.168.2.101/16 dev ens34; ip addr add fd00:192::101/64 dev ens34 nodad")
    a.sh("ip route add default via 192.168.2.254 dev ens34 metric 200; ip route add default via 192.168.2.254 dev ens33 metric 100")
    a.iface = ()
    done = a.tweed("agent", *a.flags, "--dry-run")
    assert "# underlay ens33 with 192.168.2.1 and fd00:192::1, MTU 1500, because of the IPv4 default route with metric 100" in done.stdout, done.stderr
    assert "# underlay is not ens34 192.168.2.101 (lasting, default route with metric 200)" in done.stdout
    a.sh("ip route add 203.0.113.0/24 dev ens34 src 192.168.2.101; ip -6 route add 2001:db8:5::/48 dev ens34")
    for target in ("203.0.113.5", "2001:db8:5::1"):
        a.iface = ("--iface-can-reach", target)
        done = a.tweed("agent", *a.flags, "--dry-run")
        assert f"# underlay ens34 with 192.168.2.101 and fd00:192::101, MTU 1500, because of --iface-can-reach {target} is routed there" in done.stdout
    a.iface = ("--iface-can-reach", "198.51.100.1")
    a.sh("ip route del default; ip route del default")
    done = a.tweed("agent", *a.flags, "--dry-run")
    assert done.returncode == 1 and "198.51.100.1" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    a.iface = ()
    a.start("--iface", "gone0", "--iface-regex", "^ens3", *BY_EVENT)
    shown = a.tweed("status").stdout
    assert "chosen because of --iface-regex ^ens3 matches the name" in shown and "not ens34 192.168.2.101 (lasting" in shown
    numbers = device_number(a)
    a.sh("ip addr flush dev ens33; ip link set ens33 down; ip link set ens33 name off0")
    wait_for(lambda: knows(b, "192.168.2.101") and well(cluster), "the other interface takes over")
    assert device_number(a) == numbers and a.status()["underlay"]["device"] == "ens34"
