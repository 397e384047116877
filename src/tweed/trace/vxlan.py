"""Through a VXLAN device and out of the peer's (drivers/net/vxlan/vxlan_core.c).

send_vxlan      neighbour -> fdb -> encapsulation -> outer route -> wire
receive_vxlan   UDP port -> VNI -> inner destination MAC -> input
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tweed.addr import format_address, format_mac
from tweed.trace import snapshot as s
from tweed.trace.frames import Hop, Tunnel
from tweed.trace.path import NO_ANSWER, Path
from tweed.trace.result import Asked, Fix, Loser, Said
from tweed.trace.tables import Tables, quote
from tweed.trace.trail import Packet
from tweed.trace.underlay import FLANNEL_PORT, LINK, Remote, attributes_of, device_row, encapsulate, fdb_fix, known, outer_address

DEFAULT_ENTRY = bytes(6)
LOSERS_SOUGHT = 4


def send_vxlan(path: Path, packet: Packet, device: str, target: bytes, assumed: Said | None) -> None:
    """`target`: the next hop, which flannel makes the address of the peer's VTEP."""
    mac = vtep_mac(path, packet, device, target, assumed)
    if mac is None:
        return
    at = packet.at
    packet = msgspec.structs.replace(packet, dst_mac=mac, src_mac=at.mac(device))
    rows = at.fdb.get((device, mac), [])
    default = not rows
    if default:
        rows = at.fdb.get((device, DEFAULT_ENTRY), [])
    attributes = attributes_of(at, device)
    name = format_mac(mac)
    if not rows:
        without_fdb(path, packet, device, target, attributes)
        return
    remotes = [row for row in rows if row.dst is not None]
    if not remotes:
        path.step(packet, device, "ends-nexthop-object", {"id": str(rows[0].nexthop_id)}, quote(rows[0]), question=3)
        path.end(packet, "unknown")
        return
    ways = path.parted(packet, len(remotes))
    for number, (way, row) in enumerate(zip(ways, remotes, strict=False), 1):
        assert row.dst is not None
        told = [Said("copy", {"number": str(number), "count": str(len(remotes))})] if len(remotes) > 1 else []
        losers = [Loser(quote(other), Said("other-branch")) for other in remotes if other is not row][:LOSERS_SOUGHT]
        losers += unused(at, device, row)
        unknowns = [] if way.src_mac is not None else [Said("source-mac", {"device": device})]
        hop = Hop(at.name, device, "out", mac, way.src_mac, way.ttl, at.mtu(device))
        params = {"mac": name, "device": device, "host": format_address(row.dst)}
        path.step(
            way,
            device,
            "fdb-default" if default else "fdb",
            params,
            quote(row),
            losers=tuple(losers),
            assumptions=told,
            unknowns=unknowns,
            hop=hop,
            question=3,
            asked=Asked("fdb", DEFAULT_ENTRY if default else mac, device),
        )
        port = row.port if row.port is not None else attributes.port
        vni = row.vni if row.vni is not None else attributes.vni
        encapsulate(path, way, Remote(row.dst, device, port, vni, attributes.local, row.via, row, attributes, target), receive_vxlan)


def vtep_mac(path: Path, packet: Packet, device: str, target: bytes, assumed: Said | None) -> bytes | None:
    """The MAC behind the next hop, by the neighbour table; None when it ends there."""
    at = packet.at
    row, device_assumed = at.neighbour(target, device)
    told = [said for said in (assumed, device_assumed) if said is not None]
    address = format_address(target)
    params = {"address": address, "device": device}
    peer = path.cluster.owner(target)
    right = peer.tables.mac(peer.device) if peer is not None and peer.tables is not at else None
    fix = neighbour_fix(at, device, target, right)
    asked = Asked("neighbour", target, device)
    if row is not None and row.mac is not None and row.state not in NO_ANSWER:
        params |= {"mac": format_mac(row.mac), "state": row.state or "?"}
        path.step(packet, device, "neighbour", params, quote(row), assumptions=told, question=2, asked=asked)
        return row.mac
    if row is not None:
        path.fail(packet, device, "dropped", "neighbour-failed", params | {"state": row.state or "?"}, quote(row), fix=fix, assumptions=told, asked=asked)
    elif not at.complete("neighbour", device):
        path.step(packet, device, "neighbour-unknown", params, assumptions=told, question=2)
        path.end(packet, "unknown")
    elif (device, DEFAULT_ENTRY) in at.fdb or attributes_of(at, device).group is not None:
        told.append(Said("neighbour-will-ask", {"address": address}))
        path.step(packet, device, "neighbour-asked", params, assumptions=told, question=2)
        path.end(packet, "unknown")
    else:
        path.fail(packet, device, "dropped", "neighbour-missing", params, fix=fix, assumptions=[*told, *at.whole("neighbour", device)], asked=asked)
    return None


