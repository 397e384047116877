"""The nftables tables that are ours, as values: their text to apply, and whether a listing shows exactly them.

One table per family, named after the VNI (`tweed-1`), so that two agents on one machine never share one. Only the
agent's own VNI names its tables: whatever else lives in nftables is not looked at here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from tweed.addr import Prefix, format_address

# kube-proxy marks what it will masquerade itself (its KUBE-MARK-MASQ and --iptables-masquerade-bit 14).
KUBE_MASQUERADE_MARK = 0x4000
MULTICAST = {4: Prefix.parse("224.0.0.0/4"), 6: Prefix.parse("ff00::/8")}
FAMILY = {4: "ip", 6: "ip6"}
CHAIN = "postrouting"
# linux/netfilter_ipv4.h NF_IP_PRI_NAT_SRC, which nft calls srcnat.
PRIORITY_SRCNAT = 100

Object = dict[str, Any]


class Match(msgspec.Struct, frozen=True):
    """`ip saddr [!=] PREFIX`."""

    field: Literal["saddr", "daddr"]
    prefix: Prefix
    negated: bool = False

    @property
    def text(self) -> str:
        return f"{FAMILY[self.prefix.family]} {self.field} {'!= ' if self.negated else ''}{self.prefix.network}"

    @property
    def listed(self) -> Object:
        """As `nft -j list` shows it (libnftables-json(5)); a host prefix is listed as a bare address."""
        prefix = self.prefix.network
        address = format_address(prefix.address)
        right = address if prefix.is_host else {"prefix": {"addr": address, "len": prefix.length}}
        left = {"payload": {"protocol": FAMILY[prefix.family], "field": self.field}}
        return {"match": {"op": "!=" if self.negated else "==", "left": left, "right": right}}


class Marked(msgspec.Struct, frozen=True):
    """`meta mark & BIT == BIT`: the bit is set, whatever the others are."""

    bit: int

    @property
    def text(self) -> str:
        return f"meta mark & {self.bit:#x} == {self.bit:#x}"

    @property
    def listed(self) -> Object:
        return {"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, self.bit]}, "right": self.bit}}


class NatRule(msgspec.Struct, frozen=True):
    """Matches that must all hold, then what happens."""

    matches: tuple[Match | Marked, ...]
    verdict: Literal["return", "masquerade", "masquerade fully-random"]

    @property
    def text(self) -> str:
        return " ".join([*(m.text for m in self.matches), self.verdict])

    @property
    def listed(self) -> list[Object]:
        verb, _, flags = self.verdict.partition(" ")
        return [*(m.listed for m in self.matches), {verb: {"flags": flags} if flags else None}]


class Table(msgspec.Struct, frozen=True):
    """A table of ours: one nat chain at postrouting. Nothing else may be in it."""

    family: Literal["ip", "ip6"]
    name: str
    rules: tuple[NatRule, ...]

    @property
    def text(self) -> str:
        """One transaction that puts exactly this table in place of whatever bears its name, or creates it.

        The kernel swaps old for new between two packets, and established flows keep their NAT: it lives in conntrack.
        """
        head = f"type nat hook postrouting priority {PRIORITY_SRCNAT}; policy accept;"
        rules = "".join(f"\t\t{rule.text}\n" for rule in self.rules)
        return (
            f"add table {self.family} {self.name}\n"
            f"delete table {self.family} {self.name}\n"
            f"table {self.family} {self.name} {{\n\tchain {CHAIN} {{\n\t\t{head}\n{rules}\t}}\n}}\n"
        )

    def is_in(self, listing: Iterable[Object]) -> bool:
        """True when `listing` (the objects of `nft -j list table`) shows exactly this table: a rule lost, added, reordered
        or edited by somebody else, or anything else put into the table, makes it false."""
        chains: list[tuple[Any, ...]] = []
        rules: list[list[Object]] = []
        others = 0
        for entry in listing:
            for kind, body in entry.items():
                if kind in ("metainfo", "table"):
                    continue
                if (body.get("family"), body.get("table")) != (self.family, self.name):
                    continue
                if kind == "chain":
                    chains.append(tuple(body.get(k) for k in ("name", "type", "hook", "prio", "policy")))
                elif kind == "rule":
                    rules.append(_canonical(body["expr"]))
                else:
                    others += 1
        want = [(CHAIN, "nat", "postrouting", PRIORITY_SRCNAT, "accept")]
        return chains == want and rules == [rule.listed for rule in self.rules] and not others


def _canonical(expressions: list[Object]) -> list[Object]:
    """Newer versions of nft list a single flag as an array of one, older ones as the word."""
    result = []
    for expression in expressions:
        body = expression.get("masquerade")
        if body is not None and isinstance(flags := body.get("flags"), list) and len(flags) == 1:
            expression = {"masquerade": {**body, "flags": flags[0]}}
        result.append(expression)
    return result


def table_name(vni: int) -> str:
    """The name of our tables, in family ip and ip6 alike."""
    return f"tweed-{vni}"


def masquerade(network: Prefix, subnet: Prefix, *, vni: int, fully_random: bool = True) -> Table:
    """The rules of `--ip-masq` for one family: `network` is the whole cluster's, `subnet` this node's own.

    Flannel's iptables order (pkg/trafficmngr/iptables): its nftables order has another fourth rule, which shadows the last
    and leaves host -> remote pod traffic with an address that the answer cannot come back to under strict rp_filter.
    """
    to_network, from_network = Match("daddr", network), Match("saddr", network)
    to_subnet, from_subnet = Match("daddr", subnet), Match("saddr", subnet)
    from_outside = Match("saddr", network, negated=True)
    not_multicast = Match("daddr", MULTICAST[network.family], negated=True)
    leave: Literal["masquerade", "masquerade fully-random"] = "masquerade fully-random" if fully_random else "masquerade"
    rules = (
        NatRule((Marked(KUBE_MASQUERADE_MARK),), "return"),
        NatRule((from_subnet, to_network), "return"),
        NatRule((from_network, to_subnet), "return"),
        NatRule((from_outside, to_subnet), "return"),
        NatRule((from_network, not_multicast), leave),
        NatRule((from_outside, to_network), leave),
    )
    return Table("ip" if network.family == 4 else "ip6", table_name(vni), rules)
