"""TUN devices (linux/if_tun.h): a process reads what is routed there, and writes what comes back."""

from __future__ import annotations

import fcntl
import os
import struct

from tweed.errors import KernelError

TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


def create(name: str) -> None:
    """Make the TUN device `name`, which stays when nobody has it open. Raises KernelError."""
    operation = f"ip tuntap add {name} mode tun"
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
            fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KernelError(operation, error.errno or 0, error.strerror or "") from None
