"""Frames as they pass a device (packet(7)), with their time and direction.

A received frame has one time stamp, taken where it entered the machine, however many devices it passes afterwards: a bridge and its
port, or a tunnel and the device below it, show the same time. Frames of veth pairs may be longer than any MTU (segments not yet cut)
and may hold checksums that nobody has computed yet.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterable
from struct import Struct
from typing import Literal

import msgspec

from tweed.errors import KernelError
from tweed.kernel.filter import Filter, attach
from tweed.kernel.netlink import SO_RCVBUFFORCE
from tweed.kernel.netns import run_in

ETH_P_ALL = 3
SO_TIMESTAMPNS_NEW = 64
SOL_PACKET, PACKET_STATISTICS = 263, 6
PACKET_OTHERHOST, PACKET_OUTGOING = 3, 4
ETHERNET = 14
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772

BUFFER = 2 << 20
LARGEST = 1 << 17  # a segmented IPv6 packet may be longer than 64 KiB
AT_ONCE = 4096
STAMPS_S = 0.5

TIMESPEC = Struct("=qq")
STATISTICS = Struct("=II")

Direction = Literal["in", "out", "other"]


class Frame(msgspec.Struct, frozen=True):
    """One frame as seen at `device`. `t_ns`: since 1970. `direction` "other": it came in and was meant for another MAC. `network`: where its payload
    begins, 0 at a device without a link layer (TUN)."""

    device: str
    t_ns: int
    direction: Direction
    data: bytes
    network: int = ETHERNET


class Capture:
    """Frames of some devices of one namespace, from the moment this is made; a context manager.

    What is not drained in time is dropped by the kernel once `buffer` bytes per device are full; `lost` counts it.
    """

    def __init__(self, devices: Iterable[str], netns: int | None = None, *, filter: Filter = (), buffer: int = BUFFER) -> None:
        """`netns`: file descriptor of the namespace, None for the caller's own. Raises KernelError: no such device, no CAP_NET_RAW."""
        self._sockets: dict[int, tuple[str, socket.socket]] = {}
        self._lost = 0
        self._poll = select.poll()
        try:
            for device in dict.fromkeys(devices):
                self._open(device, netns, filter, buffer)
            wait_for_stamps()
        except BaseException:
            self.close()
            raise

    def _open(self, device: str, netns: int | None, filter: Filter, buffer: int) -> None:
        def make() -> socket.socket:
            # Protocol 0: nothing arrives before the filter is in place and the socket is bound to its device.
            return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)

        try:
            opened = make() if netns is None else run_in(netns, make)
            self._sockets[opened.fileno()] = device, opened
            if filter:
                attach(opened, filter)
            try:
                opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
            except PermissionError:  # no CAP_NET_ADMIN over the first namespace: as much as net.core.rmem_max grants
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS_NEW, 1)
            opened.bind((device, ETH_P_ALL))
        except OSError as error:
            raise KernelError(f"capture at {device}", error.errno or 0, error.strerror or "") from None
        self._poll.register(opened, select.POLLIN)

    def close(self) -> None:
        for _, opened in self._sockets.values():
            opened.close()
        self._sockets.clear()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def drain(self, wait_s: float = 0) -> list[Frame]:
        """All frames that are there, by time. Waits for a first one at most `wait_s`, and never reads more than AT_ONCE of each device."""
        frames: list[Frame] = []
        for descriptor, _ in self._poll.poll(wait_s * 1000):
            device, opened = self._sockets[descriptor]
            for _ in range(AT_ONCE):
                try:
                    data, control, _, address = opened.recvmsg(LARGEST, 64)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENETDOWN:  # said once when the device goes down or away; it may come up again
                        raise KernelError(f"capture at {device}", error.errno or 0, error.strerror or "") from None
                    continue
                kind = address[2]
                direction: Direction = "out" if kind == PACKET_OUTGOING else "other" if kind == PACKET_OTHERHOST else "in"
                frames.append(Frame(device, stamp(control), direction, data, ETHERNET if address[3] in (ARPHRD_ETHER, ARPHRD_LOOPBACK) else 0))
        frames.sort(key=lambda frame: frame.t_ns)
        return frames

    @property
    def lost(self) -> int:
        """How many frames the kernel dropped because the buffer was full."""
        for _, opened in self._sockets.values():
            self._lost += STATISTICS.unpack(opened.getsockopt(SOL_PACKET, PACKET_STATISTICS, STATISTICS.size))[1]  # reading resets it
        return self._lost


def stamp(control: Iterable[tuple[int, int, bytes]]) -> int:
    """Nanoseconds since 1970, 0 without a time."""
    seconds, nanoseconds = next((TIMESPEC.unpack(value) for _, kind, value in control if kind == SO_TIMESTAMPNS_NEW), (0, 0))
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def wait_for_stamps() -> None:
    """Until the kernel stamps frames where they pass, which it begins with a moment after the first socket has asked for it (net_enable_timestamp
    leaves that to a work item). What passes earlier gets the time at which it is read, and so comes out of order."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as own:
        own.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS_NEW, 1)
        try:
            own.bind(("127.0.0.1", 0))
        except OSError:  # no loopback to try it on
            return
        deadline = time.monotonic() + STAMPS_S
        while time.monotonic() < deadline:
            own.sendto(b"", own.getsockname())
            sent_ns = time.time_ns()
            if stamp(own.recvmsg(1, 64)[1]) <= sent_ns:
                return
            time.sleep(STAMPS_S / 1000)
