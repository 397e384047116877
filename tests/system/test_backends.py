"""Every way of carrying the overlay with real agents and real pods: host-gw, direct routing, and a cluster that changes from one to the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests.system.conftest import Lab, all_pairs, eventually, ping, running, tweed
from tests.system.stream import Stream

from tweed.lab import processes

NETWORK = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"}


@pytest.fixture(scope="module")
def modes() -> Iterator[Lab]:
    """A lab whose tests each set the mode that they need, and wait for it."""
    with running("modes", "--nodes", "2", "--pods-per-node", "1", "--ipv6", "--backend", "host-gw") as made:
        yield made


def change_to(lab: Lab, backend: dict[str, Any], network: dict[str, Any] = NETWORK) -> None:
    done = tweed("net", "set", json.dumps({**network, "Backend": backend}), *lab.store_flags)
    assert done.returncode == 0, done.stderr
    kind, direct = backend["Type"], bool(backend.get("DirectRouting"))

    def followed() -> bool:
        documents = [lab.agent(node.name) for node in lab.nodes]
        return all((d["network"]["backend"], d["network"]["direct_routing"]) == (kind, direct) for d in documents) and lab.whole()

    eventually(followed, f"all agents run {kind}, sooner than with their slow look")


def gateway(lab: Lab, family: int = 4) -> str:
    """The address of the lab's world on the wire of the nodes."""
    return re.search(r"(192\.168\.2\.\d+|fd00:192:168:2:[0-9a-f:]+)/", lab.run("world", f"ip -{family} -o addr show scope global"))[1]


def ways(lab: Lab, node: str) -> list[str]:
    return [endpoint["way"] for peer in lab.agent(node)["peers"] for endpoint in peer["endpoints"]]


def ours(lab: Lab, node: str) -> list[str]:
    """The routes to other nodes' containers, and the devices that look like ours."""
    routes = lab.lines(node, "ip route show proto 83; ip -6 route show proto 83")
    return [re.sub(r" metric \d+", "", line) for line in routes] + lab.lines(node, "ip -o link | cut -d: -f2 | grep flannel || true")


def talk(lab: Lab, families: tuple[int, ...] = (4, 6)) -> None:
    for family in families:
        assert ping(all_pairs(lab.pods, family), rounds=3) == set()


def test_host_gw_is_one_route_per_peer(modes: Lab) -> None:
    one, two = modes.nodes
    said = modes.agent(one.name)
    assert said["mtu"] == 1500 and said["devices"] == [] and said["vtep_mac"] is None
    subnet, subnet6 = (modes.agent(two.name)[key] for key in ("subnet", "subnet6"))
    assert ours(modes, one.name) == [f"{subnet} via {two.public_ip} dev ens33", f"{subnet6} via {two.public_ip6} dev ens33 pref medium"]
    assert ways(modes, one.name) == [f"direct because {host} is on-link on ens33" for host in (two.public_ip, two.public_ip6)]
    talk(modes)


def test_a_peer_behind_a_router_is_refused_and_taken_back(modes: Lab) -> None:
    (one, two), router = modes.nodes, gateway(modes)
    modes.run(one.name, f"ip route add {two.public_ip}/32 via {router} dev ens33")
    try:
        eventually(lambda: f"refused because {two.public_ip} is behind the gateway {router}" in ways(modes, one.name), "the peer is refused")
        (problem,) = [p for p in modes.agent(one.name)["problems"] if p["id"] == "not-on-link"]
        assert f"behind the gateway {router}" in problem["text"]
        assert not [row for row in ours(modes, one.name) if row.startswith("10.244")]
        assert [row for row in ours(modes, one.name) if row.startswith("fd00")], "the other family goes on"
    finally:
        modes.run(one.name, f"ip route del {two.public_ip}/32")
    eventually(lambda: all(way.startswith("direct") for way in ways(modes, one.name)) and modes.whole(), "the peer has its route again")
    talk(modes)


