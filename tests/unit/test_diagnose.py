"""Tables held against what should be: where the packet first goes wrong, and the commands that mend it. With leases and without."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.tables import FDB20, NEIGH20, ROUTE20, UP, healthy, udp_mode
from tests.unit.tables import cluster as nodes
from tests.unit.walking import check_words

from tweed.addr import Prefix
from tweed.addr import parse_address as ip
from tweed.addr import parse_mac as mac
from tweed.model import Endpoint, Lease
from tweed.trace.cluster import Cluster
from tweed.trace.findings import find
from tweed.trace.frames import Probe
from tweed.trace.intent import Intent
from tweed.trace.result import Walk
from tweed.trace.snapshot import LeaseRow, Snapshot
from tweed.trace.trip import trip

PUT_ROUTE = "ip route replace 10.244.20.0/24 via 10.244.20.0 dev flannel.1 onlink"
PUT_NEIGH = "ip neigh replace 10.244.20.0 dev flannel.1 lladdr 0e:00:00:00:00:20 nud permanent"
PUT_FDB = "bridge fdb replace 0e:00:00:00:00:20 dev flannel.1 dst 192.168.2.20 self permanent"
LEASES = tuple(
    LeaseRow(
        source="lease",
        text=f"10.244.{n}.0-24 node n{n}",
        node=f"n{n}",
        lease=Lease(Endpoint(Prefix.parse(f"10.244.{n}.0/24"), ip(f"192.168.2.{n}"), mac(f"0e:00:00:00:00:{n}"), 1)),
    )
    for n in (10, 20, 30)
)

# title, texts replaced by node, node, device, cause, all commands (None: not looked at)
FAULTS: list[tuple[str, dict[str, list[tuple[str, str]]], str, str, str, list[str] | None]] = [
    ("route missing", {"n10": [(ROUTE20, "")]}, "n10", "flannel.1", "route-missing", [PUT_ROUTE]),
    ("route back missing", {"n20": [("10.244.10.0/24 via 10.244.10.0 dev flannel.1 onlink\n", "")]}, "n20", "flannel.1", "route-missing", None),
    ("to another node", {"n10": [(ROUTE20, ROUTE20.replace("via 10.244.20.0", "via 10.244.30.0"))]}, "n10", "flannel.1", "route-wrong-node", [PUT_ROUTE]),
    (
        "leftover",
        {"n10": [(ROUTE20, ROUTE20.replace("via 10.244.20.0", "via 10.244.99.0") + ROUTE20.replace(" onlink", " metric 19 onlink"))]},
        "n10",
        "flannel.1",
        "route-leftover",
        ["ip route del 10.244.20.0/24 via 10.244.99.0 dev flannel.1"],
    ),
    (
        "blackhole",
        {"n10": [(ROUTE20, ROUTE20 + "blackhole 10.244.20.0/25 metric 7\n")]},
        "n10",
        "flannel.1",
        "route-blackhole",
        ["ip route del blackhole 10.244.20.0/25 metric 7"],
    ),
    ("throw", {"n10": [(ROUTE20, ROUTE20 + "throw 10.244.20.0/25\n")]}, "n10", "flannel.1", "route-throw", ["ip route del throw 10.244.20.0/25"]),
    (
        "one leg of two",
        {
            "n10": [
                (ROUTE20, "10.244.20.0/24\n\tnexthop via 10.244.20.0 dev flannel.1 weight 1 onlink\n\tnexthop via 10.244.99.0 dev flannel.1 weight 1 onlink\n")
            ]
        },
        "n10",
        "flannel.1",
        "route-leftover",
        [PUT_ROUTE],
    ),
    ("neighbour missing", {"n10": [(NEIGH20, "")]}, "n10", "flannel.1", "neighbour-missing", [PUT_NEIGH]),
    ("neighbour failed", {"n10": [(NEIGH20, "10.244.20.0 dev flannel.1 FAILED\n")]}, "n10", "flannel.1", "neighbour-missing", [PUT_NEIGH]),
    (
        "stale MAC",
        {"n10": [(NEIGH20, NEIGH20.replace(":20 ", ":99 ")), (FDB20, FDB20.replace(":20 ", ":99 "))]},
        "n10",
        "flannel.1",
        "vtep-mac-stale",
        [PUT_FDB, PUT_NEIGH, "bridge fdb del 0e:00:00:00:00:99 dev flannel.1 dst 192.168.2.20 self"],
    ),
    ("fdb missing", {"n10": [(FDB20, "")]}, "n10", "flannel.1", "fdb-missing", [PUT_FDB]),
    ("fdb elsewhere", {"n10": [(FDB20, FDB20.replace("2.20", "2.30"))]}, "n10", "flannel.1", "fdb-wrong-host", [PUT_FDB]),
    ("peer's VNI", {"n20": [("vxlan id 1 ", "vxlan id 2 ")]}, "n20", "flannel.1", "vni-mismatch", None),
    ("own VNI", {"n10": [("vxlan id 1 ", "vxlan id 2 ")]}, "n10", "flannel.1", "vni-mismatch", None),
    ("own port", {"n10": [("dstport 8472", "dstport 4789")]}, "n10", "flannel.1", "port-mismatch", None),
    ("peer's NIC down", {"n20": [(f"2: ens33: {UP}", "2: ens33: <BROADCAST,MULTICAST>")]}, "n20", "ens33", "device-down", ["ip link set ens33 up"]),
    ("bridge down", {"n20": [(f"5: cni0: {UP}", "5: cni0: <BROADCAST,MULTICAST>")]}, "n20", "cni0", "device-down", ["ip link set cni0 up"]),
    (
        "container without a way",
        {"n10__pod1": [("default via 10.244.10.1 dev eth0\n", "")]},
        "n10/pod1",
        "eth0",
        "route-missing",
        ["ip route replace default via 10.244.10.1 dev eth0"],
    ),
    (
        "underlay's MAC",
        {"n10": [("192.168.2.20 dev ens33 lladdr 52:54:c0:a8:02:20", "192.168.2.20 dev ens33 lladdr 52:54:c0:a8:02:99")]},
        "n10",
        "ens33",
        "underlay-neighbour-wrong",
        ["ip neigh replace 192.168.2.20 lladdr 52:54:c0:a8:02:20 dev ens33 nud permanent"],
    ),
    (
        "underlay by another way",
        {"n10": [(ROUTE20, ROUTE20 + "192.168.2.20 via 192.168.2.30 dev ens33\n")]},
        "n10",
        "ens33",
        "underlay-route-wrong",
        ["ip route del 192.168.2.20/32 via 192.168.2.30 dev ens33"],
    ),
    (
        "MTU of the container",
        {"n10__pod1": [("mtu 1450", "mtu 1500")]},
        "n10/pod1",
        "eth0",
        "mtu-too-large",
        ["ip link set eth0 mtu 1450"],
    ),
    (
        "no forwarding on one device",
        {"n10": [("net.ipv4.ip_forward = 1\n", "net.ipv4.ip_forward = 1\nnet.ipv4.conf.cni0.forwarding = 0\n")]},
        "n10",
        "cni0",
        "forwarding-off",
        ["sysctl -w net/ipv4/conf/cni0/forwarding=1"],
    ),
    (
        "address of a container of elsewhere",
        {"n10": [("    inet 127.0.0.1/8 scope host lo\n", "    inet 127.0.0.1/8 scope host lo\n    inet 10.244.20.2/32 scope global lo\n")]},
        "n10",
        "lo",
        "address-elsewhere",
        ["ip addr del 10.244.20.2/32 dev lo"],
    ),
    (
        "the sender's address on the peer",
        {"n20": [("    inet 127.0.0.1/8 scope host lo\n", "    inet 127.0.0.1/8 scope host lo\n    inet 10.244.10.2/32 scope global lo\n")]},
        "n20",
        "lo",
        "address-elsewhere",
        ["ip addr del 10.244.10.2/32 dev lo"],
    ),
    (
        "strict, and a leftover to its own container",
        {"n10": [(ROUTE20, ROUTE20 + "10.244.10.2 dev ens33\n"), ("conf.cni0.rp_filter = 0", "conf.cni0.rp_filter = 1")]},
        "n10",
        "cni0",
        "rp-filter",
        ["ip route del 10.244.10.2/32 dev ens33"],
    ),
    (
        "MTU of a route",
        {"n10": [(ROUTE20, ROUTE20.replace(" onlink", " mtu 1000 onlink"))]},
        "n10",
        "flannel.1",
        "mtu-exceeded",
        [PUT_ROUTE],
    ),
    (
        "MTU of the peer's bridge",
        {"n20": [(f"5: cni0: {UP} mtu 1450", f"5: cni0: {UP} mtu 1000")]},
        "n20",
        "cni0",
        "mtu-exceeded",
        ["ip link set cni0 mtu 1450"],
    ),
    (
        "a container without its address, whose MAC its node remembers",
        {"n20__pod1": [("    inet 10.244.20.2/24 scope global eth0\n", ""), ("10.244.20.0/24 dev eth0 proto kernel scope link src 10.244.20.2\n", "")]},
        "n20/pod1",
        "eth0",
        "address-missing",
        ["ip addr add 10.244.20.2/24 dev eth0", "ip route replace default via 10.244.20.1 dev eth0"],
    ),
    (
        "a container without its address, of which nobody remembers anything",
        {
            "n20__pod1": [("    inet 10.244.20.2/24 scope global eth0\n", ""), ("10.244.20.0/24 dev eth0 proto kernel scope link src 10.244.20.2\n", "")],
            "n20": [("10.244.20.2 dev cni0 lladdr 0a:58:0a:f4:20:02 STALE\n", ""), ("0a:58:0a:f4:20:02 dev veth1 master cni0\n", "")],
        },
        "n20/pod1",
        "eth0",
        "address-missing",
        ["ip addr add 10.244.20.2/24 dev eth0", "ip route replace default via 10.244.20.1 dev eth0"],
    ),
    (
        "a container that asks its own network for the peer's",
        {"n10__pod1": [("default via 10.244.10.1 dev eth0\n", "default via 10.244.10.1 dev eth0\n10.244.20.0/24 dev eth0 scope link\n")]},
        "n10/pod1",
        "eth0",
        "gateway-wrong",
        ["ip route replace 10.244.20.0/24 via 10.244.10.1 dev eth0"],
    ),
    (
        "a container with too wide a netmask",
        {"n10__pod1": [("inet 10.244.10.2/24", "inet 10.244.10.2/16"), ("10.244.10.0/24 dev eth0", "10.244.0.0/16 dev eth0")]},
        "n10/pod1",
        "eth0",
        "gateway-wrong",
        ["ip route replace 10.244.20.0/24 via 10.244.10.1 dev eth0"],
    ),
]


def walked(changes: dict[str, list[tuple[str, str]]], leases: bool, src: str = "10.244.10.2", dst: str = "10.244.20.2") -> Walk:
    texts = healthy()
    for name, replacements in changes.items():
        for old, new in replacements:
            assert old in texts[name], (name, old)
            texts[name] = texts[name].replace(old, new)
    found: Snapshot = nodes(**texts)
    cluster = Cluster(msgspec.structs.replace(found, leases=LEASES) if leases else found)
    made = trip(cluster, Intent(cluster), Probe(ip(src), ip(dst)))
    check_words(made)
    return made


@pytest.mark.parametrize("leases", [True, False], ids=["leases", "tables alone"])
@pytest.mark.parametrize(("title", "changes", "node", "device", "cause", "commands"), FAULTS, ids=[row[0] for row in FAULTS])
def test_the_first_wrong_row_is_named(title, changes, node: str, device: str, cause: str, commands: list[str] | None, leases: bool):
    found = walked(changes, leases)
    divergence = found.first_divergence
    assert divergence is not None and found.verdict in ("dropped", "lost", "elsewhere", "detour")
    assert (divergence.node, divergence.device, divergence.cause.id) == (node, device, cause)
    assert divergence.evidence and all(row.source for row in divergence.evidence)
    if commands is not None:
        assert [fix.command for fix in divergence.fix] == commands
    assert {fix.node for fix in divergence.fix} == {node}


@pytest.mark.parametrize("leases", [True, False])
def test_a_healthy_cluster_has_nothing_wrong_there_back_and_at_full_size(leases: bool):
    found = walked({}, leases)
    assert (found.verdict, found.first_divergence) == ("delivered", None)
    assert found.reply is not None and found.reply.verdict == "delivered" and found.reply.src == found.dst
    assert found.whole is not None and found.whole.verdict == "delivered"


UDP_ROUTE = "10.244.0.0/16 dev flannel0 proto kernel scope link\n"
UDP_PUT = "ip route replace 10.244.0.0/16 dev flannel0 scope link"
UDP_FAULTS = [
    ("n10", (UDP_ROUTE, ""), "flannel0", "route-missing", [UDP_PUT]),
    ("n10", (UDP_ROUTE, UDP_ROUTE + "blackhole 10.244.20.2\n"), "cni0", "route-blackhole", ["ip route del blackhole 10.244.20.2/32"]),
    ("n10", (UDP_ROUTE, UDP_ROUTE + "10.244.20.2 via 192.168.2.30 dev ens33\n"), "flannel0", "route-leftover", None),
    ("n20", (",NOARP,UP,LOWER_UP>", ",NOARP>"), "flannel0", "device-down", ["ip link set flannel0 up"]),
    ("n20", (UDP_ROUTE, ""), "flannel0", "route-missing", [UDP_PUT]),  # which only the answer needs
]


@pytest.mark.parametrize(("node", "change", "device", "cause", "commands"), UDP_FAULTS, ids=[f"{row[0]} {row[3]}" for row in UDP_FAULTS])
def test_in_udp_mode_the_daemons_device_is_the_way(node: str, change: tuple[str, str], device: str, cause: str, commands: list[str] | None):
    texts = udp_mode()
    leases = tuple(msgspec.structs.replace(row, lease=Lease(Endpoint(row.lease.v4.subnet, row.lease.v4.public_ip), backend="")) for row in LEASES[:2])

    def trip_with(texts: dict[str, str]) -> Walk:
        found = msgspec.structs.replace(nodes(**texts), leases=leases, config='{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}')
        cluster = Cluster(found)
        assert not [each for each in find(cluster) if each.said.id == "lease-row-missing" and each.node != node and each.node != "n30"]
        return trip(cluster, Intent(cluster), Probe(ip("10.244.10.2"), ip("10.244.20.2")))

    assert trip_with(texts).first_divergence is None
    assert change[0] in texts[node]
    divergence = trip_with(texts | {node: texts[node].replace(*change)}).first_divergence
    assert divergence is not None and (divergence.node, divergence.device, divergence.cause.id) == (node, device, cause)
    assert commands is None or [fix.command.replace(" proto 83", "") for fix in divergence.fix] == commands


def test_with_direct_routing_a_host_on_the_same_network_is_the_way():
    texts = healthy()
    direct = dict(texts)
    for n in ("10", "20"):
        route = f"10.244.{n}.0/24 via 192.168.2.{n} dev ens33 proto 83 metric {n}\n"
        direct = {name: text.replace(f"10.244.{n}.0/24 via 10.244.{n}.0 dev flannel.1 onlink\n", route) for name, text in direct.items()}
    config = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}'

    def told(texts: dict[str, str]) -> Walk:
        cluster = Cluster(msgspec.structs.replace(nodes(**texts), leases=LEASES, config=config))
        assert not [each for each in find(cluster) if each.said.id == "neighbour-unused" and each.node == "n30"]
        return trip(cluster, Intent(cluster), Probe(ip("10.244.10.2"), ip("10.244.20.2")))

    assert told(direct).first_divergence is None
    missing = told(direct | {"n10": direct["n10"].replace("10.244.20.0/24 via 192.168.2.20 dev ens33 proto 83 metric 20\n", "")}).first_divergence
    assert missing is not None and (missing.node, missing.device, missing.cause.id) == ("n10", "ens33", "route-missing")
    assert [fix.command for fix in missing.fix] == ["ip route replace 10.244.20.0/24 via 192.168.2.20 dev ens33 proto 83 metric 21"]


@pytest.mark.parametrize(("heard", "verdict"), [("02", "delivered"), ("03", "elsewhere")])
def test_of_two_containers_with_one_address_the_later_one_gives_it_up(heard: str, verdict: str):
    """n20/pod2 has its own address and pod1's; which of the two gets the packet is what the node has heard last."""
    texts = healthy()
    pod2 = texts["n20__pod1"].replace(":20:02", ":20:03").replace("if6", "if7").replace("10.244.20.2", "10.244.20.3")
    texts["n20__pod2"] = pod2.replace("    inet 10.244.20.3/24 scope", "    inet 10.244.20.3/24 scope global eth0\n    inet 10.244.20.2/24 scope")
    veth = "6: veth1@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue master cni0 state UP group default\n"
    second = veth.replace("6: veth1", "7: veth2") + "    link/ether 0a:59:00:00:20:02 brd ff:ff:ff:ff:ff:ff link-netnsid 1 promiscuity 1\n    veth\n"
    texts["n20"] = texts["n20"].replace("0a:58:0a:f4:20:02 STALE", f"0a:58:0a:f4:20:{heard} STALE").replace(veth, second + veth)
    texts["n20"] = texts["n20"].replace("[root@n20 ~]# bridge link", "0a:58:0a:f4:20:03 dev veth2 master cni0\n[root@n20 ~]# bridge link")
    cluster = Cluster(nodes(**texts))
    found = trip(cluster, Intent(cluster), Probe(ip("10.244.10.2"), ip("10.244.20.2")))
    assert found.verdict == verdict and found.first_divergence is not None
    assert (found.first_divergence.node, found.first_divergence.cause.id) == ("n20/pod2", "address-twice")
    forget = [("n20", "ip neigh del 10.244.20.2 dev cni0")] if heard == "03" else []
    assert [(fix.node, fix.command) for fix in found.first_divergence.fix] == [("n20/pod2", "ip addr del 10.244.20.2/24 dev eth0"), *forget]


