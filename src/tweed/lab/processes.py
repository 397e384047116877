"""Processes that a lab started, or that run inside its namespaces: told apart for certain, and ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

PROC = Path("/proc")
GRACE_S = 3.0  # after SIGTERM; an agent needs a few milliseconds
LAST_S = 5.0  # after SIGKILL; only an uninterruptible system call takes longer


def started(pid: int) -> int:
    """When the process began, in clock ticks after boot; 0 when there is none. With the pid it names a process for ever."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0
    # proc(5): the command may hold blanks and parentheses, the 22nd field is the 20th after it
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def netns_inode(pid: int) -> int:
    """The inode of the network namespace that the process is in; 0 when there is no such process."""
    try:
        return (PROC / str(pid) / "ns" / "net").stat().st_ino
    except OSError:
        return 0


def inside(inodes: Collection[int]) -> list[int]:
    """The pids of all processes in one of these network namespaces, without the caller's own."""
    pids = (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and netns_inode(pid) in inodes]


def end(processes: Iterable[tuple[int, int]], inodes: Collection[int] = ()) -> list[int]:
    """SIGTERM, then SIGKILL, for processes by pid and start time, and for all inside the namespaces. Returns the pids that live on."""
    living: dict[int, int] = {}
    try:
        for pid, start in processes:
            hold(living, pid, start=start)
        for pid in set(inside(inodes)) - set(living.values()):
            hold(living, pid, inodes=inodes)
        for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, LAST_S)):
            for descriptor in living:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
            wait(living, patience_s)
        return list(living.values())
    finally:
        for descriptor in living:
            os.close(descriptor)


def hold(living: dict[int, int], pid: int, *, start: int = 0, inodes: Collection[int] = ()) -> None:
    """Note a descriptor of the process that began at `start`, or is in one of the namespaces.

    By now the pid may be a stranger's, so this is looked at once the descriptor pins the process.
    """
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        if (start and started(pid) == start) or netns_inode(pid) in inodes:
            living[descriptor] = pid
        else:
            os.close(descriptor)


def wait(living: dict[int, int], patience_s: float) -> None:
    """Until all have ended, at most so long. Those that have are closed and taken out of `living`."""
    poll = select.poll()
    for descriptor in living:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + patience_s
    while living and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            os.close(descriptor)
            with contextlib.suppress(ChildProcessError):  # only our own children are ours to bury
                os.waitpid(living.pop(descriptor), os.WNOHANG)
