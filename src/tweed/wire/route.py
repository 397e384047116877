"""Routes over rtnetlink (linux/rtnetlink.h): one `model.Route` to bytes, one message to rows."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from tweed.addr import Prefix
from tweed.model import Route, Row
from tweed.wire.netlink import AF_INET, AF_INET6, ATTRIBUTE, SIZES, attribute, attributes, check_address, fixed, flags_of, message, read_u32, u32

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTA_UNSPEC, RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 0, 1, 2, 3, 4, 5, 6, 7
RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_MARK, RTA_VIA, RTA_PREF, RTA_PAD = 9, 12, 15, 16, 18, 20, 24
RTA_IP_PROTO, RTA_SPORT, RTA_DPORT, RTA_NH_ID = 27, 28, 29, 30
RTNH_F_ONLINK = 4
RTM_F_CLONED, RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x200, 0x1000, 0x2000

RTMSG = Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags
RTNEXTHOP = Struct("=HBBi")  # length, flags, weight - 1, ifindex
U16 = Struct("=H")

PREF_MEDIUM = b"\0"
DST_HEADERS = {size: ATTRIBUTE.pack(size + 4, RTA_DST) for size in SIZES.values()}

# A prefix as the decoder compares it: family, length, how far to shift an address, and what is left then; and how long a route may be.
Within = tuple[int, int, int, int, int]


def encode_route(row: Route, index: int, new: bool) -> bytes:
    dst = row.dst.address
    source_length, tos, other, whole = split_other(row.other) if row.other else (0, 0, b"", False)
    body = RTMSG.pack(
        AF_INET if len(dst) == 4 else AF_INET6,
        row.dst.length,
        source_length,
        tos,
        row.table if row.table < 256 else 0,
        row.protocol,
        row.scope,
        row.type,
        RTNH_F_ONLINK if row.onlink and not whole else 0,
    )
    parts = [attribute(RTA_DST, dst)]
    if row.gateway is not None and not whole:
        if len(row.gateway) == len(dst):
            parts.append(attribute(RTA_GATEWAY, row.gateway))
        else:
            parts.append(attribute(RTA_VIA, U16.pack(AF_INET6 if len(row.gateway) == 16 else AF_INET) + row.gateway))
    if index and not whole:
        parts.append(u32(RTA_OIF, index))
    if row.metric:
        parts.append(u32(RTA_PRIORITY, row.metric))
    if row.src is not None:
        parts.append(attribute(RTA_PREFSRC, row.src))
    if row.table >= 256:
        parts.append(u32(RTA_TABLE, row.table))
    if other:
        parts.append(other)
    return message(RTM_NEWROUTE if new else RTM_DELROUTE, flags_of(new), body, *parts)


def split_other(other: bytes) -> tuple[int, int, bytes, bool]:
    """`Route.other` taken apart: source length and tos of the fixed part, the attributes, and whether these already name the next hops."""
    found = attributes(other, 0, len(other))
    fixed = found.pop(RTA_UNSPEC, b"\0\0")
    rest = b"".join(attribute(kind, payload) for kind, payload in found.items())
    return fixed[0], fixed[1], rest, RTA_MULTIPATH in found or RTA_NH_ID in found


def read_route(data: bytes, start: int, end: int, names: Mapping[int, str], within: Within | None) -> list[Row]:
    family, length, source_length, tos, table, protocol, scope, kind, flags = fixed(RTMSG, data, start, end)
    size = SIZES.get(family)
    if size is None or flags & RTM_F_CLONED:
        return []
    if within is not None:
        if family != within[0] or not within[1] <= length <= within[4]:
            return []
        # The kernel writes RTA_TABLE and RTA_DST first, so most of the others are turned away before anything else is read.
        at = start + 24
        if at + size <= end and data[start + 20 : at] == DST_HEADERS[size] and int.from_bytes(data[at : at + size], "big") >> within[2] != within[3]:
            return []
    found = attributes(data, start + 12, end)
    take = found.pop
    address = take(RTA_DST, None) or bytes(size)
    check_address(address, length, size)
    if within is not None and int.from_bytes(address, "big") >> within[2] != within[3]:
        return []
    gateway = take(RTA_GATEWAY, None)
    if gateway == address:
        gateway = address  # one object for both: flannel's gateway is the subnet's base
    if (via := take(RTA_VIA, None)) is not None:
        gateway = via[2:]
    device = take(RTA_OIF, None)
    metric = take(RTA_PRIORITY, None)
    source = take(RTA_PREFSRC, None)
    if (gateway is not None and len(gateway) not in (4, 16)) or (source is not None and len(source) not in (4, 16)):
        raise ValueError("netlink: a route with a gateway or source that is no address")
    if (wide := take(RTA_TABLE, None)) is not None:
        table = read_u32(wide)
    if found:
        take(RTA_CACHEINFO, None)
        take(RTA_PAD, None)
        if family == AF_INET6 and found.get(RTA_PREF) == PREF_MEDIUM:
            take(RTA_PREF)
    index = 0 if device is None else read_u32(device)
    hops = [(gateway, index, flags)]
    if (multipath := take(RTA_MULTIPATH, None)) is not None:
        hops = read_hops(multipath)
        if family == AF_INET:
            # An IPv4 multipath route is one object that goes as a whole; IPv6 hops are rows of their own in all but the dump.
            found[RTA_MULTIPATH] = b"".join(encode_hop(*hop) for hop in hops)
    if source_length or tos:
        found[RTA_UNSPEC] = bytes([source_length, tos])
    other = b"".join(attribute(*item) for item in found.items()) if found else b""
    dst = Prefix(address, length)
    return [
        Route(
            dst,
            names[hop_index],
            hop_gateway,
            0 if metric is None else read_u32(metric),
            protocol,
            bool(hop_flags & RTNH_F_ONLINK),
            scope,
            source,
            table,
            kind,
            other,
        )
        for hop_gateway, hop_index, hop_flags in hops
    ]


def read_hops(multipath: bytes) -> list[tuple[bytes | None, int, int]]:
    """Gateway, ifindex and flags of each next hop (struct rtnexthop, then attributes)."""
    hops: list[tuple[bytes | None, int, int]] = []
    at, end = 0, len(multipath)
    while at < end:
        size, flags, _, index = fixed(RTNEXTHOP, multipath, at, end)
        if size < 8 or at + size > end:
            raise ValueError(f"netlink: a next hop of {size} bytes where {end - at} are left")
        found = attributes(multipath, at + 8, at + size)
        via = found.get(RTA_VIA)
        gateway = found.get(RTA_GATEWAY) if via is None else via[2:]
        if gateway is not None and len(gateway) not in (4, 16):
            raise ValueError("netlink: a next hop with a gateway that is no address")
        hops.append((gateway, index, flags))
        at += (size + 3) & ~3
    return hops


def encode_hop(gateway: bytes | None, index: int, flags: int) -> bytes:
    """A next hop without what varies by itself (dead, linkdown) and without its weight, which a delete does not compare."""
    parts = b""
    if gateway is not None:
        parts = attribute(RTA_GATEWAY, gateway) if len(gateway) == 4 else attribute(RTA_VIA, U16.pack(AF_INET6) + gateway)
    return RTNEXTHOP.pack(8 + len(parts), flags & RTNH_F_ONLINK, 0, index) + parts
