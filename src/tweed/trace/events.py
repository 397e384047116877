"""What the kernel's tracepoints told about a probe, as values: one event each, from `struct event` of bpf/observe.bpf.c, and as lines of JSON.

RECEIVED, QUEUED      a device got it, or is to send it
DROPPED               the kernel threw it away: reason and function
ICMP_SENT             an error about it is born
ROUTED                a route was looked up for its addresses: table, answer or error
CAPTURED              a packet socket saw it (no tracepoint): `direction` says which way
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any, Literal

import msgspec

Kind = Literal["queued", "received", "dropped", "icmp-sent", "routed", "captured"]
QUEUED: Kind = "queued"
RECEIVED: Kind = "received"
DROPPED: Kind = "dropped"
ICMP_SENT: Kind = "icmp-sent"
ROUTED: Kind = "routed"
CAPTURED: Kind = "captured"
TRACEPOINTS: dict[Kind, str] = {
    "queued": "net_dev_queue",
    "received": "netif_receive_skb",
    "dropped": "kfree_skb",
    "icmp-sent": "icmp_send",
    "routed": "fib_table_lookup",
    "captured": "packet",
}
KINDS: dict[int, Kind] = {1: "queued", 2: "received", 3: "dropped", 4: "icmp-sent", 5: "routed", 6: "routed"}
ROUTED6 = 6

FIXED = Struct("=QQIIIIIiIHH16s64s16s16s16sII")
GATEWAY_SIZES = {2: 4, 10: 16}  # AF_INET, AF_INET6
REASON_PREFIX = "SKB_DROP_REASON_"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`t_ns`: of the machine's monotonic clock. `netns`: the inode, 0 unknown. `skb`: tells packets of one moment apart, no more.

    `data`: the frame's first bytes, `network` of them before its IP header. `length`: of all of it. `burst`: the kernel handles it together with
    others, as one frame of this size, which its outer headers speak of; it is cut later, or was put together. `code`: an ICMP error's type and code, a
    look-up's negative errno. `src`, `dst`, `gateway`, `table`, `iif`: of a look-up.
    """

    t_ns: int
    kind: Kind
    netns: int = 0
    device: str = ""
    ifindex: int = 0
    skb: int = 0
    cpu: int = 0
    length: int = 0
    data: bytes = b""
    network: int = 0
    burst: int = 0
    reason: str = ""
    function: str = ""
    code: int = 0
    table: int = 0
    iif: int = 0
    src: bytes = b""
    dst: bytes = b""
    gateway: bytes = b""
    direction: Literal["", "in", "out", "other"] = ""

    @property
    def frame(self) -> bytes:
        """With an Ethernet header, of zeros where the kernel had none at hand."""
        if self.network >= 14 or not self.data:
            return self.data
        kind = b"\x86\xdd" if self.data[self.network] >> 4 == 6 else b"\x08\x00"
        return bytes(12) + kind + self.data[self.network :]

    @property
    def size(self) -> int:
        """Of the frame, in bytes."""
        return self.length if self.network >= 14 or not self.data else self.length - self.network + 14


def decode(record: bytes, reasons: Mapping[int, str]) -> Event:
    """A record of the ring buffer. `reasons`: the running kernel's enum skb_drop_reason."""
    t_ns, skb, kind, cpu, netns, ifindex, length, code, table, captured, network, device, function, src, dst, gateway, iif, family = FIXED.unpack_from(record)
    told: dict[str, Any] = {"t_ns": t_ns, "kind": KINDS[kind], "netns": netns, "device": text(device), "ifindex": ifindex, "cpu": cpu}
    if KINDS[kind] == "routed":
        size = 16 if kind == ROUTED6 else 4
        told |= {"code": code, "table": table, "iif": iif, "src": src[:size], "dst": dst[:size], "gateway": gateway[: GATEWAY_SIZES.get(family, 0)]}
        return Event(**told)
    told |= {"skb": skb, "length": length, "network": network, "burst": table, "data": record[FIXED.size : FIXED.size + captured]}
    if KINDS[kind] == "dropped":
        told |= {"reason": reasons.get(code, str(code)).removeprefix(REASON_PREFIX), "function": symbol(text(function))}
    elif KINDS[kind] == "icmp-sent":
        told |= {"code": code}
    return Event(**told)


def text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("ascii", "replace")


def symbol(printed: str) -> str:
    """`ip_rcv_core.isra.0+0x1a2/0x3c0 [module]` as `ip_rcv_core+0x1a2`: the name that sources have, and where in it."""
    name, plus, rest = printed.partition("+")
    return name.partition(".")[0] + plus + rest.partition("/")[0]