def neighbour_fix(at: Tables, device: str, target: bytes, mac: bytes | None) -> tuple[Fix, ...]:
    if mac is None:
        return ()
    family = " -6" if len(target) == 16 else ""
    return (Fix(at.name, f"ip{family} neigh replace {format_address(target)} lladdr {format_mac(mac)} dev {device} nud permanent"),)


def unused(at: Tables, device: str, row: s.FdbRow) -> list[Loser]:
    """Rows that send other MACs to the same host and that no neighbour points to."""
    assert row.dst is not None
    if not at.neighbours:
        return []
    found = []
    for other in at.remotes.get((device, row.dst), ()):
        if other.mac != row.mac and (device, other.mac) not in at.pointed_at and (None, other.mac) not in at.pointed_at:
            found.append(Loser(quote(other), Said("unused-mac", {"host": format_address(row.dst)})))
            if len(found) == LOSERS_SOUGHT:
                break
    return found


def without_fdb(path: Path, packet: Packet, device: str, target: bytes, attributes: s.VxlanAttributes) -> None:
    """No row for the MAC and no default one: to the device's group, else dropped, where all of the fdb is here."""
    at = packet.at
    assert packet.dst_mac is not None
    params = {"mac": format_mac(packet.dst_mac), "device": device}
    group = attributes.group
    if group is not None and (group[0] >> 4 == 0xE if len(group) == 4 else group[0] == 0xFF):
        path.step(packet, device, "ends-multicast", {"group": format_address(group), "device": device}, question=3)
        path.end(packet, "unknown")
    elif group is not None:
        path.step(packet, device, "fdb-default", params | {"host": format_address(group)}, device_row(at, device), question=3)
        encapsulate(
            path, packet, Remote(group, device, attributes.port, attributes.vni, attributes.local, attributes.underlay, None, attributes, target), receive_vxlan
        )
    elif at.complete("fdb", device):
        host = next((outer_address(tables) for tables, _ in path.cluster.vteps.get(packet.dst_mac, ()) if tables is not at), None)
        fix = (fdb_fix(at, device, packet.dst_mac, host),) if host is not None else ()
        path.fail(packet, device, "dropped", "fdb-missing", params, fix=fix, assumptions=at.whole("fdb", device), asked=Asked("fdb", packet.dst_mac, device))
    else:
        path.step(packet, device, "fdb-unknown", params, question=3)
        path.end(packet, "unknown")


def receive_vxlan(path: Path, packet: Packet, sent: Packet, remote: Remote, tunnel: Tunnel) -> None:
    """The peer's kernel: UDP port, then VNI, then the inner destination MAC."""
    at, nic = packet.at, packet.device
    found = choose_vtep(path, packet, sent, remote)
    if found is None:
        return
    device, assumptions, unknowns = found
    attributes = attributes_of(at, device)
    port, vni = (known(mine if mine is not None else theirs) for mine, theirs in ((attributes.port, remote.port), (attributes.vni, remote.vni)))
    params = {"device": device, "port": port, "vni": vni}
    hop = Hop(at.name, nic, "in", packet.dst_mac, packet.src_mac, packet.ttl, None, tunnel)
    path.step(packet, nic, "arrives-vxlan", params, device_row(at, device), assumptions=assumptions, unknowns=unknowns, hop=hop)
    packet = msgspec.structs.replace(packet, device=device)
    if not path.is_up(packet, device):
        return
    own, mac = at.mac(device), packet.dst_mac
    assert mac is not None
    if own is not None and own == packet.src_mac:
        evidence = device_row(sent.at, remote.device, LINK)
        path.fail(
            packet,
            device,
            "dropped",
            "vtep-mac-duplicate",
            {"mac": format_mac(own), "device": device},
            device_row(at, device, LINK),
            evidence=(evidence,) if evidence else (),
        )
        return
    if own is not None and own != mac and not mac[0] & 1:
        wrong_mac(path, packet, sent, remote, device, own)
        return
    unknowns = () if own is not None else (Said("vtep-mac", {"device": device}),)
    hop = Hop(at.name, device, "in", mac, packet.src_mac, packet.ttl)
    path.step(packet, device, "decapsulated", {"device": device, "mac": format_mac(mac)}, device_row(at, device, LINK), unknowns=unknowns, hop=hop)
    path.arrive(packet)


