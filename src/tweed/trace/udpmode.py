"""Flannel's UDP mode: a daemon between a TUN device and a UDP socket."""

from __future__ import annotations

import msgspec

from tweed.addr import format_address
from tweed.trace.cluster import Cluster
from tweed.trace.frames import Hop, Tunnel
from tweed.trace.path import Path
from tweed.trace.result import Said
from tweed.trace.tables import Tables, quote
from tweed.trace.trail import Packet
from tweed.trace.underlay import HEAD, Remote, device_row, encapsulate
from tweed.wire.flannel import PORTS


def udp_port(cluster: Cluster) -> int:
    """The port of all nodes' daemons: as the store has it, else flannel's."""
    network = cluster.network
    return network.port if network is not None and network.backend == "udp" else PORTS["udp"]


def send_udp(path: Path, packet: Packet, device: str, target: bytes, assumed: Said | None) -> None:
    """flanneld takes the packet from its TUN device and looks the destination up in its leases, which no kernel table shows.

    Without leases the node whose tables have the destination is taken, and that is said.
    """
    dst = path.dst
    tun = packet.at.devices.get(device)
    if tun is not None and tun.running is False:  # a TUN device has a carrier while somebody has it open
        path.fail(packet, device, "dropped", "process-missing", {"device": device}, device_row(packet.at, device, HEAD))
        return
    told: list[Said] = [assumed] if assumed is not None else []
    host: bytes | None = None
    for lease in path.cluster.snapshot.leases:
        for endpoint in lease.lease.endpoints:
            if endpoint.subnet.contains(dst):
                host = endpoint.public_ip
    if host is None:
        owner = path.cluster.owner(dst)
        behind = path.cluster.behind(dst) if owner is None else None
        there = path.cluster.host_of(owner.tables) if owner is not None else behind.tables if behind is not None else None
        if there is not None and there is not packet.at:
            host = shared_address(packet.at, there)
            told.append(Said("udp-remote-from-tables", {"address": format_address(dst)}))
    if host is None:
        path.step(packet, device, "ends-remote-unknown", {"address": format_address(dst), "device": device}, assumptions=told)
        path.end(packet, "unknown")
        return
    before = len(path.steps)
    encapsulate(path, packet, Remote(host, device, udp_port(path.cluster), None, None, None, vxlan=False), receive_udp)
    if told and before < len(path.steps):
        first = path.steps[before]
        path.steps[before] = msgspec.structs.replace(first, assumptions=(*told, *first.assumptions))


def shared_address(here: Tables, there: Tables) -> bytes | None:
    """An address of a node on a network that another is on too."""
    for address in there.own:
        answer = here.lookup(address)
        if (
            answer.kind == "unicast"
            and answer.hops
            and answer.hops[0].gateway is None
            and answer.hops[0].device
            and here.kind(answer.hops[0].device)[0] not in ("tun", "vxlan", "bridge")
        ):
            return address
    return None


def receive_udp(path: Path, packet: Packet, sent: Packet, remote: Remote, tunnel: Tunnel) -> None:
    """The peer's flanneld writes what it receives into its own TUN device."""
    at = packet.at
    socket = next((row for row in at.node.sockets if row.port == remote.port and row.address in (None, bytes(4), bytes(16), remote.host)), None)
    if socket is None and at.complete("socket"):
        path.fail(packet, packet.device, "dropped", "port-closed", {"port": str(remote.port), "host": format_address(remote.host)})
        return
    names = [name for name in dict.fromkeys([*at.devices, *(hop.device or "" for row in at.node.routes for hop in row.hops)]) if at.kind(name)[0] == "tun"]
    if not names:
        path.fail(packet, packet.device, "lost", "vtep-missing", {"host": format_address(remote.host)})
        return
    tun = names[0]
    hop = Hop(at.name, packet.device, "in", None, None, packet.ttl, None, tunnel)
    path.step(packet, packet.device, "arrives-udp", {"device": packet.device, "port": str(remote.port)}, None if socket is None else quote(socket), hop=hop)
    inside = msgspec.structs.replace(packet, device=tun, dst_mac=None, src_mac=None, ttl=packet.ttl - 1)
    if path.is_up(inside, tun):
        path.step(inside, tun, "decapsulated-udp", {"device": tun}, hop=Hop(at.name, tun, "in", ttl=inside.ttl, bare=True))
        path.arrive(inside)
