"""The walk over a healthy cluster's tables with one thing wrong: where it ends, and why."""

from __future__ import annotations

import pytest
from tests.unit.tables import FDB20, NEIGH20, ROUTE20, UP
from tests.unit.walking import changed, decisions, walked

# What is replaced on which node, and: verdict, node and device of the first divergence, its cause, a command that mends it.
FAULTS: list[tuple[str, dict[str, list[tuple[str, str]]], str, str, str, str, str | None]] = [
    (
        "blackhole",
        {"n10": [(ROUTE20, ROUTE20 + "blackhole 10.244.20.0/28\n")]},
        "dropped",
        "n10",
        "cni0",
        "route-blackhole",
        "ip route del blackhole 10.244.20.0/28",
    ),
    ("unreachable", {"n10": [(ROUTE20, "unreachable 10.244.20.0/24\n")]}, "dropped", "n10", "cni0", "route-unreachable", None),
    ("prohibit", {"n10": [(ROUTE20, "prohibit 10.244.20.0/24\n")]}, "dropped", "n10", "cni0", "route-prohibit", None),
    (
        "no route at all",
        {"n10": [(ROUTE20, ""), ("default via 192.168.2.1 dev ens33 proto static metric 100\n", "")]},
        "dropped",
        "n10",
        "cni0",
        "route-missing",
        None,
    ),
    (
        "dead route",
        {"n10": [(ROUTE20, ROUTE20.replace("onlink", "onlink dead linkdown")), ("default via 192.168.2.1", "unreachable default\n7.0.0.0/8 via 192.168.2.1")]},
        "dropped",
        "n10",
        "cni0",
        "route-unreachable",
        None,
    ),
    ("rule", {"n10": [("32766:", "90:	from 10.244.10.0/24 prohibit\n32766:")]}, "dropped", "n10", "cni0", "rule-drops", None),
    (
        "neighbour missing",
        {"n10": [(NEIGH20, "")]},
        "dropped",
        "n10",
        "flannel.1",
        "neighbour-missing",
        "ip neigh replace 10.244.20.0 lladdr 0e:00:00:00:00:20 dev flannel.1 nud permanent",
    ),
    ("neighbour failed", {"n10": [(NEIGH20, "10.244.20.0 dev flannel.1 FAILED\n")]}, "dropped", "n10", "flannel.1", "neighbour-failed", None),
    (
        "fdb missing",
        {"n10": [(FDB20, "")]},
        "dropped",
        "n10",
        "flannel.1",
        "fdb-missing",
        "bridge fdb replace 0e:00:00:00:00:20 dev flannel.1 dst 192.168.2.20 self permanent",
    ),
    (
        "fdb to another node",
        {"n10": [(FDB20, FDB20.replace("2.20", "2.30"))]},
        "dropped",
        "n30",
        "flannel.1",
        "fdb-wrong-host",
        "bridge fdb replace 0e:00:00:00:00:20 dev flannel.1 dst 192.168.2.20 self permanent",
    ),
    (
        "fdb to itself",
        {"n10": [(FDB20, FDB20.replace("2.20", "2.10"))]},
        "lost",
        "n10",
        "flannel.1",
        "fdb-own-host",
        "bridge fdb replace 0e:00:00:00:00:20 dev flannel.1 dst 192.168.2.20 self permanent",
    ),
    (
        "stale VTEP MAC",
        {"n10": [("0e:00:00:00:00:20", "0e:00:00:00:00:99")]},
        "dropped",
        "n20",
        "flannel.1",
        "vtep-mac-stale",
        "bridge fdb replace 0e:00:00:00:00:20 dev flannel.1 dst 192.168.2.20 self permanent",
    ),
    (
        "duplicate VTEP MAC",
        {"n10": [("link/ether 0e:00:00:00:00:10", "link/ether 0e:00:00:00:00:20")]},
        "dropped",
        "n20",
        "flannel.1",
        "vtep-mac-duplicate",
        None,
    ),
    ("VNI", {"n20": [("vxlan id 1 ", "vxlan id 2 ")]}, "dropped", "n20", "ens33", "vni-mismatch", None),
    ("VNI in the row", {"n10": [(FDB20, FDB20.replace(" self", " vni 7 self"))]}, "dropped", "n20", "ens33", "vni-mismatch", None),
    ("port", {"n20": [("dstport 8472", "dstport 4789"), ("0.0.0.0:8472", "0.0.0.0:4789")]}, "dropped", "n20", "ens33", "port-mismatch", None),
    ("port in the row", {"n10": [(FDB20, FDB20.replace(" self", " port 4789 self"))]}, "dropped", "n20", "ens33", "port-mismatch", None),
    (
        "no socket",
        {"n20": [("UNCONN 0      0            0.0.0.0:8472", "UNCONN 0      0            0.0.0.0:53")]},
        "dropped",
        "n20",
        "ens33",
        "port-closed",
        None,
    ),
    (
        "VTEP down",
        {"n10": [(f"3: flannel.1: {UP}", "3: flannel.1: <BROADCAST,MULTICAST>")]},
        "dropped",
        "n10",
        "flannel.1",
        "device-down",
        "ip link set flannel.1 up",
    ),
    (
        "peer's VTEP down",
        {"n20": [(f"3: flannel.1: {UP}", "3: flannel.1: <BROADCAST,MULTICAST>")]},
        "dropped",
        "n20",
        "flannel.1",
        "device-down",
        "ip link set flannel.1 up",
    ),
    ("peer's NIC down", {"n20": [(f"2: ens33: {UP}", "2: ens33: <BROADCAST,MULTICAST>")]}, "dropped", "n20", "ens33", "device-down", "ip link set ens33 up"),
    ("bridge down", {"n20": [(f"5: cni0: {UP}", "5: cni0: <BROADCAST,MULTICAST>")]}, "dropped", "n20", "cni0", "device-down", "ip link set cni0 up"),
    ("wrong local address", {"n10": [("local 192.168.2.10", "local 192.168.2.77")]}, "dropped", "n10", "flannel.1", "local-not-ours", None),
    (
        "underlay neighbour",
        {"n10": [("192.168.2.20 dev ens33 lladdr 52:54:c0:a8:02:20", "192.168.2.20 dev ens33 lladdr 52:54:c0:a8:02:99")]},
        "lost",
        "n20",
        "ens33",
        "underlay-neighbour-wrong",
        "ip neigh replace 192.168.2.20 lladdr 52:54:c0:a8:02:20 dev ens33 nud permanent",
    ),
    (
        "underlay through the tunnel",
        {"n10": [("10.244.20.0/24 via", "192.168.2.20 dev flannel.1 scope link\n10.244.20.0/24 via"), (" dev ens33 srcport", " srcport")]},
        "dropped",
        "n10",
        "flannel.1",
        "encapsulation-loop",
        None,
    ),
    ("forwarding off", {"n10": [("ip_forward = 1", "ip_forward = 0")]}, "dropped", "n10", "cni0", "forwarding-off", "sysctl -w net/ipv4/ip_forward=1"),
    (
        "peer's forwarding off",
        {"n20": [("ip_forward = 1", "ip_forward = 0")]},
        "dropped",
        "n20",
        "flannel.1",
        "forwarding-off",
        "sysctl -w net/ipv4/ip_forward=1",
    ),
    (
        "rp_filter",
        {"n20": [("flannel/1.rp_filter = 0", "flannel/1.rp_filter = 1"), ("10.244.10.0/24 via 10.244.10.0 dev flannel.1 onlink\n", "")]},
        "dropped",
        "n20",
        "flannel.1",
        "rp-filter",
        "sysctl -w net/ipv4/conf/flannel.1/rp_filter=2",
    ),
    (
        "veth detached",
        {
            "n10": [
                ("noqueue master cni0 state", "noqueue state"),
                ("0a:58:0a:f4:10:02 dev veth1 master cni0\n", ""),
                ("6: veth1@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 master cni0 state forwarding priority 32 cost 2\n", ""),
            ]
        },
        "lost",
        "n10",
        "veth1",
        "bridge-port-missing",
        "ip link set veth1 master cni0",
    ),
    (
        "peer's veth detached",
        {
            "n20": [
                ("noqueue master cni0 state", "noqueue state"),
                ("0a:58:0a:f4:20:02 dev veth1 master cni0\n", ""),
                ("6: veth1@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 master cni0 state forwarding priority 32 cost 2\n", ""),
            ]
        },
        "lost",
        "n20",
        "veth1",
        "bridge-port-missing",
        "ip link set veth1 master cni0",
    ),
    (
        "port disabled",
        {"n20": [("master cni0 state forwarding", "master cni0 state disabled")]},
        "dropped",
        "n20",
        "veth1",
        "bridge-port-blocked",
        "bridge link set dev veth1 state 3",
    ),
    ("container without a route", {"n10__pod1": [("default via 10.244.10.1 dev eth0\n", "")]}, "dropped", "n10/pod1", "eth0", "route-missing", None),
    (
        "a loop of two nodes",
        {"n20": [("10.244.20.0/24 dev cni0 proto kernel scope link src 10.244.20.1", "10.244.20.0/24 via 10.244.10.0 dev flannel.1 onlink")]},
        "dropped",
        "n20",
        "flannel.1",
        "routing-loop",
        None,
    ),
    (
        "by a third node",
        {"n10": [(ROUTE20, ROUTE20.replace("via 10.244.20.0", "via 10.244.30.0"))]},
        "detour",
        "n10",
        "cni0",
        "route-wrong-node",
        "ip route replace 10.244.20.0/24 via 10.244.20.0 dev flannel.1 onlink",
    ),
    (
        "by a leftover of a smaller metric",
        {"n10": [(ROUTE20, "10.244.20.0/24 via 10.244.30.0 dev flannel.1 onlink\n" + ROUTE20.replace(" onlink", " metric 19 onlink"))]},
        "detour",
        "n10",
        "cni0",
        "route-wrong-node",
        "ip route del 10.244.20.0/24 via 10.244.30.0 dev flannel.1 onlink",
    ),
    (
        "no such device",
        {"n10": [("10.244.20.0/24 via 10.244.20.0 dev flannel.1", "10.244.20.0/24 via 10.244.20.0 dev flannel.9")]},
        "dropped",
        "n10",
        "flannel.9",
        "device-missing",
        None,
    ),
]


