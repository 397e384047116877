"""Leases to rows: what the kernel should hold, and which of the rows that it holds are ours to keep or remove.

Per remote lease and family through VXLAN, flannel's three rows: the fdb entry of the peer's VTEP, the neighbour entry of the peer's
subnet base address, and the onlink route of the peer's subnet. Without encapsulation one: the route of the peer's subnet via its host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tweed.addr import Prefix, format_address
from tweed.model import (
    METRIC_IPV6_DEFAULT,
    NUD_PERMANENT,
    PROTOCOL,
    PROTOCOL_BOOT,
    PROTOCOL_KERNEL,
    TABLE_MAIN,
    Change,
    Device,
    Endpoint,
    FdbEntry,
    InterfaceAddress,
    KernelState,
    Lease,
    Neighbour,
    Route,
    Row,
)

NOWHERE: Mapping[bytes, Reach] = {}


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


class Reach(msgspec.Struct, frozen=True):
    """Whether a peer's host is a neighbour on the underlay: then `device` is where it is, else None. `why` in words."""

    device: str | None
    why: str


def reach(host: bytes, row: Route | None, underlay: str) -> Reach:
    """`row`: the route that the kernel takes to `host`, None when it has none.

    Only a network that the underlay itself is in makes a neighbour: behind the default route, even one without a gateway, or on another
    device (a VPN, a bridge) nobody promises that frames for a peer's containers arrive.
    """
    name = format_address(host)
    if row is None:
        return Reach(None, f"there is no route to {name}")
    if row.gateway is not None:
        return Reach(None, f"{name} is behind the gateway {format_address(row.gateway)}")
    if row.device != underlay:
        return Reach(None, f"{name} is reached through {row.device or 'nothing'}, not through the underlay {underlay}")
    if row.dst.length == 0:
        return Reach(None, f"only the default route leads to {name}")
    return Reach(underlay, f"{name} is on-link on {underlay}")


def direct_route(endpoint: Endpoint, device: str) -> Route:
    """The route that makes `endpoint` reachable without encapsulation, through its host on `device`."""
    assert endpoint.public_ip is not None
    return Route(endpoint.subnet, device, endpoint.public_ip, metric(endpoint.subnet))


def endpoint_rows(endpoint: Endpoint, devices: Mapping[int, str], reaches: Mapping[bytes, Reach]) -> tuple[Row, ...]:
    """The rows of one peer. The tunnel's neighbour and fdb entry stay beside a direct route, so that a change of route, one atomic replace, is all."""
    tunnel, reached = devices.get(endpoint.subnet.family), reaches.get(endpoint.public_ip or b"")
    rows: tuple[Row, ...] = peer_rows(endpoint, tunnel) if tunnel is not None else ()
    if reached is not None and reached.device is not None:
        return (*rows[:2], direct_route(endpoint, reached.device))
    return rows


def lease_rows(leases: Iterable[Lease], devices: Mapping[int, str], reaches: Mapping[bytes, Reach] = NOWHERE) -> KernelState:
    """All rows for remote leases; `devices` maps a family (4, 6) to the VTEP device that serves it, `reaches` a peer's host to what is known of it."""
    routes: list[Route] = []
    neighbours: list[Neighbour] = []
    fdb: list[FdbEntry] = []
    for lease in leases:
        for endpoint in lease.endpoints:
            for row in endpoint_rows(endpoint, devices, reaches):
                match row:
                    case FdbEntry():
                        fdb.append(row)
                    case Neighbour():
                        neighbours.append(row)
                    case Route():
                        routes.append(row)
    return KernelState(routes=tuple(routes), neighbours=tuple(neighbours), fdb=tuple(fdb))


def device_address(device: Device) -> InterfaceAddress:
    """The device's own `/32` or `/128`; without duplicate address detection, which a tunnel could never finish in time."""
    return InterfaceAddress(device.name, device.address, nodad=device.family == 6)


class Found(msgspec.Struct, frozen=True):
    """A dump, divided: what is ours (by the rules below) and other people's routes inside the cluster networks."""

    ours: KernelState
    foreign: tuple[Route, ...]


def divide(have: KernelState, ours: Sequence[Device], networks: Sequence[Prefix], want: Iterable[Route] = ()) -> Found:
    """Which rows of a dump are ours to keep or remove.

    On our devices every row inside the cluster network is ours whatever its protocol or metric (a flannel's route
    has metric 0 and would win), except what the kernel made itself; neighbours and fdb entries by device and permanent
    state. On any other device only routes with our protocol number, and inside our own networks (another tweed may serve others),
    and those that a flannel wrote for what we `want`: its host-gw's and DirectRouting's.
    """
    devices = {device.name for device in ours}
    flannels = {(route.dst, route.gateway, route.device) for route in want}

    def inside(prefix: Prefix) -> bool:
        return any(network.contains(prefix) for network in networks)

    routes: list[Route] = []
    foreign: list[Route] = []
    for route in have.routes:
        if route.table != TABLE_MAIN or not inside(route.dst):
            continue
        theirs = route.protocol == PROTOCOL_BOOT and (route.dst, route.gateway, route.device) in flannels
        if theirs or route.protocol == PROTOCOL or (route.device in devices and route.protocol != PROTOCOL_KERNEL):
            routes.append(route)
        elif route.device not in devices:
            foreign.append(route)
    return Found(
        KernelState(
            addresses=tuple(a for a in have.addresses if a.device in devices and inside(a.address)),
            routes=tuple(routes),
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
