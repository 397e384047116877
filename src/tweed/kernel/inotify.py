"""inotify(7) through ctypes: to be woken when somebody writes a file."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# linux/inotify.h
IN_MODIFY = 0x0002
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = os.O_CLOEXEC

libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """One inotify instance. `fileno()` is readable when something happened; `drain()` forgets what.

    Both the constructor and `add` raise OSError: EMFILE where /proc/sys/fs/inotify/max_user_instances is reached,
    ENOSPC where max_user_watches is.
    """

    def __init__(self) -> None:
        self.fd = libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def add(self, path: Path, mask: int) -> int:
        """Watches the file (or directory) that has this name now; the number of the watch. A file that replaces it later is another."""
        watch: int = libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask))
        if watch < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        return watch

    def remove(self, watch: int) -> None:
        """Ends a watch; nothing happens when the kernel has ended it already, because its file is gone."""
        libc.inotify_rm_watch(self.fd, watch)

    def drain(self) -> None:
        """Reads whatever is queued."""
        try:
            while os.read(self.fd, 65536):
                pass
        except BlockingIOError:
            return

    def fileno(self) -> int:
        return int(self.fd)

    def close(self) -> None:
        os.close(self.fd)
