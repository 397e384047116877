"""A walk from the seed's tables, written by hand: what the tests of rendering, captures and figures draw from."""

from __future__ import annotations

import msgspec

from tweed.addr import Prefix
from tweed.addr import parse_address as ip
from tweed.addr import parse_mac as mac
from tweed.trace.frames import Hop, Tunnel
from tweed.trace.result import Divergence, Finding, Fix, Loser, Quote, Said, Step, Walk
from tweed.trace.snapshot import AddressRow, DeviceRow, Node, RouteRow, Snapshot

GATEWAY, POD, VTEP, PEER = mac("0a:58:0a:f4:00:01"), mac("0a:58:0a:f4:00:02"), mac("ca:59:7d:c2:5e:0f"), mac("86:22:66:41:77:3d")
NIC, PEER_NIC, POD2, GATEWAY2 = mac("52:54:c0:a8:02:c8"), mac("52:54:c0:a8:02:ca"), mac("0a:58:0a:f4:02:02"), mac("0a:58:0a:f4:02:01")
TUNNEL = Tunnel(ip("192.168.2.202"), ip("192.168.2.200"), PEER_NIC, NIC, 1, 8472)
ROUTE = Quote("ip-route.txt:5", "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink ")
DEFAULT = Quote("ip-route.txt:2", "default via 192.168.2.1 dev ens33 proto static metric 100 ")
NEIGHBOUR = Quote("ip-neigh.txt:2", "10.244.2.0 lladdr 86:22:66:41:77:3d PERMANENT")
FDB = Quote("bridge-fdb.txt:13", "86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 self permanent")
STALE = Quote("bridge-fdb.txt:12", "ca:59:7d:c2:5e:0f dev flannel.1 dst 192.168.2.202 self permanent")
UNDERLAY = Quote("ip-route.txt:7", "192.168.2.0/24 dev ens33 proto kernel scope link src 192.168.2.200 metric 100 ")

SENT = (
    Step(
        "master/pod1",
        "eth0",
        Said("source-namespace", {"address": "10.244.0.2", "device": "eth0"}),
        hop=Hop("master/pod1", "eth0", "out", GATEWAY, POD, 64, 1450),
    ),
    Step("master", "cni0", Said("enters-bridge", {"bridge": "cni0", "port": "veth1"}), hop=Hop("master", "cni0", "in", GATEWAY, POD, 64)),
    Step(
        "master",
        "cni0",
        Said("route-via", {"dst": "10.244.2.0/24", "device": "flannel.1", "gateway": "10.244.2.0", "table": "main"}),
        ROUTE,
        (Loser(DEFAULT, Said("shorter-prefix", {"length": "0", "winner": "24"})),),
        (Said("default-rules"),),
        question=1,
    ),
    Step(
        "master",
        "flannel.1",
        Said("neighbour", {"address": "10.244.2.0", "device": "flannel.1", "mac": "86:22:66:41:77:3d", "state": "PERMANENT"}),
        NEIGHBOUR,
        question=2,
    ),
    Step(
        "master",
        "flannel.1",
        Said("fdb", {"mac": "86:22:66:41:77:3d", "device": "flannel.1", "host": "192.168.2.202"}),
        FDB,
        (Loser(STALE, Said("unused-mac", {"host": "192.168.2.202"})),),
        hop=Hop("master", "flannel.1", "out", PEER, VTEP, 63, 1450),
        question=3,
    ),
    Step("master", "ens33", Said("underlay-connected", {"host": "192.168.2.202", "device": "ens33", "table": "main"}), UNDERLAY, question=4),
)
LEAVES = Step(
    "master",
    "ens33",
    Said("leaves-vxlan", {"device": "ens33", "host": "192.168.2.202", "port": "8472"}),
    hop=Hop("master", "ens33", "out", PEER, VTEP, 63, 1500, TUNNEL),
)
RECEIVED = (
    Step(
        "node2",
        "ens33",
        Said("arrives-vxlan", {"device": "flannel.1", "port": "8472", "vni": "1"}),
        hop=Hop("node2", "ens33", "in", PEER, VTEP, 63, None, TUNNEL),
    ),
    Step("node2", "flannel.1", Said("decapsulated", {"device": "flannel.1", "mac": "86:22:66:41:77:3d"}), hop=Hop("node2", "flannel.1", "in", PEER, VTEP, 63)),
    Step(
        "node2",
        "cni0",
        Said("bridge-port", {"mac": "0a:58:0a:f4:02:02", "bridge": "cni0", "port": "veth9"}),
        hop=Hop("node2", "cni0", "out", POD2, GATEWAY2, 62, 1450),
    ),
    Step("node2/pod1", "eth0", Said("delivered-container", {"address": "10.244.2.2"}), hop=Hop("node2/pod1", "eth0", "in", POD2, GATEWAY2, 62)),
)
DELIVERED = Walk(ip("10.244.0.2"), ip("10.244.2.2"), "delivered", "tables", (*SENT, LEAVES, *RECEIVED), outcomes={"": "delivered"})

