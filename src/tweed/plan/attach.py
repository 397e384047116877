"""Attaching a container to its node: which addresses it gets, and the list of steps that puts it there.

    container   eth0 (address, default route)  ── veth ──  port of cni0 (gateway address)   node

`place` chooses the addresses, `steps` says what is to be done on the node and inside the container. Every step is a value that prints
as the command a person would type and carries the action that takes it back, None where an earlier step's undoing covers it (with the
veth go the container's device, addresses and routes). Nothing here touches the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from hashlib import blake2b
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address, format_mac, is_unicast_mac, parse_address, parse_mac
from tweed.errors import TweedError, UsageError
from tweed.model import PROTOCOL_BOOT, Change, InterfaceAddress, Link, Route
from tweed.wire.packet import Arp, Ethernet, Icmpv6, Ipv6, encode
from tweed.wire.packet import tables as packet

CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # CNI specification 1.1, "Parameters"
GATEWAY = 1  # the offset of the gateway in the node's subnet, as flannel's FLANNEL_SUBNET has it
SCOPE_LINK = 253
LINK_LOCAL = Prefix(b"\xfe\x80" + bytes(14), 10)
ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")


class Refused(TweedError):
    """An attachment that cannot be made; nothing was changed."""


class NodeNetwork(msgspec.Struct, frozen=True):
    """What a node offers its containers: its own subnets (None: family off), the MTU that fits both, the cluster's networks."""

    subnet: Prefix | None
    subnet6: Prefix | None
    mtu: int
    bridge: str = "cni0"
    networks: tuple[Prefix, ...] = ()

    @property
    def subnets(self) -> tuple[Prefix, ...]:
        return tuple(subnet.network for subnet in (self.subnet, self.subnet6) if subnet is not None)


class AttachRequest(msgspec.Struct, frozen=True):
    """`netns` is a path (`/run/netns/x`, `/proc/self/fd/7`); `addresses` are wanted ones, at most one of each family."""

    container_id: str
    ifname: str
    netns: str
    addresses: tuple[bytes, ...] = ()
    mac: bytes | None = None


class Attachment(msgspec.Struct, frozen=True):
    """A container on the node's bridge: who, its device on the node, what it was given, since when (seconds since 1970).

    `pending`: written down before the first step and not finished; whoever finds it later undoes it.
    """

    container_id: str
    ifname: str
    netns: str
    host_name: str
    bridge: str
    mac: bytes
    addresses: tuple[Prefix, ...]
    since: float
    pending: bool = False

    @property
    def addresses_text(self) -> str:
        return " and ".join(format_address(prefix.address) for prefix in self.addresses)


# ---- choosing ---------------------------------------------------------------------------------------------------


def host_name(container_id: str, ifname: str) -> str:
    """The name of the veth's end on the node, a function of what it is for: `veth` and 8 hexadecimal digits."""
    return "veth" + blake2b(f"{container_id}/{ifname}".encode(), digest_size=4).hexdigest()


def mac_of(address: bytes) -> bytes:
    """The MAC of a container or gateway with this address: 0a:58 and its last four bytes, as CNI and OVN have long made them.

    A container that takes over an address thereby takes over the MAC in everybody's neighbour tables too.
    """
    return b"\x0a\x58" + address[-4:]


def free_address(subnet: Prefix, taken: Collection[bytes], last: bytes | None) -> bytes:
    """The next free address after `last` (the one handed out before), round the subnet: what was just freed comes last.

    Never the subnet's base, the gateway, nor IPv4's broadcast address. Raises Refused when all are taken.
    """
    first, end = GATEWAY + 1, subnet.step - (subnet.family == 4)
    size = end - first
    start = int.from_bytes(last, "big") - subnet.network.value + 1 if last is not None and subnet.contains(last) else first
    if not first <= start < end:
        start = first
    for i in range(min(size, len(taken) + 1)):
        address = subnet.host(first + (start - first + i) % size)
        if address not in taken:
            return address
    raise Refused(f"no address is left in {subnet.network}: all {max(size, 0)} are attached; detach a container, or give nodes larger subnets (SubnetLen)")


def check_static(subnets: Collection[Prefix], address: bytes, taken: Collection[bytes]) -> None:
    """Raises Refused when a wanted address is not to be had on this node."""
    text = format_address(address)
    subnet = next((s for s in subnets if s.contains(address)), None)
    if subnet is None:
        raise Refused(f"address {text} is not of this node's {' or '.join(map(str, subnets))}")
    offset = int.from_bytes(address, "big") - subnet.value
    if offset <= GATEWAY or (subnet.family == 4 and offset == subnet.step - 1):
        raise Refused(f"address {text} is the {('base', 'gateway')[offset] if offset <= GATEWAY else 'broadcast address'} of {subnet}: choose another")
    if address in taken:
        raise Refused(f"address {text} is attached already")


