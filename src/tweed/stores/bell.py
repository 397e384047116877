"""Waking up when another process writes a file: inotify where the kernel has room for it, polling where it does not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tweed.kernel.inotify import IN_MODIFY, Inotify

# How long a sleeper without inotify waits before it looks by itself, in seconds.
POLL_S = 0.1


class Bell:
    """Rings when `path` is written. `warnings` has one line while inotify cannot be had; it is taken back when it can."""

    def __init__(self, path: Path, warnings: list[str]) -> None:
        self.path = path
        self.warnings = warnings
        self.warning = ""
        self.rung = asyncio.Event()
        self.inotify: Inotify | None = None
        self.watched: tuple[int, tuple[int, int]] | None = None
        self.look()

    def look(self) -> None:
        """Sees to it that the file that has the name now is the one that is watched. To be called now and then."""
        try:
            status = os.stat(self.path)
        except OSError:
            return  # it comes with the next write, and the next look finds it
        inode = status.st_dev, status.st_ino
        if self.watched is not None and self.watched[1] == inode:
            return
        try:
            if self.inotify is None:
                self.inotify = Inotify()
                asyncio.get_running_loop().add_reader(self.inotify.fileno(), self.ring)
            if self.watched is not None:
                self.inotify.remove(self.watched[0])
                self.watched = None
            self.watched = self.inotify.add(self.path, IN_MODIFY), inode
        except FileNotFoundError:
            return
        except OSError as error:
            self.warn(
                f"{self.path}: no inotify ({error.strerror}): looking every {POLL_S:g} s instead; raise fs.inotify.max_user_instances or max_user_watches"
            )
        else:
            self.warn("")
            self.rung.set()  # whatever was written before the watch began

    def warn(self, text: str) -> None:
        if text == self.warning:
            return
        if self.warning in self.warnings:
            self.warnings.remove(self.warning)
        if text:
            self.warnings.append(text)
        self.warning = text

    def ring(self) -> None:
        if self.inotify is not None:
            self.inotify.drain()
        self.rung.set()

    async def wait(self, timeout_s: float) -> bool:
        """True as soon as the file was written since the last wait, False after `timeout_s` (sooner without inotify)."""
        try:
            # Not wait_for(): until Python 3.12 it forgets a cancellation that comes together with the ring.
            async with asyncio.timeout(timeout_s if self.watched is not None else min(timeout_s, POLL_S)):
                await self.rung.wait()
        except TimeoutError:
            return False
        self.rung.clear()
        return True

    def close(self) -> None:
        self.warn("")
        if self.inotify is not None:
            asyncio.get_running_loop().remove_reader(self.inotify.fileno())
            self.inotify.close()
            self.inotify = None
