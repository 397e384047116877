"""The UDP socket on the underlay."""

from __future__ import annotations

import functools
import socket
import sys
from contextlib import suppress

from tweed.addr import format_address
from tweed.errors import KernelError

UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0
# A peer that takes long bursts says so with the outer time to live, which flannel leaves at the kernel's 64, and which no NAT and no
# firewall minds: more than PLAIN_TTL arrives from it, however many routers there are.
IP_TTL, IP_RECVTTL = 2, 12
BURST_TTL, PLAIN_TTL = 255, 128
BUFFER = 8 << 20
RECEIVE = 1 << 16
KNOWN = 4096  # addresses whose two forms are remembered, whoever sends


@functools.lru_cache(KNOWN)
def text(host: int) -> str:
    return format_address(host.to_bytes(4))


@functools.lru_cache(KNOWN)
def number(host: str) -> int:
    return int.from_bytes(socket.inet_aton(host))


def open_socket(local: bytes, port: int) -> socket.socket:
    """Bound to the node's own address as flannel's, with room for bursts. Raises KernelError."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        for forced, plain in ((SO_SNDBUFFORCE, socket.SO_SNDBUF), (SO_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                opened.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
            except PermissionError:  # root only of a container: as much as net.core.[rw]mem_max grants
                opened.setsockopt(socket.SOL_SOCKET, plain, BUFFER)
        # No DF: an outer packet that is too long for a router is cut there, and the peer's kernel puts it together.
        opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        opened.bind((format_address(local), port))
    except OSError as error:
        opened.close()
        raise KernelError(f"bind UDP {format_address(local)}:{port}", error.errno or 0, error.strerror or "") from None
    return opened


def can_segment(opened: socket.socket) -> str:
    """ "" when the kernel cuts one send into datagrams (Linux 4.18), else its words."""
    try:
        opened.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def receive_bursts(opened: socket.socket) -> str:
    """Have equal datagrams delivered together (Linux 5.0). "" when granted, else the kernel's words."""
    try:
        opened.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        opened.setsockopt(socket.IPPROTO_IP, IP_TTL, BURST_TTL)
        opened.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def receive(opened: socket.socket, buffer: bytearray | memoryview) -> tuple[int, int, int, bool] | None:
    """Bytes, size of each datagram among them (the last may be shorter), the sender, and does it take bursts; None when nothing waits."""
    with suppress(BlockingIOError):
        n, ancillary, _, sender = opened.recvmsg_into([buffer], 96)
        said = {(level, kind): int.from_bytes(data[:4], sys.byteorder) for level, kind, data in ancillary}
        size, ttl = said.get((socket.IPPROTO_UDP, UDP_GRO), n), said.get((socket.IPPROTO_IP, IP_TTL), 0)
        return n, size, number(sender[0]), ttl > PLAIN_TTL
    return None
