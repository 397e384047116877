"""All nodes of a snapshot together: who has an address, and where a walk can start."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tweed.addr import Prefix
from tweed.errors import TweedError
from tweed.trace import snapshot as s
from tweed.trace.tables import Tables
from tweed.wire.flannel import Network, parse_network


class Owner(msgspec.Struct, frozen=True, gc=False):
    """A namespace that has an address, on which device, and the row that says so."""

    tables: Tables
    device: str
    row: s.RouteRow


class Behind(msgspec.Struct, frozen=True, gc=False):
    """A node that reaches an address directly on a device, and the route that says so."""

    tables: Tables
    device: str
    row: s.RouteRow


class Cluster:
    """Built once for a snapshot; many walks are asked of it."""

    def __init__(self, snapshot: s.Snapshot) -> None:
        self.snapshot = snapshot
        self.network = network_of(snapshot.config)
        self.tables = {node.name: Tables(node) for node in snapshot.nodes}
        self.owners: dict[bytes, list[Owner]] = {}
        self.vteps: dict[bytes, list[tuple[Tables, str]]] = {}  # by MAC
        for tables in self.tables.values():
            for address, row in tables.own.items():
                self.owners.setdefault(address, []).append(Owner(tables, row.hops[0].device or "" if row.hops else "", row))
            for device in tables.vxlans():
                if (mac := tables.mac(device)) is not None:
                    self.vteps.setdefault(mac, []).append((tables, device))
        self.leased = {endpoint.subnet for each in snapshot.leases for endpoint in each.lease.endpoints}
        self.lease_lengths = {(subnet.family, subnet.length) for subnet in self.leased}
        self.shared: dict[Prefix, int] = {}
        self.connected = {name: tuple(connected(tables)) for name, tables in self.tables.items() if self.host_of(tables) is tables}
        for rows in self.connected.values():
            for row in rows:
                self.shared[row.dst] = self.shared.get(row.dst, 0) + 1

    def host_of(self, tables: Tables) -> Tables:
        """The node that a container's namespace is on; a node itself, and a namespace whose node has no tables here, is its own."""
        host = tables.node.host
        return self.tables.get(host, tables) if host is not None else tables

    def owner(self, address: bytes, mac: bytes | None = None) -> Owner | None:
        """Who has an address. Of several (which only a mistake makes) the one with that MAC, else the first."""
        found = self.owners.get(address, ())
        return next((each for each in found if mac is not None and each.tables.mac(each.device) == mac), next(iter(found), None))

    def behind(self, address: bytes) -> Behind | None:
        """The node with the longest directly connected prefix around an address, on a device that is its alone.

        A network that several nodes are on is the underlay: what is there is behind none of them.
        """
        best: Behind | None = None
        for name, rows in self.connected.items():
            tables = self.tables[name]
            for row in rows:
                if row.dst.contains(address) and (best is None or row.dst.length > best.row.dst.length):
                    best = Behind(tables, row.hops[0].device or "", row)
        if best is None or self.shared.get(best.row.dst, 0) > 1 or not holds_containers(best.tables, best.device):
            return None
        return best

    def container(self, address: bytes) -> bool:
        """Whether an address is meant for one container, and not for somebody who passes on what comes (a node, a service)."""
        owner, family = self.owner(address), 4 if len(address) == 4 else 6
        if owner is not None:
            return owner.tables.node.host is not None
        leased = any(of == family and Prefix(address, length).network in self.leased for of, length in self.lease_lengths)
        return leased or self.behind(address) is not None

    def known(self, address: bytes) -> bool:
        """Whether any row but a default route speaks of an address."""
        family = 4 if len(address) == 4 else 6
        if address in self.owners or any(of == family and Prefix(address, length).network in self.leased for of, length in self.lease_lengths):
            return True
        for tables in self.tables.values():
            if address in tables.neighbours:
                return True
            for (of, _), fib in tables.fibs.items():
                if of == family and any(row.dst.length for row in fib.matches(int.from_bytes(address, "big"))):
                    return True
        return False

    def leads_out(self, address: bytes) -> bool:
        """Whether a default route takes it, so that a walk to it can at least leave."""
        family = 4 if len(address) == 4 else 6
        return any(key[0] == family and next(fib.matches(int.from_bytes(address, "big")), None) for t in self.tables.values() for key, fib in t.fibs.items())


def network_of(config: str | None) -> Network | None:
    """The configuration in the store; None where there is none, or none that can be read."""
    try:
        return parse_network(config) if config is not None else None
    except TweedError:
        return None


def connected(tables: Tables) -> Iterator[s.RouteRow]:
    """Routes to networks that a device is on: no gateway, and more than one address."""
    for row in tables.node.routes:
        if row.type == "unicast" and row.hops and row.hops[0].gateway is None and row.hops[0].device and 0 < row.dst.length < row.dst.bits:
            yield row


def holds_containers(tables: Tables, device: str) -> bool:
    """Whether what is on a device lives on this node: a bridge, or a device (a veth, or one of which nothing tells the kind) with no gateway on it."""
    kind = tables.kind(device)[0]
    if kind in (None, "veth"):
        return not any(hop.device == device and hop.gateway is not None for row in tables.node.routes for hop in row.hops)
    return kind == "bridge"
