"""What changes in the kernel, as it is announced. A hint to look again, never a source of truth: announcements can be lost."""

from __future__ import annotations

import errno
import sys
from typing import Literal

import msgspec

from tweed.kernel.filter import Filter, attach
from tweed.kernel.netlink import RECEIVE, Netlink, open_socket
from tweed.kernel.tables import Names
from tweed.model import Changes, FdbEntry, InterfaceAddress, Link, Neighbour, Netconf, Route, Row
from tweed.wire import link as link_wire
from tweed.wire import netconf, rtnl
from tweed.wire import netlink as wire
from tweed.wire.route import RTM_NEWROUTE

# Bits of the groups that a socket can listen to (linux/rtnetlink.h RTNLGRP_*). fdb changes come with the neighbours'.
LINK, NEIGH = 1 << 0, 1 << 2
IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE = 1 << 4, 1 << 6, 1 << 8, 1 << 10
IPV4_NETCONF, IPV6_NETCONF = 1 << 23, 1 << 24
GROUPS = LINK | NEIGH | IPV4_IFADDR | IPV4_ROUTE | IPV6_IFADDR | IPV6_ROUTE | IPV4_NETCONF | IPV6_NETCONF
# Room for the echoes of our own 10,000 leases: each of their 30,000 announcements counts for 768 bytes of the doubled buffer.
BUFFER = 16 << 20
# Datagrams taken in one drain, so that a storm cannot hold the caller: the rest is there at the next.
DRAIN = 4096

KINDS: dict[type, Literal["address", "route", "neighbour", "fdb"]] = {
    InterfaceAddress: "address",
    Route: "route",
    Neighbour: "neighbour",
    FdbEntry: "fdb",
}
NEW = frozenset({link_wire.RTM_NEWLINK, rtnl.RTM_NEWADDR, RTM_NEWROUTE, rtnl.RTM_NEWNEIGH})


class Notice(msgspec.Struct, frozen=True):
    """One change. `port`: of the socket whose request caused it, 0 when it was the kernel by itself.

    kind "overrun" (no row): more happened than could be kept, look at everything again.
    """

    kind: Literal["link", "address", "route", "neighbour", "fdb", "netconf", "overrun"]
    op: Literal["new", "del"] = "new"
    row: Row | Link | Netconf | None = None
    port: int = 0


class Monitor:
    """A socket that hears of changes. Changes by the ports in `own` are not reported, nor those that `expect` told of.

    What the kernel does on its own account is reported even where it follows from a change of ours: the local route of an address,
    the routes that go with a link that is set down. Of devices nearly every change is announced without a port, so ours come too.
    """

    def __init__(self, netns: int | None = None, groups: int = GROUPS, kind: int | None = None) -> None:
        """`netns`: file descriptor of the namespace to listen in, None for the caller's own. Devices are always listened to, for their names.

        `kind`: the one kind of message to hear (RTM_…), None for all.
        """
        self.own: set[int] = set()
        self._socket = open_socket(netns, groups | LINK, BUFFER)
        if kind is not None:
            attach(self._socket, only(kind))
        self._asker = Netlink(netns)
        self._names = Names(self._asker)
        self._gone: set[int] = set()
        self._expected: set[tuple[str, Row]] = set()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        self._asker.close()

    def expect(self, changes: Changes) -> None:
        """Tell what has just been changed, before the next drain.

        It is needed because the kernel announces fdb entries, IPv6 addresses and the end of neighbours without the port of who did it.
        Echoes are queued before the call that made the change returns, so the next complete drain forgets what it was told; except that
        new IPv6 addresses are announced by a work queue (addrconf_dad_work), at some later time.
        """
        for change in changes:
            row, op = change.row, "new" if change.op == "replace" else "del"
            if not isinstance(row, Route) and (op, type(row)) != ("new", Neighbour):  # these are announced with our port
                self._expected.add(echo_of(op, row))

    def drain(self) -> list[Notice]:
        """What has happened since the last call, in order. Never blocks."""
        for index in self._gone:  # the last words about a device come after the news of its end
            self._names.pop(index, None)
        self._gone.clear()
        notices: list[Notice] = []
        for _ in range(DRAIN):
            try:
                data = self._socket.recv(RECEIVE)
            except BlockingIOError:
                self._expected = {echo for echo in self._expected if isinstance(echo[1], InterfaceAddress) and echo[0] == "new"}
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                notices.append(Notice("overrun"))
                continue
            self._read(data, notices)
        return notices

    def _read(self, data: bytes, notices: list[Notice]) -> None:
        for kind, _, _, port, start, end in wire.messages(data):
            op: Literal["new", "del"] = "new" if kind in NEW else "del"
            message = data[start - 16 : end]
            if kind in (link_wire.RTM_NEWLINK, link_wire.RTM_DELLINK):
                for link in link_wire.decode_links(message):
                    self._names[link.index] = link.name
                    if op == "del":
                        self._gone.add(link.index)
                    else:
                        self._gone.discard(link.index)
                    if port not in self.own:
                        notices.append(Notice("link", op, link, port))
            elif kind == netconf.RTM_NEWNETCONF:
                notices += [Notice("netconf", "new", setting, port) for setting in netconf.decode(message, self._names)]
            elif port not in self.own:
                for row in rtnl.decode(message, self._names):
                    echo = echo_of(op, row)
                    if port or echo not in self._expected:
                        notices.append(Notice(KINDS[type(row)], op, row, port))
                    elif isinstance(row, InterfaceAddress):
                        self._expected.discard(echo)


def only(kind: int) -> Filter:
    """Accepts netlink messages of one kind: each other would cost being read."""
    there = int.from_bytes(kind.to_bytes(2, sys.byteorder), "big")  # a filter loads in network order
    # ldh [4] (nlmsg_type), jeq, and to accept or drop it
    return ((0x28, 0, 0, 4), (0x15, 0, 1, there), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))


def echo_of(op: str, row: Row) -> tuple[str, Row]:
    """What of an announcement is certain beforehand: not the flag of an address, nor the MAC and state of a neighbour that goes."""
    if isinstance(row, InterfaceAddress) and row.nodad:
        row = msgspec.structs.replace(row, nodad=False)
    elif isinstance(row, Neighbour) and op == "del":
        row = Neighbour(row.address, row.device, None, 0)
    return op, row
