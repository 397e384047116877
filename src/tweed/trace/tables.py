"""A node's tables, indexed: what would its kernel answer?

    Tables(node).lookup(dst, src=..., iif=...) -> Answer      `ip rule` and `ip route`: the row that wins, and those that it beat

Rules are asked by priority, each names a table; in a table the longest prefix wins, then the smallest metric, then the first row
(net/ipv4/fib_trie.c, net/ipv6/route.c). What a table does not hold is told apart from a table that is not here.
"""

from __future__ import annotations

import re

import msgspec

from tweed.addr import Prefix
from tweed.trace import iptables
from tweed.trace import snapshot as s
from tweed.trace.fib import Fib, siblings, why_later, with_source
from tweed.trace.firewall import Firewall
from tweed.trace.result import Loser, Quote, Said
from tweed.trace.rules import ANY_FLOW, DEFAULT_RULES, Flow, applies

COMMANDS = {"route": "ip route", "neighbour": "ip neigh", "fdb": "bridge fdb"}
FLANNEL_VXLAN = re.compile(r"flannel(-v6)?\.\d+|vxlan[\w.-]*")
# Tunnels that a walk does not go through, by the names that their kind gives them or their network program.
OTHER_TUNNEL = re.compile(
    r"(?P<ipip>tunl\d+)|(?P<wireguard>wg\d+|flannel-wg(-v6)?|wireguard\.cali)|(?P<gre>gre\d+)|(?P<geneve>geneve\d*|cilium_geneve)|(?P<sit>sit\d+)"
)
FLANNEL_TUN = re.compile(r"flannel\d+|tun\d+")


class Answer(msgspec.Struct, frozen=True, gc=False):
    """`kind`: a route type, "missing" (tables are here and no row fits) or "unknown" (a table that would decide is not here).

    `row` None with "unicast" never; with "blackhole", "unreachable", "prohibit" it may be a rule's doing: then `rule` is its row.
    """

    kind: str
    table: str = ""
    row: s.RouteRow | None = None
    hops: tuple[s.NextHop, ...] = ()
    losers: tuple[Loser, ...] = ()
    assumptions: tuple[Said, ...] = ()
    rule: s.RuleRow | None = None


def quote(row: s.Row) -> Quote:
    return Quote(row.source, row.text)


