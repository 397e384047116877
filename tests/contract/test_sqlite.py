"""What only the SQLite store promises: processes that race or die, clocks over reboots, files that are damaged, replaced, old or somebody else's."""

import asyncio
import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contract import sqlite_child
from tests.contract.grounds import ME, OTHER, FakeClock, lease

from tweed.config import Settings
from tweed.errors import Compacted, StoreError, StoreUnavailable, UsageError
from tweed.kernel.inotify import Inotify
from tweed.stores import bell as bells
from tweed.stores import database, open_store
from tweed.stores.bell import Bell
from tweed.stores.sqlite import SqliteStore

TIMEOUT_S = 20.0
needs_user_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "--user", "--map-root-user", "true"], stderr=subprocess.DEVNULL).returncode != 0, reason="needs user namespaces"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a mount namespace")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "store.db"


@pytest.fixture
async def open_one(path):
    """Opens stores on `path` and closes them."""
    stores = []

    def make(clock=None, **options):
        stores.append(SqliteStore(path, clock, **options))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


def child(what, argument, *before):
    """The command that runs a part of sqlite_child.py, and its environment."""
    root = Path(__file__).parents[2]
    return {
        "args": [*before, sys.executable, sqlite_child.__file__, what, str(argument)],
        "env": os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}"},
        "stdout": subprocess.PIPE,
        "text": True,
    }


def answers(what, argument, *before):
    done = subprocess.run(**child(what, argument, *before), timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def inotify_descriptors():
    links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link) == "anon_inode:inotify" for link in links if os.path.islink(link))


# ---- processes ----------------------------------------------------------------------------------------------------


def test_forty_processes_get_forty_subnets(path):
    (claimed,) = answers("race", path)
    assert sorted(claimed) == sorted(f"10.244.{i}.0/24" for i in range(1, sqlite_child.PROCESSES + 1))


async def test_a_writer_killed_half_way_leaves_no_trace(open_one, path):
    store = open_one()
    start = (await store.snapshot()).revision
    with subprocess.Popen(**child("stuck", path)) as process:
        try:
            assert json.loads(await asyncio.to_thread(process.stdout.readline)) == "half-way"
            claim = asyncio.create_task(store.create(lease("10.244.3.0/24"), ME))
            await asyncio.sleep(0.05)
            assert not claim.done()
        finally:
            process.kill()
    await asyncio.wait_for(claim, TIMEOUT_S)
    events = []
    async for batch in store.watch(start):
        events += batch
        if len(events) >= 2:
            break
    assert [e.key for e in events] == ["10.244.1.0-24", "10.244.3.0-24"]
    assert [str(r.lease) for r in (await store.snapshot()).records] == ["10.244.1.0/24", "10.244.3.0/24"]


async def test_a_lock_held_too_long_is_said_while_reading_and_the_loop_go_on(open_one, path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.3)
    store, reader = open_one(), open_one()
    await store.create(lease(), ME)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(store.create(lease("10.244.2.0/24"), ME))
    reading = asyncio.create_task(reader.snapshot())
    turns = 0
    while not waiting.done():
        await asyncio.sleep(0.001)
        turns += 1
    with pytest.raises(StoreUnavailable, match=r"another process has held its lock for more than 0\.3 s; `fuser .*store\.db` names it"):
        await waiting
    assert turns > 5 and len((await reading).records) == 1
    holder.close()
    await store.create(lease("10.244.2.0/24"), ME)


# ---- the watch ----------------------------------------------------------------------------------------------------


async def test_a_watch_that_ends_closes_its_inotify(open_one):
    store = open_one()
    revision = (await store.snapshot()).revision
    before = inotify_descriptors()
    watching = asyncio.create_task(anext(aiter(store.watch(revision))))
    await asyncio.sleep(0.05)
    assert inotify_descriptors() == before + 1
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert inotify_descriptors() == before

    await store.create(lease(), ME)
    async with contextlib.aclosing(store.watch(revision)) as watch:
        await anext(watch)
        assert inotify_descriptors() == before + 1
    assert inotify_descriptors() == before


async def test_without_any_wake_up_the_next_look_finds_the_change(open_one, monkeypatch):
    monkeypatch.setattr(Bell, "ring", lambda self: self.inotify.drain())
    store = open_one()
    watching = asyncio.create_task(anext(aiter(store.watch((await store.snapshot()).revision))))
    await asyncio.sleep(0.05)
    await open_one().create(lease(), ME)
    (event,) = await asyncio.wait_for(watching, TIMEOUT_S)
    assert event.key == lease().key


