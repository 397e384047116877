"""A node that goes back to flanneld: what a starting flanneld would miss is put there first, then ours goes."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tweed.agent import files
from tweed.agent.files import Notes
from tweed.agent.firewall import undo_rules
from tweed.config import Settings
from tweed.errors import TweedError
from tweed.kernel import iptables, nft, tables
from tweed.kernel.netlink import Netlink
from tweed.model import METRIC_IPV6_DEFAULT, PROTOCOL, PROTOCOL_BOOT, Change, Route
from tweed.plan import flannel_rules
from tweed.plan.flannel_rules import Traffic
from tweed.wire.flannel import Network


def hand_over(settings: Settings, notes: Notes, netlink: Netlink, network: Network) -> Iterator[str]:
    """`tweed cleanup --to-flannel`, once no agent runs: flanneld's routes and rules first, then ours go. Yields what was done.

    Device, MAC, address, neighbours and fdb are flanneld's own already, and so is subnet.env. Forwarding stays on: flanneld needs it and never turns it on.
    """
    yield from _give_routes(netlink, network)
    with nft.Nft() as handle:
        yield from _give_rules(settings, notes, handle, network)
        yield from undo_rules(notes, handle)


def _give_routes(netlink: Netlink, network: Network) -> Iterator[str]:
    rows = [row for n in network.networks for row in tables.routes(netlink, n.family, inside=n)]
    ours = [row for row in rows if row.protocol == PROTOCOL]
    theirs = {(row.dst, row.metric) for row in rows if row.protocol != PROTOCOL}
    flannels = [_flannels(row) for row in ours]
    puts = [Change("replace", row) for row in flannels if (row.dst, row.metric) not in theirs]
    # Of IPv6 both have one metric, so the put has replaced ours in one step.
    replaced = {(change.row.dst, change.row.metric) for change in puts if isinstance(change.row, Route)}
    deletes = [Change("delete", row) for row in ours if (row.dst, row.metric) not in replaced]
    for changes in (puts, deletes):
        for failure in tables.apply(netlink, tuple(changes)):
            raise TweedError(f"{failure}; nothing more was changed: mend that, then run tweed cleanup --to-flannel again")
    if ours:
        yield f"gave flanneld its {len(puts)} routes without a metric, deleted our {len(ours)} with protocol {PROTOCOL}"


def _flannels(row: Route) -> Route:
    """The same route as flanneld writes it."""
    return msgspec.structs.replace(row, protocol=PROTOCOL_BOOT, metric=0 if row.dst.family == 4 else METRIC_IPV6_DEFAULT, src=None)


def _give_rules(settings: Settings, notes: Notes, handle: nft.Nft, network: Network) -> Iterator[str]:
    """flanneld's rules where ours stand: new connections of pods must not wait for its start."""
    masquerade, forward = bool(notes.noted.nft_vnis), bool(notes.noted.iptables_vnis)
    subnets = {subnet.family: subnet for subnet in files.previous_subnet(settings.subnet_file).subnets}
    traffic = [Traffic(n, subnets[n.family], not settings.ip_masq_fully_random_disable) for n in network.networks if n.family in subnets]
    if not (masquerade or forward) or not traffic:
        return
    if network.enable_nftables:
        handle.apply(flannel_rules.nft_tables(traffic, masquerade=masquerade, forward=forward))
        yield "gave flanneld its nft tables"
        return
    edits = list(iptables.flannels_rules(handle))
    for each in traffic:
        program = iptables.usual(each.family)
        edits += flannel_rules.masquerade(program, each) if masquerade else ()
        edits += flannel_rules.forward(program, each.network) if forward else ()
    iptables.apply(edits)
    yield f"gave flanneld its iptables chains ({len(edits)} commands)"
