"""A fault as values: a few commands that anybody could type, and those that undo them.

Only the named value becomes wrong: what the kernel throws away besides (the rows of a device that is made anew, the routes of one that
goes down) is put back at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence

import msgspec

from tweed.addr import format_address, format_mac
from tweed.lab.faults.scene import Pod, Scene, Side
from tweed.model import Change, FdbEntry, InterfaceAddress, KernelState, Neighbour, Route, Vxlan

NOBODY = bytes.fromhex("02000000dead")  # a MAC that no device has


class Command(msgspec.Struct, frozen=True, tag=True):
    """One command line for `node`, or for `node/pod`. Quoted as for a shell; no shell is needed."""

    where: str
    text: str

    def words(self, _: Sequence[str]) -> list[str]:
        return shlex.split(self.text)


class LeaseMac(msgspec.Struct, frozen=True, tag=True):
    """In the store: the VTEP MAC that the lease of `subnet` (of node `where`) publishes becomes `mac`."""

    where: str
    subnet: str
    mac: str

    @property
    def text(self) -> str:
        return f"lease {self.subnet}: VtepMAC {self.mac} (in the store)"

    def words(self, store_flags: Sequence[str]) -> list[str]:
        """The program that does it, for the node's namespace."""
        return [sys.executable, "-m", "tweed.lab.faults.lease", self.subnet, self.mac, *store_flags]


Deed = Command | LeaseMac
Deeds = tuple[Deed, ...]


class Plan(msgspec.Struct, frozen=True):
    """`undo` in the order in which it is to be run. `arriving`: it shows on packets from the peer, else on packets to it."""

    do: Deeds
    undo: Deeds
    arriving: bool = False


class Fault(msgspec.Struct, frozen=True):
    """`plan` raises TweedError or UsageError where the lab cannot have it."""

    name: str
    title: str
    plan: Callable[[Scene], Plan]


def on(where: str, *texts: str) -> Deeds:
    return tuple(Command(where, text) for text in texts)


def put(where: str, rows: Iterable[InterfaceAddress | Route | Neighbour | FdbEntry]) -> Deeds:
    return on(where, *(str(Change("replace", row)) for row in rows))


def delete(where: str, *rows: Route | Neighbour | FdbEntry) -> Deeds:
    return on(where, *(str(Change("delete", row)) for row in rows))


def put_all(where: str, state: KernelState) -> Deeds:
    """All rows of a device, in the order in which each finds what it needs. Without duplicate address detection: they were there before."""
    addresses = (msgspec.structs.replace(row, nodad=row.address.family == 6) for row in state.addresses if row.scope == 0)
    routes = sorted(state.routes, key=lambda route: route.gateway is not None)
    return (*put(where, addresses), *put(where, state.fdb), *put(where, state.neighbours), *put(where, routes))


def create(side: Side, vxlan: Vxlan) -> Deeds:
    """The side's VXLAN device made anew with the attributes `vxlan`, and all its rows."""
    name, vtep = side.vtep.name, side.vtep
    words = [f"ip link add {name} address {format_mac(vtep.mac)} mtu {vtep.mtu} type vxlan id {vxlan.vni}"]
    words += [f"local {format_address(vxlan.local)}"] if vxlan.local is not None else []
    words += [f"dev {side.nic}"] if vxlan.underlay else []
    words += [f"dstport {vxlan.port}", "learning" if vxlan.learning else "nolearning", *(["gbp"] if vxlan.gbp else [])]
    quiet = (f"ip link set {name} addrgenmode none",) if side.subnet.family == 6 else ()
    return (*on(side.node, " ".join(words), *quiet, f"ip link set {name} up"), *put_all(side.node, side.rows))


def vxlan_of(side: Side) -> Vxlan:
    assert side.vtep.vxlan is not None, "a scene's sides have VXLAN devices"
    return side.vtep.vxlan


def pod_of(side: Side) -> Pod:
    assert side.pod is not None, "a scene's two sides have pods"
    return side.pod


def pod_name(side: Side) -> str:
    return f"{side.node}/{pod_of(side).name}"
