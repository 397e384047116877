"""What stands beside the rows: forwarding turned on, masquerading in our own nft tables, and a FORWARD chain that lets pods through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tweed.agent.files import Notes
from tweed.agent.log import log
from tweed.config import Settings
from tweed.errors import KernelError
from tweed.kernel import nft, sysctl, tables
from tweed.kernel.netlink import Netlink
from tweed.model import Change, Lease, Route
from tweed.plan.nft import Table, masquerade
from tweed.plan.screen import Problem
from tweed.wire.flannel import Network

BRIDGE = "cni0"


class Firewall:
    """Level-triggered like the data plane: `run()` looks and mends; it costs a few reads when all is right."""

    def __init__(self, settings: Settings, notes: Notes, netlink: Netlink) -> None:
        self.settings = settings
        self.notes = notes
        self.netlink = netlink
        self.failures: dict[str, str] = {}
        self.problems: tuple[Problem, ...] = ()
        self.forwarding = "not looked at yet"
        self._nft: nft.Nft | None = None
        self._seen: tuple[int, tuple[Table, ...]] | None = None

    def run(self, network: Network, lease: Lease, devices: Mapping[int, str]) -> bool:
        """Mend everything; False when something could not be, with `failures` by name."""
        self.failures = {}
        wanted = self.wanted_tables(network, lease)
        steps: dict[str, Callable[[], None]] = {"forwarding": lambda: self._forward(devices), "masquerade": lambda: self._masquerade(wanted, network.vni)}
        for name, step in steps.items():
            try:
                step()
            except KernelError as error:
                self.failures[name] = str(error)
        return not self.failures

    def plan(self, network: Network, lease: Lease, devices: Mapping[int, str]) -> Iterator[str]:
        """What a first `run()` would do, for a dry run."""
        for family in devices:
            key = "net.ipv4.ip_forward" if family == 4 else "net.ipv6.conf.all.forwarding"
            if sysctl.read_int(key) != 1:
                yield f"sysctl -w {key}=1"
        for table in self.wanted_tables(network, lease):
            yield "nft -f - <<END"
            yield from table.text.splitlines()
            yield "END"

    def wanted_tables(self, network: Network, lease: Lease) -> tuple[Table, ...]:
        """Our nft tables: one per family with --ip-masq, none without."""
        if not self.settings.ip_masq:
            return ()
        fully_random = not self.settings.ip_masq_fully_random_disable
        return tuple(
            masquerade(cluster, endpoint.subnet, vni=network.vni, fully_random=fully_random)
            for cluster, endpoint in ((network.network, lease.v4), (network.network6, lease.v6))
            if cluster is not None and endpoint is not None
        )

    def status(self) -> dict[str, Any]:
        return {"masquerade": self.settings.ip_masq, "forwarding": self.failures.get("forwarding", self.forwarding)}

    # ---- steps -----------------------------------------------------------------------------------------------

    def _forward(self, devices: Mapping[int, str]) -> None:
        def default_routes() -> list[Route]:
            return [route for route in tables.routes(self.netlink, 6, table=None) if route.dst.length == 0 and route.device]

        def put_back(route: Route) -> None:
            for failure in tables.apply(self.netlink, (Change("replace", route),)):
                raise KernelError(str(failure.change), failure.errno, failure.text)

        writes, lost = sysctl.turn_on_forwarding(
            devices, [*devices.values(), BRIDGE], note=self.notes.add_sysctls, default_routes=default_routes, put_back=put_back
        )
        for write in writes:
            log.info("did %s", write)
        for route in lost:
            log.warning("the kernel dropped the default route `%s` when forwarding was turned on: put back", route)
        self.forwarding = "on for " + " and ".join(f"IPv{family}" for family in devices)

    def _masquerade(self, wanted: tuple[Table, ...], vni: int) -> None:
        noted = self.notes.noted.nft_vnis
        if not wanted and not noted:
            return
        now = (nft.generation(), wanted)
        if now == self._seen:
            return  # no transaction since the last look found all right
        if self._nft is None:
            self._nft = nft.Nft()
        if wanted and vni not in noted:
            self.notes.set_nft_vnis([*noted, vni])
        for old in list(self.notes.noted.nft_vnis):
            keep = frozenset(table.family for table in wanted) if old == vni else frozenset()
            for command in nft.remove(self._nft, old, keep=keep):
                log.info("did %s", command)
        changed = [table for table in wanted if nft.ensure(self._nft, table)]
        for table in changed:
            log.info("did put nft table %s %s in place", table.family, table.name)
        self.notes.set_nft_vnis([vni] if wanted else [])
        self._seen = None if changed else now


def undo_firewall(notes: Notes) -> Iterator[str]:
    """Remove our nft tables and put noted sysctls back."""
    if notes.noted.nft_vnis:
        with nft.Nft() as handle:
            for vni in notes.noted.nft_vnis:
                yield from nft.remove(handle, vni)
    for write in sysctl.restore(notes.noted.sysctls):
        yield str(write)
