"""What all tunnels share: the outer headers, the outer packet's own route, and its way out of the NIC and into the peer's."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tweed.addr import format_address, format_mac
from tweed.trace import snapshot as s
from tweed.trace.firewall import Facts
from tweed.trace.frames import TTL, Hop, Tunnel
from tweed.trace.path import NO_ANSWER, Path
from tweed.trace.result import Asked, Divergence, Fix, Quote, Said
from tweed.trace.rules import Flow
from tweed.trace.tables import Tables, quote
from tweed.trace.trail import Packet
from tweed.trace.wire import arrives

FLANNEL_PORT = 8472
UDP = 17
# Inner Ethernet, VXLAN, UDP, and the outer IP header.
VXLAN_ADDS = {4: 14 + 8 + 8 + 20, 6: 14 + 8 + 8 + 40}
UDP_ADDS = {4: 8 + 20, 6: 8 + 40}
HEAD, LINK = "", "link/"  # the lines of a device's block with its flags and MTU, and with its MAC
NO_ATTRIBUTES = s.VxlanAttributes()


class Remote(msgspec.Struct, frozen=True):
    """Where the fdb (or a lease) sends the packet, and what is known of the outer headers.

    `underlay`: the device that the outer route is bound to: that of the fdb row's `via`, or of a default remote. A row without `via` is bound to
    none, whatever device the VTEP has (vxlan_fdb_parse, remote_ifindex; measured).
    """

    host: bytes
    device: str
    port: int | None
    vni: int | None
    local: bytes | None
    underlay: str | None
    row: s.FdbRow | None = None
    attributes: s.VxlanAttributes = NO_ATTRIBUTES
    target: bytes = b""  # the next hop whose VTEP it is
    vxlan: bool = True


# What the peer does with it: the packet there, the packet as it was sent, and the outer headers.
Receive = Callable[[Path, Packet, Packet, Remote, Tunnel], None]


def encapsulate(path: Path, packet: Packet, remote: Remote, receive: Receive) -> None:
    """The outer headers, and the outer packet's own route (question 4)."""
    at, device = packet.at, remote.device
    host = format_address(remote.host)
    unknowns = []
    if remote.port is None:
        unknowns.append(Said("port", {"device": device, "default": str(FLANNEL_PORT)}))
    if remote.vxlan and remote.vni is None:
        unknowns.append(Said("vni", {"device": device}))
    params = {"device": device, "host": host, "port": known(remote.port)}
    if remote.vxlan:
        path.step(packet, device, "encapsulated", params | {"vni": known(remote.vni)}, device_row(at, device), unknowns=unknowns)
    else:
        tun = Hop(at.name, device, "out", ttl=packet.ttl, mtu=at.mtu(device), bare=True)
        path.step(packet, device, "encapsulated-udp", params, device_row(at, device, HEAD), hop=tun)
        packet = msgspec.structs.replace(packet, ttl=packet.ttl - 1)  # flannel's daemon counts as a router, on each side
    # IPv4 refuses to send from an address that is not its own (ip_route_output_key_hash_rcu), IPv6 does not.
    if remote.local is not None and len(remote.local) == 4 and at.complete("address") and remote.local not in at.own:
        path.fail(packet, device, "dropped", "local-not-ours", {"local": format_address(remote.local), "device": device}, device_row(at, device))
        return
    asked = Asked("route", remote.host, src=remote.local, oif=remote.underlay, proto=UDP, dport=remote.port)
    answer = at.lookup(remote.host, src=remote.local, oif=remote.underlay, flow=Flow(UDP, None, remote.port))
    if answer.kind == "local":
        own = quote(answer.row) if answer.row is not None else None
        row = quote(remote.row) if remote.row is not None else None
        mac = format_mac(packet.dst_mac) if packet.dst_mac is not None else "?"
        path.fail(
            packet,
            device,
            "lost",
            "fdb-own-host",
            {"mac": mac, "host": host},
            row,
            evidence=(own,) if own is not None else (),
            fix=right_host(path, packet, remote),
        )
        return
    assumptions = path.assumptions_of(packet, answer)
    if path.stopped(packet, device, remote.host, answer, assumptions, asked):
        return
    outer_row = answer.row
    assert outer_row is not None
    ways = path.parted(packet, len(answer.hops))
    for number, (way, hop) in enumerate(zip(ways, answer.hops, strict=False), 1):
        told = list(assumptions)
        if len(ways) > 1:
            told.append(Said("branch", {"number": str(number), "count": str(len(answer.hops)), "weight": str(hop.weight)}))
        path.tell_route(way, remote.host, outer_row, hop, answer.table, answer.losers, told, 4, asked)
        nic = hop.device or ""
        if nic == device or at.kind(nic)[0] == "vxlan":
            path.fail(way, device, "dropped", "encapsulation-loop", {"host": host, "device": nic}, quote(outer_row))
            continue
        if (aside := beside_the_network(path, way, remote, nic, hop.gateway, outer_row)) is not None:
            neighbour = at.neighbour(hop.gateway or remote.host, nic)[0]
            if aside.cause.params["right"] != nic and (neighbour is None or neighbour.mac is None):
                path.fail(way, nic, "lost", aside.cause.id, aside.cause.params, quote(outer_row), evidence=aside.evidence[1:])
                continue
            path.aside = path.aside or aside
        leave_nic(path, way, remote, nic, hop.gateway, remote.local or outer_row.src, receive)


