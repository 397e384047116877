"""Who has which subnet, as the forwarding process needs it: an address to the host behind it."""

from __future__ import annotations

import struct
from bisect import bisect_right

import msgspec

from tweed.addr import Prefix

HEAD = struct.Struct("!III")
PEER = struct.Struct("!III")


class Peer(msgspec.Struct, frozen=True, gc=False):
    """One remote subnet: `base` and `mask` of it, and the outer address `host`, as numbers."""

    base: int
    mask: int
    host: int


class Table(msgspec.Struct, frozen=True):
    """This node's subnet and the peers. `strict`: drop inner sources that are in nobody's subnet.

    The subnets of peers do not overlap.
    """

    own: Prefix
    peers: tuple[Peer, ...] = ()
    strict: bool = False

    def pack(self) -> bytes:
        """The form that crosses to the forwarding process, and to C: big-endian words."""
        head = HEAD.pack(self.own.value, mask(self.own), self.strict)
        return head + b"".join(PEER.pack(p.base, p.mask, p.host) for p in self.peers)


def peer(subnet: Prefix, host: bytes) -> Peer:
    return Peer(subnet.value, mask(subnet), int.from_bytes(host))


def mask(prefix: Prefix) -> int:
    """The netmask of an IPv4 prefix as a number."""
    return (0xFFFFFFFF << (32 - prefix.length)) & 0xFFFFFFFF


class Lookup:
    """A packed table, read for looking up. Raises ValueError for bytes that are none."""

    def __init__(self, packed: bytes) -> None:
        if len(packed) < HEAD.size or (len(packed) - HEAD.size) % PEER.size:
            raise ValueError("a table is 12 bytes, and 12 for each peer")
        own, own_mask, strict = HEAD.unpack_from(packed)
        self.own, self.own_mask, self.strict = int(own), int(own_mask), bool(strict)
        self.peers = sorted((Peer(*words) for words in PEER.iter_unpack(packed[HEAD.size :])), key=lambda p: p.base)
        self.bases = [p.base for p in self.peers]
        self.hosts = frozenset(p.host for p in self.peers)

    def host(self, address: int) -> int | None:
        """The outer address of the host that has `address` in its subnet, None when it is in no peer's."""
        index = bisect_right(self.bases, address) - 1
        if index < 0:
            return None
        found = self.peers[index]
        return found.host if address & found.mask == found.base else None

    def is_own(self, address: int) -> bool:
        """True for an address of this node's subnet."""
        return self.own_mask != 0 and address & self.own_mask == self.own
