"""Choosing what a container gets: its addresses, its MAC, the name of its device on the node."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b

from tweed.addr import Prefix, format_address, format_mac
from tweed.plan.attachment import Attachment, AttachRequest, NoAddress, NodeNetwork, Range, Refused, Span, Via

QUARANTINE_S = 30.0  # a neighbour stays unasked for as long as this (base_reachable_time), and longer only where traffic still flows


def host_name(container_id: str, ifname: str) -> str:
    """The name of the veth's end on the node, a function of what it is for: `veth` and 8 hexadecimal digits."""
    return "veth" + blake2b(f"{container_id}/{ifname}".encode(), digest_size=4).hexdigest()


def mac_of(address: bytes) -> bytes:
    """The MAC of a container or gateway with this address: 0a:58 and its last four bytes, as CNI and OVN have long made them.

    A container that takes over an address thereby takes over the MAC in everybody's neighbour tables too.
    """
    return b"\x0a\x58" + address[-4:]


def usable(pool: Range) -> Span | None:
    """What may be handed out of a range: never the subnet's base, IPv4's broadcast address, or the gateway at either end. None: nothing."""
    low, high = (int.from_bytes(a, "big") for a in (pool.span.first, pool.span.last))
    base, gateway = pool.subnet.value, int.from_bytes(pool.gateway, "big")
    low, high = max(low, base + 1), min(high, base + pool.subnet.step - 1 - (pool.subnet.family == 4))
    low, high = low + (low == gateway), high - (high == gateway)
    size = len(pool.gateway)
    return Span(low.to_bytes(size, "big"), high.to_bytes(size, "big")) if low <= high else None


def free_address(pool: Range, taken: Collection[bytes], last: bytes | None) -> bytes | None:
    """The next free address after `last` (the one handed out before), round the range: what was just freed comes last.

    None when all are taken. `taken` may hold addresses of anywhere.
    """
    span = usable(pool)
    if span is not None:
        first, end = int.from_bytes(span.first, "big"), int.from_bytes(span.last, "big") + 1
        start = int.from_bytes(last, "big") + 1 if last is not None and last in span else first
        for i in range(min(end - first, len(taken) + 2)):  # the gateway may be in the middle
            address = (first + (start - first + i) % (end - first)).to_bytes(len(pool.gateway), "big")
            if address not in taken and address != pool.gateway:
                return address
    return None


class Taken:
    """Which addresses nobody may get: those attached, those that others hold, and for who asks for none in particular the reserved
    ones and those in quarantine. `freed`: when an address was freed, in seconds of the same clock as `clock`."""

    def __init__(
        self,
        attached: Collection[Attachment],
        others: Collection[bytes] = (),
        freed: Mapping[bytes, float] | None = None,
        clock: float = 0.0,
    ) -> None:
        self.hard = {prefix.address for a in attached for prefix in a.addresses} | set(others)
        self.leaves = {address: at + QUARANTINE_S - clock for address, at in (freed or {}).items() if at <= clock < at + QUARANTINE_S}

    def pick(self, pools: Sequence[Range], last: Sequence[bytes], reserved: Collection[Span]) -> tuple[Range, bytes]:
        """An address of one of a set of ranges: of the one that gave the last, then of the others in order. `last`: the newest at the end.

        Raises NoAddress, with the time to wait when only the quarantine is in the way.
        """
        newest = {pool: max((at for at, address in enumerate(last) if address in pool.span), default=-1) for pool in pools}
        for pool in sorted(pools, key=lambda pool: -newest[pool]):
            soft = self.hard.union(self.leaves, *(members(span, pool) for span in reserved))
            address = free_address(pool, soft, last[newest[pool]] if newest[pool] >= 0 else None)
            if address is not None:
                return pool, address
        where = " and ".join(dict.fromkeys(str(pool.subnet) for pool in pools))
        waits = [left for address, left in self.leaves.items() if any(address in pool.span for pool in pools) and address not in self.hard]
        if not waits:
            raise NoAddress(f"no address is left in {where}: detach a container, or give nodes larger subnets (SubnetLen)")
        wait_s = min(waits)
        text = f"no address is free in {where} now: those that nobody has were in use until just now, the first is free in {wait_s:.0f} s; try again then"
        raise NoAddress(text, wait_s)


