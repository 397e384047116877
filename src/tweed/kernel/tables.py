"""The four tables of the kernel: dump them, ask for single rows, apply changes.

The kernel filters dumps by device, table and protocol where it can. A dump is no snapshot: rows that change meanwhile may be missed
or doubled, so `present` confirms a surplus row before anybody deletes it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping

from tweed.addr import Prefix, format_address, format_mac
from tweed.errors import KernelError
from tweed.kernel import links
from tweed.kernel.netlink import BATCH, Netlink
from tweed.model import NUD_NOARP, TABLE_MAIN, Changes, Failure, FdbEntry, InterfaceAddress, Neighbour, Route, Row
from tweed.wire import rtnl as wire
from tweed.wire.rule import dump_rules, tables_for

# What a delete of something that is gone already answers: fdb and neighbour, route, address.
GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})


class Names(wire.Names):
    """Device names by ifindex, asked of the kernel once each. Short-lived: a device can be renamed."""

    def __init__(self, nl: Netlink, known: Mapping[int, str] | None = None) -> None:
        super().__init__(known or {})
        self.nl = nl

    def __missing__(self, index: int) -> str:
        self[index] = name = (self.nl.device_name(index) if index else None) or super().__missing__(index)
        return name


def addresses(nl: Netlink, device: str | None = None, family: int | None = None) -> list[InterfaceAddress]:
    """The addresses of a device (or of all), of a family 4 or 6 (or both). A device that does not exist has none."""
    index, names = look_up(nl, device)
    if index is None:
        return []
    datagrams = nl.dump(wire.dump_addresses(family or 0, index), "ip addr show")
    rows = (row for data in datagrams for row in wire.decode(data, names))
    return [row for row in rows if isinstance(row, InterfaceAddress) and device in (None, row.device)]


def address_flags(nl: Netlink) -> dict[bytes, int]:
    """The IFA_F_ bits of every address of the host."""
    return {address: flags for data in nl.dump(wire.dump_addresses(0, 0), "ip addr show") for address, flags in wire.address_flags(data)}


def routes(
    nl: Netlink,
    family: int,
    *,
    table: int | None = TABLE_MAIN,
    device: str | None = None,
    protocol: int | None = None,
    inside: Prefix | None = None,
    exact: bool = False,
) -> list[Route]:
    """The routes of a family (4 or 6) in a table (None: all tables), narrowed by device, protocol, and to destinations within `inside`.

    With `exact` only to `inside` itself: of a full table the default routes cost a tenth of the whole.

    A multipath route is one row per next hop; cached routes are left out. A table or device that does not exist has none.
    """
    index, names = look_up(nl, device)
    if index is None:
        return []
    try:
        datagrams = nl.dump(wire.dump_routes(family, table or 0, index, protocol or 0), f"ip -{family} route show")
    except KernelError as error:
        if error.errno == errno.ENOENT:  # FIB table does not exist
            return []
        raise
    found: list[Route] = []
    for data in datagrams:
        found += wire.decode(data, names, inside, exact=exact)  # type: ignore[arg-type]  # a route dump holds routes
    # The kernel compares the device of any next hop, and older ones ignore filters.
    if device is not None:
        found = [row for row in found if row.device == device]
    if table is not None:
        found = [row for row in found if row.table == table]
    if protocol is not None:
        found = [row for row in found if row.protocol == protocol]
    return found


def tables_of(nl: Netlink, src: bytes) -> list[int]:
    """The tables that the namespace's own packets from an address are looked up in, by the order of its rules (`ip rule`).

    Rules that ask for more (a mark, a port, the other end) are passed over.
    """
    family = 4 if len(src) == 4 else 6
    try:
        datagrams = nl.dump(dump_rules(family), f"ip -{family} rule")
    except KernelError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):  # a kernel without rules has one table
            return [TABLE_MAIN]
        raise
    return [table for data in datagrams for table in tables_for(data, src)]


def neighbours(nl: Netlink, device: str, family: int) -> list[Neighbour]:
    """The neighbours of a device, of a family 4 or 6: what `ip neigh` shows, so neither NOARP rows nor proxies."""
    index, names = look_up(nl, device)
    if index is None:
        return []
    datagrams = nl.dump(wire.dump_neighbours(family, index), f"ip -{family} neigh show dev {device}")
    found: list[Neighbour] = []
    for data in datagrams:
        found += wire.decode(data, names)  # type: ignore[arg-type]  # a neighbour dump holds neighbours
    return [row for row in found if row.state & ~NUD_NOARP and row.device == device]


def fdb(nl: Netlink, device: str) -> list[FdbEntry]:
    """The fdb of a device as `bridge fdb show dev` has it, of a bridge as `bridge fdb show br`: its own rows and those of its ports."""
    link = links.link(nl, device)
    if link is None:
        return []
    names, bridge = Names(nl, {link.index: link.name}), link.kind == "bridge"
    datagrams = nl.dump(wire.dump_fdb(link.index, bridge), f"bridge fdb show {'br' if bridge else 'dev'} {device}")
    found: list[FdbEntry] = []
    for data in datagrams:
        found += wire.decode(data, names)  # type: ignore[arg-type]  # an fdb dump holds fdb entries
    return found if bridge else [row for row in found if row.device == device]


def look_up(nl: Netlink, device: str | None) -> tuple[int | None, Names]:
    """The ifindex to filter by (0 for any device, None for one that does not exist) and the names to decode with."""
    if device is None:
        return 0, Names(nl)
    link = links.link(nl, device)
    return (None, Names(nl)) if link is None else (link.index, Names(nl, {link.index: link.name}))


def apply(nl: Netlink, changes: Changes) -> tuple[Failure, ...]:
    """Carry out all changes in order. Returns those that failed; deleting what is gone already is no failure.

    A refusal does not stop the changes behind it. Every change of a device that does not exist fails with ENODEV.
    """
    index = indices(nl, {change.row.device for change in changes})
    failures: list[Failure] = []
    for first in range(0, len(changes), BATCH):  # the bytes of ten thousand leases at once are three megabytes
        failures += apply_batch(nl, changes[first : first + BATCH], index)
    return tuple(failures)


def apply_batch(nl: Netlink, changes: Changes, index: Mapping[str, int]) -> list[Failure]:
    sent: list[int] = []
    messages: list[bytes] = []
    refused: dict[int, tuple[int, str]] = {}
    for position, change in enumerate(changes):
        if change.row.device and change.row.device not in index:
            refused[position] = errno.ENODEV, os.strerror(errno.ENODEV)
            continue
        sent.append(position)
        messages.append(wire.encode(change, index))
    refused |= {sent[number]: answer for number, answer in nl.send(messages).items()}
    return [Failure(changes[at], *answer) for at, answer in sorted(refused.items()) if changes[at].op == "replace" or answer[0] not in GONE]


def indices(nl: Netlink, devices: Iterable[str]) -> dict[str, int]:
    """ifindex by name, without those that do not exist."""
    found = (links.link(nl, device) for device in devices if device)
    return {link.name: link.index for link in found if link is not None}


def present(nl: Netlink, row: Row) -> bool:
    """Whether exactly this row is in the kernel now.

    Linux can be asked for one neighbour, but not for one address or one route (RTM_GETROUTE answers which route wins, not whether a
    given one exists), and of the several fdb rows that a group or the zero MAC can have it tells the first. So: a single get where it
    can say yes, else a dump narrowed as far as the kernel can.
    """
    if isinstance(row, Neighbour):
        return lookup_neighbour(nl, row.address, row.device) == row
    if isinstance(row, FdbEntry):
        first = lookup_fdb(nl, row.mac, row.device, vlan=row.vlan, master=row.master)
        return first is not None and (first == row or row in fdb(nl, row.device))
    if isinstance(row, InterfaceAddress):
        return any(each.address == row.address and each.scope == row.scope for each in addresses(nl, row.device, row.address.family))
    try:
        if lookup_route(nl, row.dst.address) == row:
            return True
    except KernelError:
        pass  # no route wins: it may be there, in another table or behind a rule
    return row in routes(nl, row.dst.family, table=row.table, device=row.device or None, protocol=row.protocol, inside=row.dst, exact=True)


def lookup_route(
    nl: Netlink,
    dst: bytes,
    *,
    src: bytes | None = None,
    iif: str | None = None,
    oif: str | None = None,
    mark: int = 0,
    proto: int | None = None,
    sport: int | None = None,
    dport: int | None = None,
) -> Route:
    """The very row that decides about a packet to `dst`. `iif`: the device it came in by, for one to be forwarded; `oif`: what its socket is bound to.

    Of a multipath route the first next hop. Raises KernelError in the kernel's words when no row lets the packet pass. Rows of the
    local table come with `table` main while there are no routing rules of one's own: the kernel then keeps both in one (fib_trie).
    """
    words = {"from": format_address(src) if src else None, "iif": iif, "oif": oif}
    operation = " ".join(["ip route get fibmatch", format_address(dst), *(f"{name} {value}" for name, value in words.items() if value)])
    index, out = (links.index_of(nl, name, operation) if name else 0 for name in (iif, oif))
    question = wire.get_route(dst, src=src, iif=index, oif=out, mark=mark, proto=proto, sport=sport, dport=dport)
    row = first_row(nl, question, operation)
    assert isinstance(row, Route), row
    return row


def lookup_neighbour(nl: Netlink, address: bytes, device: str) -> Neighbour | None:
    """The neighbour row of one address, None when there is none."""
    link = links.link(nl, device)
    if link is None:
        return None
    row = first_row_or_none(nl, wire.get_neighbour(address, link.index), f"ip neigh get {format_address(address)} dev {device}")
    return row if isinstance(row, Neighbour) else None


def lookup_fdb(nl: Netlink, mac: bytes, device: str, *, vlan: int | None = None, master: bool = False) -> FdbEntry | None:
    """The fdb row of one MAC: in the device's own table, or with `master` in the bridge that it is (a port of). None when there is none.

    Of the several rows that a VXLAN device can have for a group or the zero MAC it is the first.
    """
    link = links.link(nl, device)
    if link is None:
        return None
    message = wire.get_fdb(mac, link.index, master=master, bridge=master and link.kind == "bridge", vlan=vlan)
    row = first_row_or_none(nl, message, f"bridge fdb get {format_mac(mac)} dev {device} {'master' if master else 'self'}")
    return row if isinstance(row, FdbEntry) else None


def first_row(nl: Netlink, question: bytes, operation: str) -> Row:
    answers = nl.request(question, operation)
    names = Names(nl)
    for answer in answers:
        for row in wire.decode(answer, names):
            return row
    raise KernelError(operation, errno.ENOENT, os.strerror(errno.ENOENT))


def first_row_or_none(nl: Netlink, question: bytes, operation: str) -> Row | None:
    try:
        return first_row(nl, question, operation)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
