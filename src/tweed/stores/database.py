"""One SQLite file: opened, upgraded, written under its lock, and its errors in one line each."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tweed.errors import StoreError, StoreUnavailable

APPLICATION_ID = 0x74776564  # "twed": what `file` and PRAGMA application_id say of our files
BUSY_TIMEOUT_S = 5.0
CACHE_KB = 256
OLDEST_SQLITE = (3, 37, 0)  # STRICT tables, RETURNING

# Each entry leads from the schema of its index to the next one; PRAGMA user_version is the index of the file.
# A row of `lease` is flannel's record plus what flannel does not keep: the owner and, twice, when it ends (see Clock; NULL: never).
# `log` holds the same row as it was at each revision, or only the key where it was deleted. Revisions begin with the time at which
# the file was made, so that nobody takes the revisions of a file for those of another one that replaced it.
SCHEMA = (
    """
    CREATE TABLE counter (revision INTEGER NOT NULL, compacted INTEGER NOT NULL) STRICT;
    INSERT INTO counter SELECT strftime('%s') * 1000, strftime('%s') * 1000;
    CREATE TABLE config (id INTEGER PRIMARY KEY CHECK (id = 1), value TEXT NOT NULL) STRICT;
    CREATE TABLE lease (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL, revision INTEGER NOT NULL, created INTEGER NOT NULL,
        owner_node TEXT, owner_boot_id TEXT, boot_id TEXT, ends_boottime REAL, ends_wall REAL
    ) STRICT;
    CREATE INDEX lease_ends_boottime ON lease (boot_id, ends_boottime) WHERE boot_id IS NOT NULL;
    CREATE INDEX lease_ends_wall ON lease (ends_wall) WHERE ends_wall IS NOT NULL;
    CREATE TABLE log (
        revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT, created INTEGER,
        owner_node TEXT, owner_boot_id TEXT, boot_id TEXT, ends_boottime REAL, ends_wall REAL
    ) STRICT;
    """,
)


class Database:
    """A connection to the file, to be used from one thread. Raises StoreUnavailable for what may mend, StoreError for what will not.

    Needs a file system of this one kernel: SQLite's write-ahead log shares memory between processes (no NFS, no 9p).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection: sqlite3.Connection | None = None
        self.inode: tuple[int, int] | None = None

    def open(self) -> sqlite3.Connection:
        """The connection, made anew when the file was replaced since."""
        with self.translated():
            if self.connection is not None:
                status = os.stat(self.path)
                if (status.st_dev, status.st_ino) == self.inode:
                    return self.connection
                self.close()
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not open(): closing a second descriptor of the file would drop SQLite's locks on it. The -wal and -shm files copy its mode.
            with contextlib.suppress(FileExistsError):
                os.mknod(self.path, stat.S_IFREG | 0o600)
            status = os.stat(self.path)
            connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            try:
                connection.text_factory = bytes  # foreign rows may hold anything, UTF-8 is checked where they are read
                self.prepare(connection)
            except BaseException:
                connection.close()
                raise
            self.connection, self.inode = connection, (status.st_dev, status.st_ino)
            return connection

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def prepare(self, connection: sqlite3.Connection) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old for the embedded store: install {'.'.join(map(str, OLDEST_SQLITE))} or later")
        connection.execute("BEGIN")  # the questions of version() are asked of one state of a file that others may be making now
        current = self.version(connection)  # and before anything is written: it may be somebody else's
        connection.execute("ROLLBACK")
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                # Processes that create the file together: SQLite does not wait for its lock while it changes the mode.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != b"wal":
            raise StoreError(f"{self.path}: this file system cannot hold SQLite's write-ahead log; put the store on a local one (--store)")
        # What an agent reads over and over is the end of the log; the default keeps two megabytes of what it read once.
        connection.execute(f"PRAGMA cache_size=-{CACHE_KB}")
        if current == len(SCHEMA):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            for step in SCHEMA[self.version(connection) :]:
                for statement in step.split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={len(SCHEMA)}")
            connection.execute("COMMIT")
        except BaseException:
            rollback(connection)
            raise

    def version(self, connection: sqlite3.Connection) -> int:
        """The schema of the file, 0 for an empty one. Raises StoreError for somebody else's file and for a newer one."""
        ((application,), (version,), (objects,)) = (
            connection.execute(q).fetchone() for q in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if application != APPLICATION_ID and (application or version or objects):
            raise StoreError(f"{self.path}: an SQLite file, but not a lease store of tweed; name another one with --store")
        if version > len(SCHEMA):
            raise StoreError(f"{self.path}: written by a newer tweed (schema {version}, this one knows {len(SCHEMA)}): upgrade tweed on this node")
        return int(version)

    def revision(self) -> int:
        """The newest revision; the cheapest question there is."""
        connection = self.open()
        with self.translated():
            (revision,) = connection.execute("SELECT revision FROM counter").fetchone()
            return int(revision)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All reads inside see one state of the file. Never waits for a writer."""
        connection = self.open()
        with self.translated():
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                rollback(connection)

    @contextlib.contextmanager
    def writing(self, synchronous: Literal["FULL", "NORMAL"]) -> Iterator[sqlite3.Connection]:
        """Alone with the file; all of it is written at the end, or nothing when an exception leaves.

        FULL: on the disk when this returns. NORMAL: survives the process, not a power cut.
        """
        connection = self.open()
        with self.translated():
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                self.version(connection)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                rollback(connection)
                raise

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            raise self.translate(error) from None
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror}; make it available again, or name another store with --store") from None

    def translate(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0)
        match code & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StoreUnavailable(f"{self.path}: another process has held its lock for more than {BUSY_TIMEOUT_S:g} s; `fuser {self.path}` names it")
            case sqlite3.SQLITE_FULL:
                return StoreUnavailable(f"{self.path}: the disk is full; free some space")
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                return StoreUnavailable(f"{self.path}: cannot be written; check its permissions and whether its file system is mounted read-only")
            case sqlite3.SQLITE_CANTOPEN:
                return StoreUnavailable(f"{self.path}: cannot be opened; check that it is a file, in a directory that can be written (mounted read-only?)")
            case sqlite3.SQLITE_NOTADB:
                return StoreError(f"{self.path}: not an SQLite file; name another one with --store")
            case sqlite3.SQLITE_CORRUPT:
                return StoreUnavailable(f"{self.path}: damaged ({error}); stop the agents, move it away with its -wal and -shm, start them again")
            case _:
                name = getattr(error, "sqlite_errorname", type(error).__name__)
                return StoreUnavailable(f"{self.path}: {error} ({name}); check the disk and its file system")


def rollback(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # some errors have ended it already
        connection.execute("ROLLBACK")