def place(request: AttachRequest, network: NodeNetwork, attached: Collection[Attachment], last: Collection[bytes], now: float) -> Attachment:
    """What the container gets: an address of each of the node's subnets, a MAC, a device name. Pending. Raises Refused.

    `last`: the addresses handed out last, one per subnet. `now`: seconds since 1970.
    """
    if any((a.container_id, a.ifname) == (request.container_id, request.ifname) for a in attached):
        raise Refused(f"container {request.container_id} has its {request.ifname} already: detach it first")
    taken = {prefix.address for a in attached for prefix in a.addresses}
    for address in request.addresses:
        check_static(network.subnets, address, taken)
    addresses = []
    for subnet in network.subnets:
        wanted = [address for address in request.addresses if subnet.contains(address)]
        if len(wanted) > 1:
            raise Refused(f"addresses {' and '.join(map(format_address, wanted))}: one of each family")
        before = next((address for address in last if subnet.contains(address)), None)
        addresses.append(Prefix(wanted[0] if wanted else free_address(subnet, taken, before), subnet.length))
    if not addresses:
        raise Refused("this node has no subnet yet: wait until its agent holds a lease")
    mac = request.mac or mac_of(addresses[0].address)
    if any(a.mac == mac and a.bridge == network.bridge for a in attached) or mac == mac_of(gateways(network)[0].address):
        raise Refused(f"MAC {format_mac(mac)} is in use on {network.bridge} already")
    return Attachment(
        container_id=request.container_id,
        ifname=request.ifname,
        netns=request.netns,
        host_name=host_name(request.container_id, request.ifname),
        bridge=network.bridge,
        mac=mac,
        addresses=tuple(addresses),
        since=now,
        pending=True,
    )


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

    def __str__(self) -> str:
        words = ["ip link set", self.name]
        if self.no_link_local is not None:
            words.append("addrgenmode none" if self.no_link_local else "addrgenmode eui64")
        if self.mtu is not None:
            words.append(f"mtu {self.mtu}")
        if self.master is not None:
            words.append(f"master {self.master}")
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


Action = CreateBridge | CreateVeth | SetLink | Hairpin | DeleteLink | Sysctl | Change | Announce


class Step(msgspec.Struct, frozen=True):
    """One thing to do, on the node or inside the container, and what takes it back."""

    action: Action
    undo: Action | None = None
    inside: bool = False


class Facts(msgspec.Struct, frozen=True):
    """What the plan must know about the node and the container as they are now."""

    bridge: Link | None
    bridge_addresses: frozenset[Prefix] = frozenset()
    loopback_up: bool = False
    ipv6: bool = True  # the kernel has it at all


def gateways(network: NodeNetwork) -> tuple[Prefix, ...]:
    """The bridge's own addresses: the first of each subnet."""
    return tuple(Prefix(subnet.host(GATEWAY), subnet.length) for subnet in network.subnets)


def missing_addresses(network: NodeNetwork, facts: Facts) -> tuple[InterfaceAddress, ...]:
    """What the bridge needs and does not have: the gateways, and for IPv6 a link-local address.

    Without that one Linux sends no neighbour solicitation for a packet that it forwards (ndisc_send_ns): a container would be reached
    from other nodes only after it has spoken itself.
    """
    mac = facts.bridge.mac if facts.bridge is not None else mac_of(gateways(network)[0].address)
    wanted = [InterfaceAddress(network.bridge, gateway, nodad=gateway.family == 6) for gateway in gateways(network)]
    if network.subnet6 is not None and not any(LINK_LOCAL.contains(prefix) for prefix in facts.bridge_addresses):
        wanted.append(InterfaceAddress(network.bridge, link_local(mac), SCOPE_LINK, nodad=True))
    return tuple(row for row in wanted if row.address not in facts.bridge_addresses)


def steps(attachment: Attachment, network: NodeNetwork, facts: Facts) -> tuple[Step, ...]:
    """All that is to be done, in order. Raises Refused when the bridge's name belongs to another kind of device."""
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
        steps += [Step(CreateBridge(name, mac, network.mtu), DeleteLink(name)), Step(SetLink(name, no_link_local=True)), *quiet]
    elif bridge.kind != "bridge":
        raise Refused(f"{name} is a {bridge.kind or 'physical'} device here, not a bridge: remove it, or choose another name for the bridge")
    elif bridge.mtu != network.mtu:
        steps.append(Step(SetLink(name, mtu=network.mtu), SetLink(name, mtu=bridge.mtu)))
    steps += [Step(Change("replace", row), Change("delete", row)) for row in missing_addresses(network, facts)]
    if bridge is None or not bridge.up:
        steps.append(Step(SetLink(name, up=True), SetLink(name, up=False)))
    return tuple(steps)


