"""What is odd about tables themselves, whatever walks: general rules, none of which knows a particular cluster.

    find(cluster) -> findings in the order of FINDINGS' rules, each with the rows that show it

A rule that needs a table which is not here says nothing, except those whose subject is what is not here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tweed.addr import Prefix, format_address, format_mac
from tweed.trace import snapshot as s
from tweed.trace.cluster import Cluster
from tweed.trace.fib import metric
from tweed.trace.result import Finding, Quote, Said
from tweed.trace.tables import Tables, quote
from tweed.trace.underlay import HEAD, LINK, VXLAN_ADDS, attributes_of, device_row

MOST_OF_A_KIND = 20  # rows; what more there are repeats what is wrong
WITHOUT_DEV = re.compile(r"bridge(?:\s+-\S+)*\s+fdb\s+(?:show|list|ls)\s+(?!dev\b|br\b|brport\b|state\b|vlan\b|dynamic\b)(\S+)")
LINK_LOCAL = Prefix(b"\xfe\x80" + bytes(14), 10)
DEVICE_WORD = re.compile(r"[A-Za-z][\w.-]*\d")


def find(cluster: Cluster) -> tuple[Finding, ...]:
    """All findings. A rule that has many to say of one node says the first of them."""
    found: list[Finding] = []
    for tables in cluster.tables.values():
        if cluster.host_of(tables) is tables:
            for rule in OF_A_NODE:
                found += first_few(rule(tables))
    for of_all in OF_ALL:
        found += first_few(of_all(cluster))
    return tuple(found)


def first_few(findings: Iterator[Finding]) -> list[Finding]:
    return [finding for finding, _ in zip(findings, range(MOST_OF_A_KIND), strict=False)]


def finding(tables: Tables, id: str, params: dict[str, str], *rows: Quote | None) -> Finding:
    return Finding(tables.name, Said(id, params), tuple(row for row in rows if row is not None))


# ---- how the tables were taken -------------------------------------------------------------------------------------------


def fdb_show_without_dev(tables: Tables) -> Iterator[Finding]:
    """`bridge fdb show flannel.1` asks for all devices: the name without `dev` is not read."""
    for shown in tables.shown.get("fdb", ()):
        matched = WITHOUT_DEV.match(shown.command or "")
        if matched is None:
            continue
        others = {row.device for row in tables.node.fdb} - {matched[1]}
        if others:
            params = {"command": shown.command or "", "device": matched[1], "devices": ", ".join(sorted({*others, matched[1]}))}
            yield finding(tables, "fdb-show-without-dev", params, Quote(shown.source, shown.command or ""))


def table_repeated(tables: Tables) -> Iterator[Finding]:
    """The very same rows twice: two steps of a text that show one table."""
    for shown in tables.node.shown:
        if shown.repeats is not None:
            command = shown.command or shown.table
            yield finding(tables, "table-repeated", {"command": command, "first": shown.repeats}, Quote(shown.source, command), Quote(shown.repeats, command))


def not_shown(tables: Tables) -> Iterator[Finding]:
    """What decides bytes of the packet and is in no table."""
    vxlans = tables.vxlans()
    nics = underlay_devices(tables)
    for device in vxlans:
        command = {"device": device, "command": f"ip -d link show dev {device}"}
        attributes = attributes_of(tables, device)
        if tables.mac(device) is None:
            yield finding(tables, "vtep-mac-unknown", command)
        if attributes.vni is None:
            yield finding(tables, "vni-unknown", command)
        if attributes.port is None:
            yield finding(tables, "port-unknown", command)
    without_mtu = [device for device in dict.fromkeys([*vxlans, *nics, *container_bridges(tables)]) if tables.mtu(device) is None]
    if vxlans and without_mtu:
        yield finding(tables, "mtu-unknown", {"devices": ", ".join(without_mtu), "command": "ip link"})
    silent = [nic for nic in nics if not any(row.device == nic for row in tables.node.neighbours) and not tables.complete("neighbour", nic)]
    if silent:
        yield finding(tables, "underlay-neighbours-unknown", {"devices": ", ".join(silent), "command": f"ip neigh show dev {silent[0]}"})


def underlay_devices(tables: Tables) -> list[str]:
    """The devices by which the remote hosts of the fdb are reached."""
    hosts = dict.fromkeys(row.dst for row in tables.node.fdb if row.dst is not None)
    devices: dict[str, None] = {}
    for host in list(hosts)[:MOST_OF_A_KIND]:
        for hop in tables.lookup(host).hops:
            if hop.device is not None:
                devices[hop.device] = None
    return list(devices)


# ---- bridges -------------------------------------------------------------------------------------------------------------


def overlay_prefixes(tables: Tables) -> list[Prefix]:
    """Networks that VXLAN, UDP-mode and other tunnel devices lead to."""
    return [
        row.dst
        for row in tables.node.routes
        if row.dst.length and any(hop.gateway is not None and hop.device and tables.kind(hop.device)[0] in ("vxlan", "tun") for hop in row.hops)
    ]


def bridge_routes(tables: Tables) -> list[tuple[str, s.RouteRow]]:
    """Bridges with the network that the node has on each."""
    found = []
    for row in tables.node.routes:
        device = row.hops[0].device if row.type == "unicast" and row.hops and row.hops[0].gateway is None else None
        if device is not None and row.dst.length and tables.kind(device)[0] == "bridge":
            found.append((device, row))
    return found


def around(prefixes: list[Prefix]) -> list[Prefix]:
    """The smallest network that holds all of a family, if that says anything: of prefixes side by side."""
    networks = []
    for family in (4, 6):
        those = [prefix for prefix in prefixes if prefix.family == family]
        if those:
            low, high = min(p.network.value for p in those), max(p.network.value + p.step - 1 for p in those)
            bits = those[0].bits
            length = min(bits - (low ^ high).bit_length(), those[0].length - 1)
            networks.append(Prefix.of(low, length, family).network)
    return networks


def container_routes(tables: Tables) -> list[tuple[str, s.RouteRow]]:
    """The bridges whose network is of the overlay, each with that."""
    networks = around(overlay_prefixes(tables))
    return [(device, row) for device, row in bridge_routes(tables) if any(network.contains(row.dst) for network in networks)]


def container_bridges(tables: Tables) -> list[str]:
    return list(dict.fromkeys(device for device, _ in container_routes(tables)))


def bridge_outside_overlay(tables: Tables) -> Iterator[Finding]:
    """A bridge with containers in a network that no other node has a way to."""
    inside = container_bridges(tables)
    if not inside:
        return
    for device, row in bridge_routes(tables):
        if device not in inside:
            ports = sorted({fdb.device for fdb in tables.node.fdb if fdb.master == device and fdb.device != device})
            ports = sorted({*ports, *(port.name for port in tables.devices.values() if port.master == device)})
            evidence = next((quote(fdb) for fdb in tables.node.fdb if fdb.master == device and fdb.device != device), None)
            yield finding(tables, "bridge-outside-overlay", {"bridge": device, "prefix": str(row.dst), "ports": ", ".join(ports) or "-"}, quote(row), evidence)


def prose_names_other_bridge(cluster: Cluster) -> Iterator[Finding]:
    """The text around the tables speaks of a bridge that is none of the containers', and never of the one that is."""
    words: dict[str, s.EvidenceRow] = {}
    for line in cluster.snapshot.prose:
        for word in DEVICE_WORD.findall(line.text):
            words.setdefault(word, line)
    for tables in cluster.tables.values():
        inside = container_bridges(tables)
        if inside and not any(device in words for device in inside):
            for device, row in bridge_routes(tables):
                if device not in inside and device in words:
                    yield finding(tables, "prose-names-other-bridge", {"named": device, "bridge": inside[0]}, quote(words[device]), quote(row))


