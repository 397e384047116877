"""Commands that put right what is wrong, as typed on the node: one row, or all rows of a device that lost them."""

from __future__ import annotations

from collections.abc import Iterable

from tweed.addr import Prefix, format_address, format_mac
from tweed.model import NUD_PERMANENT, PROTOCOL_BOOT, Change, Endpoint, FdbEntry, InterfaceAddress, Neighbour, Route
from tweed.plan.rows import direct_route, peer_rows
from tweed.trace import snapshot as s
from tweed.trace.intent import Intent, Peer
from tweed.trace.result import Fix
from tweed.trace.tables import Tables
from tweed.trace.underlay import attributes_of

HOST_GW = "host-gw"
UDP = ("", "udp")  # flannel's leases of that mode name no backend
VXLAN_ROOM = {4: 50, 6: 70}


def ip(family: int) -> str:
    return "ip" if family == 4 else "ip -6"


def fixes(tables: Tables, *commands: str) -> tuple[Fix, ...]:
    return tuple(Fix(tables.name, command) for command in commands)


# ---- the rows of a peer ---------------------------------------------------------------------------------------------------


def rows(intent: Intent, peer: Peer, device: str) -> tuple[FdbEntry, Neighbour, Route]:
    """As the agents of this cluster write them: tweed's with its protocol and metric, flannel's without."""
    assert peer.mac is not None and peer.host is not None
    entry, neighbour, route = peer_rows(Endpoint(peer.subnet, peer.host, peer.mac), device)
    if not intent.tweed_style:
        route = Route(peer.subnet, device, peer.subnet.address, 0, PROTOCOL_BOOT, True)
    return entry, neighbour, route


def route(intent: Intent, peer: Peer, device: str) -> Route:
    """Through the tunnel, or with host-gw to the host itself."""
    if peer.backend != HOST_GW:
        return rows(intent, peer, device)[2]
    assert peer.host is not None
    direct = direct_route(Endpoint(peer.subnet, peer.host), device)
    return direct if intent.tweed_style else Route(peer.subnet, device, peer.host, 0, PROTOCOL_BOOT)


def put_route(intent: Intent, peer: Peer, device: str) -> str:
    return str(Change("replace", route(intent, peer, device))).removesuffix(" proto boot")  # which is what `ip` writes by itself


def put_neighbour(peer: Peer, device: str, mac: bytes | None = None) -> str:
    right = mac or peer.mac
    assert right is not None
    return str(Change("replace", Neighbour(peer.subnet.address, device, right, NUD_PERMANENT)))


def put_fdb(mac: bytes, device: str, host: bytes) -> str:
    return str(Change("replace", FdbEntry(mac, device, host)))


def delete_fdb(row: s.FdbRow) -> str:
    return str(Change("delete", FdbEntry(row.mac, row.device, row.dst)))


def missing_rows(intent: Intent, tables: Tables, device: str, *, routes: bool = True, all_of_them: bool = False) -> list[str]:
    """For each peer what the tables lack of its three rows, or all of them (of a device that is made anew)."""
    family = 6 if device == own_device(intent, tables, 6) and device != own_device(intent, tables, 4) else 4
    commands: list[str] = []
    for peer in intent.others(tables, family):
        assert peer.mac is not None and peer.host is not None
        if all_of_them or not any(row.dst == peer.host for row in tables.fdb.get((device, peer.mac), ())):
            commands.append(put_fdb(peer.mac, device, peer.host))
        neighbour, _ = tables.neighbour(peer.subnet.address, device)
        if all_of_them or neighbour is None or neighbour.mac != peer.mac:
            commands.append(put_neighbour(peer, device))
        if routes and (all_of_them or not has_route(tables, peer, device)):
            commands.append(put_route(intent, peer, device))
    return commands


def own_device(intent: Intent, tables: Tables, family: int) -> str | None:
    own = intent.at(tables, family)
    return own.device if own is not None else None


def has_route(tables: Tables, peer: Peer, device: str) -> bool:
    return any(right_hop(row, peer, device) for row in tables.node.routes if row.dst == peer.subnet and row.table == "main" and row.type == "unicast")


def right_hop(row: s.RouteRow, peer: Peer, device: str) -> bool:
    gateway = peer.host if peer.backend == HOST_GW else peer.subnet.address
    return any(hop.gateway == gateway and hop.device == device for hop in row.hops)