@needs_user_namespaces
def test_where_no_inotify_is_left_the_store_polls_and_says_so(path):
    warnings, keys = answers("no-inotify", path, "unshare", "--user", "--map-root-user")
    assert keys == ["10.244.1.0-24"]
    assert len(warnings) == 1
    assert warnings[0].endswith("looking every 0.1 s instead; raise fs.inotify.max_user_instances or max_user_watches")
    assert "Too many open files" in warnings[0]


async def test_the_warning_goes_when_inotify_comes_back(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    warnings = ["somebody else's"]

    def refuse(self, path, mask):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Inotify, "add", refuse)
        bell = Bell(file, warnings)
        bell.look()
        assert len(warnings) == 2
        assert await bell.wait(bells.POLL_S * 100) is False
    bell.look()
    assert warnings == ["somebody else's"]
    bell.close()


async def test_a_bell_rings_for_the_file_that_has_the_name_now(tmp_path):
    file, new = tmp_path / "file", tmp_path / "new"
    bell = Bell(file, [])
    assert await bell.wait(0.01) is False
    file.write_text("one")
    bell.look()
    assert await bell.wait(TIMEOUT_S) is True
    assert await bell.wait(0.01) is False

    new.write_text("two")
    os.replace(new, file)
    bell.look()
    assert await bell.wait(TIMEOUT_S) is True, "what was written before the new watch began"
    while await bell.wait(0.01):
        pass  # the kernel also tells that it has ended the old watch
    with file.open("a") as writer:
        writer.write("three")
    assert await bell.wait(TIMEOUT_S) is True
    bell.close()


@pytest.mark.parametrize("turns", range(5))
async def test_a_ring_does_not_swallow_a_cancellation(tmp_path, turns):
    (tmp_path / "file").touch()
    bell = Bell(tmp_path / "file", [])
    assert await bell.wait(TIMEOUT_S) is True, "for what was written before"
    waiting = asyncio.create_task(bell.wait(TIMEOUT_S))
    await asyncio.sleep(0.01)
    bell.rung.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled = waiting.cancel()
    outcome = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(outcome[0], asyncio.CancelledError) if cancelled else outcome == [True]
    bell.close()


async def test_a_store_that_was_replaced_is_read_anew(open_one, path):
    store = open_one()
    record = await store.create(lease(), ME)
    watching = asyncio.create_task(anext(aiter(store.watch(record.revision))))
    await asyncio.sleep(0.05)
    for suffix in ("", "-wal", "-shm"):
        os.remove(f"{path}{suffix}")
    with pytest.raises(StoreUnavailable, match="No such file"):
        await store.snapshot()
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(watching, TIMEOUT_S)

    await open_one().create(lease("10.244.9.0/24"), OTHER)
    assert [str(r.lease) for r in (await store.snapshot()).records] == ["10.244.9.0/24"]


@pytest.mark.parametrize("off", [-5, 5])
async def test_revisions_of_another_file_are_not_mistaken_for_its_own(open_one, off):
    store = open_one()
    revision = (await store.snapshot()).revision
    with pytest.raises(Compacted):
        await asyncio.wait_for(anext(aiter(store.watch(revision + off))), TIMEOUT_S)


async def test_compaction_keeps_what_was_promised(open_one):
    store = open_one(keep=8)
    record = await store.create(lease(), ME)
    for _ in range(40):
        record = await store.update(record, lease(), ME)
    (events,) = [await anext(aiter(store.watch(record.revision - 8)))]
    assert [e.revision for e in events] == list(range(record.revision - 7, record.revision + 1))
    with pytest.raises(Compacted, match="no longer kept"):
        await anext(aiter(store.watch(record.revision - 12)))


# ---- time ---------------------------------------------------------------------------------------------------------


async def test_over_a_reboot_the_wall_clock_counts(open_one):
    clock = FakeClock()
    store = open_one(clock)
    await store.create(lease("10.244.1.0/24"), ME, ttl_s=50.0)
    await store.create(lease("10.244.2.0/24"), ME, ttl_s=500.0)
    await store.create(lease("10.244.3.0/24"), None, ttl_s=None)
    clock.boot_id, clock.boot_s, clock.wall_s = "boot-2", 5.0, clock.wall_s + 100.0
    again = open_one(clock)
    assert [(str(r.lease), r.ttl_s) for r in (await again.snapshot()).records] == [("10.244.2.0/24", 400.0), ("10.244.3.0/24", None)]
    await again.create(lease("10.244.4.0/24"), ME, ttl_s=50.0)
    clock.wall_s += 1000.0  # somebody sets the clock: that ends the lease of the last boot, and not that of this one
    assert [str(r.lease) for r in (await again.snapshot()).records] == ["10.244.3.0/24", "10.244.4.0/24"]