# ---- neighbours and fdb --------------------------------------------------------------------------------------------------


def fdb_stale(tables: Tables) -> Iterator[Finding]:
    """An fdb row for a MAC that no neighbour of the device points to: left over from an earlier VTEP of that host."""
    for row in tables.node.fdb:
        device = row.device
        if row.dst is None or not any(row.mac) or row.mac[0] & 1 or tables.kind(device)[0] != "vxlan":
            continue
        if tables.complete("neighbour", device) and (device, row.mac) not in tables.pointed_at and (None, row.mac) not in tables.pointed_at:
            params = {"mac": format_mac(row.mac), "device": device, "host": format_address(row.dst)}
            yield finding(tables, "fdb-stale", params, quote(row))


def neighbour_rules(tables: Tables) -> Iterator[Finding]:
    """Neighbours of a VXLAN device: one whose MAC has no host, one that no route uses."""
    used = {(hop.device, hop.gateway) for row in tables.node.routes for hop in row.hops}
    for row in tables.node.neighbours:
        device = row.device
        if device is None or tables.kind(device)[0] != "vxlan" or row.mac is None or row.mac[0] & 1:
            continue
        address = format_address(row.address)
        if tables.complete("fdb", device) and (device, row.mac) not in tables.fdb and (device, bytes(6)) not in tables.fdb:
            yield finding(tables, "neighbour-without-fdb", {"address": address, "mac": format_mac(row.mac), "device": device}, quote(row))
        if tables.complete("route") and (device, row.address) not in used and row.state == "PERMANENT":
            routed = tables.lookup(row.address)
            # DirectRouting keeps the tunnel's rows and leads by the underlay.
            direct = routed.row is not None and routed.row.dst.length and not any(tables.kind(hop.device or "")[0] == "vxlan" for hop in routed.hops)
            if not direct and not any(hop.device == device and hop.gateway is None for hop in routed.hops):
                yield finding(tables, "neighbour-unused", {"address": address, "device": device}, quote(row))


