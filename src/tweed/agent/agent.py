"""The agent of one node: start, then keep right until told to end.

    store events ─┐
    kernel events ┼─> wake ─> publish own lease ─> device ─> rows ─> firewall ─> status
    slow tick ────┘

An event only says "look again". Ending, however it comes, leaves the data plane as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from tweed.addr import Prefix
from tweed.agent import claim, files, needs
from tweed.agent.attachments import Attachments
from tweed.agent.dataplane import LOG_ROWS, Dataplane, Report
from tweed.agent.ears import Ears
from tweed.agent.exclusive import Exclusive
from tweed.agent.firewall import Firewall
from tweed.agent.forwarding import Forwarding
from tweed.agent.leftovers import Leftovers, as_problem
from tweed.agent.log import log
from tweed.agent.macwatch import MacWatch
from tweed.agent.membership import Backoff, Membership, other_macs
from tweed.agent.site import Site, published
from tweed.agent.spool import Spool
from tweed.config import Settings
from tweed.errors import KernelError, StoreError, StoreUnavailable, TweedError, UsageError
from tweed.kernel import links, sysctl
from tweed.kernel.netlink import Netlink
from tweed.model import Endpoint, Lease, Owner, Tun
from tweed.plan.attachment import BRIDGE, NodeNetwork, Range
from tweed.plan.backend import Backend, backend, check_supported, refused
from tweed.plan.docker import pods_subnet
from tweed.plan.flannel_rules import stray_routes
from tweed.plan.screen import Problem, Screened, Screening
from tweed.plan.underlay import NoUnderlay, Underlay
from tweed.stores import Given, LeaseStore, named, open_store
from tweed.wire.flannel import Network, device_name, parse_network

T = TypeVar("T")

RETRY_S = (1.0, 60.0)
# After a change of leases, others that follow so closely are programmed together: a pass for each of thousands takes longer than they do.
GATHER_S = 0.01


class StartOver(Exception):
    """Something that was decided at the start no longer holds: decide again. The data plane stays meanwhile. Says what."""


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
        self.spool = Spool(settings.run_dir)
        self.attachments = Attachments(settings.state_dir / "attachments.json", self.netlink, settings.host_local)
        self.store: LeaseStore | None = None
        self.membership: Membership | None = None
        self.network: Network | None = None
        self.network_text = ""
        self.given: Given | None = None
        self.site: Site | None = None
        self.underlay: Underlay | None = None
        self.screening: Screening | None = None
        self.screened = Screened({}, ())
        self.changed: set[str] | None = None  # keys of leases to screen again; None: all of them
        self.problems: dict[str, Problem] = {}
        self.bridge_problems: list[Problem] = []
        self.needs: list[Problem] = []
        self.report = Report()
        self.reason = "starting"
        self.paused = False
        self.complete = False
        self.passes = self.repairs = self.lease_changes = 0
        self.last_pass_at = 0.0
        self.last_changes = 0
        self.last_reason = ""
        self.wake = asyncio.Event()
        self.turned = asyncio.Event()  # what is to be said of the agent may be another thing now
        self.reasons: set[str] = set()
        self.retry_s = RETRY_S[0]
        self.retry: asyncio.TimerHandle | None = None
        self.macs = MacWatch()
        self.exclusive = Exclusive()
        self.ears = Ears(self.dataplane, self.look_again)
        self.forwarding = Forwarding(settings, self.look_again)
        self.told: set[str] = set()
        self.talk: asyncio.Task[bool] | None = None
        self.waiting_since: float | None = None
        self.start_over = ""
        self.untold = False  # something came while the store was being talked to

    # ---- life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. Raises UsageError for a configuration that can never work."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.firewall.close)
            stack.callback(self.exclusive.close)
            stack.push_async_callback(self._close_store)
            if self.watch_kernel:
                self.ears.listen(stack, own=[self.netlink.port, self.firewall.netlink.port])
            while True:
                try:
                    await self._serve_network()
                except StartOver as reason:
                    log.info("%s: starting over", reason)

    async def _close_store(self) -> None:
        if self.store is not None:
            await self.store.close()

    async def _serve_network(self) -> None:
        """With one network configuration: join, then keep right."""
        self.complete, self.report = False, Report()
        if self.store is None:
            self.store = await self._insist(self._open_store)
        store = self.store
        network, text = await self._insist(lambda: self._configuration(store))
        self.network, self.network_text = network, text
        self.given = await self._insist(lambda: store.given(self.owner.node))
        self.site = Site(self.settings, network, self.netlink, self.given)
        self.screening = Screening(network.lease_backend, network.networks, network.lengths)
        self.changed = None
        self.macs = MacWatch()  # a MAC that follows from another subnet is nobody's interference
        self.problems.pop("mac-rewritten", None)
        self.membership = Membership(store, self.owner, self.settings.renew_margin_s, self.on_leases, given=self.given is not None)
        self.underlay = await self._insist(self._choose_underlay)
        self.site.check_overlap(self.attachments.ledger.bridges)
        await self._insist(self._be_alone)
        await self._insist(self._acquire)
        await self._insist(self._set_up_dataplane)
        follower = asyncio.create_task(self.membership.follow())
        try:
            await self._keep_right(follower)
        finally:
            for task in filter(None, (follower, self.talk)):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StartOver):
                    await task
            self.talk = None

    async def _insist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Try a start-up step until it succeeds; its reason stands in the status meanwhile. What can never work (UsageError) ends the agent."""
        backoff = Backoff()
        while True:
            try:
                done = await step()
                self.waiting_since = None
                return done
            except UsageError:
                raise
            except TweedError as error:
                self.reason = str(error)
                self.turned.set()
                if isinstance(error, StoreUnavailable):
                    self.waiting_since = self.waiting_since or time.time()
                log.warning("waiting: %s", error)
                self.leave_word()
                await backoff.pause()

    async def _open_store(self) -> LeaseStore:
        store = open_store(self.settings)
        try:
            self.settings = await named(self.settings, store)
        except StoreError:
            await store.close()
            raise
        self.owner = Owner(self.settings.node_name, self.owner.boot_id)
        return store

    async def _configuration(self, store: LeaseStore) -> tuple[Network, str]:
        """The stored network configuration and its text; an empty store is seeded from --net-config-path."""
        text = await store.config()
        if text is None and (seed := files.read_text(self.settings.net_config_path)) is not None:
            parse_network(seed)
            await store.set_config(seed, replace=False)
            text = await store.config()
        if text is None:
            s = self.settings
            how = "mount the ConfigMap there" if s.store == "kube" else "write one with tweed net init"
            raise TweedError(f"no network configuration in {s.store}, and no file {s.net_config_path}: {how}")
        network = parse_network(text)
        check_supported(network)
        return network, text

    async def _choose_underlay(self) -> Underlay:
        assert self.site is not None
        await self._check_given()  # what it says of this node's address may have been mended
        underlay = self.site.underlay()
        log.info("underlay is %s, because of %s", underlay, underlay.why)
        for other in underlay.instead_of:
            log.info("underlay is not %s", other)
        return underlay

    async def _be_alone(self) -> None:
        assert self.site is not None
        self.exclusive.hold([device_name(self.site.network.vni, family) for family in self.site.families])

    async def _acquire(self) -> None:
        """Hold a lease: the one that is provably ours, else a new one."""
        assert self.membership is not None and self.site is not None and self.underlay is not None
        await self._check_configuration()  # the one that asks for what cannot be had may have been mended
        await self._check_given()
        self.membership.hold(await claim.acquire(self.membership, self.site.request(self.owner, self.underlay)))
        log.info("lease %s is this node's", self.lease())

    # ---- what should be --------------------------------------------------------------------------------------

    def _follow_underlay(self) -> None:
        """An underlay that changed its address, index or MTU is followed; one that is gone is waited for."""
        assert self.underlay is not None and self.site is not None
        try:
            underlay = self.site.underlay(self.underlay)
        except (NoUnderlay, KernelError) as error:
            self.problems["underlay"] = Problem("underlay", self.underlay.device, self._down(self.underlay.device) or str(error))
            self.ears.underlay = None
            return
        self.problems.pop("underlay", None)
        self.ears.underlay = underlay.index
        if down := self._down(underlay.device):
            self.problems["underlay"] = Problem("underlay", underlay.device, down)
        if underlay != self.underlay:
            log.info("the underlay changed: %s", underlay)
            self.underlay = underlay
            self.dataplane.backend = self.backend()
            self._write_subnet_file()

    def _down(self, device: str) -> str:
        """What is to be said of a device that carries nothing now, "" while it does."""
        link = links.link(self.netlink, device)
        if link is None or link.running:
            return ""
        return f"{device} is down, so no other node can be reached: {'it has no carrier' if link.up else f'ip link set {device} up'}"

    def lease(self) -> Lease:
        """What the store should say of this node."""
        assert self.membership is not None and self.membership.own is not None and self.underlay is not None and self.network is not None
        own = self.membership.own.lease
        parts = {}
        public_ip, public_ip6 = published(self.underlay, self.given)
        for name, endpoint, public in (("v4", own.v4, public_ip), ("v6", own.v6, public_ip6)):
            if endpoint is not None:
                parts[name] = Endpoint(endpoint.subnet, public, self._mac(endpoint), self.network.vni if endpoint.mac is not None else None)
        return Lease(**parts, backend=own.backend)

    def _mac(self, endpoint: Endpoint) -> bytes | None:
        """The published VTEP MAC: the lease's own, or the device's where somebody insists on another."""
        assert self.network is not None and self.membership is not None and self.membership.own is not None
        if self.macs.adopted:
            family = endpoint.subnet.family
            link = links.link(self.netlink, device_name(self.network.vni, family))
            if link is not None and link.mac not in other_macs(self.membership.records, self.membership.own.key, family):
                return link.mac
        return endpoint.mac

    def backend(self) -> Backend:
        assert self.network is not None and self.underlay is not None
        return backend(self.network, self.lease(), self.underlay)

    @property
    def mtu(self) -> int:
        """What fits every family: FLANNEL_MTU and the bridge's. 0 while nothing is known."""
        return self.dataplane.backend.mtu

    async def _set_up_dataplane(self) -> None:
        assert self.network is not None
        self.dataplane.backend = self.backend()
        ours = [device.name for device in self.dataplane.backend.devices]
        # Rows of an earlier network are ours too, until the first pass has removed them.
        earlier = [Prefix.parse(text) for text in self.notes.noted.networks]
        self.dataplane.networks = tuple(dict.fromkeys([*self.network.networks, *earlier]))
        files.remove_stale_devices(self.netlink, self.notes, keep=ours)
        self.notes.add("devices", ours)
        self.notes.add("networks", (str(n) for n in self.network.networks))
        self.notes.add("files", [str(self.settings.subnet_file.absolute()), *(self.forwarding.files if self.network.backend == "udp" else ())])
        self._write_subnet_file()
        self.attachments.settle([endpoint.subnet for endpoint in self.lease().endpoints], self.network.networks)
        self.spool.replay(self.attachments)
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
        if self.membership is None or self.membership.own is None or not self.mtu:
            raise TweedError(f"this node has no subnet yet: {self.reason}")
        if self.membership.fenced:
            raise TweedError(self.membership.fenced)
        assert self.site is not None
        own, bridges = self.membership.own.lease, self.site.container_bridges()
        subnet, subnet6 = (None if each is None else each.subnet for each in (own.v4, own.v6))
        network = NodeNetwork(subnet, subnet6, self.mtu, BRIDGE, self.dataplane.networks)
        left = tuple(pods_subnet(each, self._pod_bridges, bridges) for each in network.subnets)
        return network if left == network.subnets else msgspec.structs.replace(network, ranges=tuple((Range.whole(each),) for each in left))

    @property
    def _pod_bridges(self) -> set[str]:
        """The bridges that pods of ours are on, now or soon."""
        return {BRIDGE, *self.attachments.ledger.bridges}

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

    async def _keep_right(self, follower: asyncio.Task[None]) -> None:
        assert self.membership is not None
        follower.add_done_callback(lambda _: self.wake.set())
        tick, ticked = self.settings.resync or math.inf, time.monotonic()
        while True:
            talking = self.talk is not None and not self.talk.done()
            renewal = None if self.paused or talking else self.membership.next_s
            renew_at = math.inf if renewal is None else time.monotonic() + renewal
            wait = min(ticked + tick, renew_at) - time.monotonic()
            with contextlib.suppress(TimeoutError):
                # Not wait_for(): until Python 3.12 it forgets a cancellation that comes together with the event.
                async with asyncio.timeout(None if wait == math.inf else max(wait, 0.0)):
                    await self.wake.wait()
            self.wake.clear()
            reasons, self.reasons = self.reasons, set()
            if time.monotonic() >= ticked + tick:  # also when events never leave a pause as long as that
                reasons.add("tick")
                ticked = time.monotonic()
            if time.monotonic() >= renew_at:
                reasons.add("renewal")
            for task in filter(None, (follower, self.talk)):
                if task.done():
                    task.result()
            if self.start_over:
                why, self.start_over = self.start_over, ""
                raise StartOver(why)
            if reasons and not self.paused:
                await self._pass(reasons)
                if reasons == {"lease"}:
                    await asyncio.sleep(GATHER_S)
                else:
                    await self._rest(min(3 * self.report.duration_s, 5.0))

    async def _rest(self, seconds: float) -> None:
        """Never more than a quarter of a core on drift, however fast it comes; changes of leases do not wait for that."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if "lease" in self.reasons and not self.paused:
                self.reasons.discard("lease")
                await self._pass({"lease"})
                await asyncio.sleep(GATHER_S)
                continue
            self.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.wake.wait()
        if self.reasons:
            self.wake.set()

    async def _pass(self, reasons: set[str]) -> None:
        """One turn: screen, mend, publish, and remember how it went."""
        try:
            report = await self._mend(reasons)
            await self._forward()
            self._tell_store(look=bool(reasons & {"tick", "resume"}))
        except KernelError as error:  # a device that went between two questions, an answer that was lost
            report = Report(device_failures={"kernel": str(error)})
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            report = Report(device_failures={"open files": f"{error.strerror}: raise LimitNOFILE, or end who holds the agent's connections open"})
        self._finish(report, reasons)

    async def _announce(self) -> None:
        assert self.store is not None
        try:
            await self.store.announce()
            self.problems.pop("announce", None)
        except StoreError as error:
            self.problems["announce"] = Problem("announce", self.owner.node, f"cannot tell that this node's network works: {error}")

    async def _check_given(self) -> bool:
        """Follow what the store prescribes to this node. False while it says nothing (its Node is gone): what was given last stays in force, unpublished."""
        assert self.store is not None
        try:
            given = await self.store.given(self.owner.node)
            self.problems.pop("given", None)
        except StoreError as error:
            self.problems["given"] = Problem("given", self.owner.node, str(error))
            return False
        if given is not None and self.given is not None and not given.like(self.given):
            raise StartOver("the store gives this node something else now")
        return True

    def _tell_store(self, *, look: bool) -> None:
        """Publish, and with `look` read the configuration, beside the loop: a store that takes its time holds up no repair."""
        if self.talk is None or self.talk.done():
            self.talk = asyncio.create_task(self._talk(self.lease(), look))
            self.talk.add_done_callback(self._talked)
        else:
            self.untold = True

    async def _talk(self, lease: Lease, look: bool) -> bool:
        assert self.membership is not None
        if look:
            await self._check_configuration()
        if not await self._check_given():
            return False
        changed = await self.membership.publish(lease)
        if self.ready:
            await self._announce()
        return changed

    def _talked(self, task: asyncio.Task[bool]) -> None:
        """Back in the loop: another pass where something changed, else only the next renewal is to be waited for."""
        if not task.cancelled() and task.exception() is None and (task.result() or self.untold):
            self.look_again("published")
        self.untold = False
        self.wake.set()

    async def _mend(self, reasons: set[str]) -> Report:
        assert self.membership is not None and self.screening is not None and self.site is not None and self.membership.own is not None
        settled = self.complete and not self.report.failures and not self.report.device_failures
        if settled and reasons == {"nftables"}:
            return await self._firewall(self.report)
        self.screened = self.screening.see(self.membership.records, self.membership.junk.values(), self.membership.own, self.changed)
        self.changed = set()
        if settled and reasons == {"lease"}:
            report = self.dataplane.change(self.screened.peers, self.screening.changed)
            self.ears.expect(report.changes)
            return msgspec.structs.replace(report, shadows=self.report.shadows, foreign=self.report.foreign)
        self._follow_underlay()
        self.bridge_problems = self.site.bridge_problems(tuple(endpoint.subnet for endpoint in self.membership.own.lease.endpoints), self._pod_bridges)
        self.dataplane.backend = self.backend()
        self.dataplane.peers = self.screened.peers
        report = self.dataplane.look()
        self.ears.expect(report.changes)
        if problem := self.macs.see(report):
            self.problems["mac-rewritten"] = problem
        # After what needs no file. A pod with a namespace is Kubernetes', wherever the leases are.
        services = self.settings.store == "kube" or any("/" in pod.pod for pod in self.attachments.list())
        self.needs = list(needs.problems(self.site.families, services=services))
        return await self._firewall(report)

    async def _forward(self) -> None:
        """In the UDP mode: have the process that forwards, and let it know the peers."""
        assert self.network is not None
        device = next((d for d in self.dataplane.backend.devices if isinstance(d, Tun)), None)
        await self.forwarding.follow(self.network, device, self.lease(), self.dataplane.peers.values())

    async def _firewall(self, report: Report) -> Report:
        await self.masquerade()
        return msgspec.structs.replace(report, device_failures=report.device_failures | self.firewall.failures)

    async def masquerade(self) -> None:
        """Mend the firewall. Containers whose CNI configuration asks for masquerading have it, also without --ip-masq."""
        assert self.network is not None
        asked = any(attachment.masquerade for attachment in self.attachments.list())
        await self.firewall.run(self.network, self.lease(), self.dataplane.backend, masquerade=asked)

    def _tell_problems(self) -> None:
        """Each problem once when it comes and once when it goes."""
        now = {str(problem) for problem in self.all_problems()}
        new = sorted(now - self.told)
        for text in new[:LOG_ROWS]:
            log.warning("problem: %s", text)
        if len(new) > LOG_ROWS:
            log.warning("problem: %d more of them: tweed status --json has all", len(new) - LOG_ROWS)
        for text in sorted(self.told - now)[:LOG_ROWS]:
            log.info("no longer: %s", text)
        self.told = now

    def _finish(self, report: Report, reasons: set[str]) -> None:
        assert self.network is not None
        done = self.last_changes = len(report.changes) + len(report.steps)
        self.report = msgspec.structs.replace(report, steps=(), changes=())  # tens of thousands of rows that nobody asks for
        self._tell_problems()
        self.passes += 1
        self.last_pass_at, self.last_reason = time.time(), ", ".join(sorted(reasons))
        if self.complete and not reasons & {"start", "lease"}:
            self.repairs += done
        for name, text in report.device_failures.items():
            log.warning("%s: %s", name, text)
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
                self.dataplane.networks = self.network.networks
                self.notes.set_networks([str(n) for n in self.network.networks])
            self.complete, self.reason = True, ""
        self.turned.set()
        self.leave_word()

    async def _check_configuration(self) -> None:
        assert self.store is not None and self.membership is not None
        if self.membership.down_since is not None:
            return
        try:
            text = await self.store.config()
        except StoreError:
            return  # the watch says so already
        if text is None or text == self.network_text:
            self.problems.pop("config", None)
            return
        try:
            network = parse_network(text)
            check_supported(network)
            claim.check_backend_reading(network, self.membership.records.values())
            Site(self.settings, network, self.netlink).check_overlap(self.attachments.ledger.bridges)
        except UsageError as error:
            self.problems["config"] = Problem("config", self.settings.store, f"the new configuration is wrong, the old one stays in force: {error}")
            return
        except KernelError:
            return  # the next tick asks again
        self.problems.pop("config", None)
        if network == self.network:
            self.network_text = text
            return
        raise StartOver("the network configuration changed")

    # ---- what others see -----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self.complete and not self.report.failures and not self.report.device_failures and not self.fenced

    @property
    def word(self) -> str:
        """How things stand, in one line."""
        if not self.ready:
            return f"not ready: {self.reason or self.fenced}"
        problems = f", {len(self.told)} problems: see tweed status" if self.told else ""
        return f"ready: {len(self.dataplane.peers)} peers programmed{problems}"

    @property
    def fenced(self) -> str:
        return self.membership.fenced if self.membership is not None else ""

    @property
    def store_away_since(self) -> float | None:
        """When the store stopped answering, in seconds since 1970; None while it answers."""
        return self.membership.down_since if self.membership is not None and self.membership.down_since is not None else self.waiting_since

    @property
    def store_away_why(self) -> str:
        """What the last try met, "" while the store answers."""
        if self.store_away_since is None:
            return ""
        return self.membership.down_why if self.membership is not None and self.membership.down_since is not None else self.reason

    def acquire(self) -> str:
        """Have a fenced node take another subnet; what is to be said of it. The node's pods keep their addresses, which are another node's."""
        if not self.fenced:
            return f"lease {self.lease()} is this node's: nothing to do"
        self.start_over = "told to acquire another lease"
        self.wake.set()
        return "acquiring another lease"

    def leave_word(self) -> None:
        """For the plugin, should it find no agent: how things stood."""
        state = "was ready" if self.ready else f"was not ready: {self.reason or self.fenced}"
        details = f"when it was last heard of, the agent of {self.owner.node} (pid {os.getpid()}) {state}"
        self.spool.tell(f"the tweed agent of this node does not answer; {details}", "see whether tweed agent runs, and what its log says")

    def leftovers(self) -> Leftovers:
        """What a flanneld left here, as the last pass saw it."""
        if self.network is None or not self.report.foreign:
            return self.firewall.leftovers
        lengths = {span.network: span.subnet_len for family in (4, 6) if (span := self.network.range(family)) is not None}
        strays = stray_routes(self.report.foreign, lengths, own=[e.subnet for e in self.lease().endpoints])
        if strays:  # of peers they are shadowing routes, which have a problem of their own
            peers = {e.subnet for lease in self.dataplane.peers.values() for e in lease.endpoints}
            strays = [row for row in strays if row.dst not in peers]
        return msgspec.structs.replace(self.firewall.leftovers, routes=tuple(strays))

    def all_problems(self) -> list[Problem]:
        refusals = refused(self.dataplane.backend, self.dataplane.peers, self.dataplane.reaches)
        found = [
            *self.problems.values(),
            *refusals,
            *self.forwarding.problems,
            *self.bridge_problems,
            *self.needs,
            *self.firewall.problems,
            *self.screened.problems,
        ]
        if self.underlay is not None and self.underlay.doubt:
            found.append(Problem("shared-address", self.underlay.device, self.underlay.doubt))
        found += as_problem(self.leftovers())
        explained = {problem.subject for problem in self.bridge_problems}  # to remove their routes would help nobody
        found += [Problem("shadowing-route", s.row.device, str(s)) for s in self.report.shadows if s.row.device not in explained]
        found += [Problem("store", self.settings.store, warning) for warning in (self.store.warnings if self.store is not None else ())]
        if self.membership is not None and self.membership.fenced:
            found.append(Problem("fenced", self.owner.node, self.membership.fenced))
        if (away := self.store_away_since) is not None:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(away))
            # Without the reason, which may be another one every few seconds, and the log would tell each.
            found.append(Problem("store-away", self.settings.store, f"does not answer since {since}; forwarding goes on with what is programmed"))
        return found
