"""A wire without a tunnel: direct routes (host-gw), the underlay, and away from the cluster."""

from __future__ import annotations

import msgspec

from tweed.addr import format_address, format_mac
from tweed.trace.frames import Hop
from tweed.trace.path import Path
from tweed.trace.result import Fix, Quote, Said
from tweed.trace.tables import Tables, quote
from tweed.trace.trail import Packet


def over_wire(path: Path, packet: Packet, device: str, target: bytes) -> None:
    """A direct route (host-gw), or away from the cluster."""
    at = packet.at
    row, _ = at.neighbour(target, device)
    mac, on = path.resolve(packet, device, target)
    if not on:
        return
    mac = mac or path.mac_of(target)
    packet = msgspec.structs.replace(packet, dst_mac=mac, src_mac=at.mac(device))
    hop = Hop(at.name, device, "out", mac, packet.src_mac, packet.ttl, at.mtu(device))
    host = format_address(target)
    unknowns = [] if mac is not None else [Said("underlay-neighbour", {"address": host, "device": device})]
    owner = path.cluster.owner(target)
    if owner is None:
        unknowns.append(Said("peer-tables", {"host": host}))
    # What comes from elsewhere and goes to a host may be masqueraded; what a node's own firewall does is not evaluated.
    rules = (*at.node.nft, *at.node.iptables)
    masked = bool(packet.device) and target == path.dst and (not rules or any("masquerade" in row.text.lower() for row in rules))
    told = [Said("snat-possible", {"address": format_address(path.src)})] if masked else []
    packet = msgspec.structs.replace(packet, masked=packet.masked or masked)
    path.step(packet, device, "leaves-plain", {"device": device, "host": host}, hop=hop, unknowns=unknowns, assumptions=told)
    if owner is None:
        path.end(packet, "unknown")
        return
    peer = msgspec.structs.replace(packet, at=owner.tables, device=owner.device)
    if not arrives(path, peer, target, mac, quote(row) if row is not None else None, packet.at):
        return
    path.step(peer, owner.device, "arrives-plain", {"device": owner.device}, hop=Hop(owner.tables.name, owner.device, "in", mac, packet.src_mac, packet.ttl))
    path.arrive(peer)


def arrives(path: Path, peer: Packet, address: bytes, mac: bytes | None, row: Quote | None, sender: Tables) -> bool:
    """Whether a frame reaches the NIC that has an address: it is up, and the MAC is its own."""
    if not path.is_up(peer, peer.device):
        return False
    right = peer.at.mac(peer.device)
    if mac is None or right is None or mac == right:
        return True
    params = {"address": format_address(address), "mac": format_mac(mac), "right": format_mac(right)}
    device = peer.at.devices[peer.device]
    evidence = (Quote(device.source, device.text.split("\n")[0]),)
    fix: tuple[Fix, ...] = ()
    if row is not None:
        out = next((step.device for step in reversed(path.steps) if step.node == sender.name), "")
        fix = (Fix(sender.name, f"ip neigh replace {format_address(address)} lladdr {format_mac(right)} dev {out} nud permanent"),)
    path.fail(peer, peer.device, "lost", "underlay-neighbour-wrong", params, row, evidence=evidence, fix=fix)
    return False
