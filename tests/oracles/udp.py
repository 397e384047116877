"""The UDP mode's packets, one after another, with sums of one word and another."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

VIRTIO = "=BBHHHH"
MARTIANS = [IPv4Network(text) for text in ("127.0.0.0/8", "0.0.0.0/8", "224.0.0.0/3")]
FIN, PSH, ACK, ECE, CWR = 1, 8, 16, 64, 128


class World(NamedTuple):
    own: IPv4Network
    peers: dict[IPv4Network, IPv4Address]
    strict: bool = False

    def host(self, address: IPv4Address) -> IPv4Address | None:
        return next((host for subnet, host in self.peers.items() if address in subnet), None)


def total(data: bytes) -> int:
    """RFC 1071: the words' sum, with the carries brought back in at the end (section 2)."""
    if len(data) % 2:
        data += b"\0"
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value > 0xFFFF:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def pseudo(ip: bytes, length: int) -> bytes:
    return ip[12:20] + struct.pack("!BBH", 0, ip[9], length)


def with_header_sum(ip: bytes) -> bytes:
    size = (ip[0] & 15) * 4
    found = 0xFFFF ^ total(ip[:10] + ip[12:size])
    return ip[:10] + found.to_bytes(2, "big") + ip[12:]


def field_at(ip: bytes) -> int:
    return (ip[0] & 15) * 4 + (16 if ip[9] == 6 else 6)


def with_inner_sum(ip: bytes) -> bytes:
    """The TCP or UDP checksum as a sender writes it."""
    size, at = (ip[0] & 15) * 4, field_at(ip)
    found = 0xFFFF ^ total(pseudo(ip, len(ip) - size) + ip[size:at] + ip[at + 2 :])
    return ip[:at] + (found or (0xFFFF if ip[9] == 17 else 0)).to_bytes(2, "big") + ip[at + 2 :]


def sums_are_right(ip: bytes) -> bool:
    """Header checksum and, of whole TCP and UDP packets, the inner one."""
    size = (ip[0] & 15) * 4
    if total(ip[:size]) != 0xFFFF:
        return False
    if ip[9] not in (6, 17) or struct.unpack_from("!H", ip, 6)[0] & 0x3FFF or (ip[9] == 17 and ip[size + 6 : size + 8] == b"\0\0"):
        return True
    return total(pseudo(ip, len(ip) - size) + ip[size:]) == 0xFFFF


def one_hop_less(ip: bytes) -> bytes:
    return with_header_sum(ip[:8] + bytes([ip[8] - 1]) + ip[9:])


def outbound(world: World, packet: bytes) -> list[bytes] | str:
    """What goes out for a packet of the TUN, or why it does not."""
    ip = packet[10:]
    if len(ip) < 20 or ip[0] >> 4 != 4:
        return "tx-not-ipv4"
    size = (ip[0] & 15) * 4
    if size < 20 or size > len(ip) or int.from_bytes(ip[2:4]) != len(ip):
        return "tx-length"
    if world.host(IPv4Address(ip[16:20])) is None:
        return "tx-no-peer"
    if ip[8] <= 1:
        return "tx-ttl"
    flags, kind, _, cut, start, offset = struct.unpack_from(VIRTIO, packet)
    kind &= 0x7F
    if kind == 0:
        if flags & 1:
            if start < size or start + offset + 2 > len(ip):
                return "tx-offload"
            found = 0xFFFF ^ total(ip[start:])
            at = start + offset
            ip = ip[:at] + struct.pack("!H", found or (0xFFFF if ip[9] == 17 else 0)) + ip[at + 2 :]
        return [with_ttl_patch(ip)]
    if (kind, ip[9]) == (1, 6) and len(ip) >= size + 20 and ip[size + 12] >> 4 >= 5:
        header = size + (ip[size + 12] >> 4) * 4
    elif (kind, ip[9]) == (5, 17):
        header = size + 8
    else:
        return "tx-offload"
    if not cut or len(ip) <= header or header + cut > 65507:
        return "tx-offload"
    pieces = [ip[at : at + cut] for at in range(header, len(ip), cut)]
    sent = []
    for number, piece in enumerate(pieces):
        h = bytearray(ip[:header])
        struct.pack_into("!HH", h, 2, header + len(piece), (int.from_bytes(ip[4:6]) + number) % 65536)
        h[8] -= 1
        if ip[9] == 6:
            struct.pack_into("!I", h, size + 4, (int.from_bytes(ip[size + 4 : size + 8]) + number * cut) % 2**32)
            if number < len(pieces) - 1:
                h[size + 13] &= ~(FIN | PSH) & 255
            if number > 0:
                h[size + 13] &= ~CWR & 255
        else:
            struct.pack_into("!H", h, size + 4, 8 + len(piece))
        sent.append(with_inner_sum(with_header_sum(bytes(h) + piece)))
    return sent


