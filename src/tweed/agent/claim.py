"""Getting this node's lease: the one that is provably its own, else a new one. Lost races are run again here, not by a supervisor."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import msgspec

from tweed.addr import Prefix, is_unicast_mac
from tweed.agent.log import log
from tweed.agent.membership import Membership, other_macs, other_subnets
from tweed.errors import Conflict, StoreError, UsageError
from tweed.model import Endpoint, Lease, LeaseRecord, Owner
from tweed.plan.subnets import Rival, adopt, choose, elder_rival, vtep_mac
from tweed.stores import Given, LeaseStore
from tweed.wire.flannel import Network, SubnetEnv
from tweed.wire.lease import parse_key

RACES = 10


class Request(msgspec.Struct, frozen=True):
    """Who asks. `local_macs`: MACs of VTEP devices that exist already, by family. `given`: what the store leaves no choice about."""

    network: Network
    owner: Owner
    public_ip: bytes | None
    public_ip6: bytes | None
    previous: SubnetEnv
    local_macs: dict[int, bytes]
    renew_margin_s: float
    given: Given | None = None


def check_backend_reading(network: Network, records: Iterable[LeaseRecord]) -> None:
    """A configuration without Backend is read as vxlan by flannel's documentation and as udp by its code: refuse to guess beside a udp node."""
    if network.backend_given:
        return
    for record in records:
        if record.lease.backend == "" and not record.reserved:
            raise UsageError(
                f'network configuration: it has no Backend, which tweed reads as "vxlan" and flanneld as "udp", and lease {record.lease} looks like udp: '
                'write {"Backend": {"Type": …}} with the one you mean'
            )


class Decision(msgspec.Struct, frozen=True):
    """What to write: `lease`, over `record` where that is ours already, after `delete`; `rivals` are to be told loudly."""

    lease: Lease
    record: LeaseRecord | None
    delete: tuple[LeaseRecord, ...]
    rivals: tuple[Rival, ...]


def decide(records: dict[str, LeaseRecord], junk: Iterable[str], request: Request, pick: Callable[[int], int]) -> Decision:
    """Which lease this node should have. Raises OutOfSubnets, StoreError. `pick(n)` is a random number below n."""
    r = request
    if r.given is not None:
        return decide_given(records, r, r.given)
    macs = set(r.local_macs.values())
    adoption = adopt(r.network, records.values(), r.public_ip, r.public_ip6, r.owner, r.previous, macs, r.renew_margin_s)
    left = {key: record for key, record in records.items() if record not in adoption.delete}
    if adoption.record is not None:
        v4, v6 = adoption.record.lease.v4, adoption.record.lease.v6
    else:
        taken = [p for p in other_subnets(left, None) + _junk_subnets(junk) if not _absurd(p, r.network)]
        subnet, subnet6 = choose(r.network, taken, r.previous, pick)
        v4, v6 = Endpoint(subnet) if subnet is not None else None, Endpoint(subnet6) if subnet6 is not None else None
    own_key = adoption.record.key if adoption.record is not None else None
    return Decision(_lease(r, v4, v6, left, own_key), adoption.record, adoption.delete, adoption.rivals)


async def with_ends(store: LeaseStore, records: dict[str, LeaseRecord], request: Request) -> dict[str, LeaseRecord]:
    """The same, but of leases with this node's address that nobody signed it is known when they end: that tells whether their holder lives."""
    hosts = {request.public_ip, request.public_ip6} - {None}
    unsigned = [r for r in records.values() if r.owner is None and any(e.public_ip in hosts for e in r.lease.endpoints)]
    return records | {r.key: r for r in await store.timed(unsigned)}


def decide_given(records: dict[str, LeaseRecord], request: Request, given: Given) -> Decision:
    """The lease of the subnets that the store gives. The MAC that the node published before stays, where no other has it. Raises StoreError."""
    network = request.network
    parts: dict[int, Endpoint] = {}
    for family, cluster, subnet in ((4, network.network, given.subnet), (6, network.network6, given.subnet6)):
        if cluster is None:
            continue
        if subnet is None:
            raise StoreError(f"node {request.owner.node} has no IPv{family} pod CIDR, and the network configuration turns IPv{family} on")
        if not cluster.contains(subnet):
            raise StoreError(f'subnet "{cluster}" specified in the flannel net config doesn\'t contain "{subnet}" PodCIDR of the "{request.owner.node}" node')
        before = next((e for e in given.record.lease.endpoints if e.subnet == subnet), None) if given.record is not None else None
        parts[family] = before or Endpoint(subnet)
    key = Lease(parts.get(4), parts.get(6)).key
    record = given.record if given.record is not None and given.record.key == key else None
    return Decision(_lease(request, parts.get(4), parts.get(6), records, key), record, (), ())