def test_an_underlay_that_was_down_brings_the_routes_back(modes: Lab) -> None:
    one = modes.nodes[0]
    before = ours(modes, one.name)
    # The kernel takes the interface's IPv6 addresses and its neighbours away with the link; the lab's neighbours are all permanent.
    save = "ip neigh show dev ens33 nud permanent | sed 's/ PERMANENT//; s/^/ip neigh replace dev ens33 /'"
    modes.run(one.name, f'sysctl -qw net.ipv6.conf.ens33.keep_addr_on_down=1; n=$({save}); ip link set ens33 down; ip link set ens33 up; eval "$n"')
    eventually(lambda: ours(modes, one.name) == before and modes.whole(), "the routes are back")
    talk(modes)


def test_a_cluster_changes_its_mode_and_leaves_nothing_of_the_old_one(modes: Lab) -> None:
    one, two = modes.nodes
    subnet, host = modes.agent(two.name)["subnet"], two.public_ip
    base = subnet.partition("/")[0]

    change_to(modes, {"Type": "vxlan"})
    tunnelled = ours(modes, one.name)
    assert f"{subnet} via {base} dev flannel.1 onlink" in tunnelled and not any("ens33" in row for row in tunnelled)
    assert ways(modes, one.name) == ["tunnel because DirectRouting is off"] * 2
    talk(modes)

    change_to(modes, {"Type": "vxlan", "DirectRouting": True})
    direct = ours(modes, one.name)
    assert f"{subnet} via {host} dev ens33" in direct and not any("via" in row and "flannel" in row for row in direct)
    assert modes.agent(one.name)["mtu"] == 1430, "pods still fit the tunnel"
    assert f"dst {host} self permanent" in modes.run(one.name, "bridge fdb show dev flannel.1"), "the tunnel's rows are kept"
    talk(modes)

    change_to(modes, {"Type": "host-gw"})
    assert not any("flannel" in row for row in ours(modes, one.name))
    assert f"{subnet} via {host} dev ens33" in ours(modes, one.name)
    talk(modes)


V4 = {"Network": "10.244.0.0/16"}


def test_into_the_udp_mode_and_out_of_it_nothing_stays_behind() -> None:
    with running("modes4", "--nodes", "2", "--pods-per-node", "1", "--backend", "vxlan") as lab:
        inodes = {node.inode for node in lab.nodes}
        before = len(processes.inside(inodes))
        talk(lab, (4,))

        change_to(lab, {"Type": "udp"}, V4)
        one = lab.nodes[0].name
        assert ours(lab, one) == ["10.244.0.0/16 dev flannel0 scope link", " flannel0"]
        assert lab.agent(one)["mtu"] == 1472
        talk(lab, (4,))

        change_to(lab, {"Type": "host-gw"}, V4)
        assert not any("flannel" in row for row in ours(lab, one))
        talk(lab, (4,))
        eventually(lambda: len(processes.inside(inodes)) == before, "no process forwards any more")

        change_to(lab, {"Type": "udp"}, V4)
        talk(lab, (4,))
        change_to(lab, {"Type": "vxlan"}, V4)
        assert not any("flannel0" in row for row in ours(lab, one)) and any("flannel.1" in row for row in ours(lab, one))
        talk(lab, (4,))


@pytest.mark.parametrize("family", (4, 6))
def test_a_peer_that_changes_between_direct_and_tunnel_loses_no_packet(modes: Lab, family: int) -> None:
    change_to(modes, {"Type": "vxlan", "DirectRouting": True})
    one, two = modes.nodes
    here, there = modes.pod(f"{one.name}/pod1"), modes.pod(f"{two.name}/pod1")
    host, ip = (two.public_ip, "ip") if family == 4 else (two.public_ip6, "ip -6")
    router = gateway(modes, family)
    modes.run(
        "world", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; for f in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 >$f; done"
    )
    with Stream(here, here.ip(family), there, there.ip(family)) as stream:
        for _ in range(5):
            modes.run(one.name, f"{ip} route add {host} via {router} dev ens33")
            eventually(lambda: f"tunnel because {host} is behind the gateway {router}" in ways(modes, one.name), "tunnelled")
            assert any(row.startswith(there.ip(family)[:5]) and "onlink" in row for row in ours(modes, one.name))
            modes.run(one.name, f"{ip} route del {host} via {router}")
            eventually(lambda: f"direct because {host} is on-link on ens33" in ways(modes, one.name), "direct")
        eventually(lambda: stream.sent > 100, "enough was sent")
    assert stream.lost == []
