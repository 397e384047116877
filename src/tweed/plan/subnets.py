"""Which subnet a node gets, which lease in the store is already its own, and which MAC its VTEP has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from tweed.addr import Prefix, format_address
from tweed.errors import TweedError
from tweed.model import LeaseRecord, Owner
from tweed.wire.flannel import Network, Range, SubnetEnv

# flannel picks among this many free subnets, so that nodes that ask at once rarely pick the same one.
CANDIDATES = 100


class OutOfSubnets(TweedError):
    """Every subnet of the range is leased."""

    def __init__(self, span: Range) -> None:
        super().__init__(
            f"out of subnets: every /{span.subnet_len} from {span} is leased; release one (tweed lease list, tweed lease release) or raise SubnetMax"
        )


# ---- a subnet for this node ---------------------------------------------------------------------------------------


def choose(network: Network, taken: Iterable[Prefix], previous: SubnetEnv | None, pick: Callable[[int], int]) -> tuple[Prefix | None, Prefix | None]:
    """An IPv4 and an IPv6 subnet that overlap nothing in `taken`, None for a family that is off. Raises OutOfSubnets.

    The previous subnet where it is free and fits; else one of the first 100 free ones, `pick(n)` being a random index below n
    (flannel's rule). The IPv6 subnet has the same place in its range as the IPv4 one where that is free, so that two nodes
    that race for one IPv4 subnet also ask for the same key, and one of them is told.
    """
    occupied = list(taken)
    subnet = subnet6 = place = None
    if (span := network.range(4)) is not None:
        subnet = _choose(span, occupied, previous.subnet if previous else None, None, pick)
        place = subnet.number - span.first.number
    if (span6 := network.range(6)) is not None:
        subnet6 = _choose(span6, occupied, previous.subnet6 if previous else None, place, pick)
    return subnet, subnet6


def _choose(span: Range, taken: list[Prefix], previous: Prefix | None, place: int | None, pick: Callable[[int], int]) -> Prefix:
    family = span.network.family
    if previous is not None and span.fits(previous) and not any(previous.overlaps(t) for t in taken):
        return previous
    if place is not None:
        same = span.first.number + place
        if same <= span.last.number:
            subnet = Prefix.of(same * span.first.step, span.subnet_len, family)
            if not any(subnet.overlaps(t) for t in taken):
                return subnet
    free = []
    for number in _free(span, taken):
        free.append(number)
        if len(free) == CANDIDATES:
            break
    if not free:
        raise OutOfSubnets(span)
    return Prefix.of(free[pick(len(free))] * span.first.step, span.subnet_len, family)


def _free(span: Range, taken: list[Prefix]) -> Iterator[int]:
    """Numbers of the free subnets of the range, in order. One sorted pass over `taken`: occupied stretches are jumped over, not walked."""
    step = span.first.step
    blocks = sorted((base // step, (base + t.step - 1) // step) for t in taken if t.family == span.network.family for base in (t.value & -t.step,))
    number = span.first.number
    for low, high in blocks:
        while number < low and number <= span.last.number:
            yield number
            number += 1
        number = max(number, high + 1)
    while number <= span.last.number:
        yield number
        number += 1


def vtep_mac(network: Prefix, vni: int, subnet: Prefix, attempt: int = 0) -> bytes:
    """The MAC of the VTEP that serves `subnet`: locally administered, unicast, the same after every reboot. `attempt` > 0 gives others."""
    digest = hashlib.sha256(f"{network} {vni} {subnet} {attempt}".encode()).digest()
    return bytes((digest[0] & 0xFC | 0x02,)) + digest[1:6]


# ---- leases that are there already --------------------------------------------------------------------------------


class Rival(msgspec.Struct, frozen=True):
    """Somebody else's lease that should not exist beside ours, and what is wrong, in one line."""

    record: LeaseRecord
    why: str

    def __str__(self) -> str:
        return self.why


class Adoption(msgspec.Struct, frozen=True):
    """What to do before this node has its lease: take over `record` (None: choose a subnet), delete `delete` first, tell `rivals` loudly."""

    record: LeaseRecord | None
    delete: tuple[LeaseRecord, ...] = ()
    rivals: tuple[Rival, ...] = ()


def fits(network: Network, record: LeaseRecord) -> bool:
    """True when the lease has a subnet of every family that is on, from its range, and none of a family that is off."""
    for family, endpoint in ((4, record.lease.v4), (6, record.lease.v6)):
        span = network.range(family)
        if (span is None) != (endpoint is None) or (span is not None and endpoint is not None and not span.fits(endpoint.subnet)):
            return False
    return True


def adopt(
    network: Network,
    records: Iterable[LeaseRecord],
    public_ip: bytes | None,
    public_ip6: bytes | None,
    owner: Owner,
    previous: SubnetEnv | None,
    local_macs: Collection[bytes],
    renew_margin_s: float,
) -> Adoption:
    """Finds the lease that this node held before among `records`.

    A lease with this node's public address (IPv6 only where IPv4 is off) is its own when the owner record names it; without an owner
    record, when it is a reservation, or its subnet is the one in subnet.env, or a local VTEP has its MAC, or its holder has stopped
    renewing it. A lease of this node's name with its previous subnet is its own too: the address changed while it was down.
    Anything else with its address or its name is a rival. Own leases that no longer fit the network are to be deleted (flannel's rule).
    """
    ours, rivals = [], []
    for record in records:
        v4, v6 = record.lease.v4, record.lease.v6
        if network.enable_ipv4:
            same_address = v4 is not None and v4.public_ip is not None and v4.public_ip == public_ip
        else:
            same_address = v6 is not None and v6.public_ip is not None and v6.public_ip == public_ip6
        same_subnet = previous is not None and any(e.subnet in previous.subnets for e in record.lease.endpoints)
        named = record.owner is not None and record.owner.node == owner.node
        if same_address and record.owner is None:
            local = any(e.mac in local_macs for e in record.lease.endpoints if e.mac is not None)
            mine = record.ttl_s is None or same_subnet or local or _abandoned(record.ttl_s, renew_margin_s)
        else:
            mine = named and (same_address or same_subnet)
        if mine:
            ours.append((record, same_subnet))
        elif same_address or named:
            rivals.append(_rival(record, public_ip if network.enable_ipv4 else public_ip6, same_address, owner))

    fitting = [(record, same_subnet) for record, same_subnet in ours if fits(network, record)]
    best = min(fitting, key=lambda o: (not o[1], o[0].owner is None, o[0].created), default=(None, False))[0]
    # A second lease without an owner record may be somebody's reservation for later: only those written by this node itself are surplus.
    surplus = [r for r, _ in ours if r is not best and (r.owner is not None or not fits(network, r))]
    return Adoption(best, tuple(surplus), tuple(rivals))


def _abandoned(ttl_s: float, renew_margin_s: float) -> bool:
    # A holder renews when the margin is left and asks again every minute; after half of the margin it is not coming back.
    return ttl_s < renew_margin_s / 2


def _rival(record: LeaseRecord, public_ip: bytes | None, same_address: bool, owner: Owner) -> Rival:
    holder = f"node {record.owner.node}" if record.owner is not None else "a node that keeps no owner record (flannel?)"
    if same_address:
        address = format_address(public_ip) if public_ip is not None else "none"
        return Rival(record, f"lease {record.lease} of {holder} has this node's public IP {address}: give one of the two another address (--public-ip)")
    return Rival(
        record,
        f"lease {record.lease} belongs to another node named {owner.node}: give this one another name (--node-name), or release that lease if it is stale",
    )


def elder_rival(own: LeaseRecord, records: Iterable[LeaseRecord]) -> LeaseRecord | None:
    """A lease that overlaps our new one and was there first: ours has to go and another subnet has to be chosen.

    Keys differ when only one family, or the length, is the same, so a store's create-if-absent does not catch it. Creation revisions
    rise, so of two rivals exactly one gives way.
    """
    for record in records:
        if (
            record.key != own.key
            and record.created < own.created
            and any(a.subnet.overlaps(b.subnet) for a in own.lease.endpoints for b in record.lease.endpoints)
        ):
            return record
    return None