class Tables:
    """One node's. Built once; answers are asked by the thousand."""

    def __init__(self, node: s.Node) -> None:
        self.node = node
        self.name = node.name
        self.devices = {row.name: row for row in node.devices}
        self.sysctls = {row.key: row for row in node.sysctls}
        self.nexthops = {row.id: row for row in node.nexthops}
        self.vlans: dict[str, list[s.VlanRow]] = {}
        for vlan in node.vlans:
            self.vlans.setdefault(vlan.device, []).append(vlan)
        self.neighbours: dict[bytes, list[s.NeighbourRow]] = {}
        for neighbour in node.neighbours:
            self.neighbours.setdefault(neighbour.address, []).append(neighbour)
        self.pointed_at = {(row.device, row.mac) for row in node.neighbours}
        self.fdb: dict[tuple[str, bytes], list[s.FdbRow]] = {}
        self.bridged: dict[tuple[str, bytes], list[s.FdbRow]] = {}
        self.remotes: dict[tuple[str, bytes], list[s.FdbRow]] = {}  # by the host that they name
        self.bridges = {row.master for row in node.devices if row.master} | {row.master for row in node.ports if row.master}
        for fdb in (each for row in node.fdb for each in self.expanded(row)):
            if fdb.master:
                self.bridged.setdefault((fdb.master, fdb.mac), []).append(fdb)
                self.bridges.add(fdb.master)
            if fdb.dst is not None or fdb.nexthop_id is not None:
                self.fdb.setdefault((fdb.device, fdb.mac), []).append(fdb)
            if fdb.dst is not None:
                self.remotes.setdefault((fdb.device, fdb.dst), []).append(fdb)
        self.neighbour_devices = {row.device for row in node.neighbours}
        self.fdb_devices = {name for row in node.fdb for name in (row.device, row.master) if name}
        self.with_remotes = {device for device, _ in self.fdb}
        self.ports = {row.device: row for row in node.ports}
        self.shown: dict[str, list[s.Shown]] = {}
        for shown in node.shown:
            self.shown.setdefault(shown.table, []).append(shown)
        self.own = self.own_addresses()
        self.fibs = self.index()
        self.rules = {family: tuple(sorted((r for r in node.rules if r.family == family), key=lambda r: r.priority)) for family in (4, 6)}
        self.no_vrf = bool(self.complete("link")) and not any(row.kind == "vrf" for row in node.devices)
        self.kinds: dict[str, tuple[str | None, Said | None]] = {}
        self.firewall = Firewall(node.nft, iptables.chains(node.iptables))

    # ---- what is here -------------------------------------------------------------------------------------------

    def own_addresses(self) -> dict[bytes, s.RouteRow]:
        """The node's addresses as rows of its local table: that table's, else made of its addresses and of routes' sources."""
        found: dict[bytes, s.RouteRow] = {}
        for row in self.node.routes:
            if row.type == "local" and row.dst.is_host:
                found.setdefault(row.dst.address, row)
        for each in self.node.addresses:
            found.setdefault(each.address.address, local_row(each, each.address.address, each.device))
        for row in self.node.routes:
            if row.src is not None and row.protocol == "kernel" and row.hops and row.hops[0].device:
                found.setdefault(row.src, local_row(row, row.src, row.hops[0].device))
        return found

    def index(self) -> dict[tuple[int, str], Fib]:
        rows: dict[tuple[int, str], list[s.RouteRow]] = {}
        for row in self.node.routes:
            rows.setdefault((row.dst.family, row.table), []).append(self.with_hops(row))
        listed = {row.dst.address for row in self.node.routes if row.type == "local"}
        for address, own in self.own.items():
            if address not in listed:
                rows.setdefault((own.dst.family, "local"), []).append(own)
        return {key: Fib(found, 32 if key[0] == 4 else 128) for key, found in rows.items()}

    def hops_of(self, id: int, weight: int = 1) -> tuple[s.NextHop, ...] | None:
        """The hops of a nexthop object, of a group all its members'; () of a blackhole, None of one that is not here."""
        row = self.nexthops.get(id)
        if row is None:
            return None
        if row.group:
            members = [self.hops_of(member, each) for member, each in row.group if not self.is_group(member)]  # the kernel nests no groups
            return None if None in members else tuple(hop for hops in members for hop in hops or ())
        if row.hop is None:
            return ()
        return (msgspec.structs.replace(row.hop, weight=weight, source=row.source, text=row.text),)

    def is_group(self, id: int) -> bool:
        row = self.nexthops.get(id)
        return row is not None and bool(row.group)

    def with_hops(self, row: s.RouteRow) -> s.RouteRow:
        """A route that only names a nexthop object, with the hops of that."""
        if row.nexthop_id is None or row.type != "unicast" or any(hop.device or hop.gateway for hop in row.hops):
            return row
        hops = self.hops_of(row.nexthop_id)
        if hops is None:
            return msgspec.structs.replace(row, hops=())
        return msgspec.structs.replace(row, hops=hops, type="unicast" if hops else "blackhole")

    def expanded(self, row: s.FdbRow) -> list[s.FdbRow]:
        """An fdb row that names a nexthop object, as one row for each host that this has."""
        if row.nexthop_id is None or row.dst is not None:
            return [row]
        hosts = [hop.gateway for hop in self.hops_of(row.nexthop_id) or () if hop.gateway is not None]
        return [msgspec.structs.replace(row, dst=host) for host in hosts] or [row]

    def complete(self, table: s.Table, device: str | None = None) -> bool | None:
        """Whether a missing row means that there is none: None where nothing was shown, False where what was shown leaves rows out.

        Rows that no command line announces are taken for all of their table, of the devices that they speak of; `whole` then says so.
        """
        fitting = self.fitting(table, device)
        if any(shown.command and not shown.excerpt for shown in fitting):
            return True
        if any(not shown.excerpt for shown in fitting) and self.speaks_of(table, device):
            return True
        return False if fitting else None

    def fitting(self, table: s.Table, device: str | None) -> list[s.Shown]:
        return [shown for shown in self.shown.get(table, ()) if shown.device in (None, device)]

    def speaks_of(self, table: s.Table, device: str | None) -> bool:
        if table == "neighbour":
            # Rows that name no device are all of one: `ip neigh show dev flannel.1` leaves its name out.
            return device in self.neighbour_devices or (None in self.neighbour_devices and device in self.vxlans())
        return bool(self.node.routes) if table == "route" else table == "fdb" and device in self.fdb_devices

    def whole(self, table: s.Table, device: str | None = None) -> list[Said]:
        """The assumption that a table without a command line is no excerpt, where a step rests on it."""
        named = any(shown.command for shown in self.fitting(table, device))
        return [] if named else [Said("table-may-be-excerpt", {"table": COMMANDS.get(table, table)})]

    def kind(self, device: str) -> tuple[str | None, Said | None]:
        """The kind of a device, and the assumption where it follows from something else than `ip -d link`. None: nothing tells."""
        if device not in self.kinds:
            self.kinds[device] = self.find_kind(device)
        return self.kinds[device]

    def find_kind(self, device: str) -> tuple[str | None, Said | None]:
        row = self.devices.get(device)
        if row is not None and row.kind is not None:
            return row.kind, None
        if device in self.with_remotes or FLANNEL_VXLAN.fullmatch(device):
            return "vxlan", Said("device-is-vxlan", {"device": device})
        if device in self.bridges:
            return "bridge", Said("device-is-bridge", {"device": device})
        if device == "lo":
            return "loopback", None
        if (tunnel := OTHER_TUNNEL.fullmatch(device)) is not None:
            return tunnel.lastgroup, None
        if FLANNEL_TUN.fullmatch(device) or (row is not None and row.point_to_point):
            return "tun", None
        return None, None

    def mac(self, device: str) -> bytes | None:
        row = self.devices.get(device)
        return row.mac if row is not None else None

    def mtu(self, device: str) -> int | None:
        row = self.devices.get(device)
        return row.mtu if row is not None else None

    def sysctl(self, key: str) -> int | None:
        row = self.sysctls.get(key)
        return int(row.value) if row is not None and row.value.lstrip("-").isdigit() else None

    def vxlans(self) -> list[str]:
        """The names of the VXLAN devices."""
        names = dict.fromkeys([*self.devices, *self.with_remotes])
        return [name for name in names if self.kind(name)[0] == "vxlan"]

    def neighbour(self, address: bytes, device: str) -> tuple[s.NeighbourRow | None, Said | None]:
        """The row of an address on a device; one that names no device counts, as an assumption."""
        for row in self.neighbours.get(address, ()):
            if row.device == device:
                return row, None
        for row in self.neighbours.get(address, ()):
            if row.device is None:
                return row, Said("neighbour-device", {"address": row.text.split()[0], "device": device})
        return None, None

    # ---- rules and routes ---------------------------------------------------------------------------------------

    def lookup(self, dst: bytes, *, src: bytes | None = None, iif: str | None = None, oif: str | None = None, flow: Flow = ANY_FLOW) -> Answer:
        """What `ip route get DST [from SRC] [iif DEVICE | oif DEVICE]` would find; a packet without `iif` is the node's own. Mark and TOS are 0."""
        family = 4 if len(dst) == 4 else 6
        rules = self.rules[family]
        assumptions: list[Said] = []
        if not rules:
            rules = DEFAULT_RULES[family]
            assumptions.append(Said("default-rules"))
        skip_to = -1
        losers: list[Loser] = []
        value = int.from_bytes(dst, "big")
        for rule in rules:
            if rule.priority < skip_to:
                continue
            fits = applies(rule, dst, src, iif, oif, flow, no_vrf=self.no_vrf)
            if fits is not True:
                if fits:
                    assumptions.append(Said("rule-not-evaluated", {"selector": fits}))
                continue
            if rule.action == "goto":
                skip_to = rule.goto or 0
                continue
            if rule.action == "nop":
                continue
            if rule.action != "lookup" or rule.table is None:
                return Answer(rule.action, rule=rule, assumptions=tuple(assumptions))
            fib = self.fibs.get((family, rule.table))
            if fib is None:
                if self.must_be_shown(rule.table, family):
                    return Answer("unknown", rule.table, rule=rule, assumptions=tuple(assumptions))
                continue
            # rt6_score_route: IPv6 likes the device that a packet came in by.
            answer = self.choose(fib, rule, value, oif, iif if family == 6 else None)
            if answer is None:
                continue
            winner = answer.row
            assert winner is not None
            if rule.suppress_length is not None and winner.dst.length <= rule.suppress_length:
                losers.append(Loser(quote(winner), Said("suppressed", {"length": str(winner.dst.length)})))
                continue
            if winner.type == "throw":
                losers.append(Loser(quote(winner), Said("other-table")))
                continue
            later = self.later(rules, rule, family, value) if rule.table != "local" else []
            return msgspec.structs.replace(answer, losers=(*answer.losers, *losers, *later), assumptions=tuple(assumptions))
        return Answer("missing", losers=tuple(losers), assumptions=tuple(assumptions))

    def must_be_shown(self, table: str, family: int) -> bool:
        """Whether a table without rows here may yet have some. `ip route` alone shows main; the other two are what they always are."""
        if any(self.shows(shown, table, family) for shown in self.shown.get("route", ())):
            return False
        return table not in ("local", "default")

    def shows(self, shown: s.Shown, table: str, family: int) -> bool:
        return shown.device is None and shown.family in (None, family) and shown.route_table in (table, "all") and shown.command is not None

    def choose(self, fib: Fib, rule: s.RuleRow, value: int, oif: str | None, near: str | None) -> Answer | None:
        """The best row of a table whose next hop is alive, with the rows that it beats."""
        assert rule.table is not None
        winner: s.RouteRow | None = None
        hops: tuple[s.NextHop, ...] = ()
        losers: list[Loser] = []
        for row in fib.matches(value, near):
            if winner is not None:
                if row.dst.length == winner.dst.length and siblings(winner, row):
                    hops += with_source(row)
                else:
                    losers.append(Loser(quote(row), why_later(row, winner)))
                continue
            alive = tuple(hop for hop in row.hops if not self.dead(hop))
            if row.hops and not alive:
                losers.append(Loser(quote(row), Said("dead", {"device": row.hops[0].device or "?"})))
                continue
            if oif is not None and row.type == "unicast":
                alive = tuple(hop for hop in alive if hop.device in (oif, None))
                if not alive and row.hops:
                    losers.append(Loser(quote(row), Said("other-device", {"device": row.hops[0].device or "?"})))
                    continue
            winner, hops = row, alive
        if winner is None:
            return None
        return Answer(winner.type, rule.table, winner, hops, tuple(losers), rule=rule if rule.source else None)

    def dead(self, hop: s.NextHop) -> bool:
        if "dead" in hop.flags:
            return True
        key = f"net/ipv4/conf/{hop.device}/ignore_routes_with_linkdown"
        return "linkdown" in hop.flags and 1 in (self.sysctl(key), self.sysctl("net/ipv4/conf/all/ignore_routes_with_linkdown"))

    def later(self, rules: tuple[s.RuleRow, ...], winner: s.RuleRow, family: int, value: int) -> list[Loser]:
        """The best row of each table that was not asked any more."""
        found = []
        for rule in rules[rules.index(winner) + 1 :]:
            if rule.action == "lookup" and rule.table not in (None, winner.table, "local"):
                fib = self.fibs.get((family, rule.table or ""))
                row = next(fib.matches(value), None) if fib is not None else None
                if row is not None:
                    found.append(Loser(quote(row), Said("later-rule", {"table": row.table})))
        return found


def local_row(row: s.Row, address: bytes, device: str) -> s.RouteRow:
    """An address as the row of the local table that it makes."""
    return s.RouteRow(
        source=row.source, text=row.text, dst=Prefix(address, 8 * len(address)), hops=(s.NextHop(device=device),), type="local", table="local", metric=0
    )