def test_a_neighbour_that_failed_is_asked_again_and_is_the_end_where_nobody_has_the_address():
    silent = {"n20": [("10.244.20.2 dev cni0 lladdr 0a:58:0a:f4:20:02 STALE", "10.244.20.2 dev cni0 FAILED")]}
    asked = walked(changed(silent), "10.244.10.2", "10.244.20.2")
    assert asked.verdict == "delivered" and ("n20", "cni0", "neighbour-asked") in decisions(asked)
    nobody = walked(changed(silent, pods=False), "10.244.10.2", "10.244.20.2")
    assert (nobody.verdict, decisions(nobody)[-1]) == ("lost", ("n20", "cni0", "neighbour-failed"))
    underlay = {"n10": [("192.168.2.20 dev ens33 lladdr 52:54:c0:a8:02:20 REACHABLE", "192.168.2.20 dev ens33 FAILED")]}
    assert walked(changed(underlay), "10.244.10.2", "10.244.20.2").verdict == "delivered"


@pytest.mark.parametrize(("title", "changes", "verdict", "node", "device", "cause", "fix"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_one_thing_wrong(title: str, changes: dict[str, list[tuple[str, str]]], verdict: str, node: str, device: str, cause: str, fix: str | None):
    found = walked(changed(changes), "10.244.10.2", "10.244.20.2")
    divergence = found.first_divergence
    assert divergence is not None, decisions(found)
    assert (found.verdict, divergence.node, divergence.device, divergence.cause.id) == (verdict, node, device, cause)
    assert fix is None or fix in [each.command for each in divergence.fix]
    assert all(quote.source and quote.text for quote in divergence.evidence)
