"""Where a walk begins and ends, as people say it: an address, `pod`, `node/pod`, or `node`."""

from __future__ import annotations

from tweed.addr import parse_address
from tweed.errors import UsageError
from tweed.trace.cluster import Cluster
from tweed.trace.tables import Tables

LINK_LOCAL = {4: (b"\xa9\xfe",), 6: (b"\xfe\x80",)}


def ends(cluster: Cluster, src: str, dst: str) -> tuple[bytes, bytes]:
    """Both as addresses of one family: that of the end that is an address, else IPv4 where both have one.

    A node sends from the address that its own routes choose, and is reached at the one that they do not lead through a tunnel.
    Raises UsageError for what is neither an address nor a name of the tables.
    """
    there = end(cluster, "DST", dst)
    here = end(cluster, "SRC", src)
    families = (4 if len(e) == 4 else 6 for e in (here, there) if isinstance(e, bytes))
    wanted = [next(families, 0)] if any(isinstance(e, bytes) for e in (here, there)) else [4, 6]
    for family in wanted:
        to = there if isinstance(there, bytes) else address_of(cluster, there, family)
        if to is None:
            continue
        found = here if isinstance(here, bytes) else source_of(cluster, here, to)
        if found is not None:
            return found, to
    missing = next(text for text, e in ((dst, there), (src, here)) if isinstance(e, Tables) and not any(address_of(cluster, e, f) for f in wanted))
    raise UsageError(f"{missing}: it has no address{f' of IPv{wanted[0]}' if len(wanted) == 1 else ''} to walk between: say the one that it should have")


def end(cluster: Cluster, name: str, text: str) -> bytes | Tables:
    """An address, or the namespace that a name means."""
    try:
        address = parse_address(text)
    except ValueError as error:
        why = str(error)
    else:
        if not any(address) or address[0] == 0xFF or (len(address) == 4 and address[0] >= 224):
            raise UsageError(f"{name}: {text}: a walk is between two hosts, and this is the address of none or of many")
        return address
    if text in cluster.tables:
        return cluster.tables[text]
    fitting = [node for node in cluster.tables if node.rpartition("/")[2] == text]
    if len(fitting) == 1:
        return cluster.tables[fitting[0]]
    if fitting:
        raise UsageError(f"{name}: {text} is on several nodes: say {', '.join(fitting[:5])}{' ...' if len(fitting) > 5 else ''}")
    looks_like_address = set(text) <= set("0123456789abcdefABCDEF.:/%") and ("." in text or ":" in text)
    names = ", ".join(list(cluster.tables)[:8])
    raise UsageError(f"{name}: {why}" if looks_like_address else f"{name}: {text}: neither an address nor one of the namespaces here: {names or 'none'}")


def address_of(cluster: Cluster, tables: Tables, family: int) -> bytes | None:
    """Of a container its first address; of a node the first that is neither its VTEP's nor its containers' gateway."""
    listed = dict.fromkeys([row.address.address for row in tables.node.addresses] + [*tables.own])  # in the order of `ip addr`, where that is here
    own = [a for a in listed if len(a) == (4 if family == 4 else 16) and usable(a)]
    if cluster.host_of(tables) is tables:
        devices = {a: device_of(tables, a) for a in own}
        outside = [a for a in own if tables.kind(devices[a])[0] not in ("vxlan", "tun", "bridge", "loopback")]
        own = outside or own
    return own[0] if own else None


def usable(address: bytes) -> bool:
    family = 4 if len(address) == 4 else 6
    loopback = address[0] == 127 if family == 4 else address == bytes(15) + b"\1"
    return not loopback and address[:2] not in LINK_LOCAL[family]


def device_of(tables: Tables, address: bytes) -> str:
    row = tables.own[address]
    return row.hops[0].device or "" if row.hops else ""


def source_of(cluster: Cluster, tables: Tables, dst: bytes) -> bytes | None:
    """The source that the kernel takes: the route's, else the first address of the device that it leaves by (inet_select_addr)."""
    family = 4 if len(dst) == 4 else 6
    answer = tables.lookup(dst)
    if answer.row is not None and answer.row.src is not None:
        return answer.row.src
    if answer.kind == "local":
        return dst
    device = answer.hops[0].device if answer.hops else None
    own = (a for a in tables.own if len(a) == len(dst) and usable(a) and device_of(tables, a) == device)
    return next(own, None) or address_of(cluster, tables, family)
