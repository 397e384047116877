"""Predicted walks per second over tables of N leases, against the same walks over tables of ten.

    PYTHONPATH=src:. .venv/bin/python bench/walks.py [N] [ROUNDS]

Two nodes with the rows of all N leases, a container on each. Walks there (to the other node's container, through both nodes' tables) and away
(to subnets of nodes whose tables are not here), each a new walk. Medians of interleaved rounds, wall and CPU seconds; also how long it takes to
index the tables and to hold one walk against the leases.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from bench.common import HOSTS, NETWORKS, Sample, lease, spread, timed
from tweed.addr import Prefix, format_address, format_mac
from tweed.model import Endpoint
from tweed.trace import snapshot as s
from tweed.trace.cluster import Cluster
from tweed.trace.frames import Probe
from tweed.trace.intent import Intent
from tweed.trace.trip import trip
from tweed.trace.walk import walk

SHOWN = tuple(s.Shown(table=table, command="bench") for table in ("link", "address", "neighbour", "fdb", "rule"))
SHOWN += (s.Shown(table="route", family=4, route_table="all", command="bench"),)
NIC_MAC = bytes.fromhex("525400000001")


def endpoint(number: int) -> Endpoint:
    found = lease(number).v4
    assert found is not None
    return found


def device(name: str, kind: str, mac: bytes, **more: object) -> s.DeviceRow:
    return s.DeviceRow(source="bench:1", text=name, name=name, kind=kind, mac=mac, mtu=1450 if kind else 1500, up=True, running=True, **more)  # type: ignore[arg-type]


def node(number: int, count: int) -> s.Node:
    """The tables of the node with lease `number`."""
    own = endpoint(number)
    assert own.public_ip is not None and own.mac is not None
    at = {"source": "bench:1", "text": "row"}
    peers = [endpoint(other) for other in range(count) if other != number]
    vxlan = s.VxlanAttributes(vni=1, port=8472, local=own.public_ip, underlay="eth0", learning=False)
    gateway = own.subnet.host(1)
    return s.Node(
        name=f"n{number}",
        devices=(
            device("eth0", "", NIC_MAC),
            device("flannel.1", "vxlan", own.mac, vxlan=vxlan),
            device("cni0", "bridge", b"\x0a\x58" + gateway),
        ),
        addresses=(
            s.AddressRow(**at, device="eth0", address=Prefix(own.public_ip, HOSTS[4].length)),
            s.AddressRow(**at, device="flannel.1", address=Prefix(own.subnet.address, 32)),
            s.AddressRow(**at, device="cni0", address=Prefix(gateway, own.subnet.length)),
        ),
        routes=(
            s.RouteRow(**at, dst=own.subnet, hops=(s.NextHop(device="cni0"),), scope="link", protocol="kernel", src=gateway),
            s.RouteRow(**at, dst=HOSTS[4], hops=(s.NextHop(device="eth0"),), scope="link", protocol="kernel", src=own.public_ip),
            *(s.RouteRow(**at, dst=p.subnet, hops=(s.NextHop(device="flannel.1", gateway=p.subnet.address, flags=("onlink",)),)) for p in peers),
        ),
        neighbours=(
            s.NeighbourRow(**at, address=own.subnet.host(2), device="cni0", mac=b"\x0a\x58" + own.subnet.host(2), state="REACHABLE"),
            *(s.NeighbourRow(**at, address=p.subnet.address, device="flannel.1", mac=p.mac, state="PERMANENT") for p in peers),
        ),
        fdb=(
            s.FdbRow(**at, mac=b"\x0a\x58" + own.subnet.host(2), device="veth1", master="cni0"),
            *(s.FdbRow(**at, mac=p.mac, device="flannel.1", dst=p.public_ip, own=True, state="permanent") for p in peers if p.mac is not None),
        ),
        shown=SHOWN,
    )


def snapshot(count: int) -> s.Snapshot:
    leases = tuple(s.LeaseRow(source="lease", text="lease", lease=lease(number), node=f"n{number}") for number in range(count))
    return s.Snapshot(nodes=(node(0, count), node(1, count)), leases=leases)


def probes(count: int, number: int, *, away: bool) -> list[Probe]:
    src = endpoint(0).subnet.host(2)
    return [Probe(src, endpoint(2 + n * 7919 % (count - 2) if away else 1).subnet.host(2)) for n in range(number)]


def main(count: int, rounds: int) -> None:
    each = 500
    clusters: dict[int, Cluster] = {}
    for size in (count, 10):
        made = snapshot(size)
        built: list[Cluster] = []
        sample = timed(lambda made=made, built=built: built.append(Cluster(made)))  # type: ignore[misc]
        clusters[size] = built[0]
        print(f"index the tables of two nodes, {size} leases: {sample.wall * 1000:.0f} ms, CPU {sample.cpu * 1000:.0f} ms")
    intents = {size: Intent(cluster) for size, cluster in clusters.items()}
    works: dict[tuple[str, int], Callable[[], object]] = {}
    for size, cluster in clusters.items():
        there, away = probes(size, each, away=False), probes(size, each, away=True)
        works["there", size] = lambda cluster=cluster, those=there: [walk(cluster, probe) for probe in those]  # type: ignore[misc]
        works["away", size] = lambda cluster=cluster, those=away: [walk(cluster, probe) for probe in those]  # type: ignore[misc]
        works["there, back and full size, with leases", size] = lambda cluster=cluster, size=size, those=there: [  # type: ignore[misc]
            trip(cluster, intents[size], probe) for probe in those
        ]
    assert walk(clusters[count], probes(count, 1, away=False)[0]).verdict == "delivered"
    samples: dict[tuple[str, int], list[Sample]] = {key: [] for key in works}
    for _ in range(rounds):
        for key, work in works.items():
            samples[key].append(timed(work))
    for name in dict.fromkeys(name for name, _ in works):
        for size in (count, 10):
            found = samples[name, size]
            wall, cpu = (spread([each / getattr(one, which) for one in found], digits=0) for which in ("wall", "cpu"))
            print(f"{name}, {size} leases: {wall} walks/s, {cpu} per CPU second")
        ratio = [one.cpu / few.cpu for one, few in zip(samples[name, count], samples[name, 10], strict=True)]
        print(f"  CPU time of {count} leases over that of 10: {spread(ratio, digits=2)}")


if __name__ == "__main__":
    print(f"network {NETWORKS[4]}, a walk such as {format_address(endpoint(0).subnet.host(2))} to VTEP {format_mac(endpoint(1).mac or bytes(6))}")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
