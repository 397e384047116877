"""TUN devices (linux/if_tun.h): a process reads what is routed there, and writes what comes back. Made to last, attached, asked for bursts."""

from __future__ import annotations

import fcntl
import os
import struct

from tweed.errors import KernelError

TUNSETIFF, TUNSETPERSIST, TUNSETOFFLOAD, TUNGETIFF, TUNSETVNETHDRSZ = 0x400454CA, 0x400454CB, 0x400454D0, 0x800454D2, 0x400454D8
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
F_CSUM, F_TSO4, F_TSO_ECN, F_USO4, F_USO6 = 0x01, 0x02, 0x08, 0x20, 0x40
VIRTIO_HEADER = 10  # struct virtio_net_hdr
REQUEST = struct.Struct("16sH22x")  # struct ifreq


def create(name: str) -> None:
    """Make the TUN device `name`, which stays when nobody has it open. Raises KernelError."""
    descriptor = attach(name, virtio=False)
    try:
        fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
    except OSError as error:
        raise KernelError(f"ip tuntap add {name} mode tun", error.errno or 0, error.strerror or "") from None
    finally:
        os.close(descriptor)


def attach(name: str, *, virtio: bool) -> int:
    """A descriptor that does not block: one read or write is one packet, behind a virtio header if asked. Raises KernelError."""
    operation = f"attach to the TUN device {name}"
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KernelError(operation, error.errno or 0, f"/dev/net/tun: {error.strerror}") from None
    try:
        flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if virtio else 0)
        fcntl.ioctl(descriptor, TUNSETIFF, REQUEST.pack(name.encode(), flags))
        # An earlier process may have left offloads on, and a reader without virtio headers would get packets of 64 KiB.
        fcntl.ioctl(descriptor, TUNSETOFFLOAD, 0)
        if virtio:
            fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("=i", VIRTIO_HEADER))
    except OSError as error:
        os.close(descriptor)
        raise KernelError(operation, error.errno or 0, error.strerror or "") from None
    return descriptor


def attached(descriptor: int) -> tuple[str, bool] | None:
    """The device that a descriptor is attached to, and are there virtio headers; None when there is no such device any more."""
    try:
        name, flags = REQUEST.unpack(fcntl.ioctl(descriptor, TUNGETIFF, bytes(REQUEST.size)))
    except OSError:
        return None
    return name.rstrip(b"\0").decode(), bool(flags & IFF_VNET_HDR)


def turn_on(descriptor: int, offload: int) -> str:
    """Ask for these offloads, all that are wanted at once. "" when granted, else the kernel's words."""
    try:
        fcntl.ioctl(descriptor, TUNSETOFFLOAD, offload)
    except OSError as error:
        return error.strerror or str(error)
    return ""
