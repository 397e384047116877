"""Network namespaces: named ones as `ip netns` keeps them, and running one function inside."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

from tweed.errors import KernelError

T = TypeVar("T")

DIRECTORY = "/run/netns"
CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h

libc = ctypes.CDLL(None, use_errno=True)


def open_netns(name_or_path: str) -> int:
    """A file descriptor of the namespace `/run/netns/NAME`, or of a path (anything with a slash, such as /proc/PID/ns/net).

    The caller closes it. Raises KernelError when there is none, or when it is something else.
    """
    path = name_or_path if "/" in name_or_path else f"{DIRECTORY}/{name_or_path}"
    operation = f"open network namespace {path}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(operation, error.errno or 0, error.strerror or "") from None
    try:
        kind = fcntl.ioctl(descriptor, NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != CLONE_NEWNET:
        os.close(descriptor)
        raise KernelError(operation, errno.EINVAL, "it is not a network namespace")
    return descriptor


def run_in(netns: int, function: Callable[[], T]) -> T:
    """What `function()` returns inside the namespace `netns` (a file descriptor). Its exceptions pass through.

    It runs in a thread of its own that enters and is then thrown away: the caller's thread never leaves its namespace, and sockets
    that the function opens stay in theirs.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            if libc.setns(netns, CLONE_NEWNET):
                code = ctypes.get_errno()
                raise KernelError(f"enter the network namespace of file descriptor {netns}", code, os.strerror(code))
            result.append(function())
        except BaseException as error:  # it is raised again in the thread that asked
            failure.append(error)

    thread = threading.Thread(target=enter, name="run-in-netns")
    thread.start()
    thread.join()
    if failure:
        try:
            raise failure[0]
        finally:
            failure.clear()  # else error and frame hold each other
    return result[0]


def create(name: str) -> None:
    """Make the named namespace. Raises KernelError when the name is taken."""
    ip_netns("add", name)


def delete(name: str) -> None:
    """Remove the name. The namespace and its devices go once nothing else holds it. Raises KernelError when there is none."""
    ip_netns("del", name)


def ip_netns(*words: str) -> None:
    # `ip` knows how to share the mounts below /run/netns between mount namespaces; a copy of that would be longer than this file.
    done = subprocess.run(["ip", "netns", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        code = errno.EEXIST if "File exists" in lines[-1] else errno.ENOENT if "No such file" in lines[-1] else 0
        raise KernelError(f"ip netns {' '.join(words)}", code, lines[-1])


def names() -> list[str]:
    """All named namespaces, sorted."""
    try:
        return sorted(os.listdir(DIRECTORY))
    except FileNotFoundError:
        return []


def inode(netns: int) -> int:
    """What tells one namespace from another while it lives: the inode number of its file descriptor."""
    return os.fstat(netns).st_ino