def gateway_without_neighbour(tables: Tables) -> Iterator[Finding]:
    """A route into a VXLAN device whose gateway has no MAC: flannel's devices do not ask for one."""
    for row in tables.node.routes:
        for hop in row.hops:
            if hop.gateway is None or hop.device is None or tables.kind(hop.device)[0] != "vxlan" or not tables.complete("neighbour", hop.device):
                continue
            if tables.neighbour(hop.gateway, hop.device)[0] is None:
                yield finding(tables, "gateway-without-neighbour", {"address": format_address(hop.gateway), "device": hop.device}, quote(row))


def fdb_two_hosts(tables: Tables) -> Iterator[Finding]:
    """One unicast MAC with several hosts: the kernel holds one, so the rows are of different moments."""
    for (device, mac), rows in tables.fdb.items():
        hosts = list(dict.fromkeys(row.dst for row in rows if row.dst is not None and row.src_vni is None))
        if len(hosts) > 1 and any(mac) and not mac[0] & 1:
            params = {"mac": format_mac(mac), "device": device, "hosts": ", ".join(map(format_address, hosts))}
            yield finding(tables, "fdb-two-hosts", params, *map(quote, rows))


# ---- devices and routes --------------------------------------------------------------------------------------------------


def devices(tables: Tables) -> Iterator[Finding]:
    """A device of the packet's way that is down; a VTEP whose packets do not fit the device below; two VTEPs on one port."""
    on_the_way = {*tables.vxlans(), *underlay_devices(tables), *container_bridges(tables)}
    by_port: dict[int, str] = {}
    for row in tables.devices.values():
        if row.up is False and row.name in on_the_way:
            yield finding(tables, "device-down", {"device": row.name}, Quote(row.source, row.text.split("\n")[0]))
        attributes = row.vxlan
        if attributes is None:
            continue
        if attributes.port is not None and not attributes.external:
            family = 6 if attributes.local is not None and len(attributes.local) == 16 else 4
            other = by_port.setdefault(attributes.port * 10 + family, row.name)
            if other != row.name:
                params = {"device": row.name, "other": other, "port": str(attributes.port)}
                yield finding(tables, "vtep-second", params, device_row(tables, row.name), device_row(tables, other))
        below = tables.mtu(attributes.underlay) if attributes.underlay else None
        if below is not None and row.mtu is not None:
            room = below - VXLAN_ADDS[6 if attributes.local is not None and len(attributes.local) == 16 else 4]
            if row.mtu > room:
                params = {"device": row.name, "mtu": str(row.mtu), "underlay": attributes.underlay or "", "room": str(room)}
                yield finding(tables, "mtu-too-large", params, device_row(tables, row.name, HEAD), device_row(tables, row.name))


def forwarding_off(tables: Tables) -> Iterator[Finding]:
    if tables.vxlans():
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            family = 4 if "ipv4" in key else 6
            if tables.sysctl(key) == 0 and any(prefix.family == family for prefix in overlay_prefixes(tables)):
                yield finding(tables, "forwarding-off", {"key": key}, quote(tables.sysctls[key]))


def route_shadowed(tables: Tables) -> Iterator[Finding]:
    """A route into the tunnel beaten by one of the same prefix with a smaller metric: a leftover."""
    best: dict[tuple[str, Prefix], s.RouteRow] = {}
    routes = [row for row in tables.node.routes if row.table != "local" and row.dst.length and not row.tos and not LINK_LOCAL.contains(row.dst)]
    for row in routes:
        before = best.get((row.table, row.dst))
        if before is None or metric(row) < metric(before):
            best[row.table, row.dst] = row
    for row in routes:
        winner = best[row.table, row.dst]
        devices_of = [{hop.device for hop in each.hops} for each in (row, winner)]
        overlay = any(device and tables.kind(device)[0] in ("vxlan", "tun") for device in devices_of[0])
        if winner is not row and overlay and devices_of[0] != devices_of[1]:
            yield finding(tables, "route-shadowed", {"winner": winner.text}, quote(row), quote(winner))


