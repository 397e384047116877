"""Which of the store's leases can be programmed, and what is wrong with the others. One bad lease never harms a good one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from tweed.addr import Prefix, family, format_address, format_mac, is_unicast_mac
from tweed.model import Endpoint, Junk, Lease, LeaseRecord

# Addresses that no host can be reached by: loopback, multicast, reserved and broadcast.
NO_HOSTS = {4: [Prefix.parse(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")], 6: [Prefix.parse(text) for text in ("::/127", "ff00::/8")]}


class Problem(msgspec.Struct, frozen=True):
    """Something an operator should know. `id` is stable; `subject` is the lease key, device or file that it is about."""

    id: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.id}: {self.subject}: {self.text}"


class Screened(msgspec.Struct, frozen=True):
    """Leases to program by key (bad families taken out), and the problems, in the store's order."""

    peers: dict[str, Lease]
    problems: tuple[Problem, ...]


def screen(records: Iterable[LeaseRecord], junk: Iterable[Junk], own: LeaseRecord | None, backend: str, networks: Sequence[Prefix]) -> Screened:
    """Sort remote leases from junk. Of two rivals (same subnet or VTEP MAC) the elder by `created` is believed, our own before all."""
    problems = [Problem("junk-lease", j.key, j.why) for j in junk]
    peers: dict[str, Lease] = {}
    others = sorted((r for r in records if own is None or r.key != own.key), key=lambda r: r.created)
    taken = _Taken()
    if own is not None:
        for endpoint in own.lease.endpoints:
            taken.add(endpoint, own)
    for record in others:
        if record.lease.backend != backend:
            named = record.lease.backend or "one that writes no BackendType (udp, alloc)"
            problems.append(Problem("other-backend", record.key, f"uses backend {named}, this node uses {backend}; skipped"))
            continue
        good: dict[str, Endpoint] = {}
        for endpoint in record.lease.endpoints:
            if endpoint.mac is None and record.ttl_s is None:
                continue  # a reservation whose node has not come yet
            why = _unusable(endpoint, networks)
            if why is None:
                usable, found = taken.rivals(endpoint, record)
                problems += found
                if usable:
                    taken.add(endpoint, record)
                    good[f"v{endpoint.subnet.family}"] = endpoint
            elif why:
                problems.append(Problem("bad-lease", record.key, f"{endpoint.subnet}: {why}; skipped"))
        if good:
            peers[record.key] = Lease(**good, backend=record.lease.backend)
    return Screened(peers, tuple(problems))


def _unusable(endpoint: Endpoint, networks: Sequence[Prefix]) -> str | None:
    """Why an endpoint cannot be programmed at all: None when it can, "" when its family is off here and that is no problem."""
    same_family = [network for network in networks if network.family == endpoint.subnet.family]
    if not same_family:
        return ""
    if not same_family[0].contains(endpoint.subnet) or same_family[0] == endpoint.subnet:
        return f"lies outside the cluster network {same_family[0]}"
    if endpoint.subnet.network != endpoint.subnet:
        return "has host bits set"
    if endpoint.mac is None or not is_unicast_mac(endpoint.mac):
        return "publishes no usable VTEP MAC"
    if endpoint.public_ip is None:
        return "publishes no host address"
    if any(prefix.contains(endpoint.public_ip) for prefix in NO_HOSTS[family(endpoint.public_ip)]):
        return f"publishes {format_address(endpoint.public_ip)}, which no host can have"
    if same_family[0].contains(endpoint.public_ip):
        return f"publishes {format_address(endpoint.public_ip)}, an address inside the cluster network, as its host"
    return None


class _Taken:
    """What earlier leases hold: subnets (none overlaps another, so sorted by their first address they are sorted by their last), MACs, hosts."""

    def __init__(self) -> None:
        self.first: dict[int, list[int]] = {4: [], 6: []}
        self.last: dict[int, list[tuple[int, LeaseRecord]]] = {4: [], 6: []}
        self.macs: dict[tuple[int, bytes], LeaseRecord] = {}
        self.hosts: dict[bytes, LeaseRecord] = {}

    def add(self, endpoint: Endpoint, record: LeaseRecord) -> None:
        subnet = endpoint.subnet
        first = subnet.value
        at = bisect_right(self.first[subnet.family], first)
        self.first[subnet.family].insert(at, first)
        self.last[subnet.family].insert(at, (first + subnet.step - 1, record))
        if endpoint.mac is not None:
            self.macs[(subnet.family, endpoint.mac)] = record
        if endpoint.public_ip is not None:
            self.hosts.setdefault(endpoint.public_ip, record)

    def overlapping(self, subnet: Prefix) -> LeaseRecord | None:
        """The one that begins last among those that begin before `subnet` ends; if that ends before it begins, so do all others."""
        first = subnet.value
        at = bisect_right(self.first[subnet.family], first + subnet.step - 1)
        if at:
            last, record = self.last[subnet.family][at - 1]
            if last >= first:
                return record
        return None

    def rivals(self, endpoint: Endpoint, record: LeaseRecord) -> tuple[bool, list[Problem]]:
        """Whether the endpoint can be programmed beside what is there, and what is to be said."""
        subnet, found = endpoint.subnet, []
        usable = True
        if (other := self.overlapping(subnet)) is not None:
            found.append(Problem("duplicate-subnet", record.key, f"{subnet}{_by(record)} overlaps {other.lease}{_by(other)}, which is older; skipped"))
            usable = False
        if endpoint.mac is not None and (other := self.macs.get((subnet.family, endpoint.mac))) is not None:
            found.append(
                Problem("duplicate-vtep-mac", record.key, f"{format_mac(endpoint.mac)}{_by(record)} is also the VTEP MAC of {other.lease}{_by(other)}; skipped")
            )
            usable = False
        if endpoint.public_ip is not None and (other := self.hosts.get(endpoint.public_ip)) is not None and other.key != record.key:
            found.append(
                Problem(
                    "duplicate-public-ip",
                    record.key,
                    f"{format_address(endpoint.public_ip)}{_by(record)} is also the host address of {other.lease}{_by(other)}: two nodes took the same "
                    "interface address (a NAT interface such as 10.0.2.15?); choose another with --iface or --public-ip",
                )
            )
        return usable, found


def _by(record: LeaseRecord) -> str:
    host = next((format_address(e.public_ip) for e in record.lease.endpoints if e.public_ip), "")
    node = record.owner.node if record.owner else ""
    return f" ({', '.join(part for part in (node, host) if part)})" if node or host else ""
