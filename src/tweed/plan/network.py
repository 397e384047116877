"""From a CNI configuration to what a node offers its containers: tweed's own, and flannel's in whose place we may stand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from tweed.addr import Prefix, parse_address
from tweed.errors import UsageError
from tweed.plan.attachment import NodeNetwork, Range, Span
from tweed.wire.cni import INVALID, UNSUPPORTED, CniError, Conf, RangeConf, RouteConf, check_identity
from tweed.wire.flannel import SubnetEnv

RESERVED_MAX = 1 << 16  # addresses, of all reservations together; they are looked at one by one
RANGES_MAX = 64  # of all sets together; each is compared with each
PARTS_MAX = 256
MTU_MIN, MTU_MAX = 576, 65535


def network_of(conf: Conf, node: NodeNetwork, env: SubnetEnv | None = None) -> NodeNetwork:
    """`node` as this configuration wants it. `env`: what flannel's file says, for a configuration of flannel's. Raises CniError."""
    return of_flannel(conf, node, env) if conf.is_flannel else of_tweed(conf, node)


def of_tweed(conf: Conf, node: NodeNetwork) -> NodeNetwork:
    if conf.ipam.type not in ("", "tweed", "host-local"):
        raise CniError(UNSUPPORTED, f"unsupported field ipam.type: {conf.ipam.type!r}; tweed gives addresses itself")
    if conf.vlan:
        raise CniError(UNSUPPORTED, f"unsupported field vlan: {conf.vlan}")
    if conf.hairpin_mode and conf.promisc_mode:
        raise CniError(INVALID, "hairpinMode and promiscMode are both on: choose one, with both a container gets every frame twice")
    network = msgspec.structs.replace(
        node,
        name=conf.name,
        bridge=bridge_name(conf.bridge),
        mtu=mtu_of(conf.mtu, node.mtu),
        hairpin=not conf.promisc_mode if conf.hairpin_mode is None else conf.hairpin_mode,
        promisc=conf.promisc_mode,
        default_route=conf.is_default_gateway,
        masquerade=conf.ip_masq,
        routes=tuple(map(route_of, conf.ipam.routes)),
        reserved=reserved_of(conf.ipam.reserved),
        ranges=ranges_of(conf, node),
    )
    on_overlay = any(subnet.contains(pool.subnet) for pool in network.pools for subnet in node.subnets)
    if conf.ip_masq and not on_overlay:
        raise CniError(UNSUPPORTED, "unsupported field ipMasq: true; tweed masquerades what leaves the overlay, and these ranges are outside of it")
    for pool in network.pools:
        if any(own.overlaps(pool.subnet) for own in node.subnets) and not any(left.subnet.contains(pool.subnet) for left in node.pools):
            left = " and ".join(str(each.subnet) for each in node.pools)
            raise CniError(INVALID, f"{pool.subnet} is not within {left}, which is what Docker leaves to pods: choose a range or part of that")
    return network if on_overlay or not network.ranges else msgspec.structs.replace(network, networks=())


def of_flannel(conf: Conf, node: NodeNetwork, env: SubnetEnv | None) -> NodeNetwork:
    """What flannel's plugin would have had the bridge plugin do. Where `env` is given it has to speak of this node's lease."""
    delegate = conf.delegate
    for key in ("name", "ipam"):
        if getattr(delegate, key) is not None:
            raise CniError(INVALID, f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel")
    if delegate.type != "bridge":
        raise CniError(UNSUPPORTED, f"unsupported field delegate.type: {delegate.type!r}; tweed stands in for bridge")
    if not delegate.is_gateway:
        raise CniError(UNSUPPORTED, "unsupported field delegate.isGateway: false; the overlay reaches containers through the bridge's address")
    if delegate.hairpin_mode and delegate.promisc_mode:
        raise CniError(INVALID, "cannot set hairpin mode and promiscuous mode at the same time")
    if conf.ipam.type not in ("", "host-local"):
        raise CniError(UNSUPPORTED, f"unsupported field ipam.type: {conf.ipam.type!r}; tweed stands in for host-local")
    if env is not None and env.subnets and not all(any(said.contains(own) for said in env.subnets) for own in node.subnets):
        texts = [" and ".join(map(str, subnets)) for subnets in (env.subnets, node.subnets)]
        raise CniError(INVALID, f"{conf.subnet_file or 'subnet.env'} says {texts[0]}, but this node's lease is {texts[1]}: let one agent write it")
    return msgspec.structs.replace(
        node,
        name=conf.name,
        bridge=bridge_name(delegate.bridge or "cni0"),
        mtu=mtu_of(delegate.mtu, env.mtu if env is not None and env.mtu else node.mtu),
        hairpin=delegate.hairpin_mode,
        promisc=delegate.promisc_mode,
        default_route=delegate.is_default_gateway,
        masquerade=bool(delegate.ip_masq) if delegate.ip_masq is not None or env is None else not env.ip_masq,
        routes=tuple(map(route_of, conf.ipam.routes)),
    )


def bridge_name(name: str) -> str:
    try:
        check_identity("x", name)
    except UsageError as error:
        raise CniError(INVALID, f"bridge: {error}") from None
    return name


def mtu_of(wanted: int, otherwise: int) -> int:
    """0: not asked for."""
    if wanted and not MTU_MIN <= wanted <= MTU_MAX:
        raise CniError(INVALID, f"mtu is {wanted}: use {MTU_MIN} to {MTU_MAX}, or leave it out for the overlay's")
    return wanted or otherwise


def route_of(conf: RouteConf) -> tuple[Prefix, bytes | None]:
    try:
        dst, gateway = Prefix.parse(conf.dst).network, parse_address(conf.gw) if conf.gw else None
    except ValueError as error:
        raise CniError(INVALID, f"ipam.routes: {error}") from None
    if gateway is not None and len(gateway) != len(dst.address):
        raise CniError(INVALID, f"ipam.routes: {conf.dst} via {conf.gw}: the families differ")
    return dst, gateway


def reserved_of(texts: Sequence[str]) -> tuple[Span, ...]:
    spans = tuple(map(span_of, texts))
    if sum(span.size for span in spans) > RESERVED_MAX:
        raise CniError(INVALID, f"ipam.reserved: more than {RESERVED_MAX} addresses together")
    return spans


def span_of(text: str) -> Span:
    """`10.1.1.9`, `10.1.1.9-10.1.1.20` or `10.1.1.16/28`."""
    try:
        if "/" in text:
            prefix = Prefix.parse(text).network
            span = Span(prefix.address, prefix.host(prefix.step - 1))
        else:
            first, _, last = text.partition("-")
            span = Span(parse_address(first), parse_address(last or first))
    except ValueError as error:
        raise CniError(INVALID, f"ipam.reserved: {error}") from None
    if len(span.first) != len(span.last) or not 1 <= span.size <= RESERVED_MAX:
        raise CniError(INVALID, f"ipam.reserved: {text[:80]!r} is not 1 to {RESERVED_MAX} addresses in order")
    return span


# ---- ranges -----------------------------------------------------------------------------------------------------


def ranges_of(conf: Conf, node: NodeNetwork) -> tuple[tuple[Range, ...], ...]:
    """Where the addresses come from, the node's own ranges where nothing is said. Raises CniError."""
    sets = conf.runtime_config.ip_ranges or conf.ipam.ranges
    if conf.ipam.part:
        if sets:
            raise CniError(INVALID, "ipam.part and ranges are both given: choose one")
        return tuple((Range.whole(part_of(conf.ipam.part, subnet)),) for subnet in node.subnets)
    found = tuple(tuple(range_of(each, node) for each in ranges) for ranges in sets)
    check_sets(found)
    return found or node.ranges


