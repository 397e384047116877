"""What stands beside the rows: forwarding turned on, masquerading in our own nft tables, and a FORWARD chain that lets pods through."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from tweed.agent.files import Notes
from tweed.agent.leftovers import Leftovers, firewall_leftovers
from tweed.agent.log import log
from tweed.config import Settings
from tweed.errors import KernelError
from tweed.kernel import iptables, nft, sysctl, tables
from tweed.kernel.netlink import Netlink
from tweed.model import Change, Lease, Route
from tweed.plan.attachment import BRIDGE
from tweed.plan.backend import Backend
from tweed.plan.forward_rules import Decision, Overlay, decide, removal
from tweed.plan.forwarding import Write
from tweed.plan.nft import Object, Table, masquerade
from tweed.plan.screen import Problem
from tweed.wire.flannel import Network


class Wish(msgspec.Struct, frozen=True):
    """What should stand: decided from the network, the lease and the settings alone.

    `ours`: our devices, which never take router advertisements and always forward; `through`: the devices of others that overlay packets come by.
    """

    vni: int
    families: tuple[int, ...]
    ours: tuple[str, ...]
    through: tuple[str, ...]
    tables: tuple[Table, ...]
    overlays: tuple[Overlay, ...]


def wish(settings: Settings, network: Network, lease: Lease, backend: Backend, masquerade_pods: bool = False) -> Wish:
    """Our nft tables with --ip-masq or for pods that need them, and with --iptables-forward-rules the traffic that FORWARD chains must let through."""
    families = [(c, e.subnet) for c, e in ((network.network, lease.v4), (network.network6, lease.v6)) if c is not None and e is not None]
    fully_random = not settings.ip_masq_fully_random_disable
    masqueraded = families if settings.ip_masq or masquerade_pods else []
    forwarded = families if settings.iptables_forward_rules else []
    return Wish(
        network.vni,
        tuple(backend.carriers),
        (*(device.name for device in backend.devices), BRIDGE),
        (backend.underlay,) if backend.direct else (),
        tuple(masquerade(cluster, subnet, vni=network.vni, fully_random=fully_random) for cluster, subnet in masqueraded),
        tuple(Overlay(cluster, subnet, BRIDGE, carrier) for cluster, subnet in forwarded for carrier in backend.carriers.get(cluster.family, ())),
    )


class Firewall:
    """Level-triggered like the data plane: `run()` looks and mends, and costs a few reads when all is right.

    It works in one thread of its own, since iptables' programs may wait for a lock; the agent's loop goes on meanwhile.
    """

    def __init__(self, settings: Settings, notes: Notes) -> None:
        self.settings = settings
        self.notes = notes
        self.netlink = Netlink()
        self.failures: dict[str, str] = {}
        self.problems: tuple[Problem, ...] = ()
        self.leftovers = Leftovers()
        self.forwarding = "not looked at yet"
        self._nft = nft.Nft()
        self._seen: tuple[int, Wish] | None = None
        self._looked_at: int | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="firewall")

    def close(self) -> None:
        self._thread.submit(self._nft.close)
        self._thread.shutdown()
        self.netlink.close()

    async def run(self, network: Network, lease: Lease, backend: Backend, *, masquerade: bool = False) -> bool:
        """Mend everything; False when something that pods need could not be, with `failures` by name."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.mend, wish(self.settings, network, lease, backend, masquerade))

    def status(self) -> dict[str, Any]:
        return {
            "masquerade": self.settings.ip_masq,
            "forwarding": self.failures.get("forwarding", self.forwarding),
            "forward_rules": self.settings.iptables_forward_rules,
        }

    # ---- in the thread ---------------------------------------------------------------------------------------

    def mend(self, want: Wish) -> bool:
        failures = {}
        try:
            self._forward(want)
        except KernelError as error:
            failures["forwarding"] = str(error)
        try:
            if not self._unchanged(want):
                now = (nft.generation(), want)
                changed = [self._masquerade(want), self._open(want)]
                self._seen = None if any(changed) else now
        except KernelError as error:
            if want.tables:
                failures["masquerade"] = str(error)
            else:  # nobody asked for nftables: not being able to look is worth a word, not an alarm
                self.problems = (Problem("forward-rules", "nftables", f"cannot tell whether anything drops forwarded traffic: {error}"),)
        self.failures = failures
        self._look_for_flannel()
        return not failures

    def _look_for_flannel(self) -> None:
        try:
            number = nft.generation()
            if number != self._looked_at or iptables.legacy_in_use():
                self.leftovers, self._looked_at = firewall_leftovers(self._nft), number
        except KernelError:  # said already by those whose rules could not be looked at
            self.leftovers, self._looked_at = Leftovers(), None

    def _unchanged(self, want: Wish) -> bool:
        """True when nothing was written to nftables since a look found all right; the old iptables have no such number."""
        return self._seen is not None and self._seen == (nft.generation(), want) and not iptables.read([])

    def _forward(self, want: Wish) -> None:
        writes, lost = forward(self.netlink, self.notes, want.families, want.ours, want.through)
        for write in writes:
            log.info("did %s", write)
        for route in lost:
            log.warning("the kernel dropped the default route `%s` when forwarding was turned on: put back", route)
        self.forwarding = "on for " + " and ".join(f"IPv{family}" for family in want.families)

    def _masquerade(self, want: Wish) -> bool:
        """True when something was changed."""
        noted = self.notes.noted.nft_vnis
        if not want.tables and not noted:
            return False
        if want.tables and want.vni not in noted:
            self.notes.set_nft_vnis([*noted, want.vni])
        commands = []
        for vni in list(self.notes.noted.nft_vnis):
            keep = frozenset(table.family for table in want.tables) if vni == want.vni else frozenset()
            commands += nft.remove(self._nft, vni, keep=keep)
        commands += [f"nft table {table.family} {table.name}" for table in want.tables if nft.ensure(self._nft, table)]
        for command in commands:
            log.info("did %s", command)
        self.notes.set_nft_vnis([want.vni] if want.tables else [])
        return bool(commands)

    def _open(self, want: Wish) -> bool:
        """True when something was changed."""
        noted = self.notes.noted.iptables_vnis
        decision, listing = self._decide(want)
        if decision.edits:
            self.notes.set_iptables_vnis(sorted({*noted, want.vni}))
            iptables.apply(decision.edits)
            for edit in decision.edits:
                log.info("did %s", edit)
        stale = [vni for vni in noted if vni != want.vni or not want.overlays]
        for vni in stale:
            iptables.apply(removal(iptables.read(listing), vni))
        if stale:
            self.notes.set_iptables_vnis([vni for vni in self.notes.noted.iptables_vnis if vni not in stale])
        self.problems = tuple(Problem("forward-drop", f"{o.family} {o.table} {o.chain}", str(o)) for o in decision.obstacles)
        return bool(decision.edits or stale)

    def _decide(self, want: Wish) -> tuple[Decision, list[Object]]:
        if not want.overlays and not self.notes.noted.iptables_vnis:
            return Decision(), []
        listing = nft.forward_listing(self._nft)
        return decide(listing, want.overlays, iptables.read(listing), vni=want.vni), listing


