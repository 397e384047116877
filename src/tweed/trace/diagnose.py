"""Where a packet first goes another way than it should, and what mends it: the walk held against what should be (`intent`).

    diagnose(cluster, intent, walk) -> Walk      the same with its first divergence at the row that is wrong

A walk says where the packet ends; the row that is wrong is often another: a stale MAC is sent by one node and dropped by the next.
Each decision of the walk is looked at in order. The first that differs from what the lease of the destination asks for is the divergence.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tweed.addr import Prefix, format_address, format_mac
from tweed.plan.attach import link_local
from tweed.plan.subnets import vtep_mac
from tweed.trace import mend
from tweed.trace import snapshot as s
from tweed.trace.cluster import Cluster, holds_containers
from tweed.trace.inside import veth_of
from tweed.trace.intent import Intent, Peer
from tweed.trace.path import NO_ANSWER
from tweed.trace.result import Asked, Divergence, Fix, Quote, Said, Step, Verdict, Walk
from tweed.trace.tables import Answer, Flow, Tables, quote
from tweed.trace.underlay import HEAD, LINK, attributes_of, device_row

BAD: tuple[Verdict, ...] = ("dropped", "lost", "detour")
ENDS_IT = ("blackhole", "unreachable", "prohibit")
ADDRESSES_TRIED = 8


def diagnose(cluster: Cluster, intent: Intent, walk: Walk) -> Walk:
    """The walk with its cause; one that only ends where the tables end is lost when a decision on its way is wrong."""
    if walk.verdict == "delivered":
        return elsewhere(cluster, intent, walk)
    branch = next((name for name, verdict in walk.outcomes.items() if verdict == walk.verdict), "")
    case = Case(cluster, intent, walk)
    for step in walk.way(branch):
        found = case.look(step)
        if found is not None:
            verdict: Verdict = walk.verdict if walk.verdict in BAD else "lost"
            return msgspec.structs.replace(walk, verdict=verdict, first_divergence=found, outcomes=walk.outcomes | {branch: verdict})
    return walk


def elsewhere(cluster: Cluster, intent: Intent, walk: Walk) -> Walk:
    """Delivered to whom the address belongs? A node that has a container's of another node takes what is not for it."""
    last = next((step for step in reversed(walk.steps) if step.decision.id == "route-local"), None)
    if last is None or cluster.tables[last.node].node.host is not None:
        return walk
    found = Case(cluster, intent, walk).look(last)
    if found is None or found.cause.id != "address-elsewhere":
        return walk
    return msgspec.structs.replace(walk, verdict="lost", first_divergence=found, outcomes=dict.fromkeys(walk.outcomes, "lost"))


