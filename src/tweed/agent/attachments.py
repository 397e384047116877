"""The containers of this node: attach, detach, and the ledger that remembers them.

The ledger is one JSON file, replaced atomically. An attachment is written down as pending before its first step and as done after its
last, so that whatever kill -9 leaves half-made is found and undone by `reconcile` at the next start. An address is free as soon as no
entry has it, and what was freed is handed out again last.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address, parse_address
from tweed.agent.files import write_atomic
from tweed.agent.log import log
from tweed.errors import KernelError, TweedError
from tweed.kernel import links, sysctl, tables
from tweed.kernel.netlink import Netlink
from tweed.kernel.netns import open_netns, run_in
from tweed.model import Change, InterfaceAddress, Neighbour
from tweed.plan import attach as plan
from tweed.plan.attach import Action, Attachment, AttachRequest, Facts, NodeNetwork, Step

__all__ = ["AttachRequest", "Attachment", "Attachments", "NodeNetwork"]


class Bridge(msgspec.Struct, frozen=True):
    """What we did to a bridge of the node. `index` None: it is about to be made.

    `addresses`: those that we gave it. `mtu`, `up`: as they were before us, None if we made it.
    """

    index: int | None = None
    addresses: tuple[str, ...] = ()
    mtu: int | None = None
    up: bool | None = None

    @property
    def ours(self) -> bool:
        return self.up is None


class Ledger(msgspec.Struct, frozen=True):
    """The file. `last`: the addresses handed out last. Of another boot only these are worth anything."""

    boot_id: str
    last: tuple[str, ...] = ()
    bridges: dict[str, Bridge] = {}
    attachments: tuple[dict[str, Any], ...] = ()


class Attachments:
    """Attach and detach containers on the node in whose namespace `nl` and the caller are. One call at a time."""

    def __init__(self, path: Path, nl: Netlink) -> None:
        """Reads the ledger at `path`, if there is one. Raises TweedError when it cannot be read: the addresses in it are in use."""
        self.path = path
        self.nl = nl
        self.boot_id = sysctl.boot_id()
        self.last: tuple[bytes, ...] = ()
        self.bridges: dict[str, Bridge] = {}
        self.entries: dict[tuple[str, str], Attachment] = {}
        self._load()

    def list(self) -> tuple[Attachment, ...]:
        """All containers that are attached, the oldest first."""
        return tuple(entry for entry in self.entries.values() if not entry.pending)

    def attach(self, request: AttachRequest, network: NodeNetwork) -> Attachment:
        """Attach a container. When this returns, it can be reached; when it raises (TweedError), nothing of it is left."""
        self._drop_stale(request.container_id, request.ifname)
        descriptor = open_netns(request.netns)
        try:
            with Netlink(netns=descriptor) as inside:
                facts = self._facts(network.bridge, inside)
                pending = plan.place(request, network, self.entries.values(), self.last, time.time())
                steps = plan.steps(pending, network, facts)
                return self._carry_out(pending, steps, self._claim(network, facts), inside, descriptor)
        finally:
            os.close(descriptor)

    def detach(self, container_id: str, ifname: str) -> None:
        """Take a container off the bridge and free its addresses. Also with its namespace, its device or our ledger gone."""
        plan.check_identity(container_id, ifname)
        self._delete_veth(plan.host_name(container_id, ifname))
        if entry := self.entries.pop((container_id, ifname), None):
            self._forget_neighbours(entry)
            self._save()

    def reconcile(self) -> None:
        """Make ledger and kernel agree, after a start: undo what was cut short, free the addresses of what no longer exists."""
        present = {link.name for link in links.links(self.nl, "veth")}
        for key, entry in [*self.entries.items()]:
            if not entry.pending and entry.host_name in present:
                continue
            log.info(
                "freeing %s of container %s: %s", entry.addresses_text, entry.container_id, "its attachment was cut short" if entry.pending else "it is gone"
            )
            self._delete_veth(entry.host_name)
            self._forget_neighbours(entry)
            del self.entries[key]
        for name, bridge in [*self.bridges.items()]:
            if bridge.index is None:
                links.delete_link(self.nl, name)
            elif (link := links.link(self.nl, name)) is not None and link.index == bridge.index:
                continue
            del self.bridges[name]
        self._save()

    def remove_all(self) -> None:
        """Detach all containers and take back what was done to the node's bridges: ours are deleted, others become as they were."""
        for container_id, ifname in [*self.entries]:
            self.detach(container_id, ifname)
        for name, bridge in self.bridges.items():
            link = links.link(self.nl, name)
            if link is None or bridge.index not in (None, link.index):
                continue
            if bridge.ours:
                links.delete_link(self.nl, name)
            else:
                self._change(*(Change("delete", InterfaceAddress(name, Prefix.parse(text))) for text in bridge.addresses))
                links.set_link(self.nl, name, mtu=bridge.mtu, up=bridge.up)
        self.bridges = {}
        self.path.unlink(missing_ok=True)

    # ---- attaching -----------------------------------------------------------------------------------------------

    def _carry_out(self, pending: Attachment, steps: tuple[Step, ...], bridge: Bridge, inside: Netlink, netns: int) -> Attachment:
        """The dull loop: each step in turn. When one fails, those before it are undone in reverse and the ledger is as before."""
        key, name = (pending.container_id, pending.ifname), pending.bridge
        attachment = msgspec.structs.replace(pending, pending=False)
        before = self.entries, self.bridges, self.last
        done: list[Step] = []
        try:
            self.entries, self.bridges = self.entries | {key: pending}, self.bridges | {name: bridge}
            self._save()
            for step in steps:
                self._do(step.action, inside if step.inside else None, netns)
                done.append(step)
            if bridge.index is None:
                self.bridges[name] = msgspec.structs.replace(bridge, index=links.index_of(self.nl, name, f"ip link show {name}"))
            self.entries[key] = attachment
            self.last = (*(a for a in self.last if not any(p.contains(a) for p in attachment.addresses)), *(p.address for p in attachment.addresses))
            self._save()
        except BaseException as error:
            self.entries[key] = pending
            for step in reversed(done):
                try:
                    if step.undo is not None:
                        self._do(step.undo, inside if step.inside else None, netns)
                except KernelError as second:  # the entry stays, pending: a detach or the next start tries again
                    raise TweedError(f"{error}; and undoing it failed: {second}") from error
            self.entries, self.bridges, self.last = before
            self._save()
            raise
        return attachment

    def _do(self, action: Action, inside: Netlink | None, netns: int) -> None:
        """One step's action, in the container's namespace when `inside` is given. Raises KernelError."""
        nl = inside or self.nl
        match action:
            case plan.CreateBridge(name, mac, mtu):
                links.create_bridge(nl, name, mac=mac, mtu=mtu)
            case plan.CreateVeth(name, mac, peer, peer_mac, mtu):
                links.create_veth(nl, name, peer, mtu=mtu, mac=mac, peer_mac=peer_mac, peer_netns=netns)
            case plan.SetLink(name, up, mtu, master, no_link_local):
                addrgenmode = None if no_link_local is None else "none" if no_link_local else "eui64"
                links.set_link(nl, name, up=up, mtu=mtu, master=master, addrgenmode=addrgenmode)
            case plan.Hairpin(port):
                links.set_link(nl, port, hairpin=True)
            case plan.DeleteLink(name):
                links.delete_link(nl, name)
            case plan.Sysctl(key, value):
                if inside is None:
                    sysctl.write(key, value)
                else:
                    run_in(netns, lambda: sysctl.write(key, value))
            case plan.Announce(device, mac, addresses):
                announce(device, [plan.announcement(mac, address) for address in addresses], netns)
            case Change():
                self._change(action, nl=nl)

    def _change(self, *changes: Change, nl: Netlink | None = None) -> None:
        for failure in tables.apply(nl or self.nl, changes):
            raise KernelError(str(failure.change), failure.errno, failure.text)

    def _facts(self, bridge: str, inside: Netlink) -> Facts:
        loopback = links.link(inside, "lo")
        return Facts(
            bridge=links.link(self.nl, bridge),
            bridge_addresses=frozenset(row.address for row in tables.addresses(self.nl, bridge)),
            loopback_up=loopback is not None and loopback.up,
            ipv6=sysctl.has_ipv6(),
        )

    def _claim(self, network: NodeNetwork, facts: Facts) -> Bridge:
        """What the ledger is to say of the bridge, before anything is done to it."""
        if facts.bridge is None:
            return Bridge()
        known = self.bridges.get(network.bridge)
        if known is None or known.index != facts.bridge.index:
            known = Bridge(facts.bridge.index, mtu=facts.bridge.mtu, up=facts.bridge.up)
        new = tuple(str(row.address) for row in plan.missing_addresses(network, facts))
        return msgspec.structs.replace(known, addresses=known.addresses + new)

    def _drop_stale(self, container_id: str, ifname: str) -> None:
        """Free an entry that stands for nothing: cut short, or its namespace was removed without a detach."""
        entry = self.entries.get((container_id, ifname))
        if entry is not None and (entry.pending or links.link(self.nl, entry.host_name) is None):
            self.detach(container_id, ifname)

    # ---- detaching -----------------------------------------------------------------------------------------------

    def _delete_veth(self, name: str) -> None:
        """A device of our name that is no veth is somebody else's."""
        link = links.link(self.nl, name)
        if link is not None and link.kind == "veth":
            links.delete_link(self.nl, name)

    def _forget_neighbours(self, entry: Attachment) -> None:
        """The node's own neighbour rows, which outlive the veth. (The bridge's fdb rows go with the port.)"""
        if links.link(self.nl, entry.bridge) is not None:
            self._change(*(Change("delete", Neighbour(prefix.address, entry.bridge, None)) for prefix in entry.addresses))

    # ---- the ledger ----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        try:
            ledger = msgspec.json.decode(self.path.read_bytes(), type=Ledger)
            self.last = tuple(parse_address(text) for text in ledger.last)
            if ledger.boot_id == self.boot_id:
                self.bridges = ledger.bridges
                self.entries = {(a.container_id, a.ifname): a for a in map(plan.from_json, ledger.attachments)}
        except FileNotFoundError:
            return
        except OSError as error:
            raise TweedError(f"{self.path}: {error.strerror}") from None
        except ValueError as error:
            raise TweedError(f"{self.path} cannot be read: {error}; move it away, and restart the containers of this node") from None

    def _save(self) -> None:
        entries = tuple(plan.as_json(entry) for entry in self.entries.values())
        ledger = Ledger(self.boot_id, tuple(format_address(a) for a in self.last), self.bridges, entries)
        try:
            write_atomic(self.path, msgspec.json.format(msgspec.json.encode(ledger), indent=1).decode(), 0o600)
        except OSError as error:
            raise TweedError(f"{self.path} cannot be written: {error.strerror}") from None


def announce(device: str, frames: Sequence[bytes], netns: int) -> None:
    """Send Ethernet frames from a device of that namespace. Raises KernelError."""
    packet = run_in(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0))
    try:
        packet.bind((device, 0))
        for frame in frames:
            packet.send(frame)
    except OSError as error:
        raise KernelError(f"announce the addresses of {device}", error.errno or 0, error.strerror or str(error)) from None
    finally:
        # Closing a packet socket waits for an RCU grace period (packet_release), 10 ms and more: nobody has to wait with it.
        threading.Thread(target=packet.close, name="close-packet-socket").start()
