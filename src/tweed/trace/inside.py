"""Inside a node: bridges and their ports, veths, and the containers behind them."""

from __future__ import annotations

import msgspec

from tweed.addr import format_address, format_mac
from tweed.trace import snapshot as s
from tweed.trace.cluster import Behind, Owner
from tweed.trace.frames import TTL, Hop
from tweed.trace.path import Path
from tweed.trace.result import Asked, Fix, Loser, Quote, Said
from tweed.trace.tables import Tables, quote
from tweed.trace.trail import Packet

PROXIED = (b"\xa9\xfe", b"\xfe\x80")  # 169.254.0.0/16, fe80::/16


def from_container(path: Path, behind: Behind) -> None:
    """From a container whose own tables are not here: it sends to its gateway, or directly to one of its own network."""
    tables, device = behind.tables, behind.device
    path.ends.add(tables.name)
    neighbour, _ = tables.neighbour(path.src, device)
    src_mac = neighbour.mac if neighbour is not None else None
    direct = behind.row.dst.contains(path.dst) and path.dst not in tables.own
    dst_mac = None if direct else tables.mac(device)
    packet = Packet(tables, device, TTL, dst_mac, src_mac)
    assumed = Said("container-same-subnet" if direct else "container-sends-to-gateway", {"device": device})
    kind, how = tables.kind(device)
    if kind is None:
        how = Said("address-from-route", {"address": format_address(path.src), "device": device})
    unknowns = [] if src_mac is not None else [Said("container-mac", {"address": format_address(path.src)})]
    hop = Hop(tables.name, device, "in", dst_mac, src_mac, TTL, joined=kind == "bridge" and joins(tables, path.dst))
    params = {"address": format_address(path.src), "device": device}
    path.step(packet, device, "source-container", params, quote(behind.row), assumptions=(assumed, *((how,) if how else ())), unknowns=unknowns, hop=hop)
    if kind == "bridge" and not enter_bridge(path, packet, device, port_of(tables, device, src_mac)):
        return
    if direct:
        over_bridge(path, packet, device, path.dst)
    elif kind != "bridge" or bridged(path, packet, device, device):
        path.arrive(packet)


def joins(at: Tables, dst: bytes) -> bool:
    """Whether connection tracking puts fragments together at this node's bridges: it is in use, and bridges hand what they pass to the IP hooks."""
    key = f"net/bridge/bridge-nf-call-ip{'6' if len(dst) == 16 else ''}tables"
    words = (" ct ", "masquerade", "type nat hook", "*nat", "conntrack")  # nft's, and those of iptables' old tables
    return at.sysctl(key) == 1 and any(word in f" {row.text} " for row in (*at.node.nft, *at.node.iptables) for word in words)


def port_of(tables: Tables, bridge: str, mac: bytes | None) -> s.FdbRow | None:
    """The row of a bridge's fdb that names the port of a MAC. One with a VLAN is second choice."""
    rows = tables.bridged.get((bridge, mac), ()) if mac is not None else ()
    return min(rows, key=lambda row: row.vlan is not None, default=None)


def enter_bridge(path: Path, packet: Packet, bridge: str, row: s.FdbRow | None, port: str | None = None) -> bool:
    """By a port that the fdb or a veth names. False when it ends there."""
    name = port or (row.device if row is not None else None)
    path.bridge_port = name or ""
    if not path.is_up(packet, bridge):  # which disables its ports
        return False
    if name is None:
        path.step(packet, bridge, "enters-bridge-port-unknown", {"bridge": bridge})
    else:
        if not port_open(path, packet, name):
            return False
        path.step(packet, bridge, "enters-bridge", {"bridge": bridge, "port": name}, quote(row) if row is not None else None)
    return True


def port_open(path: Path, packet: Packet, port: str) -> bool:
    if not path.is_up(packet, port):
        return False
    row = packet.at.ports.get(port)
    if row is not None and row.state not in (None, "forwarding"):
        params = {"port": port, "state": str(row.state)}
        fix = (Fix(packet.at.name, f"bridge link set dev {port} state 3"),) if row.state in ("disabled", "blocking") else ()
        path.fail(packet, port, "dropped", "bridge-port-blocked", params, quote(row), fix=fix)
        return False
    return True