def beside_the_network(path: Path, packet: Packet, remote: Remote, nic: str, gateway: bytes | None, row: s.RouteRow) -> Divergence | None:
    """A host on a network of this node's is reached directly on it. By another device nobody is there, by a gateway it is a detour."""
    at = packet.at
    on = [each for each in at.node.addresses if each.address.network.contains(remote.host) and at.kind(each.device)[0] not in ("vxlan", "tun", "loopback")]
    if len(on) != 1 or (on[0].device == nic and gateway in (None, remote.host)) or on[0].address.length >= on[0].address.bits - 1:
        return None
    params = {"host": format_address(remote.host), "way": row.text.split("\n")[0].strip(), "right": on[0].device}
    return Divergence(at.name, nic, Said("underlay-route-wrong", params), (quote(row), quote(on[0])))


def known(value: int | None) -> str:
    return "?" if value is None else str(value)


def leave_nic(path: Path, packet: Packet, remote: Remote, nic: str, gateway: bytes | None, src: bytes | None, receive: Receive) -> None:
    """Out of the NIC: is it up, does the packet fit, which MAC has the next hop."""
    at = packet.at
    if not path.is_up(packet, nic):
        return
    family = 4 if len(remote.host) == 4 else 6
    size = (packet.size or path.probe.size) + (VXLAN_ADDS if remote.vxlan else UDP_ADDS)[family]
    mtu = at.mtu(nic)
    assumptions: list[Said] = []
    unknowns: list[Said] = []
    if mtu is not None and size > mtu:
        params = {"size": str(size), "mtu": str(mtu), "device": nic}
        if remote.attributes.df == "set" or (remote.attributes.df == "inherit" and path.dont_fragment()):
            path.fail(packet, nic, "dropped", "mtu-exceeded", params, device_row(at, nic, HEAD))
            return
        assumptions.append(Said("fragmented", params))
    outer = Facts(src or b"", remote.host, UDP, None, remote.port, "", nic)
    if path.stopped_by_policy(packet, outer, "out") or path.stopped_by_rules(packet, outer, "output", "postrouting"):
        return
    next_hop = gateway or remote.host
    row, told = at.neighbour(next_hop, nic)
    if told is not None:
        assumptions.append(told)
    params = {"address": format_address(next_hop), "device": nic}
    if row is not None and row.state == "FAILED" and path.cluster.owner(next_hop) is None:
        path.fail(packet, nic, "lost", "neighbour-failed", params | {"state": "FAILED"}, quote(row))
        return
    mac = row.mac if row is not None and row.state not in NO_ANSWER else None
    if mac is None:
        unknowns.append(Said("underlay-neighbour", params))
    if src is None:
        unknowns.append(Said("source-address", {"device": nic}))
    tunnel = Tunnel(
        remote.host,
        src,
        mac,
        at.mac(nic),
        remote.vni,
        remote.port,
        checksum=remote.attributes.checksum,
        ttl=remote.attributes.ttl or (TTL if remote.attributes is not NO_ATTRIBUTES else None),  # of a daemon's socket: as it was set
        src_port=None if remote.vxlan else remote.port,
        vxlan=remote.vxlan,
    )
    hop = Hop(at.name, nic, "out", packet.dst_mac, packet.src_mac, packet.ttl, mtu, tunnel)
    peer = path.cluster.owner(remote.host)
    if peer is None:
        unknowns.append(Said("peer-tables", {"host": format_address(remote.host)}))
    leaves = {"device": nic, "host": format_address(remote.host)}
    shown = quote(row) if row is not None else None
    if remote.port is not None:
        path.step(packet, nic, "leaves-vxlan", leaves | {"port": str(remote.port)}, shown, assumptions=assumptions, unknowns=unknowns, hop=hop)
    else:
        leaves["default"] = str(FLANNEL_PORT)
        path.step(packet, nic, "leaves-vxlan-port-unknown", leaves, shown, assumptions=assumptions, unknowns=unknowns, hop=hop)
    if peer is None:
        path.end(packet, "unknown")
        return
    there = msgspec.structs.replace(packet, at=path.cluster.host_of(peer.tables), device=peer.device)
    # Behind a gateway the MAC is the gateway's: whose that is the peer's tables do not say.
    if not arrives(path, there, remote.host, mac if gateway is None else None, shown, at):
        return
    outer = msgspec.structs.replace(outer, iif=there.device, oif="")
    if path.stopped_by_rules(there, outer, "ingress", "prerouting", "input") or path.stopped_by_policy(there, outer, "in"):
        return
    receive(path, there, packet, remote, tunnel)


