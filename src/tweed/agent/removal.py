"""Deleting devices beside the agent's loop, several at once.

A device is gone, for everybody, some milliseconds before the kernel lets go of who deleted it: that one waits for a whole RCU grace
period (rcu_barrier in netdev_run_todo), 15 ms, however many devices it deleted. So threads do the waiting, what is asked for while all
of them wait goes in one deletion, and the kernel's own notice that a device is gone is answer enough.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor

from tweed.errors import KernelError
from tweed.kernel import links
from tweed.kernel.monitor import LINK, Monitor
from tweed.kernel.netlink import Netlink
from tweed.model import Link
from tweed.wire.link import RTM_DELLINK

THREADS = 4


class Removal:
    def __init__(self) -> None:
        self._idle = [Netlink() for _ in range(THREADS)]
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="removal")
        self._monitor = Monitor(groups=LINK, kind=RTM_DELLINK)
        self._listening = False
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._going: dict[str, asyncio.Future[None]] = {}

    async def remove(self, name: str) -> None:
        """Delete a device of this node; one that is gone is no error. Raises KernelError."""
        loop = asyncio.get_running_loop()
        if not self._listening:
            self._listening = True
            loop.add_reader(self._monitor, self._hear)
        done = self._going.get(name) or self._asked.setdefault(name, loop.create_future())
        self._start()
        await asyncio.shield(done)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._asked and self._idle:
            netlink, asked, self._asked = self._idle.pop(), self._asked, {}
            self._going |= asked
            deleting = loop.run_in_executor(self._threads, links.delete_links, netlink, [*asked])
            deleting.add_done_callback(functools.partial(self._finish, netlink, asked))

    def _finish(self, netlink: Netlink, asked: dict[str, asyncio.Future[None]], deleting: asyncio.Future[None]) -> None:
        self._idle.append(netlink)
        error = deleting.exception()
        for name, done in asked.items():
            self._going.pop(name, None)
            if done.done():
                continue
            if isinstance(error, KernelError):
                done.set_exception(KernelError(error.operation, error.errno, error.text))
            elif error is not None:
                done.set_exception(error)
            else:
                done.set_result(None)
        self._start()

    def _hear(self) -> None:
        for notice in self._monitor.drain():
            if notice.op == "del" and isinstance(notice.row, Link):  # what came before the filter was there may be anything
                done = self._going.get(notice.row.name)
                if done is not None and not done.done():
                    done.set_result(None)
