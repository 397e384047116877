"""One walk under examination, and what of a VTEP and its rows is wrong."""

from __future__ import annotations

from tweed.addr import Prefix, format_address, format_mac
from tweed.plan.subnets import vtep_mac
from tweed.trace import mend
from tweed.trace.cluster import Cluster
from tweed.trace.intent import Intent, Peer
from tweed.trace.path import NO_ANSWER
from tweed.trace.result import Asked, Divergence, Fix, Quote, Said, Step, Walk
from tweed.trace.rules import Flow
from tweed.trace.tables import Answer, Tables, quote
from tweed.trace.underlay import HEAD, LINK, attributes_of, device_row

ADDRESSES_TRIED = 8


class VtepCase:
    """Every method answers what is wrong at a place, None for nothing."""

    def __init__(self, cluster: Cluster, intent: Intent, walk: Walk) -> None:
        self.cluster, self.intent, self.walk = cluster, intent, walk
        self.family = 4 if len(walk.dst) == 4 else 6

    @property
    def family_bits(self) -> int:
        return 32 if self.family == 4 else 128

    def lookup(self, tables: Tables, asked: Asked) -> Answer:
        return tables.lookup(asked.address, src=asked.src, iif=asked.iif, oif=asked.oif, flow=Flow(asked.proto, asked.sport, asked.dport))

    def found(
        self, tables: Tables, device: str, cause: str, params: dict[str, str], evidence: tuple[Quote | None, ...], commands: list[str] | tuple[Fix, ...]
    ) -> Divergence:
        fix = mend.fixes(tables, *commands) if isinstance(commands, list) else commands
        return Divergence(tables.name, device, Said(cause, params), tuple(row for row in evidence if row is not None and row.text), fix)

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

    def wrong_device(self, tables: Tables, own: Peer | None, device: str | None) -> Divergence | None:
        """A VTEP that is not there, is down, or lost its port to another."""
        if device is None:
            if own is None or own.backend != "vxlan" or not tables.complete("link"):
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