def attributes_of(at: Tables, device: str) -> s.VxlanAttributes:
    row = at.devices.get(device)
    return row.vxlan if row is not None and row.vxlan is not None else NO_ATTRIBUTES


def device_row(at: Tables, device: str, begins: str = "vxlan ") -> Quote | None:
    """The line of a device's block that begins with HEAD, LINK or `vxlan`, else its first."""
    row = at.devices.get(device)
    if row is None:
        return None
    lines = [line.strip() for line in row.text.split("\n")]
    offset = next((number for number, line in enumerate(lines) if line.startswith(begins)), 0)
    file, _, number = row.source.rpartition(":")
    return Quote(f"{file}:{int(number) + offset}" if number.isdigit() else row.source, lines[offset])


def outer_address(tables: Tables) -> bytes | None:
    """The address that a node's VXLAN device sends from."""
    return next((local for device in tables.vxlans() if (local := attributes_of(tables, device).local) is not None), None)


def fdb_fix(at: Tables, device: str, mac: bytes, host: bytes) -> Fix:
    return Fix(at.name, f"bridge fdb replace {format_mac(mac)} dev {device} dst {format_address(host)} self permanent")


def right_host(path: Path, packet: Packet, remote: Remote) -> tuple[Fix, ...]:
    """The row that sends the VTEP's MAC to the node that has it, where that is known."""
    if packet.dst_mac is None:
        return ()
    hosts = [outer_address(tables) for tables, _ in path.cluster.vteps.get(packet.dst_mac, ()) if tables is not packet.at]
    return tuple(fdb_fix(packet.at, remote.device, packet.dst_mac, host) for host in hosts[:1] if host is not None)
