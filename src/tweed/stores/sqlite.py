"""The embedded store: one SQLite file for every agent on one kernel, no server.

Every change takes the next revision and leaves a row in the log; a watcher reads the log from its revision on. It is woken by the
kernel when somebody writes the write-ahead log, looks again a few times because that is before the change can be seen, and every
second in any case. Leases end by the decision of whoever writes, never of a reader: an ended lease is deleted, with a revision of
its own, before anything else happens, and a reader that finds one takes the lock to do so.

SQLite runs in one thread per store, so that a wait for the file's lock or for the disk never holds up the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from tweed.errors import Compacted, Conflict, StoreUnavailable
from tweed.model import Junk, Lease, LeaseRecord, Owner
from tweed.stores import TTL_S, Event, NodesChoose, Snapshot
from tweed.stores.bell import Bell
from tweed.stores.clock import Clock
from tweed.stores.database import Database
from tweed.wire.gojson import printable
from tweed.wire.lease import format_lease, parse_lease

T = TypeVar("T")

# How many revisions the log keeps: a day of renewals of 10,000 nodes.
KEEP = 10_000
# A watcher's first and last pause between two looks, in seconds; doubled in between. The first: SQLite writes the file, which wakes
# the watcher, then syncs it, then makes the change visible in shared memory, which wakes nobody.
LOOK_S = (0.001, 1.0)
BATCH = 1000

COLUMNS = "key, value, revision, created, owner_node, owner_boot_id, boot_id, ends_boottime, ends_wall"
DUE = "(boot_id = :boot_id AND ends_boottime <= :boottime) OR (ends_wall <= :wall AND boot_id <> :boot_id)"


class Row(msgspec.Struct, frozen=True):
    """A row of `lease` or `log` as SQLite returns it: text as bytes, since foreign hands may have written them. `value` None: deleted."""

    key: bytes
    value: bytes | None
    revision: int
    created: int
    owner_node: bytes | None
    owner_boot_id: bytes | None
    boot_id: bytes | None
    ends_boottime: float | None
    ends_wall: float | None


class SqliteStore(NodesChoose):
    """`LeaseStore` in the file at `path`, which is created (mode 0600) when it does not exist. Several may share one file."""

    def __init__(self, path: str | Path, clock: Clock | None = None, keep: int = KEEP) -> None:
        """Raises StoreUnavailable or StoreError when the file cannot be used."""
        self.path = Path(path)
        self.clock = clock or Clock()
        self.keep = keep
        self.warnings: list[str] = []
        self.database = Database(self.path)
        self.closed = False
        self.database.open()
        self.thread = ThreadPoolExecutor(1, "store")

    async def config(self) -> str | None:
        return await self.run(self.read_config)

    async def set_config(self, text: str, *, replace: bool = True) -> bool:
        return await self.run(lambda: self.write_config(text, replace))

    async def snapshot(self) -> Snapshot:
        return await self.run(self.read_all)

    async def timed(self, records: Sequence[LeaseRecord]) -> tuple[LeaseRecord, ...]:
        return tuple(records)

    async def create(self, lease: Lease, owner: Owner | None, ttl_s: float | None = TTL_S) -> LeaseRecord:
        return await self.run(lambda: self.insert(lease, owner, ttl_s))

    async def update(self, record: LeaseRecord, lease: Lease, owner: Owner, ttl_s: float = TTL_S) -> LeaseRecord:
        if lease.key != record.key:
            raise ValueError(f"an update of lease {record.lease} cannot make it {lease}")
        return await self.run(lambda: self.replace(record, lease, owner, ttl_s))

    async def delete(self, record: LeaseRecord) -> None:
        await self.run(lambda: self.remove(record))

    async def watch(self, revision: int) -> AsyncIterator[tuple[Event, ...]]:
        bell = Bell(self.path.with_name(self.path.name + "-wal"), self.warnings)
        try:
            pause_s, config = LOOK_S[0], await self.run(self.read_config)
            while True:
                events = await self.run(partial(self.read_log, revision))
                if events:
                    revision = events[-1].revision
                    pause_s = LOOK_S[0]
                    yield events
                    continue
                if (text := await self.run(self.read_config)) != config:
                    config = text
                    yield ()
                if pause_s == LOOK_S[1]:
                    await self.run(self.sweep_if_due)
                bell.look()
                rung = await bell.wait(pause_s)
                pause_s = LOOK_S[0] if rung else min(2 * pause_s, LOOK_S[1])
        finally:
            bell.close()

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            await asyncio.get_running_loop().run_in_executor(self.thread, self.database.close)
            self.thread.shutdown(wait=False)

    async def run(self, work: Callable[[], T]) -> T:
        if self.closed:
            raise StoreUnavailable(f"{self.path}: closed")
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    # ---- in the store's thread -----------------------------------------------------------------------------------

    def read_config(self) -> str | None:
        with self.database.reading() as connection:
            row = connection.execute("SELECT CAST(value AS BLOB) FROM config WHERE id = 1").fetchone()
        return row[0].decode("utf-8", "replace") if row else None

    def write_config(self, text: str, replace: bool) -> bool:
        with self.database.writing("FULL") as connection:
            written = connection.execute(f"INSERT OR {'REPLACE' if replace else 'IGNORE'} INTO config VALUES (1, ?)", (text,))
            return written.rowcount == 1

    def read_all(self) -> Snapshot:
        self.sweep_if_due()
        with self.database.reading() as connection:
            (revision,) = connection.execute("SELECT revision FROM counter").fetchone()
            # Row by row: ten thousand at once are many megabytes, which the process then keeps.
            read = [self.read_row(Row(*row)) for row in connection.execute(f"SELECT {COLUMNS} FROM lease ORDER BY key")]
        return Snapshot(revision, tuple(r for r in read if isinstance(r, LeaseRecord)), tuple(r for r in read if isinstance(r, Junk)))

    def read_log(self, after: int) -> tuple[Event, ...]:
        """The changes after that revision, the first of them at most. Raises Compacted when some are missing."""
        if self.database.revision() == after:
            return ()
        with self.database.reading() as connection:
            revision, compacted = connection.execute("SELECT revision, compacted FROM counter").fetchone()
            # A revision that has not been yet: the file is another one than that in which it was read.
            if not compacted <= after <= revision:
                raise Compacted(f"{self.path}: changes since revision {after} are no longer kept (oldest {compacted}, newest {revision})")
            rows = connection.execute(f"SELECT {COLUMNS} FROM log WHERE revision > ? ORDER BY revision LIMIT {BATCH}", (after,)).fetchall()
        return tuple(self.event(Row(*row)) for row in rows)

    def event(self, row: Row) -> Event:
        if row.value is None:
            return Event(row.revision, printable(row.key))
        read = self.read_row(row)
        return Event(row.revision, read.key, read if isinstance(read, LeaseRecord) else None, read if isinstance(read, Junk) else None)

    def read_row(self, row: Row) -> LeaseRecord | Junk:
        owner = None
        try:
            owner = Owner(row.owner_node.decode(), (row.owner_boot_id or b"").decode()) if row.owner_node is not None else None
            return LeaseRecord(parse_lease(row.key.decode(), row.value or b""), owner, row.revision, row.created, self.left_s(row))
        except ValueError as error:
            return Junk(printable(row.key), str(error), row.revision, owner)

    def left_s(self, row: Row) -> float | None:
        """Seconds until the lease ends. Boot time within one boot: nobody can move that clock. Across boots there is only the wall's."""
        if row.boot_id is None or row.ends_boottime is None or row.ends_wall is None:
            return None
        if row.boot_id == self.clock.boot_id.encode():
            return max(0.0, row.ends_boottime - self.clock.boottime())
        return max(0.0, row.ends_wall - self.clock.wall())

    def insert(self, lease: Lease, owner: Owner | None, ttl_s: float | None) -> LeaseRecord:
        with self.database.writing("FULL") as connection:
            self.sweep(connection)
            if connection.execute("SELECT 1 FROM lease WHERE key = ?", (lease.key,)).fetchone():
                raise Conflict(f"lease {lease} exists already")
            return self.put(connection, lease, owner, ttl_s, None)

    def replace(self, record: LeaseRecord, lease: Lease, owner: Owner, ttl_s: float) -> LeaseRecord:
        renewal = lease == record.lease and owner == record.owner
        with self.database.writing("NORMAL" if renewal else "FULL") as connection:
            self.sweep(connection)
            row = connection.execute("SELECT revision, created FROM lease WHERE key = ?", (record.key,)).fetchone()
            if row is None:
                raise Conflict(f"lease {record.lease} has ended or was released")
            revision, created = row
            if revision != record.revision:
                raise Conflict(f"lease {record.lease} was changed by somebody else")
            return self.put(connection, lease, owner, None if record.ttl_s is None else ttl_s, created)

    def remove(self, record: LeaseRecord) -> None:
        with self.database.writing("FULL") as connection:
            self.sweep(connection)
            row = connection.execute("SELECT id, revision FROM lease WHERE key = ?", (record.key,)).fetchone()
            if row is None:
                return
            if row[1] != record.revision:
                raise Conflict(f"lease {record.lease} was changed by somebody else")
            self.drop(connection, row[0])

    def put(self, connection: sqlite3.Connection, lease: Lease, owner: Owner | None, ttl_s: float | None, created: int | None) -> LeaseRecord:
        revision = self.advance(connection)
        created = created or revision
        ends = (None, None, None) if ttl_s is None else (self.clock.boot_id, self.clock.boottime() + ttl_s, self.clock.wall() + ttl_s)
        holder = (None, None) if owner is None else (owner.node, owner.boot_id)
        values = (lease.key, format_lease(lease), revision, created, *holder, *ends)
        connection.execute(f"REPLACE INTO lease ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        connection.execute(f"INSERT INTO log ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return LeaseRecord(lease, owner, revision, created, ttl_s)

    def drop(self, connection: sqlite3.Connection, row_id: int) -> None:
        connection.execute("INSERT INTO log (revision, key) SELECT ?, key FROM lease WHERE id = ?", (self.advance(connection), row_id))
        connection.execute("DELETE FROM lease WHERE id = ?", (row_id,))

    def advance(self, connection: sqlite3.Connection) -> int:
        """The next revision. Now and then drops the oldest part of the log, so that it does not happen with every write."""
        revision, compacted = connection.execute("UPDATE counter SET revision = revision + 1 RETURNING revision, compacted").fetchone()
        if revision - compacted > self.keep + self.keep // 4:
            connection.execute("DELETE FROM log WHERE revision <= ?", (revision - self.keep,))
            connection.execute("UPDATE counter SET compacted = ?", (revision - self.keep,))
        return int(revision)

    # ---- leases that have ended ------------------------------------------------------------------------------------

    def now(self) -> dict[str, str | float]:
        return {"boot_id": self.clock.boot_id, "boottime": self.clock.boottime(), "wall": self.clock.wall()}

    def sweep(self, connection: sqlite3.Connection) -> None:
        for (row_id,) in connection.execute(f"SELECT id FROM lease WHERE {DUE}", self.now()).fetchall():
            self.drop(connection, row_id)

    def sweep_if_due(self) -> None:
        with self.database.reading() as connection:
            due = connection.execute(f"SELECT 1 FROM lease WHERE {DUE} LIMIT 1", self.now()).fetchone()
        if due:
            # A full disk or a long wait for the lock must not keep anybody from reading: whoever has to write will say so.
            with contextlib.suppress(StoreUnavailable), self.database.writing("NORMAL") as connection:
                self.sweep(connection)