def bridged(path: Path, packet: Packet, bridge: str, port: str) -> bool:
    """Whether a bridge passes it to a port (or to itself): by its VLANs, where it looks at them, and not between isolated ports."""
    at = packet.at
    before = path.bridge_port if packet.device == bridge and path.bridge_port else bridge
    one, other = at.ports.get(before), at.ports.get(port)
    if one is not None and other is not None and before != port and one.isolated and other.isolated:
        fix = (Fix(at.name, f"bridge link set dev {port} isolated off"),)
        path.fail(packet, port, "dropped", "bridge-port-isolated", {"port": port, "other": before}, quote(other), evidence=(quote(one),), fix=fix)
        return False
    if not filters_vlans(at, bridge) or not at.vlans:
        return True
    vlan = next((each.first for each in at.vlans.get(before, ()) if each.pvid), None)
    for name in (before, port):
        has = at.vlans.get(name, [])
        if vlan is None or not any(each.first <= vlan <= each.last for each in has):
            words = f"bridge vlan add dev {name} vid {vlan or 1}{' self' if name == bridge else ''} pvid untagged"
            shown = quote(has[0]) if has else None
            path.fail(packet, name, "dropped", "bridge-vlan", {"port": name, "vlan": str(vlan or "?")}, shown, fix=(Fix(at.name, words),))
            return False
    return True


def over_bridge(path: Path, packet: Packet, bridge: str, target: bytes) -> None:
    """From the node (or from another port) to what is behind a bridge's port."""
    mac, on = path.resolve(packet, bridge, target)
    if on:
        to_port(path, packet, bridge, target, mac or path.mac_of(target))


def to_port(path: Path, packet: Packet, bridge: str, target: bytes, mac: bytes | None) -> None:
    """The bridge looks the MAC up."""
    at = packet.at
    owner = path.cluster.owner(target, mac)
    src_mac = at.mac(bridge) if packet.device != bridge else packet.src_mac
    packet = msgspec.structs.replace(packet, dst_mac=mac, src_mac=src_mac)
    row = port_of(at, bridge, mac)
    hop = Hop(at.name, bridge, "out", mac, src_mac, packet.ttl, at.mtu(bridge), joined=packet.device == bridge and joins(at, path.dst))
    name = format_mac(mac) if mac is not None else "?"
    port = None
    if row is not None and not (row.device == bridge or row.state == "permanent"):
        port = row.device
        told = [Said("bridge-vlans-ignored", {"bridge": bridge})] if row.vlan is not None and not filters_vlans(at, bridge) else []
        losers = tuple(Loser(quote(r), Said("other-vlan", {"vlan": str(r.vlan)})) for r in at.bridged[bridge, row.mac] if r is not row)
        params = {"mac": name, "bridge": bridge, "port": port}
        asked = Asked("fdb", row.mac, bridge, master=True)
        path.step(packet, bridge, "bridge-port", params, quote(row), losers=losers, assumptions=told, hop=hop, asked=asked)
        right = port_towards(at, bridge, owner)
        if right and right != port:
            params = {"mac": name, "port": port, "right": right}
            path.fail(packet, port, "lost", "bridge-fdb-wrong", params, quote(row), fix=(Fix(at.name, f"bridge fdb del {name} dev {port} master"),))
            return
        if not bridged(path, packet, bridge, port):
            return
        if not port_open(path, packet, port):
            return
    else:
        port = port_towards(at, bridge, owner)
        if owner is not None and port == "" and at.complete("link"):
            veth = veth_of(at, owner.tables, owner.device)
            fix = (Fix(at.name, f"ip link set {veth.name} master {bridge}"),) if veth is not None else ()
            shown = Quote(veth.source, veth.text.split("\n")[0]) if veth is not None else None
            where = veth.name if veth is not None else bridge
            path.fail(packet, where, "lost", "bridge-port-missing", {"bridge": bridge, "address": format_address(target)}, shown, fix=fix)
            return
        if owner is not None and mac is not None and at.complete("fdb"):
            path.step(packet, bridge, "bridge-flood", {"mac": name, "bridge": bridge}, hop=hop)
        else:
            unknown = Said("bridge-port", {"address": format_address(target), "bridge": bridge})
            path.step(packet, bridge, "bridge-unknown", {"mac": name, "bridge": bridge}, hop=hop, unknowns=() if port else (unknown,))
            ports = [each.name for each in at.node.devices if each.master == bridge] if owner is None and target == path.dst else []
            bare = [(each, found) for each in ports if (found := without_address(path, at, each, len(target))) is not None]
            if len(bare) == 1 and only_containers(at, bridge):
                lost_address(path, packet, bare[0][0], target, bare[0][1])
                return
        if port and not (port_open(path, packet, port) and bridged(path, packet, bridge, port)):
            return
    into_container(path, packet, port or bridge, target, mac, owner, row is not None)


def filters_vlans(at: Tables, bridge: str) -> bool:
    row = at.devices.get(bridge)
    return row is not None and bool(row.vlan_filtering)


