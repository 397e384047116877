"""Leases to rows: what the kernel should hold, and which of the rows that it holds are ours to keep or remove.

Per remote lease and family, flannel's three rows: the fdb entry of the peer's VTEP, the neighbour entry of the peer's
subnet base address, and the onlink route of the peer's subnet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tweed.addr import Prefix
from tweed.model import (
    METRIC_IPV6_DEFAULT,
    NUD_PERMANENT,
    PROTOCOL,
    PROTOCOL_KERNEL,
    TABLE_MAIN,
    Change,
    Endpoint,
    FdbEntry,
    InterfaceAddress,
    KernelState,
    Lease,
    Neighbour,
    Route,
    Vtep,
)


def metric(subnet: Prefix) -> int:
    """The metric of the route to `subnet`.

    IPv4: 1 + its number modulo 1024. `fib_create_info` hashes on everything but the gateway, so onlink routes of one device
    and one metric share a chain and the kernel's time is quadratic; 1024 metrics make 1024 chains (measured: 43 times
    faster at 10,000 routes). A pure function of the subnet, since REPLACE matches prefix *and* metric. IPv6 has no such chain.
    """
    return 1 + (subnet.number & 1023) if subnet.family == 4 else METRIC_IPV6_DEFAULT


def peer_rows(endpoint: Endpoint, device: str) -> tuple[FdbEntry, Neighbour, Route]:
    """The three rows that make `endpoint` reachable through the VTEP `device`. It must have a MAC and a public address."""
    assert endpoint.mac is not None and endpoint.public_ip is not None
    subnet = endpoint.subnet
    return (
        FdbEntry(endpoint.mac, device, endpoint.public_ip),
        Neighbour(subnet.address, device, endpoint.mac),
        Route(subnet, device, subnet.address, metric(subnet), onlink=True),
    )


def lease_rows(leases: Iterable[Lease], devices: Mapping[int, str]) -> KernelState:
    """All rows for remote leases; `devices` maps a family (4, 6) to the VTEP device that serves it."""
    routes: list[Route] = []
    neighbours: list[Neighbour] = []
    fdb: list[FdbEntry] = []
    for lease in leases:
        for endpoint in lease.endpoints:
            device = devices.get(endpoint.subnet.family)
            if device is not None:
                entry, neighbour, route = peer_rows(endpoint, device)
                fdb.append(entry)
                neighbours.append(neighbour)
                routes.append(route)
    return KernelState(routes=tuple(routes), neighbours=tuple(neighbours), fdb=tuple(fdb))


def vtep_address(vtep: Vtep) -> InterfaceAddress:
    """The device's own `/32` or `/128`; without duplicate address detection, which a tunnel could never finish in time."""
    return InterfaceAddress(vtep.name, vtep.address, nodad=vtep.family == 6)


class Found(msgspec.Struct, frozen=True):
    """A dump, divided: what is ours (by the rules below) and other people's routes inside the cluster networks."""

    ours: KernelState
    foreign: tuple[Route, ...]


def divide(have: KernelState, vteps: Sequence[Vtep], networks: Sequence[Prefix]) -> Found:
    """Which rows of a dump are ours to keep or remove.

    On our VTEP devices every row inside the cluster network is ours whatever its protocol or metric (a flannel's route
    has metric 0 and would win), except what the kernel made itself; neighbours and fdb entries by device and permanent
    state. On any other device only routes with our protocol number, and inside our own networks (another tweed may serve others).
    """
    devices = {vtep.name for vtep in vteps}

    def inside(prefix: Prefix) -> bool:
        return any(network.contains(prefix) for network in networks)

    ours: list[Route] = []
    foreign: list[Route] = []
    for route in have.routes:
        if route.table != TABLE_MAIN or not inside(route.dst):
            continue
        if route.protocol == PROTOCOL or (route.device in devices and route.protocol != PROTOCOL_KERNEL):
            ours.append(route)
        elif route.device not in devices:
            foreign.append(route)
    return Found(
        KernelState(
            addresses=tuple(a for a in have.addresses if a.device in devices and inside(a.address)),
            routes=tuple(ours),
            neighbours=tuple(n for n in have.neighbours if n.device in devices and n.state == NUD_PERMANENT),
            fdb=tuple(f for f in have.fdb if f.device in devices and f.permanent and not f.master),
        ),
        tuple(foreign),
    )


class Shadow(msgspec.Struct, frozen=True):
    """Somebody else's route that takes traffic away from a peer's subnet."""

    subnet: Prefix
    row: Route

    def __str__(self) -> str:
        return f"traffic for {self.subnet} takes the foreign route `{self.row}` instead of the overlay; remove it with: {Change('delete', self.row)}"


def shadows(foreign: Iterable[Route], want: Iterable[Route]) -> list[Shadow]:
    """Foreign rows that beat ours: more specific than a peer's subnet, or equal to it with a metric not higher than ours."""
    peers = {route.dst: route for route in want}
    lengths = sorted({dst.length for dst in peers}, reverse=True)
    found = []
    for row in foreign:
        for length in lengths:
            if length > row.dst.length:
                continue
            ours = peers.get(Prefix(row.dst.address, length).network)
            if ours is not None and (row.dst.length > length or row.metric <= ours.metric):
                found.append(Shadow(ours.dst, row))
                break
    return found
