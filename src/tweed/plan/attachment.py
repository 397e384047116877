"""The values of attaching: what a node offers its containers, what was asked for one, what one has; and the same as JSON."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address, format_mac, is_unicast_mac, parse_address, parse_mac
from tweed.errors import TweedError, UsageError
from tweed.wire.cni import check_identity

BRIDGE = "cni0"
GATEWAY = 1  # the offset of the gateway in the node's subnet, as flannel's FLANNEL_SUBNET has it


class Refused(TweedError):
    """An attachment that cannot be made; nothing was changed."""


class NoAddress(Refused):
    """Every address is in use. `wait_s`: seconds until one leaves its quarantine, None when all are attached."""

    def __init__(self, text: str, wait_s: float | None = None) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class Unknown(Refused):
    """There is no such attachment, or no such namespace."""


class Span(msgspec.Struct, frozen=True):
    """Addresses from `first` to `last`, both included."""

    first: bytes
    last: bytes

    @property
    def size(self) -> int:
        return int.from_bytes(self.last, "big") - int.from_bytes(self.first, "big") + 1

    def __contains__(self, address: bytes) -> bool:
        return len(address) == len(self.first) and self.first <= address <= self.last

    def __str__(self) -> str:
        return format_address(self.first) if self.first == self.last else f"{format_address(self.first)}-{format_address(self.last)}"


class Range(msgspec.Struct, frozen=True):
    """Where one address of every container comes from: part of a subnet, whose gateway is the bridge."""

    subnet: Prefix
    gateway: bytes
    span: Span

    @classmethod
    def whole(cls, subnet: Prefix, gateway: bytes | None = None, first: bytes | None = None, last: bytes | None = None) -> Range:
        """All of a subnet but its base and gateway (its first address where none is given) and IPv4's broadcast address."""
        subnet = subnet.network
        end = subnet.step - 1 - (subnet.family == 4)
        top = subnet.host(max(end, 0))
        return cls(subnet, gateway or subnet.host(min(GATEWAY, subnet.step - 1)), Span(first or subnet.host(min(GATEWAY, end)), last or top))


class Via(msgspec.Struct, frozen=True):
    """A route of a container."""

    dst: Prefix
    gateway: bytes

    def __str__(self) -> str:
        return f"{self.dst} via {format_address(self.gateway)}"

    @classmethod
    def parse(cls, text: str) -> Via:
        dst, _, gateway = text.partition(" via ")
        return cls(Prefix.parse(dst), parse_address(gateway))


class NodeNetwork(msgspec.Struct, frozen=True, dict=True):
    """What a node offers its containers: its own subnets (None: family off), the MTU that fits both, the cluster's networks.

    What follows is as one CNI configuration has it. `ranges`: sets of ranges instead of the whole subnets, a container gets an address
    of each set; `reserved`: given only to who names one of them; `routes`: further ones, through the gateway where none is given;
    `masquerade`: what leaves the cluster shall have the node's address.
    """

    subnet: Prefix | None
    subnet6: Prefix | None
    mtu: int
    bridge: str = BRIDGE
    networks: tuple[Prefix, ...] = ()
    name: str = ""
    ranges: tuple[tuple[Range, ...], ...] = ()
    reserved: tuple[Span, ...] = ()
    default_route: bool = True
    routes: tuple[tuple[Prefix, bytes | None], ...] = ()
    hairpin: bool = True
    promisc: bool = False
    masquerade: bool = False

    @property
    def subnets(self) -> tuple[Prefix, ...]:
        """The node's own."""
        return tuple(subnet.network for subnet in (self.subnet, self.subnet6) if subnet is not None)

    @cached_property
    def sets(self) -> tuple[tuple[Range, ...], ...]:
        return self.ranges or tuple((Range.whole(subnet),) for subnet in self.subnets)

    @cached_property
    def pools(self) -> tuple[Range, ...]:
        return tuple(pool for pools in self.sets for pool in pools)


class AttachRequest(msgspec.Struct, frozen=True):
    """`netns` is a path (`/run/netns/x`, `/proc/self/fd/7`); `addresses` are wanted ones, at most one of each set of ranges. `pod`: its name, for people."""

    container_id: str
    ifname: str
    netns: str
    addresses: tuple[bytes, ...] = ()
    mac: bytes | None = None
    pod: str = ""


class Attachment(msgspec.Struct, frozen=True):
    """A container on the node's bridge: who, its device on the node, what it was given, since when (seconds since 1970).

    `network`: the CNI network's name, "" for one that was attached through the agent's API. `gateways`: one for each address.
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
    network: str = ""
    pod: str = ""
    mtu: int = 0
    gateways: tuple[bytes, ...] = ()
    routes: tuple[Via, ...] = ()
    hairpin: bool = True
    promisc: bool = False
    masquerade: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.container_id, self.ifname

    @property
    def addresses_text(self) -> str:
        return " and ".join(format_address(prefix.address) for prefix in self.addresses)


# ---- as text ----------------------------------------------------------------------------------------------------


def as_json(attachment: Attachment) -> dict[str, Any]:
    """For the ledger and the agent's API: addresses as text."""
    return msgspec.structs.asdict(attachment) | {
        "mac": format_mac(attachment.mac),
        "addresses": [str(a) for a in attachment.addresses],
        "gateways": [format_address(g) for g in attachment.gateways],
        "routes": [str(route) for route in attachment.routes],
    }


def from_json(fields: dict[str, Any]) -> Attachment:
    """The reverse of `as_json`. Raises ValueError (msgspec's too) when a field is missing or cannot be read."""
    texts = {name: fields.get(name, []) for name in ("addresses", "gateways", "routes")}
    for name, found in texts.items():
        if not isinstance(found, list) or (name == "addresses" and not found):
            raise ValueError(f"{name}: a list is missing")
    plain = {name: value for name, value in fields.items() if name not in texts}
    bare = msgspec.convert(plain | {"mac": parse_mac(str(fields.get("mac"))), "addresses": []}, Attachment)
    return msgspec.structs.replace(
        bare,
        addresses=tuple(map(Prefix.parse, texts["addresses"])),
        gateways=tuple(map(parse_address, texts["gateways"])),
        routes=tuple(map(Via.parse, texts["routes"])),
    )


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
    try:
        check_identity(fields.container_id, fields.ifname)
    except UsageError as error:
        raise UsageError(f"attachment: {error}") from None
    if not fields.netns.startswith("/"):
        raise UsageError(f"attachment: netns {fields.netns!r} is not an absolute path")
    if mac is not None and not is_unicast_mac(mac):
        raise UsageError(f"attachment: mac {fields.mac} is not one that a device can have")
    return AttachRequest(fields.container_id, fields.ifname, fields.netns, addresses, mac)
