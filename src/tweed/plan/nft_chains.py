"""nftables' JSON listing (libnftables-json(5)) as chains of `plan.filters`, for one path of traffic.

Read: device names, addresses, protocol families, conntrack state, sets, maps and verdict maps, jumps. Of matches on
transport headers it is only known that they never take all traffic. Whatever else there is takes `PERHAPS` all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from tweed.addr import Prefix, parse_address
from tweed.plan.filters import Chain, Outcome, Path, Rule, Share, Verdict

Object = dict[str, Any]

VERDICTS: dict[str, Verdict] = {
    "accept": "accept",
    "drop": "drop",
    "reject": "drop",
    "return": "return",
    "jump": "jump",
    "goto": "goto",
    "continue": "continue",
}
# Statements that neither match nor decide.
PASSIVE = frozenset({"counter", "log", "mangle", "notrack", "comment", "ct helper", "ct timeout", "ct expectation", "flow", "dup", "last", "secmark"})
ADDRESS_FAMILY = {"ip": 4, "ip6": 6}
# xtables extensions inside iptables-nft's chains, of which the listing gives no more than the name.
XT_PASSIVE = frozenset({"comment", "LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "TRACE", "CT", "SET", "CLASSIFY", "DSCP", "TOS"})


class BaseChain(msgspec.Struct, frozen=True):
    """A chain at the forward hook."""

    family: str
    table: str
    name: str


def forward_hooks(listing: Iterable[Object]) -> list[BaseChain]:
    """The filter chains at the forward hook that routed packets of IPv4 or IPv6 pass."""
    chains = [o["chain"] for o in listing if "chain" in o]
    return [
        BaseChain(c["family"], c["table"], c["name"])
        for c in chains
        if c.get("hook") == "forward" and c.get("type") == "filter" and c["family"] in ("ip", "ip6", "inet")
    ]


def table_chains(listing: Iterable[Object], family: str, table: str, path: Path) -> dict[str, Chain]:
    """All chains of one table by name, as `path` meets them."""
    mine = [(kind, body) for o in listing for kind, body in o.items() if kind != "metainfo" and (body.get("family"), body.get("table")) == (family, table)]
    judge = _Judge(path, {body["name"]: body.get("elem", []) for kind, body in mine if kind in ("set", "map")})
    rules: dict[str, list[Rule]] = {}
    for kind, body in mine:
        if kind == "rule":
            rules.setdefault(body["chain"], []).append(Rule(f"handle {body['handle']}", judge.rule(body["expr"])))
    return {body["name"]: Chain(tuple(rules.get(body["name"], ())), body.get("policy") == "drop") for kind, body in mine if kind == "chain"}


def made_by_iptables(listing: Iterable[Object], family: str, table: str) -> bool:
    """False when the table holds what iptables-nft never writes: sets, maps, or a rule that looks something up in one.

    iptables-nft (1.8.9) says that it cannot read some of these, and silently prints others without the lookup.
    """
    for entry in listing:
        for kind, body in entry.items():
            if kind in ("metainfo", "table", "chain") or (body["family"], body["table"]) != (family, table):
                continue
            if kind != "rule" or any("vmap" in e or _looks_up(e.get("match", {}).get("right")) for e in body["expr"]):
                return False
    return True


def _looks_up(right: Any) -> bool:
    return (isinstance(right, str) and right.startswith("@")) or (isinstance(right, dict) and "set" in right)


class _Judge:
    """Says how much of `path` each expression takes. `sets`: elements of named sets and maps."""

    def __init__(self, path: Path, sets: dict[str, list[Any]]) -> None:
        self.path = path
        self.sets = sets

    def rule(self, expressions: list[Object]) -> tuple[Outcome, ...]:
        share = Share.ALL
        for expression in expressions:
            ((kind, body),) = expression.items()
            if kind == "match":
                share = min(share, self.match(body))
            elif kind in VERDICTS:
                return (Outcome(share, VERDICTS[kind], (body or {}).get("target", "")),)
            elif kind == "vmap":
                return tuple(Outcome(min(share, taken), verdict, target) for taken, verdict, target in self.verdict_map(body))
            elif kind == "queue":
                # A program will decide.
                share = min(share, Share.PERHAPS)
                return Outcome(share, "drop"), Outcome(share, "accept")
            elif kind == "xt":
                name = body.get("name") if body else None
                if name == "REJECT":
                    return (Outcome(share, "drop"),)
                if name not in XT_PASSIVE:
                    share = min(share, Share.PERHAPS)
            elif kind not in PASSIVE:
                share = min(share, Share.PERHAPS)
        return (Outcome(share, "continue"),)

    def match(self, body: Object) -> Share:
        left, operator, right = body["left"], body["op"], body["right"]
        if operator in ("==", "in"):
            return self.taken(left, self.elements(right))
        if operator in ("!=", "!"):
            # `ip saddr != X` in an inet table still asks for an IPv4 packet first.
            return Share.NOTHING if self.other_family(left) else self.taken(left, self.elements(right)).inverted()
        return self.unread(left)

    def elements(self, right: Any) -> list[Any]:
        """The values of a right side: one, a list, an anonymous set, a named set."""
        if isinstance(right, str) and right.startswith("@"):
            right = self.sets.get(right[1:], [])
        elif isinstance(right, dict) and "set" in right:
            right = right["set"]
        values = right if isinstance(right, list) else [right]
        return [v["elem"]["val"] if isinstance(v, dict) and "elem" in v else v for v in values]

    def taken(self, left: Any, values: list[Any]) -> Share:
        """How much of the traffic has one of `values` as its `left`."""
        if "*" in values:
            return Share.ALL
        kind, body = _single(left)
        if kind == "payload" and body.get("protocol") in ADDRESS_FAMILY and body.get("field") in ("saddr", "daddr"):
            if self.other_family(left):
                return Share.NOTHING
            return _covered(self.path.source if body["field"] == "saddr" else self.path.destination, values)
        return max((self.equal(left, value) for value in values), default=Share.NOTHING)

    def equal(self, left: Any, value: Any) -> Share:
        """How much of the traffic has `left` equal to one single value."""
        kind, body = _single(left)
        path = self.path
        if kind == "concat":
            parts = value.get("concat", []) if isinstance(value, dict) else []
            return min((self.taken(a, [b]) for a, b in zip(body, parts, strict=False)), default=Share.PERHAPS)
        if kind == "meta":
            match body["key"]:
                case "iifname" | "iif":
                    return _named(path.iif, value)
                case "oifname" | "oif":
                    return _named(path.oif, value)
                case "nfproto":
                    return _known(value, {"ipv4": path.family == 4, "ipv6": path.family == 6})
                case "protocol":
                    return _known(value, {"ip": path.family == 4, "ip6": path.family == 6, "arp": False, "vlan": False})
        if kind == "ct":
            match body["key"]:
                case "state":
                    return _known(value, {"new": True, "established": False, "related": False, "invalid": False, "untracked": False})
                case "direction":
                    return _known(value, {"original": True, "reply": False})
                case "status":
                    return Share.SOME if value in ("dnat", "snat") else Share.PERHAPS
        if kind == "fib" and body.get("result") == "type" and "daddr" in body.get("flags", []):
            return Share.NOTHING if value in ("local", "broadcast", "anycast", "multicast") else Share.PERHAPS
        return self.unread(left)

    def unread(self, left: Any) -> Share:
        """The share of a match whose value is not looked at."""
        if self.other_family(left):
            return Share.NOTHING
        return Share.SOME if any(_is_partial(*_single(part)) for part in _inside(left)) else Share.PERHAPS

    def other_family(self, left: Any) -> bool:
        """True for a header field of the IP version that `path` is not."""
        headers = [
            ADDRESS_FAMILY[body["protocol"]]
            for part in _inside(left)
            for kind, body in [_single(part)]
            if kind == "payload" and body.get("protocol") in ADDRESS_FAMILY
        ]
        return any(family != self.path.family for family in headers)

    def verdict_map(self, body: Object) -> Iterator[tuple[Share, Verdict, str]]:
        data = body["data"]
        pairs = self.sets.get(data[1:], []) if isinstance(data, str) else data.get("set", [])
        rest = Share.ALL
        # nft's catch-all element takes what no other does.
        for key, verdict in sorted(pairs, key=lambda pair: pair[0] == "*"):
            value = key["elem"]["val"] if isinstance(key, dict) and "elem" in key else key
            share = rest if value == "*" else self.taken(body["key"], [value])
            rest = min(rest, share.inverted())
            ((kind, target),) = verdict.items()
            yield share, VERDICTS[kind], (target or {}).get("target", "")


def _single(expression: Any) -> tuple[str, Any]:
    if isinstance(expression, dict) and len(expression) == 1:
        ((kind, body),) = expression.items()
        return kind, body
    return "", expression


def _inside(expression: Any) -> Iterator[Object]:
    """The expression and all that it is computed from."""
    if isinstance(expression, dict):
        yield expression
    inner = expression.values() if isinstance(expression, dict) else expression if isinstance(expression, list) else ()
    for part in inner:
        yield from _inside(part)


def _is_partial(kind: str, body: Any) -> bool:
    """True for what never has one value in all traffic: the transport protocol, and what only one transport protocol has."""
    if kind == "payload":
        return body.get("field") in ("protocol", "nexthdr") or body.get("protocol", "th") not in ("ip", "ip6", "ether", "vlan", "arp", "th")
    return kind == "tcp option" or (kind == "meta" and body.get("key") == "l4proto")


def _named(device: str, pattern: Any) -> Share:
    """A device's name against `cni0` or `veth*`; a number is the index of a device that has no name any more."""
    if not isinstance(pattern, str):
        return Share.NOTHING
    return Share.ALL if device == pattern or (pattern.endswith("*") and device.startswith(pattern[:-1])) else Share.NOTHING


