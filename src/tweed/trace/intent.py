"""What should be: which node has which subnet, behind which host and VTEP. From the leases, and where none covers it from the peers' own tables.

Intent(cluster).of(address) -> Peer     whose containers an address is one of
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from tweed.addr import Prefix
from tweed.trace.cluster import Cluster, connected, holds_containers
from tweed.trace.result import Quote
from tweed.trace.tables import Tables, quote
from tweed.trace.underlay import FLANNEL_PORT, LINK, attributes_of, device_row

FLANNEL_VNI = 1


class Peer(msgspec.Struct, frozen=True, gc=False):
    """A node as all others should know it. None: nobody says. `row`: what says so; `device`: its VTEP, where its tables are here."""

    subnet: Prefix
    node: str | None = None
    host: bytes | None = None
    mac: bytes | None = None
    backend: str = "vxlan"
    row: Quote | None = None
    device: str | None = None


class Intent:
    """Built once for a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.network = cluster.network
        self.peers: dict[Prefix, Peer] = {}
        for row in cluster.snapshot.leases:
            for endpoint in row.lease.endpoints:
                if endpoint.public_ip is not None and (endpoint.mac is not None or row.lease.backend != "vxlan"):
                    node = self.node_of(row.node, endpoint.public_ip)
                    device = vtep_of(cluster.tables[node], endpoint.subnet.family) if node is not None else None
                    self.peers[endpoint.subnet] = Peer(
                        endpoint.subnet, node or row.node, endpoint.public_ip, endpoint.mac, row.lease.backend, quote(row), device
                    )
        for tables in cluster.tables.values():
            if cluster.host_of(tables) is tables:
                for peer in self.of_tables(tables):
                    if not any(known.contains(peer.subnet) or peer.subnet.contains(known) for known in self.peers):
                        self.peers[peer.subnet] = peer
        self.lengths = sorted({(peer.family, peer.length) for peer in self.peers}, key=lambda each: -each[1])
        self.tweed_style = any(row.protocol == "83" for tables in cluster.tables.values() for row in tables.node.routes) or self.network is not None
        devices = [attributes_of(tables, name) for tables in cluster.tables.values() for name in tables.vxlans() if tables.node.host is None]
        told = self.network if self.network is not None and self.network.backend == "vxlan" else None
        self.port = told.port if told is not None else usual((each.port for each in devices), FLANNEL_PORT)
        self.vni = told.vni if told is not None else usual((each.vni for each in devices), FLANNEL_VNI)

    def node_of(self, name: str | None, host: bytes) -> str | None:
        """The node whose lease it is, of those whose tables are here."""
        if name is not None and name in self.cluster.tables:
            return name
        owner = self.cluster.owner(host)
        return self.cluster.host_of(owner.tables).name if owner is not None else None

    def of_tables(self, tables: Tables) -> Iterable[Peer]:
        """A node as its own tables show it: the subnet whose base is its VTEP's address."""
        for family in (4, 6):
            device = vtep_of(tables, family)
            if device is None:
                continue
            bases = {row.address.address for row in tables.node.addresses if row.device == device and row.address.family == family}
            rows = [row for row in connected(tables) if row.dst.address in bases and holds_containers(tables, row.hops[0].device or "")]
            elsewhere = [row for other in self.cluster.tables.values() for row in other.node.routes if row.dst.address in bases and not row.dst.is_host]
            for row in (rows or elsewhere)[:1]:
                yield Peer(row.dst, tables.name, attributes_of(tables, device).local, tables.mac(device), "vxlan", device_row(tables, device, LINK), device)

    def of(self, address: bytes) -> Peer | None:
        for family, length in self.lengths:
            if (family == 4) == (len(address) == 4) and (peer := self.peers.get(Prefix(address, length).network)) is not None:
                return peer
        return None

    def at(self, tables: Tables, family: int) -> Peer | None:
        """A node's own."""
        return next((peer for peer in self.peers.values() if peer.node == tables.name and peer.subnet.family == family), None)

    def others(self, tables: Tables, family: int) -> list[Peer]:
        """All that a node should know, with what is needed to make rows of them."""
        known = (peer for peer in self.peers.values() if peer.subnet.family == family and peer.node != tables.name)
        return [peer for peer in known if peer.host is not None and peer.mac is not None]

    def doubles(self, peer: Peer) -> list[Peer]:
        """Others of the family with the same MAC."""
        return [p for p in self.peers.values() if p.mac == peer.mac is not None and p.subnet != peer.subnet and p.subnet.family == peer.subnet.family]


def vtep_of(tables: Tables, family: int) -> str | None:
    """The VXLAN device that serves a family: by its name, else by the family that it sends over."""
    names = tables.vxlans()
    usual_name = "flannel." if family == 4 else "flannel-v6."
    named = [name for name in names if name.startswith(usual_name)]
    sending = [name for name in names if (local := attributes_of(tables, name).local) is not None and (len(local) == 4) == (family == 4)]
    return next(iter(named or sending), None)


def usual(values: Iterable[int | None], default: int) -> int | None:
    """What most have; of equally many the default. None when nobody says."""
    counts = Counter(value for value in values if value is not None).most_common()
    best = [value for value, count in counts if count == counts[0][1]]
    return None if not best else best[0] if len(best) == 1 else default if default in best else None