def container_steps(attachment: Attachment, network: NodeNetwork, facts: Facts) -> tuple[Step, ...]:
    """The veth, what the container's side needs to be ready when the last step is done, and the announcement."""
    inside, port = attachment.ifname, attachment.host_name
    veth = CreateVeth(port, b"\x0a\x59" + bytes.fromhex(port[-8:]), inside, attachment.mac, network.mtu, attachment.netns)
    steps = [Step(veth, DeleteLink(port))]
    if not facts.loopback_up:
        steps.append(Step(SetLink("lo", up=True), SetLink("lo", up=False), inside=True))
    # No addresses of the kernel's own making, which would be tentative for a second: the link-local one is given below.
    steps += [Step(SetLink(port, no_link_local=True)), Step(SetLink(inside, no_link_local=True), inside=True)]
    if facts.ipv6:
        steps.append(Step(Sysctl(f"net/ipv6/conf/{inside}/accept_ra", "0"), inside=True))
    if any(address.family == 6 for address in attachment.addresses):  # runtimes create namespaces with IPv6 switched off
        steps.append(Step(Sysctl(f"net/ipv6/conf/{inside}/disable_ipv6", "0"), inside=True))
    steps += [Step(SetLink(inside, up=True), inside=True), Step(SetLink(port, up=True)), Step(SetLink(port, master=network.bridge)), Step(Hairpin(port))]
    for address in attachment.addresses:
        if address.family == 6:
            steps.append(put(InterfaceAddress(inside, link_local(attachment.mac), SCOPE_LINK, nodad=True)))
        steps.append(put(InterfaceAddress(inside, address, nodad=address.family == 6)))
        gateway = address.host(GATEWAY)
        everywhere = Prefix(bytes(len(gateway)), 0)
        steps += [put(Route(dst, inside, gateway, protocol=PROTOCOL_BOOT)) for dst in (everywhere, *network.networks) if dst.family == address.family]
    return (*steps, Step(Announce(inside, attachment.mac, tuple(a.address for a in attachment.addresses)), inside=True))


def put(row: InterfaceAddress | Route) -> Step:
    """A row inside the container; it goes with the device."""
    return Step(Change("replace", row), inside=True)


def link_local(mac: bytes) -> Prefix:
    """The IPv6 link-local address that the kernel would make of a MAC (RFC 4291, modified EUI-64)."""
    return Prefix(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:], 64)


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


# ---- as text ----------------------------------------------------------------------------------------------------


def as_json(attachment: Attachment) -> dict[str, Any]:
    """For the ledger and the agent's API: addresses as text."""
    fields = msgspec.structs.asdict(attachment)
    return fields | {"mac": format_mac(attachment.mac), "addresses": [str(a) for a in attachment.addresses]}


def from_json(fields: dict[str, Any]) -> Attachment:
    """The reverse of `as_json`. Raises ValueError (msgspec's too) when a field is missing or cannot be read."""
    if not isinstance(fields.get("addresses"), list):
        raise ValueError("addresses: a list is missing")
    addresses = [[prefix.address, prefix.length] for prefix in map(Prefix.parse, fields["addresses"])]
    typed = fields | {"mac": parse_mac(str(fields.get("mac"))), "addresses": [{"address": a, "length": n} for a, n in addresses]}
    return msgspec.convert(typed, Attachment)


class RequestBody(msgspec.Struct, forbid_unknown_fields=True):
    container_id: str
    ifname: str
    netns: str
    addresses: list[str] = []
    mac: str | None = None


def request_from_json(body: Any) -> AttachRequest:
    """The request that a client of the agent's API sent. Raises UsageError with the offending field and value."""
    try:
        fields = msgspec.convert(body, RequestBody)
        addresses = tuple(parse_address(text) for text in fields.addresses)
        mac = parse_mac(fields.mac) if fields.mac is not None else None
    except ValueError as error:
        raise UsageError(f"attachment: {error}") from None
    check_identity(fields.container_id, fields.ifname)
    if not fields.netns.startswith("/"):
        raise UsageError(f"attachment: netns {fields.netns!r} is not an absolute path")
    if mac is not None and not is_unicast_mac(mac):
        raise UsageError(f"attachment: mac {fields.mac} is not one that a device can have")
    return AttachRequest(fields.container_id, fields.ifname, fields.netns, addresses, mac)


def check_identity(container_id: str, ifname: str) -> None:
    """Raises UsageError when these cannot name an attachment (CNI specification 1.1; dev_valid_name in the kernel)."""
    if CONTAINER_ID.fullmatch(container_id) is None:
        raise UsageError(f"attachment: container id {container_id!r}: a letter or digit, then letters, digits, '_', '.', '-'")
    if not 1 <= len(ifname.encode()) <= 15 or ifname in (".", "..") or any(c in "/:" or c.isspace() or not c.isprintable() for c in ifname):
        raise UsageError(f"attachment: interface name {ifname!r}: 1 to 15 characters, without '/', ':' and blanks")
