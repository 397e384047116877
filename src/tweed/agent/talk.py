"""What an agent says to its store and asks of it while it runs, beside the loop: a store that takes its time holds up no repair."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING

from tweed.agent import claim
from tweed.agent.site import Site
from tweed.errors import KernelError, StoreError, UsageError
from tweed.model import Lease
from tweed.plan.backend import check_supported
from tweed.plan.screen import Problem
from tweed.wire.flannel import parse_network

if TYPE_CHECKING:
    from tweed.agent.agent import Agent

SHOWN = 1000  # characters of a configuration


class StartOver(Exception):
    """Something that was decided at the start no longer holds: decide again. The data plane stays meanwhile. Says what."""


class Talk:
    """One conversation at a time, in `task`; what comes meanwhile is for the next."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.task: asyncio.Task[bool] | None = None
        self.waiting_since: float | None = None  # while the agent joins; afterwards its membership knows
        self.untold = False  # something came while the store was being talked to
        self.look = False  # the next one is to read the configuration

    @property
    def away_since(self) -> float | None:
        """When the store stopped answering, in seconds since 1970; None while it answers."""
        membership = self.agent.membership
        return membership.down_since if membership is not None and membership.down_since is not None else self.waiting_since

    @property
    def away_why(self) -> str:
        """What the last try met, "" while the store answers."""
        if self.away_since is None:
            return ""
        membership = self.agent.membership
        return membership.down_why if membership is not None and membership.down_since is not None else self.agent.reason

    @property
    def going_on(self) -> bool:
        return self.task is not None and not self.task.done()

    def begin(self, *, look: bool) -> None:
        """Publish, and with `look` read the configuration. Raises what the last conversation ended with, should nobody have asked yet."""
        self.look |= look
        if self.going_on:
            self.untold = True
        else:
            if self.task is not None:
                self.task.result()
            look, self.look = self.look, False
            self.task = asyncio.create_task(self._talk(self.agent.lease(), look))
            self.task.add_done_callback(self._talked)

    async def _talk(self, lease: Lease, look: bool) -> bool:
        """True when there is something for another pass: to do, or to tell."""
        assert self.agent.membership is not None
        before = self.kinds_of_problems
        self.agent.membership.let_go()  # whatever the store says
        if look:
            await self.check_configuration()
        changed = False
        if await self.check_given():
            changed = await self.agent.membership.publish(lease)
            if self.agent.ready:
                await self._announce()
        return changed or self.kinds_of_problems != before

    @property
    def kinds_of_problems(self) -> set[str]:
        """Not their texts: an error that reads another way each time is none for another pass."""
        return {problem.id for problem in self.agent.problems.values()}

    def _talked(self, task: asyncio.Task[bool]) -> None:
        """Back in the loop: another pass where something changed, else only the next renewal is to be waited for."""
        if not task.cancelled() and task.exception() is None and (task.result() or self.untold):
            self.agent.look_again("published")
        self.untold = False
        self.agent.wake.set()

    async def _announce(self) -> None:
        agent = self.agent
        assert agent.store is not None
        try:
            await agent.store.announce()
            agent.problems.pop("announce", None)
        except StoreError as error:
            agent.problems["announce"] = Problem("announce", agent.owner.node, f"cannot tell that this node's network works: {error}")

    async def check_given(self) -> bool:
        """Follow what the store prescribes to this node. False while it says nothing (its Node is gone): what was given last stays in force, unpublished."""
        agent = self.agent
        assert agent.store is not None
        try:
            given = await agent.store.given(agent.owner.node)
            agent.problems.pop("given", None)
        except StoreError as error:
            agent.problems["given"] = Problem("given", agent.owner.node, str(error))
            return False
        if given is not None and agent.given is not None and not given.like(agent.given):
            raise StartOver("the store gives this node something else now")
        return True

    async def check_configuration(self) -> None:
        """Start over with a new network configuration; the old one stays in force while that is wrong."""
        agent = self.agent
        assert agent.store is not None and agent.membership is not None
        if agent.membership.down_since is not None:
            return
        try:
            text = await agent.store.config()
        except StoreError:
            return  # the watch says so already
        if text is None:
            agent.problems["config"] = Problem("config-gone", agent.settings.store, gone(agent))
            return
        if text == agent.network_text:
            agent.problems.pop("config", None)
            return
        try:
            network = parse_network(text)
            check_supported(network)
            claim.check_backend_reading(network, agent.membership.records.values())
            Site(agent.settings, network, agent.netlink).check_overlap(agent.attachments.ledger.bridges)
        except UsageError as error:
            agent.problems["config"] = Problem("config", agent.settings.store, f"the new configuration is wrong, the old one stays in force: {error}")
            return
        except KernelError:
            return  # the next tick asks again
        agent.problems.pop("config", None)
        if network == agent.network:
            agent.network_text = text
            return
        raise StartOver("the network configuration changed")


def gone(agent: Agent) -> str:
    """What an operator should know and do where the configuration that this node works with is no longer in the store."""
    if agent.settings.store == "kube":
        how = f"mount the ConfigMap at {agent.settings.net_config_path} again"
    else:
        text = " ".join(agent.network_text.split())
        how = f"tweed net init {shlex.quote(text) if len(text) <= SHOWN else '--file FILE'}"
    return f"the network configuration is gone; the last one stays in force here, and a node that starts now waits for one: {how}"
