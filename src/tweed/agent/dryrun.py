"""`tweed agent --dry-run`: the commands that a start would run now, changing nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import msgspec

from tweed.agent import claim, files
from tweed.agent.dataplane import Dataplane
from tweed.agent.firewall import rehearse, wish
from tweed.agent.site import Site
from tweed.config import Settings
from tweed.errors import UsageError
from tweed.kernel import sysctl
from tweed.kernel.netlink import Netlink
from tweed.model import LeaseRecord, Owner
from tweed.plan.backend import backend, check_supported
from tweed.plan.screen import screen
from tweed.stores import Given, Snapshot, named, open_store
from tweed.wire.flannel import format_subnet_env, parse_network
from tweed.wire.lease import format_lease


async def _stored(settings: Settings) -> tuple[Settings, str | None, Snapshot, Given | None]:
    """The settings with the node's name, the configuration, the leases, and what the store gives; opening one that does not exist yet would make it."""
    if settings.store_file is not None and not settings.store_file.exists():
        return settings, None, Snapshot(0, ()), None
    store = open_store(settings)
    try:
        settings = await named(settings, store)
        snapshot = await store.snapshot()
        # When those end that nobody signed tells whether their holders live.
        ends = {r.key: r for r in await store.timed([r for r in snapshot.records if r.owner is None])}
        snapshot = msgspec.structs.replace(snapshot, records=tuple(ends.get(r.key, r) for r in snapshot.records))
        return settings, await store.config(), snapshot, await store.given(settings.node_name)
    finally:
        await store.close()


def commands(settings: Settings) -> Iterator[str]:
    """Comments for what is no command (`#`), commands for the rest. Raises TweedError for what a start would wait for."""
    settings, text, snapshot, given = asyncio.run(_stored(settings))
    if text is None:
        text = files.read_text(settings.net_config_path)
        if text is None:
            raise UsageError(f"no network configuration in {settings.store}, and no file {settings.net_config_path}: write one with tweed net init")
        yield f"# would seed {settings.store} from {settings.net_config_path}"
    network = parse_network(text)
    check_supported(network)
    netlink = Netlink()
    site = Site(settings, network, netlink, given)
    underlay = site.underlay()
    yield f"# underlay {underlay}, because of {underlay.why}"
    yield from (f"# underlay is not {other}" for other in underlay.instead_of)
    if underlay.doubt:
        yield f"# problem: shared-address: {underlay.device}: {underlay.doubt}"
    site.check_overlap()
    records = {record.key: record for record in snapshot.records}
    claim.check_backend_reading(network, records.values())
    owner = Owner(settings.node_name, sysctl.boot_id())
    decision = claim.decide(records, [junk.key for junk in snapshot.junk], site.request(owner, underlay), random.Random(0).randrange)
    for rival in decision.rivals:
        yield f"# conflict: {rival}"
    known = "keep" if decision.record is not None else "claim" if given is not None else "claim (one of the free ones; a start may pick another)"
    yield f"# would {known} lease {decision.lease.key} = {format_lease(decision.lease)}"
    own = LeaseRecord(decision.lease, owner, 0, 0)
    screened = screen(records.values(), snapshot.junk, own, network.lease_backend, network.networks, network.lengths)
    for problem in screened.problems:
        yield f"# problem: {problem}"
    dataplane = Dataplane(netlink)
    dataplane.backend = backend(network, decision.lease, underlay)
    dataplane.networks = network.networks
    dataplane.peers = screened.peers
    yield from dataplane.plan()
    yield from rehearse(wish(settings, network, decision.lease, dataplane.backend), netlink)
    yield f"# would write {settings.subnet_file}:"
    for line in format_subnet_env(network, decision.lease, dataplane.backend.mtu, settings.ip_masq).splitlines():
        yield f"#   {line}"
