"""The process of `tweed agent`: one per run directory, ends on SIGTERM and SIGINT, leaves the data plane in place."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
from contextlib import AsyncExitStack
from typing import IO

from tweed import __version__
from tweed.agent import cni_socket
from tweed.agent.agent import Agent
from tweed.agent.api import serve
from tweed.agent.cni import Cni
from tweed.agent.log import log, start_logging
from tweed.agent.notify import Notifier
from tweed.config import Settings
from tweed.errors import TweedError


def run(settings: Settings, *, watch_kernel: bool = True) -> None:
    """Until a signal. Raises TweedError when it cannot start, UsageError for what can never work."""
    start_logging()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the soft 1024 is select()'s, and a thousand idle clients
    with lock(settings):
        asyncio.run(_main(settings, watch_kernel))


def lock(settings: Settings) -> IO[str]:
    """The run directory's lock, held while the file is open; the kernel lets go of it however the process ends."""
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = open(settings.run_dir / "agent.lock", "a+")  # noqa: SIM115 (the caller holds it)
    except OSError as error:
        raise TweedError(f"{error.filename}: {error.strerror}; tweed agent needs root, or --run-dir and --state-dir that it can write") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid = file.read().strip()
        file.close()
        raise TweedError(f"another agent (pid {pid}) runs with --run-dir {settings.run_dir}: stop it, or give this one other directories") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


async def _main(settings: Settings, watch_kernel: bool) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()

    def end() -> None:
        """A second signal ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    log.info("tweed %s agent of node %s, pid %d", __version__, settings.node_name, os.getpid())
    async with AsyncExitStack() as stack:
        agent = Agent(settings, watch_kernel=watch_kernel)
        await serve(agent, end, stack)
        await cni_socket.serve(Cni(agent), settings.cni_socket, stack)
        notifier = Notifier(os.environ)
        if notifier.address:
            stack.callback(asyncio.create_task(notifier.follow(agent)).cancel)
            stack.callback(notifier.tell, "STOPPING=1")
        running, told = asyncio.create_task(agent.run()), asyncio.create_task(ending.wait())
        await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        while not running.done():
            running.cancel()
            await asyncio.wait({running}, timeout=1.0)  # and again, since a library may swallow one cancellation
        if not running.cancelled():
            running.result()
    log.info("ended; routes, neighbours, fdb entries and devices stay as they are")