def test_a_node_that_answers_for_others_takes_what_its_containers_send_directly():
    """Proxy ARP: the container has the node's MAC for what is on another node, or will be told it."""
    route = [("default via 10.244.10.1 dev eth0\n", "default via 10.244.10.1 dev eth0\n10.244.20.0/24 dev eth0 scope link\n")]
    switch = [("net.ipv4.ip_forward = 1\n", "net.ipv4.ip_forward = 1\nnet.ipv4.conf.cni0.proxy_arp = 1\n")]
    heard = [("# ip neigh\n", "# ip neigh\n10.244.20.2 dev eth0 lladdr 0a:58:0a:f4:10:01 STALE\n")]
    for changes in ({"n10__pod1": route, "n10": switch}, {"n10__pod1": [*route, *heard]}):
        found = walked(changes, True)
        assert (found.verdict, found.first_divergence) == ("delivered", None)


def test_only_the_lease_knows_that_a_device_has_the_wrong_mac():
    """Without leases the device's own MAC is what is right, so that the rows of all others are stale."""
    other = {"n20": [("link/ether 0e:00:00:00:00:20", "link/ether 0e:00:00:00:00:77")]}
    with_leases, without = walked(other, True).first_divergence, walked(other, False).first_divergence
    assert with_leases is not None and without is not None
    assert (with_leases.node, with_leases.cause.id) == ("n20", "vtep-mac-wrong")
    assert (without.node, without.cause.id) == ("n10", "vtep-mac-stale")


def test_a_policy_rule_is_removed_with_all_its_words():
    rule = "100:	from 10.244.10.0/24 lookup 7\n"
    table = "$ ip route show table 7\nunreachable default\n"
    found = walked(
        {
            "n10": [
                ("32766:	from all lookup main\n", rule + "32766:	from all lookup main\n"),
                ("[root@n10 ~]# ip neigh", table + "[root@n10 ~]# ip neigh"),
            ]
        },
        True,
    )
    assert found.first_divergence is not None
    assert (found.first_divergence.cause.id, [fix.command for fix in found.first_divergence.fix]) == (
        "rule-diverts",
        ["ip rule del pref 100 from 10.244.10.0/24 lookup 7"],
    )


def test_rows_of_a_device_that_is_down_are_all_put_back():
    lost = {"n10": [(f"3: flannel.1: {UP}", "3: flannel.1: <BROADCAST,MULTICAST>"), (ROUTE20, ""), (NEIGH20, "")]}
    found = walked(lost, True)
    assert found.first_divergence is not None
    assert [fix.command for fix in found.first_divergence.fix] == ["ip link set flannel.1 up", PUT_NEIGH, PUT_ROUTE]