def with_ttl_patch(ip: bytes) -> bytes:
    """One hop less, by RFC 1624: a wrong checksum stays wrong."""
    found = int.from_bytes(ip[10:12]) + 0x100
    found = (found & 0xFFFF) + (found >> 16)
    return ip[:8] + bytes([ip[8] - 1, ip[9]]) + struct.pack("!H", found) + ip[12:]


def judge(world: World, sender: IPv4Address, ip: bytes) -> str:
    if len(ip) < 20:
        return "rx-short"
    if ip[0] >> 4 != 4:
        return "rx-version"
    size = (ip[0] & 15) * 4
    if size < 20 or size > len(ip) or int.from_bytes(ip[2:4]) != len(ip):
        return "rx-length"
    if total(ip[:size]) != 0xFFFF:
        return "rx-header-checksum"
    source, target = IPv4Address(ip[12:16]), IPv4Address(ip[16:20])
    if any(source in network for network in MARTIANS):
        return "rx-source-martian"
    if source in world.own or world.host(source) not in (None, sender):
        return "rx-source-spoofed"
    if world.strict and world.host(source) is None:
        return "rx-source-foreign"
    if target not in world.own:
        return "rx-destination"
    return "rx-ttl" if ip[8] <= 1 else ""


def shape(ip: bytes) -> tuple[object, ...] | None:
    """What must be equal in packets that become one; None for one that stays alone."""
    if ip[0] != 0x45 or int.from_bytes(ip[6:8]) & 0xBFFF or len(ip) < 28 or not sums_are_right(ip):
        return None
    common = ip[1], ip[6:8], ip[8], ip[9], ip[12:20]
    if ip[9] == 6 and len(ip) >= 40:
        header = 20 + (ip[32] >> 4) * 4
        if header >= 40 and len(ip) > header and ip[33] & ~(PSH | ECE) == ACK:
            return *common, header, ip[20:24], ip[28:33], ip[33] & ~PSH, ip[34:36], ip[38:header]
    if ip[9] == 17 and len(ip) > 28 and int.from_bytes(ip[24:26]) == len(ip) - 20 and ip[26:28] != b"\0\0":
        return *common, 28, ip[20:24]
    return None


def inbound(world: World, sender: IPv4Address, datagrams: list[bytes]) -> tuple[list[bytes], list[str]]:
    """What the TUN is given for datagrams that came together, and why others are dropped."""
    runs: list[list[bytes]] = []
    drops = []
    joinable = False  # the last run's end may be continued by the next datagram
    for ip in datagrams:
        if why := judge(world, sender, ip):
            drops.append(why)
            joinable = False
            continue
        now = shape(ip)
        if joinable and runs and now is not None and now == shape(runs[-1][0]) and follows(runs[-1], ip):
            runs[-1].append(ip)
        else:
            runs.append([ip])
        joinable = now is not None
    return [joined(run) for run in runs], drops


def follows(run: list[bytes], ip: bytes) -> bool:
    first, last = run[0], run[-1]
    header = 28 if ip[9] == 17 else 20 + (ip[32] >> 4) * 4
    step = len(first) - header
    if len(run) == 64 or len(last) != len(first) or len(ip) > len(first) or header + step * len(run) + len(ip) - header > 65535:
        return False
    if not ip[6] & 0x40 and int.from_bytes(ip[4:6]) != (int.from_bytes(last[4:6]) + 1) % 65536:
        return False
    if ip[9] == 6:
        return not last[33] & PSH and int.from_bytes(ip[24:28]) == (int.from_bytes(last[24:28]) + step) % 2**32
    return True


def joined(run: list[bytes]) -> bytes:
    first = run[0]
    if len(run) == 1:
        return bytes(10) + one_hop_less(first)
    tcp = first[9] == 6
    header = 20 + (first[32] >> 4) * 4 if tcp else 28
    body = b"".join(ip[header:] for ip in run)
    h = bytearray(first[:header])
    struct.pack_into("!H", h, 2, header + len(body))
    h[8] -= 1
    if tcp:
        h[33] |= run[-1][33] & PSH
    else:
        struct.pack_into("!H", h, 24, 8 + len(body))
    at = field_at(first)
    struct.pack_into("!H", h, at, total(pseudo(bytes(h), header - 20 + len(body))))
    virtio = struct.pack(VIRTIO, 1, 1 if tcp else 5, header, len(first) - header, 20, 16 if tcp else 6)
    return virtio + with_header_sum(bytes(h)) + body
