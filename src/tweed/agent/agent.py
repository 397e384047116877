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

import msgspec

from tweed.addr import Prefix
from tweed.agent import files, needs
from tweed.agent.attachments import Attachments
from tweed.agent.dataplane import Dataplane, Report
from tweed.agent.ears import Ears
from tweed.agent.exclusive import Exclusive
from tweed.agent.firewall import Firewall
from tweed.agent.forwarding import Forwarding
from tweed.agent.joining import join
from tweed.agent.log import log
from tweed.agent.macwatch import MacWatch
from tweed.agent.membership import Membership, other_macs
from tweed.agent.problems import all_problems, tell
from tweed.agent.site import Site, published
from tweed.agent.spool import Spool
from tweed.agent.talk import StartOver, Talk
from tweed.agent.upkeep import Upkeep
from tweed.config import Settings
from tweed.errors import KernelError, TweedError
from tweed.kernel import links, sysctl
from tweed.kernel.netlink import Netlink
from tweed.model import Endpoint, Lease, Owner, Tun
from tweed.plan.attachment import BRIDGE, NodeNetwork, Range
from tweed.plan.backend import Backend, backend
from tweed.plan.docker import DOCKER0, pods_subnet
from tweed.plan.screen import Problem, Screened, Screening
from tweed.plan.underlay import NoUnderlay, Underlay
from tweed.stores import Given, LeaseStore
from tweed.wire.flannel import Network, device_name

RETRY_S = (1.0, 60.0)
# After a change of leases, others that follow so closely are programmed together: a pass for each of thousands takes longer than they do.
GATHER_S = 0.01


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
        self.upkeep = Upkeep(self.attachments)
        self.ears = Ears(self.dataplane, self.upkeep, self.look_again)
        self.forwarding = Forwarding(settings, self.look_again)
        self.told: set[str] = set()
        self.talk = Talk(self)
        self.start_over = ""

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
        await join(self)
        assert self.membership is not None
        self.talk.look = True  # it may have changed before anybody listened
        follower = asyncio.create_task(self.membership.follow())
        try:
            await self._keep_right(follower)
        finally:
            for task in filter(None, (follower, self.talk.task)):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StartOver):
                    await task
            self.talk.task = None

    # ---- what should be --------------------------------------------------------------------------------------

    def _follow_underlay(self) -> None:
        """An underlay that changed its address, index or MTU is followed; one that is gone is waited for."""
        assert self.underlay is not None and self.site is not None
        try:
            underlay, wrong = self.site.follow(self.underlay)
        except (NoUnderlay, KernelError) as error:
            self.problems["underlay"] = Problem("underlay", self.underlay.device, self.site.down(self.underlay.device) or str(error))
            self.ears.underlay = None
            return
        self.problems.pop("underlay", None)
        self.ears.underlay = underlay.index
        if wrong:
            self.problems["underlay"] = Problem("underlay", underlay.device, wrong)
        if underlay != self.underlay:
            log.info("the underlay changed: %s", underlay)
            self.underlay = underlay
            self.dataplane.backend = self.backend()
            self.write_subnet_file()

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

    def write_subnet_file(self) -> None:
        """For other programs; a problem where that fails."""
        assert self.network is not None
        try:
            files.write_subnet_file(self.settings, self.network, self.lease(), self.mtu)
            self.problems.pop("subnet-file", None)
        except OSError as error:
            self.problems["subnet-file"] = Problem("subnet-file", str(self.settings.subnet_file), f"cannot be written: {error.strerror}")

    @property
    def joined(self) -> bool:
        """Whether there is a lease, and what it needs on this node is known."""
        return self.membership is not None and self.membership.own is not None and self.mtu > 0

    def node_network(self) -> NodeNetwork:
        """Where this node's containers go. Raises TweedError with the present reason while there is no lease."""
        if not self.joined:
            raise TweedError(f"this node has no subnet yet: {self.reason}")
        assert self.membership is not None and self.membership.own is not None
        if self.membership.fenced:
            raise TweedError(self.membership.fenced)
        assert self.site is not None
        own, promised = self.membership.own.lease, [(DOCKER0, Prefix.parse(text)) for text in self.notes.noted.docker]
        bridges = self.site.container_bridges() + promised
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

    def on_configuration(self) -> None:
        self.look_again("configuration")

    async def _keep_right(self, follower: asyncio.Task[None]) -> None:
        assert self.membership is not None
        follower.add_done_callback(lambda _: self.wake.set())
        tick, ticked = self.settings.resync or math.inf, time.monotonic()
        while True:
            renewal = None if self.paused or self.talk.going_on else self.membership.next_s
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
            for task in filter(None, (follower, self.talk.task)):
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
        self.wake.set()  # whatever came meanwhile: a conversation that has ended gives no reason

    async def _pass(self, reasons: set[str]) -> None:
        """One turn: screen, mend, publish, and remember how it went."""
        try:
            report = await self._mend(reasons)
            await self._forward()
            self.talk.begin(look=bool(reasons & {"tick", "resume", "configuration"}))
        except KernelError as error:  # a device that went between two questions, an answer that was lost
            report = Report(device_failures={"kernel": str(error)})
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            report = Report(device_failures={"open files": f"{error.strerror}: raise LimitNOFILE, or end who holds the agent's connections open"})
        self._finish(report, reasons)

    async def _mend(self, reasons: set[str]) -> Report:
        assert self.membership is not None and self.screening is not None and self.site is not None and self.membership.own is not None
        settled = self.complete and not self.report.failures and not self.report.device_failures
        if settled and reasons == {"nftables"}:
            return await self._firewall(self.report)
        if settled and reasons == {"containers"}:
            began = time.monotonic()
            return msgspec.structs.replace(self.report, containers=self.upkeep.mend(), duration_s=time.monotonic() - began)
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
        return await self._firewall(msgspec.structs.replace(report, containers=self.upkeep.mend()))

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

    def _finish(self, report: Report, reasons: set[str]) -> None:
        assert self.network is not None
        done = self.last_changes = len(report.changes) + len(report.steps) + len(report.containers)
        self.report = msgspec.structs.replace(report, steps=(), changes=(), containers=())  # tens of thousands of rows that nobody asks for
        self.told = tell(all_problems(self), self.told)
        self.passes += 1
        self.last_pass_at, self.last_reason = time.time(), ", ".join(sorted(reasons))
        if self.complete:  # what a new lease makes is no repair; what was done for containers is, whatever came with it
            self.repairs += len(report.containers) if reasons & {"start", "lease"} else done
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
