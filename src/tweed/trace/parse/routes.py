"""`ip route`, `ip -6 route` and `ip rule`."""

from __future__ import annotations

import re
from typing import Any

from tweed.addr import Prefix, parse_address
from tweed.addr import family as family_of
from tweed.model import TYPE_NAMES
from tweed.trace.parse.words import Where, Words, number, number_or_none, optional, prefix, protocol_name, string, strings, table_name, vocabulary
from tweed.trace.snapshot import NextHop, NexthopRow, RouteRow, RuleRow

TYPES = frozenset(TYPE_NAMES.values()) | {"nat", "xresolve"}
FLAGS = vocabulary("onlink linkdown dead pervasive offload trap notify rt_offload rt_trap rt_offload_failed offload_failed unresolved cache cloned")
# What a walk has no use for: words that are followed by one word.
SKIPPED = vocabulary("""
    advmss hoplimit initcwnd initrwnd rtt rttvar window cwnd ssthresh realm realms realms_src pref expires error congctl quickack features rto_min
    reordering fastopen_no_cookie uid users age from ttl-propagate ipid iif ecn
""")
KEYWORDS = FLAGS | SKIPPED | vocabulary("via dev table proto protocol scope src metric mtu tos dsfield nhid nexthop encap weight")
IP_PROTOCOLS = {"icmp": 1, "ipv4": 4, "tcp": 6, "udp": 17, "ipv6": 41, "gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132}
DSFIELDS = {"default": 0, "lowdelay": 0x10, "throughput": 0x08, "reliability": 0x04, "mincost": 0x02}
ENCAP_ENDS = vocabulary("via dev proto scope metric table nhid")  # `ip route` prints it before all of these; inside it are src, dst, ttl, tos
ACTIONS = frozenset({"blackhole", "unreachable", "prohibit", "nop"})


def route(where: Where) -> RouteRow:
    """One route with its `nexthop` lines, which are the lines of `where.text`."""
    first, *rest = hop_lines(where.text)
    words = Words(first)
    fields: dict[str, Any] = {"type": words.take() if words.peek() in TYPES else "unicast"}
    destination = words.take()
    hop = attributes(words, fields)
    sources = where.source.rpartition(":")
    hops = [] if not hop else [hop]
    for offset, line in rest:
        hop = attributes(Words(line.removeprefix("nexthop")), {})
        hops.append(hop | {"source": f"{sources[0]}:{number(sources[2]) + offset}", "text": line})
    family = where.family or next(map(family_of, known_addresses(fields, hops)), None)
    if where.device is not None and not hops:
        hops = [{}]
    made = tuple(NextHop(**{"device": where.device, **h}) for h in hops)
    if fields["type"] in ACTIONS or fields["type"] == "throw":
        made = ()
    return RouteRow(**where.at, dst=prefix(destination, family), hops=made, **{"table": where.table or "main", **fields})


def old_route(matched: re.Match[str], where: Where) -> RouteRow:
    """`10.244.1.0      10.244.1.1      255.255.255.0   UG    0      0        0 eth0`: `route -n`, and `netstat -rn` without metrics."""
    dst, gateway, mask, flags, metric, *_, device = matched.groups()
    bits = int.from_bytes(parse_address(mask), "big")
    length = bits.bit_count()
    if bits != (1 << 32) - (1 << (32 - length)):
        raise ValueError(f"{mask} is no netmask")
    network = Prefix(parse_address("0.0.0.0" if dst == "default" else dst), length)
    hop = NextHop(device=device, gateway=parse_address(gateway) if "G" in flags else None)
    return RouteRow(
        **where.at, dst=network, hops=() if "!" in flags else (hop,), type="unreachable" if "!" in flags else "unicast", metric=number(metric) or None
    )


def known_addresses(fields: dict[str, Any], hops: list[dict[str, Any]]) -> list[bytes]:
    """Those that tell a default route's family. The gateway of an IPv4 route may be IPv6, its source may not."""
    return [a for a in (fields.get("src"), *(hop.get("gateway") for hop in hops)) if a is not None]


def hop_lines(text: str) -> list[Any]:
    """The row without its next hops, then each hop's line with the number of lines before it."""
    lines = text.split("\n")
    hops: list[Any] = []
    head = []
    for at, line in enumerate(lines):
        before, *parts = line.split("nexthop ")
        if hops and before.strip():
            hops[-1] = (hops[-1][0], f"{hops[-1][1]} {before.strip()}")  # a hop that the terminal wrapped
        elif before.strip():
            head.append(before.strip())
        hops += [(at, f"nexthop {part.strip()}") for part in parts]
    return [" ".join(head), *hops]


def attributes(words: Words, fields: dict[str, Any]) -> dict[str, Any]:
    """The words behind a destination: what belongs to the route goes into `fields`, what belongs to its hop is returned."""
    hop: dict[str, Any] = {}
    flags: list[str] = []
    while words:
        word = words.take()
        if word == "via":
            if words.peek() in ("inet", "inet6"):
                words.take()
            hop["gateway"] = parse_address(words.take())
        elif word == "dev":
            hop["device"] = words.take()
        elif word == "weight":
            hop["weight"] = words.number()
        elif word in FLAGS:
            flags.append(word)
        elif word == "table":
            fields["table"] = table_name(words.take())
        elif word in ("proto", "protocol"):
            fields["protocol"] = protocol_name(words.take())
        elif word == "scope":
            fields["scope"] = words.take()
        elif word == "src":
            fields["src"] = parse_address(words.take())
        elif word in ("metric", "priority"):
            fields["metric"] = words.number()
        elif word in ("tos", "dsfield"):
            fields["tos"] = words.number()
        elif word == "mtu":
            if words.peek() == "lock":
                words.take()
            fields["mtu"] = words.number()
        elif word == "nhid":
            fields["nexthop_id"] = words.number()
        elif word == "encap":
            fields["encap"] = words.take()
            while words and words.peek() not in ENCAP_ENDS:
                words.take()
        elif word == "lock":
            continue
        elif word in SKIPPED:
            words.take()
        else:
            raise ValueError(f"{word!r} is no word of ip route")
    if flags:
        hop["flags"] = tuple(flags)
    return hop


def route_json(fields: dict[str, Any], where: Where) -> RouteRow:
    """One element of `ip -j route`."""
    hops = [hop_json(hop) for hop in fields["nexthops"]] if fields.get("nexthops") else [hop_json(fields)]
    kind = string(fields.get("type", "unicast"))
    src = parse_address(fields["prefsrc"]) if fields.get("prefsrc") else None
    gateways = [hop.gateway for hop in hops if hop.gateway is not None]
    family = where.family or next(map(family_of, [src] if src else gateways), None)
    metrics = fields.get("metrics") or [{}]
    encap = fields.get("encap")
    return RouteRow(
        **where.at,
        dst=prefix(string(fields["dst"]), family),
        hops=() if kind in ACTIONS or kind == "throw" else tuple(hops),
        type=kind,
        table=table_name(fields.get("table", where.table or "main")),
        metric=number_or_none(fields.get("metric")),
        protocol=protocol_name(fields["protocol"]) if "protocol" in fields else None,
        scope=optional(fields.get("scope")),
        src=src,
        mtu=number_or_none(metrics[0].get("mtu")),
        tos=number_or_none(fields.get("tos")) or None,
        nexthop_id=number_or_none(fields.get("nhid")),
        encap=None if encap is None else str(encap),
    )


def hop_json(fields: dict[str, Any]) -> NextHop:
    gateway = fields.get("gateway") or (fields.get("via") or {}).get("host")
    return NextHop(
        device=optional(fields.get("dev")),
        gateway=parse_address(gateway) if gateway else None,
        weight=number(fields.get("weight", 1)),
        flags=strings(fields.get("flags")),
    )


def nexthop(where: Where) -> NexthopRow:
    """`id 20 via 172.31.9.9 dev ens5 scope link`, `id 100 group 20,3/21`, `id 9 blackhole`, of fdb rows `id 12 via 10.0.0.5 fdb`."""
    words = Words(where.text)
    fields: dict[str, Any] = {}
    hop: dict[str, Any] = {}
    while words:
        word = words.take()
        if word == "id":
            fields["id"] = words.number()
        elif word == "via":
            hop["gateway"] = parse_address(words.take())
        elif word == "dev":
            hop["device"] = words.take()
        elif word == "group":
            parts = [part.split(",") for part in words.take().split("/")]
            fields["group"] = tuple((number(part[0]), number(part[1]) if len(part) > 1 else 1) for part in parts)
        elif word == "blackhole":
            fields["blackhole"] = True
        elif word == "encap":
            while words and words.peek() not in ENCAP_ENDS:
                words.take()
        elif word in ("scope", "proto", "type", "buckets", "idle_timer", "unbalanced_timer", "unbalanced_time"):
            words.take()
        elif word not in FLAGS and word != "fdb":
            raise ValueError(f"{word!r} is no word of ip nexthop")
    return NexthopRow(**where.at, hop=NextHop(**hop) if hop else None, **fields)


def nexthop_json(fields: dict[str, Any], where: Where) -> NexthopRow:
    """One element of `ip -j nexthop`."""
    group = tuple((number(each["id"]), number(each.get("weight", 1))) for each in fields.get("group") or [])
    made = hop_json(fields)
    hop = made if made.device is not None or made.gateway is not None else None
    return NexthopRow(**where.at, id=number(fields["id"]), hop=hop, group=group, blackhole="blackhole" in fields)


# ---- rules --------------------------------------------------------------------------------------------------------------


def rule(where: Where) -> RuleRow:
    """`32766:	from all lookup main`. Selectors that a walk does not evaluate are kept as words."""
    head, _, rest = where.text.partition(":")
    words = Words(rest)
    fields: dict[str, Any] = {"priority": number(head.strip())}
    others: list[str] = []
    while words:
        word = words.take()
        if word == "not":
            fields["negated"] = True
        elif word in ("from", "to"):
            value = words.take()
            if value not in ("all", "any", "0/0"):
                fields["src" if word == "from" else "dst"] = prefix(value, where.family)
        elif word in ("iif", "oif"):
            fields[word] = words.take()
            if words.peek() == "[detached]":
                words.take()
        elif word == "dev":  # iif, in iproute2 of long ago
            fields["iif"] = words.take()
        elif word == "fwmark":
            mark, _, mask = words.take().partition("/")
            fields["fwmark"] = number(mark)
            fields["fwmask"] = number(mask) if mask else None
        elif word in ("lookup", "table"):
            fields["table"] = table_name(words.take())
        elif word == "goto":
            fields |= {"action": "goto", "goto": words.number()}
        elif word in ACTIONS:
            fields["action"] = word
        elif word in ("suppress_prefixlength", "suppress_prefixlen"):
            fields["suppress_length"] = words.number()
        elif word in ("proto", "protocol", "realms", "suppress_ifgroup"):
            words.take()
        elif word in ("tos", "dsfield"):
            fields["tos"] = tos(words.take())
        elif word == "ipproto":
            fields["ipproto"] = ip_protocol(words.take())
        elif word in ("sport", "dport"):
            fields[word] = port_range(words.take())
        elif word == "uidrange":
            fields["uid"] = port_range(words.take())
        elif word in ("tun_id", "dscp", "flowlabel"):
            others += [word, words.take()]
        elif word == "l3mdev" or word == "[l3mdev-table]":
            others.append("l3mdev")
        elif word == "[unresolved]":
            continue
        else:
            raise ValueError(f"{word!r} is no word of ip rule")
    return finished(where, fields, tuple(others))


def rule_json(fields: dict[str, Any], where: Where) -> RuleRow:
    """One element of `ip -j rule`."""
    made: dict[str, Any] = {"priority": number(fields["priority"]), "negated": "not" in fields}
    for name in ("src", "dst"):
        if fields.get(name) not in (None, "all"):
            length = fields.get(name + "len")
            made[name] = prefix(string(fields[name]) + (f"/{number(length)}" if length is not None else ""), where.family)
    for name in ("iif", "oif"):
        made[name] = optional(fields.get(name))
    if "fwmark" in fields:
        made["fwmark"] = number(fields["fwmark"])
        made["fwmask"] = number_or_none(fields.get("fwmask"))
    if "table" in fields:
        made["table"] = table_name(fields["table"])
    if fields.get("action") in ACTIONS:
        made["action"] = fields["action"]
    if "goto" in fields:
        made |= {"action": "goto", "goto": number(fields["goto"])}
    for name in ("suppress_prefixlen", "suppress_prefixlength"):
        if name in fields:
            made["suppress_length"] = number(fields[name])
    if "tos" in fields:
        made["tos"] = tos(fields["tos"])
    if "ipproto" in fields:
        made["ipproto"] = ip_protocol(fields["ipproto"])
    for name, key in (("sport", "sport"), ("dport", "dport"), ("uid", "uid")):
        if f"{key}_start" in fields:
            made[name] = (number(fields[f"{key}_start"]), number(fields[f"{key}_end"]))
        elif key in fields:
            made[name] = port_range(fields[key])
    others = tuple(f"{name} {fields[name]}" for name in ("tun_id", "dscp", "l3mdev") if name in fields)
    return finished(where, made, others)


def tos(word: Any) -> int:
    """A number, or a name of iproute2's rt_dsfield."""
    return DSFIELDS[word] if word in DSFIELDS else number(word)


def ip_protocol(word: Any) -> int:
    return IP_PROTOCOLS[word] if word in IP_PROTOCOLS else number(word)


def port_range(word: Any) -> tuple[int, int]:
    first, _, last = str(word).partition("-")
    return number(first), number(last or first)


def finished(where: Where, fields: dict[str, Any], others: tuple[str, ...]) -> RuleRow:
    if fields.get("action", "lookup") == "lookup" and fields.get("table") is None and "l3mdev" not in " ".join(others):
        raise ValueError("it says no table and no action")
    told: list[Prefix] = [p for p in (fields.get("src"), fields.get("dst")) if p is not None]
    family = where.family or (told[0].family if told else 4)
    return RuleRow(**where.at, family=family, others=others, **fields)
