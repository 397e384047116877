"""Counting what threads do, by perf events on tracepoints (perf_event_open(2)): no daemon, nothing is written to tracefs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Iterable
from pathlib import Path

from tweed.errors import KernelError

TRACEFS = "/sys/kernel/tracing"
# The newer system calls have the same number on every architecture (asm-generic/unistd.h); linux/mount.h
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432
FLAG_CLOEXEC, FSCONFIG_CMD_CREATE = 1, 6
# linux/perf_event.h
TYPE_TRACEPOINT, ATTR_SIZE, FLAG_FD_CLOEXEC = 2, 128, 8
IOC_SET_FILTER = 0x40082406
SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
# The system calls that carry a packet's bytes: read, write, readv, writev, sendto, recvfrom, sendmsg, recvmsg, recvmmsg, sendmmsg.
MOVING = {"x86_64": (0, 1, 19, 20, 44, 45, 46, 47, 299, 307), "aarch64": (63, 64, 65, 66, 206, 207, 211, 212, 243, 269)}


def tracepoint(name: str) -> int:
    """The number of a tracepoint such as `raw_syscalls/sys_enter`. Raises KernelError."""
    with contextlib.suppress(OSError):
        return int((Path(TRACEFS) / "events" / name / "id").read_text())
    mount = _detached_tracefs()
    try:
        with open(os.open(f"events/{name}/id", os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)) as file:
            return int(file.read())
    except OSError as error:
        raise KernelError(f"read the tracepoint {name}", error.errno or 0, error.strerror or "") from None
    finally:
        os.close(mount)


def _detached_tracefs() -> int:
    """A descriptor of a tracefs that is mounted nowhere (fsopen(2), fsmount(2)): many machines have none mounted, and theirs are not ours to mount."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        result: int = libc.syscall(number, *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise KernelError("open tracefs", code, os.strerror(code) + (": run as root" if code == errno.EPERM else ""))
        return result

    filesystem = call(SYS_FSOPEN, b"tracefs", FLAG_CLOEXEC)
    try:
        call(SYS_FSCONFIG, filesystem, FSCONFIG_CMD_CREATE, None, None, 0)
        return call(SYS_FSMOUNT, filesystem, FLAG_CLOEXEC, 0)
    finally:
        os.close(filesystem)


def moves_data() -> str:
    """The filter for `raw_syscalls/sys_exit` that keeps the calls that moved bytes. Raises KernelError on another architecture."""
    numbers = MOVING.get(platform.machine())
    if numbers is None:
        raise KernelError("count system calls", errno.ENOSYS, f"their numbers on {platform.machine()} are not known to tweed")
    return f"ret > 0 && ({' || '.join(f'id == {number}' for number in numbers)})"


class Counter:
    """How often a tracepoint was passed by threads, by their ids, since it was made. Raises KernelError."""

    def __init__(self, name: str, threads: Iterable[int], keep: str = "") -> None:
        self._descriptors: list[int] = []
        number, libc = tracepoint(name), ctypes.CDLL(None, use_errno=True)
        call = SYS_PERF_EVENT_OPEN.get(platform.machine(), -1)
        attributes = ctypes.create_string_buffer(struct.pack("=IIQ", TYPE_TRACEPOINT, ATTR_SIZE, number), ATTR_SIZE)
        try:
            for thread in threads:
                descriptor = libc.syscall(call, attributes, thread, -1, -1, FLAG_FD_CLOEXEC)
                if descriptor < 0:
                    code = ctypes.get_errno()
                    if code == errno.ESRCH:
                        continue  # it has ended meanwhile
                    raise KernelError(f"perf_event_open {name}", code, os.strerror(code) + (": run as root" if code in (errno.EACCES, errno.EPERM) else ""))
                self._descriptors.append(descriptor)
                if keep:
                    fcntl.ioctl(descriptor, IOC_SET_FILTER, keep.encode() + b"\0")
        except OSError as error:
            self.close()
            raise KernelError(f"filter {name}", error.errno or 0, error.strerror or "") from None
        except KernelError:
            self.close()
            raise

    def read(self) -> int:
        return sum(int.from_bytes(os.read(descriptor, 8), "little") for descriptor in self._descriptors)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def threads_of(pids: Iterable[int]) -> list[int]:
    """The ids of all threads of processes."""
    found: list[int] = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found += [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return found
