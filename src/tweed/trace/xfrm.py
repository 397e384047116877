"""IPsec policies (`ip xfrm policy`): the kernel's answer to a dump as rows, and which of them decides about a packet. Pure.

    policies(datagrams, names) -> [PolicyRow, ...]
    stopped(rows, "out", facts) -> (row, certain)      the policy that blocks the packet, or that may do something else with it

States (keys) are not read, so what a policy that transforms does with a packet is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any

from tweed.addr import Prefix
from tweed.trace import snapshot as s
from tweed.trace.firewall import Facts
from tweed.trace.rtnetlink import Names, each, readable
from tweed.wire.netlink import AF_INET, SIZES, attributes, fixed, message, read_u32

# linux/xfrm.h
XFRM_MSG_NEWPOLICY, XFRM_MSG_GETPOLICY = 0x13, 0x15
ADDRESSES = 32  # daddr, saddr
PORTS = Struct("!HHHH")  # dport and mask, sport and mask; then in host byte order:
SELECTOR_REST = Struct("=HBBB3xiI")  # family, prefix lengths of dst and src, protocol, ifindex, user
LIFETIMES = 8 * (8 + 4)
POLICY = Struct("=IIBBBB4x")  # priority, index, direction, action, flags, share
POLICY_ID_REST = 8
SELECTOR = ADDRESSES + PORTS.size + SELECTOR_REST.size
POLICY_SIZE = SELECTOR + LIFETIMES + POLICY.size
XFRMA_TMPL, XFRMA_POLICY_TYPE, XFRMA_MARK, XFRMA_IF_ID = 5, 16, 21, 31
TEMPLATE_SIZE, TEMPLATE_OPTIONAL = 64, 50  # struct xfrm_user_tmpl: of id (24), family (2 + 2), saddr (16), reqid (4), mode, share, optional
MARK = Struct("=II")
DIRECTIONS = ("in", "out", "fwd")
ACTIONS = ("allow", "block")
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp"}


def dump_policies() -> bytes:
    return message(XFRM_MSG_GETPOLICY, 0, bytes(SELECTOR + POLICY_ID_REST))


@readable
def policies(datagrams: Iterable[bytes], names: Names) -> list[s.PolicyRow]:
    """In the order of the dump. A socket's own policies are not among them."""
    rows: list[s.PolicyRow] = []
    for _, data, start, end in each(datagrams, (XFRM_MSG_NEWPOLICY,)):
        dport, dport_mask, sport, sport_mask = fixed(PORTS, data, start + ADDRESSES, end)
        family, dst_length, src_length, proto, index, _ = fixed(SELECTOR_REST, data, start + ADDRESSES + PORTS.size, end)
        priority, _, direction, action, _, _ = fixed(POLICY, data, start + POLICY_SIZE - POLICY.size, end)
        more = attributes(data, start + POLICY_SIZE, end)
        if direction >= len(DIRECTIONS) or action >= len(ACTIONS) or more.get(XFRMA_POLICY_TYPE, b"\0")[0]:
            continue
        size = SIZES.get(family or AF_INET, 4)
        templates = more.get(XFRMA_TMPL, b"")
        required = sum(not templates[at + TEMPLATE_OPTIONAL] for at in range(0, len(templates) // TEMPLATE_SIZE * TEMPLATE_SIZE, TEMPLATE_SIZE))
        told: dict[str, Any] = {
            "family": 4 if size == 4 else 6,
            "direction": DIRECTIONS[direction],
            "action": ACTIONS[action],
            "priority": priority,
            "src": Prefix(data[start + 16 : start + 16 + size], src_length),
            "dst": Prefix(data[start : start + size], dst_length),
            "proto": proto,
            "sport": (sport, sport_mask),
            "dport": (dport, dport_mask),
            "device": names.get(index, f"if{index}") if index else None,
            "mark": MARK.unpack(more[XFRMA_MARK]) if XFRMA_MARK in more else (0, 0),
            "if_id": read_u32(more[XFRMA_IF_ID]) if XFRMA_IF_ID in more else 0,
            "templates": required,
            "transforms": bool(templates),
        }
        row = s.PolicyRow(source=f"ip xfrm policy:{len(rows) + 1}", text="", **told)
        words = f"{selector(row)} action {row.action} priority {row.priority}{' tmpl ...' if row.transforms else ''}"
        rows.append(s.PolicyRow(source=row.source, text=words, **told))
    return rows


def selector(row: s.PolicyRow) -> str:
    """What names a policy to `ip xfrm policy`: two with the same words there are not."""
    words = [f"src {row.src} dst {row.dst}"]
    if row.proto:
        words.append(f"proto {PROTOCOLS.get(row.proto, row.proto)}")
    words += [f"{name} {port}" for name, (port, mask) in (("sport", row.sport), ("dport", row.dport)) if mask]
    words += [f"dev {row.device}"] if row.device is not None else []
    words.append(f"dir {row.direction}")
    words += [f"mark {row.mark[0]:#x} mask {row.mark[1]:#x}"] if any(row.mark) else []
    words += [f"if_id {row.if_id:#x}"] if row.if_id else []
    return " ".join(words)


def removal(row: s.PolicyRow) -> str:
    return f"ip xfrm policy delete {selector(row)}"


def stopped(rows: Sequence[s.PolicyRow], direction: str, facts: Facts) -> tuple[s.PolicyRow, bool] | None:
    """The policy that decides, where it does not simply let the packet pass, and whether it is certain that it stops it.

    The smallest priority number decides, of equals the one that was added first, which a dump has last (xfrm_policy_lookup_bytype).
    """
    family = 4 if len(facts.dst) == 4 else 6
    found: s.PolicyRow | None = None
    certain = True
    asked = [row for row in reversed(rows) if row.direction == direction and row.family == family]
    for row in sorted(asked, key=lambda row: row.priority):
        fits = selects(row, facts)
        if fits is True:
            found = row
            break
        certain = certain and fits is False
    if found is None or (found.action == "allow" and not found.transforms):
        return None
    # What comes in as it is has not been through IPsec, which a policy that demands it does not forgive.
    stops = found.action == "block" or (direction != "out" and found.templates > 0)
    return (found, certain and stops) if stops or found.transforms else None


def selects(row: s.PolicyRow, facts: Facts) -> bool | None:
    """xfrm_selector_match. A packet here has no mark and is of no interface with an if_id. None: it asks what is not known."""
    if row.mark[0] or row.if_id or not row.dst.contains(facts.dst) or (row.proto and row.proto != facts.proto):
        return False
    asked = [row.src.contains(facts.src) if facts.src else None if row.src.length else True]
    asked += [None if port is None else not (port ^ wanted) & mask for port, (wanted, mask) in ((facts.sport, row.sport), (facts.dport, row.dport)) if mask]
    asked += [None] if row.device is not None else []
    return False if False in asked else None if None in asked else True
