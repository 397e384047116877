"""What of a route to a container is wrong: on its own node, on another, and in a container."""

from __future__ import annotations

import msgspec

from tweed.addr import Prefix, format_address
from tweed.plan.attach import link_local
from tweed.trace import mend
from tweed.trace import snapshot as s
from tweed.trace.case_vtep import VtepCase
from tweed.trace.cluster import holds_containers
from tweed.trace.inside import proxies, veth_of
from tweed.trace.intent import Peer
from tweed.trace.path import NO_ANSWER
from tweed.trace.result import Asked, Divergence
from tweed.trace.tables import Answer, Tables, quote
from tweed.trace.underlay import HEAD, device_row

ENDS_IT = ("blackhole", "unreachable", "prohibit")


class RouteCase(VtepCase):
    """The same for routes and rules."""

    def host_route(self, tables: Tables, asked: Asked, place: str) -> Divergence | None:
        peer = self.intent.of(self.walk.dst)
        if peer is None or peer.backend not in (*mend.UDP, "vxlan", mend.HOST_GW):
            return None
        answer = self.lookup(tables, asked)
        if answer.kind == "unknown":
            return None
        if peer.node == tables.name:
            return self.own_subnet(tables, peer, answer, place)
        return self.by_tun(tables, peer, answer, place) if peer.backend in mend.UDP else self.remote_subnet(tables, peer, answer, place)

    def own_subnet(self, tables: Tables, own: Peer, answer: Answer, place: str) -> Divergence | None:
        """The destination is one of this node's containers, or an address of its own: directly on a bridge or veth."""
        out = answer.hops[0] if answer.hops else None
        if answer.kind == "local" or (answer.kind == "unicast" and out is not None and out.gateway is None and holds_containers(tables, out.device or "")):
            return None
        dst = format_address(self.walk.dst)
        if (blocked := self.in_the_way(tables, own, answer, place)) is not None:
            return blocked
        on = mend.covering(tables.node.addresses, self.walk.dst)
        bridge = on.device if on is not None else next((name for name, row in tables.devices.items() if row.kind == "bridge" and name == "cni0"), None)
        if bridge is None:
            return None
        if tables.devices[bridge].up is False:
            return self.found(tables, bridge, "device-down", {"device": bridge}, (device_row(tables, bridge, HEAD),), self.raise_bridge(tables, bridge, own))
        if on is None:
            gateway = Prefix(own.subnet.host(1), own.subnet.length)
            return self.found(
                tables,
                bridge,
                "address-missing",
                {"address": str(gateway), "device": bridge},
                (device_row(tables, bridge, HEAD), own.row),
                [f"{mend.ip(self.family)} addr add {gateway} dev {bridge}"],
            )
        taken = quote(answer.row) if answer.row is not None else None
        fix = [f"{mend.ip(self.family)} route replace {own.subnet} dev {bridge} proto kernel scope link src {format_address(on.address.address)}"]
        if self.family == 6:
            fix = [f"ip -6 route replace {own.subnet} dev {bridge}"]
        return self.found(tables, bridge, "route-missing", {"dst": dst}, (taken, quote(on)), fix)

    def raise_bridge(self, tables: Tables, bridge: str, own: Peer) -> list[str]:
        """IPv6 addresses go with a device that goes down, IPv4 ones stay. Without a link-local one the kernel asks no neighbour for what it forwards."""
        up, mac = f"ip link set {bridge} up", tables.mac(bridge)
        if own.subnet.family == 4 or mac is None:
            return [up]
        wanted = (link_local(mac), Prefix(own.subnet.host(1), own.subnet.length))
        return [up, *(f"ip -6 addr replace {address} dev {bridge} nodad" for address in wanted if address.address not in tables.own)]

    def remote_subnet(self, tables: Tables, peer: Peer, answer: Answer, place: str) -> Divergence | None:
        """The destination is another node's: through the VTEP to the peer's, or directly to its host (with DirectRouting where that is on-link)."""
        outside = [row for row in tables.node.addresses if tables.kind(row.device)[0] not in ("vxlan", "tun", "bridge")]
        on = mend.covering(outside, peer.host or b"")
        if on is not None and self.intent.network is not None and self.intent.network.direct_routing:
            peer = msgspec.structs.replace(peer, backend=mend.HOST_GW)
        right = (peer.subnet.address, peer.host)
        out = next((hop for hop in answer.hops if hop.gateway not in right), answer.hops[0] if answer.hops else None)
        own = self.intent.at(tables, self.family)
        direct = peer.backend == mend.HOST_GW
        device = own.device if own is not None else next(iter(tables.vxlans()), None)
        if direct:
            device = on.device if on is not None else None
        if answer.kind == "unicast" and out is not None and out.gateway is not None and out.gateway in right:
            return self.wrong_device(tables, own, device) if out.gateway == peer.subnet.address else None
        if not direct and (wrong := self.wrong_device(tables, own, device)) is not None:
            return wrong
        if device is None or peer.host is None or (peer.mac is None and not direct):
            return None
        if answer.kind == "local" and answer.row is not None:
            there = answer.row.hops[0].device or "?" if answer.row.hops else "?"
            address = format_address(self.walk.dst)
            length = next((row.address.length for row in tables.node.addresses if row.address.address == self.walk.dst), self.family_bits)
            delete = [f"{mend.ip(self.family)} addr del {address}/{length} dev {there}"]
            return self.found(tables, there, "address-elsewhere", {"address": address, "device": there}, (quote(answer.row), peer.row), delete)
        if (blocked := self.in_the_way(tables, peer, answer, place, device)) is not None:
            return blocked
        parted = answer.row is not None and len(answer.hops) > 1 and answer.row.dst == peer.subnet
        put = [] if mend.has_route(tables, peer, device) and not parted else [mend.put_route(self.intent, peer, device)]
        dst = format_address(self.walk.dst)
        taken = quote(answer.row) if answer.row is not None else None
        if answer.row is not None and answer.row.dst.length >= peer.subnet.length:
            row = answer.row
            replaces = row.dst == peer.subnet and put and row.table == "main" and (row.metric or 0) == mend.route(self.intent, peer, device).metric
            commands = put if replaces else [mend.delete_route(row), *put]
            gateway = out.gateway if out is not None else None
            other = self.intent.of(gateway) if gateway is not None else None
            other = other or next((p for p in self.intent.peers.values() if gateway is not None and p.host == gateway), None)
            if other is not None and other.subnet != peer.subnet:
                params = {"dst": dst, "prefix": str(row.dst), "host": other.node or str(other.subnet)}
                return self.found(tables, out.device or device if out else device, "route-wrong-node", params, (taken, peer.row), commands)
            params = {"dst": dst, "way": row.text.split("\n")[0].strip()}
            return self.found(tables, out.device or device if out else device, "route-leftover", params, (taken, peer.row), commands)
        if not direct and own is not None and own.subnet.address not in tables.own and tables.complete("address"):
            params = {"address": format_address(own.subnet.address), "device": device}
            lost = [mend.put_address(own, device), *mend.missing_rows(self.intent, tables, device)]
            return self.found(tables, device, "address-missing", params, (device_row(tables, device, HEAD), own.row), lost)
        return self.found(tables, device, "route-missing", {"dst": dst}, (taken, peer.row), put)

    def by_tun(self, tables: Tables, peer: Peer, answer: Answer, place: str) -> Divergence | None:
        """UDP mode: one route leads what is for all other nodes to the daemon's device."""
        device, put = mend.tun_route(self.intent, tables)
        if device is None:
            return None
        if (blocked := self.in_the_way(tables, peer, answer, place)) is not None:
            return blocked
        if tables.devices[device].up is False:
            return self.tun_down(tables, device)
        row, dst = answer.row, format_address(self.walk.dst)
        if any(hop.device == device for hop in answer.hops):
            return None
        if row is None or not row.dst.length:
            taken = quote(row) if row is not None else None
            return self.found(tables, device, "route-missing", {"dst": dst}, (taken, peer.row), put)
        params = {"dst": dst, "way": row.text.split("\n")[0].strip()}
        return self.found(tables, device, "route-leftover", params, (quote(row), peer.row), [mend.delete_route(row), *put])

    def tun_down(self, tables: Tables, device: str) -> Divergence:
        """Its route went with it."""
        commands = [f"ip link set {device} up", *mend.tun_route(self.intent, tables)[1]]
        return self.found(tables, device, "device-down", {"device": device}, (device_row(tables, device, HEAD),), commands)

    def in_the_way(self, tables: Tables, peer: Peer, answer: Answer, place: str, device: str | None = None) -> Divergence | None:
        """A rule that drops or leads to another table, or a row that drops."""
        dst = format_address(self.walk.dst)
        put = [mend.put_route(self.intent, peer, device)] if device is not None and not mend.has_route(tables, peer, device) else []
        rule, row = answer.rule, answer.row
        if rule is not None and rule.source and rule.action != "lookup":
            return self.found(tables, place, "rule-drops", {"dst": dst, "action": rule.action}, (quote(rule), peer.row), [mend.delete_rule(rule), *put])
        if rule is not None and rule.source and answer.table not in ("main", "local", "default"):
            params = {"dst": dst, "table": answer.table, "priority": str(rule.priority)}
            out = answer.hops[0].device or "" if answer.hops else place
            return self.found(tables, out, "rule-diverts", params, (quote(rule), quote(row) if row is not None else None), [mend.delete_rule(rule), *put])
        thrown = next((loser.row for loser in answer.losers if loser.why.id == "other-table"), None)
        if thrown is not None and (answer.kind == "missing" or (row is not None and row.dst.length < peer.subnet.length)):
            throw = next((each for each in tables.node.routes if quote(each) == thrown), None)
            if throw is not None:
                params = {"dst": dst, "prefix": str(throw.dst)}
                return self.found(tables, device or place, "route-throw", params, (thrown, peer.row), [mend.delete_route(throw), *put])
        if answer.kind in ENDS_IT and row is not None:
            return self.found(
                tables, device or place, f"route-{answer.kind}", {"dst": dst, "prefix": str(row.dst)}, (quote(row), peer.row), [mend.delete_route(row), *put]
            )
        return None

    def container_route(self, tables: Tables, asked: Asked) -> Divergence | None:
        """A container reaches everything through its node's bridge, and its own network directly."""
        answer = self.lookup(tables, asked)
        out = answer.hops[0] if answer.hops else None
        host = self.cluster.host_of(tables)
        device = next((row.name for row in tables.node.devices if row.kind == "veth"), out.device if out is not None else "eth0") or "eth0"
        if answer.kind == "local" or answer.kind == "unknown":
            return None
        own = next((row for row in tables.node.addresses if row.device == device and row.address.family == self.family and row.scope != "link"), None)
        peer = self.intent.of(self.walk.dst)
        away = peer is not None and peer.node != host.name
        direct = own is not None and own.address.network.contains(self.walk.dst) and not away
        gateway = self.gateway_of(tables, host, device, own)
        wanted = None if direct else gateway
        if answer.kind == "unicast" and out is not None:
            if out.gateway == wanted or (out.gateway is not None and out.gateway in host.own) or (out.gateway is None and self.walk.dst in host.own):
                return None
            if out.gateway is None and away and peer is not None:
                return self.on_link(tables, host, device, answer, peer, gateway)
            if direct or out.gateway is None or self.answers(tables, out):
                return None
            if gateway is None:
                return self.bridge_address(tables, host, device, out.gateway)
        if gateway is None or own is None:
            return None
        row = device_row(tables, device, HEAD)
        dst = format_address(self.walk.dst)
        ip = mend.ip(self.family)
        reaches = any(r.dst.contains(gateway) and r.dst.length for r in tables.node.routes if r.type == "unicast" and r.dst.family == self.family)
        network = [] if reaches else [f"{ip} route replace {own.address.network} dev {device}"]
        default = [*network, f"{ip} route replace default via {format_address(gateway)} dev {device}"]
        if tables.devices[device].up is False:
            return self.found(tables, device, "device-down", {"device": device}, (row,), [f"ip link set {device} up", *default])
        if answer.kind in ENDS_IT and answer.row is not None:
            return self.found(
                tables,
                device,
                f"route-{answer.kind}",
                {"dst": dst, "prefix": str(answer.row.dst)},
                (quote(answer.row),),
                [mend.delete_route(answer.row), *self.unless_covered(tables, default)],
            )
        if answer.rule is not None and answer.rule.source and answer.rule.action != "lookup":
            return self.found(tables, device, "rule-drops", {"dst": dst, "action": answer.rule.action}, (quote(answer.rule),), [mend.delete_rule(answer.rule)])
        if answer.row is not None:
            row_fix = [mend.delete_route(answer.row), *default] if answer.row.dst.length else default
            params = {"gateway": format_address(out.gateway) if out is not None and out.gateway else "?", "right": format_address(gateway)}
            return self.found(tables, device, "gateway-wrong", params | {"device": device}, (quote(answer.row),), row_fix)
        return self.found(tables, device, "route-missing", {"dst": dst}, tuple(quote(r) for r in tables.node.routes if r.table == "main")[:4], default)

    def on_link(self, tables: Tables, host: Tables, device: str, answer: Answer, peer: Peer, gateway: bytes | None) -> Divergence | None:
        """A container asks its own network for what is another node's, by a route of its own or by a netmask that is too wide."""
        veth, row = veth_of(host, tables, device), answer.row
        if gateway is None or row is None or veth is None or proxies(host, veth.master or veth.name, self.walk.dst):
            return None
        put = f"{mend.ip(self.family)} route replace {peer.subnet} via {format_address(gateway)} dev {device}"
        params = {"gateway": format_address(self.walk.dst), "right": format_address(gateway), "device": device}
        fix = [mend.delete_route(row)] if row.dst.length > peer.subnet.length else [put]
        return self.found(tables, device, "gateway-wrong", params, (quote(row),), fix)

    def answers(self, tables: Tables, hop: s.NextHop) -> bool:
        """Whether somebody has been found behind a next hop."""
        row = tables.neighbour(hop.gateway, hop.device or "")[0] if hop.gateway is not None else None
        return row is not None and row.mac is not None and row.state not in NO_ANSWER

    def bridge_address(self, tables: Tables, host: Tables, device: str, gateway: bytes) -> Divergence | None:
        """A container's gateway is nobody's: the bridge that its veth is a port of has lost it."""
        veth, own = veth_of(host, tables, device), self.intent.at(host, self.family)
        if veth is None or own is None or not own.subnet.contains(gateway) or not host.complete("address"):
            return None
        address = Prefix(gateway, own.subnet.length)
        if veth.master is None:
            return self.bridge_gone(host, own, address)
        fix = [f"{mend.ip(self.family)} addr add {address} dev {veth.master}"]
        params = {"address": str(address), "device": veth.master}
        return self.found(host, veth.master, "address-missing", params, (device_row(host, veth.master, HEAD), own.row), fix)

    def bridge_gone(self, host: Tables, own: Peer, address: Prefix) -> Divergence | None:
        """There is no bridge any more: made anew, with the veths of all containers of the node's subnet as its ports."""
        if any(row.kind == "bridge" and row.name == "cni0" for row in host.node.devices):
            return None
        inside = [each for each in self.cluster.tables.values() if each.node.host == host.name and any(own.subnet.contains(a) for a in each.own)]
        veths = [veth.name for each in inside for row in each.node.devices if (veth := veth_of(host, each, row.name)) is not None]
        make = ["ip link add cni0 type bridge", "ip link set cni0 up", f"{mend.ip(self.family)} addr add {address} dev cni0"]
        ports = [f"ip link set {name} master cni0" for name in veths]
        return self.found(host, "cni0", "device-missing", {"device": "cni0"}, (own.row,), [*make, *ports])

    def unless_covered(self, tables: Tables, commands: list[str]) -> list[str]:
        rest = any(r.type == "unicast" and r.table == "main" and r.dst.contains(self.walk.dst) for r in tables.node.routes)
        return [] if rest else commands

    def gateway_of(self, tables: Tables, host: Tables, device: str, own: s.AddressRow | None) -> bytes | None:
        """The address of its node that is on its network, best on the bridge that its veth is a port of."""
        if own is None or host is tables:
            return None
        veth = veth_of(host, tables, device)
        places = [veth.master if veth is not None else None, None]
        for place in places:
            for row in host.node.addresses:
                on_it = row.address.family == self.family and own.address.network.contains(row.address.address)
                if on_it and place in (None, row.device) and host.kind(row.device)[0] != "vxlan":
                    return row.address.address
        return None
