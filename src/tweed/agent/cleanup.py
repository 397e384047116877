"""Undo everything that tweed did on this node, and nothing else: from the notes that the agents wrote before each deed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tweed.addr import Prefix
from tweed.agent import files, host_local
from tweed.agent.attachments import Attachments
from tweed.agent.client import AgentError, call
from tweed.agent.firewall import undo_firewall
from tweed.agent.handover import hand_over
from tweed.agent.main import lock
from tweed.agent.spool import Spool
from tweed.config import Settings
from tweed.errors import StoreError, TweedError
from tweed.kernel import links, sysctl, tables
from tweed.kernel.netlink import Netlink
from tweed.model import PROTOCOL, Change, Endpoint, Lease, LeaseRecord
from tweed.stores import LeaseStore, named, open_store
from tweed.wire.flannel import Network, parse_network

STOP_S = 10.0


def clean(settings: Settings, *, keep_lease: bool) -> Iterator[str]:
    """Do it, yielding a line per thing that was undone. Raises TweedError when an agent still runs or the kernel refuses."""
    yield from _end_agent(settings)
    noted_before = (settings.state_dir / "notes.json").exists()
    if not noted_before and not settings.run_dir.exists():
        return
    with lock(settings), Netlink() as netlink:
        notes = files.Notes(settings.state_dir / "notes.json")
        attachments = Attachments(settings.state_dir / "attachments.json", netlink)
        attached = len(attachments.list())
        left = attachments.remove_all()
        if attached:
            yield f"detached {attached} containers"
        for name in left:
            yield f"left {name}: devices of others are on it"
        yield from undo_firewall(notes)
        yield from _routes(netlink, [Prefix.parse(text) for text in notes.noted.networks])
        for name in notes.noted.devices:
            link = links.link(netlink, name)
            if link is not None and link.kind in files.OUR_KINDS:
                links.delete_link(netlink, name)
                yield f"ip link del {name}"
        if not keep_lease:
            try:
                if line := _release(settings):
                    yield line
            except StoreError as error:
                raise TweedError(f"the lease cannot be released: {error}; or leave it with tweed cleanup --keep-lease") from None
        for text in notes.noted.files:
            if Path(text).is_file():
                Path(text).unlink()
                yield f"removed {text}"
        _forget(settings, notes)
    _leave(settings)


def give_back(settings: Settings) -> Iterator[str]:
    """Leave the node to a flanneld that is about to start: with its device, addresses, rows, rules and lease, and nothing of tweed's beside them.

    Yields a line per thing that was done. Raises TweedError when an agent still runs, the store does not answer or the kernel refuses.
    """
    if not (settings.state_dir / "notes.json").exists():
        return
    network = _network(settings)
    yield from _end_agent(settings)
    with lock(settings), Netlink() as netlink:
        notes = files.Notes(settings.state_dir / "notes.json")
        attached = Attachments(settings.state_dir / "attachments.json", netlink).list()
        yield from hand_over(settings, notes, netlink, network)
        for name in notes.noted.devices:
            yield f"left {name} as it is"
        if attached:
            count = host_local.hand_over(settings.host_local, attached)
            yield f"left {len(attached)} containers attached; their {count} addresses are in {settings.host_local}, so that host-local gives them to nobody"
        _forget(settings, notes)
    _leave(settings)


def _network(settings: Settings) -> Network:
    async def use(store: LeaseStore) -> str | None:
        try:
            return await store.config()
        finally:
            await store.close()

    there = settings.store_file is None or settings.store_file.exists()
    text = (asyncio.run(use(open_store(settings))) if there else None) or files.read_text(settings.net_config_path)
    if text is None:
        raise TweedError(f"no network configuration in {settings.store}, nor in {settings.net_config_path}: name the store that the agent used with --store")
    return parse_network(text)


def _forget(settings: Settings, notes: files.Notes) -> None:
    """Our files, while the lock is held."""
    sockets = (settings.socket, settings.cni_socket, settings.run_dir / "udp.sock")  # of processes that were killed
    ledger = settings.state_dir / "attachments.json"
    for path in (notes.path, ledger, files.spare(ledger), *sockets):
        path.unlink(missing_ok=True)
    Spool(settings.run_dir).remove()


def _leave(settings: Settings) -> None:
    (settings.run_dir / "agent.lock").unlink(missing_ok=True)
    for directory in (settings.run_dir, settings.state_dir):
        with contextlib.suppress(OSError):  # somebody else's files are in it
            directory.rmdir()


def _end_agent(settings: Settings) -> Iterator[str]:
    try:
        pid = call(settings.socket, "GET", "/v1/status")["pid"]
        call(settings.socket, "POST", "/v1/stop")
    except AgentError:
        return
    for _ in range(int(STOP_S * 20)):
        with contextlib.suppress(TweedError):  # its socket goes first, it may still be busy ending
            lock(settings).close()
            yield f"ended the agent (pid {pid})"
            return
        time.sleep(0.05)
    raise TweedError(f"the agent (pid {pid}) did not end within {STOP_S:.0f} s: stop it, then run tweed cleanup again")


def _routes(netlink: Netlink, networks: list[Prefix]) -> Iterator[str]:
    """Routes with our protocol number inside our networks, on whatever device."""
    changes = [
        Change("delete", route) for network in networks for route in tables.routes(netlink, network.family, inside=network) if route.protocol == PROTOCOL
    ]
    for failure in tables.apply(netlink, tuple(changes)):
        raise TweedError(str(failure))
    if changes:
        yield f"deleted {len(changes)} routes with protocol {PROTOCOL}"


def _release(settings: Settings) -> str | None:
    """Give the node's lease back: the one with its name and the subnet of its subnet.env, or of this boot where that file is gone.

    A reservation stays one, for whoever has the address.
    """
    previous = files.previous_subnet(settings.subnet_file)
    if settings.store_file is not None and not settings.store_file.exists():
        return None
    boot_id = sysctl.boot_id()

    def ours(record: LeaseRecord, name: str) -> bool:
        if record.owner is None or record.owner.node != name:
            return False
        return any(e.subnet in previous.subnets for e in record.lease.endpoints) if previous.subnets else record.owner.boot_id == boot_id

    async def use(store: LeaseStore) -> str | None:
        try:
            name = (await named(settings, store)).node_name
            for record in (await store.snapshot()).records:
                if not ours(record, name):
                    continue
                await store.delete(record)
                if record.ttl_s is not None:
                    return f"released lease {record.lease}"
                v4, v6 = (e and Endpoint(e.subnet, e.public_ip) for e in (record.lease.v4, record.lease.v6))
                await store.create(Lease(v4, v6, record.lease.backend), None, None)
                return f"released lease {record.lease}, its reservation stays"
            return None
        finally:
            await store.close()

    return asyncio.run(use(open_store(settings)))