def port_towards(at: Tables, bridge: str, owner: Owner | None) -> str | None:
    """The port that a container's veth is: "" when its veth is known and is no port of this bridge, None when nothing tells."""
    if owner is None:
        return None
    veth = veth_of(at, owner.tables, owner.device)
    if veth is None:
        return None
    master = veth.master or (at.ports[veth.name].master if veth.name in at.ports else None)
    return veth.name if master == bridge else ""


def veth_of(host: Tables, inside: Tables, device: str) -> s.DeviceRow | None:
    """The node's end of a container's veth: the ends name each other's index."""
    row = inside.devices.get(device)
    if row is None or row.lower is None or not row.lower.startswith("if") or inside.node.host != host.name:
        return None
    ends = [each for each in host.devices.values() if each.index is not None and row.lower == f"if{each.index}"]
    return next((each for each in ends if each.lower in (None, f"if{row.index}")), None)


def into_container(path: Path, packet: Packet, port: str, target: bytes, mac: bytes | None, owner: Owner | None, port_known: bool) -> None:
    """Through the veth. Whoever sent it to a next hop that is no container's destination is routed on."""
    at = packet.at
    address = format_address(target)
    if owner is None:
        if port_known and target == path.dst and (bare := without_address(path, at, port, len(target))) is not None:
            lost_address(path, packet, port, target, bare)
        elif port_known and mac is not None:
            path.step(packet, port, "into-container", {"address": address, "device": port}, assumptions=[Said("container-end-unknown", {"address": address})])
            end_at(path, packet, target, at.name)
        else:
            path.step(packet, port, "ends-container-unknown", {"address": address, "device": port})
            path.end(packet, "unknown")
        return
    inside = msgspec.structs.replace(packet, at=owner.tables, device=owner.device)
    if not path.is_up(inside, owner.device):
        return
    right = owner.tables.mac(owner.device)
    if mac is not None and right is not None and mac != right:
        params = {"address": address, "mac": format_mac(mac), "right": format_mac(right)}
        bridge = bridge_of(at, port)
        row = at.neighbour(target, bridge)[0]
        fix = (neighbour_forgotten(at, target, bridge),)
        path.fail(inside, owner.device, "lost", "underlay-neighbour-wrong", params, quote(row) if row is not None else None, fix=fix)
        return
    path.step(packet, port, "into-container", {"address": address, "device": port})
    path.arrive(inside)


def without_address(path: Path, at: Tables, port: str, size: int) -> tuple[Tables, str] | None:
    """The container behind a port, and its device, when it is known to have no address of a family at all."""
    for each in path.cluster.tables.values():
        for row in each.node.devices if each.node.host == at.name else ():
            veth = veth_of(at, each, row.name)
            if veth is not None and veth.name == port:
                has = any(len(a.address.address) == size and a.device == row.name and a.scope != "link" for a in each.node.addresses)
                return None if has or not each.complete("address") else (each, row.name)
    return None


def lost_address(path: Path, packet: Packet, port: str, target: bytes, bare: tuple[Tables, str]) -> None:
    """Its node still knows its MAC, so the packet comes to it, and it is not for it."""
    at, (inside, device) = packet.at, bare
    ip, bridge = f"ip{' -6' if len(target) == 16 else ''}", bridge_of(at, port)
    on = next((row.address for row in at.node.addresses if row.device == bridge and row.address.network.contains(target)), None)
    address = f"{format_address(target)}/{on.length if on is not None else 8 * len(target)}"
    commands = [f"{ip} addr add {address} dev {device}"]
    commands += [f"{ip} route replace default via {format_address(on.address)} dev {device}"] if on is not None else []
    row = inside.devices[device]
    shown = Quote(row.source, row.text.split("\n")[0])
    there = msgspec.structs.replace(packet, at=inside, device=device)
    path.fail(there, device, "lost", "address-missing", {"address": address, "device": device}, shown, fix=tuple(Fix(inside.name, each) for each in commands))


def neighbour_forgotten(at: Tables, address: bytes, device: str) -> Fix:
    """Without its row the kernel asks again."""
    return Fix(at.name, f"ip{' -6' if len(address) == 16 else ''} neigh del {format_address(address)} dev {device}")


def bridge_of(at: Tables, port: str) -> str:
    row = at.devices.get(port)
    return (row.master if row is not None else None) or port


def end_at(path: Path, packet: Packet, target: bytes, last: str) -> None:
    """Delivered when the next hop is the destination itself."""
    if target == path.dst:
        path.finish(packet, last)
    else:
        path.end(packet, "unknown")


def over_veth(path: Path, packet: Packet, device: str, target: bytes) -> None:
    """A veth without a bridge: the container is at its other end."""
    mac, on = path.resolve(packet, device, target)
    mac = mac or path.mac_of(target)
    if on:
        packet = msgspec.structs.replace(packet, dst_mac=mac, src_mac=packet.at.mac(device))
        into_container(path, packet, device, target, mac, path.cluster.owner(target), True)


