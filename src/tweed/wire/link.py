"""Devices over rtnetlink (linux/if_link.h): RTM_NEWLINK and its kin to and from `model.Link`, `model.Vtep`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from struct import Struct

from tweed.model import Link, Vtep, Vxlan
from tweed.wire.netlink import (
    AF_INET6,
    AF_UNSPEC,
    CREATE,
    EXCLUSIVE,
    INT,
    NESTED,
    REQUEST,
    attribute,
    attributes,
    fixed,
    message,
    messages,
    nest,
    read_text,
    read_u32,
    text,
    u32,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19

RTM_NEWNSID, RTM_GETNSID, NETNSA_NSID, NETNSA_FD = 88, 90, 1, 3  # linux/net_namespace.h

IFF_UP, IFF_RUNNING, IFF_PROMISC = 0x1, 0x40, 0x100
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_LINK_NETNSID = 20, 26, 27, 28, 29, 37
IFLA_TXQLEN = 13
RTEXT_FILTER_SKIP_STATS = 1 << 3
INFO_KIND, INFO_DATA, INFO_SLAVE_KIND, INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER = 1
BRPORT_MODE = 4  # hairpin
INET6_ADDR_GEN_MODE = 8
ADDRGENMODES = {"eui64": 0, "none": 1, "stable_secret": 2, "random": 3}

VXLAN_ID, VXLAN_GROUP, VXLAN_LINK, VXLAN_LOCAL, VXLAN_TTL, VXLAN_LEARNING, VXLAN_AGEING = 1, 2, 3, 4, 5, 7, 8
VXLAN_L2MISS, VXLAN_L3MISS, VXLAN_PORT, VXLAN_GROUP6, VXLAN_LOCAL6 = 13, 14, 15, 16, 17
VXLAN_UDP_CSUM, VXLAN_UDP_ZERO_CSUM6_TX, VXLAN_UDP_ZERO_CSUM6_RX = 18, 19, 20
VXLAN_GBP, VXLAN_COLLECT_METADATA = 23, 25

IFINFOMSG = Struct("=BxHiII")  # family, device type, ifindex, flags, which flags to change


# ---- what we send -----------------------------------------------------------------------------------------------


def which(name_or_index: str | int) -> tuple[int, list[bytes]]:
    """An existing device for a message about it: its index, or 0 and its name as an attribute, so that nobody has to look it up."""
    return (name_or_index, []) if isinstance(name_or_index, int) else (0, [text(IFLA_IFNAME, name_or_index)])


def body(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """The fixed part of a link message."""
    return IFINFOMSG.pack(AF_UNSPEC, 0, index, flags, change)


def get_link(name_or_index: str | int) -> bytes:
    """Ask for one device, without its counters."""
    mask = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    if isinstance(name_or_index, int):
        return message(RTM_GETLINK, 0, body(name_or_index), mask)
    return message(RTM_GETLINK, 0, body(), text(IFLA_IFNAME, name_or_index), mask)


def dump_links(kind: str | None = None) -> bytes:
    """Ask for all devices, or those of one kind (which kernels may ignore: check what comes)."""
    parts = [u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)]
    if kind is not None:
        parts.append(nest(IFLA_LINKINFO, text(INFO_KIND, kind)))
    return message(RTM_GETLINK, 0, body(), *parts)


def common(name: str, mac: bytes | None, mtu: int | None, netns: int | None) -> list[bytes]:
    """Attributes that any new device may have. `netns`: file descriptor of the namespace it shall be born in."""
    parts = [text(IFLA_IFNAME, name)]
    if mac is not None:
        parts.append(attribute(IFLA_ADDRESS, mac))
    if mtu is not None:
        parts.append(u32(IFLA_MTU, mtu))
    if netns is not None:
        parts.append(u32(IFLA_NET_NS_FD, netns))
    return parts


def linkinfo(kind: str, *data: bytes) -> bytes:
    return nest(IFLA_LINKINFO, text(INFO_KIND, kind), *([nest(INFO_DATA, *data)] if data else []))


def flag(kind: int, on: bool) -> bytes:
    return attribute(kind, b"\1" if on else b"\0")


def vxlan_local(local: bytes) -> bytes:
    return attribute(VXLAN_LOCAL if len(local) == 4 else VXLAN_LOCAL6, local)


def new_vtep(vtep: Vtep, underlay: int) -> bytes:
    """Create the VXLAN device as flannel does (vxlan/device.go); `underlay` is the ifindex of `vtep.underlay`.

    No UDP_CSUM attribute: the kernel then computes outer checksums on IPv4. On IPv6 they are mandatory (RFC 8200) and stay on.
    """
    data = [
        u32(VXLAN_ID, vtep.vni),
        u32(VXLAN_LINK, underlay),
        vxlan_local(vtep.local),
        flag(VXLAN_LEARNING, vtep.learning),
        attribute(VXLAN_PORT, vtep.port.to_bytes(2, "big")),
    ]
    if len(vtep.local) == 16:
        data += [flag(VXLAN_UDP_ZERO_CSUM6_TX, False), flag(VXLAN_UDP_ZERO_CSUM6_RX, False)]
    if vtep.gbp:
        data.append(attribute(VXLAN_GBP, b""))
    return message(RTM_NEWLINK, CREATE | EXCLUSIVE, body(), *common(vtep.name, vtep.mac, vtep.mtu, None), linkinfo("vxlan", *data))


def change_vtep(index: int, *, local: bytes | None = None, underlay: int | None = None, learning: bool | None = None) -> bytes:
    """Change a VXLAN device in place; its rows stay."""
    data = []
    if underlay is not None:
        data.append(u32(VXLAN_LINK, underlay))
    if local is not None:
        data.append(vxlan_local(local))
    if learning is not None:
        data.append(flag(VXLAN_LEARNING, learning))
    return message(RTM_NEWLINK, 0, body(index), linkinfo("vxlan", *data))


def new_veth(name: str, peer: str, *, mtu: int, mac: bytes | None, peer_mac: bytes | None, peer_netns: int | None, netns: int | None) -> bytes:
    """Create both ends of a veth pair, each directly in its namespace (file descriptors; None: that of the socket)."""
    other = attribute(VETH_INFO_PEER | NESTED, body() + b"".join(common(peer, peer_mac, mtu, peer_netns)))
    return message(RTM_NEWLINK, CREATE | EXCLUSIVE, body(), *common(name, mac, mtu, netns), linkinfo("veth", other))


def new_bridge(name: str, *, mac: bytes | None, mtu: int) -> bytes:
    return message(RTM_NEWLINK, CREATE | EXCLUSIVE, body(), *common(name, mac, mtu, None), linkinfo("bridge"))


def set_link(
    device: str | int,
    *,
    up: bool | None = None,
    promisc: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    new_name: str | None = None,
    netns: int | None = None,
    addrgenmode: str | None = None,
    alias: str | None = None,
) -> bytes:
    """Change attributes of a device; None leaves one alone. `master` 0 detaches, `alias` "" removes. To be renamed it has to be named by index."""
    index, parts = which(device)
    wanted = (IFF_UP if up else 0) | (IFF_PROMISC if promisc else 0)
    change = (IFF_UP if up is not None else 0) | (IFF_PROMISC if promisc is not None else 0)
    if new_name is not None:
        parts.append(text(IFLA_IFNAME, new_name))
    if mac is not None:
        parts.append(attribute(IFLA_ADDRESS, mac))
    if mtu is not None:
        parts.append(u32(IFLA_MTU, mtu))
    if master is not None:
        parts.append(u32(IFLA_MASTER, master))
    if netns is not None:
        parts.append(u32(IFLA_NET_NS_FD, netns))
    if alias is not None:
        parts.append(attribute(IFLA_IFALIAS, alias.encode("utf-8", "surrogateescape")))
    if addrgenmode is not None:
        parts.append(nest(IFLA_AF_SPEC, nest(AF_INET6, attribute(INET6_ADDR_GEN_MODE, bytes([ADDRGENMODES[addrgenmode]])))))
    return message(RTM_NEWLINK, REQUEST, body(index, wanted, change), *parts)


def set_queue(index: int, length: int) -> bytes:
    """How many packets may wait for the device."""
    return message(RTM_NEWLINK, 0, body(index), u32(IFLA_TXQLEN, length))


def set_hairpin(device: str | int, on: bool) -> bytes:
    """Whether a bridge port may send frames back out of itself (a pod that reaches itself through a service address)."""
    index, parts = which(device)
    return message(
        RTM_NEWLINK, REQUEST, body(index), *parts, nest(IFLA_LINKINFO, text(INFO_SLAVE_KIND, "bridge"), nest(INFO_SLAVE_DATA, flag(BRPORT_MODE, on)))
    )


def set_group(device: str | int, group: int) -> bytes:
    index, parts = which(device)
    return message(RTM_NEWLINK, 0, body(index), *parts, u32(IFLA_GROUP, group))


def del_group(group: int) -> bytes:
    """Delete all devices of a group at once."""
    return message(RTM_DELLINK, 0, body(), u32(IFLA_GROUP, group))


def del_link(device: str | int) -> bytes:
    index, parts = which(device)
    return message(RTM_DELLINK, 0, body(index), *parts)


def get_nsid(netns: int) -> bytes:
    """Ask by which number links that lead into a namespace (a file descriptor) name it."""
    return message(RTM_GETNSID, 0, bytes(4), u32(NETNSA_FD, netns))


# ---- what we read -----------------------------------------------------------------------------------------------


def decode_links(data: bytes) -> list[Link]:
    """The devices of all RTM_NEWLINK and RTM_DELLINK messages in a datagram. Raises ValueError when it cannot be read."""
    try:
        return list(iterate_links(data))
    except struct.error as error:
        raise ValueError(f"netlink link message: {error}") from None


def iterate_links(data: bytes) -> Iterator[Link]:
    for kind, _, _, _, start, end in messages(data):
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            family, _, index, flags, _ = fixed(IFINFOMSG, data, start, end)
            # Bridges also announce their ports in a shorter form of their own family, with neither kind nor address.
            if family == AF_UNSPEC:
                yield decode_link(index, flags, attributes(data, start + 16, end))


def decode_link(index: int, flags: int, found: dict[int, bytes]) -> Link:
    kind, vxlan, hairpin = "", None, None
    if (encoded := found.get(IFLA_LINKINFO)) is not None:
        info = attributes(encoded, 0, len(encoded))
        kind = read_text(info.get(INFO_KIND, b""))
        if kind == "vxlan" and (inner := info.get(INFO_DATA)) is not None:
            vxlan = decode_vxlan(attributes(inner, 0, len(inner)))
        if read_text(info.get(INFO_SLAVE_KIND, b"")) == "bridge" and (inner := info.get(INFO_SLAVE_DATA)) is not None:
            mode = attributes(inner, 0, len(inner)).get(BRPORT_MODE)
            hairpin = None if mode is None else any(mode)
    netns = found.get(IFLA_LINK_NETNSID)
    return Link(
        name=read_text(found.get(IFLA_IFNAME, b"")),
        index=index,
        kind=kind,
        mac=found.get(IFLA_ADDRESS, b""),
        mtu=number(found, IFLA_MTU),
        up=bool(flags & IFF_UP),
        running=bool(flags & IFF_RUNNING),
        master=number(found, IFLA_MASTER),
        lower=number(found, IFLA_LINK) or (vxlan.underlay if vxlan is not None else 0),  # vxlan devices have no IFLA_LINK
        lower_netns=None if netns is None else INT.unpack(netns)[0],
        vxlan=vxlan,
        hairpin=hairpin,
        alias=read_text(found.get(IFLA_IFALIAS, b"")),
        promisc=bool(flags & IFF_PROMISC),
    )


def decode_nsid(data: bytes) -> int | None:
    """The number in the answer to `get_nsid`, None where no link leads there."""
    for kind, _, _, _, start, end in messages(data):
        if kind == RTM_NEWNSID and (payload := attributes(data, start + 4, end).get(NETNSA_NSID)) is not None:
            nsid = int(INT.unpack(payload)[0])
            return nsid if nsid >= 0 else None
    return None


def number(found: dict[int, bytes], kind: int) -> int:
    payload = found.get(kind)
    return 0 if payload is None else read_u32(payload)


def decode_vxlan(found: dict[int, bytes]) -> Vxlan:
    def on(kind: int) -> bool:
        return any(found.get(kind, b""))

    return Vxlan(
        vni=number(found, VXLAN_ID),
        port=int.from_bytes(found.get(VXLAN_PORT, b""), "big"),
        local=found.get(VXLAN_LOCAL, found.get(VXLAN_LOCAL6)),
        underlay=number(found, VXLAN_LINK),
        learning=on(VXLAN_LEARNING),
        gbp=VXLAN_GBP in found,
        udp_csum=on(VXLAN_UDP_CSUM),
        udp6_zero_csum_tx=on(VXLAN_UDP_ZERO_CSUM6_TX),
        udp6_zero_csum_rx=on(VXLAN_UDP_ZERO_CSUM6_RX),
        group=found.get(VXLAN_GROUP, found.get(VXLAN_GROUP6)),
        l2miss=on(VXLAN_L2MISS),
        l3miss=on(VXLAN_L3MISS),
        collect_metadata=on(VXLAN_COLLECT_METADATA),
        ttl=int.from_bytes(found.get(VXLAN_TTL, b""), "big"),
        ageing_s=number(found, VXLAN_AGEING),
    )
