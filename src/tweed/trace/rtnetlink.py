"""The kernel's answers to dumps (linux/rtnetlink.h and its kin) as rows of a snapshot, each with the words that iproute2 prints for it.

More is kept here than in `wire.rtnl`, whose rows are what an agent programs: weights, states, encapsulations, the ports of a bridge.
Whatever cannot be read raises ValueError.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from struct import Struct
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address, format_mac
from tweed.model import NUD_NAMES, NUD_NOARP, NUD_PERMANENT, NUD_STALE, PROTOCOL_NAMES, SCOPE_NAMES, TABLE_NAMES, TYPE_NAMES
from tweed.trace import snapshot as s
from tweed.wire import link as w
from tweed.wire import rtnl
from tweed.wire.netlink import AF_BRIDGE, AF_INET6, FAMILIES, INT, SIZES, attributes, check_address, fixed, message, messages, read_text, read_u32
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

IFF_POINTOPOINT, IFF_LOWER_UP = 0x10, 0x10000
BRPORT_STATE, BRPORT_ISOLATED, BR_VLAN_FILTERING, VLAN_ID, VXLAN_DF = 1, 33, 7, 1, 29
PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
DONT_FRAGMENT = {1: "set", 2: "inherit"}
ADDRESS_FLAGS = {1: "secondary", 2: "nodad", 4: "optimistic", 8: "dadfailed", 0x10: "home", 0x20: "deprecated", 0x40: "tentative"} | {
    0x100: "mngtmpaddr",
    0x200: "noprefixroute",
    0x800: "stable-privacy",
}
IFA_F_PERMANENT = 0x80
RTA_METRICS, RTA_ENCAP_TYPE, RTAX_MTU = 8, 21, 2
HOP_FLAGS = {1: "dead", 2: "pervasive", 4: "onlink", 8: "offload", 16: "linkdown", 32: "unresolved", 64: "trap"}
ENCAPS = {1: "mpls", 2: "ip", 3: "ila", 4: "ip6", 5: "seg6", 6: "bpf", 7: "seg6local", 8: "rpl", 9: "ioam6", 10: "xfrm"}
NTF_EXT_LEARNED, NTF_OFFLOADED, NTF_STICKY, NTF_ROUTER = 0x10, 0x20, 0x40, 0x80
NDA_SRC_VNI, NDA_NH_ID = 11, 13
U16, U16_PAIR, U32_PAIR = Struct("=H"), Struct("=HH"), Struct("=II")

# linux/nexthop.h
RTM_NEWNEXTHOP, RTM_GETNEXTHOP = 104, 106
NHMSG, GROUP_MEMBER = Struct("=BBBBI"), Struct("=IBxxx")
NHA_ID, NHA_GROUP, NHA_BLACKHOLE, NHA_OIF, NHA_GATEWAY, NHA_FDB = 1, 2, 4, 5, 6, 11

# linux/fib_rules.h
RTM_NEWRULE, RTM_GETRULE = 32, 34
RULE = Struct("=BBBBBxxBI")  # family, dst length, src length, tos, table, action, flags
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE = 1, 2, 3, 4, 6, 10, 14, 15
FRA_FWMASK, FRA_OIFNAME, FRA_L3MDEV, FRA_UID_RANGE, FRA_IP_PROTO, FRA_SPORT_RANGE, FRA_DPORT_RANGE = 16, 17, 19, 20, 22, 23, 24
FIB_RULE_INVERT, NO_SUPPRESS = 2, 0xFFFFFFFF
ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}

Names = Mapping[int, str]
Found = dict[int, bytes]


def each(datagrams: Iterable[bytes], kinds: tuple[int, ...]) -> Iterator[tuple[int, bytes, int, int]]:
    """The messages of some kinds: kind, the datagram, where the body begins and ends."""
    for data in datagrams:
        for kind, _, _, _, start, end in messages(data):
            if kind in kinds:
                yield kind, data, start, end


def readable(read: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Foreign errors of a reader as ValueError."""

    def guarded(*arguments: Any) -> list[Any]:
        try:
            return read(*arguments)
        except (struct.error, IndexError) as error:
            raise ValueError(f"netlink message: {error}") from None

    return guarded


# ---- questions ----------------------------------------------------------------------------------------------------------


def dump_rules(family: int) -> bytes:
    """All rules of a family 4 or 6."""
    return message(RTM_GETRULE, 0, RULE.pack(FAMILIES[family], 0, 0, 0, 0, 0, 0))


def dump_nexthops() -> bytes:
    return message(RTM_GETNEXTHOP, 0, NHMSG.pack(0, 0, 0, 0, 0))


