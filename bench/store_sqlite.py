"""What the embedded store costs beside SQLite itself.

A claim and a renewal: beside the same two rows written by one loop with nothing around it. A snapshot: beside fetching the same
rows. An event: from before `create()` until a watcher in another process has it, beside a byte through a pipe after the same commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.common import circumstances, fill, lease, ratio, spread, table, timed
from tweed.model import LeaseRecord, Owner
from tweed.stores.sqlite import COLUMNS, SqliteStore

LEASES, ROUNDS, WRITES, EVENTS = 10_000, 7, 100, 200
OWNER = Owner("node", "boot")


def main() -> None:
    with circumstances(f"The SQLite store, median (least … most) of {ROUNDS} rounds"), tempfile.TemporaryDirectory(prefix="tweed-bench-") as directory:
        store = SqliteStore(Path(directory) / "store.db")
        rows = [("claim (on the disk)", *claims(store, directory, "FULL")), ("renewal", *claims(store, directory, "NORMAL"))]
        table(
            ("one write", "ours, µs", "bare SQLite, µs", "ratio"),
            [(name, spread(ours, 1e6, 0), spread(floor, 1e6, 0), ratio(ours, floor)) for name, ours, floor in rows],
        )
        fill(store.path, LEASES)
        ours, floor = snapshots(store)
        table((f"snapshot of {LEASES:,}", "ours, CPU ms", "rows alone, ms", "ratio"), [("", spread(ours, 1e3), spread(floor, 1e3), ratio(ours, floor))])
        ours, floor = asyncio.run(events(store))
        table(
            ("event in another process", "ours, ms", "pipe, ms", "ratio of medians"),
            [("", spread(ours, 1e3, 2), spread(floor, 1e3, 2), f"{statistics.median(ours) / statistics.median(floor):.2f}")],
        )
        store.database.close()


def claims(store: SqliteStore, directory: str, synchronous: str) -> tuple[list[float], list[float]]:
    """Seconds of wall time for one write, ours and a bare one, in rounds next to each other."""
    bare = sqlite3.connect(Path(directory) / f"bare-{synchronous}.db", isolation_level=None)
    for statement in (
        "PRAGMA journal_mode=WAL",
        f"PRAGMA synchronous={synchronous}",
        "CREATE TABLE a (key TEXT PRIMARY KEY, value TEXT)",
        "CREATE TABLE b (id INTEGER PRIMARY KEY, value TEXT)",
    ):
        bare.execute(statement)
    value = "x" * 250
    renewed = store.insert(lease(0), OWNER, 86400.0) if synchronous == "NORMAL" else None

    def write_bare(number: int) -> None:
        bare.execute("BEGIN IMMEDIATE")
        bare.execute("REPLACE INTO a VALUES (?, ?)", (str(number), value))
        bare.execute("INSERT INTO b (value) VALUES (?)", (value,))
        bare.execute("COMMIT")

    async def write_ours(record: LeaseRecord | None) -> LeaseRecord | None:
        for number in range(WRITES):
            if record is None:
                await store.delete(await store.create(lease(number), OWNER))
            else:
                record = await store.update(record, record.lease, OWNER)
        return record

    ours, floor = [], []
    for _ in range(ROUNDS):
        writes = WRITES if renewed else 2 * WRITES  # a claim and its release, both synced
        floor.append(timed(lambda: [write_bare(n) for n in range(WRITES)]).wall / WRITES)
        start = time.perf_counter()
        renewed = asyncio.run(write_ours(renewed))
        ours.append((time.perf_counter() - start) / writes)
    bare.close()
    if renewed is not None:
        store.remove(renewed)
    return ours, floor


def snapshots(store: SqliteStore) -> tuple[list[float], list[float]]:
    ours, floor = [], []
    for _ in range(ROUNDS):
        with store.database.reading() as connection:
            floor.append(timed(lambda c=connection: c.execute(f"SELECT {COLUMNS} FROM lease ORDER BY key").fetchall()).cpu)  # type: ignore[misc]
        ours.append(timed(store.read_all).cpu)
    return ours, floor


async def events(store: SqliteStore) -> tuple[list[float], list[float]]:
    """Seconds from before each write until another process knows of it: through its watch, and through a pipe."""
    after = store.database.revision()
    with watcher(store.path, after) as (ready, heard):
        os.read(ready, 1)
        ours, floor = [], []
        for number in range(EVENTS):
            start = time.monotonic()
            await store.create(lease(number, 6), OWNER)
            ours.append(heard() - start)
            start = time.monotonic()
            await store.set_config(str(number))
            floor.append(heard(b"x") - start)
    return ours, floor


@contextlib.contextmanager
def watcher(path: Path, after: int) -> Iterator[tuple[int, Heard]]:
    """A process that answers with the time whenever its watch tells it something, or a byte comes through the pipe."""
    ours, theirs = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.run(answer(path, after, ours[0], theirs[1]))
        os._exit(0)
    try:
        yield theirs[0], Heard(ours[1], theirs[0])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


class Heard:
    """When the other process heard of it, on the clock that both share."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read

    def __call__(self, byte: bytes = b"") -> float:
        os.write(self.write, byte)
        return float(os.read(self.read, 32))


async def answer(path: Path, after: int, read: int, write: int) -> None:
    def tell() -> None:
        os.write(write, f"{time.monotonic():<20}".encode())

    store = SqliteStore(path)

    def byte() -> None:
        os.read(read, 1)
        tell()

    asyncio.get_running_loop().add_reader(read, byte)
    os.write(write, b"r")
    async for batch in store.watch(after):
        for _ in batch:
            tell()


if __name__ == "__main__":
    main()