async def test_no_statement_but_the_snapshot_walks_over_all_leases(open_one):
    store = open_one(FakeClock())
    statements = []
    store.database.open().set_trace_callback(statements.append)
    record = await store.create(lease(), ME)
    await store.delete(await store.update(record, lease(), ME))
    assert await anext(aiter(store.watch(record.revision)))
    await store.run(store.sweep_if_due)
    store.database.open().set_trace_callback(None)
    asked = [s for s in statements if s.startswith(("SELECT", "UPDATE", "DELETE", "INSERT", "REPLACE"))]
    assert len(asked) > 10
    plans = [row[3].decode() for s in asked for row in store.database.open().execute(f"EXPLAIN QUERY PLAN {s}")]
    assert {p.split(" ")[1] for p in plans if p.startswith("SCAN")} <= {"counter", "CONSTANT", "sqlite_master"}
    assert any("lease_ends_boottime" in p for p in plans)


# ---- the file -----------------------------------------------------------------------------------------------------


async def test_only_its_owner_can_read_the_file(open_one, path):
    store = open_one()
    await store.create(lease(), ME)
    names = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
    assert [stat.S_IMODE(os.stat(name).st_mode) for name in names] == [0o600] * 3


async def test_an_older_file_is_brought_up_to_date_by_whoever_comes_first(open_one, path, monkeypatch):
    old = open_one()
    record = await old.create(lease(), ME)
    await old.set_config("text")
    step = "ALTER TABLE lease ADD COLUMN note TEXT; UPDATE lease SET note = 'old'"
    monkeypatch.setattr(database, "SCHEMA", (*database.SCHEMA, step))
    stores = await asyncio.gather(*(asyncio.to_thread(SqliteStore, path) for _ in range(5)))
    for store in stores:
        assert [(r.lease, r.owner, r.revision) for r in (await store.snapshot()).records] == [(record.lease, ME, record.revision)]
        assert await store.config() == "text"
        await store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT note FROM lease").fetchall() == [("old",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(database.SCHEMA),)
    connection.close()


async def test_an_upgrade_that_fails_changes_nothing(open_one, path, monkeypatch):
    old = open_one()
    await old.create(lease(), ME)
    with monkeypatch.context() as patched:
        patched.setattr(database, "SCHEMA", (*database.SCHEMA, "DROP TABLE log; nonsense"))
        with pytest.raises(StoreError):
            SqliteStore(path)
    await old.create(lease("10.244.2.0/24"), ME)
    assert len((await open_one().snapshot()).records) == 2


async def test_a_newer_file_is_refused_also_by_who_has_it_open(open_one, path):
    store = open_one()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    why = r"store\.db: written by a newer tweed \(schema 99, this one knows \d+\): upgrade tweed on this node$"
    with pytest.raises(StoreError, match=why):
        SqliteStore(path)
    with pytest.raises(StoreError, match=why):
        await store.create(lease(), ME)


def test_somebody_elses_database_is_left_alone(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="an SQLite file, but not a lease store of tweed; name another one with --store"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_what_is_no_database_is_left_alone(path):
    path.parent.mkdir()
    path.write_bytes(b"a letter to my aunt\n" * 100)
    with pytest.raises(StoreError, match="not an SQLite file; name another one with --store"):
        SqliteStore(path)
    assert path.read_bytes() == b"a letter to my aunt\n" * 100


def test_a_place_that_cannot_hold_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"file/store\.db: .*another store with --store"):
        SqliteStore(tmp_path / "file" / "store.db")
    with pytest.raises(StoreUnavailable, match="cannot be opened; check that it is a file"):
        SqliteStore(tmp_path)


async def test_a_damaged_file_is_named(open_one, path):
    store = open_one(keep=1000)
    for number in range(100):
        await store.create(lease(f"10.244.{number}.0/24"), ME)
    await store.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreUnavailable, match=r"damaged .*; stop the agents, move it away"):
        await open_one().snapshot()


@needs_root
def test_a_full_disk_and_a_read_only_one(tmp_path):
    full, roomy, read_only = answers("full", tmp_path, "unshare", "--mount")
    assert full["type"] == "StoreUnavailable"
    assert full["error"].endswith("store.db: the disk is full; free some space")
    assert full["kept"] > 0
    assert roomy["kept"] == full["kept"] + 1
    assert read_only["type"] == "StoreUnavailable"
    assert read_only["error"].endswith("in a directory that can be written (mounted read-only?)")


def test_a_store_is_named_by_its_url(tmp_path):
    store = open_store(Settings(node_name="n", store=f"sqlite://{tmp_path}/store.db"))
    assert isinstance(store, SqliteStore)
    assert store.path == tmp_path / "store.db"
    store.database.close()
    for url in ("sqlite://relative.db", "mysql:///x", ""):
        with pytest.raises(UsageError, match="not a store that tweed knows"):
            open_store(Settings(node_name="n", store=url))
