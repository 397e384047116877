"""Which of the store's leases can be programmed, and what is wrong with the others. One bad lease never harms a good one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

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


def screen(
    records: Iterable[LeaseRecord],
    junk: Iterable[Junk],
    own: LeaseRecord | None,
    backend: str,
    networks: Sequence[Prefix],
    lengths: AbstractSet[int] = frozenset(),
) -> Screened:
    """Sort remote leases from junk. Of two rivals (same subnet or VTEP MAC) the elder by `created` is believed, our own before all.

    With `lengths`, the lengths that the network's subnets have, others give way to those whatever their age: an old lease of many
    nodes' subnets is nobody's.
    """
    return Screening(backend, networks, lengths).see({r.key: r for r in records}, junk, own)


class Screening:
    """`screen`, kept: a change of one lease among many costs a look at that lease only, as long as no two leases are in each other's way.

    `changed`: the keys of the peers that the last look may have changed, None for all.
    """

    def __init__(self, backend: str, networks: Sequence[Prefix], lengths: AbstractSet[int] = frozenset()) -> None:
        self.backend = backend
        self.networks = networks
        self.lengths = lengths
        self.changed: AbstractSet[str] | None = None
        self._forget()

    def _forget(self) -> None:
        self.own: LeaseRecord | None = None
        self.peers: dict[str, Lease] = {}
        self.problems: dict[str, list[Problem]] = {}
        self.contested: set[str] = set()  # leases that have a rival, both sides: what happens to one decides about another
        self.taken = _Taken()
        self.behind = False  # a lease of unusual length gave way: one that comes later may stand before it

    def see(self, records: Mapping[str, LeaseRecord], junk: Iterable[Junk], own: LeaseRecord | None, changed: AbstractSet[str] | None = None) -> Screened:
        """What `screen` says of all these records. `changed`: the keys that may differ from what was seen last, None for all."""
        same_own = own is not None and self.own is not None and (own.lease, own.owner) == (self.own.lease, self.own.owner)
        self.changed = changed
        if changed is None or not same_own or not self._see_some(records, changed):
            self._see_all(records, own)
            self.changed = None
        problems = [Problem("junk-lease", j.key, j.why) for j in junk]
        for key in sorted(self.problems, key=lambda key: records[key].created):
            problems += self.problems[key]
        return Screened(dict(self.peers), tuple(problems))

    def _see_all(self, records: Mapping[str, LeaseRecord], own: LeaseRecord | None) -> None:
        self._forget()
        self.own = own
        if own is not None:
            for endpoint in own.lease.endpoints:
                self.taken.add(endpoint, own)
        for key, record in sorted(records.items(), key=lambda item: (self._unusual(item[1]), item[1].created)):
            self._judge(key, record)

    def _unusual(self, record: LeaseRecord) -> bool:
        return bool(self.lengths) and any(e.subnet.length not in self.lengths for e in record.lease.endpoints)

    def _see_some(self, records: Mapping[str, LeaseRecord], changed: AbstractSet[str]) -> bool:
        """False, and half done, when other leases are concerned too."""
        if self.behind:
            return False
        for key in changed:
            self.problems.pop(key, None)
            if (lease := self.peers.pop(key, None)) is not None:
                for endpoint in lease.endpoints:
                    self.taken.remove(endpoint)
        for key in changed:
            if key in records:
                self._judge(key, records[key])
        return self.contested.isdisjoint(changed)

    def _judge(self, key: str, record: LeaseRecord) -> None:
        """Beside the leases judged before it, its elders where there is a difference."""
        if self.own is not None and key == self.own.key:
            return
        lease = record.lease
        if record.reserved:
            return
        if lease.backend != self.backend:
            named = lease.backend or "one that writes no BackendType (udp, alloc)"
            self.problems[key] = [Problem("other-backend", key, f"uses backend {named}, this node uses {self.backend or 'udp'}; skipped")]
            return
        problems: list[Problem] = []
        good: list[Endpoint] = []
        for endpoint in lease.endpoints:
            why = _unusable(endpoint, self.networks, self.backend)
            if why is None:
                usable, rivals = self.taken.rivals(endpoint, record)
                for other, problem in rivals:
                    problems.append(problem)
                    self.contested |= {key, other.key}
                if usable:
                    self.taken.add(endpoint, record)
                    good.append(endpoint)
                    problems += self._other_vni(key, endpoint)
            elif why:
                problems.append(Problem("bad-lease", key, f"{endpoint.subnet}: {why}; skipped"))
        if problems:
            self.problems[key] = problems
            self.behind |= self._unusual(record)
        if good == list(lease.endpoints):
            self.peers[key] = lease
        elif good:
            self.peers[key] = Lease(**{f"v{endpoint.subnet.family}": endpoint for endpoint in good}, backend=lease.backend)

    def _other_vni(self, key: str, endpoint: Endpoint) -> list[Problem]:
        """Programmed all the same, as flannel does (it never compares): during a change of the VNI both ends meet again in a moment."""
        ours = next((e.vni for e in self.own.lease.endpoints), None) if self.own is not None else None
        if None in (ours, endpoint.vni) or ours == endpoint.vni:
            return []
        return [Problem("other-vni", key, f"{endpoint.subnet}: its node uses VNI {endpoint.vni}, this one {ours}: each drops what the other sends")]


def _unusable(endpoint: Endpoint, networks: Sequence[Prefix], backend: str) -> str | None:
    """Why an endpoint cannot be programmed at all: None when it can, "" when its family is off here and that is no problem."""
    same_family = [network for network in networks if network.family == endpoint.subnet.family]
    if not same_family:
        return ""
    if not same_family[0].contains(endpoint.subnet):
        return f"lies outside the cluster network {same_family[0]}"
    if same_family[0] == endpoint.subnet:
        return "is the whole cluster network"
    if endpoint.subnet.network != endpoint.subnet:
        return "has host bits set"
    if backend == "vxlan" and (endpoint.mac is None or not is_unicast_mac(endpoint.mac)):
        return "publishes no usable VTEP MAC"
    if endpoint.public_ip is None:
        return "publishes no host address"
    if any(prefix.contains(endpoint.public_ip) for prefix in NO_HOSTS[family(endpoint.public_ip)]):
        return f"publishes {format_address(endpoint.public_ip)}, which no host can have"
    if same_family[0].contains(endpoint.public_ip):
        return f"publishes {format_address(endpoint.public_ip)}, an address inside the cluster network, as its host"
    return None


class _Taken:
    """What leases hold: subnets by first address (none overlaps another, so they are sorted by their last address too), MACs, hosts."""

    def __init__(self) -> None:
        self.first: dict[int, list[bytes]] = {4: [], 6: []}
        self.holders: dict[int, list[LeaseRecord]] = {4: [], 6: []}  # of the subnets that begin there
        self.macs: dict[int, dict[bytes, LeaseRecord]] = {4: {}, 6: {}}
        self.hosts: dict[bytes, LeaseRecord] = {}

    def add(self, endpoint: Endpoint, record: LeaseRecord) -> None:
        subnet = endpoint.subnet
        at = bisect_right(self.first[subnet.family], subnet.address)
        self.first[subnet.family].insert(at, subnet.address)
        self.holders[subnet.family].insert(at, record)
        if endpoint.mac is not None:
            self.macs[subnet.family][endpoint.mac] = record
        if endpoint.public_ip is not None:
            self.hosts.setdefault(endpoint.public_ip, record)

    def remove(self, endpoint: Endpoint) -> None:
        """Undo `add` of an endpoint that has no rivals."""
        subnet = endpoint.subnet
        at = bisect_left(self.first[subnet.family], subnet.address)
        del self.first[subnet.family][at], self.holders[subnet.family][at]
        if endpoint.mac is not None:
            del self.macs[subnet.family][endpoint.mac]
        if endpoint.public_ip is not None:
            self.hosts.pop(endpoint.public_ip, None)  # both families of a lease may name one host

    def overlapping(self, subnet: Prefix) -> LeaseRecord | None:
        """The one that begins last among those that begin before `subnet` ends; if that ends before it begins, so do all others."""
        at = bisect_right(self.first[subnet.family], subnet.host(subnet.step - 1))
        if at:
            record = self.holders[subnet.family][at - 1]
            if any(e.subnet.overlaps(subnet) for e in record.lease.endpoints):
                return record
        return None

    def rivals(self, endpoint: Endpoint, record: LeaseRecord) -> tuple[bool, list[tuple[LeaseRecord, Problem]]]:
        """Whether the endpoint can be programmed beside what is there, and what is to be said of whom."""
        subnet, found = endpoint.subnet, []
        usable = True
        if (other := self.overlapping(subnet)) is not None:
            why = "is older" if other.created < record.created else "goes before it"
            text = f"{subnet}{_by(record)} overlaps {other.lease}{_by(other)}, which {why}; skipped"
            found.append((other, Problem("duplicate-subnet", record.key, text)))
            usable = False
        if endpoint.mac is not None and (other := self.macs[subnet.family].get(endpoint.mac)) is not None:
            text = f"{format_mac(endpoint.mac)}{_by(record)} is also the VTEP MAC of {other.lease}{_by(other)}; skipped"
            found.append((other, Problem("duplicate-vtep-mac", record.key, text)))
            usable = False
        if endpoint.public_ip is not None and (other := self.hosts.get(endpoint.public_ip)) is not None and other is not record:
            text = (
                f"{format_address(endpoint.public_ip)}{_by(record)} is also the host address of {other.lease}{_by(other)}: two nodes took the same "
                "interface address (a NAT interface such as 10.0.2.15?); choose another with --iface or --public-ip"
            )
            found.append((other, Problem("duplicate-public-ip", record.key, text)))
        return usable, found


def _by(record: LeaseRecord) -> str:
    host = next((format_address(e.public_ip) for e in record.lease.endpoints if e.public_ip), "")
    node = record.owner.node if record.owner else ""
    return f" ({', '.join(part for part in (node, host) if part)})" if node or host else ""
