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

from tweed.addr import Prefix, format_address, format_mac
from tweed.model import NUD_NAMES, NUD_NOARP, NUD_PERMANENT, NUD_STALE, SCOPE_NAMES
from tweed.trace import snapshot as s
from tweed.wire import link as w
from tweed.wire import rtnl
from tweed.wire.netlink import AF_BRIDGE, AF_INET6, FAMILIES, INT, SIZES, attributes, check_address, fixed, message, messages, read_text, read_u32

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
NTF_EXT_LEARNED, NTF_OFFLOADED, NTF_STICKY, NTF_ROUTER = 0x10, 0x20, 0x40, 0x80
NDA_SRC_VNI, NDA_NH_ID = 11, 13
U16, U16_PAIR, U32_PAIR = Struct("=H"), Struct("=HH"), Struct("=II")

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
