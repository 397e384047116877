"""`tweed lease`: who holds which subnet."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from tweed.addr import Prefix, format_address, format_mac, parse_address
from tweed.agent.client import call
from tweed.commands.common import agent_socket, json_option, print_json, socket_option, store_option, with_store
from tweed.config import Settings
from tweed.errors import Conflict, TweedError, UsageError
from tweed.model import UNKNOWN_S, Endpoint, Lease, LeaseRecord
from tweed.stores import LeaseStore, Snapshot
from tweed.wire.flannel import parse_network

ACQUIRE_S = 30.0


@click.group()
def lease() -> None:
    """Leases in the store: which node holds which subnet, behind which host and VTEP."""


def as_dict(record: LeaseRecord) -> dict[str, Any]:
    return {
        "key": record.key,
        "node": record.owner.node if record.owner else None,
        "backend": record.lease.backend or None,
        "reservation": record.ttl_s is None,
        "expires_in_s": record.ttl_s,
        "revision": record.revision,
        "endpoints": [
            {
                "subnet": str(e.subnet),
                "public_ip": format_address(e.public_ip) if e.public_ip else None,
                "vtep_mac": format_mac(e.mac) if e.mac else None,
                "vni": e.vni,
            }
            for e in record.lease.endpoints
        ],
    }


async def everything(store: LeaseStore) -> tuple[Snapshot, tuple[LeaseRecord, ...]]:
    """All that is there, and when each lease ends."""
    snapshot = await store.snapshot()
    return snapshot, await store.timed(snapshot.records)


@lease.command("list")
@json_option
@store_option
def list_(as_json: bool, settings: Settings) -> None:
    """Every lease, and what in the store is none."""
    snapshot, timed = with_store(settings, everything)
    records = sorted(timed, key=lambda r: [e.subnet for e in r.lease.endpoints])
    if as_json:
        print_json({"revision": snapshot.revision, "leases": [as_dict(r) for r in records], "junk": [{"key": j.key, "why": j.why} for j in snapshot.junk]})
        return
    rows = [("SUBNET", "NODE", "HOST", "VTEP MAC", "ENDS")]
    for record in records:
        ends = "never (reservation)" if record.ttl_s is None else "-" if record.ttl_s == UNKNOWN_S else f"in {duration(record.ttl_s)}"
        for endpoint in record.lease.endpoints:
            host = format_address(endpoint.public_ip) if endpoint.public_ip else "-"
            mac = format_mac(endpoint.mac) if endpoint.mac else "-"
            rows.append((str(endpoint.subnet), record.owner.node if record.owner else "-", host, mac, ends))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for junk in snapshot.junk:
        click.echo(f"not a lease: {junk.key}: {junk.why}", err=True)


def duration(seconds: float) -> str:
    """`23 h 59 min`, `12 min`, `40 s`."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{rest} s"


def parse_subnets(text: str) -> tuple[Prefix | None, Prefix | None]:
    """`10.244.1.0/24`, or both families `10.244.1.0/24,fd00::/64`; a store's key is understood too."""
    parts = [part for part in re.split(r"[,&]", text) if part]
    try:
        prefixes = [Prefix.parse(part if "/" in part else "/".join(part.rsplit("-", 1))) for part in parts]
    except ValueError as error:
        raise UsageError(f"SUBNET {text}: {error}") from None
    by_family = {p.family: p for p in prefixes}
    if len(by_family) != len(prefixes) or not prefixes or any(p.network != p or p.is_host for p in prefixes):
        raise UsageError(f"SUBNET {text}: expected a subnet such as 10.244.1.0/24, or one of each family joined by a comma")
    return by_family.get(4), by_family.get(6)


@lease.command()
@click.argument("subnet")
@click.option("--public-ip", help="The node that it is for, by its IPv4 address.")
@click.option("--public-ipv6", help="The node's IPv6 address.")
@store_option
def reserve(subnet: str, public_ip: str | None, public_ipv6: str | None, settings: Settings) -> None:
    """Keep SUBNET for the node with this address. A reservation never ends."""
    v4, v6 = parse_subnets(subnet)
    addresses = {}
    for flag, text, size in (("--public-ip", public_ip, 4), ("--public-ipv6", public_ipv6, 16)):
        try:
            addresses[size] = parse_address(text) if text else None
        except ValueError as error:
            raise UsageError(f"{flag}: {error}") from None
        if (found := addresses[size]) is not None and len(found) != size:
            raise UsageError(f"{flag} {text}: wrong address family")
    if not any(addresses.values()):
        raise UsageError("--public-ip: name the node that the subnet is for by its address")
    wanted = Lease(Endpoint(v4, addresses[4]) if v4 else None, Endpoint(v6, addresses[16]) if v6 else None)

    async def use(store: LeaseStore) -> None:
        text = await store.config()
        if text is not None:
            network = parse_network(text)
            for endpoint in wanted.endpoints:
                span = network.range(endpoint.subnet.family)
                if span is None or not span.fits(endpoint.subnet):
                    gives = f"/{span.subnet_len} from {span}" if span else "no such subnets"
                    raise UsageError(f"SUBNET {endpoint.subnet}: no node can have it; the network gives out {gives}")
        for record in (await store.snapshot()).records:
            if any(a.subnet.overlaps(b.subnet) for a in wanted.endpoints for b in record.lease.endpoints):
                raise TweedError(f"{wanted} overlaps {record.lease}, which {record.owner.node if record.owner else 'somebody'} holds: see tweed lease list")
        try:
            await store.create(wanted, None, None)
        except Conflict as error:
            raise TweedError(f"{wanted}: {error}") from None

    with_store(settings, use)
    click.echo(f"reserved {wanted}", err=True)


@lease.command()
@click.argument("subnet")
@store_option
def release(subnet: str, settings: Settings) -> None:
    """Give SUBNET back. An agent that still runs with it claims it again."""
    wanted = set(parse_subnets(subnet)) - {None}

    async def use(store: LeaseStore) -> LeaseRecord:
        for record in (await store.snapshot()).records:
            if wanted & {e.subnet for e in record.lease.endpoints}:
                await store.delete(record)
                return record
        raise TweedError(f"no lease of {subnet} in the store: see tweed lease list")

    record = with_store(settings, use)
    click.echo(f"released {record.lease}{f', which {record.owner.node} held' if record.owner else ''}", err=True)


@lease.command()
@socket_option
def acquire(socket_path: Path | None) -> None:
    """Have this node's agent take another subnet, after another node has taken its own. Its present pods have to be made anew."""
    path = agent_socket(socket_path)
    click.echo(call(path, "POST", "/v1/acquire")["said"], err=True)
    deadline = time.monotonic() + ACQUIRE_S
    while time.monotonic() < deadline:
        document = call(path, "GET", "/v1/status")
        if document["ready"]:
            click.echo(", ".join(filter(None, (document["subnet"], document["subnet6"]))))
            return
        time.sleep(0.1)
    raise TweedError(f"this node is not ready after {ACQUIRE_S:g} s: {document['reason']}")
