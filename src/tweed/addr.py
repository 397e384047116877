"""Addresses, prefixes and MACs.

An address is its bytes in network order (4 for IPv4, 16 for IPv6), a MAC is its 6 bytes: what netlink and packets
carry, self-describing in its length, cheap to hash. Text exists only at the edges. Arithmetic is on integers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import msgspec

BITS = {4: 32, 6: 128}
HEX = frozenset("0123456789abcdefABCDEF")


def family(address: bytes) -> int:
    """4 or 6."""
    return 4 if len(address) == 4 else 6


def parse_address(text: str) -> bytes:
    """`"10.244.1.0"` or `"fd00::1"` as bytes. Raises ValueError naming the text."""
    try:
        return ipaddress.ip_address(text.strip()).packed
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


def format_address(address: bytes) -> str:
    """Dotted quad, or IPv6 compressed and lower case (RFC 5952, as Go and iproute2 print it)."""
    if len(address) == 4:
        return "%d.%d.%d.%d" % (address[0], address[1], address[2], address[3])
    return str(ipaddress.IPv6Address(address))


def parse_mac(text: str) -> bytes:
    """Any form that Go's `net.ParseMAC` reads as 6 bytes: `aa:bb:..`, `aa-bb-..`, `aabb.ccdd.eeff`. Raises ValueError."""
    parts = text.strip().replace("-", ":").split(":")
    if len(parts) == 1:
        quads = text.strip().split(".")
        parts = [q[i : i + 2] for q in quads for i in (0, 2)] if len(quads) == 3 and all(len(q) == 4 for q in quads) else []
    if len(parts) != 6 or not all(len(p) == 2 and set(p) <= HEX for p in parts):
        raise ValueError(f"{text!r} is not a MAC address")
    return bytes(int(p, 16) for p in parts)


def format_mac(mac: bytes) -> str:
    """Lower case, colons."""
    return mac.hex(":")


def is_unicast_mac(mac: bytes) -> bool:
    """True for a MAC that a device can have: not a group address, not all zero."""
    return len(mac) == 6 and not mac[0] & 1 and any(mac)


class Prefix(msgspec.Struct, frozen=True, order=True):
    """`10.244.1.0/24`: an address and a length in bits. Host bits may be set (an interface's address keeps them)."""

    address: bytes
    length: int

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """`"10.244.1.0/24"`, or a lone address as its /32 or /128. Host bits are kept. Raises ValueError naming the text."""
        try:
            interface = ipaddress.ip_interface(text.strip())
        except ValueError:
            raise ValueError(f"{text!r} is not a network in CIDR form") from None
        return cls(interface.ip.packed, interface.network.prefixlen)

    @classmethod
    def of(cls, value: int, length: int, family: int) -> Prefix:
        """From the integer value of the address; `family` is 4 or 6."""
        return cls(value.to_bytes(BITS[family] // 8, "big"), length)

    def __str__(self) -> str:
        return f"{format_address(self.address)}/{self.length}"

    @property
    def family(self) -> int:
        return family(self.address)

    @property
    def bits(self) -> int:
        """32 or 128."""
        return len(self.address) * 8

    @property
    def value(self) -> int:
        """The address as an integer."""
        return int.from_bytes(self.address, "big")

    @property
    def step(self) -> int:
        """How many addresses it spans, which is also the distance to the next prefix of this length."""
        return 1 << (self.bits - self.length)

    @property
    def network(self) -> Prefix:
        """The same prefix with its host bits cleared."""
        base = self.value & -self.step
        return self if base == self.value else Prefix.of(base, self.length, self.family)

    @property
    def number(self) -> int:
        """Its ordinal among all prefixes of this length: `10.244.2.0/24` is 0x0af402."""
        return self.value >> (self.bits - self.length)

    @property
    def is_host(self) -> bool:
        return self.length == self.bits

    def host(self, offset: int) -> bytes:
        """The address `offset` steps above the network's base. Raises ValueError when it lies outside."""
        if not 0 <= offset < self.step:
            raise ValueError(f"{self} has no address number {offset}")
        return (self.network.value + offset).to_bytes(len(self.address), "big")

    def contains(self, other: bytes | Prefix) -> bool:
        """True when an address, or all of another prefix, lies inside. False across families."""
        address, length = (other.address, other.length) if isinstance(other, Prefix) else (other, len(other) * 8)
        if len(address) != len(self.address) or length < self.length:
            return False
        shift = self.bits - self.length
        return int.from_bytes(address, "big") >> shift == self.value >> shift

    def overlaps(self, other: Prefix) -> bool:
        return self.contains(other) or other.contains(self)

    def subnets(self, length: int) -> Iterator[Prefix]:
        """All prefixes of `length` inside, in order. Lazy: an IPv6 network has many."""
        step = 1 << (self.bits - length)
        base = self.network.value
        for value in range(base, base + self.step, step):
            yield Prefix.of(value, length, self.family)
