"""What CHECK looks for: everything that attaching put there, asked instead of done. Other plugins may have added to it."""

from __future__ import annotations

import msgspec

from tweed.addr import Prefix, format_mac
from tweed.model import InterfaceAddress, Link, Route
from tweed.plan import attach
from tweed.plan.attachment import Attachment
from tweed.wire.cni import After


class Seen(msgspec.Struct, frozen=True):
    """The devices and rows as they are now; None and nothing where they are gone.

    `routes`: of all tables that packets from the container's addresses are looked up in. `tuned`: the MTU that tuning found before it
    gave the device another, which it does not write into the result.
    """

    bridge: Link | None
    bridge_addresses: frozenset[Prefix]
    port: Link | None
    inside: Link | None
    addresses: tuple[InterfaceAddress, ...]
    routes: tuple[Route, ...]
    tuned: int | None = None


def differences(attachment: Attachment, seen: Seen, after: After) -> list[str]:
    """One line for each thing that is not as it was made, in the words of what a person would look at.

    `after`: what later plugins of the chain say that they made of it.
    """
    a, found = attachment, list[str]()
    bridge, port, inside = seen.bridge, seen.port, seen.inside
    if bridge is None:
        found.append(f"bridge {a.bridge} is gone")
    else:
        if not bridge.up:
            found.append(f"bridge {a.bridge} is down")
        if a.promisc and not bridge.promisc:
            found.append(f"bridge {a.bridge} has lost its promiscuous mode")
        found += [
            f"bridge {a.bridge} has lost its address {gateway}"
            for gateway in (Prefix(g, p.length) for g, p in zip(a.gateways, a.addresses, strict=False))
            if gateway not in seen.bridge_addresses
        ]
    if port is None:
        found.append(f"{a.host_name}, the container's device on the node, is gone")
    else:
        if bridge is not None and port.master != bridge.index:
            found.append(f"{a.host_name} is not a port of {a.bridge}: ip link set {a.host_name} master {a.bridge}")
        if not port.up:
            found.append(f"{a.host_name} is down")
        if a.hairpin and port.master and not port.hairpin:
            found.append(f"{a.host_name} has lost its hairpin mode")
    if inside is None:
        found.append(f"{a.ifname} is gone from the container")
        return found
    if not inside.up:
        found.append(f"{a.ifname} is down in the container")
    if inside.mac != (mac := after.mac or a.mac):
        found.append(f"{a.ifname} has the MAC {format_mac(inside.mac)} instead of {format_mac(mac)}")
    for device, mtu in ((port, a.mtu), (inside, after.mtu or a.mtu)):
        if device is not None and a.mtu and device.mtu != mtu and not (device is inside and mtu == seen.tuned):
            found.append(f"{device.name} has MTU {device.mtu} instead of {mtu}")
    have = {(row.address, row.scope) for row in seen.addresses}
    ways = {(route.dst, route.device, route.gateway) for route in seen.routes}
    for row in attach.rows(a):
        if isinstance(row, InterfaceAddress):
            if (row.address, row.scope) not in have:
                found.append(f"{a.ifname} has lost its address {row.address}")
        elif (row.dst, row.device, row.gateway) not in ways and (
            after.routes is None or not after.routes.isdisjoint({(row.dst, row.gateway), (row.dst, None)})
        ):
            found.append(f"the container has lost its route {row}")
    return found