def only_containers(host: Tables, bridge: str) -> bool:
    """Whether all of a bridge's ports are known and are veths, so that nothing on it leads to another node."""
    return bool(host.complete("link")) and all(row.kind == "veth" for row in host.node.devices if row.master == bridge)


def proxies(host: Tables, device: str, target: bytes) -> bool:
    """Whether a node answers on a device for an address that it reaches by another one (proxy ARP, arp_fwd_proxy)."""
    if len(target) == 16 or not any(host.sysctl(f"net/ipv4/conf/{name}/proxy_arp") == 1 for name in ("all", device)):
        return False
    answer = host.lookup(target)
    return answer.kind == "unicast" and all(hop.device != device for hop in answer.hops)


def leave_container(path: Path, packet: Packet, device: str, target: bytes) -> None:
    """From a container's namespace through its veth to its node."""
    inside = packet.at
    host = path.cluster.host_of(inside)
    mac, on = path.resolve(packet, device, target)
    if not on:
        return
    src_mac = inside.mac(device)
    veth = veth_of(host, inside, device)
    gateway = path.cluster.owner(target)
    bridge = (veth.master if veth is not None else None) or (gateway.device if gateway is not None and gateway.tables is host else None)
    entry = bridge or (veth.name if veth is not None else "")
    if mac is None and gateway is None and bridge is not None:
        # What the node has heard of a container the other container will hear too.
        heard = host.neighbour(target, bridge)[0]
        mac = heard.mac if heard is not None else None
    elif mac is None and gateway is not None:
        # A node answers for all of its addresses with the MAC of the device that was asked on (arp_ignore 0).
        mac = host.mac(entry) if gateway.tables is host or proxies(host, entry, target) else gateway.tables.mac(gateway.device)
    packet = msgspec.structs.replace(packet, at=host, device=entry, dst_mac=mac, src_mac=src_mac)
    hop = Hop(inside.name, device, "out", mac, src_mac, packet.ttl, inside.mtu(device))
    path.steps[-1] = msgspec.structs.replace(path.steps[-1], hop=hop)
    if veth is not None and not path.is_up(packet, veth.name):
        return
    if veth is not None and veth.master is None and gateway is not None and gateway.tables is host and gateway.device != veth.name:
        fix = (Fix(host.name, f"ip link set {veth.name} master {gateway.device}"),) if host.kind(gateway.device)[0] == "bridge" else ()
        if fix:
            shown = Quote(veth.source, veth.text.split("\n")[0])
            params = {"bridge": gateway.device, "address": format_address(path.src)}
            path.fail(packet, veth.name, "lost", "bridge-port-missing", params, shown, fix=fix)
            return
    if not packet.device:
        path.step(packet, "", "ends-remote-unknown", {"address": format_address(target), "device": device})
        path.end(packet, "unknown")
        return
    if bridge is not None and not enter_bridge(path, packet, bridge, port_of(host, bridge, src_mac), veth.name if veth is not None else None):
        return
    arrived = Hop(host.name, packet.device, "in", mac, src_mac, packet.ttl, joined=bridge is not None and joins(host, path.dst))
    path.steps[-1] = msgspec.structs.replace(path.steps[-1], hop=arrived)
    own = host.mac(packet.device)
    proxied = mac is not None and mac == own  # the node takes it, whoever has the address
    if proxied or (gateway is not None and gateway.tables is host):
        if mac is not None and own is not None and mac != own:
            params = {"address": format_address(target), "mac": format_mac(mac), "right": format_mac(own)}
            row = inside.neighbour(target, device)[0]
            fix = (neighbour_forgotten(inside, target, device),)
            path.fail(packet, packet.device, "lost", "underlay-neighbour-wrong", params, quote(row) if row is not None else None, fix=fix)
            return
        if bridge is None or bridged(path, packet, bridge, bridge):
            path.arrive(packet)
    elif bridge is not None and gateway is not None and only_containers(host, bridge) and path.cluster.host_of(gateway.tables) is not host:
        # Nobody behind the bridge has it, and the node does not answer in its place.
        path.fail(packet, bridge, "lost", "neighbour-failed", {"address": format_address(target), "device": device, "state": "INCOMPLETE"})
    elif bridge is not None:
        to_port(path, packet, bridge, target, mac)
    elif gateway is None and mac is None and target[:2] not in PROXIED and host.complete("address"):
        # Nobody has the gateway's address, and only link-local ones are answered for by proxy (Calico).
        params = {"address": format_address(target), "device": device, "state": "INCOMPLETE"}
        path.fail(packet, packet.device, "lost", "neighbour-failed", params)
    else:
        path.arrive(packet)
