"""Devices: look, create, change, delete. Every call is one request; a refusal is a KernelError with the `ip` command that says the same."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from tweed.addr import format_address, format_mac
from tweed.errors import KernelError
from tweed.kernel.netlink import Netlink
from tweed.model import Link, Vtep
from tweed.wire import link as wire

LEAVING = 0x74776564  # a device group that nobody else uses ("twed")


def links(nl: Netlink, kind: str | None = None) -> list[Link]:
    """All devices, or those of one kind ("vxlan", "veth", "bridge"), in the order of their index."""
    found = [link for data in nl.dump(wire.dump_links(kind), "ip -d link show") for link in wire.decode_links(data)]
    return [link for link in found if kind is None or link.kind == kind]


def link(nl: Netlink, name: str | int) -> Link | None:
    """The device of that name or index, None when there is none."""
    try:
        answers = nl.request(wire.get_link(name), f"ip -d link show {name}")
    except KernelError as error:
        if error.errno in (errno.ENODEV, errno.ERANGE):  # ERANGE: longer than any name
            return None
        raise
    return next((link for answer in answers for link in wire.decode_links(answer)), None)


def nsid(nl: Netlink, netns: int) -> int | None:
    """What `lower_netns` is in the links that lead from here into a namespace (a file descriptor); None where none does."""
    answers = nl.request(wire.get_nsid(netns), "ip netns list-id")
    return next((wire.decode_nsid(answer) for answer in answers), None)


def index_of(nl: Netlink, name: str, operation: str) -> int:
    """The device's index. Raises KernelError(ENODEV) for `operation` when there is none."""
    found = link(nl, name)
    if found is None:
        raise KernelError(operation, errno.ENODEV, f"no device {name}")
    return found.index


def create_vtep(nl: Netlink, vtep: Vtep) -> None:
    """Create the VXLAN device, down and without its address, with flannel's attributes.

    Of an IPv6 device the kernel's own link-local address is switched off: it would need duplicate address detection through the tunnel.
    """
    operation = f"ip link add {vtep}"
    nl.request(wire.new_vtep(vtep, index_of(nl, vtep.underlay, operation)), operation)
    if vtep.family == 6:
        # A device that is only being made has no IPv6 settings yet (EAFNOSUPPORT), so this takes a second request.
        set_link(nl, vtep.name, addrgenmode="none")


def create_veth(
    nl: Netlink,
    name: str,
    peer: str,
    *,
    mtu: int,
    mac: bytes | None = None,
    peer_mac: bytes | None = None,
    peer_netns: int | None = None,
    netns: int | None = None,
) -> None:
    """Create a veth pair, both ends down: `name` in the namespace `netns`, `peer` in `peer_netns` (file descriptors; None: the socket's)."""
    message = wire.new_veth(name, peer, mtu=mtu, mac=mac, peer_mac=peer_mac, peer_netns=peer_netns, netns=netns)
    nl.request(message, f"ip link add {name} mtu {mtu} type veth peer name {peer}")


def create_bridge(nl: Netlink, name: str, *, mac: bytes | None, mtu: int) -> None:
    """Create a bridge, down. `mac` None lets the kernel choose, and change it with the ports."""
    address = f" address {format_mac(mac)}" if mac is not None else ""
    nl.request(wire.new_bridge(name, mac=mac, mtu=mtu), f"ip link add {name}{address} mtu {mtu} type bridge")


def set_link(
    nl: Netlink,
    name: str,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: str | None = None,
    new_name: str | None = None,
    netns: int | None = None,
    addrgenmode: str | None = None,
) -> None:
    """Change what is given and nothing else. `master` "" detaches from the bridge, `netns` is a file descriptor.

    The kernel flushes a device's neighbours, permanent ones too, when `mac` is given, even if it is the one that the device has.
    """
    words = [
        f"address {format_mac(mac)}" if mac is not None else "",
        f"mtu {mtu}" if mtu is not None else "",
        f"master {master}" if master else "nomaster" if master is not None else "",
        f"name {new_name}" if new_name is not None else "",
        f"netns {netns}" if netns is not None else "",
        f"addrgenmode {addrgenmode}" if addrgenmode is not None else "",
        "" if up is None else "up" if up else "down",
    ]
    operation = " ".join(["ip link set", name, *filter(None, words)])
    device = name if new_name is None else index_of(nl, name, operation)
    bridge = None if master is None else index_of(nl, master, operation) if master else 0
    nl.request(wire.set_link(device, up=up, mtu=mtu, mac=mac, master=bridge, new_name=new_name, netns=netns, addrgenmode=addrgenmode), operation)


def set_queue(nl: Netlink, name: str, length: int) -> None:
    """`length` packets may wait for the device."""
    operation = f"ip link set {name} txqueuelen {length}"
    nl.request(wire.set_queue(index_of(nl, name, operation), length), operation)


def change_vtep(nl: Netlink, name: str, *, local: bytes | None = None, underlay: str | None = None, learning: bool | None = None) -> None:
    """Change a VXLAN device while it runs, keeping its addresses, routes, neighbours and fdb."""
    words = [
        f"local {format_address(local)}" if local is not None else "",
        f"dev {underlay}" if underlay is not None else "",
        "" if learning is None else "learning" if learning else "nolearning",
    ]
    operation = " ".join(["ip link set", name, "type vxlan", *filter(None, words)])
    below = None if underlay is None else index_of(nl, underlay, operation)
    nl.request(wire.change_vtep(index_of(nl, name, operation), local=local, underlay=below, learning=learning), operation)


def delete_link(nl: Netlink, name: str) -> None:
    """Delete a device (and a veth's peer). Gone already: nothing happens."""
    try:
        nl.request(wire.del_link(name), f"ip link del {name}")
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise


def delete_links(nl: Netlink, names: Sequence[str]) -> None:
    """Delete several devices (and veths' peers) in the time that one takes. Those that are gone already are no error. Raises KernelError."""
    if len(names) == 1:
        return delete_link(nl, names[0])
    present = 0
    for name in names:
        try:
            nl.request(wire.set_group(name, LEAVING), f"ip link set {name} group {LEAVING}")
            present += 1
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
    if present:
        try:
            nl.request(wire.del_group(LEAVING), f"ip link del group {LEAVING}")
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
    return None