def check_sets(sets: tuple[tuple[Range, ...], ...]) -> None:
    """Raises CniError unless each set is of one family and no address is in two ranges. Within a set they may be of one subnet."""
    for pools in sets:
        if len({pool.subnet.family for pool in pools}) != 1:
            raise CniError(INVALID, "ranges: each set needs a range, and gives a container one address: put IPv4 and IPv6 into sets of their own")
    if sum(map(len, sets)) > RANGES_MAX:
        raise CniError(INVALID, f"ranges: more than {RANGES_MAX} together")
    flat = [(at, pool) for at, pools in enumerate(sets) for pool in pools]
    for (set1, one), (set2, other) in itertools.combinations(flat, 2):
        if not one.subnet.overlaps(other.subnet):
            continue
        beside = one.span.last < other.span.first or other.span.last < one.span.first
        if not (set1 == set2 and beside and (one.subnet, one.gateway) == (other.subnet, other.gateway)):
            raise CniError(INVALID, f"ranges: {one.span} of {one.subnet} and {other.span} of {other.subnet} overlap, or are of two sets or two gateways")


def part_of(text: str, subnet: Prefix) -> Prefix:
    """`"2/4"`: the second quarter."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and len(text) < 9):
        raise CniError(INVALID, f"ipam.part is {text[:40]!r}: write 1/2 for the first half, 2/4 for the second quarter")
    parts = int(count)
    if parts not in {1 << bits for bits in range(9)} or not 1 <= int(number) <= parts or subnet.step // parts < 4:
        raise CniError(INVALID, f"ipam.part is {text!r}: {subnet} has parts 1 to 2, 4, 8 and so on, of 4 addresses or more, at most {PARTS_MAX}")
    length = subnet.length + parts.bit_length() - 1
    return Prefix.of(subnet.value + (int(number) - 1) * (1 << (subnet.bits - length)), length, subnet.family)


def range_of(conf: RangeConf, node: NodeNetwork) -> Range:
    try:
        subnet = Prefix.parse(conf.subnet)
        ends = [parse_address(text) if text else None for text in (conf.gateway, conf.range_start, conf.range_end)]
    except ValueError as error:
        raise CniError(INVALID, f"ranges: {error}") from None
    if subnet != subnet.network or subnet.step < 4:
        raise CniError(INVALID, f"ranges: {conf.subnet} is not a network of 4 addresses or more; its host bits must be zero")
    for address, text in zip(ends, (conf.gateway, conf.range_start, conf.range_end), strict=True):
        if address is not None and not subnet.contains(address):
            raise CniError(INVALID, f"ranges: {text} is not in {conf.subnet}")
    whole = Range.whole(subnet, *ends)
    if whole.span.first > whole.span.last:
        raise CniError(INVALID, f"ranges: {conf.range_start} comes after {conf.range_end}")
    if any(cluster.overlaps(subnet) for cluster in node.networks) and not any(own.contains(subnet) for own in node.subnets):
        own = " and ".join(map(str, node.subnets))
        raise CniError(INVALID, f"ranges: {subnet} is inside the cluster's network and not this node's {own}: other nodes would not find it")
    return whole
