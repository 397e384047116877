"""Which leases can stand beside each other, slowly and obviously: elders first, each asked about every one that was let in before."""

from __future__ import annotations

from tweed.addr import Prefix
from tweed.model import LeaseRecord


def standing(records: list[LeaseRecord], own: LeaseRecord | None, lengths: frozenset[int] = frozenset()) -> set[tuple[str, Prefix]]:
    """(key, subnet) of every endpoint that overlaps no elder one's subnet and has no elder one's VTEP MAC.

    With `lengths`, leases that have subnets of those lengths alone are elder than all others.
    """
    let_in = [(own, endpoint) for endpoint in own.lease.endpoints] if own else []
    for record in sorted(records, key=lambda r: (bool(lengths) and not lengths >= {e.subnet.length for e in r.lease.endpoints}, r.created)):
        for endpoint in record.lease.endpoints:
            same_family = [e for _, e in let_in if e.subnet.family == endpoint.subnet.family]
            if not any(e.subnet.overlaps(endpoint.subnet) or e.mac == endpoint.mac for e in same_family):
                let_in.append((record, endpoint))
    return {(record.key, endpoint.subnet) for record, endpoint in let_in if record is not own}
