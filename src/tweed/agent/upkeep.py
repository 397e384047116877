"""Bridges and ports of containers, kept as attaching left them."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import msgspec

from tweed.agent.attachments import Attachments
from tweed.agent.dataplane import LOG_ROWS
from tweed.agent.log import log
from tweed.errors import KernelError, TweedError
from tweed.kernel import attach, links, sysctl, tables
from tweed.model import Link
from tweed.plan import upkeep
from tweed.plan.attach import BRIDGE_ALIAS, Facts, Step, groups
from tweed.plan.attachment import Attachment, NodeNetwork
from tweed.plan.screen import Problem


class Upkeep:
    """Of the containers in `attachments`. One call at a time, of its methods and theirs."""

    def __init__(self, attachments: Attachments) -> None:
        self.attachments = attachments
        self.problems: tuple[Problem, ...] = ()

    @property
    def devices(self) -> frozenset[str]:
        """The bridges, and the ports of containers."""
        return frozenset(name for entry in self.attachments.list() for name in (entry.bridge, entry.host_name))

    def drifted(self) -> bool:
        """Whether `mend` has something to do or to say."""
        try:
            ports = self._ports()
            return any(self._look(name, attached, ports)[2] for name, attached in self._bridges())
        except TweedError:
            return True

    def mend(self) -> tuple[Step, ...]:
        """Put right what is not as it was, and return it. `problems` has what cannot be."""
        done: list[Step] = []
        problems: list[Problem] = []
        ports = self._ports()
        for name, attached in self._bridges():
            try:
                done += self._mend(name, attached, ports)
            except TweedError as error:
                if not (isinstance(error, KernelError) and error.errno == errno.ENODEV):  # a device that went meanwhile is announced
                    problems.append(Problem("container-bridge", name, str(error)))
        self.problems = tuple(problems)
        for step in done[:LOG_ROWS]:
            log.info("did %s", step.action)
        if len(done) > LOG_ROWS:
            log.info("did %d more of these", len(done) - LOG_ROWS)
        return tuple(done)

    def _bridges(self) -> Iterator[tuple[str, list[Attachment]]]:
        found: dict[str, list[Attachment]] = {}
        for entry in self.attachments.list():
            found.setdefault(entry.bridge, []).append(entry)
        return iter(found.items())

    def _ports(self) -> dict[str, Link]:
        """The node's veths, by name; none where no container is attached."""
        return {link.name: link for link in links.links(self.attachments.nl, "veth")} if self.attachments.list() else {}

    def _look(self, name: str, attached: list[Attachment], ports: dict[str, Link]) -> tuple[NodeNetwork, Facts, tuple[Step, ...]]:
        nl, known = self.attachments.nl, self.attachments.ledger.bridges.get(name)
        bridge = links.link(nl, name)
        facts = Facts(bridge, frozenset(row.address for row in tables.addresses(nl, name)), ipv6=sysctl.has_ipv6())
        ours = known is not None and known.ours and (bridge is None or known.index == bridge.index)
        network = upkeep.network_of(attached, bridge, ours=ours)
        return network, facts, upkeep.steps(attached, network, facts, ports)

    def _mend(self, name: str, attached: list[Attachment], ports: dict[str, Link]) -> tuple[Step, ...]:
        network, facts, steps = self._look(name, attached, ports)
        if not steps:
            return ()
        nl, ledger, bridge = self.attachments.nl, self.attachments.ledger, self.attachments.claim(network, facts)
        if bridge != ledger.bridges.get(name):
            ledger.bridges = ledger.bridges | {name: bridge}
            ledger.save()
        try:
            for group in groups(steps):
                attach.do(group, nl, {})
        finally:  # where a step is refused, the bridge is ours all the same
            if bridge.index is None and (made := links.link(nl, name)) is not None and made.alias == BRIDGE_ALIAS:
                ledger.bridges[name] = msgspec.structs.replace(bridge, index=made.index)
                ledger.save()
        return steps
