"""Where a packet first goes another way than it should, and what mends it: the walk held against what should be (`intent`).

    diagnose(cluster, intent, walk) -> Walk      the same with its first divergence at the row that is wrong

A walk says where the packet ends; the row that is wrong is often another: a stale MAC is sent by one node and dropped by the next.
Each decision of the walk is looked at in order. The first that differs from what the lease of the destination asks for is the divergence.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tweed.addr import format_address, format_mac
from tweed.trace import mend
from tweed.trace.case_routes import ENDS_IT, RouteCase
from tweed.trace.cluster import Cluster, Owner
from tweed.trace.inside import neighbour_forgotten, veth_of
from tweed.trace.intent import Intent
from tweed.trace.result import NOT_ARRIVED, Divergence, Said, Step, Verdict, Walk
from tweed.trace.tables import Tables, quote
from tweed.trace.underlay import HEAD, LINK, attributes_of, device_row

BAD: tuple[Verdict, ...] = (*NOT_ARRIVED, "detour")


def diagnose(cluster: Cluster, intent: Intent, walk: Walk) -> Walk:
    """The walk with its cause; one that only ends where the tables end is lost when a decision on its way is wrong."""
    if walk.verdict == "delivered":
        return twice(cluster, intent, walk) or elsewhere(cluster, intent, walk)
    branch = next((name for name, verdict in walk.outcomes.items() if verdict == walk.verdict), "")
    case = Case(cluster, intent, walk)
    for step in walk.way(branch):
        found = case.look(step)
        if found is not None:
            verdict: Verdict = walk.verdict if walk.verdict in BAD else "lost"
            return msgspec.structs.replace(walk, verdict=verdict, first_divergence=found, outcomes=walk.outcomes | {branch: verdict})
    return walk


def twice(cluster: Cluster, intent: Intent, walk: Walk) -> Walk | None:
    """Delivered to one of two containers that have the address: whose it is, is the one that has it first of all on its device, on its subnet's node."""
    having = [each for each in cluster.owners.get(walk.dst, ()) if each.tables.node.host is not None]
    if len(having) < 2:
        return None
    peer, ip = intent.of(walk.dst), mend.ip(4 if len(walk.dst) == 4 else 6)

    def rightful(each: Owner) -> bool:
        own = [row.address for row in each.tables.node.addresses if row.device == each.device and len(row.address.address) == len(walk.dst)]
        return (peer is None or each.tables.node.host == peer.node) and bool(own) and own[0].address == walk.dst

    right = next((each for each in having if rightful(each)), having[0])
    wrong = next(each for each in having if each is not right)
    own = next((row for row in wrong.tables.node.addresses if row.address.address == walk.dst), None)
    fix = mend.fixes(wrong.tables, f"{ip} addr del {own.address} dev {wrong.device}") if own is not None and not rightful(wrong) else ()
    host = cluster.host_of(wrong.tables)
    heard = (row for row in host.node.neighbours if row.address == walk.dst and row.mac is not None and row.mac == wrong.tables.mac(wrong.device))
    fix += tuple(neighbour_forgotten(host, walk.dst, row.device) for row in heard if row.device is not None and fix)
    params = {"address": format_address(walk.dst), "other": right.tables.name, "device": wrong.device}
    found = Divergence(wrong.tables.name, wrong.device, Said("address-twice", params), (quote(wrong.row), quote(right.row)), fix)
    verdict: Verdict = "elsewhere" if walk.steps[-1].node == wrong.tables.name else walk.verdict
    return msgspec.structs.replace(walk, verdict=verdict, first_divergence=found, outcomes=dict.fromkeys(walk.outcomes, verdict))


def elsewhere(cluster: Cluster, intent: Intent, walk: Walk) -> Walk:
    """Delivered to whom the address belongs? A node that has a container's of another node takes what is not for it."""
    last = next((step for step in reversed(walk.steps) if step.decision.id == "route-local"), None)
    if last is None or cluster.tables[last.node].node.host is not None:
        return walk
    found = Case(cluster, intent, walk).look(last)
    if found is None or found.cause.id != "address-elsewhere":
        return walk
    return msgspec.structs.replace(walk, verdict="elsewhere", first_divergence=found, outcomes=dict.fromkeys(walk.outcomes, "elsewhere"))


class Case(RouteCase):
    """All of it, and where a packet ended."""

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
        if tables.kind(step.device)[0] == "tun":
            return self.tun_down(tables, step.device)
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
        if raw is None or back.row is None or peer is None:
            return None
        if peer.node == tables.name:  # one of its own containers: only the bridge's network should lead to it
            if back.row.dst.length <= peer.subnet.length:
                return None
            return self.found(tables, step.device, "rp-filter", step.decision.params, (row, quote(back.row)), [mend.delete_route(back.row)])
        own = self.intent.at(tables, self.family)
        gateway = back.hops[0].gateway if back.hops else None
        if own is None or own.device is None or gateway == peer.subnet.address or back.row.dst.length < peer.subnet.length:
            return None
        put = [] if mend.has_route(tables, peer, own.device) or peer.mac is None else [mend.put_route(self.intent, peer, own.device)]
        return self.found(tables, step.device, "rp-filter", step.decision.params, (row, quote(back.row), peer.row), [mend.delete_route(back.row), *put])

    def own_source(self, tables: Tables, step: Step) -> Divergence | None:
        """The node has the address of another node's container: what comes from there looks like its own."""
        row, peer = tables.own.get(self.walk.src), self.intent.of(self.walk.src)
        if row is None or peer is None or peer.node == tables.name or not row.hops:
            return None
        device, address = row.hops[0].device or "?", format_address(self.walk.src)
        length = next((each.address.length for each in tables.node.addresses if each.address.address == self.walk.src), self.family_bits)
        fix = [f"{mend.ip(self.family)} addr del {address}/{length} dev {device}"]
        return self.found(tables, device, "address-elsewhere", {"address": address, "device": device}, (quote(row), peer.row), fix)

    def too_large(self, tables: Tables, step: Step) -> Divergence | None:
        """What does not fit the tunnel was let through by a device whose MTU is too large, or a route holds it to less than its device."""
        peer, answer = self.intent.of(self.walk.dst), tables.lookup(self.walk.dst, src=self.walk.src)
        if peer is not None and answer.row is not None and str(answer.row.mtu) == step.decision.params["mtu"] and tables.mtu(step.device) != answer.row.mtu:
            ours = peer.mac is not None and answer.row.dst == peer.subnet and tables.kind(step.device)[0] == "vxlan"
            fix = [mend.put_route(self.intent, peer, step.device) if ours else mend.delete_route(answer.row)]
            return self.found(tables, step.device, "mtu-exceeded", step.decision.params, (quote(answer.row), peer.row), fix)
        owner = self.cluster.owner(self.walk.src)
        if owner is None or (mtu := owner.tables.mtu(owner.device)) is None or self.cluster.host_of(owner.tables) is owner.tables:
            return None
        room = int(step.decision.params["mtu"])
        if mtu <= room:
            return None
        own = self.intent.at(tables, self.family)
        if own is not None and own.device and tables.kind(step.device)[0] == "bridge" and (tunnel := tables.mtu(own.device) or 0) > room:
            fix = [f"ip link set {step.device} mtu {tunnel}"]  # a bridge takes what the tunnel brings
            return self.found(tables, step.device, "mtu-exceeded", step.decision.params, (device_row(tables, step.device, HEAD), step.row), fix)
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
    "underlay-source-dropped": Case.own_source,
    "forwarding-off": Case.forwarding,
}
