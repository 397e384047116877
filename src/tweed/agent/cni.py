"""The plugin's side of the agent: each call of a runtime to an answer. What it decides by is in `plan`, what it reads and writes in `wire.cni`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tweed.agent import files
from tweed.agent.log import log
from tweed.agent.needs import past_iptables
from tweed.agent.removal import Removal
from tweed.errors import KernelError, TweedError
from tweed.kernel import links, tables
from tweed.kernel.container import Container
from tweed.plan.addresses import host_name
from tweed.plan.attach import host_mac
from tweed.plan.attachment import Attachment, AttachRequest, NoAddress, NodeNetwork, Refused, Unknown
from tweed.plan.check import Seen, differences
from tweed.plan.network import network_of
from tweed.wire import cni as wire
from tweed.wire.cni import Call, CniError, Conf
from tweed.wire.flannel import SubnetEnv

if TYPE_CHECKING:
    from tweed.agent.agent import Agent

TUNING = Path("/run/cni/tuning")  # its dataDir where nothing else is configured

JOIN_S = 5.0


class Cni:
    """Answers calls, one at a time."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.removal = Removal()

    async def answer(self, data: bytes, descriptors: list[int]) -> bytes:
        """The bytes for the relay. Descriptors are taken out of the list as they are taken over; the caller closes the rest."""
        call, document, warning = Call(), None, ""
        try:
            call = wire.parse_call(data)
            wire.check_call(call)
            conf = wire.parse_conf(call.config, call.command)
            self.agent.spool.replay(self.agent.attachments)
            commands: dict[str, Callable[[Call, Conf, list[int]], Awaitable[Any]]]
            commands = {"ADD": self.add, "DEL": self.delete, "CHECK": self.check, "GC": self.collect, "STATUS": self.status}
            document = await commands[call.command](call, conf, descriptors)
            if call.command == "STATUS":
                warning, document = document, None
            return wire.answer(0, document, warning)
        except TweedError as error:
            failure = translate(error)
        except Exception:
            log.exception("internal error answering CNI %s", call.command)
            failure = CniError(wire.KERNEL, "internal error, see the agent's log")
        log.warning("CNI %s of %s %s: %s", call.command or "call", call.container_id or "-", call.ifname, failure)
        return wire.answer(1, wire.error_document(wire.version_of(call.config), failure))

    def unheard(self, data: bytes, answer: bytes) -> None:
        """The caller went away before it had the answer: an ADD is taken back, as if it had failed."""
        call = wire.parse_call(data)
        if call.command == "ADD" and answer[0] == 0:
            log.warning("CNI ADD of %s %s: nobody waited for the answer, so it is taken back", call.container_id, call.ifname)
            self.agent.attachments.detach(call.container_id, call.ifname)

    # ---- the commands ----------------------------------------------------------------------------------------

    async def add(self, call: Call, conf: Conf, descriptors: list[int]) -> dict[str, Any]:
        args = wire.parse_args(call.args)
        await self._joining()
        node = self._node()
        network = network_of(conf, node, self._env(conf))
        request = AttachRequest(call.container_id, call.ifname, call.netns, wire.wanted_addresses(conf, args), wire.wanted_mac(conf, args), args.pod)
        with container(call.netns, descriptors) as inside:
            attachment = self.agent.attachments.attach(request, network, inside)
        if attachment.masquerade and not self.agent.settings.ip_masq:
            await self.agent.masquerade()
        log.info("CNI ADD of %s %s: %s on %s%s", call.container_id, call.ifname, attachment.addresses_text, network.bridge, args.pod and f" for {args.pod}")
        return self._result(conf, attachment, call.netns)

    async def delete(self, call: Call, conf: Conf, descriptors: list[int]) -> None:
        self._changing()
        log.info("CNI DEL of %s %s", call.container_id, call.ifname)
        attachments, name = self.agent.attachments, host_name(call.container_id, call.ifname)
        entry = attachments.find(call.container_id, call.ifname)
        renamed = entry is not None and links.link(self.agent.netlink, name) is None  # or gone
        await self.removal.remove(name)
        if call.netns and (renamed or attachments.inherited(call.container_id, call.ifname)):
            self._delete_inside(call, descriptors, entry)
        attachments.detach(call.container_id, call.ifname)

    def _delete_inside(self, call: Call, descriptors: list[int], entry: Attachment | None) -> None:
        """What another plugin made, or somebody renamed, is told by the container's end; that of `entry` by its MAC too."""
        try:
            with container(call.netns, descriptors) as inside:
                link = links.link(inside.nl, call.ifname)
                if link is not None and (entry is None or link.mac == entry.mac):
                    links.delete_link(inside.nl, call.ifname)
        except Unknown:
            pass
        except KernelError:
            if entry is None:
                raise  # else it is most likely gone, and an agent that may not enter cannot see to it

    async def check(self, call: Call, conf: Conf, descriptors: list[int]) -> None:
        if conf.prev_result is None:
            raise CniError(wire.INVALID, "CHECK needs prevResult, the answer to ADD")
        attachment = self.agent.attachments.find(call.container_id, call.ifname)
        if attachment is None and self.agent.attachments.inherited(call.container_id, call.ifname):
            return  # flannel's plugin checks nothing
        if attachment is None:
            raise Unknown(f"container {call.container_id} has no {call.ifname} here")
        with container(call.netns, descriptors) as inside:
            found = differences(attachment, self._seen(attachment, inside), wire.after(conf, call.ifname))
        if found:
            raise CniError(wire.DIFFERS, f"container {call.container_id} is not as it was attached: {found[0]}", "; ".join(found))

    async def collect(self, call: Call, conf: Conf, descriptors: list[int]) -> None:
        """Detach what the runtime does not know. Without its list nothing is known, so nothing is removed."""
        listed = conf.valid if conf.valid is not None else conf.misnamed
        if listed is None:
            return
        self._changing()
        known, failed = {(each.container_id, each.ifname) for each in listed}, list[str]()
        gone = [each for each in self.agent.attachments.list() if each.network == conf.name and each.key not in known]

        async def free(attachment: Attachment) -> None:
            try:
                await self.removal.remove(attachment.host_name)
                self.agent.attachments.detach(*attachment.key)
                log.info("freed %s of container %s: its runtime does not know it any more", attachment.addresses_text, attachment.container_id)
            except TweedError as error:
                failed.append(str(error))

        await asyncio.gather(*map(free, gone))
        holdings = [each for each in self.agent.attachments.holdings() if each.path.parent.name == conf.name and each.owner() not in known]
        try:
            self.agent.attachments.release([each for each in holdings if self.agent.attachments.is_ours(each) and not each.is_young()])
        except TweedError as error:
            failed.append(str(error))
        if failed:
            raise CniError(wire.KERNEL, f"{len(failed)} could not be freed: {failed[0]}", "; ".join(failed))

    async def status(self, call: Call, conf: Conf, descriptors: list[int]) -> str:
        """A warning for stderr, "" when all is well. Raises CniError 50 when no container can be attached, 51 for want of addresses."""
        try:
            network = network_of(conf, self._node(), self._env(conf))
        except CniError as error:
            raise CniError(wire.UNAVAILABLE, str(error)) from None
        taken = self.agent.attachments.taken()
        for pools in network.sets:
            try:
                taken.pick(pools, (), network.reserved)
            except NoAddress as error:
                raise CniError(wire.LIMITED, str(error)) from None
        try:
            self.agent.attachments.ledger.save()  # ADD would be refused where that cannot be done
        except TweedError as error:
            raise CniError(wire.UNAVAILABLE, str(error)) from None
        assert self.agent.site is not None  # it has a lease
        return "; ".join(f"{problem.subject}: {problem.text}" for problem in past_iptables(self.agent.site.families))

    # ---- what they need ----------------------------------------------------------------------------------------

    def _changing(self) -> None:
        if self.agent.paused:
            raise CniError(wire.LATER, "the agent is paused: resume it first (tweed lab resume)")

    async def _joining(self) -> None:
        """Give an agent that has just been started the time to join: were it not there yet, the plugin would wait for it too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN_S):
                while not (self.agent.joined or self.agent.paused):
                    await asyncio.sleep(0.02)

    def _node(self) -> NodeNetwork:
        """Raises CniError, "try again later", while the agent cannot attach anything."""
        self._changing()
        try:
            return self.agent.node_network()
        except TweedError as error:
            raise CniError(wire.LATER, str(error)) from None

    def _env(self, conf: Conf) -> SubnetEnv | None:
        """What flannel's plugin would have read. The agent knows its own lease, so a file that is not there is no error."""
        if not conf.is_flannel:
            return None
        return files.previous_subnet(Path(conf.subnet_file) if conf.subnet_file else self.agent.settings.subnet_file)

    def _result(self, conf: Conf, attachment: Attachment, netns: str) -> dict[str, Any]:
        bridge = links.link(self.agent.netlink, attachment.bridge)
        interfaces = [] if bridge is None else [wire.Interface(bridge.name, bridge.mac, bridge.mtu)]
        interfaces.append(wire.Interface(attachment.host_name, host_mac(attachment.host_name), attachment.mtu))
        interfaces.append(wire.Interface(attachment.ifname, attachment.mac, attachment.mtu, netns))
        ips = [wire.Address(address, gateway) for address, gateway in zip(attachment.addresses, attachment.gateways, strict=True)]
        return wire.result(conf, interfaces, ips, [(via.dst, via.gateway) for via in attachment.routes])

    def _seen(self, attachment: Attachment, inside: Container) -> Seen:
        nl = self.agent.netlink
        led = {(address.family, table) for address in attachment.addresses for table in tables.tables_of(inside.nl, address.address)}
        return Seen(
            bridge=links.link(nl, attachment.bridge),
            bridge_addresses=frozenset(row.address for row in tables.addresses(nl, attachment.bridge)),
            port=links.link(nl, attachment.host_name),
            inside=links.link(inside.nl, attachment.ifname),
            addresses=tuple(tables.addresses(inside.nl, attachment.ifname)),
            routes=tuple(row for family in (4, 6) for row in tables.routes(inside.nl, family, table=None) if (family, row.table) in led),
            tuned=mtu_before_tuning(*attachment.key),
        )


