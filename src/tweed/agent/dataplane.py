"""The node's kernel, kept as the leases say: look, compare, mend. No event is needed for it to be right.

`look()` is the whole truth (devices, dumps, diff, apply); `change()` is the short way for one lease, whose old rows are
known. Both end in the same diff and the same loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import msgspec
from msgspec.structs import replace

from tweed.addr import Prefix
from tweed.agent.log import log
from tweed.errors import KernelError
from tweed.kernel import links, sysctl, tables, tun
from tweed.kernel.netlink import Netlink
from tweed.model import Changes, Device, Failure, KernelState, Lease, Route, Tun, Vtep
from tweed.plan.attach import Step
from tweed.plan.backend import Backend
from tweed.plan.device import Create, Delete, DeviceStep, SetLocal, SetMac, SetMtu, SetUp, device_steps
from tweed.plan.diff import confirmed, diff, held, split
from tweed.plan.rows import Found, Reach, Shadow, divide, lease_rows, reach, shadows

LOG_ROWS = 40  # rows that one pass logs by name


class Report(msgspec.Struct, frozen=True):
    """What one pass did. `changes` without what the kernel refused; `device_failures` are by device name, in the kernel's words.

    `foreign`: other people's routes inside the cluster networks. `containers`: what was put right of their bridges and ports.
    """

    steps: tuple[DeviceStep, ...] = ()
    changes: Changes = ()
    failures: tuple[Failure, ...] = ()
    device_failures: dict[str, str] = msgspec.field(default_factory=dict)
    shadows: tuple[Shadow, ...] = ()
    foreign: tuple[Route, ...] = ()
    duration_s: float = 0.0
    cpu_s: float = 0.0
    containers: tuple[Step, ...] = ()


class Dataplane:
    """Keeps the devices and rows that `backend` and `peers` ask for, inside `networks`. All calls are synchronous and bounded by the kernel's own speed."""

    def __init__(self, netlink: Netlink) -> None:
        self.netlink = netlink
        self.backend = Backend()
        self.networks: tuple[Prefix, ...] = ()
        self.peers: dict[str, Lease] = {}
        self.reaches: dict[bytes, Reach] = {}
        self.foreign: frozenset[tuple[Prefix, int]] = frozenset()

    def want(self) -> KernelState:
        """Everything this node's kernel should hold."""
        peers, own = self._rows(self.peers.values()), self.backend.rows
        return replace(peers, addresses=own.addresses, routes=own.routes + peers.routes)

    def _rows(self, leases: Iterable[Lease]) -> KernelState:
        return lease_rows(leases, self.backend.tunnels, self.reaches)

    def _ways(self, routes: tuple[Route, ...]) -> tuple[Route, ...]:
        """The routes that lead to peers. A TUN's one route for all stands for one to each, and this node's own subnet is none of them."""
        names = [device.name for device in self.backend.devices if isinstance(device, Tun)]
        if not names:
            return routes
        return tuple(Route(e.subnet, name) for name in names for lease in self.peers.values() for e in lease.endpoints if e.subnet.family == 4)

    def _look_for(self, leases: Iterable[Lease]) -> dict[bytes, Reach]:
        """How each peer's host is reached now, in the kernel's own judgement; asked only where it decides something."""
        if not self.backend.direct:
            return {}
        return {host: self._reach(host) for lease in leases for e in lease.endpoints if (host := e.public_ip) is not None}

    def _reach(self, host: bytes) -> Reach:
        try:
            return reach(host, tables.lookup_route(self.netlink, host), self.backend.underlay)
        except KernelError:
            return reach(host, None, self.backend.underlay)

    def look(self) -> Report:
        """Dump everything, mend every difference."""
        started, cpu = time.monotonic(), time.process_time()
        steps, broken = self._mend_devices()
        # Without its device a family has no rows to give; the other family goes on.
        usable = [device for device in self.backend.devices if device.name not in broken]
        self.reaches = self._look_for(self.peers.values())
        want = self.want()
        if broken:
            want = _without(want, set(broken))
        found = self._have(usable, want)
        self.foreign = frozenset((route.dst, route.metric) for route in found.foreign)
        changes = self._without_harm(diff(want, found.ours))
        if any(change.op == "delete" for change in changes):
            changes = confirmed(changes, diff(want, self._have(usable, want).ours))
        done, failures = self._apply(changes, found.ours)
        report = Report(
            steps,
            done,
            failures,
            broken,
            tuple(shadows(found.foreign, self._ways(want.routes))),
            found.foreign,
            time.monotonic() - started,
            time.process_time() - cpu,
        )
        _say(report)
        return report

    def change(self, peers: dict[str, Lease], changed: AbstractSet[str] | None = None) -> Report:
        """Go from the peers that were programmed to `peers`: only the rows of the leases that differ. `changed`: among these keys; None: any."""
        started, cpu = time.monotonic(), time.process_time()
        before, self.peers = self.peers, peers
        differ = [key for key in (before.keys() | peers.keys() if changed is None else changed) if before.get(key) != peers.get(key)]
        have = self._rows(before[key] for key in differ if key in before)
        arrived = [peers[key] for key in differ if key in peers]
        self.reaches |= self._look_for(arrived)
        changes = self._without_harm(diff(self._rows(arrived), have))
        done, failures = self._apply(changes, have)
        report = Report((), done, failures, {}, (), (), time.monotonic() - started, time.process_time() - cpu)
        _say(report)
        return report

    def plan(self) -> list[str]:
        """The commands that `look()` would run now, changing nothing."""
        steps: list[str] = []
        there = []
        self.reaches = self._look_for(self.peers.values())
        for device in self.backend.devices:
            have, underlay = links.link(self.netlink, device.name), links.link(self.netlink, device.underlay)
            steps += [str(step) for step in device_steps(device, have, underlay.index if underlay else 0)]
            if have is not None:
                there.append(device)
        want = self.want()
        return steps + [str(change) for change in diff(want, self._have(there, want).ours)]

    def _mend_devices(self) -> tuple[tuple[DeviceStep, ...], dict[str, str]]:
        done: list[DeviceStep] = []
        broken: dict[str, str] = {}
        for device in self.backend.devices:
            try:
                underlay = links.link(self.netlink, device.underlay)
                if underlay is None:
                    broken[device.name] = f"its underlay {device.underlay} is gone"
                    continue
                for step in device_steps(device, links.link(self.netlink, device.name), underlay.index):
                    self._take(step)
                    done.append(step)
            except (KernelError, ValueError) as error:
                broken[device.name] = str(error)
        return tuple(done), broken

    def _take(self, step: DeviceStep) -> None:
        match step:
            case Create(Tun(name=name)):
                tun.create(name)
                links.set_link(self.netlink, name, addrgenmode="none")  # IPv4 only: no link-local address, no router solicitations
            case Create(Vtep() as vtep):
                links.create_vtep(self.netlink, vtep)
                _set(f"net.ipv6.conf.{vtep.name}.accept_ra", "0")
                if vtep.family == 6:  # `default.disable_ipv6` is a common hardening; this device is for nothing else
                    _set(f"net.ipv6.conf.{vtep.name}.disable_ipv6", "0")
            case Delete(name):
                links.delete_link(self.netlink, name)
            case SetLocal(vtep):
                links.change_vtep(self.netlink, vtep.name, local=vtep.local, underlay=vtep.underlay, learning=vtep.learning)
            case SetMtu(name, mtu):
                links.set_link(self.netlink, name, mtu=mtu)
            case SetMac(name, mac):
                links.set_link(self.netlink, name, mac=mac)
            case SetUp(name):
                links.set_link(self.netlink, name, up=True)

    def _have(self, devices: Sequence[Device], want: KernelState) -> Found:
        """The dumps that concern us, filtered in the kernel where it can."""
        vteps = [device for device in devices if isinstance(device, Vtep)]
        nl = self.netlink
        have = KernelState(
            addresses=tuple(a for d in devices for a in tables.addresses(nl, d.name)),
            routes=tuple(r for n in self.networks for r in tables.routes(nl, n.family, inside=n)),
            neighbours=tuple(n for v in vteps for n in tables.neighbours(nl, v.name, v.family)),
            fdb=tuple(f for v in vteps for f in tables.fdb(nl, v.name)),
        )
        return divide(have, devices, self.networks, want.routes)

    def _without_harm(self, changes: Changes) -> Changes:
        """Without the routes whose put would overwrite somebody else's: the kernel replaces by prefix and metric, whatever the device."""
        if not self.foreign:
            return changes
        return tuple(c for c in changes if not (c.op == "replace" and isinstance(c.row, Route) and (c.row.dst, c.row.metric) in self.foreign))

    def _apply(self, changes: Changes, have: KernelState) -> tuple[Changes, tuple[Failure, ...]]:
        """What was done, and what the kernel refused. A deletion that waits for a refused put is neither."""
        puts, deletes = split(changes)
        failures = tables.apply(self.netlink, puts) if puts else ()
        if deletes and failures:
            waiting = set(held(deletes, failures, have))
            deletes = tuple(change for change in deletes if change not in waiting)
        failures += tables.apply(self.netlink, deletes) if deletes else ()
        if not failures:
            return changes, ()
        refused = {failure.change for failure in failures}
        return tuple(change for change in (*puts, *deletes) if change not in refused), failures


def _set(key: str, value: str) -> None:
    """Of a device just made. In a container /proc/sys is often read-only, and the device works all the same, or the kernel says what is wrong."""
    try:
        if sysctl.read(key) not in (None, value):
            sysctl.write(key, value)
    except KernelError as error:
        log.warning("%s", error)


def _without(state: KernelState, devices: set[str]) -> KernelState:
    return KernelState(
        tuple(a for a in state.addresses if a.device not in devices),
        tuple(r for r in state.routes if r.device not in devices),
        tuple(n for n in state.neighbours if n.device not in devices),
        tuple(f for f in state.fdb if f.device not in devices),
    )


def _say(report: Report) -> None:
    """One line per change, up to a point: ten thousand leases at start are one fact, not thirty thousand lines."""
    for step in report.steps:
        log.info("did %s%s", step, f" ({step.why})" if isinstance(step, Delete) else "")
    for change in report.changes[:LOG_ROWS]:
        log.info("did %s", change)
    if len(report.changes) > LOG_ROWS:
        log.info("did %d more of these, %d in all, in %.0f ms", len(report.changes) - LOG_ROWS, len(report.changes), report.duration_s * 1000)
    for failure in report.failures[:LOG_ROWS]:
        log.warning("the kernel refused %s", failure)
