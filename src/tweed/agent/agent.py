"""The agent of one node: start, then keep right until told to end.

    store events ─┐
    kernel events ┼─> wake ─> publish own lease ─> device ─> rows ─> firewall ─> status
    slow tick ────┘

An event only says "look again". Ending, however it comes, leaves the data plane as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from tweed.addr import Prefix, format_address
from tweed.agent import claim, files
from tweed.agent.attachments import Attachments, NodeNetwork
from tweed.agent.dataplane import Dataplane, Report
from tweed.agent.firewall import Firewall
from tweed.agent.log import log
from tweed.agent.membership import Backoff, Membership, other_macs
from tweed.config import Settings
from tweed.errors import KernelError, StoreError, StoreUnavailable, TweedError, UsageError
from tweed.kernel import links, sysctl, tables
from tweed.kernel.monitor import Monitor, Notice
from tweed.kernel.netlink import Netlink
from tweed.kernel.nft import NftMonitor
from tweed.kernel.processes import running
from tweed.model import Endpoint, FdbEntry, InterfaceAddress, Lease, Link, Neighbour, Owner, Route, Vtep
from tweed.plan.device import SetMac, wanted_vteps
from tweed.plan.screen import Problem, Screened, Screening
from tweed.plan.underlay import Host, NoUnderlay, Underlay, Wish, choose_underlay
from tweed.stores import LeaseStore, Snapshot, open_store
from tweed.wire.flannel import Network, device_name, host_overlaps, parse_network

RETRY_S = (1.0, 60.0)
NFT_DELAY_S = 1.0
MAC_REWRITES = (3, 60.0)  # so many restorations within so many seconds: somebody else insists
MAC_REWRITERS = ("systemd-networkd", "NetworkManager", "systemd-udevd", "connmand", "wickedd")


class ConfigChanged(Exception):
    """The stored configuration is another one now: start over with it. The data plane stays meanwhile."""


class Agent:
    """One node's agent. `watch_kernel=False` leaves only the tick to notice drift (for tests and for kernels without events)."""

    def __init__(self, settings: Settings, *, watch_kernel: bool = True) -> None:
        self.settings = settings
        self.watch_kernel = watch_kernel
        self.started_at = time.time()
        self.owner = Owner(settings.node_name, sysctl.boot_id())
        self.notes = files.Notes(settings.state_dir / "notes.json")
        self.netlink = Netlink()
        self.dataplane = Dataplane(self.netlink)
        self.firewall = Firewall(settings, self.notes)
        self.attachments = Attachments(settings.state_dir / "attachments.json", self.netlink)
        self.store: LeaseStore | None = None
        self.membership: Membership | None = None
        self.network: Network | None = None
        self.network_text = ""
        self.underlay: Underlay | None = None
        self.screening: Screening | None = None
        self.screened = Screened({}, ())
        self.changed: set[str] | None = None  # keys of leases to screen again; None: all of them
        self.problems: dict[str, Problem] = {}
        self.report = Report()
        self.reason = "starting"
        self.paused = False
        self.complete = False
        self.passes = self.repairs = self.lease_changes = 0
        self.last_pass_at = 0.0
        self.last_reason = ""
        self.wake = asyncio.Event()
        self.reasons: set[str] = set()
        self.retry_s = RETRY_S[0]
        self.retry: asyncio.TimerHandle | None = None
        self.mac_restored: deque[float] = deque(maxlen=MAC_REWRITES[0])
        self.mac_adopted = False
        self.nft_noted = False
        self.monitor: Monitor | None = None
        self.told: set[str] = set()

    @property
    def renew_margin_s(self) -> float:
        return self.settings.subnet_lease_renew_margin * 60.0

    # ---- life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. Raises UsageError for a configuration that can never work."""
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.firewall.close)
            stack.push_async_callback(self._close_store)
            if self.watch_kernel:
                self.monitor = monitor = stack.enter_context(contextlib.closing(Monitor()))
                monitor.own |= {self.netlink.port, self.firewall.netlink.port}
                loop.add_reader(monitor.fileno(), self.on_kernel, monitor)
                stack.callback(loop.remove_reader, monitor.fileno())
                try:
                    nft_monitor = stack.enter_context(contextlib.closing(NftMonitor()))
                except KernelError as error:  # a kernel without nf_tables
                    log.warning("%s: changes of nftables are only noticed by the slow look", error)
                else:
                    loop.add_reader(nft_monitor.fileno(), self.on_nftables, nft_monitor)
                    stack.callback(loop.remove_reader, nft_monitor.fileno())
            while True:
                try:
                    await self._serve_network()
                except ConfigChanged:
                    log.info("the network configuration changed: starting over with it")

    async def _close_store(self) -> None:
        if self.store is not None:
            await self.store.close()

    async def _serve_network(self) -> None:
        """With one network configuration: join, then keep right."""
        self.complete = False
        store = await self._open_store()
        self.network = await self._configuration(store)
        self.membership = Membership(store, self.owner, self.renew_margin_s, self.on_leases)
        self.screening = Screening(self.network.backend, self.networks)
        self.membership.see_snapshot(await self._first_look(store))
        claim.check_backend_reading(self.network, self.membership.records.values())
        if self.network.direct_routing:
            text = "Backend.DirectRouting is on, but this version tunnels to every peer: traffic flows, with the tunnel's overhead"
            self.problems["direct-routing"] = Problem("direct-routing", "network configuration", text)
        self.underlay = await self._find_underlay()
        self.check_overlap()
        await self._acquire()
        async for _ in self._tries():
            try:
                self._set_up_dataplane()
                break
            except TweedError as error:
                self._wait_for(str(error))
        follower = asyncio.create_task(self.membership.follow())
        try:
            await self._keep_right(follower)
        finally:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower

    async def _tries(self) -> AsyncIterator[Backoff]:
        """Pauses between attempts of a start-up step, for ever; the reason stands in the status meanwhile."""
        backoff = Backoff()
        while True:
            yield backoff
            await backoff.pause()

    def _wait_for(self, why: str) -> None:
        self.reason = why
        log.warning("waiting: %s", why)

    async def _open_store(self) -> LeaseStore:
        if self.store is not None:
            return self.store
        async for _ in self._tries():
            try:
                self.store = open_store(self.settings.store)
                return self.store
            except StoreUnavailable as error:
                self._wait_for(str(error))
        raise AssertionError("tries never end")

    async def _configuration(self, store: LeaseStore) -> Network:
        """The stored network configuration; an empty store is seeded from --net-config-path."""
        async for _ in self._tries():
            try:
                text = await store.config()
                if text is None and (seed := files.read_text(self.settings.net_config_path)) is not None:
                    parse_network(seed)
                    await store.set_config(seed, replace=False)
                    text = await store.config()
            except StoreError as error:
                self._wait_for(str(error))
                continue
            if text is not None:
                network = parse_network(text)
                claim.check_supported(network)
                self.network_text = text
                return network
            self._wait_for(f"no network configuration in {self.settings.store}, and no file {self.settings.net_config_path}: write one with tweed net init")
        raise AssertionError("tries never end")

    async def _first_look(self, store: LeaseStore) -> Snapshot:
        async for _ in self._tries():
            try:
                return await store.snapshot()
            except StoreError as error:
                self._wait_for(str(error))
        raise AssertionError("tries never end")

    # ---- where this node is ------------------------------------------------------------------------------------

    @property
    def families(self) -> tuple[int, ...]:
        assert self.network is not None
        return tuple(f for f, on in ((4, self.network.enable_ipv4), (6, self.network.enable_ipv6)) if on)

    @property
    def networks(self) -> tuple[Prefix, ...]:
        assert self.network is not None
        return self.network.networks

    def _host(self) -> Host:
        ours = {device_name(self.network.vni, f) for f in (4, 6)} if self.network else set()
        found = tuple(link for link in links.links(self.netlink) if link.name not in ours)
        addresses = tuple(a for a in tables.addresses(self.netlink) if a.device not in ours)
        defaults = tuple(r for f in (4, 6) for r in tables.routes(self.netlink, f) if r.dst.length == 0)
        return Host(found, addresses, defaults)

    def choose_underlay_now(self) -> Underlay:
        s = self.settings
        wish = Wish(self.families, s.iface, s.iface_regex, s.iface_can_reach, s.public_ip, s.public_ipv6)
        return choose_underlay(wish, self._host(), lambda address: tables.lookup_route(self.netlink, address))

    async def _find_underlay(self) -> Underlay:
        async for _ in self._tries():
            try:
                underlay = self.choose_underlay_now()
                addresses = " and ".join(format_address(a) for a in (underlay.local, underlay.local6) if a is not None)
                log.info("underlay is %s with %s, because of %s", underlay.device, addresses, underlay.why)
                return underlay
            except (NoUnderlay, KernelError) as error:
                self._wait_for(str(error))
        raise AssertionError("tries never end")

    def _follow_underlay(self) -> None:
        """An underlay that changed its address, index or MTU is followed; one that is gone is waited for."""
        assert self.underlay is not None
        try:
            underlay = self.choose_underlay_now()
        except (NoUnderlay, KernelError) as error:
            self.problems["underlay"] = Problem("underlay", self.underlay.device, str(error))
            return
        self.problems.pop("underlay", None)
        if underlay != self.underlay:
            log.info("the underlay changed: %s, MTU %d", underlay.device, underlay.mtu)
            self.underlay = underlay
            self.dataplane.vteps = self.wanted_vteps()
            self._write_subnet_file()

    def check_overlap(self, network: Network | None = None) -> None:
        """Refuse a cluster network that contains the host's own addresses; bridges on this node's own subnet are where its pods are."""
        network = network or self.network
        assert network is not None
        previous = files.previous_subnet(self.settings.subnet_file)
        own = [p for p in (previous.subnet, previous.subnet6) if p is not None]
        addresses = [(a.device, a.address) for a in self._host().addresses if not any(p.contains(a.address) for p in own)]
        if overlaps := host_overlaps(network, addresses, {device_name(network.vni, f) for f in (4, 6)}):
            raise UsageError(overlaps[0])

    # ---- the lease ---------------------------------------------------------------------------------------------

    def request(self) -> claim.Request:
        """Who asks for a lease."""
        assert self.network is not None and self.underlay is not None
        devices = {family: links.link(self.netlink, device_name(self.network.vni, family)) for family in self.families}
        return claim.Request(
            network=self.network,
            owner=self.owner,
            public_ip=self.underlay.local,
            public_ip6=self.underlay.local6,
            previous=files.previous_subnet(self.settings.subnet_file),
            local_macs={family: link.mac for family, link in devices.items() if link is not None},
            renew_margin_s=self.renew_margin_s,
        )

    async def _acquire(self) -> None:
        """Hold a lease: the one that is provably ours, else a new one. Full, or no store: wait and say so."""
        assert self.membership is not None
        async for backoff in self._tries():
            try:
                record = await claim.acquire(self.membership, self.request())
            except TweedError as error:
                self._wait_for(str(error))
                continue
            self.membership.hold(record)
            backoff.reset()
            log.info("lease %s is this node's", record.lease)
            return

    def lease(self) -> Lease:
        """What the store should say of this node."""
        assert self.membership is not None and self.membership.own is not None and self.underlay is not None and self.network is not None
        own = self.membership.own.lease
        parts = {}
        for name, endpoint, public in (("v4", own.v4, self.underlay.local), ("v6", own.v6, self.underlay.local6)):
            if endpoint is not None:
                parts[name] = Endpoint(endpoint.subnet, public, self._mac(endpoint), self.network.vni)
        return Lease(**parts, backend=own.backend)

    def _mac(self, endpoint: Endpoint) -> bytes | None:
        """The published VTEP MAC: the lease's own, or the device's where somebody insists on another."""
        assert self.network is not None and self.membership is not None and self.membership.own is not None
        if self.mac_adopted:
            family = endpoint.subnet.family
            link = links.link(self.netlink, device_name(self.network.vni, family))
            if link is not None and link.mac not in other_macs(self.membership.records, self.membership.own.key, family):
                return link.mac
        return endpoint.mac

    # ---- the kernel --------------------------------------------------------------------------------------------

    def wanted_vteps(self) -> tuple[Vtep, ...]:
        assert self.network is not None and self.underlay is not None
        return wanted_vteps(self.network, self.lease(), self.underlay)

    @property
    def mtu(self) -> int:
        """What fits every family: FLANNEL_MTU and the bridge's."""
        return min((vtep.mtu for vtep in self.dataplane.vteps), default=0)

    def _set_up_dataplane(self) -> None:
        self.dataplane.vteps = self.wanted_vteps()
        # Rows of an earlier network are ours too, until the first pass has removed them.
        earlier = [Prefix.parse(text) for text in self.notes.noted.networks]
        self.dataplane.networks = tuple(dict.fromkeys([*self.networks, *earlier]))
        files.remove_stale_devices(self.netlink, self.notes, keep=[v.name for v in self.dataplane.vteps])
        self.notes.add("devices", (v.name for v in self.dataplane.vteps))
        self.notes.add("networks", (str(n) for n in self.networks))
        self.notes.add("files", [str(self.settings.subnet_file)])
        self._write_subnet_file()
        self.attachments.reconcile()
        self.look_again("start")

    def _write_subnet_file(self) -> None:
        assert self.network is not None
        try:
            files.write_subnet_file(self.settings, self.network, self.lease(), self.mtu)
            self.problems.pop("subnet-file", None)
        except OSError as error:
            self.problems["subnet-file"] = Problem("subnet-file", str(self.settings.subnet_file), f"cannot be written: {error.strerror}")

    def node_network(self) -> NodeNetwork:
        """Where this node's containers go. Raises TweedError with the present reason while there is no lease."""
        if self.membership is None or self.membership.own is None or not self.dataplane.vteps:
            raise TweedError(f"this node has no subnet yet: {self.reason}")
        if self.membership.fenced:
            raise TweedError(self.membership.fenced)
        own = self.membership.own.lease
        return NodeNetwork(own.v4.subnet if own.v4 else None, own.v6.subnet if own.v6 else None, self.mtu, "cni0", self.networks)

    # ---- the loop ----------------------------------------------------------------------------------------------

    def look_again(self, reason: str) -> None:
        self.reasons.add(reason)
        self.wake.set()

    def on_leases(self, keys: set[str] | None) -> None:
        self.lease_changes += 1
        if keys is None:
            self.changed = None
        elif self.changed is not None:
            self.changed |= keys
        self.look_again("lease")

    def on_kernel(self, monitor: Monitor) -> None:
        """Somebody else changed something: look again if it can concern us."""
        for notice in monitor.drain():
            if self._concerns(notice):
                self.look_again("kernel")

    def on_nftables(self, monitor: NftMonitor) -> None:
        """nftables changed: look soon. Several transactions (kube-proxy, Docker) cost one look; our own change is seen to be right at once."""
        if monitor.drain() and not self.nft_noted:
            self.nft_noted = True
            asyncio.get_running_loop().call_later(NFT_DELAY_S, self.look_again, "nftables")

    def _concerns(self, notice: Notice) -> bool:
        devices = {vtep.name for vtep in self.dataplane.vteps}
        underlay = {self.underlay.device} if self.underlay is not None else set()
        match notice.row:
            case Link(name=name):
                return name in devices | underlay
            case InterfaceAddress(device=device):
                return device in devices | underlay
            case Route(dst=dst, device=device):
                return device in devices or any(network.contains(dst) for network in self.dataplane.networks)
            case Neighbour(device=device) | FdbEntry(device=device):
                return device in devices
            case _:
                return True  # an overrun: anything may have happened

    async def _keep_right(self, follower: asyncio.Task[None]) -> None:
        assert self.membership is not None
        follower.add_done_callback(lambda _: self.wake.set())
        tick, ticked = self.settings.resync or math.inf, time.monotonic()
        while True:
            renewal = None if self.paused else self.membership.next_s
            wait = min(ticked + tick - time.monotonic(), math.inf if renewal is None else renewal)
            with contextlib.suppress(TimeoutError):
                # Not wait_for(): until Python 3.12 it forgets a cancellation that comes together with the event.
                async with asyncio.timeout(None if wait == math.inf else max(wait, 0.0)):
                    await self.wake.wait()
            self.wake.clear()
            reasons, self.reasons = self.reasons, set()
            if time.monotonic() >= ticked + tick:  # also when events never leave a pause as long as that
                reasons.add("tick")
                ticked = time.monotonic()
            if follower.done():
                follower.result()
            if not self.paused:
                await self._pass(reasons or {"renewal"})

    async def _pass(self, reasons: set[str]) -> None:
        """One turn: screen, mend, publish, and remember how it went."""
        assert self.membership is not None
        if "tick" in reasons:
            await self._check_configuration()
        try:
            report = await self._mend(reasons)
            await self.membership.publish(self.lease())
        except KernelError as error:  # a device that went between two questions, an answer that was lost
            report = Report(device_failures={"kernel": str(error)})
        self._finish(report, reasons)
        if reasons != {"lease"}:  # never more than a quarter of a core on drift, however fast it comes
            await asyncio.sleep(min(3 * report.duration_s, 5.0))

    async def _mend(self, reasons: set[str]) -> Report:
        assert self.membership is not None and self.screening is not None
        self.screened = self.screening.see(self.membership.records, self.membership.junk.values(), self.membership.own, self.changed)
        self.changed = set()
        settled = self.complete and not self.report.failures and not self.report.device_failures
        if settled and reasons == {"lease"}:
            report = self.dataplane.change(self.screened.peers)
            self._expect(report)
            return msgspec.structs.replace(report, shadows=self.report.shadows)
        if settled and reasons == {"nftables"}:
            return await self._firewall(msgspec.structs.replace(self.report, steps=(), changes=()))
        self._follow_underlay()
        self.dataplane.vteps = self.wanted_vteps()
        self.dataplane.peers = self.screened.peers
        report = self.dataplane.look()
        self._expect(report)
        self._watch_mac(report)
        return await self._firewall(report)

    def _expect(self, report: Report) -> None:
        """Our own changes are no news; to be said before the loop reads the next notices."""
        if self.monitor is not None:
            self.monitor.expect(report.changes)

    async def _firewall(self, report: Report) -> Report:
        assert self.network is not None
        self.nft_noted = False
        await self.firewall.run(self.network, self.lease(), self.dataplane.devices)
        return msgspec.structs.replace(report, device_failures=report.device_failures | self.firewall.failures)

    def _tell_problems(self) -> None:
        """Each problem once when it comes and once when it goes."""
        now = {str(problem) for problem in self.all_problems()}
        for text in sorted(now - self.told):
            log.warning("problem: %s", text)
        for text in sorted(self.told - now):
            log.info("no longer: %s", text)
        self.told = now

    def _finish(self, report: Report, reasons: set[str]) -> None:
        self.report = report
        self._tell_problems()
        self.passes += 1
        self.last_pass_at, self.last_reason = time.time(), ", ".join(sorted(reasons))
        if self.complete and not reasons & {"start", "lease"}:
            self.repairs += len(report.changes) + len(report.steps)
        if report.failures or report.device_failures:
            self.reason = str(next(iter(report.failures), None) or next(f"{k}: {v}" for k, v in report.device_failures.items()))
            if self.retry is not None:
                self.retry.cancel()  # one is enough, however many events there were meanwhile
            self.retry = asyncio.get_running_loop().call_later(self.retry_s, self.look_again, "retry")
            self.retry_s = min(self.retry_s * 2, RETRY_S[1])
        else:
            self.retry_s = RETRY_S[0]
            if not self.complete:
                log.info("ready: %d peers programmed", len(self.screened.peers))
                self.dataplane.networks = self.networks
                self.notes.set_networks([str(n) for n in self.networks])
            self.complete, self.reason = True, ""

    async def _check_configuration(self) -> None:
        assert self.store is not None and self.membership is not None
        try:
            text = await self.store.config()
        except StoreError:
            return  # the watch says so already
        if text is None or text == self.network_text:
            self.problems.pop("config", None)
            return
        try:
            network = parse_network(text)
            claim.check_supported(network)
            claim.check_backend_reading(network, self.membership.records.values())
            self.check_overlap(network)
        except UsageError as error:
            self.problems["config"] = Problem("config", self.settings.store, f"the new configuration is wrong, the old one stays in force: {error}")
            return
        self.problems.pop("config", None)
        if network == self.network:
            self.network_text = text
            return
        raise ConfigChanged

    def _watch_mac(self, report: Report) -> None:
        """Restore a changed MAC, but not for ever: who keeps rewriting it is named, and its MAC published, so that traffic flows."""
        now = time.monotonic()
        if not any(isinstance(step, SetMac) for step in report.steps) or self.mac_adopted:
            return
        self.mac_restored.append(now)
        if len(self.mac_restored) == MAC_REWRITES[0] and now - self.mac_restored[0] < MAC_REWRITES[1]:
            self.mac_adopted = True
            name = next(step.name for step in report.steps if isinstance(step, SetMac))
            suspects = running(MAC_REWRITERS)
            who = " or ".join(suspects) if suspects else "another program (udev, systemd-networkd and NetworkManager do that)"
            text = f"{who} keeps changing its MAC: this node publishes whatever MAC it has; tell it to leave the device alone with `tweed node-files`"
            self.problems["mac-rewritten"] = Problem("mac-rewritten", name, text)

    # ---- what others see -----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self.complete and not self.report.failures and not self.report.device_failures and not self.fenced

    @property
    def fenced(self) -> str:
        return self.membership.fenced if self.membership is not None else ""

    def all_problems(self) -> list[Problem]:
        found = [*self.problems.values(), *self.firewall.problems, *self.screened.problems]
        found += [Problem("shadowing-route", shadow.row.device, str(shadow)) for shadow in self.report.shadows]
        found += [Problem("store", self.settings.store, warning) for warning in (self.store.warnings if self.store is not None else ())]
        if self.membership is not None and self.membership.fenced:
            found.append(Problem("fenced", self.owner.node, self.membership.fenced))
        if self.membership is not None and self.membership.down_since is not None:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.membership.down_since))
            found.append(Problem("store-away", self.settings.store, f"does not answer since {since}: {self.membership.down_why}"))
        return found
