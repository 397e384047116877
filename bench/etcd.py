"""An etcd in a node's namespace, and a process beside it that writes leases as other nodes would and tells when.

As a program (`python -m bench.etcd ENDPOINT`) it is that process: a line `fill FIRST COUNT`, `burst FIRST COUNT` or `one NUMBER` on its
standard input is answered with the times of its first request and its last answer (time.perf_counter, the same clock for all processes).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.common import CONFIG, Node, lease
from tweed.config import Settings
from tweed.kernel import netns

PORT = 2379
ENDPOINT = f"http://127.0.0.1:{PORT}"
FLAGS = ("--store=etcd", f"--etcd-endpoints={ENDPOINT}")
PATIENCE_S = 120.0
AT_ONCE = 128  # requests on their way in a burst; keys in one transaction when filling (etcd's limit)


class Written(NamedTuple):
    began: float
    ended: float


class Etcd:
    """The server and the writer of one node."""

    def __init__(self, node: Node) -> None:
        if (binary := shutil.which("etcd")) is None:
            sys.exit("bench: there is no etcd on this machine: apt-get install etcd-server")
        self.enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={netns.DIRECTORY}/{node.name}"]
        directory = node.directory.parent / f"etcd{node.number}"
        directory.mkdir()
        words = [f"--data-dir={directory}/data", f"--listen-client-urls={ENDPOINT}", f"--advertise-client-urls={ENDPOINT}"]
        words += ["--logger=zap", "--log-level=error"]
        with (directory / "log").open("ab") as log:
            self.server = subprocess.Popen([*self.enter, binary, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        command = [*self.enter, sys.executable, "-m", "bench.etcd", ENDPOINT]
        self.writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
        self.ask("config")

    def ask(self, what: str) -> Written:
        assert self.writer.stdin is not None and self.writer.stdout is not None
        print(what, file=self.writer.stdin, flush=True)
        began, ended = self.writer.stdout.readline().split()
        return Written(float(began), float(ended))

    def stop(self) -> None:
        for process in (self.writer, self.server):
            process.kill()
            process.wait()
        assert self.writer.stdin is not None and self.writer.stdout is not None
        self.writer.stdin.close()
        self.writer.stdout.close()


@contextlib.contextmanager
def etcd(node: Node) -> Iterator[Etcd]:
    started = Etcd(node)
    try:
        yield started
    finally:
        started.stop()


# ---- the writer -------------------------------------------------------------------------------------------------------


async def write(endpoint: str) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tweed.errors import StoreError
    from tweed.stores.etcd import rpc_pb2 as rpc
    from tweed.stores.etcd.store import EtcdStore, put
    from tweed.wire.lease import format_lease

    store = EtcdStore(Settings(node_name="writer", store="etcd", etcd_endpoints=(endpoint,)))

    async def put_some(numbers: range) -> None:
        puts = [put(store.layout.lease_key(each.key), format_lease(each).encode(), 0) for each in map(lease, numbers)]
        await store.client.call(rpc.TxnRequest(success=puts), rpc.TxnResponse)

    async def put_all(numbers: range, size: int) -> None:
        gate = asyncio.Semaphore(AT_ONCE // size)

        async def one(some: range) -> None:
            async with gate:
                await put_some(some)

        await asyncio.gather(*(one(numbers[at : at + size]) for at in range(0, len(numbers), size)))

    async def config() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                await store.set_config(CONFIG)
                return
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, *numbers = line.split()
        first, count = (int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 1) if numbers else (0, 0)
        began = time.perf_counter()
        if what == "config":
            await config()
        else:
            await put_all(range(first, first + count), AT_ONCE if what == "fill" else 1)
        print(began, time.perf_counter(), flush=True)


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1]))
