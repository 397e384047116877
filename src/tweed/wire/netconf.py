"""Settings of devices as the kernel announces them (linux/netconf.h), as far as anybody here asks: whether packets are forwarded."""

from __future__ import annotations

from collections.abc import Mapping

from tweed.model import Netconf
from tweed.wire.netlink import AF_INET, AF_INET6, INT, attributes, messages, read_u32

RTM_NEWNETCONF = 80
NETCONFA_IFINDEX, NETCONFA_FORWARDING = 1, 2
NAMES = {-1: "all", -2: "default"}  # NETCONFA_IFINDEX_ALL, _DEFAULT
FAMILIES = {AF_INET: 4, AF_INET6: 6}


def decode(data: bytes, names: Mapping[int, str]) -> list[Netconf]:
    """What all messages of a datagram say of forwarding. Raises ValueError when it cannot be read."""
    found = []
    for kind, _, _, _, start, end in messages(data):
        if kind != RTM_NEWNETCONF or end == start:
            continue
        told = attributes(data, start + 4, end)  # behind struct netconfmsg, the family alone, and its padding
        if (family := FAMILIES.get(data[start])) is None or not told.keys() >= {NETCONFA_IFINDEX, NETCONFA_FORWARDING}:
            continue
        if len(told[NETCONFA_IFINDEX]) != INT.size:
            raise ValueError(f"netconf: an index of {len(told[NETCONFA_IFINDEX])} bytes")
        index = INT.unpack(told[NETCONFA_IFINDEX])[0]
        found.append(Netconf(family, NAMES.get(index) or names[index], read_u32(told[NETCONFA_FORWARDING]) != 0))
    return found
