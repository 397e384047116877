"""Deleting devices, several at once and beside the agent's loop: the kernel waits 15 ms for every deletion, however many devices it is of."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from tweed.errors import KernelError
from tweed.kernel import links
from tweed.kernel.netlink import Netlink


class Removal:
    """Whoever asks while a deletion is under way shares the next one."""

    def __init__(self) -> None:
        self._netlink = Netlink()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="removal")
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._working: asyncio.Task[None] | None = None

    async def remove(self, name: str) -> None:
        """Delete a device of this node; one that is gone is no error. Raises KernelError."""
        done = self._asked.setdefault(name, asyncio.get_running_loop().create_future())
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        await asyncio.shield(done)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                failed: KernelError | None = None
                try:
                    await loop.run_in_executor(self._thread, links.delete_links, self._netlink, [*asked])
                except KernelError as error:
                    failed = error
                for done in asked.values():
                    if failed is None:
                        done.set_result(None)
                    else:
                        done.set_exception(KernelError(failed.operation, failed.errno, failed.text))
        finally:
            self._working = None
