"""The machines of a lab: namespaces and the links between them. What the agents do later is none of its business.

    L-N          a node: ens33 on the underlay, default route to world
    L-underlay   a bridge, with one port per node
    L-world      the underlay's gateway and the world behind it: addresses to reach, and no way out
    L-N-P        a pod: nothing but its loopback, until an agent attaches it

All underlay neighbours are PERMANENT: dynamic ones of every namespace share one limit (net.ipv4.neigh.default.gc_thresh3).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from tweed.addr import Prefix
from tweed.errors import KernelError, TweedError
from tweed.kernel import links, netns, sysctl, tables
from tweed.kernel.netlink import Netlink
from tweed.lab.topology import UNDERLAY_DEVICE, UNDERLAY_MTU, WORLD_ADDRESS, WORLD_ADDRESS6, Node, Outside, Topology, underlay_mac
from tweed.model import PROTOCOL_BOOT, PROTOCOL_KERNEL, Change, InterfaceAddress, Neighbour, Route

PROTOCOL_STATIC = 4
SCOPE_LINK = 253
METRIC = 100  # as NetworkManager gives it to the routes of an Ethernet device, seen in the seed's tables
SWITCH = "switch"
WORLD = "world"
EVERYWHERE, EVERYWHERE6 = Prefix(bytes(4), 0), Prefix(bytes(16), 0)


def namespaces(lab: str, topology: Topology) -> list[str]:
    """The names of all namespaces that the lab consists of."""
    names = [f"{lab}-underlay", f"{lab}-{WORLD}"]
    for node in topology.nodes:
        names.append(f"{lab}-{node.name}")
        names += [f"{lab}-{node.name}-{pod}" for pod in containers(node)]
    return names


def containers(node: Node) -> tuple[str, ...]:
    return (*node.pods, node.outside.container) if node.outside is not None else node.pods


def inode(name: str) -> int:
    """The inode of a named namespace, 0 when there is none of that name."""
    try:
        descriptor = netns.open_netns(name)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return 0
        raise
    try:
        return netns.inode(descriptor)
    finally:
        os.close(descriptor)


def wire(lab: str, topology: Topology) -> None:
    """Connect the namespaces, which exist and are empty."""
    with Place(f"{lab}-underlay") as underlay:
        underlay.loopback()
        links.create_bridge(underlay.nl, SWITCH, mac=underlay_mac(bytes(4)), mtu=UNDERLAY_MTU)
        links.set_link(underlay.nl, SWITCH, addrgenmode="none", up=True)
        with Place(f"{lab}-{WORLD}") as world:
            world.loopback()
            wire_world(underlay, world, topology)
        for node in topology.nodes:
            with Place(f"{lab}-{node.name}") as place:
                place.loopback()
                # A new namespace takes IPv4's forwarding from the first one; here it is for the agent to turn on.
                netns.run_in(place.fd, lambda: sysctl.write("net.ipv4.ip_forward", 0))
                wire_node(underlay, place, node, topology)
                if node.outside is not None:
                    with Place(f"{lab}-{node.name}-{node.outside.container}") as container:
                        container.loopback()
                        wire_outside(place, container, node.outside)


class Place:
    """A namespace to work in, for a `with`."""

    def __init__(self, name: str) -> None:
        self.fd = netns.open_netns(name)
        self.nl = Netlink(netns=self.fd)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.nl.close()
        os.close(self.fd)

    def loopback(self) -> None:
        links.set_link(self.nl, "lo", up=True)

    def put(self, rows: Iterable[InterfaceAddress | Route | Neighbour]) -> None:
        """All rows in one batch. Raises KernelError for the first that the kernel refuses."""
        for failure in tables.apply(self.nl, tuple(Change("replace", row) for row in rows)):
            raise KernelError(str(failure.change), failure.errno, failure.text)


def plug(underlay: Place, port: str, machine: Place, device: str, mac: bytes, master: str | None) -> None:
    """A cable from a port of the switch to a machine's device, both ends up. Addresses are ours alone, none the kernel's own."""
    links.create_veth(underlay.nl, port, device, mtu=UNDERLAY_MTU, peer_mac=mac, peer_netns=machine.fd)
    links.set_link(underlay.nl, port, addrgenmode="none", master=master, up=True)
    links.set_link(machine.nl, device, addrgenmode="none", up=True)


def wire_world(underlay: Place, world: Place, topology: Topology) -> None:
    plug(underlay, WORLD, world, "eth0", underlay_mac(topology.gateway), SWITCH)
    netns.run_in(world.fd, lambda: sysctl.write("net.ipv4.ip_forward", 0))
    rows: list[InterfaceAddress | Neighbour] = [
        InterfaceAddress("eth0", Prefix(topology.gateway, topology.underlay.length)),
        InterfaceAddress("lo", Prefix(WORLD_ADDRESS, 32)),
    ]
    if topology.underlay6 is not None and topology.gateway6 is not None:
        rows.append(InterfaceAddress("eth0", Prefix(topology.gateway6, topology.underlay6.length), nodad=True))
        rows.append(InterfaceAddress("lo", Prefix(WORLD_ADDRESS6, 128), nodad=True))
    world.put(rows)
    world.put(Neighbour(address, "eth0", node.mac) for node in topology.nodes for address in (node.address, node.address6) if address is not None)


def wire_node(underlay: Place, place: Place, node: Node, topology: Topology) -> None:
    device = UNDERLAY_DEVICE
    plug(underlay, node.name, place, device, node.mac, SWITCH)
    if node.spare_device:
        plug(underlay, f"{node.name}-{node.spare_device[-2:]}", place, node.spare_device, b"\x52\x56" + node.address, None)
    own = Prefix(node.address, topology.underlay.length)
    connected = Route(topology.underlay, device, protocol=PROTOCOL_KERNEL, scope=SCOPE_LINK, src=node.address)
    place.put([InterfaceAddress(device, own)])
    # The kernel's own connected route has no metric; a lease from DHCP or NetworkManager has one, and so has the seed.
    place.put([Route(topology.underlay, device, protocol=PROTOCOL_KERNEL, scope=SCOPE_LINK, src=node.address, metric=METRIC)])
    for failure in tables.apply(place.nl, (Change("delete", connected),)):
        raise KernelError(str(failure.change), failure.errno, failure.text)
    rows: list[InterfaceAddress | Route | Neighbour] = [Route(EVERYWHERE, device, topology.gateway, protocol=PROTOCOL_STATIC, metric=METRIC)]
    if topology.underlay6 is not None and node.address6 is not None:
        rows.append(InterfaceAddress(device, Prefix(node.address6, topology.underlay6.length), nodad=True))
        rows.append(Route(EVERYWHERE6, device, topology.gateway6, protocol=PROTOCOL_STATIC, metric=METRIC))
    others = [(each.address, each.mac) for each in topology.nodes if each is not node] + [(topology.gateway, underlay_mac(topology.gateway))]
    if topology.gateway6 is not None:
        others += [(each.address6, each.mac) for each in topology.nodes if each is not node and each.address6 is not None]
        others.append((topology.gateway6, underlay_mac(topology.gateway)))
    place.put([*rows, *(Neighbour(address, device, mac) for address, mac in others)])


def wire_outside(place: Place, container: Place, outside: Outside) -> None:
    """As Docker does it: a bridge with the gateway's address, a veth, a default route."""
    links.create_bridge(place.nl, outside.bridge, mac=outside.mac, mtu=UNDERLAY_MTU)
    links.create_veth(
        place.nl,
        outside.port,
        "eth0",
        mtu=UNDERLAY_MTU,
        mac=outside.port_mac,
        peer_mac=b"\x02\x42" + outside.container_address.address,
        peer_netns=container.fd,
    )
    for name in (outside.bridge, outside.port):
        links.set_link(place.nl, name, addrgenmode="none", master=outside.bridge if name == outside.port else None, up=True)
    links.set_link(container.nl, "eth0", addrgenmode="none", up=True)
    place.put([InterfaceAddress(outside.bridge, outside.address)])
    container.put([InterfaceAddress("eth0", outside.container_address)])
    container.put([Route(EVERYWHERE, "eth0", outside.address.address, protocol=PROTOCOL_BOOT)])


def remove(names: dict[str, int]) -> list[str]:
    """Delete the namespaces by name, where inode (0: not known) says that they are ours. Returns names left to their owner."""
    foreign = []
    for name, expected in names.items():
        present = inode(name)
        if present == 0:  # gone, or a plain file that `ip netns add` left when it was killed between its two halves
            Path(netns.DIRECTORY, name).unlink(missing_ok=True)
        elif expected in (0, present):
            netns.delete(name)
        else:
            foreign.append(name)
    return foreign


def check_free(names: Iterable[str]) -> None:
    """Raises TweedError when one of the namespaces exists already: it is not ours."""
    taken = sorted(set(names) & set(netns.names()))
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise TweedError(f"network namespace {taken[0]}{more} exists and is no lab's: choose another --name, or remove it with `ip netns del {taken[0]}`")