def dump_neighbours(family: int) -> bytes:
    """The neighbours of all devices, of a family 4 or 6."""
    return message(rtnl.RTM_GETNEIGH, 0, rtnl.NDMSG.pack(FAMILIES[family], 0, 0, 0, 0))


# ---- devices and the ports of bridges -----------------------------------------------------------------------------------


def names(datagrams: Iterable[bytes]) -> dict[int, str]:
    """Device names by index, of a dump of links."""
    found = {}
    for _, data, start, end in each(datagrams, (w.RTM_NEWLINK,)):
        _, _, index, _, _ = fixed(w.IFINFOMSG, data, start, end)
        found[index] = read_text(attributes(data, start + 16, end).get(w.IFLA_IFNAME, b""))
    return found


@readable
def devices(datagrams: Iterable[bytes], known: Names) -> list[s.Row]:
    """DeviceRow of each device, and PortRow of each that is a bridge's port."""
    rows: list[s.Row] = []
    line, ports = 1, 1
    for _, data, start, end in each(datagrams, (w.RTM_NEWLINK,)):
        family, _, index, flags, _ = fixed(w.IFINFOMSG, data, start, end)
        if family:
            continue
        found = attributes(data, start + 16, end)
        row, port = device(index, flags, found, known, line)
        line += row.text.count("\n") + 1
        rows.append(row)
        if port is not None:
            head = row.text.split("\n")[0].rpartition(" state ")[0]
            rows.append(s.PortRow(source=f"bridge link:{ports}", text=port_words(head, port), device=row.name, master=row.master, **port))
            ports += 1
    return rows


def device(index: int, flags: int, found: Found, known: Names, line: int) -> tuple[s.DeviceRow, dict[str, Any] | None]:
    kind, words, port = "", "", None
    fields: dict[str, Any] = {}
    if (encoded := found.get(w.IFLA_LINKINFO)) is not None:
        info = attributes(encoded, 0, len(encoded))
        kind = read_text(info.get(w.INFO_KIND, b""))
        inner = info.get(w.INFO_DATA, b"")
        fields, words = of_kind(kind, attributes(inner, 0, len(inner)), known)
        if read_text(info.get(w.INFO_SLAVE_KIND, b"")) == "bridge" and (inner := info.get(w.INFO_SLAVE_DATA, b"")):
            told = attributes(inner, 0, len(inner))
            code = told.get(BRPORT_STATE, b"\0")[0]
            port = {
                "state": PORT_STATES[code] if code < len(PORT_STATES) else str(code),
                "hairpin": flag(told, w.BRPORT_MODE),
                "isolated": flag(told, BRPORT_ISOLATED),
            }
    name = read_text(found.get(w.IFLA_IFNAME, b""))
    mac = found.get(w.IFLA_ADDRESS)
    mac = mac if mac is not None and len(mac) == 6 else None
    netns = found.get(w.IFLA_LINK_NETNSID)
    lower = None
    if (below := w.number(found, w.IFLA_LINK)) and kind != "vxlan":
        lower = f"if{below}" if netns is not None else known.get(below, f"if{below}")
    master = known.get(w.number(found, w.IFLA_MASTER))
    mtu = w.number(found, w.IFLA_MTU)
    told_flags = [word for bit, word in ((IFF_POINTOPOINT, "POINTOPOINT"), (w.IFF_UP, "UP"), (IFF_LOWER_UP, "LOWER_UP")) if flags & bit]
    head = f"{index}: {name}{f'@{lower}' if lower else ''}: <{','.join(told_flags)}> mtu {mtu}{f' master {master}' if master else ''}"
    state = "UP" if flags & w.IFF_UP else "DOWN"
    netnsid = None if netns is None else str(INT.unpack(netns)[0])
    link = f"    link/{'ether' if mac else 'none'}{f' {format_mac(mac)}' if mac else ''}{f' link-netnsid {netnsid}' if netnsid else ''} promiscuity 0"
    text = "\n".join([f"{head} state {state}", link, *([f"    {words or kind}"] if kind else [])])
    row = s.DeviceRow(
        source=f"ip -d link:{line}",
        text=text,
        name=name,
        index=index,
        kind=kind,
        mac=mac,
        mtu=mtu,
        up=bool(flags & w.IFF_UP),
        running=bool(flags & IFF_LOWER_UP),
        point_to_point=bool(flags & IFF_POINTOPOINT),
        master=master,
        lower=lower,
        lower_netns=netnsid,
        **fields,
    )
    return row, port


