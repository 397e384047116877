"""Addresses, prefixes and MACs.

An address is its bytes in network order (4 for IPv4, 16 for IPv6), a MAC is its 6 bytes: what netlink and packets
carry, self-describing in its length, cheap to hash. Text exists only at the edges. Arithmetic is on integers.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

import msgspec

BITS = {4: 32, 6: 128}
# Reading the leases of a large cluster is mostly reading addresses and MACs: with `ipaddress` for IPv4 it takes twice as long. Of prefixes that
# people write, an IPv4 one takes a quarter of the time.
IPV4 = re.compile(r"\.".join(["(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"] * 4))
CIDR4 = re.compile(IPV4.pattern + "(?:/(3[0-2]|[12]?[0-9]))?")
MAC = re.compile("(XX:){5}XX|(XX-){5}XX|(XXXX\\.){2}XXXX".replace("X", "[0-9a-fA-F]"))


def family(address: bytes) -> int:
    """4 or 6."""
    return 4 if len(address) == 4 else 6


def parse_address(text: str) -> bytes:
    """`"10.244.1.0"` or `"fd00::1"` as bytes; no zone (`%eth0`), which bytes cannot hold. Raises ValueError naming the text."""
    text = text.strip()
    if (quad := IPV4.fullmatch(text)) is not None:
        return bytes(map(int, quad.groups()))
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        address = None
    if address is None or address.scope_id is not None:
        raise ValueError(f"{text!r} is not an IP address")
    return address.packed


def format_address(address: bytes) -> str:
    """Dotted quad, or IPv6 compressed and lower case (RFC 5952, as Go and iproute2 print it)."""
    if len(address) == 4:
        return ".".join(map(str, address))
    return str(ipaddress.IPv6Address(address))


def parse_mac(text: str) -> bytes:
    """Any form that Go's `net.ParseMAC` reads as 6 bytes: `aa:bb:..`, `aa-bb-..`, `aabb.ccdd.eeff`. Raises ValueError."""
    if MAC.fullmatch(text.strip()) is None:
        raise ValueError(f"{text!r} is not a MAC address")
    return bytes.fromhex(text.replace(":", "").replace("-", "").replace(".", ""))


def format_mac(mac: bytes) -> str:
    """Lower case, colons."""
    return mac.hex(":")


def is_unicast_mac(mac: bytes) -> bool:
    """True for a MAC that a device can have: not a group address, not all zero."""
    return len(mac) == 6 and not mac[0] & 1 and any(mac)


class Prefix(msgspec.Struct, frozen=True, order=True, gc=False):
    """`10.244.1.0/24`: an address and a length in bits. Host bits may be set (an interface's address keeps them)."""

    address: bytes
    length: int

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """`"10.244.1.0/24"`, or a lone address as its /32 or /128. Host bits are kept. Raises ValueError naming the text."""
        if (found := CIDR4.fullmatch(text.strip())) is not None:
            *quad, length = found.groups("32")
            return cls(bytes(map(int, quad)), int(length))
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
        mine = self.address
        if len(address) != len(mine) or length < self.length:
            return False
        shift = 8 * len(mine) - self.length
        return int.from_bytes(address, "big") >> shift == int.from_bytes(mine, "big") >> shift

    def overlaps(self, other: Prefix) -> bool:
        return self.contains(other) or other.contains(self)

    def subnets(self, length: int) -> Iterator[Prefix]:
        """All prefixes of `length` inside, in order. Lazy: an IPv6 network has many."""
        step = 1 << (self.bits - length)
        base = self.network.value
        for value in range(base, base + self.step, step):
            yield Prefix.of(value, length, self.family)
