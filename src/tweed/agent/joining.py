"""How an agent comes to hold a lease and a data plane: one step after the other, each tried until it succeeds."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from tweed.addr import Prefix
from tweed.agent import claim, files
from tweed.agent.dataplane import Report
from tweed.agent.log import log
from tweed.agent.macwatch import MacWatch
from tweed.agent.membership import Backoff, Membership
from tweed.agent.site import Site
from tweed.errors import StoreError, StoreUnavailable, TweedError, UsageError
from tweed.model import Owner
from tweed.plan.backend import check_supported
from tweed.plan.screen import Screening
from tweed.plan.underlay import Underlay
from tweed.stores import LeaseStore, named, open_store
from tweed.wire.flannel import Network, device_name, parse_network

if TYPE_CHECKING:
    from tweed.agent.agent import Agent

T = TypeVar("T")


async def join(agent: Agent) -> None:
    """With the network configuration that there is now, until the loop can begin. Raises UsageError, StartOver."""
    agent.complete, agent.report = False, Report()
    if agent.store is None:
        agent.store = await insist(agent, lambda: _open_store(agent))
    store = agent.store
    network, text = await insist(agent, lambda: _configuration(agent, store))
    agent.network, agent.network_text = network, text
    agent.given = await insist(agent, lambda: store.given(agent.owner.node))
    agent.site = site = Site(agent.settings, network, agent.netlink, agent.given)
    agent.screening = Screening(network.lease_backend, network.networks, network.lengths)
    agent.changed = None
    agent.macs = MacWatch()  # a MAC that follows from another subnet is nobody's interference
    agent.problems.pop("mac-rewritten", None)
    agent.membership = membership = Membership(
        store, agent.owner, agent.settings.renew_margin_s, agent.on_leases, agent.on_configuration, given=agent.given is not None
    )
    agent.underlay = underlay = await insist(agent, lambda: _choose_underlay(agent, site))
    site.check_overlap(agent.attachments.ledger.bridges)
    await insist(agent, lambda: _be_alone(agent, site))
    await insist(agent, lambda: _acquire(agent, membership, site, underlay))
    await insist(agent, lambda: _set_up_dataplane(agent, network))


async def insist(agent: Agent, step: Callable[[], Awaitable[T]]) -> T:
    """Try a step until it succeeds; its reason stands in the status meanwhile. What can never work (UsageError) ends the agent."""
    backoff = Backoff()
    while True:
        try:
            done = await step()
            agent.talk.waiting_since = None
            return done
        except UsageError:
            raise
        except TweedError as error:
            agent.reason = str(error)
            agent.turned.set()
            if isinstance(error, StoreUnavailable):
                agent.talk.waiting_since = agent.talk.waiting_since or time.time()
            log.warning("waiting: %s", error)
            agent.leave_word()
            await backoff.pause()


async def _open_store(agent: Agent) -> LeaseStore:
    store = open_store(agent.settings)
    try:
        agent.settings = await named(agent.settings, store)
    except StoreError:
        await store.close()
        raise
    agent.owner = Owner(agent.settings.node_name, agent.owner.boot_id)
    return store


async def _configuration(agent: Agent, store: LeaseStore) -> tuple[Network, str]:
    """The stored network configuration and its text; an empty store is seeded from --net-config-path."""
    s = agent.settings
    text = await store.config()
    if text is None and (seed := files.read_text(s.net_config_path)) is not None:
        parse_network(seed)
        await store.set_config(seed, replace=False)
        text = await store.config()
    if text is None:
        how = "mount the ConfigMap there" if s.store == "kube" else "write one with tweed net init"
        raise TweedError(f"no network configuration in {s.store}, and no file {s.net_config_path}: {how}")
    network = parse_network(text)
    check_supported(network)
    return network, text


async def _choose_underlay(agent: Agent, site: Site) -> Underlay:
    await agent.talk.check_given()  # what it says of this node's address may have been mended
    underlay = site.underlay()
    log.info("underlay is %s, because of %s", underlay, underlay.why)
    for other in underlay.instead_of:
        log.info("underlay is not %s", other)
    return underlay


async def _be_alone(agent: Agent, site: Site) -> None:
    agent.exclusive.hold([device_name(site.network.vni, family) for family in site.families])


async def _acquire(agent: Agent, membership: Membership, site: Site, underlay: Underlay) -> None:
    """Hold a lease: the one that is provably ours, else a new one."""
    await agent.talk.check_configuration()  # the one that asks for what cannot be had may have been mended
    await agent.talk.check_given()
    membership.hold(await claim.acquire(membership, site.request(agent.owner, underlay)))
    log.info("lease %s is this node's", agent.lease())


async def _set_up_dataplane(agent: Agent, network: Network) -> None:
    dataplane, notes = agent.dataplane, agent.notes
    dataplane.backend = agent.backend()
    ours = [device.name for device in dataplane.backend.devices]
    # Rows of an earlier network are ours too, until the first pass has removed them.
    earlier = [Prefix.parse(text) for text in notes.noted.networks]
    dataplane.networks = tuple(dict.fromkeys([*network.networks, *earlier]))
    files.remove_stale_devices(agent.netlink, notes, keep=ours)
    notes.add("devices", ours)
    notes.add("networks", (str(n) for n in network.networks))
    notes.add("files", [str(agent.settings.subnet_file.absolute()), *(agent.forwarding.files if network.backend == "udp" else ())])
    agent.write_subnet_file()
    agent.attachments.settle([endpoint.subnet for endpoint in agent.lease().endpoints], network.networks)
    agent.spool.replay(agent.attachments)
    agent.look_again("start")
