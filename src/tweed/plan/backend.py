"""Backend.Type: what each way of carrying the overlay wants of this node's kernel.

            devices                   per peer                                     MTU
vxlan       a VTEP per family         fdb, neighbour, route into the tunnel        the underlay's less 50 or 70
  DirectRouting                       the same; on-link the route goes to the host the same: it has to fit the tunnel
host-gw     none                      on-link the route to the host, else nothing  the underlay's
udp         the TUN flannel0, IPv4    nothing: one route for the whole network     the underlay's less 28
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tweed.addr import Prefix
from tweed.errors import UsageError
from tweed.model import Device, Endpoint, KernelState, Lease, Route, Tun, Vtep
from tweed.plan.device import wanted_tun, wanted_vteps
from tweed.plan.rows import Reach, device_address
from tweed.plan.screen import Problem
from tweed.plan.underlay import Underlay
from tweed.wire.flannel import Network

SUPPORTED = ("vxlan", "host-gw", "udp")
SCOPE_LINK = 253


class Backend(msgspec.Struct, frozen=True):
    """All that follows from configuration, own lease and underlay, whatever peers there are.

    `direct`: peers that are neighbours on the underlay get a route to their host. `mtu`: what a container's interface gets, in bytes.
    """

    kind: str = ""
    underlay: str = ""
    families: tuple[int, ...] = ()
    devices: tuple[Device, ...] = ()
    network: Prefix | None = None
    direct: bool = False
    mtu: int = 0

    @property
    def tunnels(self) -> dict[int, str]:
        """The VTEP device of each family."""
        return {device.family: device.name for device in self.devices if isinstance(device, Vtep)}

    @property
    def carriers(self) -> dict[int, tuple[str, ...]]:
        """The devices by which the overlay's packets leave and enter this node, by family."""
        own = {family: tuple(d.name for d in self.devices if d.family == family) for family in self.families}
        return {family: names for family, those in own.items() if (names := those + ((self.underlay,) if self.direct else ()))}

    @property
    def rows(self) -> KernelState:
        """The rows of our devices themselves."""
        routes = [Route(self.network, device.name, scope=SCOPE_LINK) for device in self.devices if isinstance(device, Tun) and self.network is not None]
        return KernelState(addresses=tuple(map(device_address, self.devices)), routes=tuple(routes))


def refused(backend: Backend, peers: Mapping[str, Lease], reaches: Mapping[bytes, Reach]) -> list[Problem]:
    """The peers that host-gw cannot reach, with the reason. With a tunnel there is always a way."""
    if backend.kind != "host-gw":
        return []
    return [
        Problem(
            "not-on-link",
            key,
            f"{endpoint.subnet} has no route: {found.why}; host-gw needs all nodes in one network: use vxlan",
        )
        for key, lease in peers.items()
        for endpoint in lease.endpoints
        if (found := reaches.get(endpoint.public_ip or b"")) is not None and found.device is None
    ]


def way(backend: Backend, endpoint: Endpoint, reaches: Mapping[bytes, Reach]) -> str:
    """How packets get to a peer, and why so: for people."""
    if backend.kind == "udp":
        return "udp: in datagrams, by a process"
    found = reaches.get(endpoint.public_ip or b"")
    if found is None:
        return "tunnel because DirectRouting is off" if backend.tunnels else "not looked at yet"
    word = "direct" if found.device is not None else "tunnel" if backend.tunnels else "refused"
    return f"{word} because {found.why}"


def check_supported(network: Network) -> None:
    """Raises UsageError for a backend that this version does not run, and for one that cannot do what is asked."""
    if network.backend not in SUPPORTED:
        raise UsageError(f"network configuration: Backend.Type {network.backend!r}: this version of tweed runs {', '.join(SUPPORTED)}")
    if network.backend == "udp" and network.enable_ipv6:
        raise UsageError("network configuration: EnableIPv6 with Backend.Type udp, which carries IPv4 only: use vxlan or host-gw")


def backend(network: Network, lease: Lease, underlay: Underlay) -> Backend:
    """What the configuration makes of this node."""
    families = tuple(endpoint.subnet.family for endpoint in lease.endpoints)
    devices: tuple[Device, ...] = ()
    match network.backend:
        case "vxlan":
            devices = wanted_vteps(network, lease, underlay)
        case "udp":
            devices = wanted_tun(network, lease, underlay)
    direct = network.backend == "host-gw" or network.direct_routing
    mtu = min((device.mtu for device in devices), default=underlay.mtu if network.backend == "host-gw" else 0)
    return Backend(network.backend, underlay.device, families, devices, network.network, direct, mtu)