class Case:
    """One walk under examination. Every method answers what is wrong there, None for nothing."""

    def __init__(self, cluster: Cluster, intent: Intent, walk: Walk) -> None:
        self.cluster, self.intent, self.walk = cluster, intent, walk
        self.family = 4 if len(walk.dst) == 4 else 6

    def look(self, step: Step) -> Divergence | None:
        tables, asked, cause = self.cluster.tables[step.node], step.asked, step.decision.id
        host = self.cluster.host_of(tables) is tables
        if asked is not None and asked.table == "route" and asked.address == self.walk.dst:
            found = self.host_route(tables, asked, step.device) if host else self.container_route(tables, asked)
        elif asked is not None and asked.table == "neighbour" and host and tables.kind(asked.device)[0] == "vxlan":
            found = self.vtep_neighbour(tables, asked)
        elif asked is not None and asked.table == "fdb" and not asked.master:
            found = self.vtep_fdb(tables, asked)
        elif cause in ("encapsulated", "local-not-ours"):
            found = self.vtep_device(tables, step.device)
        elif step.question == 4:
            found = self.underlay_way(tables, step)
        elif cause == "leaves-vxlan":
            found = self.peer_address(step)
        else:
            found = None
        if found is None and (last := FAILURES.get(cause)) is not None:
            found = last(self, tables, step)
        return found

    def found(
        self, tables: Tables, device: str, cause: str, params: dict[str, str], evidence: tuple[Quote | None, ...], commands: list[str] | tuple[Fix, ...]
    ) -> Divergence:
        fix = mend.fixes(tables, *commands) if isinstance(commands, list) else commands
        return Divergence(tables.name, device, Said(cause, params), tuple(row for row in evidence if row is not None and row.text), fix)

    # ---- routes -----------------------------------------------------------------------------------------------------------

    def lookup(self, tables: Tables, asked: Asked) -> Answer:
        return tables.lookup(asked.address, src=asked.src, iif=asked.iif, oif=asked.oif, flow=Flow(asked.proto, asked.sport, asked.dport))

    def host_route(self, tables: Tables, asked: Asked, place: str) -> Divergence | None:
        peer = self.intent.of(self.walk.dst)
        if peer is None or peer.backend not in ("", "vxlan", mend.HOST_GW):
            return None
        answer = self.lookup(tables, asked)
        if answer.kind == "unknown":
            return None
        return self.own_subnet(tables, peer, answer, place) if peer.node == tables.name else self.remote_subnet(tables, peer, answer, place)

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
        """The destination is another node's: through the VTEP to the peer's, or directly to its host."""
        right = (peer.subnet.address, peer.host)
        out = next((hop for hop in answer.hops if hop.gateway not in right), answer.hops[0] if answer.hops else None)
        own = self.intent.at(tables, self.family)
        direct = peer.backend == mend.HOST_GW
        device = own.device if own is not None else next(iter(tables.vxlans()), None)
        if direct:
            on = mend.covering((row for row in tables.node.addresses if tables.kind(row.device)[0] not in ("vxlan", "tun", "bridge")), peer.host or b"")
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

    @property
    def family_bits(self) -> int:
        return 32 if self.family == 4 else 128

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
        direct = own is not None and own.address.network.contains(self.walk.dst)
        gateway = self.gateway_of(tables, host, device, own)
        wanted = None if direct else gateway
        if answer.kind == "unicast" and out is not None:
            if out.gateway == wanted or (out.gateway is not None and out.gateway in host.own) or (out.gateway is None and self.walk.dst in host.own):
                return None
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

    # ---- the VTEP's rows ----------------------------------------------------------------------------------------------------

    def vtep_neighbour(self, tables: Tables, asked: Asked) -> Divergence | None:
        peer, device = self.intent.of(asked.address), asked.device
        if peer is None or peer.subnet.address != asked.address or peer.mac is None:
            return None
        if doubles := self.intent.doubles(peer):
            return self.duplicate(peer, doubles)
        row, _ = tables.neighbour(asked.address, device)
        if row is None or row.mac is None:  # they are flushed when the device gets another MAC
            own = self.intent.at(tables, self.family)
            if own is not None and own.device == device and own.mac is not None and tables.mac(device) not in (own.mac, None):
                return self.vtep_device(tables, device)
        params = {"address": format_address(asked.address), "device": device}
        if row is None and not tables.complete("neighbour", device):
            return None
        if row is None or row.mac is None or row.state in NO_ANSWER:  # nobody answers on a VTEP: FAILED is what asking for a missing row leaves
            shown = quote(row) if row is not None else None
            return self.found(tables, device, "neighbour-missing", params, (shown, peer.row), self.put_peer(tables, peer, device))
        if row.mac == peer.mac:
            return None
        params = {"mac": format_mac(row.mac), "right": format_mac(peer.mac), "device": device}
        stale = tables.fdb.get((device, row.mac), [])
        needed = any(other.mac == row.mac for other in self.intent.peers.values())
        commands = self.put_peer(tables, peer, device) + [mend.delete_fdb(each) for each in stale if not needed]
        return self.found(tables, device, "vtep-mac-stale", params, (quote(row), *map(quote, stale[:1]), peer.row), commands)

    def put_peer(self, tables: Tables, peer: Peer, device: str) -> list[str]:
        """The neighbour row of a peer, behind the fdb row that it needs."""
        assert peer.mac is not None
        there = peer.host is None or any(row.dst == peer.host for row in tables.fdb.get((device, peer.mac), ()))
        entry = [] if there or peer.host is None else [mend.put_fdb(peer.mac, device, peer.host)]
        return [*entry, mend.put_neighbour(peer, device)]

    def vtep_fdb(self, tables: Tables, asked: Asked) -> Divergence | None:
        device = asked.device
        peer = self.intent.of(self.walk.dst)
        if peer is None or peer.mac is None or peer.host is None or asked.address not in (peer.mac, bytes(6)):
            return None
        rows = tables.fdb.get((device, peer.mac), [])
        if any(row.dst == peer.host for row in rows) and len(rows) == 1:
            row = rows[0]
            odd = (row.port is not None and row.port != self.intent.port) or (row.vni is not None and row.vni != self.intent.vni)
            if not odd:
                return None
            cause = "port-mismatch" if row.port is not None and row.port != self.intent.port else "vni-mismatch"
            value, right = (row.port, self.intent.port) if cause == "port-mismatch" else (row.vni, self.intent.vni)
            params = {cause.partition("-")[0]: str(value), "right": str(right), "device": device}
            again = [mend.delete_fdb(row), mend.put_fdb(peer.mac, device, peer.host)]
            return self.found(tables, device, cause, params, (quote(row),), again)
        put = [mend.put_fdb(peer.mac, device, peer.host)]
        mac = format_mac(peer.mac)
        if not rows:
            if not tables.complete("fdb", device):
                return None
            return self.found(tables, device, "fdb-missing", {"mac": mac, "device": device}, (peer.row,), put)
        wrong = next(row for row in rows if row.dst != peer.host or len(rows) > 1)
        host = format_address(wrong.dst) if wrong.dst is not None else "?"
        return self.found(tables, device, "fdb-wrong-host", {"mac": mac, "host": host, "right": format_address(peer.host)}, (quote(wrong), peer.row), put)

    def duplicate(self, peer: Peer, doubles: list[Peer]) -> Divergence | None:
        """Of several with one MAC the one that did not make it itself, else the last, needs another."""
        network = self.intent.network
        cluster = (network.network if self.family == 4 else network.network6) if network is not None else None

        def own_mac(each: Peer, attempt: int = 0) -> bytes:
            return vtep_mac(cluster or each.subnet, self.intent.vni or 1, each.subnet, attempt)

        same = [each for each in self.intent.peers.values() if each == peer or each in doubles]
        wrong = next((each for each in same if each.mac != own_mac(each)), same[-1])
        right = next(each for each in same if each != wrong)
        tables = self.cluster.tables.get(wrong.node or "")
        taken = {each.mac for each in self.intent.peers.values()}
        new = next((mac for attempt in range(ADDRESSES_TRIED) if (mac := own_mac(wrong, attempt)) not in taken), None)
        assert wrong.mac is not None
        params = {"mac": format_mac(wrong.mac), "device": wrong.device or "?"}
        evidence = tuple(each.row for each in same if each.row is not None)
        if tables is None or wrong.device is None or new is None:
            return Divergence(wrong.node or "", wrong.device or "", Said("vtep-mac-duplicate", params), evidence)
        fix = [*mend.fixes(tables, f"ip link set {wrong.device} address {format_mac(new)}", *self.all_neighbours(tables, wrong.device))]
        if right.host is not None and right.mac is not None:
            fix += mend.fixes(tables, mend.put_fdb(right.mac, wrong.device, right.host))
        for other in self.intent.peers.values():
            there = self.cluster.tables.get(other.node or "")
            if there is None or other == wrong or other.device is None or other.subnet.family != self.family or wrong.host is None:
                continue
            fix += mend.fixes(there, mend.put_fdb(new, other.device, wrong.host), mend.put_neighbour(wrong, other.device, new))
            if other != right and right.host is not None and right.mac is not None:
                fix += mend.fixes(there, mend.put_fdb(right.mac, other.device, right.host))
        return Divergence(tables.name, wrong.device, Said("vtep-mac-duplicate", params), evidence, tuple(fix))

    def all_neighbours(self, tables: Tables, device: str) -> list[str]:
        """All of a VTEP's: the kernel flushes them when its MAC is set."""
        return [mend.put_neighbour(peer, device) for peer in self.intent.others(tables, self.family)]

    # ---- the VTEP itself ----------------------------------------------------------------------------------------------------

    def wrong_device(self, tables: Tables, own: Peer | None, device: str | None) -> Divergence | None:
        """A VTEP that is not there, is down, or lost its port to another."""
        if device is None:
            if own is None or not tables.complete("link"):
                return None
            name = f"flannel{'-v6' if self.family == 6 else ''}.{self.intent.vni}"
            return self.found(tables, name, "vtep-missing", {"host": tables.name}, (own.row,), mend.create_vtep(self.intent, tables, own, name))
        row = tables.devices.get(device)
        if row is None or row.up is not False:
            return None
        shown = device_row(tables, device, HEAD)
        commands = mend.raise_vtep(self.intent, tables, own, device) if own is not None else [f"ip link set {device} up"]
        port = attributes_of(tables, device).port
        for name in tables.vxlans():
            other = tables.devices.get(name)
            mine, theirs = attributes_of(tables, device), attributes_of(tables, name)
            if name != device and other is not None and other.up and theirs.port == port and (theirs.external, theirs.gbp) != (mine.external, mine.gbp):
                params = {"device": device, "other": name, "port": str(port)}
                return self.found(tables, device, "vtep-second", params, (shown, device_row(tables, name)), [f"ip link del {name}", *commands])
        return self.found(tables, device, "device-down", {"device": device}, (shown,), commands)

    def vtep_device(self, tables: Tables, device: str) -> Divergence | None:
        """Its VNI, port, source and MAC, against the configuration and the node's own lease."""
        own, has = self.intent.at(tables, self.family), attributes_of(tables, device)
        if own is None or own.device != device:
            return None
        line = device_row(tables, device)
        for name, value, right in (("vni", has.vni, self.intent.vni), ("port", has.port, self.intent.port)):
            if value is not None and right is not None and value != right:
                params = {name: str(value), "right": str(right), "device": device}
                return self.found(tables, device, f"{name}-mismatch", params, (line, own.row), mend.create_vtep(self.intent, tables, own, device))
        if has.local is not None and has.local == own.host and has.local not in tables.own and tables.complete("address"):
            return self.host_address(tables, own, has.underlay, line)
        if has.local is not None and own.host is not None and has.local != own.host:
            params = {"local": format_address(has.local), "right": format_address(own.host), "device": device}
            nic = f" dev {has.underlay}" if has.underlay else ""
            fix = [f"ip link set {device} type vxlan local {format_address(own.host)}{nic}"]
            return self.found(tables, device, "local-wrong", params, (line, own.row), fix)
        mac = tables.mac(device)
        if mac is not None and own.mac is not None and mac != own.mac:
            params = {"mac": format_mac(mac), "right": format_mac(own.mac), "device": device}
            fix = [f"ip link set {device} address {format_mac(own.mac)}", *self.all_neighbours(tables, device)]
            return self.found(tables, device, "vtep-mac-wrong", params, (device_row(tables, device, LINK), own.row), fix)
        return None

    def peer_address(self, step: Step) -> Divergence | None:
        """The host that the frame is for: does the node that its lease belongs to still have that address?"""
        host = step.decision.params["host"]
        for peer in self.intent.peers.values():
            there = self.cluster.tables.get(peer.node or "")
            if there is not None and peer.host is not None and format_address(peer.host) == host and peer.host not in there.own and there.complete("address"):
                device = peer.device or ""
                return self.host_address(there, peer, attributes_of(there, device).underlay, device_row(there, device))
        return None

    def host_address(self, tables: Tables, own: Peer, nic: str | None, line: Quote | None) -> Divergence | None:
        """The node has lost the address that all others know it by. How long its network is the others' addresses say."""
        host = own.host or b""
        others = [row for each in self.cluster.tables.values() for row in each.node.addresses if row.address.network.contains(host) and row.address.length]
        near = [row for row in others if not any(peer.subnet.contains(host) for peer in self.intent.peers.values()) and row.device != "lo"]
        if nic is None or not near:
            return None
        address = Prefix(host, max(row.address.length for row in near))
        gateway = next(
            (row for each in self.cluster.tables.values() if each.node.host is None for row in each.node.routes if not row.dst.length and row.hops), None
        )
        via = gateway.hops[0].gateway if gateway is not None else None
        lost = (
            via is not None and address.network.contains(via) and not any(not row.dst.length for row in tables.node.routes if row.dst.family == address.family)
        )
        ip = mend.ip(address.family)
        back = [f"{ip} route replace default via {format_address(via)} dev {nic}"] if lost and via is not None else []
        put = [f"{ip} addr replace {address} dev {nic}{' nodad' if address.family == 6 else ''}", *back]
        if (row := tables.devices.get(nic)) is not None and row.up is False:  # what goes down loses its IPv6 addresses
            return self.found(tables, nic, "device-down", {"device": nic}, (device_row(tables, nic, HEAD), own.row), [f"ip link set {nic} up", *put])
        return self.found(tables, nic, "address-missing", {"address": str(address), "device": nic}, (line, own.row), put)

    # ---- where it ended -------------------------------------------------------------------------------------------------------

    def at_the_receiver(self, tables: Tables, step: Step) -> Divergence | None:
        """The peer's VTEP does not take it: it is not as it should be, else the sender's is not."""
        own = self.intent.at(tables, self.family)
        if (wrong := self.wrong_device(tables, own, own.device if own is not None else None)) is not None:
            return wrong
        for each in (tables, *(self.cluster.tables[node] for node in dict.fromkeys(step.node for step in self.walk.steps))):
            device = mend.own_device(self.intent, each, self.family)
            if device is not None and (found := self.vtep_device(each, device)) is not None:
                return found
        return None

    def device_down(self, tables: Tables, step: Step) -> Divergence | None:
        own = self.intent.at(tables, self.family)
        if own is not None and step.device == own.device:
            return self.wrong_device(tables, own, own.device)
        if own is not None and tables.kind(step.device)[0] == "bridge":
            row = device_row(tables, step.device, HEAD)
            return self.found(tables, step.device, "device-down", {"device": step.device}, (row,), self.raise_bridge(tables, step.device, own))
        if self.cluster.host_of(tables) is not tables:
            return self.container_down(tables, step.device)
        return None

    def port_blocked(self, tables: Tables, step: Step) -> Divergence | None:
        """A port without carrier is disabled: the container's end of its veth is down."""
        for each in self.cluster.tables.values():
            for row in each.node.devices if each.node.host == tables.name else ():
                veth = veth_of(tables, each, row.name)
                if veth is not None and veth.name == step.decision.params["port"] and row.up is False:
                    return self.container_down(each, row.name)
        return None

    def container_down(self, tables: Tables, device: str) -> Divergence:
        """A container's device is down, and its routes went with it."""
        host = self.cluster.host_of(tables)
        other = self.walk.dst if self.walk.src in tables.own else self.walk.src
        there = next((row for row in tables.node.addresses if row.device == device and row.address.family == self.family), None)
        gateway = self.gateway_of(tables, host, device, there)
        back = []
        if gateway is not None and tables.lookup(other).kind != "unicast":
            back = [f"{mend.ip(self.family)} route replace default via {format_address(gateway)} dev {device}"]
        row = device_row(tables, device, HEAD)
        return self.found(tables, device, "device-down", {"device": device}, (row,), [f"ip link set {device} up", *back])

    def underlay_route(self, tables: Tables, step: Step) -> Divergence | None:
        """The outer packet finds no way: the NIC is down, or its network's route is gone."""
        if step.asked is None or step.asked.address == self.walk.dst:
            return None
        own, device = self.intent.at(tables, self.family), step.device
        nic = attributes_of(tables, device).underlay
        on = mend.covering((row for row in tables.node.addresses if tables.kind(row.device)[0] != "vxlan"), step.asked.address)
        nic = nic or (on.device if on is not None else None)
        if nic is None or nic not in tables.devices:
            return None
        row = device_row(tables, nic, HEAD)
        if tables.devices[nic].up is False:
            return self.found(tables, nic, "device-down", {"device": nic}, (row,), [f"ip link set {nic} up"])
        answer = self.lookup(tables, step.asked)
        if answer.row is not None and answer.kind in ENDS_IT:
            params = {"dst": format_address(step.asked.address), "prefix": str(answer.row.dst)}
            return self.found(tables, nic, f"route-{answer.kind}", params, (quote(answer.row),), [mend.delete_route(answer.row)])
        if answer.rule is not None and answer.rule.source and answer.rule.action != "lookup":
            params = {"dst": format_address(step.asked.address), "action": answer.rule.action}
            return self.found(tables, nic, "rule-drops", params, (quote(answer.rule),), [mend.delete_rule(answer.rule)])
        source = own.host if own is not None else None
        if on is None:
            return None
        words = f" src {format_address(source)}" if source is not None and source == on.address.address else ""
        fix = [f"{mend.ip(on.address.family)} route replace {on.address.network} dev {nic}{words}"]
        return self.found(tables, nic, "route-missing", {"dst": format_address(step.asked.address)}, (quote(on),), fix)

    def underlay_way(self, tables: Tables, step: Step) -> Divergence | None:
        """A host on this node's own network, reached by another way than directly."""
        asked = step.asked
        if asked is None:
            return None
        on = mend.covering((row for row in tables.node.addresses if tables.kind(row.device)[0] not in ("vxlan", "tun", "loopback")), asked.address)
        answer = self.lookup(tables, asked)
        if on is None or answer.row is None or on.address.length >= on.address.bits - 1:
            return None
        out = answer.hops[0] if answer.hops else None
        if out is None or (out.device == on.device and out.gateway in (None, asked.address)):
            return None
        there = any(row.dst == on.address.network and row.table == "main" and any(hop.device == on.device for hop in row.hops) for row in tables.node.routes)
        family = on.address.family
        put = [] if there else [f"{mend.ip(family)} route replace {on.address.network} dev {on.device} src {format_address(on.address.address)}"]
        commands = put if answer.row.dst.length < on.address.length else [mend.delete_route(answer.row), *put]
        params = {"host": format_address(asked.address), "way": answer.row.text.split("\n")[0].strip(), "right": on.device}
        return self.found(tables, on.device if not there else out.device or on.device, "underlay-route-wrong", params, (quote(answer.row), quote(on)), commands)

    def underlay_neighbour(self, tables: Tables, step: Step) -> Divergence | None:
        """The next hop's MAC is wrong at who sent it, not where it is missed."""
        address = step.decision.params["address"]
        raw = self.walk.first_divergence
        if raw is None:
            return None
        sender = self.cluster.tables.get(raw.fix[0].node) if raw.fix else None
        if sender is None:
            return None
        device = raw.fix[0].command.partition(" dev ")[2].split()[0]
        peer = self.cluster.owner(next(a for a in self.cluster.owners if format_address(a) == address))
        shown = device_row(peer.tables, peer.device, LINK) if peer is not None else None
        return Divergence(sender.name, device, step.decision, tuple(q for q in (step.row, shown) if q is not None), raw.fix)

    def neighbour_failed(self, tables: Tables, step: Step) -> Divergence | None:
        """Nobody answers for the next hop: its device may be down, else the row is of another time."""
        address = next((a for a in self.cluster.owners if format_address(a) == step.decision.params["address"]), None)
        owner = self.cluster.owner(address) if address is not None else None
        if owner is None or address is None:
            return self.address_lost(tables, step)
        if owner.tables.devices.get(owner.device) is not None and owner.tables.devices[owner.device].up is False:
            if self.cluster.host_of(owner.tables) is not owner.tables:
                return self.container_down(owner.tables, owner.device)
            row = device_row(owner.tables, owner.device, HEAD)
            return self.found(owner.tables, owner.device, "device-down", {"device": owner.device}, (row,), [f"ip link set {owner.device} up"])
        mac = owner.tables.mac(owner.device)
        if mac is None:
            return None
        fix = [f"{mend.ip(4 if len(address) == 4 else 6)} neigh replace {format_address(address)} lladdr {format_mac(mac)} dev {step.device} nud permanent"]
        return self.found(tables, step.device, "neighbour-failed", step.decision.params, (step.row, device_row(owner.tables, owner.device, LINK)), fix)

    def address_lost(self, tables: Tables, step: Step) -> Divergence | None:
        """Nobody has the address that a node's bridge asks for, and one of its containers has none at all."""
        own = self.intent.at(tables, self.family)
        if own is None or not own.subnet.contains(self.walk.dst) or step.decision.params["address"] != format_address(self.walk.dst):
            return None
        containers = [each for each in self.cluster.tables.values() if each.node.host == tables.name]
        bare = [each for each in containers if not any(r.address.family == self.family and r.device != "lo" and r.scope != "link" for r in each.node.addresses)]
        bare = [each for each in bare if each.complete("address") and (veth := veth_of(tables, each, "eth0")) is not None and veth.master == step.device]
        if len(bare) != 1:
            return None
        (lost,) = bare
        address = f"{format_address(self.walk.dst)}/{own.subnet.length}"
        gateway = format_address(own.subnet.host(1))
        ip = mend.ip(self.family)
        commands = [f"{ip} addr add {address} dev eth0", f"{ip} route replace default via {gateway} dev eth0"]
        params = {"address": address, "device": "eth0"}
        return self.found(lost, "eth0", "address-missing", params, (device_row(lost, "eth0", HEAD), step.row), commands)

    def source_check(self, tables: Tables, step: Step) -> Divergence | None:
        """rp_filter is strict; the route back may be what is wrong."""
        src = self.walk.src
        peer, back = self.intent.of(src), tables.lookup(src, src=self.walk.dst)
        row = step.row
        raw = self.walk.first_divergence
        if raw is None or back.row is None or peer is None or peer.node == tables.name:
            return None
        own = self.intent.at(tables, self.family)
        gateway = back.hops[0].gateway if back.hops else None
        if own is None or own.device is None or gateway == peer.subnet.address or back.row.dst.length < peer.subnet.length:
            return None
        put = [] if mend.has_route(tables, peer, own.device) or peer.mac is None else [mend.put_route(self.intent, peer, own.device)]
        return self.found(tables, step.device, "rp-filter", step.decision.params, (row, quote(back.row), peer.row), [mend.delete_route(back.row), *put])

    def too_large(self, tables: Tables, step: Step) -> Divergence | None:
        """What does not fit the tunnel was let through by a device whose MTU is too large."""
        owner = self.cluster.owner(self.walk.src)
        if owner is None or (mtu := owner.tables.mtu(owner.device)) is None or self.cluster.host_of(owner.tables) is owner.tables:
            return None
        room = int(step.decision.params["mtu"])
        if mtu <= room:
            return None
        nic = tables.mtu(attributes_of(tables, step.device).underlay or "")
        if nic is not None and (right := nic - mend.VXLAN_ROOM[self.family]) > room and mtu <= right:  # the tunnel has room, its device does not use it
            line = device_row(tables, step.device, HEAD)
            return self.found(tables, step.device, "mtu-exceeded", step.decision.params, (line, step.row), [f"ip link set {step.device} mtu {right}"])
        params = {"device": owner.device, "mtu": str(mtu), "room": str(room)}
        shown = device_row(owner.tables, owner.device, HEAD)
        return self.found(owner.tables, owner.device, "mtu-too-large", params, (shown, step.row), [f"ip link set {owner.device} mtu {room}"])

    def forwarding(self, tables: Tables, step: Step) -> Divergence | None:
        """The general switch sets all devices', but only when it is changed: where it is on, the device's own has to be set."""
        general = "net/ipv4/ip_forward" if self.family == 4 else "net/ipv6/conf/all/forwarding"
        key = step.decision.params["key"]
        return self.found(
            tables, step.device, "forwarding-off", step.decision.params, (step.row,), [mend.sysctl(key if tables.sysctl(general) == 1 else general, 1)]
        )


Look = Callable[[Case, Tables, Step], Divergence | None]
FAILURES: dict[str, Look] = {
    "device-down": Case.device_down,
    "bridge-port-blocked": Case.port_blocked,
    "route-missing": Case.underlay_route,
    "route-blackhole": Case.underlay_route,
    "route-unreachable": Case.underlay_route,
    "route-prohibit": Case.underlay_route,
    "rule-drops": Case.underlay_route,
    "route-dead": Case.underlay_route,
    "vni-mismatch": Case.at_the_receiver,
    "port-mismatch": Case.at_the_receiver,
    "port-closed": Case.at_the_receiver,
    "vtep-missing": Case.at_the_receiver,
    "vtep-mac-stale": Case.at_the_receiver,
    "vtep-mac-duplicate": Case.at_the_receiver,
    "underlay-neighbour-wrong": Case.underlay_neighbour,
    "neighbour-failed": Case.neighbour_failed,
    "rp-filter": Case.source_check,
    "mtu-exceeded": Case.too_large,
    "forwarding-off": Case.forwarding,
}