def port_words(head: str, port: dict[str, Any]) -> str:
    settings = [f"{name} {'on' if port[name] else 'off'}" for name in ("hairpin", "isolated") if port[name] is not None]
    return " ".join([head, "state", port["state"], *settings])


def flag(found: Found, kind: int) -> bool | None:
    payload = found.get(kind)
    return None if payload is None else any(payload)


def of_kind(kind: str, found: Found, known: Names) -> tuple[dict[str, Any], str]:
    """The fields that only devices of a kind have, and their line."""
    if kind == "vxlan":
        made = vxlan(found, known)
        return {"vxlan": made}, vxlan_words(made)
    if kind == "bridge":
        filtering = flag(found, BR_VLAN_FILTERING)
        return {"vlan_filtering": filtering}, f"bridge ageing_time {w.number(found, 4)}{'' if filtering is None else f' vlan_filtering {int(filtering)}'}"
    if kind == "vlan" and VLAN_ID in found:
        number = U16.unpack(found[VLAN_ID])[0]
        return {"vlan_id": number}, f"vlan protocol 802.1Q id {number}"
    if kind == "tun":
        return {}, "tun type tun"
    return {}, ""


def vxlan(found: Found, known: Names) -> s.VxlanAttributes:
    below = w.number(found, w.VXLAN_LINK)
    df = found.get(VXLAN_DF)
    return s.VxlanAttributes(
        vni=w.number(found, w.VXLAN_ID),
        port=int.from_bytes(found.get(w.VXLAN_PORT, b""), "big"),
        local=found.get(w.VXLAN_LOCAL, found.get(w.VXLAN_LOCAL6)),
        group=found.get(w.VXLAN_GROUP, found.get(w.VXLAN_GROUP6)),
        underlay=known.get(below, f"if{below}") if below else None,
        learning=bool(flag(found, w.VXLAN_LEARNING)),
        ttl=int.from_bytes(found.get(w.VXLAN_TTL, b""), "big") or None,
        checksum=flag(found, w.VXLAN_UDP_CSUM),
        gbp=w.VXLAN_GBP in found,
        external=bool(flag(found, w.VXLAN_COLLECT_METADATA)),
        df=DONT_FRAGMENT.get(df[0]) if df else None,
    )


def vxlan_words(made: s.VxlanAttributes) -> str:
    words = ["vxlan"]
    words += ["external"] if made.external else []
    words += ["id", str(made.vni)]
    if made.group is not None:
        multicast = made.group[0] >> 4 == 0xE or made.group[0] == 0xFF
        words += ["group" if multicast else "remote", format_address(made.group)]
    words += ["local", format_address(made.local)] if made.local is not None else []
    words += ["dev", made.underlay] if made.underlay is not None else []
    words += ["dstport", str(made.port), "learning" if made.learning else "nolearning", "ttl", str(made.ttl or "auto")]
    words += ["df", made.df] if made.df is not None else []
    words += [] if made.checksum is None else ["udpcsum" if made.checksum else "noudpcsum"]
    return " ".join([*words, *(["gbp"] if made.gbp else [])])


# ---- addresses ----------------------------------------------------------------------------------------------------------


@readable
def addresses(datagrams: Iterable[bytes], known: Names) -> list[s.AddressRow]:
    rows: list[s.AddressRow] = []
    for _, data, start, end in each(datagrams, (rtnl.RTM_NEWADDR,)):
        family, length, narrow, scope, index = fixed(rtnl.IFADDRMSG, data, start, end)
        size = SIZES.get(family)
        if size is None:
            continue
        found = attributes(data, start + 8, end)
        own = found.get(rtnl.IFA_LOCAL) or found.get(rtnl.IFA_ADDRESS, b"")
        far = found.get(rtnl.IFA_ADDRESS, own)
        check_address(own, length, size)
        check_address(far, length, size)
        flags = read_u32(found[rtnl.IFA_FLAGS]) if rtnl.IFA_FLAGS in found else narrow
        told = [word for bit, word in ADDRESS_FLAGS.items() if flags & bit] + ([] if flags & IFA_F_PERMANENT else ["dynamic"])
        if family == AF_INET6 and "secondary" in told:
            told[told.index("secondary")] = "temporary"
        address, peer = (Prefix(own, length), None) if far == own else (Prefix(own, 8 * size), Prefix(far, length))
        device = known.get(index, f"if{index}")
        where = SCOPE_NAMES.get(scope, str(scope))
        words = [f"inet{'6' if size == 16 else ''}", format_address(own) if peer else str(address), *(["peer", str(peer)] if peer else []), "scope", where]
        text = " ".join([*words, *told, device])
        source = f"ip addr:{len(rows) + 1}"
        rows.append(s.AddressRow(source=source, text=text, device=device, address=address, peer=peer, scope=where, flags=tuple(told)))
    return rows


