"""Rows of the four tables over rtnetlink (linux/if_addr.h, neighbour.h; routes in `route`): a change to bytes, a message to rows.

A device is its name in a row and its ifindex on the wire; the mapping is an argument. Whatever cannot be read raises ValueError.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from struct import Struct

from tweed.addr import Prefix
from tweed.model import NUD_PERMANENT, NUD_REACHABLE, Change, FdbEntry, InterfaceAddress, Neighbour, Route, Row
from tweed.wire.netlink import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    FAMILIES,
    SIZES,
    attribute,
    attributes,
    check_address,
    fixed,
    flags_of,
    message,
    messages,
    read_u32,
    u32,
)
from tweed.wire.route import (
    RTA_DPORT,
    RTA_DST,
    RTA_IIF,
    RTA_IP_PROTO,
    RTA_MARK,
    RTA_OIF,
    RTA_SPORT,
    RTA_SRC,
    RTA_TABLE,
    RTM_DELROUTE,
    RTM_F_FIB_MATCH,
    RTM_F_LOOKUP_TABLE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG,
    Within,
    encode_route,
    read_route,
)

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD = 0x02

NDA_DST, NDA_LLADDR, NDA_VLAN, NDA_PORT, NDA_VNI, NDA_IFINDEX, NDA_MASTER = 1, 2, 5, 6, 7, 8, 9
NTF_SELF, NTF_MASTER, NTF_PROXY = 0x02, 0x04, 0x08

IFADDRMSG = Struct("=BBBBI")  # family, prefix length, flags, scope, ifindex
NDMSG = Struct("=BxxxiHBB")  # family, ifindex, state, flags, type
U16 = Struct("=H")


class Names(dict[int, str]):
    """Device names by ifindex. One that is not known is called as iproute2 calls it; 0 is no device."""

    def __missing__(self, index: int) -> str:
        return f"if{index}" if index else ""


# ---- a change to bytes ------------------------------------------------------------------------------------------


def encode(change: Change, index: Mapping[str, int]) -> bytes:
    """The message that puts or deletes one row. `index` knows the row's device. Raises KeyError when it does not.

    Putting is CREATE|REPLACE. A delete names every property of the row that the kernel lets it name, so that a sibling is not hit
    instead; what an IPv4 delete cannot name is metric 0, no gateway and no src, which match anything (fib_nh_match, fib_table_delete).
    """
    row, new = change.row, change.op == "replace"
    if isinstance(row, Route):
        return encode_route(row, index[row.device] if row.device else 0, new)
    if isinstance(row, Neighbour):
        return encode_neighbour(row, index[row.device], new)
    if isinstance(row, FdbEntry):
        return encode_fdb(row, index[row.device], new)
    return encode_address(row, index[row.device], new)


def encode_address(row: InterfaceAddress, index: int, new: bool) -> bytes:
    address, length = row.address.address, row.address.length
    body = IFADDRMSG.pack(AF_INET if len(address) == 4 else AF_INET6, length, 0, row.scope, index)
    parts = [attribute(IFA_LOCAL, address), attribute(IFA_ADDRESS, address)]
    if row.nodad and new:
        parts.append(u32(IFA_FLAGS, IFA_F_NODAD))
    return message(RTM_NEWADDR if new else RTM_DELADDR, flags_of(new), body, *parts)


def encode_neighbour(row: Neighbour, index: int, new: bool) -> bytes:
    body = NDMSG.pack(AF_INET if len(row.address) == 4 else AF_INET6, index, row.state, 0, 0)
    if row.mac is None or not new:
        return message(RTM_NEWNEIGH if new else RTM_DELNEIGH, flags_of(new), body, attribute(NDA_DST, row.address))
    return message(RTM_NEWNEIGH, flags_of(new), body, attribute(NDA_DST, row.address), attribute(NDA_LLADDR, row.mac))


def encode_fdb(row: FdbEntry, index: int, new: bool) -> bytes:
    body = NDMSG.pack(AF_BRIDGE, index, NUD_PERMANENT if row.permanent else NUD_REACHABLE, NTF_MASTER if row.master else NTF_SELF, 0)
    parts = [attribute(NDA_LLADDR, row.mac)]
    if row.dst is not None:
        parts.append(attribute(NDA_DST, row.dst))
    if row.vlan is not None:
        parts.append(attribute(NDA_VLAN, U16.pack(row.vlan)))
    if row.port is not None:
        parts.append(attribute(NDA_PORT, row.port.to_bytes(2, "big")))
    if row.vni is not None:
        parts.append(u32(NDA_VNI, row.vni))
    if row.via is not None:
        parts.append(u32(NDA_IFINDEX, row.via))
    return message(RTM_NEWNEIGH if new else RTM_DELNEIGH, flags_of(new), body, *parts)


# ---- questions --------------------------------------------------------------------------------------------------


def dump_addresses(family: int, index: int) -> bytes:
    """All addresses of a family (4, 6, or 0 for both), of one device if `index` is not 0."""
    return message(RTM_GETADDR, 0, IFADDRMSG.pack(FAMILIES.get(family, AF_UNSPEC), 0, 0, 0, index))


def dump_routes(family: int, table: int, index: int, protocol: int) -> bytes:
    """All routes of a family (4 or 6), narrowed by what is not 0."""
    body = RTMSG.pack(FAMILIES[family], 0, 0, 0, table if table < 256 else 0, protocol, 0, 0, 0)
    parts = [u32(RTA_TABLE, table)] if table >= 256 else []
    if index:
        parts.append(u32(RTA_OIF, index))
    return message(RTM_GETROUTE, 0, body, *parts)


def dump_neighbours(family: int, index: int) -> bytes:
    return message(RTM_GETNEIGH, 0, NDMSG.pack(FAMILIES[family], 0, 0, 0, 0), u32(NDA_IFINDEX, index))


def dump_fdb(index: int, bridge: bool) -> bytes:
    """The fdb of one device, or with `bridge` of a bridge and all its ports."""
    if bridge:
        return message(RTM_GETNEIGH, 0, NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0), u32(NDA_MASTER, index))
    return message(RTM_GETNEIGH, 0, NDMSG.pack(AF_BRIDGE, index, 0, 0, 0))


def get_route(
    dst: bytes,
    *,
    src: bytes | None = None,
    iif: int = 0,
    oif: int = 0,
    mark: int = 0,
    proto: int | None = None,
    sport: int | None = None,
    dport: int | None = None,
) -> bytes:
    """Ask which row decides about a packet (RTM_F_FIB_MATCH: the row itself, not the cached result)."""
    bits = len(dst) * 8
    family = AF_INET if len(dst) == 4 else AF_INET6
    # IPv4 names the table of the row only when asked to; IPv6 always does, and refuses the flag.
    flags = RTM_F_FIB_MATCH | RTM_F_LOOKUP_TABLE if family == AF_INET else RTM_F_FIB_MATCH
    body = RTMSG.pack(family, bits, bits if src is not None else 0, 0, 0, 0, 0, 0, flags)
    parts = [attribute(RTA_DST, dst)]
    if src is not None:
        parts.append(attribute(RTA_SRC, src))
    if iif:
        parts.append(u32(RTA_IIF, iif))
    if oif:
        parts.append(u32(RTA_OIF, oif))
    if mark:
        parts.append(u32(RTA_MARK, mark))
    if proto is not None:
        parts.append(attribute(RTA_IP_PROTO, bytes([proto])))
    if sport is not None:
        parts.append(attribute(RTA_SPORT, sport.to_bytes(2, "big")))
    if dport is not None:
        parts.append(attribute(RTA_DPORT, dport.to_bytes(2, "big")))
    return message(RTM_GETROUTE, 0, body, *parts)


def get_neighbour(address: bytes, index: int) -> bytes:
    return message(RTM_GETNEIGH, 0, NDMSG.pack(AF_INET if len(address) == 4 else AF_INET6, index, 0, 0, 0), attribute(NDA_DST, address))


def get_fdb(mac: bytes, index: int, *, master: bool, bridge: bool, vlan: int | None) -> bytes:
    """Ask for one fdb row: of the device itself, of the bridge that it is a port of (`master`), or of it as a bridge (`bridge`)."""
    parts = [attribute(NDA_LLADDR, mac)]
    if vlan is not None:
        parts.append(attribute(NDA_VLAN, U16.pack(vlan)))
    if bridge:
        parts.append(u32(NDA_MASTER, index))
    return message(RTM_GETNEIGH, 0, NDMSG.pack(AF_BRIDGE, 0 if bridge else index, 0, NTF_MASTER if master or bridge else NTF_SELF, 0), *parts)


# ---- messages to rows -------------------------------------------------------------------------------------------


def decode(data: bytes, names: Mapping[int, str], inside: Prefix | None = None, *, exact: bool = False) -> list[Row]:
    """The rows of all messages of a datagram that carry any. Routes outside `inside` are left out, with `exact` all but those to itself.

    Left out too is what is no row of these tables: cached routes, proxy entries, other address families.
    """
    rows: list[Row] = []
    within: Within | None = None
    if inside is not None:
        within = FAMILIES[inside.family], inside.length, inside.bits - inside.length, inside.number, inside.length if exact else inside.bits
    try:
        for kind, _, _, _, start, end in messages(data):
            reader = READERS.get(kind)
            if reader is not None:
                rows += reader(data, start, end, names, within)
    except struct.error as error:
        raise ValueError(f"netlink message: {error}") from None
    return rows


def read_address(data: bytes, start: int, end: int, names: Mapping[int, str], within: Within | None) -> list[Row]:
    family, length, _, scope, index = fixed(IFADDRMSG, data, start, end)
    size = SIZES.get(family)
    if size is None:
        return []
    found = attributes(data, start + 8, end)
    # With a peer IFA_ADDRESS is the peer's; IFA_LOCAL, which IPv6 leaves out otherwise, is our own.
    address = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")
    check_address(address, length, size)
    return [InterfaceAddress(names[index], Prefix(address, length), scope)]


def address_flags(data: bytes) -> list[tuple[bytes, int]]:
    """Each address in a datagram of a dump of addresses, with the IFA_F_ bits that say how long it will be there."""
    found = []
    for kind, _, _, _, start, end in messages(data):
        if kind == RTM_NEWADDR:
            parts = attributes(data, start + 8, end)
            _, _, flags, _, _ = fixed(IFADDRMSG, data, start, end)
            found.append((parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS, b""), flags))
    return found


def read_neighbour(data: bytes, start: int, end: int, names: Mapping[int, str], within: Within | None) -> list[Row]:
    family, index, state, flags, _ = fixed(NDMSG, data, start, end)
    if flags & NTF_PROXY:
        return []
    found = attributes(data, start + 12, end)
    if family == AF_BRIDGE:
        return [read_fdb(index, state, flags, found, names)]
    size = SIZES.get(family)
    if size is None:
        return []
    address = found.get(NDA_DST, b"")
    check_address(address, 0, size)
    return [Neighbour(address, names[index], found.get(NDA_LLADDR), state)]


def read_fdb(index: int, state: int, flags: int, found: dict[int, bytes], names: Mapping[int, str]) -> FdbEntry:
    mac = found.get(NDA_LLADDR, b"")
    if len(mac) != 6:
        raise ValueError(f"netlink: an fdb entry with a MAC of {len(mac)} bytes")
    dst = found.get(NDA_DST)
    if dst is not None and len(dst) not in (4, 16):
        raise ValueError(f"netlink: an fdb entry with a destination of {len(dst)} bytes")
    port, vni, via, vlan = found.get(NDA_PORT), found.get(NDA_VNI), found.get(NDA_IFINDEX), found.get(NDA_VLAN)
    return FdbEntry(
        mac,
        names[index],
        dst,
        None if port is None else int.from_bytes(port, "big"),
        None if vni is None else read_u32(vni),
        None if via is None else read_u32(via),
        None if vlan is None else U16.unpack(vlan)[0],
        NDA_MASTER in found or bool(flags & NTF_MASTER),  # the kernel tells the one, and is told the other
        bool(state & NUD_PERMANENT),
    )


READERS = {
    RTM_NEWADDR: read_address,
    RTM_DELADDR: read_address,
    RTM_NEWROUTE: read_route,
    RTM_DELROUTE: read_route,
    RTM_NEWNEIGH: read_neighbour,
    RTM_DELNEIGH: read_neighbour,
}
