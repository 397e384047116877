"""The walk where nodes are joined by host-gw or the UDP mode, and over IPv6."""

from __future__ import annotations

import msgspec
from tests.unit.tables import cluster, healthy, udp_mode
from tests.unit.walking import decisions, walked

from tweed.addr import Prefix
from tweed.addr import parse_address as ip
from tweed.model import Endpoint, Lease
from tweed.trace import snapshot as s
from tweed.trace.result import Said


def test_host_gw():
    texts = healthy()
    for name, text in texts.items():
        for n in ("10", "20", "30"):
            text = text.replace(f"via 10.244.{n}.0 dev flannel.1 onlink", f"via 192.168.2.{n} dev ens33")
        texts[name] = text.replace("ens33.rp_filter = 1", "ens33.rp_filter = 0")
    found = walked(cluster(**texts), "10.244.10.2", "10.244.20.2")
    assert found.verdict == "delivered"
    assert [entry for entry in decisions(found) if entry[2] in ("leaves-plain", "arrives-plain")] == [
        ("n10", "ens33", "leaves-plain"),
        ("n20", "ens33", "arrives-plain"),
    ]


def test_udp_mode_without_its_process():
    """Its TUN device loses the carrier where packets go in, and nobody has the port where they would come out."""
    texts = udp_mode()
    found = []
    for node, right, wrong in (
        ("n10", "NOARP,UP,LOWER_UP", "NO-CARRIER,NOARP,UP"),
        ("n20", "0.0.0.0:8285", "0.0.0.0:8286"),
        ("n20", "0.0.0.0:8285", "192.168.2.99:8285"),
    ):
        made = walked(cluster(**(texts | {node: texts[node].replace(right, wrong)})), "10.244.10.2", "10.244.20.2")
        at = made.first_divergence
        found.append((made.verdict, at and (at.node, at.device, at.cause.id)))
    assert found == [
        ("dropped", ("n10", "flannel0", "process-missing")),
        ("dropped", ("n20", "ens33", "port-closed")),
        ("dropped", ("n20", "ens33", "port-closed")),
    ]


def test_the_port_of_udp_mode_is_the_stores():
    config = '{"Network": "10.244.0.0/16", "Backend": {"Type": "udp", "Port": 7777}}'
    texts = {name: text.replace(":8285", ":7777") for name, text in udp_mode().items()}
    found = walked(msgspec.structs.replace(cluster(**texts), config=config), "10.244.10.2", "10.244.20.2")
    assert found.verdict == "delivered"
    assert [step.decision.params["port"] for step in found.steps if step.decision.id in ("encapsulated-udp", "arrives-udp")] == ["7777", "7777"]
    taken = next(step for step in found.steps if step.decision.id == "arrives-udp")
    assert taken.row is not None and "0.0.0.0:7777" in taken.row.text


def test_udp_mode_needs_leases_or_the_other_nodes_tables():
    texts = udp_mode()
    snapshot = cluster(**texts)
    found = walked(snapshot, "10.244.10.2", "10.244.20.2")
    assert (found.verdict, [said.id for step in found.steps for said in step.assumptions if said.id.startswith("udp")]) == (
        "delivered",
        ["udp-remote-from-tables"],
    )
    assert [entry for entry in decisions(found) if "udp" in entry[2]] == [
        ("n10", "flannel0", "encapsulated-udp"),
        ("n20", "ens33", "arrives-udp"),
        ("n20", "flannel0", "decapsulated-udp"),
    ]
    lease = s.LeaseRow(source="bundle", text="10.244.99.0-24", lease=Lease(v4=Endpoint(Prefix(ip("10.244.99.0"), 24), ip("192.168.2.20")), backend="udp"))
    leased = walked(msgspec.structs.replace(snapshot, leases=(lease,)), "10.244.10.2", "10.244.99.7")
    assert any(step.decision.id == "encapsulated-udp" and step.decision.params["host"] == "192.168.2.20" for step in leased.steps)
    alone = walked(cluster(n10=texts["n10"]), "10.244.10.2", "10.244.20.2")
    assert (alone.verdict, decisions(alone)[-1][2]) == ("unknown", "ends-remote-unknown")


V6 = """\
# ip -d addr
2: ens33: <BROADCAST,UP,LOWER_UP> mtu 1500 qdisc fq
    link/ether 52:54:00:00:00:0{n} brd ff:ff:ff:ff:ff:ff promiscuity 0
    inet6 fd00:2::{n}/64 scope global
3: flannel-v6.1: <BROADCAST,UP,LOWER_UP> mtu 1430 qdisc noqueue
    link/ether 0e:00:00:00:00:0{n} brd ff:ff:ff:ff:ff:ff promiscuity 0
    vxlan id 1 local fd00:2::{n} dev ens33 srcport 0 0 dstport 8472 nolearning
    inet6 fd00:10:{n}::/128 scope global
5: cni0: <BROADCAST,UP,LOWER_UP> mtu 1430 qdisc noqueue
    link/ether 0a:58:00:00:00:0{n} brd ff:ff:ff:ff:ff:ff promiscuity 0
    bridge forward_delay 1500
    inet6 fd00:10:{n}::1/64 scope global
# ip -6 route
fd00:10:{n}::/64 dev cni0 proto kernel metric 256 pref medium
fd00:10:{o}::/64 via fd00:10:{o}:: dev flannel-v6.1 proto 83 metric 1024 onlink pref medium
fd00:2::/64 dev ens33 proto kernel metric 256 pref medium
# ip neigh
fd00:10:{o}:: dev flannel-v6.1 lladdr 0e:00:00:00:00:0{o} PERMANENT
fd00:10:{n}::9 dev cni0 lladdr 0a:58:00:00:09:0{n} REACHABLE
# bridge fdb
0e:00:00:00:00:0{o} dev flannel-v6.1 dst fd00:2::{o} self permanent
0a:58:00:00:09:0{n} dev veth9 master cni0
"""


def test_ipv6():
    found = walked(cluster(a=V6.format(n=1, o=2), b=V6.format(n=2, o=1)), "fd00:10:1::9", "fd00:10:2::9")
    assert (found.verdict, decisions(found)[-1]) == ("delivered", ("b", "veth9", "into-container"))
    too_large = walked(cluster(a=V6.format(n=1, o=2), b=V6.format(n=2, o=1)), "fd00:10:1::9", "fd00:10:2::9", size=1431)
    assert too_large.first_divergence.cause == Said("mtu-exceeded", {"size": "1431", "mtu": "1430", "device": "flannel-v6.1"})


def test_a_subnet_router_anycast_address_is_the_nodes():
    anycast = (
        "anycast fd00:10:1:: dev cni0 table local proto kernel metric 0 pref medium\nlocal fd00:10:1:: dev flannel-v6.1 table local proto kernel metric 0\n"
    )
    text = V6.format(n=1, o=2).replace("# ip -6 route\n", f"# ip -6 route show table all\n{anycast}")
    found = walked(cluster(a=text), "fd00:10:1::9", "fd00:10:1::")
    assert (found.verdict, decisions(found)[-2][2]) == ("delivered", "route-local")
