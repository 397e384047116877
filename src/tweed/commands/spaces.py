"""Whose tables are meant: this node with its containers, or every node and pod of a lab; and their leases."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import msgspec

from tweed.addr import format_address, format_mac
from tweed.commands.common import agent_socket, own_netns, store_settings, with_store
from tweed.config import Settings, load
from tweed.errors import KernelError, TweedError, UsageError
from tweed.kernel import links
from tweed.kernel.netlink import Netlink
from tweed.kernel.netns import DIRECTORY, inode, open_netns, run_in
from tweed.lab import agents, registry
from tweed.model import LeaseRecord
from tweed.stores import LeaseStore
from tweed.trace import snapshot as s
from tweed.trace.dump import node
from tweed.trace.result import Walk

DOCKER = Path("/run/docker/netns")

Spaces = Mapping[str, int | None]  # by the node's or container's name a namespace's file descriptor; None is our own


def lab_of(name: str | None) -> registry.Lab | None:
    """The lab that is meant: that of the name, else, outside of all of a lab's namespaces, the one that is up. None: this node."""
    if name is not None:
        return registry.load(name)
    if registry.node_for_netns(own_netns()) is not None:
        return None
    names = registry.names()
    if len(names) > 1:
        raise UsageError(f"several labs are up ({', '.join(names)}): say which with --lab")
    return registry.load(names[0]) if names else None


@contextlib.contextmanager
def opened(lab: registry.Lab | None) -> Iterator[Spaces]:
    """The namespaces of a lab, or of this node."""
    with contextlib.ExitStack() as stack:
        spaces: dict[str, int | None] = {}
        closed: list[str] = []
        for name, path in (lab_paths(lab) if lab is not None else node_paths()).items():
            spaces[name] = None if path is None else open_netns(path)
            if (descriptor := spaces[name]) is None:
                continue
            stack.callback(os.close, descriptor)
            try:
                run_in(descriptor, lambda: None)
            except KernelError:  # CAP_SYS_ADMIN opens others' namespaces
                closed.append(name)
                del spaces[name]
        if closed:
            click.echo(f"tweed: without {', '.join(closed)}: to enter their network namespaces takes CAP_SYS_ADMIN", err=True)
        yield spaces


def lab_paths(lab: registry.Lab) -> dict[str, str]:
    return {name: netns for each in lab.nodes for name, netns in ((each.name, each.netns), *((f"{each.name}/{pod.name}", pod.netns) for pod in each.pods))}


def node_paths() -> dict[str, str | None]:
    """This node's own namespace, and those that its veths lead to."""
    found = registry.node_for_netns(own_netns())
    if found is not None:
        _, here = found
        return {here.name: None} | {f"{here.name}/{pod.name}": pod.netns for pod in here.pods}
    name = agent_name()
    paths: dict[str, str | None] = {name: None}
    with Netlink() as nl:
        ids = {link.lower_netns for link in links.links(nl, "veth") if link.lower_netns is not None}
        candidates = [path for directory in (Path(DIRECTORY), DOCKER) if directory.is_dir() for path in sorted(directory.iterdir())]
        for path in candidates if ids else ():
            with contextlib.suppress(TweedError):  # one that has just gone, or a stale file
                descriptor = open_netns(str(path))
                try:
                    if links.nsid(nl, descriptor) in ids and inode(descriptor) != own_netns():
                        paths[f"{name}/{path.name}"] = str(path)
                finally:
                    os.close(descriptor)
    return paths


def entered(walk: Walk, lab: registry.Lab | None) -> Walk:
    """The walk with the namespaces that its commands for containers are to be typed in."""

    def placed(one: Walk) -> Walk:
        found = one.first_divergence
        if found is not None:
            fixes = tuple(msgspec.structs.replace(fix, netns=paths.get(fix.node, "")) for fix in found.fix)
            found = msgspec.structs.replace(found, fix=fixes)
        others = (None if each is None else placed(each) for each in (one.reply, one.whole))
        return msgspec.structs.replace(one, first_divergence=found, **dict(zip(("reply", "whole"), others, strict=True)))

    if walk.first_divergence is None or not any("/" in fix.node for fix in walk.first_divergence.fix):
        return walk
    places = lab_paths(lab) if lab is not None else node_paths()
    paths = {name: path if "/" in path else f"{DIRECTORY}/{path}" for name, path in places.items() if path is not None and "/" in name}
    return placed(walk)


def agent_name() -> str:
    from tweed.agent.client import AgentError, call

    with contextlib.suppress(AgentError):
        return str(call(agent_socket(None), "GET", "/v1/status", timeout_s=2.0)["node"])
    return socket.gethostname()


def take(lab: registry.Lab | None, spaces: Spaces) -> s.Snapshot:
    """The tables of all namespaces, now, with the leases."""
    nodes = [node(name, descriptor) for name, descriptor in spaces.items()]
    leases, config = intent(lab)
    return s.Snapshot(nodes=tuple(nodes), leases=leases, config=config)


Intent = tuple[tuple[s.LeaseRow, ...], str | None]
NO_INTENT: Intent = ((), None)


def intent(lab: registry.Lab | None) -> Intent:
    """Leases and network configuration, from the store. None where no store answers, which is said."""
    try:
        if lab is None:
            settings = store_settings(())
            if settings.store_file is not None and not settings.store_file.exists():
                return NO_INTENT  # no node of ours: whoever runs this network keeps its leases elsewhere
            return stored(settings)
        settings = load(agents.flags(lab, lab.nodes[0]), {}, lab.nodes[0].name)[0]
        # A store that is a server in the lab's own network answers only there.
        descriptor = open_netns(lab.nodes[0].netns)
        try:
            return run_in(descriptor, lambda: stored(settings))
        finally:
            os.close(descriptor)
    except TweedError as error:
        click.echo(f"tweed: without leases, so that nothing is held against them: {error}", err=True)
        return NO_INTENT


def stored(settings: Settings) -> Intent:
    async def both(store: LeaseStore) -> Intent:
        records = (await store.snapshot()).records
        return tuple(row(record) for record in sorted(records, key=lambda record: record.created)), await store.config()

    return with_store(settings, both)


def row(record: LeaseRecord) -> s.LeaseRow:
    """As `tweed lease list` has it."""
    words = [record.key, f"node {record.owner.node}" if record.owner is not None else ""]
    for endpoint in record.lease.endpoints:
        words += [f"host {format_address(endpoint.public_ip)}" if endpoint.public_ip else "", f"vtep {format_mac(endpoint.mac)}" if endpoint.mac else ""]
    text = " ".join(filter(None, words))
    return s.LeaseRow(source="lease", text=text, lease=record.lease, node=record.owner.node if record.owner is not None else None)