def container(path: str, descriptors: list[int]) -> Container:
    """The namespace of a call: by the descriptors that the relay opened in it, else by the one of it, else by its path.

    Raises Unknown for one that is none, or the node's own: what is done to a container's devices there would be done to the node's.
    """
    own = os.stat("/proc/thread-self/ns/net")
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(descriptors[0]) if descriptors else os.stat(path), own):
            raise Unknown(f"CNI_NETNS {path} is the network namespace of the node itself")
    if len(descriptors) > 1:
        taken, descriptors[:] = [*descriptors], []
        return Container.received(taken)
    try:
        return Container.enter(f"/proc/self/fd/{descriptors[0]}" if descriptors else path)
    except KernelError as error:
        if "open network namespace" not in error.operation:
            raise
        raise Unknown(f"CNI_NETNS {path}: {error.text}") from None


def mtu_before_tuning(container_id: str, ifname: str) -> int | None:
    """The MTU that the plugin tuning found, where it gave a container's device another: of that it tells nobody, but for DEL it notes what was there."""
    try:
        return msgspec.json.decode((TUNING / f"{container_id}_{ifname}.json").read_bytes(), type=BeforeTuning).mtu
    except (OSError, msgspec.MsgspecError):  # without a note nothing is explained
        return None


class BeforeTuning(msgspec.Struct):
    mtu: int | None = None


def translate(error: TweedError) -> CniError:
    """Our errors in the specification's numbers."""
    if isinstance(error, CniError):
        return error
    if isinstance(error, NoAddress):
        return CniError(wire.LATER if error.wait_s is not None else wire.NO_ADDRESS, str(error))
    if isinstance(error, Unknown):
        return CniError(wire.UNKNOWN, str(error))
    if isinstance(error, Refused):
        return CniError(wire.REFUSED, str(error))
    return CniError(wire.KERNEL if isinstance(error, KernelError) else wire.IO, str(error))