# The seed alone: the port is not in its tables and the peer's tables are not there.
UNKNOWN_PORT = Step(
    "master",
    "ens33",
    Said("leaves-vxlan-port-unknown", {"device": "ens33", "host": "192.168.2.202", "default": "8472"}),
    unknowns=(Said("port", {"device": "flannel.1", "default": "8472"}), Said("peer-tables", {"host": "192.168.2.202"})),
    hop=Hop("master", "ens33", "out", PEER, None, 63, None, Tunnel(TUNNEL.dst, TUNNEL.src)),
)
SEED = Walk(
    DELIVERED.src,
    DELIVERED.dst,
    "unknown",
    "text",
    (*SENT, UNKNOWN_PORT),
    findings=(Finding("master", Said("fdb-stale", {"mac": "ca:59:7d:c2:5e:0f", "device": "flannel.1", "host": "192.168.2.202"}), (STALE,)),),
    outcomes={"": "unknown"},
)

CAUSE = Said("vtep-mac-stale", {"mac": "86:22:66:41:77:3d", "right": "be:ef:00:00:00:01", "device": "flannel.1"})
DROPPED = msgspec.structs.replace(
    DELIVERED,
    verdict="dropped",
    steps=(*SENT, LEAVES, RECEIVED[0], Step("node2", "flannel.1", CAUSE, hop=RECEIVED[1].hop)),
    first_divergence=Divergence(
        "node2", "flannel.1", CAUSE, (NEIGHBOUR,), (Fix("master", "ip neigh replace 10.244.2.0 lladdr be:ef:00:00:00:01 dev flannel.1 nud permanent"),)
    ),
    outcomes={"": "dropped"},
)


def device(name: str, kind: str, address: bytes) -> DeviceRow:
    return DeviceRow(source="x:1", text="", name=name, kind=kind, mac=address, mtu=1450)


def at(name: str, prefix: str) -> AddressRow:
    return AddressRow(source="x:1", text="", device=name, address=Prefix.parse(prefix))


SNAPSHOT = Snapshot(
    nodes=(
        Node(
            name="master",
            devices=(device("cni0", "bridge", GATEWAY), device("flannel.1", "vxlan", VTEP), device("ens33", "", NIC)),
            addresses=(at("cni0", "10.244.0.1/24"), at("flannel.1", "10.244.0.0/32"), at("ens33", "192.168.2.200/24")),
        ),
        Node(name="master/pod1", devices=(device("eth0", "veth", POD),), addresses=(at("eth0", "10.244.0.2/24"),)),
        Node(
            name="node1",
            devices=(device("cni0", "bridge", GATEWAY), device("flannel.1", "vxlan", VTEP), device("ens33", "", NIC)),
            addresses=(at("cni0", "10.244.1.1/24"), at("flannel.1", "10.244.1.0/32"), at("ens33", "192.168.2.201/24")),
        ),
        Node(
            name="node2",
            devices=(device("cni0", "bridge", GATEWAY2), device("flannel.1", "vxlan", PEER), device("ens33", "", PEER_NIC)),
            addresses=(at("cni0", "10.244.2.1/24"), at("flannel.1", "10.244.2.0/32"), at("ens33", "192.168.2.202/24")),
        ),
        Node(name="node2/pod1", devices=(device("eth0", "veth", POD2),), addresses=(at("eth0", "10.244.2.2/24"),)),
    )
)
# What people paste: routes only, no addresses and no devices.
PASTED = Snapshot(
    nodes=(
        Node(
            name="master",
            routes=(
                RouteRow(source=UNDERLAY.source, text=UNDERLAY.text, dst=Prefix.parse("192.168.2.0/24"), src=ip("192.168.2.200")),
                RouteRow(source="ip-route.txt:3", text="", dst=Prefix.parse("10.244.0.0/24"), src=ip("10.244.0.1")),
            ),
        ),
    )
)
# Two ways there, and the answer.
PARTED = msgspec.structs.replace(
    DELIVERED,
    outcomes={"1": "delivered", "2": "delivered"},
    steps=tuple(msgspec.structs.replace(step, branch=branch) for branch in ("1", "2") for step in DELIVERED.steps),
    reply=msgspec.structs.replace(DELIVERED, src=DELIVERED.dst, dst=DELIVERED.src),
)
