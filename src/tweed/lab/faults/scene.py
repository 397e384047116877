"""The part of a lab that a fault needs to know: two nodes, a pod of each, and the rows of the kernel between them as they are now."""

from __future__ import annotations

import msgspec

from tweed.addr import Prefix, format_address, parse_address
from tweed.errors import TweedError, UsageError
from tweed.kernel import links, netns, sysctl, tables
from tweed.kernel.netlink import Netlink
from tweed.lab import registry
from tweed.lab.registry import Lab
from tweed.lab.registry import Node as Entry
from tweed.lab.topology import UNDERLAY_DEVICE
from tweed.lab.wiring import Place
from tweed.model import NUD_PERMANENT, KernelState, Link, Route

BRIDGE = "cni0"


class Pod(msgspec.Struct, frozen=True):
    """A pod as its node sees it: `veth` is the node's end of its cable. `mtu` and `routes` are those inside."""

    name: str
    address: bytes
    mtu: int
    routes: tuple[Route, ...]
    veth: str
    hairpin: bool


class Side(msgspec.Struct, frozen=True):
    """One node: its subnet and underlay address, its VTEP device, and the rows on that, on the underlay device and on the bridge.

    `rp_filter` is the VTEP device's own sysctl. `pod` None: the node has none.
    """

    node: str
    subnet: Prefix
    public: bytes
    vtep: Link
    rows: KernelState
    nic: str
    nic_mtu: int
    underlay: KernelState
    bridge: KernelState
    rp_filter: str
    pod: Pod | None

    @property
    def mac(self) -> bytes:
        return self.vtep.mac

    @property
    def gateway(self) -> bytes:
        """What peers' routes name: the VTEP's address, which is the subnet's base."""
        return self.subnet.address


class Scene(msgspec.Struct, frozen=True):
    """`here` is the node that a fault is put on, `peer` the one it keeps from talking to it; `others` are the rest."""

    family: int
    network: Prefix
    here: Side
    peer: Side
    others: tuple[Side, ...]

    @property
    def ip(self) -> str:
        return "ip" if self.family == 4 else "ip -6"


def scene(lab: Lab, node: str | None, family: int, network: Prefix, subnets: dict[str, Prefix], device: str) -> Scene:
    """`node` None: the first that has a pod. Its peer is the last other one with a pod. Raises TweedError for what is not there (any more)."""
    able = [each.name for each in lab.nodes if any(not pod.outside for pod in each.pods)]
    chosen = lab.node(node).name if node is not None else next(iter(able), None)
    peer = next((name for name in reversed(able) if name != chosen), None)
    if chosen is None or peer is None or chosen not in able:
        raise UsageError(f"lab {lab.name}: a fault shows between two nodes that have pods; pods are on {', '.join(able) or 'none'}")
    sides = {each.name: side(each, family, network, subnets[each.name], device) for each in lab.nodes}
    return Scene(family, network, sides.pop(chosen), sides.pop(peer), tuple(sides.values()))


def side(node: Entry, family: int, network: Prefix, subnet: Prefix, device: str) -> Side:
    """One node as it is now. Raises TweedError where it is broken already."""
    public = node.public_ip if family == 4 else node.public_ip6
    with Place(node.netns) as place:
        nl = place.nl
        vtep, nic = links.link(nl, device), links.link(nl, UNDERLAY_DEVICE)
        if vtep is None or vtep.vxlan is None or nic is None or public is None:
            raise TweedError(f"{node.name} has no VXLAN device {device} over {UNDERLAY_DEVICE}: heal the lab first (tweed lab heal)")
        rp_filter = netns.run_in(place.fd, lambda: sysctl.read(f"net.ipv4.conf.{device}.rp_filter"))
        return Side(
            node=node.name,
            subnet=subnet,
            public=parse_address(public),
            vtep=vtep,
            rows=KernelState(
                addresses=tuple(tables.addresses(nl, device, family)),
                routes=tuple(tables.routes(nl, family, device=device, inside=network)),
                neighbours=tuple(tables.neighbours(nl, device, family)),
                fdb=tuple(tables.fdb(nl, device)),
            ),
            nic=UNDERLAY_DEVICE,
            nic_mtu=nic.mtu,
            underlay=rows_of(nl, UNDERLAY_DEVICE, family),
            bridge=rows_of(nl, BRIDGE, family),
            rp_filter=rp_filter or "0",
            pod=next((pod_of(nl, node, entry, family) for entry in node.pods if not entry.outside), None),
        )


def rows_of(nl: Netlink, device: str, family: int) -> KernelState:
    """Addresses, routes and neighbours of a device, without what the kernel makes itself whenever the device comes up."""
    return KernelState(
        addresses=tuple(tables.addresses(nl, device, family)),
        routes=tuple(row for row in tables.routes(nl, family, device=device) if row.dst.address[:2] not in (b"\xfe\x80", b"\xff\x00")),
        neighbours=tuple(row for row in tables.neighbours(nl, device, family) if row.state & NUD_PERMANENT),
    )


def pod_of(nl: Netlink, node: Entry, entry: registry.Pod, family: int) -> Pod:
    address = next((parse_address(ip) for ip in entry.ips if (":" in ip) == (family == 6)), None)
    with Place(entry.netns) as inside:
        end = links.link(inside.nl, "eth0")
        veth = links.link(nl, end.lower) if end is not None else None
        if address is None or end is None or veth is None:
            raise TweedError(f"{node.name}/{entry.name} has no eth0 with an IPv{family} address: heal the lab first (tweed lab heal)")
        return Pod(entry.name, address, end.mtu, tuple(tables.routes(inside.nl, family, device="eth0")), veth.name, bool(veth.hairpin))


def missing(side: Side, what: str) -> TweedError:
    """For a row that a fault wants to change and that is not there."""
    return TweedError(f"{side.node} has no {what} now: heal the lab first (tweed lab heal)")


def route_to(side: Side, peer: Side) -> Route:
    for route in side.rows.routes:
        if route.dst == peer.subnet:
            return route
    raise missing(side, f"route to {peer.subnet}")


def default_gateway(side: Side) -> bytes:
    for route in side.underlay.routes:
        if route.dst.length == 0 and route.gateway is not None:
            return route.gateway
    raise missing(side, f"default route by {side.nic}")


def free_gateway(scene: Scene) -> bytes:
    """The base of a subnet that no node has, where a route that was left over may point."""
    taken = {side.subnet for side in (scene.here, scene.peer, *scene.others)}
    for subnet in scene.network.subnets(scene.here.subnet.length):
        if subnet not in taken:
            return subnet.address
    raise TweedError(f"every subnet of {scene.network} is a node's: no route can point to nobody")


def free_address(scene: Scene) -> bytes:
    """An address of the underlay that no node has."""
    taken = {default_gateway(scene.here), *(side.public for side in (scene.here, scene.peer, *scene.others))}
    for row in scene.here.underlay.addresses:
        if row.address.address == scene.here.public:
            return next(address for address in map(row.address.host, range(2, len(taken) + 3)) if address not in taken)
    raise missing(scene.here, f"underlay address {format_address(scene.here.public)}")