# ---- routes and rules ---------------------------------------------------------------------------------------------------


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


# ---- neighbours and fdb -------------------------------------------------------------------------------------------------


@readable
def neighbours(datagrams: Iterable[bytes], known: Names) -> list[s.NeighbourRow]:
    """What `ip neigh` shows, without proxies, and NOARP rows that send unicast somewhere, which it hides."""
    rows: list[s.NeighbourRow] = []
    for _, data, start, end in each(datagrams, (rtnl.RTM_NEWNEIGH,)):
        family, index, state, flags, _ = fixed(rtnl.NDMSG, data, start, end)
        size = SIZES.get(family)
        if size is None or flags & rtnl.NTF_PROXY:
            continue
        found = attributes(data, start + 12, end)
        address, mac = found.get(rtnl.NDA_DST, b""), found.get(rtnl.NDA_LLADDR)
        check_address(address, 0, size)
        mac = mac if mac is not None and len(mac) == 6 else None
        if not state & ~NUD_NOARP and (mac is None or not any(mac) or mac[0] & 1):
            continue
        device, name = known.get(index, f"if{index}"), NUD_NAMES.get(state, hex(state))
        told = tuple(word for bit, word in ((NTF_ROUTER, "router"), (NTF_EXT_LEARNED, "extern_learn"), (NTF_OFFLOADED, "offload")) if flags & bit)
        lladdr = f" lladdr {format_mac(mac)}" if mac is not None else ""
        text = " ".join([f"{format_address(address)} dev {device}{lladdr}", *told, name])
        source = f"ip {'-6 ' if size == 16 else ''}neigh:{len(rows) + 1}"
        rows.append(s.NeighbourRow(source=source, text=text, address=address, device=device, mac=mac, state=name, flags=told))
    return rows


@readable
def fdb(datagrams: Iterable[bytes], known: Names) -> list[s.FdbRow]:
    rows: list[s.FdbRow] = []
    for _, data, start, end in each(datagrams, (rtnl.RTM_NEWNEIGH,)):
        family, index, state, flags, _ = fixed(rtnl.NDMSG, data, start, end)
        if family != AF_BRIDGE:
            continue
        found = attributes(data, start + 12, end)
        mac, dst = found.get(rtnl.NDA_LLADDR, b""), found.get(rtnl.NDA_DST)
        if len(mac) != 6 or (dst is not None and len(dst) not in (4, 16)):
            raise ValueError("netlink: an fdb row with a MAC or destination that is none")
        numbers = {"vlan": rtnl.NDA_VLAN, "vni": rtnl.NDA_VNI, "src_vni": NDA_SRC_VNI, "nexthop_id": NDA_NH_ID}
        fields: dict[str, Any] = {name: int.from_bytes(found[kind], sys.byteorder) for name, kind in numbers.items() if kind in found}
        if rtnl.NDA_PORT in found:
            fields["port"] = int.from_bytes(found[rtnl.NDA_PORT], "big")
        if rtnl.NDA_IFINDEX in found:
            via = read_u32(found[rtnl.NDA_IFINDEX])
            fields["via"] = known.get(via, f"if{via}")
        if rtnl.NDA_MASTER in found:
            bridge = read_u32(found[rtnl.NDA_MASTER])
            fields["master"] = known.get(bridge, f"if{bridge}")
        device = known.get(index, f"if{index}")
        told = tuple(word for bit, word in ((NTF_OFFLOADED, "offload"), (NTF_EXT_LEARNED, "extern_learn"), (NTF_STICKY, "sticky")) if flags & bit)
        name = "permanent" if state & NUD_PERMANENT else "static" if state & NUD_NOARP else "stale" if state & NUD_STALE else None
        words = [format_mac(mac), "dev", device, *(["dst", format_address(dst)] if dst is not None else [])]
        for key, word in (("vlan", "vlan"), ("port", "port"), ("vni", "vni"), ("src_vni", "src_vni"), ("nexthop_id", "nhid"), ("via", "via")):
            words += [word, str(fields[key])] if key in fields else []
        own = bool(flags & rtnl.NTF_SELF)
        words += [*(["self"] if own else []), *(["master", fields["master"]] if "master" in fields else []), *told, *([name] if name else [])]
        source = f"bridge fdb:{len(rows) + 1}"
        rows.append(s.FdbRow(source=source, text=" ".join(words), mac=mac, device=device, dst=dst, own=own, state=name, flags=told, **fields))
    return rows