def choose_vtep(path: Path, packet: Packet, sent: Packet, remote: Remote) -> tuple[str, Sequence[Said], Sequence[Said]] | None:
    """The VXLAN device that the peer's kernel chooses; None when it ends there. What one side does not tell the other's must not contradict."""
    at = packet.at
    host = format_address(remote.host)
    names = at.vxlans()
    attributes = {name: attributes_of(at, name) for name in names}
    if not names:
        if at.complete("link"):
            path.fail(packet, packet.device, "lost", "vtep-missing", {"host": host})
        else:
            path.step(packet, packet.device, "ends-device-kind", {"device": packet.device, "kind": "?"}, unknowns=(Said("vni", {"device": host}),))
            path.end(packet, "unknown")
        return None
    if remote.port is not None and at.complete("socket") and not any(row.port == remote.port for row in at.node.sockets):
        other = next((name for name in names if attributes[name].port not in (None, remote.port)), None)
        if other is None:
            path.fail(packet, packet.device, "dropped", "port-closed", {"port": str(remote.port), "host": host})
            return None
    sending = device_row(sent.at, remote.device)
    evidence = (sending,) if sending is not None else ()
    fitting = [name for name in names if remote.port is None or attributes[name].port in (None, remote.port)]
    if not fitting:
        name = names[0]
        params = {"port": str(remote.port), "right": str(attributes[name].port), "device": name}
        path.fail(packet, packet.device, "dropped", "port-mismatch", params, device_row(at, name), evidence=evidence)
        return None
    same_family = fitting
    fitting = [name for name in fitting if remote.vni is None or attributes[name].vni in (None, remote.vni)]
    if not fitting:
        name = same_family[0]
        params = {"vni": str(remote.vni), "right": str(attributes[name].vni), "device": name}
        path.fail(packet, packet.device, "dropped", "vni-mismatch", params, device_row(at, name), evidence=evidence)
        return None
    # Where several are left, the one with the inner MAC, then the one that sends by the address that the packet came to.
    fitting.sort(key=lambda name: (at.mac(name) != packet.dst_mac, attributes[name].local != remote.host, name != remote.device))
    chosen = fitting[0]
    assumptions = [] if remote.port is not None and remote.vni is not None else [Said("only-vtep", {"device": chosen})]
    unknowns = []
    if attributes[chosen].port is None and remote.port is None:
        unknowns.append(Said("port", {"device": chosen, "default": str(FLANNEL_PORT)}))
    if attributes[chosen].vni is None and remote.vni is None:
        unknowns.append(Said("vni", {"device": chosen}))
    if (told := at.kind(chosen)[1]) is not None:
        assumptions.append(told)
    return chosen, assumptions, unknowns


def wrong_mac(path: Path, packet: Packet, sent: Packet, remote: Remote, device: str, own: bytes) -> None:
    """The inner MAC is not the receiving VTEP's: the kernel takes it for another's (PACKET_OTHERHOST) and drops it.

    If a third node has that MAC the fdb names the wrong host, else the MAC is one that the peer had once.
    """
    at, sender = packet.at, sent.at
    mac = packet.dst_mac
    assert mac is not None
    pointed = sender.neighbour(remote.target, remote.device)[0]
    shown = (quote(pointed) if pointed else None, quote(remote.row) if remote.row else None, device_row(at, device, LINK))
    rows = tuple(row for row in shown if row is not None)
    elsewhere = [(tables, name) for tables, name in path.cluster.vteps.get(mac, ()) if tables is not at]
    if elsewhere and (right := outer_address(elsewhere[0][0])) is not None:
        owner = path.cluster.owner(remote.target)
        if owner is not None and owner.tables is elsewhere[0][0]:
            params = {"mac": format_mac(mac), "host": format_address(remote.host), "right": format_address(right)}
            path.fail(packet, device, "dropped", "fdb-wrong-host", params, rows[0], evidence=rows[1:], fix=(fdb_fix(sender, remote.device, mac, right),))
            return
    fixes = neighbour_fix(sender, remote.device, remote.target, own)
    if not any(row.dst == remote.host for row in sender.fdb.get((remote.device, own), ())):
        fixes = (fdb_fix(sender, remote.device, own, remote.host), *fixes)
    params = {"mac": format_mac(mac), "right": format_mac(own), "device": device}
    path.fail(packet, device, "dropped", "vtep-mac-stale", params, rows[0], evidence=rows[1:], fix=fixes)
