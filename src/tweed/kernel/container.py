"""A container's network namespace as the agent works in it: four file descriptors, so that nothing has to enter it again.

Whoever may enter the namespace opens them there: a thread of ours, or the relay, which the runtime starts as root on the host. An agent
with CAP_NET_ADMIN alone can attach containers by those that the relay sent: the kernel checks each use, not how a descriptor was come by.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tweed.errors import KernelError
from tweed.kernel import sysctl
from tweed.kernel.netlink import Netlink
from tweed.kernel.netns import open_netns, run_in

CONF6 = "net/ipv6/conf/"
NETLINK_ROUTE = 0
# Closing a packet socket waits for an RCU grace period (packet_release), 10 ms and more: nobody has to wait with it. The threads start
# a moment later and take several at once, since each time that one runs costs who attaches the next container.
CLOSING = ThreadPoolExecutor(max_workers=4, thread_name_prefix="close-packet-socket")
TO_CLOSE: deque[socket.socket] = deque()
EACH, DELAY_S = 16, 0.05


class Container:
    """`netns`, the namespace; `nl`, an rtnetlink socket in it; a packet socket, where something is to be announced; and the directory
    /proc/sys/net/ipv6/conf as seen from inside, None where the kernel has no IPv6. All are closed by `close`."""

    def __init__(self, netns: int, routing: socket.socket, packet: socket.socket | None, conf6: int | None) -> None:
        self.netns = netns
        self.nl = Netlink(opened=routing)
        self.packet = packet
        self.conf6 = conf6

    @classmethod
    def enter(cls, path: str) -> Container:
        """Open the four by entering the namespace at `path`. Raises KernelError, which names the capability where one is lacking."""
        netns = open_netns(path)
        try:
            return cls(netns, *run_in(netns, open_inside))
        except KernelError as error:
            os.close(netns)
            if error.errno != errno.EPERM:
                raise
            why = "the agent lacks CAP_SYS_ADMIN: give it that, or install the plugin where there is a C compiler (tweed cni install), which enters for it"
            raise KernelError(error.operation, error.errno, why) from None
        except BaseException:
            os.close(netns)
            raise

    @classmethod
    def received(cls, descriptors: Sequence[int]) -> Container:
        """Of descriptors that the relay opened: the namespace's first, then the others in any order. They are taken over, or closed.

        Raises KernelError when they are not what they should be.
        """
        operation = "take what the plugin opened in the container's namespace"
        netns, *others = descriptors
        sockets, files = list[socket.socket](), list[int]()
        try:
            for descriptor in others:
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    sockets.append(socket.socket(fileno=descriptor))
                else:
                    files.append(descriptor)
            sockets.sort(key=lambda made: made.family)
            if [made.family for made in sockets] not in ([socket.AF_NETLINK], [socket.AF_NETLINK, socket.AF_PACKET]) or len(files) > 1:
                raise KernelError(operation, errno.EINVAL, "it is not an rtnetlink socket, with a packet socket and a directory perhaps")
            return cls(netns, sockets[0], sockets[1] if len(sockets) > 1 else None, files[0] if files else None)
        except BaseException as error:
            for made in sockets:
                made.close()
            for descriptor in (netns, *files):
                os.close(descriptor)
            if isinstance(error, OSError):  # a socket that is bound already
                raise KernelError(operation, error.errno or 0, error.strerror or str(error)) from None
            raise

    def sysctl(self, key: str, value: str) -> None:
        """Write a key below net/ipv6/conf/ of this namespace. Raises KernelError."""
        operation = f"sysctl -w {key}={value}"
        if self.conf6 is None:
            raise KernelError(operation, errno.ENOENT, "this kernel has no such key")
        try:
            descriptor = os.open(key.removeprefix(CONF6), os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.conf6)
            try:
                os.write(descriptor, f"{value}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise KernelError(operation, error.errno or 0, error.strerror or "") from None

    def send(self, device: str, frames: Sequence[bytes]) -> None:
        """Send Ethernet frames from a device. Raises KernelError."""
        if self.packet is None:
            raise KernelError(f"announce the addresses of {device}", errno.EPERM, "the plugin may not open a packet socket in the container (CAP_NET_RAW)")
        try:
            self.packet.bind((device, 0))
            for frame in frames:
                self.packet.send(frame)
        except OSError as error:
            raise KernelError(f"announce the addresses of {device}", error.errno or 0, error.strerror or str(error)) from None

    def close(self) -> None:
        self.nl.close()
        os.close(self.netns)
        if self.conf6 is not None:
            os.close(self.conf6)
        if self.packet is not None:
            TO_CLOSE.append(self.packet)
            if len(TO_CLOSE) % EACH == 1:
                CLOSING.submit(close_all)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def close_all() -> None:
    time.sleep(DELAY_S)
    with contextlib.suppress(IndexError):
        while True:
            TO_CLOSE.popleft().close()


def open_inside() -> tuple[socket.socket, socket.socket, int | None]:
    """What a container needs of the namespace that the calling thread is in."""
    routing = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    conf6 = None
    with contextlib.suppress(FileNotFoundError):
        conf6 = os.open(sysctl.ROOT / CONF6, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return routing, packet, conf6
