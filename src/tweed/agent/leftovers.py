"""What a flanneld left on this node: told by `tweed status`, removed by `tweed cleanup --flannel`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from tweed.agent import files
from tweed.config import Settings
from tweed.errors import TweedError
from tweed.kernel import iptables, nft, processes, tables
from tweed.kernel.netlink import Netlink
from tweed.model import PROTOCOL, Change, Changes, Route
from tweed.plan import flannel_rules
from tweed.plan.forward_rules import Edit
from tweed.plan.screen import Problem


class Leftovers(msgspec.Struct, frozen=True):
    """What a flanneld left in the firewall and beside the VTEP devices. Prints as the commands that remove it."""

    edits: tuple[Edit, ...] = ()
    tables: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()

    def __iter__(self) -> Iterator[str]:
        yield from map(str, self.edits)
        yield from (f"nft {command}" for command in self.tables)
        yield from map(str, self.route_changes)

    @property
    def route_changes(self) -> Changes:
        """Of IPv6 there is one metric for both, so that the agent's own route waits until flanneld's is gone: it becomes the agent's, to keep or to remove."""
        return tuple(_removal(route) for route in self.routes)


def _removal(route: Route) -> Change:
    if route.dst.family == 6 and route.device:
        return Change("replace", msgspec.structs.replace(route, protocol=PROTOCOL))
    return Change("delete", route)


def firewall_leftovers(handle: nft.Nft) -> Leftovers:
    """Raises KernelError."""
    return Leftovers(iptables.flannels_rules(handle), tuple(flannel_rules.own_tables(handle.objects("list tables"))))


def remove_leftovers(settings: Settings) -> Iterator[str]:
    """`tweed cleanup --flannel`: beside a running agent, whose own rules stand by then. Yields the commands. Raises TweedError."""
    if pids := processes.in_this_namespace("flanneld"):
        raise TweedError(f"flanneld (pid {pids[0]}) still runs and would put its rules back: stop it first")
    with Netlink() as netlink, nft.Nft() as handle:
        found = msgspec.structs.replace(firewall_leftovers(handle), routes=_stray_routes(settings, netlink))
        iptables.apply(found.edits)
        if found.tables:
            handle.apply("\n".join(found.tables))
        for failure in tables.apply(netlink, found.route_changes):
            raise TweedError(str(failure))
    yield from found


def _stray_routes(settings: Settings, netlink: Netlink) -> tuple[Route, ...]:
    """None while no agent has put its own beside them: they may be all that leads to a peer."""
    env = files.previous_subnet(settings.subnet_file)
    lengths = {network: subnet.length for network, subnet in ((env.network, env.subnet), (env.network6, env.subnet6)) if network and subnet}
    rows = [row for network in lengths for row in tables.routes(netlink, network.family, inside=network)]
    if not any(row.protocol == PROTOCOL for row in rows):
        return ()
    return tuple(flannel_rules.stray_routes(rows, lengths, env.subnets))


def as_problem(found: Leftovers) -> Iterable[Problem]:
    commands = list(found)
    if commands:
        what = f"{len(found.edits)} iptables rules and chains, {len(found.tables)} nft tables, {len(found.routes)} routes"
        text = f"a flanneld left {what} here (such as: {commands[0]}); remove them with tweed cleanup --flannel"
        yield Problem("flannel-leftovers", "this node", text)