# ---- nodes against each other --------------------------------------------------------------------------------------------


def vtep_mac_differs(cluster: Cluster) -> Iterator[Finding]:
    """A neighbour row that names another MAC than the peer's device has, where both are here."""
    for tables in cluster.tables.values():
        for row in tables.node.neighbours:
            if row.device is None or row.mac is None or tables.kind(row.device)[0] != "vxlan":
                continue
            owner = cluster.owner(row.address)
            right = owner.tables.mac(owner.device) if owner is not None and owner.tables is not tables else None
            if owner is not None and right is not None and right != row.mac and owner.tables.kind(owner.device)[0] == "vxlan":
                params = {"mac": format_mac(row.mac), "right": format_mac(right), "host": owner.tables.name}
                yield finding(tables, "vtep-mac-differs", params, quote(row), device_row(owner.tables, owner.device, LINK))


def vteps_of_one_network(cluster: Cluster) -> Iterator[Finding]:
    """Two nodes with one VTEP MAC; VNIs or ports that differ between devices of one name."""
    by_name: dict[str, list[tuple[Tables, str]]] = {}
    for mac, those in cluster.vteps.items():
        names = sorted({tables.name for tables, _ in those})
        if len(names) > 1:
            params = {"mac": format_mac(mac), "nodes": ", ".join(names)}
            yield finding(those[0][0], "vtep-mac-duplicate", params, *(device_row(*each, LINK) for each in those))
    for tables in cluster.tables.values():
        for device in tables.vxlans():
            by_name.setdefault(device, []).append((tables, device))
    for those in by_name.values():
        for id, key, of in (("vni-differs", "vnis", "vni"), ("port-differs", "ports", "port")):
            values = {getattr(attributes_of(*each), of) for each in those} - {None}
            if len(values) > 1:
                yield finding(those[0][0], id, {key: ", ".join(map(str, sorted(values)))}, *(device_row(*each) for each in those))


def subnet_twice(cluster: Cluster) -> Iterator[Finding]:
    """Two nodes that have one container network on their bridges."""
    holders: dict[Prefix, list[tuple[Tables, s.RouteRow]]] = {}
    for tables in cluster.tables.values():
        for _, row in container_routes(tables):
            holders.setdefault(row.dst, []).append((tables, row))
    for prefix, those in holders.items():
        if len(those) > 1:
            nodes = ", ".join(tables.name for tables, _ in those)
            yield finding(those[0][0], "subnet-twice", {"prefix": str(prefix), "nodes": nodes}, *(quote(row) for _, row in those))


def lease_row_missing(cluster: Cluster) -> Iterator[Finding]:
    """A lease to whose subnet a node has no row of its own."""
    for tables in cluster.tables.values():
        if cluster.host_of(tables) is not tables or not tables.complete("route"):
            continue
        for lease in cluster.snapshot.leases:
            for endpoint in lease.lease.endpoints:
                answer = tables.lookup(endpoint.subnet.host(1))
                by_tun = any(hop.device and tables.kind(hop.device)[0] == "tun" for hop in answer.hops)  # UDP mode: one route for all
                shorter = answer.row is not None and answer.kind == "unicast" and answer.row.dst.length < endpoint.subnet.length and not by_tun
                if answer.kind == "missing" or shorter:
                    yield finding(tables, "lease-row-missing", {"subnet": str(endpoint.subnet)}, quote(lease))


def nft_evidence(tables: Tables) -> Iterator[Finding]:
    rows = tables.node.nft
    if rows:
        yield finding(tables, "nft-evidence", {"lines": str(len(rows))}, *(quote(row) for row in rows[:1]))


OF_A_NODE: tuple[Callable[[Tables], Iterator[Finding]], ...] = (
    fdb_stale,
    fdb_two_hosts,
    neighbour_rules,
    gateway_without_neighbour,
    route_shadowed,
    devices,
    forwarding_off,
    fdb_show_without_dev,
    table_repeated,
    bridge_outside_overlay,
    not_shown,
    nft_evidence,
)
OF_ALL: tuple[Callable[[Cluster], Iterator[Finding]], ...] = (
    vtep_mac_differs,
    vteps_of_one_network,
    subnet_twice,
    lease_row_missing,
    prose_names_other_bridge,
)
