"""Where things are in etcd: flannel's keys, and beside them who holds what.

    PREFIX/config                      the network configuration
    PREFIX/subnets/10.244.1.0-24       a lease, to the byte as flannel writes it
    PREFIX/tweed/owners/10.244.1.0-24  the node that holds it

Flannel reads all keys that begin with PREFIX/subnets, without a slash behind it, hence `tweed/owners`. Lease and owner are written by
one transaction, so both have its revision; an owner with another one is left from before somebody who knows no owners wrote the lease.
"""

from __future__ import annotations

import posixpath
from typing import NamedTuple

import msgspec

from tweed.errors import UsageError
from tweed.model import UNKNOWN_S, Junk, Lease, LeaseRecord, Owner
from tweed.stores.etcd.rpc_pb2 import KeyValue
from tweed.wire.gojson import printable
from tweed.wire.lease import parse_lease

NAME_MAX = 253  # a DNS name's


class Span(NamedTuple):
    """Keys from `start` on, before `end`."""

    start: bytes
    end: bytes


class Layout:
    """All keys below one prefix. Raises UsageError for a prefix that names nothing."""

    def __init__(self, prefix: str) -> None:
        if not prefix.strip("/"):
            raise UsageError(f"--etcd-prefix {prefix!r}: use a path such as /coreos.com/network")
        self.config = join(prefix, "config")
        self.leases = below(join(prefix, "subnets"))
        self.owners = below(join(prefix, "tweed/owners"))
        self.watched = Span(self.config, self.owners.end)  # they are in this order, and what else is between them is nobody's

    def lease_key(self, name: str) -> bytes:
        return self.leases.start + name.encode()

    def owner_key(self, name: str) -> bytes:
        return self.owners.start + name.encode()

    def lease_name(self, key: bytes) -> bytes | None:
        """The key without its path; None for one that is no lease's."""
        return key.removeprefix(self.leases.start) if key.startswith(self.leases.start) else None

    def owner_name(self, key: bytes) -> bytes | None:
        """The name of the lease whose owner the key says; None for one that is no owner's."""
        return key.removeprefix(self.owners.start) if key.startswith(self.owners.start) else None

    def read(self, kv: KeyValue) -> Lease | Junk:
        """What a lease's key holds."""
        name = kv.key[len(self.leases.start) :]
        try:
            return parse_lease(name.decode(), kv.value)
        except ValueError as error:
            return Junk(printable(name), str(error), kv.mod_revision)


def record(lease: Lease, kv: KeyValue, owner: Owner | None) -> LeaseRecord:
    """A lease as it was read. etcd says with a key whether it ends, but not when."""
    return LeaseRecord(lease, owner, kv.mod_revision, kv.create_revision, UNKNOWN_S if kv.lease else None)


def join(prefix: str, name: str) -> bytes:
    """As Go's path.Join: no double slashes, no dots. `//x` is a path of its own for POSIX, and not for Go."""
    path = posixpath.normpath(f"{prefix}/{name}")
    return (path[1:] if path.startswith("//") else path).encode()


def below(directory: bytes) -> Span:
    """All keys that begin with the directory and a slash ("0" is what follows a slash in ASCII)."""
    return Span(directory + b"/", directory + b"0")


class _Owner(msgspec.Struct, rename={"node": "Node", "boot_id": "BootID"}):
    node: str
    boot_id: str


def format_owner(owner: Owner) -> bytes:
    return msgspec.json.encode(_Owner(owner.node, owner.boot_id))


def parse_owner(value: bytes) -> Owner | None:
    """None for what is no owner's record: the lease is then taken for one that has none."""
    try:
        read = msgspec.json.decode(value, type=_Owner)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    fits = all(len(text) <= NAME_MAX and text.isprintable() for text in (read.node, read.boot_id))
    return Owner(read.node, read.boot_id) if fits else None