async def acquire(membership: Membership, request: Request) -> LeaseRecord:
    """A lease for this node, written to the store. Raises StoreError, OutOfSubnets when none is free, UsageError beside nodes of another backend."""
    store = membership.store
    refused: set[str] = set()  # keys that exist though they are not among the leases: more junk than is kept
    for _ in range(RACES):
        membership.see_snapshot(await store.snapshot())
        check_backend_reading(request.network, membership.records.values())
        if request.given is not None and (given := await store.given(request.owner.node)) is not None:
            request = msgspec.structs.replace(request, given=given)  # with the lease that it has now
        records = await with_ends(store, membership.records, request)
        decision = decide(records, {*membership.junk, *refused}, request, random.randrange)
        for rival in decision.rivals:
            log.error("%s", rival)
        try:
            for surplus in decision.delete:
                await store.delete(surplus)
            if decision.record is not None:
                return await store.update(decision.record, decision.lease, request.owner)
            record = await store.create(decision.lease, request.owner)
            membership.see_snapshot(await store.snapshot())
            if request.given is not None:
                return record  # there is no other to choose
            real = [other for other in membership.records.values() if not any(_absurd(e.subnet, request.network) for e in other.lease.endpoints)]
            elder = elder_rival(record, real)
            if elder is None:
                return record
            log.info("lease %s overlaps %s, which is older: choosing again", record.lease, elder.lease)
            await store.delete(record)
        except Conflict as error:
            refused.add(decision.lease.key)
            log.info("lost a race for a lease (%s): choosing again", error)
    raise StoreError(f"lost {RACES} races for a lease in a row: trying again")


def _lease(request: Request, v4: Endpoint | None, v6: Endpoint | None, records: dict[str, LeaseRecord], own_key: str | None) -> Lease:
    """The lease to write: this node's addresses, and for VXLAN a VTEP MAC per family that nobody else has."""
    network = request.network
    parts = {}
    for name, endpoint, public, cluster in (("v4", v4, request.public_ip, network.network), ("v6", v6, request.public_ip6, network.network6)):
        if endpoint is not None and cluster is not None and network.backend != "vxlan":
            parts[name] = Endpoint(endpoint.subnet, public)
        elif endpoint is not None and cluster is not None:
            others = other_macs(records, own_key, endpoint.subnet.family)
            # The device's MAC belongs to the subnet that it serves, whoever made it: to change it would flush its neighbours.
            local = request.local_macs.get(endpoint.subnet.family) if endpoint.subnet in request.previous.subnets else None
            parts[name] = Endpoint(endpoint.subnet, public, _mac(cluster, network.vni, endpoint, local, others), network.vni)
    return Lease(**parts, backend=network.lease_backend)


def _mac(cluster: Prefix, vni: int, endpoint: Endpoint, local: bytes | None, others: set[bytes]) -> bytes:
    """The MAC that the lease has, else the one that its device has, unless somebody else has it too; else the derived one, or the next derived one."""
    for known in (endpoint.mac, local):
        if known is not None and is_unicast_mac(known) and known not in others:
            return known
    attempt = 0
    while (mac := vtep_mac(cluster, vni, endpoint.subnet, attempt)) in others:
        attempt += 1
    return mac


def _absurd(subnet: Prefix, network: Network) -> bool:
    """A lease of a whole cluster network is nobody's, and must not keep everybody else from joining."""
    return any(subnet.contains(whole) for whole in network.networks)


def _junk_subnets(junk: Iterable[str]) -> list[Prefix]:
    """Subnets whose keys are taken although their values are no leases."""
    found = []
    for key in junk:
        try:
            found += [p for p in parse_key(key) if p is not None]
        except ValueError:
            continue
    return found
