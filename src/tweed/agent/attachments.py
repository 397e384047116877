"""The containers of this node: attach, detach, check, and make ledger and kernel agree after a start.

An address is free as soon as no entry has it; it then stays in quarantine, and what was freed is handed out again last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from tweed.addr import Prefix, format_address
from tweed.agent.host_local import Holding, holdings, in_use
from tweed.agent.ledger import Bridge, Ledger, clock_s
from tweed.agent.log import log
from tweed.errors import KernelError, TweedError
from tweed.kernel import links, sysctl, tables
from tweed.kernel.attach import do
from tweed.kernel.container import Container
from tweed.kernel.netlink import Netlink
from tweed.model import TABLE_MAIN, Change, InterfaceAddress, Link, Neighbour
from tweed.plan import attach as plan
from tweed.plan.addresses import Taken, host_name, place
from tweed.plan.attach import Facts, Step
from tweed.plan.attachment import BRIDGE, Attachment, AttachRequest, NodeNetwork
from tweed.wire.cni import check_identity


class Attachments:
    """Attach and detach containers on the node in whose namespace `nl` and the caller are. One call at a time."""

    def __init__(self, path: Path, nl: Netlink, host_local: Path | None = None) -> None:
        """Reads the ledger at `path`, if there is one. Raises TweedError when it cannot be read: the addresses in it are in use.

        `host_local`: where the plugin before us kept its addresses.
        """
        self.nl = nl
        self.ledger = Ledger(path)
        self.host_local = host_local
        self.subnets: tuple[Prefix, ...] = ()
        self.networks: tuple[Prefix, ...] = ()
        self.strangers: frozenset[bytes] = frozenset()  # addresses of containers that nobody wrote down

    def list(self) -> tuple[Attachment, ...]:
        """All containers that are attached, the oldest first."""
        return tuple(entry for entry in self.ledger.entries.values() if not entry.pending)

    def find(self, container_id: str, ifname: str) -> Attachment | None:
        entry = self.ledger.entries.get((container_id, ifname))
        return None if entry is None or entry.pending else entry

    def attach(self, request: AttachRequest, network: NodeNetwork, container: Container | None = None) -> Attachment:
        """Attach a container. When this returns, it can be reached; when it raises (TweedError), nothing of it is left.

        `container`: its namespace where somebody has opened it already; the caller closes it.
        """
        self._drop_stale(request.container_id, request.ifname)
        if container is None:
            with Container.enter(request.netns) as entered:
                return self._attach(request, network, entered)
        return self._attach(request, network, container)

    def _attach(self, request: AttachRequest, network: NodeNetwork, container: Container) -> Attachment:
        facts = self._facts(network.bridge, container)
        pending = place(request, network, self.ledger.entries.values(), self.ledger.last, time.time(), self.taken(), facts.routed)
        return self._carry_out(pending, plan.steps(pending, network, facts), self.claim(network, facts), container)

    def taken(self) -> Taken:
        """The addresses that cannot be given to anybody now."""
        others = {*self.strangers, *(holding.address for holding in self.holdings())}
        return Taken(self.ledger.entries.values(), others, self.ledger.freed, clock_s())

    def holdings(self) -> Iterator[Holding]:
        """What host-local's files say now; they go when their containers do."""
        return iter(()) if self.host_local is None else holdings(self.host_local)

    def settle(self, subnets: Collection[Prefix], networks: Collection[Prefix]) -> None:
        """After a start, with these subnets of the node's own in the cluster's networks: what was before, by us or another, fits in."""
        self.reconcile()
        self.subnets, self.networks = tuple(subnets), tuple(networks)
        self._leave_subnets()
        self._take_over()

    def _leave_subnets(self) -> None:
        """Take addresses of subnets that the node has no more off our bridges, as soon as no container has one of these: they are
        another node's now, or will be."""
        for name, bridge in self.ledger.bridges.items():
            held = [prefix.address for entry in self.ledger.entries.values() if entry.bridge == name for prefix in entry.addresses]
            for row in tables.addresses(self.nl, name):
                there = row.address.network
                ours = bridge.ours or str(row.address) in bridge.addresses
                elsewhere = any(net.contains(there) for net in self.networks) and not any(subnet.overlaps(there) for subnet in self.subnets)
                if ours and elsewhere and not any(there.contains(address) for address in held):
                    self._change(Change("delete", row))
                    log.info("did ip addr del %s dev %s: it is not of this node's subnet any more", row.address, name)

    def _take_over(self) -> None:
        """On a node that another plugin had: free its addresses that leaked, leave alone those that containers have."""
        known = {prefix.address for entry in self.ledger.entries.values() for prefix in entry.addresses}
        held = [holding for holding in self.holdings() if self.is_ours(holding)]
        ours = {entry.host_name for entry in self.ledger.entries.values()}
        foreign = {link.lower_netns for link in links.links(self.nl, "veth") if link.master and link.name not in ours}
        if not held and not foreign:
            return
        used = in_use(self.nl, self.subnets, os.stat("/proc/thread-self/ns/net").st_ino)
        if used is None:
            log.warning("cannot look into all network namespaces: the addresses in %s are all taken to be in use", self.host_local)
            return
        for holding in held:
            if holding.address not in used and not holding.is_young():
                log.info("freeing %s: no container has it any more, %s leaked", format_address(holding.address), holding.path)
                try:
                    holding.remove()
                except TweedError as error:
                    log.warning("%s; its address stays unused", error)
        # Of other nodes and labs on this machine nothing is taken: only what is behind a port of a bridge here.
        behind = {address for address, spaces in used.items() if spaces & foreign}
        self.strangers = frozenset(behind - known - {holding.address for holding in held})
        if self.strangers:
            log.info("containers that another plugin attached have %s", ", ".join(sorted(map(format_address, self.strangers))))

    def inherited(self, container_id: str, ifname: str) -> tuple[Holding, ...]:
        """What host-local still holds for a container that another plugin attached to this network."""
        owners = (container_id, ifname), (container_id, "")
        return tuple(holding for holding in self.holdings() if self.is_ours(holding) and holding.owner() in owners)

    def is_ours(self, holding: Holding) -> bool:
        """Of the node's subnets, so far as these are known; other networks of host-local's are none of our business."""
        return not self.subnets or any(subnet.contains(holding.address) for subnet in self.subnets)

    def detach(self, container_id: str, ifname: str) -> None:
        """Take a container off the bridge and free its addresses. Also with its namespace, its device or our ledger gone."""
        check_identity(container_id, ifname)
        self._delete_veth(host_name(container_id, ifname))
        if entry := self.ledger.entries.get((container_id, ifname)):
            self._forget_neighbours(entry)
            self.ledger.free(entry)
            self.ledger.save()
            self._leave_subnets()
        self.release(self.inherited(container_id, ifname))

    def release(self, held: Collection[Holding]) -> None:
        """Free what host-local holds, as it would itself."""
        for holding in held:
            for bridge in {BRIDGE, *self.ledger.bridges}:
                self.forget(bridge, [holding.address])
            holding.remove()
            self.ledger.quarantine([holding.address])
        if held:
            self.ledger.save()

    def reconcile(self) -> None:
        """Make ledger and kernel agree, after a start: undo what was cut short, free the addresses of what no longer exists, and write
        down again what the kernel has and a lost ledger does not."""
        ledger = self.ledger
        present = {link.name: link for link in links.links(self.nl, "veth")}
        for entry in [*ledger.entries.values()]:
            if not entry.pending and entry.host_name in present:
                continue
            log.info(
                "freeing %s of container %s: %s", entry.addresses_text, entry.container_id, "its attachment was cut short" if entry.pending else "it is gone"
            )
            self._delete_veth(entry.host_name)
            self._forget_neighbours(entry)
            ledger.free(entry)
        for name, bridge in [*ledger.bridges.items()]:
            if bridge.index is None:
                links.delete_link(self.nl, name)
            elif (link := links.link(self.nl, name)) is not None and link.index == bridge.index:
                continue
            del ledger.bridges[name]
        made = (link for link in links.links(self.nl, "bridge") if link.alias == plan.BRIDGE_ALIAS and link.name not in ledger.bridges)
        ledger.bridges |= {link.name: Bridge(link.index) for link in made}
        self._adopt(present.values())
        ledger.save()

    def _adopt(self, present: Collection[Link]) -> None:
        known = {entry.host_name for entry in self.ledger.entries.values()}
        for link in present:
            bridge = links.link(self.nl, link.master) if link.master else None
            if link.name in known or bridge is None or (entry := plan.from_alias(link, bridge.name, time.time())) is None:
                continue
            held = {row.address.network: row.address.address for row in reversed(tables.addresses(self.nl, bridge.name))}  # the first of each
            if all(prefix.network in held for prefix in entry.addresses):
                entry = msgspec.structs.replace(entry, gateways=tuple(held[prefix.network] for prefix in entry.addresses))
            self.ledger.entries[entry.key] = entry
            log.warning("container %s with %s was not in %s: written down again from %s", entry.container_id, entry.addresses_text, self.ledger.path, link.name)

    def remove_all(self) -> tuple[str, ...]:
        """Detach all containers and take back what was done to the node's bridges: ours are deleted, others become as they were.

        Returns those of ours that stay, since somebody else's devices are on them.
        """
        for container_id, ifname in [*self.ledger.entries]:
            self.detach(container_id, ifname)
        left = []
        for name, bridge in self.ledger.bridges.items():
            link = links.link(self.nl, name)
            if link is None or bridge.index not in (None, link.index):
                continue
            if bridge.ours and any(port.master == link.index for port in links.links(self.nl)):
                left.append(name)
            elif bridge.ours:
                links.delete_link(self.nl, name)
            else:
                self._change(*(Change("delete", InterfaceAddress(name, Prefix.parse(text))) for text in bridge.addresses))
                links.set_link(self.nl, name, mtu=bridge.mtu, up=bridge.up)
        self.ledger.bridges = {}
        self.ledger.remove()
        return tuple(left)

    # ---- attaching -----------------------------------------------------------------------------------------------

    def _carry_out(self, pending: Attachment, steps: tuple[Step, ...], bridge: Bridge, container: Container) -> Attachment:
        """The dull loop: each step in turn. When one fails, those before it are undone in reverse and the ledger is as before."""
        ledger, name = self.ledger, pending.bridge
        attachment = msgspec.structs.replace(pending, pending=False)
        before = ledger.entries, ledger.bridges, ledger.last
        known = {} if bridge.index is None else {name: bridge.index}
        done: list[Step] = []
        try:
            ledger.entries, ledger.bridges = ledger.entries | {pending.key: pending}, ledger.bridges | {name: bridge}
            ledger.save()
            for group in plan.groups(steps):
                if len(group) > 1:  # where one is refused, those behind it are done all the same
                    done += group
                do(group, self.nl, known, container)
                if len(group) == 1:
                    done += group
            if bridge.index is None:
                ledger.bridges[name] = msgspec.structs.replace(bridge, index=links.index_of(self.nl, name, f"ip link show {name}"))
            ledger.entries[pending.key] = attachment
            ledger.last = (*(a for a in ledger.last if not any(p.contains(a) for p in attachment.addresses)), *(p.address for p in attachment.addresses))
            ledger.save()
        except BaseException as error:
            ledger.entries[pending.key] = pending
            for step in reversed(done):
                try:
                    if step.undo is not None:
                        do((Step(step.undo, inside=step.inside),), self.nl, known, container)
                except KernelError as second:  # the entry stays, pending: a detach or the next start tries again
                    raise TweedError(f"{error}; and undoing it failed: {second}") from error
            ledger.entries, ledger.bridges, ledger.last = before
            ledger.save()
            raise
        return attachment

    def _change(self, *changes: Change) -> None:
        for failure in tables.apply(self.nl, changes):
            raise KernelError(str(failure.change), failure.errno, failure.text)

    def _facts(self, bridge: str, container: Container) -> Facts:
        inside = links.links(container.nl)
        # A container that has nothing but its loopback has no routes either.
        families = (4, 6) if any(link.name != "lo" for link in inside) else ()
        addresses = tables.addresses(self.nl)
        return Facts(
            bridge=links.link(self.nl, bridge),
            bridge_addresses=frozenset(row.address for row in addresses if row.device == bridge),
            loopback_up=any(link.name == "lo" and link.up for link in inside),
            ipv6=sysctl.has_ipv6(),
            elsewhere=tuple(row for row in addresses if row.device != bridge),
            routed=frozenset(route.dst for family in families for route in tables.routes(container.nl, family, table=TABLE_MAIN)),
        )

    def claim(self, network: NodeNetwork, facts: Facts) -> Bridge:
        """What the ledger is to say of the bridge, before anything is done to it."""
        if facts.bridge is None:
            return Bridge()
        known = self.ledger.bridges.get(network.bridge)
        if known is None or known.index != facts.bridge.index:
            known = Bridge(facts.bridge.index, mtu=facts.bridge.mtu, up=facts.bridge.up)
        new = (str(row.address) for row in plan.missing_addresses(network, facts))
        return msgspec.structs.replace(known, addresses=tuple(dict.fromkeys((*known.addresses, *new))))

    def _drop_stale(self, container_id: str, ifname: str) -> None:
        """Free an entry that stands for nothing: cut short, or its namespace was removed without a detach."""
        entry = self.ledger.entries.get((container_id, ifname))
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
        self.forget(entry.bridge, [prefix.address for prefix in entry.addresses])

    def forget(self, bridge: str, addresses: Sequence[bytes]) -> None:
        """Delete the node's neighbour rows of these addresses on a bridge, which may be gone."""
        if links.link(self.nl, bridge) is not None:
            self._change(*(Change("delete", Neighbour(address, bridge, None)) for address in addresses))
