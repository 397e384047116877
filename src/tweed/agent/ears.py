"""What the kernel announces of somebody else's doing, and whether it concerns this node. It only ever says "look again"."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection

from tweed.agent.dataplane import Dataplane
from tweed.agent.log import log
from tweed.errors import KernelError
from tweed.kernel.monitor import Monitor, Notice
from tweed.kernel.nft import NftMonitor
from tweed.model import Changes, FdbEntry, InterfaceAddress, Link, Neighbour, Route

NFT_DELAY_S = 1.0


class Ears:
    """Listens to rtnetlink and nftables; `heard(reason)` is called for what concerns `dataplane`'s devices, their rows and their underlay."""

    def __init__(self, dataplane: Dataplane, heard: Callable[[str], None]) -> None:
        self.dataplane = dataplane
        self.heard = heard
        self.monitor: Monitor | None = None
        self.underlay: int | None = None  # the ifindex that is in use; None: any device, address or default route may be what is waited for
        self.nft_pending = False

    def listen(self, stack: contextlib.AsyncExitStack, own: Collection[int]) -> None:
        """Until `stack` closes. `own`: netlink ports whose changes are ours."""
        loop = asyncio.get_running_loop()
        self.monitor = stack.enter_context(contextlib.closing(Monitor()))
        self.monitor.own |= set(own)
        loop.add_reader(self.monitor.fileno(), self.on_kernel, self.monitor)
        stack.callback(loop.remove_reader, self.monitor.fileno())
        try:
            nft_monitor = stack.enter_context(contextlib.closing(NftMonitor()))
        except KernelError as error:  # a kernel without nf_tables
            log.warning("%s: changes of nftables are only noticed by the slow look", error)
            return
        loop.add_reader(nft_monitor.fileno(), self.on_nftables, nft_monitor)
        stack.callback(loop.remove_reader, nft_monitor.fileno())

    def expect(self, changes: Changes) -> None:
        """Our own changes are no news; to be said before the loop reads the next notices."""
        if self.monitor is not None:
            self.monitor.expect(changes)

    def on_kernel(self, monitor: Monitor) -> None:
        for notice in monitor.drain():
            if self.concerns(notice):
                self.heard("kernel")

    def on_nftables(self, monitor: NftMonitor) -> None:
        """Look soon: several transactions (kube-proxy, Docker) cost one look; our own change is seen to be right at once."""
        if monitor.drain() and not self.nft_pending:
            self.nft_pending = True
            asyncio.get_running_loop().call_later(NFT_DELAY_S, self._nftables_settled)

    def _nftables_settled(self) -> None:
        self.nft_pending = False
        self.heard("nftables")

    def concerns(self, notice: Notice) -> bool:
        backend = self.dataplane.backend
        devices = {device.name for device in backend.devices}
        underlay = {backend.underlay}
        match notice.row:
            case Link(name=name, index=index):
                return name in devices | underlay or self.underlay in (None, index)
            case InterfaceAddress(device=device):
                return device in devices | underlay or self.underlay is None
            case Route(dst=dst, device=device):
                if device in devices or (self.underlay is None and dst.length == 0) or any(network.contains(dst) for network in self.dataplane.networks):
                    return True
                return any(dst.contains(host) for host in self.dataplane.reaches)  # the way to a peer's host may be another now
            case Neighbour(device=device) | FdbEntry(device=device):
                return device in devices
            case _:
                return True  # an overrun: anything may have happened
