"""The list of steps that puts a container on its node's bridge.

    container   eth0 (address, default route)  ── veth ──  port of cni0 (gateway address)   node

`plan.addresses.place` chooses what it gets, `steps` says what is to be done on the node and inside the container. Every step is a value
that prints as the command a person would type and carries the action that takes it back, None where an earlier step's undoing covers it
(with the veth go the container's device, addresses and routes). Nothing here touches the kernel.
"""

from __future__ import annotations

import itertools

import msgspec

from tweed.addr import Prefix, format_address, format_mac, parse_mac
from tweed.model import PROTOCOL_BOOT, Change, InterfaceAddress, Link, Route
from tweed.plan.addresses import host_name, mac_of
from tweed.plan.attachment import Attachment, NodeNetwork, Refused
from tweed.wire.packet import Arp, Ethernet, Icmpv6, Ipv6, encode
from tweed.wire.packet import tables as packet

SCOPE_LINK = 253
LINK_LOCAL = Prefix(b"\xfe\x80" + bytes(14), 10)
ALIAS_MAX = 255  # bytes: IFALIASZ, linux/if.h
BRIDGE_ALIAS = "tweed"  # a bridge that was made here, whatever the ledger has lost
ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")

# ---- steps ------------------------------------------------------------------------------------------------------


class CreateBridge(msgspec.Struct, frozen=True):
    name: str
    mac: bytes
    mtu: int

    def __str__(self) -> str:
        return f"ip link add {self.name} address {format_mac(self.mac)} mtu {self.mtu} type bridge"


class CreateVeth(msgspec.Struct, frozen=True):
    """The pair at once: `name` on the node, `peer` already inside the container, so that no stray device is ever seen."""

    name: str
    mac: bytes
    peer: str
    peer_mac: bytes
    mtu: int
    netns: str

    def __str__(self) -> str:
        end = f"name {self.peer} address {format_mac(self.peer_mac)} mtu {self.mtu} netns {self.netns}"
        return f"ip link add {self.name} address {format_mac(self.mac)} mtu {self.mtu} type veth peer {end}"


class SetLink(msgspec.Struct, frozen=True):
    """Attributes of an existing device; None leaves one as it is."""

    name: str
    up: bool | None = None
    mtu: int | None = None
    master: str | None = None
    no_link_local: bool | None = None
    promisc: bool | None = None
    alias: str | None = None

    def __str__(self) -> str:
        words = ["ip link set", self.name]
        if self.no_link_local is not None:
            words.append("addrgenmode none" if self.no_link_local else "addrgenmode eui64")
        if self.mtu is not None:
            words.append(f"mtu {self.mtu}")
        if self.master is not None:
            words.append(f"master {self.master}")
        if self.alias is not None:
            words.append(f"alias '{self.alias}'")
        if self.promisc is not None:
            words.append(f"promisc {'on' if self.promisc else 'off'}")
        if self.up is not None:
            words.append("up" if self.up else "down")
        return " ".join(words)


class Hairpin(msgspec.Struct, frozen=True):
    """A frame may leave by the port that it came in by: a container that calls a Service may be its backend."""

    port: str

    def __str__(self) -> str:
        return f"bridge link set dev {self.port} hairpin on"


class DeleteLink(msgspec.Struct, frozen=True):
    name: str

    def __str__(self) -> str:
        return f"ip link del {self.name}"


class Sysctl(msgspec.Struct, frozen=True):
    """`key` as in /proc/sys, with slashes: device names may hold dots."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"sysctl -w {self.key}={self.value}"


class Announce(msgspec.Struct, frozen=True):
    """Tell the neighbours whose address this is now (gratuitous ARP, unsolicited neighbour advertisement)."""

    device: str
    mac: bytes
    addresses: tuple[bytes, ...]

    def __str__(self) -> str:
        return "; ".join(f"{'arping -U' if len(a) == 4 else 'ndsend'} {format_address(a)} {self.device}" for a in self.addresses)


Setting = SetLink | Hairpin | Change
Action = CreateBridge | CreateVeth | Setting | DeleteLink | Sysctl | Announce


class Step(msgspec.Struct, frozen=True):
    """One thing to do, on the node or inside the container, and what takes it back."""

    action: Action
    undo: Action | None = None
    inside: bool = False


class Facts(msgspec.Struct, frozen=True):
    """What the plan must know about the node and the container as they are now.

    `elsewhere`: addresses of the node's other devices, with the device. `routed`: destinations that the container has routes to already.
    """

    bridge: Link | None
    bridge_addresses: frozenset[Prefix] = frozenset()
    loopback_up: bool = False
    ipv6: bool = True  # the kernel has it at all
    elsewhere: tuple[InterfaceAddress, ...] = ()
    routed: frozenset[Prefix] = frozenset()


def gateways(network: NodeNetwork) -> tuple[Prefix, ...]:
    """The bridge's own addresses: the first of each subnet, where a range says no other."""
    return tuple(dict.fromkeys(Prefix(pool.gateway, pool.subnet.length) for pool in network.pools))