def tun_route(intent: Intent, tables: Tables) -> tuple[str | None, list[str]]:
    """UDP mode's device on a node, and what puts its route there when that is missing. None, [] where there is no such device."""
    device = next((name for name in tables.devices if tables.kind(name)[0] == "tun"), None)
    network = intent.network.network if intent.network is not None else None
    there = any(row.dst == network and any(hop.device == device for hop in row.hops) for row in tables.node.routes)
    if device is None or network is None or there:
        return device, []
    protocol = " proto 83" if intent.tweed_style else ""
    return device, [f"ip route replace {network} dev {device}{protocol} scope link"]


# ---- devices ----------------------------------------------------------------------------------------------------------------


def put_address(own: Peer, device: str) -> str:
    prefix = Prefix(own.subnet.address, own.subnet.bits)
    return str(Change("replace", InterfaceAddress(device, prefix, nodad=prefix.family == 6)))


def raise_vtep(intent: Intent, tables: Tables, own: Peer, device: str) -> list[str]:
    """A VTEP that is down has lost its routes and neighbours, and an IPv6 one its address."""
    address = [] if own.subnet.address in tables.own else [put_address(own, device)]
    return [f"ip link set {device} up", *address, *missing_rows(intent, tables, device, routes=True)]


def create_vtep(intent: Intent, tables: Tables, own: Peer, device: str) -> list[str]:
    """The device as it should be, made anew, with everything on it. [] where not enough is known."""
    there = attributes_of(tables, device)
    family = own.subnet.family
    nic = there.underlay or next((row.device for row in tables.node.addresses if row.address.address == own.host), None)
    mtu = tables.mtu(device) or ((tables.mtu(nic or "") or 0) - VXLAN_ROOM[family])
    if own.host is None or own.mac is None or nic is None or intent.vni is None or intent.port is None or mtu <= 0:
        return []
    learning = "learning" if there.learning else "nolearning"
    words = f"type vxlan id {intent.vni} local {format_address(own.host)} dev {nic} dstport {intent.port} {learning}{' gbp' if there.gbp else ''}"
    return [
        *([f"ip link del {device}"] if device in tables.devices else []),
        f"ip link add {device} address {format_mac(own.mac)} mtu {mtu} {words}",
        *([f"ip link set {device} addrgenmode none"] if family == 6 else []),
        f"ip link set {device} up",
        put_address(own, device),
        *missing_rows(intent, tables, device, all_of_them=True),
    ]


# ---- rows that are in the way -----------------------------------------------------------------------------------------------


def delete_route(row: s.RouteRow) -> str:
    """`ip route del` of exactly this row: what `ip route` shows of its state cannot be typed."""
    dst = "default" if not row.dst.length else str(row.dst)
    words = [ip(row.dst.family), "route del", *([row.type] if row.type != "unicast" else []), dst]
    for hop in row.hops if row.type == "unicast" else ():
        words += ["nexthop"] if len(row.hops) > 1 else []
        via = "via inet6" if hop.gateway is not None and len(hop.gateway) > len(row.dst.address) else "via"
        words += [via, format_address(hop.gateway)] if hop.gateway is not None else []
        words += ["dev", hop.device] if hop.device is not None else []
        words += ["weight", str(hop.weight)] if len(row.hops) > 1 else []
    words += ["table", row.table] if row.table != "main" else []
    words += ["metric", str(row.metric)] if row.metric else []
    words += ["tos", str(row.tos)] if row.tos else []
    return " ".join(words)


def delete_rule(row: s.RuleRow) -> str:
    """`ip rule del` with all its selectors: several rules may have one priority."""
    words = row.text.replace("\t", " ").partition(":")[2].split()
    kept = [word for word in words if word not in ("[detached]", "[unresolved]")]
    return f"{ip(row.family)} rule del pref {row.priority} {' '.join(kept)}"


def sysctl(key: str, value: int) -> str:
    return f"sysctl -w {key}={value}"


def covering(addresses: Iterable[s.AddressRow], address: bytes) -> s.AddressRow | None:
    """The address whose network has another in it, the narrowest."""
    fitting = [row for row in addresses if len(row.address.address) == len(address) and row.address.network.contains(address)]
    return max(fitting, key=lambda row: row.address.length, default=None)
