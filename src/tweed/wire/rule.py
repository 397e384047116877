"""Routing rules over rtnetlink (linux/fib_rules.h): `ip rule`, and which tables packets from an address are looked up in."""

from __future__ import annotations

from struct import Struct

from tweed.wire.netlink import FAMILIES, SIZES, attributes, fixed, message, messages, read_u32

RTM_NEWRULE, RTM_GETRULE = 32, 34
RULE = Struct("=BBBBBxxBI")  # family, dst length, src length, tos, table, action, flags
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_FWMARK, FRA_FLOW, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE = 1, 2, 3, 4, 6, 10, 11, 14, 15
FRA_FWMASK, FRA_OIFNAME, FRA_PAD, FRA_L3MDEV, FRA_UID_RANGE, FRA_PROTOCOL, FRA_IP_PROTO, FRA_SPORT_RANGE, FRA_DPORT_RANGE = 16, 17, 18, 19, 20, 21, 22, 23, 24
FR_ACT_TO_TBL, FIB_RULE_INVERT, NO_SUPPRESS = 1, 2, 0xFFFFFFFF
# What does not narrow down which packets a rule is for. All else does, also what later kernels may bring.
NO_SELECTORS = frozenset({FRA_SRC, FRA_PRIORITY, FRA_FLOW, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_PAD, FRA_PROTOCOL})


def dump_rules(family: int) -> bytes:
    """All rules of a family 4 or 6."""
    return message(RTM_GETRULE, 0, RULE.pack(FAMILIES[family], 0, 0, 0, 0, 0, 0))


def tables_for(data: bytes, src: bytes) -> list[int]:
    """The tables that the rules of a datagram lead all packets from an address to, in order. Rules that ask for more than the source are passed over."""
    tables = []
    for kind, _, _, _, start, end in messages(data):
        if kind != RTM_NEWRULE:
            continue
        family, _, length, tos, table, action, flags = fixed(RULE, data, start, end)
        found = attributes(data, start + RULE.size, end)
        partial = read_u32(found.get(FRA_SUPPRESS_PREFIXLEN, b"\xff" * 4)) != NO_SUPPRESS
        if SIZES.get(family) != len(src) or action != FR_ACT_TO_TBL or flags & FIB_RULE_INVERT or tos or partial or not found.keys() <= NO_SELECTORS:
            continue
        shift = len(src) * 8 - length
        if (int.from_bytes(src, "big") ^ int.from_bytes(found.get(FRA_SRC, src), "big")) >> max(shift, 0) == 0:
            tables.append(read_u32(found[FRA_TABLE]) if FRA_TABLE in found else table)
    return tables