def check_elsewhere(network: NodeNetwork, facts: Facts) -> None:
    """Raises Refused when another device of the node has part of the bridge's subnet: the kernel would send half of the packets there."""
    for pool in network.pools:
        for row in facts.elsewhere:
            if row.address.length < row.address.bits and pool.subnet.overlaps(row.address.network):
                way = f'give each a part of the subnet ("part" in the CNI configuration), or take it from {row.device}'
                raise Refused(f"{pool.subnet} of {network.bridge} overlaps {row.address} on {row.device}: {way}")


def missing_addresses(network: NodeNetwork, facts: Facts) -> tuple[InterfaceAddress, ...]:
    """What the bridge needs and does not have: the gateways, and for IPv6 a link-local address.

    Without that one Linux sends no neighbour solicitation for a packet that it forwards (ndisc_send_ns): a container would be reached
    from other nodes only after it has spoken itself.
    """
    mac = facts.bridge.mac if facts.bridge is not None else mac_of(gateways(network)[0].address)
    wanted = [InterfaceAddress(network.bridge, gateway, nodad=gateway.family == 6) for gateway in gateways(network)]
    if any(g.family == 6 for g in gateways(network)) and not any(LINK_LOCAL.contains(prefix) for prefix in facts.bridge_addresses):
        wanted.append(InterfaceAddress(network.bridge, link_local(mac), SCOPE_LINK, nodad=True))
    return tuple(row for row in wanted if row.address not in facts.bridge_addresses)


def steps(attachment: Attachment, network: NodeNetwork, facts: Facts) -> tuple[Step, ...]:
    """All that is to be done, in order. Raises Refused when the bridge's name or subnet belongs to another device."""
    check_elsewhere(network, facts)
    return bridge_steps(network, facts) + container_steps(attachment, network, facts)


def bridge_steps(network: NodeNetwork, facts: Facts) -> tuple[Step, ...]:
    """The node's bridge with the gateways' addresses. One that exists keeps its MAC: containers have it in their neighbour tables."""
    name, bridge = network.bridge, facts.bridge
    # A container could make the node take it for a router (CVE-2020-10749), whether or not IPv6 is used.
    quiet = (Step(Sysctl(f"net/ipv6/conf/{name}/accept_ra", "0")),) if facts.ipv6 else ()
    steps: list[Step] = []
    if bridge is None:
        # Without an explicit MAC a bridge takes the lowest of its ports', and changes it under the containers as they come and go.
        mac = mac_of(gateways(network)[0].address)
        steps += [Step(CreateBridge(name, mac, network.mtu), DeleteLink(name)), Step(SetLink(name, no_link_local=True, alias=BRIDGE_ALIAS)), *quiet]
    elif bridge.kind != "bridge":
        raise Refused(f"{name} is a {bridge.kind or 'physical'} device here, not a bridge: remove it, or choose another name for the bridge")
    elif bridge.mtu != network.mtu:
        steps.append(Step(SetLink(name, mtu=network.mtu), SetLink(name, mtu=bridge.mtu)))
    steps += [Step(Change("replace", row), Change("delete", row)) for row in missing_addresses(network, facts)]
    if bridge is None or not bridge.up:
        steps.append(Step(SetLink(name, up=True), SetLink(name, up=False)))
    if network.promisc and not (bridge is not None and bridge.promisc):
        steps.append(Step(SetLink(name, promisc=True), SetLink(name, promisc=False)))
    return tuple(steps)


def container_steps(attachment: Attachment, network: NodeNetwork, facts: Facts) -> tuple[Step, ...]:
    """The veth, what the container's side needs to be ready when the last step is done, and the announcement."""
    inside, port = attachment.ifname, attachment.host_name
    veth = CreateVeth(port, host_mac(port), inside, attachment.mac, network.mtu, attachment.netns)
    steps = [Step(veth, DeleteLink(port))]
    if facts.ipv6:
        steps.append(Step(Sysctl(f"net/ipv6/conf/{inside}/accept_ra", "0"), inside=True))
    if any(address.family == 6 for address in attachment.addresses):  # runtimes create namespaces with IPv6 switched off
        steps.append(Step(Sysctl(f"net/ipv6/conf/{inside}/disable_ipv6", "0"), inside=True))
    if not facts.loopback_up:
        steps.append(Step(SetLink("lo", up=True), SetLink("lo", up=False), inside=True))
    # No addresses of the kernel's own making, which would be tentative for a second: the link-local one is given below.
    steps += [Step(SetLink(inside, no_link_local=True), inside=True), Step(SetLink(inside, up=True), inside=True)]
    # The port comes up last, so that it has its carrier by then and forwards at once.
    steps += [Step(SetLink(port, no_link_local=True, alias=alias(attachment))), Step(SetLink(port, master=network.bridge, up=True))]
    if network.hairpin:
        steps.append(Step(Hairpin(port)))
    return (*steps, *map(put, rows(attachment)), announce(attachment))


