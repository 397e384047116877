"""What the kernel announces of somebody else's doing, and whether it concerns this node. It only ever says "look again"."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence

from tweed.agent.dataplane import Dataplane
from tweed.agent.log import log
from tweed.agent.upkeep import Upkeep
from tweed.errors import KernelError
from tweed.kernel.monitor import Monitor, Notice
from tweed.kernel.nft import NftMonitor
from tweed.model import Changes, FdbEntry, InterfaceAddress, Link, Neighbour, Netconf, Route

NFT_DELAY_S = 1.0
CONTAINERS_DELAY_S = 0.1


class Ears:
    """Listens to rtnetlink and nftables; `heard(reason)` is called for what concerns `dataplane`'s devices, their rows and their underlay,
    and the bridges and ports of containers that `upkeep` keeps."""

    def __init__(self, dataplane: Dataplane, upkeep: Upkeep, heard: Callable[[str], None]) -> None:
        self.dataplane = dataplane
        self.upkeep = upkeep
        self.heard = heard
        self.monitor: Monitor | None = None
        self.underlay: int | None = None  # the ifindex that is in use; None: any device, address or default route may be what is waited for
        self.nft_pending = False
        self.containers_pending: asyncio.TimerHandle | None = None

    def listen(self, stack: contextlib.AsyncExitStack, own: Collection[int]) -> None:
        """Until `stack` closes. `own`: netlink ports whose changes are ours."""
        loop = asyncio.get_running_loop()
        self.monitor = stack.enter_context(contextlib.closing(Monitor()))
        self.monitor.own |= set(own)
        loop.add_reader(self.monitor.fileno(), self.on_kernel, self.monitor)
        stack.callback(loop.remove_reader, self.monitor.fileno())
        stack.callback(self._forget_containers)
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
        notices = monitor.drain()
        for notice in notices:
            if self.concerns(notice):
                self.heard("kernel")
        if self.containers_pending is None and self.concern_containers(notices):
            # Attaching one is announced in a dozen pieces, which are nobody else's doing: one look for all of them, and none of the loop's.
            self.containers_pending = asyncio.get_running_loop().call_later(CONTAINERS_DELAY_S, self._containers_settled)

    def _containers_settled(self) -> None:
        self.containers_pending = None
        if self.upkeep.drifted():
            self.heard("containers")

    def _forget_containers(self) -> None:
        if self.containers_pending is not None:
            self.containers_pending.cancel()

    def on_nftables(self, monitor: NftMonitor) -> None:
        """Look soon: several transactions (kube-proxy, Docker) cost one look; our own change is seen to be right at once."""
        if monitor.drain() and not self.nft_pending:
            self.nft_pending = True
            asyncio.get_running_loop().call_later(NFT_DELAY_S, self._nftables_settled)

    def _nftables_settled(self) -> None:
        self.nft_pending = False
        self.heard("nftables")

    def concern_containers(self, notices: Sequence[Notice]) -> bool:
        devices: frozenset[str] | None = None
        for notice in notices:
            match notice.row:
                case Link(name=name):
                    pass
                case InterfaceAddress(device=name) if notice.op == "del":
                    pass
                case _:
                    continue
            devices = self.upkeep.devices if devices is None else devices
            if name in devices:
                return True
        return False

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
            case Netconf(device=device, forwarding=forwarding):
                return not forwarding and (device == "all" or device in devices | underlay | self.upkeep.devices)
            case _:
                return True  # an overrun: anything may have happened
