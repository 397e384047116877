"""flanneld's own firewall rules and off-device routes: recognised where it left them, and written where a node goes back to it.

iptables: a jump to FLANNEL-POSTRTG in nat's POSTROUTING, and one to FLANNEL-FWD in filter's FORWARD. nftables: two tables of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from tweed.addr import Prefix
from tweed.model import METRIC_IPV6_DEFAULT, PROTOCOL_BOOT, Route
from tweed.plan.forward_rules import FLANNEL_COMMENT, Edit
from tweed.plan.nft import KUBE_MASQUERADE_MARK, MULTICAST, Object

BLACKHOLE = 6  # RTN_BLACKHOLE


class Place(msgspec.Struct, frozen=True):
    """Where flanneld hangs one chain of its own into iptables."""

    table: str
    hook: str
    chain: str
    comment: str

    @property
    def jump(self) -> str:
        return f'{self.hook} -m comment --comment "{self.comment}" -j {self.chain}'


MASQUERADE = Place("nat", "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq")
FORWARD = Place("filter", "FORWARD", "FLANNEL-FWD", FLANNEL_COMMENT)
TABLES = {4: ("ip", "flannel-ipv4"), 6: ("ip6", "flannel-ipv6")}


class Traffic(msgspec.Struct, frozen=True):
    """What flanneld's rules of one family are made from."""

    network: Prefix
    subnet: Prefix
    fully_random: bool = True

    @property
    def family(self) -> int:
        return self.network.family


# ---- found --------------------------------------------------------------------------------------------------------


def has_chains(chains: Iterable[Object], word: str) -> bool:
    """Whether `nft -j list chains` shows one of flanneld's iptables chains in the tables of family `word` ("ip", "ip6")."""
    ours = {(place.table, place.chain) for place in (MASQUERADE, FORWARD)}
    return any(c["family"] == word and (c["table"], c["name"]) in ours for o in chains if (c := o.get("chain")) is not None)


def own_tables(tables: Iterable[Object]) -> list[str]:
    """The commands that delete those of flanneld's nft tables that `nft -j list tables` shows."""
    there = {(t["family"], t["name"]) for o in tables if (t := o.get("table")) is not None}
    return [f"delete table {family} {name}" for family, name in TABLES.values() if (family, name) in there]


def removal(program: str, text: str) -> tuple[Edit, ...]:
    """What takes flanneld's chains, and every jump to them, out of what `PROGRAM-save` printed."""
    edits: list[Edit] = []
    for place in (MASQUERADE, FORWARD):
        lines = list(_table(text, place.table))
        if any(line.startswith(f":{place.chain} ") for line in lines):
            jumps = [line.removeprefix("-A ") for line in lines if line.startswith("-A ") and f"{line} ".find(f" -j {place.chain} ") > 0]
            edits += [Edit(program, f"-D {jump}", place.table) for jump in jumps]
            edits += [Edit(program, f"-F {place.chain}", place.table), Edit(program, f"-X {place.chain}", place.table)]
    return tuple(edits)


def _table(text: str, wanted: str) -> Iterator[str]:
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table == wanted:
            yield line


def stray_routes(foreign: Iterable[Route], lengths: Mapping[Prefix, int], own: Collection[Prefix]) -> list[Route]:
    """Of other people's routes, those that flanneld writes beside its devices: to a whole subnet by a node's address (host-gw, DirectRouting),
    or a blackhole for this node's own subnet. `lengths`: a subnet's length by cluster network."""
    found = []
    for row in foreign:
        plain = row.protocol == PROTOCOL_BOOT and row.metric == (0 if row.dst.family == 4 else METRIC_IPV6_DEFAULT) and row.src is None
        if not plain or not any(network.contains(row.dst) and row.dst.length == length for network, length in lengths.items()):
            continue
        if (row.type == BLACKHOLE and row.dst in own) or (row.gateway is not None and not row.onlink):
            found.append(row)
    return found


# ---- written ------------------------------------------------------------------------------------------------------


def masquerade(program: str, traffic: Traffic) -> tuple[Edit, ...]:
    """--ip-masq, as iptables commands of one transaction."""
    cluster, own = traffic.network, traffic.subnet
    leave = "MASQUERADE --random-fully" if traffic.fully_random else "MASQUERADE"
    rules = (
        f"-m mark --mark {KUBE_MASQUERADE_MARK:#x}/{KUBE_MASQUERADE_MARK:#x}",
        f"-s {own} -d {cluster}",
        f"-s {cluster} -d {own}",
        f"! -s {cluster} -d {own}",
    )
    lines = [f"{rule} %s -j RETURN" for rule in rules]
    lines += [f"-s {cluster} ! -d {MULTICAST[traffic.family]} %s -j {leave}", f"! -s {cluster} -d {cluster} %s -j {leave}"]
    return _chain(program, MASQUERADE, lines)


def forward(program: str, network: Prefix) -> tuple[Edit, ...]:
    """--iptables-forward-rules, as iptables commands of one transaction."""
    return _chain(program, FORWARD, [f"-s {network} %s -j ACCEPT", f"-d {network} %s -j ACCEPT"])


def _chain(program: str, place: Place, rules: Iterable[str]) -> tuple[Edit, ...]:
    comment = f'-m comment --comment "{place.comment}"'
    lines = [f"-N {place.chain}", *(f"-A {place.chain} {rule % comment}" for rule in rules), f"-A {place.jump}"]
    return tuple(Edit(program, line, place.table) for line in lines)


def nft_tables(traffic: Iterable[Traffic], *, masquerade: bool, forward: bool) -> str:
    """The same in nftables mode (`EnableNFTables`): the text of one transaction."""
    parts = []
    for each in traffic:
        family, name = TABLES[each.family]
        c, p, leave = each.network, each.subnet, "masquerade fully-random" if each.fully_random else "masquerade"
        rules = [
            f"meta mark {KUBE_MASQUERADE_MARK:#x} return",
            f"{family} saddr {p} {family} daddr {c} return",
            f"{family} saddr {c} {family} daddr {p} return",
            f"{family} saddr != {p} {family} daddr {c} return",  # so in flanneld, though its iptables say otherwise
            f"{family} saddr {c} {family} daddr != {MULTICAST[each.family]} {leave}",
            f"{family} saddr != {c} {family} daddr {c} {leave}",
        ]
        chains = [("postrtg", "nat hook postrouting priority srcnat", rules)] if masquerade else []
        chains += [("forward", "filter hook forward priority filter", [f"{family} saddr {c} accept", f"{family} daddr {c} accept"])] if forward else []
        text = "".join(f"\tchain {chain} {{\n\t\ttype {kind};\n" + "".join(f"\t\t{r}\n" for r in rules) + "\t}\n" for chain, kind, rules in chains)
        parts.append(f"add table {family} {name}\ndelete table {family} {name}\ntable {family} {name} {{\n{text}}}\n")
    return "".join(parts)