def rehearse(want: Wish, netlink: Netlink) -> Iterator[str]:
    """What a first `mend()` would do now, as commands and comments, for a dry run."""
    yield from map(str, sysctl.forwarding_writes(want.families, want.ours, want.through, lambda: default_routes(netlink)))
    with nft.Nft() as handle:
        for table in want.tables:
            if not nft.present(handle, table):
                yield from ["nft -f - <<END", *table.text.splitlines(), "END"]
        if want.overlays:
            listing = nft.forward_listing(handle)
            decision = decide(listing, want.overlays, iptables.read(listing), vni=want.vni)
            yield from (str(edit) for edit in decision.edits)
            yield from (f"# problem: {obstacle}" for obstacle in decision.obstacles)


def forward(netlink: Netlink, notes: Notes, families: Iterable[int], ours: Iterable[str], through: Iterable[str] = ()) -> tuple[list[Write], list[Route]]:
    """Make this namespace forward, noting what was. Returns what was written, and the default routes that were lost by it and put back."""

    def put_back(route: Route) -> None:
        for failure in tables.apply(netlink, (Change("replace", route),)):
            raise KernelError(str(failure.change), failure.errno, failure.text)

    return sysctl.turn_on_forwarding(families, ours, through, note=notes.add_sysctls, default_routes=lambda: default_routes(netlink), put_back=put_back)


def default_routes(netlink: Netlink) -> list[Route]:
    """IPv6 default routes of all tables."""
    return [route for route in tables.routes(netlink, 6, table=None) if route.dst.length == 0 and route.device]


def undo_firewall(notes: Notes) -> Iterator[str]:
    """Remove our nft tables and iptables rules, and put noted sysctls back."""
    with nft.Nft() as handle:
        yield from undo_rules(notes, handle)
    for write in sysctl.restore(notes.noted.sysctls):
        yield str(write)


def undo_rules(notes: Notes, handle: nft.Nft) -> Iterator[str]:
    """Remove our nft tables and iptables rules."""
    for vni in notes.noted.nft_vnis:
        yield from nft.remove(handle, vni)
    for vni in notes.noted.iptables_vnis:
        edits = removal(iptables.read(nft.forward_listing(handle)), vni)
        iptables.apply(edits)
        yield from (str(edit) for edit in edits)
