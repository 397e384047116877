"""Routes, next-hop objects and policy rules from the kernel's answers to dumps, each with the words that iproute2 prints for it."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address
from tweed.model import PROTOCOL_NAMES, SCOPE_NAMES, TABLE_NAMES, TYPE_NAMES
from tweed.trace import snapshot as s
from tweed.trace.rtnetlink import U16, U16_PAIR, U32_PAIR, Found, Names, each, readable
from tweed.wire import link as w
from tweed.wire.netlink import SIZES, attributes, check_address, fixed, message, read_text, read_u32
from tweed.wire.route import (
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTM_F_CLONED,
    RTM_NEWROUTE,
    RTMSG,
    RTNEXTHOP,
)
from tweed.wire.rule import (
    FIB_RULE_INVERT,
    FRA_DPORT_RANGE,
    FRA_DST,
    FRA_FWMARK,
    FRA_FWMASK,
    FRA_GOTO,
    FRA_IIFNAME,
    FRA_IP_PROTO,
    FRA_L3MDEV,
    FRA_OIFNAME,
    FRA_PRIORITY,
    FRA_SPORT_RANGE,
    FRA_SRC,
    FRA_SUPPRESS_PREFIXLEN,
    FRA_TABLE,
    FRA_UID_RANGE,
    NO_SUPPRESS,
    RTM_NEWRULE,
    RULE,
)

RTA_METRICS, RTA_ENCAP_TYPE, RTAX_MTU = 8, 21, 2
HOP_FLAGS = {1: "dead", 2: "pervasive", 4: "onlink", 8: "offload", 16: "linkdown", 32: "unresolved", 64: "trap"}
ENCAPS = {1: "mpls", 2: "ip", 3: "ila", 4: "ip6", 5: "seg6", 6: "bpf", 7: "seg6local", 8: "rpl", 9: "ioam6", 10: "xfrm"}

# linux/nexthop.h
RTM_NEWNEXTHOP, RTM_GETNEXTHOP = 104, 106
NHMSG, GROUP_MEMBER = Struct("=BBBBI"), Struct("=IBxxx")
NHA_ID, NHA_GROUP, NHA_BLACKHOLE, NHA_OIF, NHA_GATEWAY, NHA_FDB = 1, 2, 4, 5, 6, 11

ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}


def dump_nexthops() -> bytes:
    return message(RTM_GETNEXTHOP, 0, NHMSG.pack(0, 0, 0, 0, 0))


@readable
def routes(datagrams: Iterable[bytes], known: Names) -> list[s.RouteRow]:
    """Those of the FIB: cached routes are none."""
    rows: list[s.RouteRow] = []
    line = 1
    for _, data, start, end in each(datagrams, (RTM_NEWROUTE,)):
        family, length, _, tos, table, protocol, scope, kind, flags = fixed(RTMSG, data, start, end)
        size = SIZES.get(family)
        if size is None or flags & RTM_F_CLONED:
            continue
        found = attributes(data, start + 12, end)
        address = found.get(RTA_DST) or bytes(size)
        check_address(address, length, size)
        if RTA_TABLE in found:
            table = read_u32(found[RTA_TABLE])
        type_name = TYPE_NAMES.get(kind, str(kind))
        without = type_name in ("blackhole", "unreachable", "prohibit", "throw")
        hops = () if without else hops_of(found, flags, known)
        metrics = attributes(found[RTA_METRICS], 0, len(found[RTA_METRICS])) if RTA_METRICS in found else {}
        nexthop = read_u32(found[RTA_NH_ID]) if RTA_NH_ID in found else None
        fields: dict[str, Any] = {
            "dst": Prefix(address, length),
            "type": type_name,
            "table": TABLE_NAMES.get(table, str(table)),
            "metric": read_u32(found[RTA_PRIORITY]) if RTA_PRIORITY in found else None,
            "protocol": None if protocol == 3 else PROTOCOL_NAMES.get(protocol, str(protocol)),
            "scope": None if scope == 0 or size == 16 else SCOPE_NAMES.get(scope, str(scope)),
            "src": found.get(RTA_PREFSRC),
            "mtu": read_u32(metrics[RTAX_MTU]) if RTAX_MTU in metrics else None,
            "tos": tos or None,
            "nexthop_id": nexthop,
            "encap": ENCAPS.get(U16.unpack(found[RTA_ENCAP_TYPE])[0], "?") if RTA_ENCAP_TYPE in found else None,
        }
        row = said(s.RouteRow(source=f"ip {'-6 ' if size == 16 else ''}route:{line}", text="", hops=hops, **fields))
        line += row.text.count("\n") + 1
        rows.append(row)
    return rows


def hops_of(found: Found, flags: int, known: Names) -> tuple[s.NextHop, ...]:
    if (multipath := found.get(RTA_MULTIPATH)) is None:
        hop = next_hop(found, read_u32(found[RTA_OIF]) if RTA_OIF in found else 0, 1, flags, known)
        return (hop,) if hop.device or hop.gateway else ()
    hops, at = [], 0
    while at < len(multipath):
        size, hop_flags, weight, index = fixed(RTNEXTHOP, multipath, at, len(multipath))
        if size < 8 or at + size > len(multipath):
            raise ValueError(f"netlink: a next hop of {size} bytes where {len(multipath) - at} are left")
        hops.append(next_hop(attributes(multipath, at + 8, at + size), index, weight + 1, hop_flags, known))
        at += (size + 3) & ~3
    return tuple(hops)


def next_hop(found: Found, index: int, weight: int, flags: int, known: Names) -> s.NextHop:
    via = found.get(RTA_VIA)
    gateway = found.get(RTA_GATEWAY) if via is None else via[2:]
    if gateway is not None and len(gateway) not in (4, 16):
        raise ValueError("netlink: a next hop with a gateway that is no address")
    told = tuple(word for bit, word in HOP_FLAGS.items() if flags & bit)
    return s.NextHop(device=known.get(index, f"if{index}") if index else None, gateway=gateway, weight=weight, flags=told)


def said(row: s.RouteRow) -> s.RouteRow:
    """The same with its words. Of several next hops each has a line, as `ip` prints them."""
    dst = "default" if not row.dst.length else format_address(row.dst.address) if row.dst.is_host else str(row.dst)
    words = [dst] if row.type == "unicast" else [row.type, dst]
    alone = len(row.hops) == 1
    words += ["nhid", str(row.nexthop_id)] if row.nexthop_id is not None else []
    words += ["encap", row.encap] if row.encap is not None else []
    words += hop_words(row.hops[0], row.dst.family) if alone else []
    for name, value in (("table", row.table), ("proto", row.protocol), ("scope", row.scope)):
        words += [name, value] if value is not None and (name, value) != ("table", "main") else []
    words += ["src", format_address(row.src)] if row.src is not None else []
    for name, number in (("metric", row.metric), ("mtu", row.mtu), ("tos", row.tos)):
        words += [name, str(number)] if number is not None else []
    words += row.hops[0].flags if alone else ()
    text = " ".join(words)
    if alone or not row.hops:
        return msgspec.structs.replace(row, text=text)
    file, _, line = row.source.rpartition(":")
    hops = []
    for number, hop in enumerate(row.hops, int(line) + 1):
        own = " ".join(["nexthop", *hop_words(hop, row.dst.family), "weight", str(hop.weight), *hop.flags])
        hops.append(msgspec.structs.replace(hop, source=f"{file}:{number}", text=own))
        text += f"\n    {own}"
    return msgspec.structs.replace(row, text=text, hops=tuple(hops))


def hop_words(hop: s.NextHop, family: int) -> list[str]:
    words = []
    if hop.gateway is not None:
        words += ["via", *(["inet6"] if family == 4 and len(hop.gateway) == 16 else []), format_address(hop.gateway)]
    return words + (["dev", hop.device] if hop.device is not None else [])


@readable
def nexthops(datagrams: Iterable[bytes], known: Names) -> list[s.NexthopRow]:
    """`ip nexthop`: objects that routes and fdb rows name (linux/nexthop.h)."""
    rows: list[s.NexthopRow] = []
    for _, data, start, end in each(datagrams, (RTM_NEWNEXTHOP,)):
        fixed(NHMSG, data, start, end)
        found = attributes(data, start + NHMSG.size, end)
        id, index = read_u32(found.get(NHA_ID, b"")), w.number(found, NHA_OIF)
        group = tuple((member, weight + 1) for member, weight in GROUP_MEMBER.iter_unpack(found.get(NHA_GROUP, b"")))
        gateway, device = found.get(NHA_GATEWAY), known.get(index, f"if{index}") if index else None
        hop = s.NextHop(device=device, gateway=gateway) if gateway is not None or device is not None else None
        words = ["id", str(id), *(["group", "/".join(f"{n},{m}" if m != 1 else str(n) for n, m in group)] if group else [])]
        words += hop_words(hop, 4 if gateway is None or len(gateway) == 4 else 6) if hop is not None else []
        words += ["blackhole"] if NHA_BLACKHOLE in found else []
        words += ["fdb"] if NHA_FDB in found else []
        rows.append(s.NexthopRow(source=f"ip nexthop:{len(rows) + 1}", text=" ".join(words), id=id, hop=hop, group=group, blackhole=NHA_BLACKHOLE in found))
    return rows


@readable
def rules(datagrams: Iterable[bytes]) -> list[s.RuleRow]:
    rows: list[s.RuleRow] = []
    for _, data, start, end in each(datagrams, (RTM_NEWRULE,)):
        family, dst_length, src_length, tos, table, action, flags = fixed(RULE, data, start, end)
        size = SIZES.get(family)
        if size is None:
            continue
        found = attributes(data, start + 12, end)
        told: dict[str, Any] = {"family": 4 if size == 4 else 6, "priority": read_u32(found[FRA_PRIORITY]) if FRA_PRIORITY in found else 0}
        told |= {"action": ACTIONS.get(action, str(action)), "negated": bool(flags & FIB_RULE_INVERT), "tos": tos or None}
        for name, kind, length in (("src", FRA_SRC, src_length), ("dst", FRA_DST, dst_length)):
            if kind in found:
                check_address(found[kind], length, size)
                told[name] = Prefix(found[kind], length)
        told |= {name: read_text(found[kind]) for name, kind in (("iif", FRA_IIFNAME), ("oif", FRA_OIFNAME)) if kind in found}
        told |= {name: read_u32(found[kind]) for name, kind in (("fwmark", FRA_FWMARK), ("fwmask", FRA_FWMASK), ("goto", FRA_GOTO)) if kind in found}
        if told.get("fwmask") == 0xFFFFFFFF:
            del told["fwmask"]
        if FRA_TABLE in found:
            table = read_u32(found[FRA_TABLE])
        if told["action"] == "lookup" and table:
            told["table"] = TABLE_NAMES.get(table, str(table))
        if (length := read_u32(found[FRA_SUPPRESS_PREFIXLEN]) if FRA_SUPPRESS_PREFIXLEN in found else NO_SUPPRESS) != NO_SUPPRESS:
            told["suppress_length"] = length
        told |= {"ipproto": found[FRA_IP_PROTO][0]} if FRA_IP_PROTO in found else {}
        told |= {name: U16_PAIR.unpack(found[kind]) for name, kind in (("sport", FRA_SPORT_RANGE), ("dport", FRA_DPORT_RANGE)) if kind in found}
        told |= {"uid": U32_PAIR.unpack(found[FRA_UID_RANGE])} if FRA_UID_RANGE in found else {}
        told |= {"others": ("l3mdev",)} if any(found.get(FRA_L3MDEV, b"")) else {}
        source = f"ip {'-6 ' if size == 16 else ''}rule:{len(rows) + 1}"
        rows.append(s.RuleRow(source=source, text=rule_words(told), **told))
    return rows


def rule_words(told: dict[str, Any]) -> str:
    words = ["not"] if told["negated"] else []
    words += ["from", str(told.get("src", "all"))]
    words += ["to", str(told["dst"])] if "dst" in told else []
    words += ["tos", str(told["tos"])] if told["tos"] else []
    if "fwmark" in told:
        words += ["fwmark", hex(told["fwmark"]) + (f"/{told['fwmask']:#x}" if "fwmask" in told else "")]
    for name in ("iif", "oif", "ipproto"):
        words += [name, str(told[name])] if name in told else []
    for name, key in (("sport", "sport"), ("dport", "dport"), ("uidrange", "uid")):
        if key in told:
            first, last = told[key]
            words += [name, f"{first}-{last}" if first != last or key == "uid" else str(first)]
    words += list(told.get("others", ())) and ["lookup", "[l3mdev-table]"]
    if told["action"] == "goto":
        words += ["goto", str(told.get("goto"))]
    elif told["action"] != "lookup":
        words += [told["action"]]
    elif "table" in told:
        words += ["lookup", told["table"]]
    words += ["suppress_prefixlength", str(told["suppress_length"])] if "suppress_length" in told else []
    return f"{told['priority']}: {' '.join(words)}"
