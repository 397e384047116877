"""Every rule of `LeaseStore`, for any store."""

import asyncio
import contextlib

import msgspec
import pytest
from tests.contract.grounds import MAC, ME, OTHER, lease

from tweed.addr import Prefix, parse_mac
from tweed.errors import Compacted, Conflict, StoreUnavailable
from tweed.model import Junk, Lease, Owner
from tweed.stores import TTL_S

TIMEOUT_S = 20.0


class Follower:
    """A watch in the background, and what it has seen so far."""

    def __init__(self, store, revision):
        self.store, self.revision, self.events, self.configured = store, revision, [], 0
        self.more = asyncio.Event()
        self.task = asyncio.create_task(self.follow())

    async def follow(self):
        async for events in self.store.watch(self.revision):
            self.configured += not events
            self.events += events
            self.more.set()

    async def until(self, count):
        """The first `count` events."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.events) < count:
                self.more.clear()
                waiting = asyncio.create_task(self.more.wait())
                await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self.task.done():
                    self.task.result()
        return self.events[:count]

    async def stop(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def follow():
    followers = []

    def start(store, revision):
        followers.append(Follower(store, revision))
        return followers[-1]

    yield start
    for follower in followers:
        await follower.stop()


@pytest.fixture
def ends(ground):
    """For tests of time."""
    if not ground.ENDS:
        pytest.skip("leases of this store do not end")


@pytest.fixture
def sets_config(ground):
    if not ground.SETS_CONFIG:
        pytest.skip("this store has its configuration from elsewhere")


# ---- configuration ------------------------------------------------------------------------------------------------


async def test_an_empty_store_has_neither_configuration_nor_leases(store):
    assert await store.config() is None
    snapshot = await store.snapshot()
    assert (snapshot.records, snapshot.junk) == ((), ())
    assert store.warnings == []


async def test_the_configuration_is_kept_as_it_was_given(ground, store, sets_config):
    text = '{ "Network": "10.244.0.0/16",\n "Comment": "ünïcode" }'
    assert await store.set_config(text) is True
    assert await (await ground.open()).config() == text


async def test_a_configuration_is_replaced_only_when_asked(store, sets_config):
    assert await store.set_config("one", replace=False) is True
    assert await store.set_config("two", replace=False) is False
    assert await store.config() == "one"
    assert await store.set_config("two") is True
    assert await store.config() == "two"


async def test_a_watch_hears_of_another_configuration(ground, store, follow, sets_config):
    await store.set_config("one")
    record = await store.create(lease(), ME)
    follower = follow(store, record.revision)
    await store.create(lease("10.244.2.0/24"), ME)
    await follower.until(1)
    assert follower.configured == 0
    await (await ground.open()).set_config("two")
    async with asyncio.timeout(TIMEOUT_S):
        while not follower.configured:
            follower.more.clear()
            await follower.more.wait()
    await store.create(lease("10.244.3.0/24"), ME)
    assert [event.key for event in await follower.until(2)] == ["10.244.2.0-24", "10.244.3.0-24"]


# ---- create, update, delete ---------------------------------------------------------------------------------------


async def test_what_is_created_is_what_another_reads(ground, store):
    dual = lease("10.244.2.0/24", "fd00:0:0:2::/64")
    first = await store.create(lease(), ME)
    second = await store.create(dual, None)
    assert (first.lease, first.owner, second.lease, second.owner) == (lease(), ME, dual, None)
    assert first.created <= first.revision < second.created <= second.revision
    assert first.revision < second.revision
    snapshot = await (await ground.open()).snapshot()
    assert [(r.lease, r.owner, r.revision, r.created) for r in snapshot.records] == [(r.lease, r.owner, r.revision, r.created) for r in (first, second)]
    assert snapshot.revision >= second.revision
    assert not ground.ENDS or all(TTL_S - 60 < r.ttl_s <= TTL_S for r in await store.timed(snapshot.records))


async def test_ipv6_alone_can_be_leased(store):
    both = lease("10.244.1.0/24", "fd00:0:0:1::/64")
    record = await store.create(Lease(None, both.v6), ME)
    assert [r.lease for r in (await store.snapshot()).records] == [Lease(None, both.v6)]
    assert record.key == "fd00:0:0:1::-64"


async def test_a_key_is_created_once(ground, store):
    record = await store.create(lease(), ME)
    with pytest.raises(Conflict, match=r"10\.244\.1\.0/24"):
        await (await ground.open()).create(lease(public_ip="192.0.2.2"), OTHER)
    assert (await store.snapshot()).records[0].revision == record.revision


async def test_an_update_changes_revision_and_content_but_not_the_age(ground, store):
    record = await store.create(lease(), ME)
    changed = lease(public_ip="192.0.2.9", mac=parse_mac("02:00:00:00:00:09"))
    updated = await store.update(record, changed, Owner("me", "boot-2"))
    assert (updated.lease, updated.owner, updated.created) == (changed, Owner("me", "boot-2"), record.created)
    assert updated.revision > record.revision
    (read,) = (await (await ground.open()).snapshot()).records
    assert (read.lease, read.owner, read.revision, read.created) == (updated.lease, updated.owner, updated.revision, updated.created)


async def test_an_update_of_what_somebody_changed_is_a_conflict(ground, store):
    record = await store.create(lease(), ME)
    theirs = await (await ground.open()).update(record, lease(public_ip="192.0.2.2"), OTHER)
    with pytest.raises(Conflict):
        await store.update(record, lease(), ME)
    assert (await store.snapshot()).records[0].lease == theirs.lease


async def test_an_update_of_what_is_gone_is_a_conflict(store):
    record = await store.create(lease(), ME)
    await store.delete(record)
    with pytest.raises(Conflict):
        await store.update(record, lease(), ME)
    assert (await store.snapshot()).records == ()


async def test_a_lease_that_was_released_and_taken_again_is_another(ground, store):
    record = await store.create(lease(), ME)
    await store.delete(record)
    theirs = await (await ground.open()).create(lease(), OTHER)
    with pytest.raises(Conflict):
        await store.update(record, lease(), ME)
    with pytest.raises(Conflict):
        await store.delete(record)
    assert theirs.created > record.created


async def test_an_update_cannot_move_a_lease(store):
    record = await store.create(lease(), ME)
    with pytest.raises(ValueError, match=r"10\.244\.2\.0/24"):
        await store.update(record, lease("10.244.2.0/24"), ME)


async def test_deleting_removes_once_and_then_does_nothing(ground, store):
    record = await store.create(lease(), ME)
    await store.create(lease("10.244.2.0/24"), ME)
    other = await ground.open()
    await other.delete(record)
    await store.delete(record)
    assert [str(r.lease) for r in (await store.snapshot()).records] == ["10.244.2.0/24"]


async def test_deleting_what_somebody_changed_is_a_conflict(store):
    record = await store.create(lease(), ME)
    newer = await store.update(record, lease(), OTHER)
    with pytest.raises(Conflict):
        await store.delete(record)
    await store.delete(newer)
    assert (await store.snapshot()).records == ()


async def test_of_many_who_want_one_subnet_one_gets_it(ground):
    stores = [await ground.open() for _ in range(8)]
    outcomes = await asyncio.gather(*(s.create(lease(), Owner(f"n{i}", "b")) for i, s in enumerate(stores)), return_exceptions=True)
    won = [o for o in outcomes if not isinstance(o, Exception)]
    assert len(won) == 1
    assert [type(o) for o in outcomes if o is not won[0]] == [Conflict] * 7
    assert (await stores[0].snapshot()).records[0].owner == won[0].owner


async def test_revisions_rise_over_all_stores(ground):
    stores = [await ground.open() for _ in range(3)]
    revisions = [(await stores[i % 3].create(lease(f"10.244.{i}.0/24"), ME)).revision for i in range(9)]
    assert revisions == sorted(set(revisions))


async def test_a_closed_store_says_so(store):
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.snapshot()
    await store.close()


# ---- time ---------------------------------------------------------------------------------------------------------


async def left_s(store):
    """The time that each lease of the store has left."""
    return [r.ttl_s for r in await store.timed((await store.snapshot()).records)]


async def test_a_lease_ends_with_its_time(ground, store, follow, ends):
    unit = ground.UNIT_S
    await store.create(lease("10.244.2.0/24"), ME, ttl_s=500 * unit)
    record = await store.create(lease(), ME, ttl_s=5 * unit)
    await ground.pass_time(4 * unit)
    assert 0.0 <= min(await left_s(store)) <= 1.1 * unit
    watcher = follow(await ground.open(), (await store.snapshot()).revision)
    await ground.pass_time(2 * unit)
    (event,) = await watcher.until(1)
    assert (event.key, event.record, event.junk) == (record.key, None, None)
    assert event.revision > record.revision
    assert [str(r.lease) for r in (await store.snapshot()).records] == ["10.244.2.0/24"]


async def test_a_lease_that_has_ended_is_not_in_the_way(ground, store, ends):
    record = await store.create(lease(), ME, ttl_s=5 * ground.UNIT_S)
    await ground.pass_time(6 * ground.UNIT_S)
    other = await ground.open()
    assert (await other.snapshot()).records == ()
    theirs = await other.create(lease(), OTHER)
    assert theirs.created > record.created
    with pytest.raises(Conflict):
        await store.update(record, lease(), ME)


async def test_a_lease_that_has_ended_can_be_claimed_before_anybody_looks(ground, store, ends):
    await store.create(lease(), ME, ttl_s=5 * ground.UNIT_S)
    await ground.pass_time(6 * ground.UNIT_S)
    assert (await store.create(lease(), OTHER)).owner == OTHER


async def test_an_update_renews(ground, store, ends):
    unit = ground.UNIT_S
    record = await store.create(lease(), ME, ttl_s=5 * unit)
    await ground.pass_time(4 * unit)
    record = await store.update(record, lease(), ME, ttl_s=10 * unit)
    assert record.ttl_s == 10 * unit
    await ground.pass_time(4 * unit)
    (left,) = await left_s(store)
    assert 5 * unit - 1 < left <= 6.1 * unit


async def test_a_reservation_never_ends_and_stays_one(ground, store, ends):
    record = await store.create(lease(), None, ttl_s=None)
    assert record.ttl_s is None
    updated = await store.update(record, lease(public_ip="192.0.2.2"), ME)
    assert updated.ttl_s is None
    await ground.pass_time(TTL_S * 3)
    (read,) = await store.timed((await store.snapshot()).records)
    assert (read.ttl_s, read.owner, read.revision) == (None, ME, updated.revision)


@pytest.mark.parametrize("step_s", [-1e9, -3600.0, 3600.0, 1e9])
async def test_setting_the_clock_neither_ends_nor_prolongs_a_lease(ground, store, step_s, ends):
    if not ground.HAS_CLOCK:
        pytest.skip("the server keeps the time")
    await store.create(lease(), ME, ttl_s=5.0)
    ground.step_wall(step_s)
    assert 3.0 < (await store.snapshot()).records[0].ttl_s <= 5.0
    await ground.pass_time(6.0)
    assert (await store.snapshot()).records == ()


# ---- watch --------------------------------------------------------------------------------------------------------


async def test_a_watch_tells_every_change_in_order(ground, store, follow):
    watcher = follow(await ground.open(), (await store.snapshot()).revision)
    first = await store.create(lease(), ME)
    second = await store.create(lease("10.244.2.0/24", "fd00:0:0:2::/64"), None)
    third = await store.update(first, lease(public_ip="192.0.2.7"), OTHER)
    await store.delete(second)
    events = await watcher.until(4)
    assert [e.key for e in events] == [first.key, second.key, first.key, second.key]
    assert [(e.record.lease, e.record.owner) for e in events[:3]] == [(r.lease, r.owner) for r in (first, second, third)]
    assert [(e.record.revision, e.record.created) for e in events[:3]] == [(r.revision, r.created) for r in (first, second, third)]
    assert (events[3].record, events[3].junk) == (None, None)
    assert [e.revision for e in events[:3]] == [first.revision, second.revision, third.revision]
    assert events[3].revision > third.revision
    assert all(e.record.ttl_s > TTL_S - 60 for e in events[:3])
    (read,) = (await store.snapshot()).records
    assert not ground.ENDS or [TTL_S - 60 < r.ttl_s <= TTL_S for r in await store.timed([read])] == [True]


async def test_a_watch_tells_the_changes_of_its_own_store(store, follow):
    watcher = follow(store, (await store.snapshot()).revision)
    record = await store.create(lease(), ME)
    await store.delete(record)
    assert [e.record is None for e in await watcher.until(2)] == [False, True]


async def test_a_watch_begins_after_its_revision(ground, store, follow):
    records = [await store.create(lease(f"10.244.{i}.0/24"), ME) for i in range(5)]
    watcher = follow(await ground.open(), records[1].revision)
    assert [e.key for e in await watcher.until(3)] == [r.key for r in records[2:]]


async def test_two_watches_of_one_store(store, follow):
    start = (await store.snapshot()).revision
    watchers = [follow(store, start), follow(store, start)]
    await store.create(lease(), ME)
    assert [len(await w.until(1)) for w in watchers] == [1, 1]
    await watchers[0].stop()
    await store.create(lease("10.244.2.0/24"), ME)
    assert [e.key for e in await watchers[1].until(2)] == ["10.244.1.0-24", "10.244.2.0-24"]
    assert len(watchers[0].events) == 1


async def test_a_burst_of_several_writers_has_no_gaps(ground, store, follow):
    writers = [await ground.open() for _ in range(3)]
    watcher = follow(store, (await store.snapshot()).revision)

    async def write(writer, number):
        record = await writer.create(lease(f"10.244.{number}.0/24"), ME)
        for host in range(3):
            record = await writer.update(record, lease(f"10.244.{number}.0/24", public_ip=f"192.0.2.{10 + host}"), ME)
        if number % 2:
            await writer.delete(record)

    for start in range(0, 30, 3):
        await asyncio.gather(*(write(w, start + i) for i, w in enumerate(writers)))
    events = await watcher.until(30 * 4 + 15)
    assert [e.revision for e in events] == sorted({e.revision for e in events})
    alive = {}
    for event in events:
        alive.pop(event.key, None)
        if event.record is not None:
            alive[event.key] = event.revision
    assert alive == {r.key: r.revision for r in (await store.snapshot()).records}
    assert len(alive) == 15


async def test_a_watch_from_a_forgotten_revision_says_so(ground, store):
    start = (await store.snapshot()).revision
    await store.create(lease(), ME)
    await ground.forget_history(store)
    with pytest.raises(Compacted):
        await asyncio.wait_for(anext(aiter(store.watch(start))), TIMEOUT_S)


async def test_after_a_compaction_a_snapshot_leads_on(ground, store, follow):
    await store.create(lease(), ME)
    await ground.forget_history(store)
    snapshot = await store.snapshot()
    assert [str(r.lease) for r in snapshot.records] == ["10.244.1.0/24"]
    watcher = follow(store, snapshot.revision)
    record = await store.create(lease("10.244.2.0/24"), ME)
    assert [e.key for e in await watcher.until(1)] == [record.key]


# ---- what others have written -------------------------------------------------------------------------------------

JUNK = [
    (b"10.244.7.0-24", b"garbage"),
    (b"10.244.7.0-24", b"\xff\xfe\x00\x01"),
    (b"10.244.7.0-24", b""),
    (b"10.244.7.0-24", b'{"BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:00:00:00:01"}}'),
    (b"hello\nworld", b"{}"),
    (b"10.244.7.3-24", b"{}"),
]


@pytest.mark.parametrize(("key", "value"), JUNK)
async def test_junk_is_named_and_everything_else_works(ground, store, follow, key, value):
    record = await store.create(lease(), ME)
    watcher = follow(store, record.revision)
    await ground.write_raw(key, value)
    snapshot = await store.snapshot()
    assert [r.key for r in snapshot.records] == [record.key]
    (junk,) = snapshot.junk
    assert isinstance(junk, Junk)
    assert junk.why
    assert all(text.isprintable() for text in (junk.key, junk.why))
    later = await store.create(lease("10.244.2.0/24"), ME)
    events = await watcher.until(2)
    assert (events[0].record, events[0].junk, events[0].key) == (None, junk, junk.key)
    assert events[1].record.key == later.key


async def test_a_lease_overwritten_with_junk_is_no_longer_ours(ground, store, follow):
    record = await store.create(lease(), ME)
    watcher = follow(store, record.revision)
    await ground.write_raw(record.key.encode(), b"[]")
    assert [(e.key, e.junk is not None) for e in await watcher.until(1)] == [(record.key, True)]
    with pytest.raises(Conflict):
        await store.update(record, lease(), ME)
    with pytest.raises(Conflict):
        await store.create(lease(), ME)


@pytest.mark.parametrize("ttl_s", [TTL_S, None])
async def test_junk_over_a_lease_is_replaced_by_who_saw_just_that(ground, store, follow, ttl_s):
    """And the lease is what it was: one with an end, or a reservation."""
    if not ground.SETS_CONFIG:
        pytest.skip("a store that gives a node its subnet takes the node's own over: create does it")
    record = await store.create(lease(), ME, ttl_s)
    watcher = follow(store, record.revision)
    await ground.write_raw(record.key.encode(), b"[]")
    (told,) = await watcher.until(1)
    (junk,) = (await store.snapshot()).junk
    assert junk == told.junk and junk.revision > record.revision
    await ground.write_raw(record.key.encode(), b"{")
    with pytest.raises(Conflict):
        await store.update(msgspec.structs.replace(record, revision=junk.revision), lease(), ME)
    (junk,) = (await store.snapshot()).junk
    mended = await store.update(msgspec.structs.replace(record, revision=junk.revision), lease(), ME)
    snapshot = await store.snapshot()
    assert ([r.lease for r in snapshot.records], snapshot.junk) == ([lease()], ())
    assert snapshot.records[0].owner == ME and snapshot.records[0].revision == mended.revision
    assert (snapshot.records[0].ttl_s is None, mended.ttl_s is None) == (ttl_s is None, ttl_s is None)


async def test_a_record_of_flannel_is_a_lease_without_an_owner(ground, store):
    await ground.write_raw(
        b"10.5.52.0-24", b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:4e:6b:10:49:50"}}'
    )
    (read,) = (await store.snapshot()).records
    assert (read.lease, read.owner) == (lease("10.5.52.0/24"), None)
    assert not ground.ENDS or read.ttl_s is None
    assert (read.lease.v4.mac, read.lease.v4.subnet) == (MAC, Prefix.parse("10.5.52.0/24"))