def host_mac(port: str) -> bytes:
    """The MAC of a veth's end on the node, a function of its name as that is of what it is for."""
    return b"\x0a\x59" + bytes.fromhex(port[-8:])


def alias(attachment: Attachment) -> str:
    """What the device on the node says of itself, so that a lost ledger can be written again. Its network's name comes last, where there is room."""
    words = ["tweed", ",".join(map(str, attachment.addresses)), format_mac(attachment.mac), attachment.ifname, attachment.container_id]
    if attachment.network and len(" ".join([*words, attachment.network]).encode()) <= ALIAS_MAX:
        words.append(attachment.network)
    return " ".join(words).encode()[:ALIAS_MAX].decode(errors="ignore")


def from_alias(link: Link, bridge: str, now: float) -> Attachment | None:
    """The attachment that a device of the node was made for, as far as its alias tells; None for a device of somebody else."""
    words = link.alias.split(" ")
    if link.kind != "veth" or len(words) not in (5, 6) or words[0] != "tweed" or host_name(words[4], words[3]) != link.name:
        return None
    try:
        addresses, mac, network = tuple(map(Prefix.parse, words[1].split(","))), parse_mac(words[2]), "".join(words[5:])
        return Attachment(words[4], words[3], "", link.name, bridge, mac, addresses, now, network=network, mtu=link.mtu, hairpin=bool(link.hairpin))
    except ValueError:
        return None


def rows(attachment: Attachment) -> tuple[InterfaceAddress | Route, ...]:
    """The container's addresses and routes, in the order in which the kernel takes them."""
    inside = attachment.ifname
    found: list[InterfaceAddress | Route] = []
    for address in attachment.addresses:
        if address.family == 6:
            found.append(InterfaceAddress(inside, link_local(attachment.mac), SCOPE_LINK, nodad=True))
        found.append(InterfaceAddress(inside, address, nodad=address.family == 6))
    return (*found, *(Route(via.dst, inside, via.gateway, protocol=PROTOCOL_BOOT) for via in attachment.routes))


def announce(attachment: Attachment) -> Step:
    return Step(Announce(attachment.ifname, attachment.mac, tuple(a.address for a in attachment.addresses)), inside=True)


def put(row: InterfaceAddress | Route) -> Step:
    """A row inside the container; it goes with the device."""
    return Step(Change("replace", row), inside=True)


def link_local(mac: bytes) -> Prefix:
    """The IPv6 link-local address that the kernel would make of a MAC (RFC 4291, modified EUI-64)."""
    return Prefix(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:], 64)


def groups(steps: tuple[Step, ...]) -> list[tuple[Step, ...]]:
    """The steps in order, settings of one side that follow each other taken together: one send to the kernel."""
    together = itertools.groupby(enumerate(steps), key=lambda item: (item[1].inside, -1 if isinstance(item[1].action, Setting) else item[0]))
    return [tuple(step for _, step in group) for _, group in together]


def commands(steps: tuple[Step, ...], netns: str) -> list[str]:
    """The steps as typed on the node; `netns` is the container's."""
    return [f"nsenter --net={netns} {step.action}" if step.inside else str(step.action) for step in steps]


# ---- announcements ----------------------------------------------------------------------------------------------


def announcement(mac: bytes, address: bytes) -> bytes:
    """The Ethernet frame that tells everybody on the bridge that `address` is at `mac`."""
    if len(address) == 4:  # RFC 5227 section 3: an ARP request for oneself
        return encode(Ethernet(b"\xff" * 6, mac, packet.ARP), Arp(1, mac, address, bytes(6), address))
    # RFC 4861 section 7.2.6: unsolicited, Override set, to all nodes, hop limit 255
    advertisement, target = Icmpv6.advertise(address, mac, solicited=False)
    to_all = Ethernet(b"\x33\x33" + ALL_NODES[-4:], mac, packet.IPV6)
    return encode(to_all, Ipv6(address, ALL_NODES, packet.ICMPV6, hop_limit=255), advertisement, payload=target)