def _known(value: Any, answers: dict[str, bool]) -> Share:
    answer = answers.get(value) if isinstance(value, str) else None
    return Share.PERHAPS if answer is None else Share.ALL if answer else Share.NOTHING


def _covered(prefix: Prefix, values: list[Any]) -> Share:
    """How much of `prefix` lies in the union of addresses, prefixes and ranges. A part is PERHAPS: it may be all that is in use."""
    readers: dict[str, Callable[[Any], tuple[int, int]]] = {
        "prefix": lambda body: _span(Prefix(parse_address(body["addr"]), body["len"]).network),
        "range": lambda body: (_number(body[0]), _number(body[1])),
    }
    spans = []
    for value in values:
        kind, body = _single(value)
        try:
            spans.append(readers[kind](body) if kind in readers else (_number(value), _number(value)))
        except (ValueError, AttributeError):
            return Share.PERHAPS  # a name, or an expression computed in the packet path
    first, last = _span(prefix.network)
    at, touched = first, False
    for low, high in sorted(spans):
        if high < first or low > last:
            continue
        touched = True
        if low > at:
            break
        at = max(at, high + 1)
    return Share.ALL if at > last else Share.PERHAPS if touched else Share.NOTHING


def _number(text: str) -> int:
    return int.from_bytes(parse_address(text), "big")


def _span(prefix: Prefix) -> tuple[int, int]:
    return prefix.value, prefix.value + prefix.step - 1
