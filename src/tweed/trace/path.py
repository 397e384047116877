"""One packet on its way: the decisions of each node's kernel, in the order in which it makes them.

    path = Path(cluster, probe, leave)
    path.arrive(packet)                    fills `steps` and `outcomes` of its trail

Here is what every node does with every packet: route it, deliver it; what it has to pass there is in `gates`. What becomes of it beyond a device is `leave`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from tweed.addr import format_address, format_mac
from tweed.trace import snapshot as s
from tweed.trace.cluster import Cluster
from tweed.trace.frames import Hop, Probe
from tweed.trace.gates import Gates
from tweed.trace.result import Asked, Divergence, Fix, Loser, Quote, Said
from tweed.trace.tables import Answer, quote
from tweed.trace.trail import Packet

OURS = ("local", "anycast")  # route types whose packets the node takes itself
NO_ANSWER = ("FAILED", "INCOMPLETE")
TO_CONFIRM = ("STALE", "DELAY", "PROBE")

# Takes a packet that leaves by a device for a next hop (or for the destination itself), as a route said.
Leave = Callable[["Path", Packet, str, bytes, s.RouteRow], None]


class Path(Gates):
    """Follows one probe: what it meets becomes the trail."""

    def __init__(self, cluster: Cluster, probe: Probe, leave: Leave) -> None:
        super().__init__(cluster, probe)
        self.leave = leave
        self.ends: set[str] = set()  # the nodes where the walk begins and where it may end
        self.rules_told: set[str] = set()
        self.first_mtu: int | None = None
        self.aside: Divergence | None = None  # the underlay takes a way round: it arrives, if somebody there passes it on
        self.bridge_port = ""  # by which it came into the bridge that it is in
        self.source_device = ""  # of a container; a node has no one device that its own packets come from

    def is_up(self, packet: Packet, device: str) -> bool:
        """False, and the end, when a device is known to be down."""
        row = packet.at.devices.get(device)
        if row is None or row.up is not False:
            return True
        fix = (Fix(packet.at.name, f"ip link set {device} up"),)
        self.fail(packet, device, "dropped", "device-down", {"device": device}, Quote(row.source, row.text.split("\n")[0]), fix=fix)
        return False

    def arrive(self, packet: Packet) -> None:
        """IP input: is its source plausible, then route."""
        facts = self.facts(packet.device, "")
        if self.stopped_by_rules(packet, facts, "ingress", "prerouting") or self.diverted(packet, facts, "prerouting"):
            return
        if self.filtered(packet):
            return
        self.route(packet)

    def assumptions_of(self, packet: Packet, answer: Answer) -> list[Said]:
        """Those of an answer; that the rules are the default ones is said once for a node."""
        found = []
        for said in answer.assumptions:
            if said.id == "default-rules":
                if packet.at.name in self.rules_told:
                    continue
                self.rules_told.add(packet.at.name)
            found.append(said)
        return found

    def route(self, packet: Packet) -> None:
        """The packet is routed: delivered here, forwarded, or dropped."""
        at = packet.at
        key = (at.name, packet.device)
        if key in packet.seen:
            self.fail(packet, packet.device, "dropped", "routing-loop", {"dst": format_address(self.dst), "node": at.name})
            return
        packet = msgspec.structs.replace(packet, seen=(*packet.seen, key))
        asked = Asked("route", self.dst, src=self.src, iif=packet.device or None, proto=self.flow.proto, sport=self.flow.sport, dport=self.flow.dport)
        answer = at.lookup(self.dst, src=asked.src, iif=asked.iif, flow=self.flow)
        assumptions = self.assumptions_of(packet, answer)
        if self.stopped(packet, packet.device or self.source_device, self.dst, answer, assumptions, asked):
            return
        row = answer.row
        assert row is not None
        if answer.kind in OURS:
            self.deliver(packet, answer, assumptions, asked)
            return
        if packet.device:
            if not self.forwards(packet, assumptions):
                return
            packet = msgspec.structs.replace(packet, ttl=packet.ttl - 1)
            if packet.ttl <= 0:
                self.fail(packet, packet.device, "dropped", "ttl-exceeded", {"dst": format_address(self.dst)})
                return
        ways = self.parted(packet, len(answer.hops))
        for number, (way, hop) in enumerate(zip(ways, answer.hops, strict=False), 1):
            told = list(assumptions)
            losers = answer.losers
            if len(ways) > 1:
                told.append(Said("branch", {"number": str(number), "count": str(len(answer.hops)), "weight": str(hop.weight)}))
            device = hop.device or ""
            self.tell_route(way, self.dst, row, hop, answer.table, losers, told, 1, asked)
            facts = self.facts(packet.device, device)
            if self.stopped_by_policy(way, facts, *(("fwd", "out") if packet.device else ("out",))):
                continue
            if not packet.device and self.diverted(way, facts, "output"):
                continue
            if self.stopped_by_rules(way, facts, "forward" if packet.device else "output", "postrouting"):
                continue
            self.leave(self, way, device, hop.gateway or self.dst, row)

    def stopped(self, packet: Packet, device: str, dst: bytes, answer: Answer, assumptions: list[Said], asked: Asked) -> bool:
        """Whether an answer is the end: no row, no table, or a row that drops."""
        params = {"dst": format_address(dst)}
        if answer.kind in ("unicast", *OURS):
            if answer.kind == "unicast" and not answer.hops:
                row = answer.row
                assert row is not None
                self.step(packet, device, "ends-nexthop-object", {"id": str(row.nexthop_id)}, quote(row), losers=answer.losers, assumptions=assumptions)
                self.end(packet, "unknown")
                return True
            return False
        if answer.kind == "unknown":
            rule = quote(answer.rule) if answer.rule is not None and answer.rule.source else None
            self.step(packet, device, "ends-no-routes", params, rule, assumptions=assumptions)
            self.end(packet, "unknown")
        elif answer.row is None and answer.rule is not None:
            self.fail(
                packet, device, "dropped", "rule-drops", params | {"action": answer.rule.action}, quote(answer.rule), assumptions=assumptions, asked=asked
            )
        elif answer.row is None:
            dead = next((loser for loser in answer.losers if loser.why.id == "dead"), None)
            if dead is not None:
                params |= dead.why.params
                self.fail(packet, device, "dropped", "route-dead", params, dead.row, losers=answer.losers, assumptions=assumptions, asked=asked)
            elif packet.at.complete("route"):
                assumptions = [*assumptions, *packet.at.whole("route")]
                self.fail(packet, device, "dropped", "route-missing", params, losers=answer.losers, assumptions=assumptions, asked=asked)
            else:
                self.step(packet, device, "ends-no-routes", params, losers=answer.losers, assumptions=assumptions)
                self.end(packet, "unknown")
        elif answer.kind in ("blackhole", "unreachable", "prohibit"):
            row = answer.row
            family = " -6" if len(dst) == 16 else ""
            table = f" table {row.table}" if row.table != "main" else ""
            fix = (Fix(packet.at.name, f"ip{family} route del {row.type} {row.dst}{table}"),)
            params |= {"prefix": str(row.dst)}
            self.fail(packet, device, "dropped", f"route-{row.type}", params, quote(row), fix=fix, losers=answer.losers, assumptions=assumptions, asked=asked)
        else:  # broadcast, multicast: no packet to one container
            self.step(packet, device, "ends-device-kind", {"device": device, "kind": answer.kind}, quote(answer.row), assumptions=assumptions)
            self.end(packet, "unknown")
        return True

    def forwards(self, packet: Packet, assumptions: list[Said]) -> bool:
        """Whether the node forwards what came in by a device; what no table says is assumed, and said."""
        at, device = packet.at, packet.device
        keys = (f"net/ipv4/conf/{device}/forwarding", "net/ipv4/ip_forward")
        if len(self.dst) == 16:
            keys = (f"net/ipv6/conf/{device}/forwarding", "net/ipv6/conf/all/forwarding")
        values = [at.sysctl(key) for key in keys]
        # The general switch sets every device's: without a device's own value it tells.
        value = values[0] if values[0] is not None else values[1]
        if value == 0:
            key = keys[0] if values[0] is not None else keys[1]
            fix = (Fix(at.name, f"sysctl -w {keys[1]}=1"),)
            self.fail(packet, device, "dropped", "forwarding-off", {"device": device, "key": key}, quote(at.sysctls[key]), fix=fix)
            return False
        if value is None:
            assumptions.append(Said("forwarding-on", {"device": device}))
        return True

    def tell_route(
        self,
        packet: Packet,
        dst: bytes,
        row: s.RouteRow,
        hop: s.NextHop,
        table: str,
        losers: tuple[Loser, ...],
        assumptions: Sequence[Said],
        question: int,
        asked: Asked,
    ) -> None:
        """A route step: through a gateway or directly, to a container or (question 4) to another host."""
        device = hop.device or ""
        own = Quote(hop.source, hop.text) if hop.source and hop.text and hop.source != row.source else None
        first = quote(row)
        shown = Quote(first.source, first.text.split("\n")[0]) if own is None else Quote(own.source, f"{first.text.split(chr(10))[0]} {own.text}")
        params = {"device": device, "table": table} | ({"host": format_address(dst)} if question == 4 else {"dst": str(row.dst)})
        name = "underlay" if question == 4 else "route"
        if hop.gateway is not None:
            decision, params = f"{name}-via", params | {"gateway": format_address(hop.gateway)}
        else:
            decision = f"{name}-connected"
        where = device if question == 4 else packet.device or device
        self.step(packet, where, decision, params, shown, losers=losers, assumptions=assumptions, question=question, asked=asked)

    def deliver(self, packet: Packet, answer: Answer, assumptions: list[Said], asked: Asked) -> None:
        """The address is this namespace's own."""
        row = answer.row
        assert row is not None
        device = row.hops[0].device or "" if row.hops else ""
        if row.protocol is None:  # made of an address: rows of the table itself name it
            assumptions = [*assumptions, Said("local-from-addresses")]
        params = {"dst": str(row.dst), "table": answer.table}
        self.step(packet, packet.device or device, "route-local", params, quote(row), assumptions=assumptions, asked=asked)
        facts = self.facts(packet.device, "")
        if packet.device and (self.stopped_by_rules(packet, facts, "input") or self.stopped_by_policy(packet, facts, "in")):
            return
        self.delivered(packet, device, row)

    def delivered(self, packet: Packet, device: str, row: s.RouteRow) -> None:
        """The end that everyone hopes for."""
        at = packet.at
        address = format_address(self.dst)
        host = self.cluster.host_of(at)
        hop = Hop(at.name, device, "in", packet.dst_mac, packet.src_mac, packet.ttl) if packet.device else None
        if host is at:
            self.step(packet, device, "delivered-host", {"address": address, "device": device}, quote(row), hop=hop)
        else:
            self.step(packet, device, "delivered-container", {"address": address}, quote(row), hop=hop)
        self.finish(packet, host.name)

    def finish(self, packet: Packet, last: str) -> None:
        """Delivered: by the way that leads there, or over a node that has no part in it."""
        between = [name for name, _ in packet.seen if name.partition("/")[0] not in (*(end.partition("/")[0] for end in self.ends), last.partition("/")[0])]
        if self.aside is not None and not between:
            self.end(packet, "detour")
            self.divergence = self.divergence or self.aside
        elif between:
            self.end(packet, "detour")
            if self.divergence is None:
                self.divergence = self.detour(between[0], last)
        else:
            self.end(packet, "delivered")

    def detour(self, between: str, last: str) -> Divergence:
        """The route that led to the node between, and what mends it: without it the right row wins, or it gets the right next hop."""
        at = next((number for number, step in enumerate(self.steps) if step.node == between), len(self.steps))
        wrong = next((step for step in reversed(self.steps[:at]) if step.question == 1 and step.row is not None), None)
        if wrong is None or wrong.row is None:
            return Divergence(between, "", Said("detour", {"node": between}))
        tables, right = self.cluster.tables[wrong.node], self.cluster.tables.get(last)
        fixes: list[Fix] = []
        out = wrong.decision.params["device"]
        family = " -6" if len(self.dst) == 16 else ""
        gateways = [address for address in (right.own if right is not None else ()) if tables.neighbour(address, out)[0] is not None]
        better = any(f"via {format_address(gateway)} " in f"{loser.row.text} " for gateway in gateways for loser in wrong.losers)
        words = wrong.row.text.split(" nexthop ")[0].removesuffix(" linkdown")
        if better and wrong.row.text.startswith(tuple("0123456789abcdef")):
            fixes = [Fix(wrong.node, f"ip{family} route del {words}")]
        elif gateways:
            fixes = [Fix(wrong.node, f"ip{family} route replace {wrong.decision.params['dst']} via {format_address(gateways[0])} dev {out} onlink")]
        params = {"dst": format_address(self.dst), "prefix": wrong.decision.params["dst"], "host": between}
        return Divergence(wrong.node, wrong.device, Said("route-wrong-node", params), (wrong.row,), tuple(fixes))

    def fitted(self, packet: Packet, device: str, row: s.RouteRow) -> Packet | None:
        """By the MTU of the device or of the route: None, and the end, when it does not fit. IPv4 without DF is cut, IPv6 only by its sender."""
        limits = [mtu for mtu in (packet.at.mtu(device), row.mtu) if mtu is not None]
        if self.first_mtu is None and not packet.device and limits:
            self.first_mtu = min(limits)
        size = packet.size or self.probe.size
        if not limits or size <= min(limits):
            return packet
        mtu = min(limits)
        params = {"size": str(size), "mtu": str(mtu), "device": device}
        whole = (bool(packet.device) or self.probe.dont_fragment is True) if len(self.dst) == 16 else self.dont_fragment()
        if whole:
            at = packet.at.devices.get(device)
            shown = Quote(at.source, at.text.split("\n")[0]) if at is not None and at.mtu == mtu else quote(row)
            self.fail(packet, device, "dropped", "mtu-exceeded", params, shown)
            return None
        self.assume_last(Said("fragmented", params))
        headers = 20 if len(self.dst) == 4 else 40 + 8
        return msgspec.structs.replace(packet, size=headers + (mtu - headers) // 8 * 8)

    def dont_fragment(self) -> bool:
        """As Linux sends by itself: DF on what fits the device that it first leaves by (ip(7), IP_MTU_DISCOVER)."""
        if self.probe.dont_fragment is not None:
            return self.probe.dont_fragment
        return self.first_mtu is None or self.probe.size <= self.first_mtu

    def resolve(self, packet: Packet, device: str, target: bytes) -> tuple[bytes | None, bool]:
        """The neighbour row of a next hop on a network where it can be asked for: its MAC, None without one, and whether to go on."""
        at = packet.at
        row, assumed = at.neighbour(target, device)
        address = format_address(target)
        params = {"address": address, "device": device}
        told = [assumed] if assumed is not None else []
        asked = Asked("neighbour", target, device)
        if row is not None and row.mac is not None and row.state not in NO_ANSWER:
            if row.state in TO_CONFIRM:
                told.append(Said("neighbour-will-confirm", {"state": str(row.state)}))
            self.step(packet, device, "neighbour", params | {"mac": format_mac(row.mac), "state": row.state or "?"}, quote(row), assumptions=told, asked=asked)
            return row.mac, True
        # A row that FAILED is asked for again by the next packet (neigh_event_send): only where nobody is known to have the address it is the end.
        if row is not None and self.cluster.owner(target) is None:
            self.fail(packet, device, "lost", "neighbour-failed", params | {"state": row.state or "?"}, quote(row), assumptions=told, asked=asked)
            return None, False
        if row is not None or at.complete("neighbour", device):
            told.append(Said("neighbour-will-ask", {"address": address}))
            self.step(packet, device, "neighbour-asked", params, quote(row) if row is not None else None, assumptions=told, asked=asked)
        else:
            self.step(packet, device, "neighbour-unknown", params)
        return None, True

    def mac_of(self, target: bytes) -> bytes | None:
        """The MAC of the device that has an address, where its tables are here: what an answer would say."""
        owner = self.cluster.owner(target)
        return owner.tables.mac(owner.device) if owner is not None else None
