"""Where the plugin calls: RUN_DIR/cni.sock (0600). One call per connection, with file descriptors; the answer ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from contextlib import AsyncExitStack
from pathlib import Path

from tweed.agent.cni import Cni
from tweed.agent.log import log
from tweed.errors import TweedError

CALL_MAX = (1 << 20) + (1 << 16)  # a configuration of 1 MiB and its variables
DESCRIPTORS = 8
CALL_S, ANSWER_S = 10.0, 30.0  # how long a caller may take to say all, and to take its answer
CALLERS = 512
BACKLOG = 1024


async def serve(cni: Cni, path: Path, stack: AsyncExitStack) -> None:
    """Listen until `stack` closes. Raises TweedError when that cannot be done."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    old = os.umask(0o177)
    try:
        cni.agent.spool.open()
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise TweedError(f"cannot listen on {path}: {error.strerror or error}; choose another --run-dir") from None
    finally:
        os.umask(old)
    accepting = asyncio.create_task(accept(cni, listener))

    async def end() -> None:
        """No new calls; those that were taken are answered."""
        path.unlink(missing_ok=True)
        accepting.cancel()
        await asyncio.wait({accepting})

    stack.push_async_callback(end)


async def accept(cni: Cni, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    callers = asyncio.Semaphore(CALLERS)
    calls: set[asyncio.Task[None]] = set()
    try:
        while True:
            await callers.acquire()
            try:
                caller, _ = await loop.sock_accept(listener)
            except OSError as error:  # no file descriptor left: those who wait keep their place in the queue
                callers.release()
                log.warning("a plugin's call cannot be taken: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(converse(cni, caller))
            calls.add(task)
            task.add_done_callback(calls.discard)
            task.add_done_callback(lambda _: callers.release())
    finally:
        listener.close()
        if calls:
            await asyncio.wait(calls, timeout=1.0)


async def converse(cni: Cni, caller: socket.socket) -> None:
    """One call. A caller who goes away in the middle of it has not called."""
    loop = asyncio.get_running_loop()
    descriptors: list[int] = []
    try:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CALL_S):
                data = await receive(caller, descriptors)
            answer = await cni.answer(data, descriptors)
            try:
                async with asyncio.timeout(ANSWER_S):
                    await loop.sock_sendall(caller, answer)
            except (OSError, TimeoutError):
                cni.unheard(data, answer)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        caller.close()


async def receive(caller: socket.socket, descriptors: list[int]) -> bytes:
    """All that the caller says, to its end; what is more than a call can be is cut off, and so cannot be read. Descriptors are added
    to the list as they come. Raises OSError, also when it ends before anything was said."""
    data = bytearray()
    while len(data) < CALL_MAX:
        try:
            part, came, _, _ = socket.recv_fds(caller, 1 << 16, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await readable(caller)
            continue
        descriptors += came
        if not part:
            break
        data += part
    if not data:
        raise ConnectionResetError
    return bytes(data)


async def readable(caller: socket.socket) -> None:
    """Until there is something to read. (The loop's own sock_recv takes no descriptors.)"""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(caller.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(caller.fileno())