def members(span: Span, pool: Range) -> set[bytes]:
    """The addresses of a reservation that lie in a range. A reservation is small (see `plan.network`)."""
    size = len(span.first)
    if size != len(pool.gateway):
        return set()
    low = max(int.from_bytes(span.first, "big"), int.from_bytes(pool.span.first, "big"))
    high = min(int.from_bytes(span.last, "big"), int.from_bytes(pool.span.last, "big"))
    return {value.to_bytes(size, "big") for value in range(low, high + 1)}


def check_static(pools: Collection[Range], address: bytes, taken: Collection[bytes]) -> None:
    """Raises Refused when a wanted address is not to be had on this node."""
    text = format_address(address)
    pool = next((pool for pool in pools if pool.subnet.contains(address)), None)
    if pool is None:
        raise Refused(f"address {text} is not of this node's {' or '.join(str(p.subnet) for p in pools)}")
    offset = int.from_bytes(address, "big") - pool.subnet.value
    what = "gateway" if address == pool.gateway else "base" if offset == 0 else ""
    if pool.subnet.family == 4 and offset == pool.subnet.step - 1:
        what = "broadcast address"
    if what:
        raise Refused(f"address {text} is the {what} of {pool.subnet}: choose another")
    if address in taken:
        raise Refused(f"address {text} is attached already")


def place(
    request: AttachRequest,
    network: NodeNetwork,
    attached: Collection[Attachment],
    last: Sequence[bytes],
    now: float,
    taken: Taken | None = None,
    routed: Collection[Prefix] = (),
) -> Attachment:
    """What the container gets: an address of each set of ranges, a MAC, a device name, routes. Pending. Raises Refused.

    `last`: the addresses handed out last, one per subnet. `now`: seconds since 1970. `routed`: destinations that the container has
    routes to from an earlier network, which stay.
    """
    if any(a.key == (request.container_id, request.ifname) for a in attached):
        raise Refused(f"container {request.container_id} has its {request.ifname} already: detach it first")
    taken = taken or Taken(attached)
    if not network.sets:
        raise Refused("this node has no subnet yet: wait until its agent holds a lease")
    for address in request.addresses:
        check_static(network.pools, address, taken.hard)
    chosen: list[tuple[Range, bytes]] = []
    for pools in network.sets:
        wanted = [(pool, address) for address in request.addresses for pool in pools if pool.subnet.contains(address)]
        if len({address for _, address in wanted}) > 1:
            raise Refused(f"addresses {' and '.join(dict.fromkeys(format_address(address) for _, address in wanted))}: one of each family")
        chosen.append(wanted[0] if wanted else taken.pick(pools, last, network.reserved))
    mac = request.mac or mac_of(chosen[0][1])
    if any(a.mac == mac and a.bridge == network.bridge for a in attached) or mac == mac_of(network.pools[0].gateway):
        raise Refused(f"MAC {format_mac(mac)} is in use on {network.bridge} already")
    return Attachment(
        container_id=request.container_id,
        ifname=request.ifname,
        netns=request.netns,
        host_name=host_name(request.container_id, request.ifname),
        bridge=network.bridge,
        mac=mac,
        addresses=tuple(Prefix(address, pool.subnet.length) for pool, address in chosen),
        since=now,
        pending=True,
        network=network.name,
        pod=request.pod,
        mtu=network.mtu,
        gateways=tuple(pool.gateway for pool, _ in chosen),
        routes=routes(network, [pool for pool, _ in chosen], routed),
        hairpin=network.hairpin,
        promisc=network.promisc,
        masquerade=network.masquerade,
    )


def routes(network: NodeNetwork, pools: Sequence[Range], routed: Collection[Prefix]) -> tuple[Via, ...]:
    """The routes of a container with addresses of `pools`: those asked for, to the overlay, and the default one, each through its
    family's gateway. The first of one destination wins, as with CNI's own plugins."""
    found: dict[Prefix, Via] = {}
    for pool in reversed(pools):
        family = pool.subnet.family
        wanted = [(dst, via) for dst, via in network.routes if dst.family == family]
        wanted += [(dst, None) for dst in network.networks if dst.family == family]
        wanted += [(Prefix(bytes(len(pool.gateway)), 0), None)] if network.default_route else []
        found |= {dst: Via(dst, via or pool.gateway) for dst, via in reversed(wanted) if dst not in routed}
    return tuple(reversed(found.values()))
