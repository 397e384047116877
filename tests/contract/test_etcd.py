"""What only etcd has: flannel's bytes in it, etcd's own leases, foreign writers, rubbish, bursts."""

import asyncio
import contextlib
import json
import tracemalloc

import pytest
from tests.contract.grounds import ME, OTHER, EtcdGround, lease

from tweed.addr import Prefix, format_address, parse_mac
from tweed.errors import Conflict
from tweed.model import UNKNOWN_S, Endpoint, Lease
from tweed.stores import JUNK_MAX, MORE_JUNK, TTL_S
from tweed.stores.etcd import rpc_pb2 as rpc
from tweed.stores.etcd.client import Client
from tweed.stores.etcd.store import PAGE, put
from tweed.wire.lease import format_lease

VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:4e:6b:10:49:50"}}'
DUAL_VALUE = (
    b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:4e:6b:10:49:50"},'
    b'"BackendV6Data":{"VNI":1,"VtepMAC":"56:4e:6b:10:49:50"}}'
)


class Raw:
    """etcd as somebody sees it who knows nothing of tweed. Keys without the prefix."""

    def __init__(self, ground, client):
        self.prefix, self.client = f"{ground.prefix}/".encode(), client

    async def kvs(self, start=b"", end=b"\xff"):
        found = await self.client.call(rpc.RangeRequest(key=self.prefix + start, range_end=self.prefix + end), rpc.RangeResponse)
        return {kv.key.removeprefix(self.prefix): kv for kv in found.kvs}

    async def put(self, *pairs, lease_id=0):
        request = rpc.TxnRequest(success=[put(self.prefix + key, value, lease_id) for key, value in pairs])
        return (await self.client.call(request, rpc.TxnResponse)).header.revision

    async def left(self, lease_id):
        """Seconds that an etcd lease has left, -1 when there is none, and the keys that hang on it."""
        answer = await self.client.call(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True), rpc.LeaseTimeToLiveResponse)
        return answer.TTL, sorted(key.removeprefix(self.prefix) for key in answer.keys)

    async def grant(self):
        return (await self.client.call(rpc.LeaseGrantRequest(TTL=1000), rpc.LeaseGrantResponse)).ID


@pytest.fixture
async def ground(servers):
    made = EtcdGround("etcd34", servers)
    yield made
    await made.close()


@pytest.fixture
async def raw(ground, store):
    return Raw(ground, store.client)


# ---- flannel's bytes ------------------------------------------------------------------------------------------------


async def test_keys_and_values_are_flannels_to_the_byte(store, raw):
    await store.set_config('{"Network": "10.244.0.0/16"}')
    await store.create(lease("10.5.52.0/24"), ME)
    await store.create(lease("10.5.53.0/24", "fd00:12:13::/56"), ME)
    await store.create(Lease(Endpoint(Prefix.parse("10.5.54.0/24"), lease().v4.public_ip), backend=""), OTHER)
    await store.create(Lease(Endpoint(Prefix.parse("10.5.55.0/24"), lease().v4.public_ip)), None, None)
    assert {key: kv.value for key, kv in (await raw.kvs()).items() if not key.startswith(b"tweed/")} == {
        b"config": b'{"Network": "10.244.0.0/16"}',
        b"subnets/10.5.52.0-24": VALUE,
        b"subnets/10.5.53.0-24&fd00:12:13::-56": DUAL_VALUE,
        b"subnets/10.5.54.0-24": b'{"PublicIP":"192.0.2.1","PublicIPv6":null}',
        b"subnets/10.5.55.0-24": b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan"}',
    }


async def test_flannel_finds_leases_under_its_prefix_and_nothing_else(store, raw):
    """It reads and watches `PREFIX/subnets` without a slash behind it."""
    await store.create(lease(), ME)
    await store.create(lease("10.244.2.0/24"), None, None)
    assert set(await raw.kvs(b"subnets", b"subnett")) == {b"subnets/10.244.1.0-24", b"subnets/10.244.2.0-24"}


async def test_a_lease_hangs_on_an_etcd_lease_of_its_own_for_a_day(store, raw):
    await store.create(lease(), ME)
    await store.create(lease("10.244.2.0/24"), ME)
    kvs = await raw.kvs(b"subnets", b"subnett")
    ids = [kv.lease for kv in kvs.values()]
    assert len(set(ids)) == 2 and all(ids)
    left, keys = await raw.left(ids[0])
    assert TTL_S - 60 < left <= TTL_S and keys == [b"subnets/10.244.1.0-24", b"tweed/owners/10.244.1.0-24"]


async def test_a_renewal_takes_a_new_etcd_lease_and_gives_the_old_one_back(store, raw):
    record = await store.create(lease(), ME)
    before = (await raw.kvs())[b"subnets/10.244.1.0-24"].lease
    await store.update(record, lease(), ME)
    after = (await raw.kvs())[b"subnets/10.244.1.0-24"].lease
    assert after != before and (await raw.left(before))[0] == -1 and (await raw.left(after))[0] > TTL_S - 60


async def test_what_a_stranger_hung_on_our_etcd_lease_is_left_alone(store, raw):
    record = await store.create(lease(), ME)
    shared = (await raw.kvs())[b"subnets/10.244.1.0-24"].lease
    await raw.put((b"strangers", b"key"), lease_id=shared)
    record = await store.update(record, lease(), ME)
    await store.delete(record)
    assert b"strangers" in await raw.kvs()
    assert (await raw.left(shared))[1] == [b"strangers"]


async def test_a_lost_race_and_a_release_leave_no_etcd_lease_behind(store, raw, ground):
    async def all_leases():
        return set((await asyncio.to_thread(ground.server.ctl, "lease", "list")).splitlines()[1:])

    record = await store.create(lease(), ME)
    before = await all_leases()
    with pytest.raises(Conflict):
        await store.create(lease(), OTHER)
    assert await all_leases() == before
    await store.delete(record)
    assert len(before - await all_leases()) == 1


async def test_a_reservation_hangs_on_nothing_whoever_renews_it(store, raw):
    await raw.put((b"subnets/10.244.1.0-24", b'{"PublicIP":"192.0.2.1"}'))
    (reserved,) = (await store.snapshot()).records
    assert reserved.ttl_s is None
    record = await store.update(reserved, lease(), ME)
    await store.update(record, lease(), ME)
    assert {key: kv.lease for key, kv in (await raw.kvs()).items()} == {b"subnets/10.244.1.0-24": 0, b"tweed/owners/10.244.1.0-24": 0}


# ---- flannel beside us ----------------------------------------------------------------------------------------------


async def test_a_lease_that_flannel_wrote_over_ours_is_nobodys(store, raw):
    """It puts without comparing and knows no owners, so the owner record beside is a thing of the past."""
    record = await store.create(lease(), ME)
    await raw.put((b"subnets/10.244.1.0-24", VALUE), lease_id=await raw.grant())
    (read,) = (await store.snapshot()).records
    assert (read.owner, read.ttl_s) == (None, UNKNOWN_S)
    with pytest.raises(Conflict):
        await store.update(record, lease(), ME)
    with pytest.raises(Conflict):
        await store.delete(record)
    (timed,) = await store.timed([read])
    assert 900 < timed.ttl_s <= 1000


async def test_an_owner_record_that_is_rubbish_is_no_owner(store, raw):
    for number, rubbish in enumerate(
        (b"", b"[]", b'{"Node":1,"BootID":""}', b'{"Node":"a\\u001bb","BootID":""}', b"\xff", b'{"Node":"' + b"x" * 300 + b'","BootID":""}')
    ):
        await raw.put((f"subnets/10.244.{number}.0-24".encode(), VALUE), (f"tweed/owners/10.244.{number}.0-24".encode(), rubbish))
    assert [r.owner for r in (await store.snapshot()).records] == [None] * 6


async def test_a_renewal_by_flannel_is_seen_as_it_is_written(store, raw):
    await store.create(lease(), ME)
    revision = (await store.snapshot()).revision
    async with contextlib.aclosing(store.watch(revision)) as watch:
        await raw.put((b"config-old", b"{}"), (b"subnets-old/10.244.9.0-24", VALUE), (b"tweed/other", b"x"))
        changed = VALUE.replace(b"56:4e:6b:10:49:50", b"02:00:00:00:00:09")
        await raw.put((b"subnets/10.244.1.0-24", changed))
        (event,) = await asyncio.wait_for(anext(watch), 20)
    assert (event.key, event.record.owner, event.record.lease.v4.mac) == ("10.244.1.0-24", None, parse_mac("02:00:00:00:00:09"))


# ---- rubbish --------------------------------------------------------------------------------------------------------


async def fill(raw, pairs):
    """Many keys in transactions of etcd's usual limit."""
    batch = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == 128:
            await raw.put(*batch)
            batch = []
    if batch:
        await raw.put(*batch)


async def test_a_hundred_thousand_junk_keys_change_nothing_and_fill_no_memory(store, raw, ground):
    record = await store.create(lease(), ME)
    await fill(raw, ((f"subnets/junk-{n:06}".encode(), b"rubbish" * 10) for n in range(100_000)))
    later = await store.create(lease("10.244.2.0/24"), OTHER)
    tracemalloc.start()
    try:
        snapshot = await store.snapshot()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(r.key, r.owner) for r in snapshot.records] == [(record.key, ME), (later.key, OTHER)]
    assert len(snapshot.junk) == JUNK_MAX + 1 and snapshot.junk[-1].key == MORE_JUNK and "99000 more" in snapshot.junk[-1].why
    assert kept < 2 << 20 and peak < 8 << 20
    await asyncio.to_thread(ground.server.ctl, "del", "--prefix", f"{raw.prefix.decode()}subnets/junk-")


async def test_huge_values_are_junk_and_neither_hide_nor_delay_what_is_good(store, raw):
    """Together they are more than a message may hold, in the list as in the watch."""
    first = await store.create(lease("10.1.0.0/24"), ME)
    huge = b'{"PublicIP":"' + b"9" * 1_400_000 + b'"}'
    watching = asyncio.create_task(collect(store, first.revision, 31))
    for number in range(30):
        await raw.put((f"subnets/10.2.{number}.0-24".encode(), huge))
    last = await store.create(lease("10.3.0.0/24"), OTHER)
    snapshot = await store.snapshot()
    assert [(r.key, r.owner) for r in snapshot.records] == [(first.key, ME), (last.key, OTHER)]
    assert len(snapshot.junk) == 30 and all("1400015 bytes" in j.why for j in snapshot.junk)
    events = await watching
    assert sum(e.junk is not None for e in events) == 30 and events[-1].record.owner == OTHER
    again = await collect(store, first.revision, 31)
    assert [e.revision for e in again] == [e.revision for e in events]


async def collect(store, revision, count):
    """The first `count` events of a watch."""
    events = []
    async with contextlib.aclosing(store.watch(revision)) as watch, asyncio.timeout(60):
        while len(events) < count:
            events += await anext(watch)
    return events


# ---- many -------------------------------------------------------------------------------------------------------------


def many(count):
    return [lease(f"10.{n >> 8}.{n & 255}.0/24", public_ip=format_address(bytes((192, 0, n >> 8, n & 255)))) for n in range(count)]


async def test_ten_thousand_leases_in_one_burst_are_all_seen_and_listed(store, raw):
    """Page borders included; flannel loses half of them."""
    leases = many(10_000)
    assert len(leases) > 3 * PAGE
    revision = (await store.snapshot()).revision
    watching = asyncio.create_task(collect(store, revision, len(leases)))
    await fill(raw, ((b"subnets/" + each.key.encode(), format_lease(each).encode()) for each in leases))
    events = await watching
    assert {e.key: e.record.lease for e in events} == {each.key: each for each in leases}
    late = await collect(store, revision, len(leases))
    assert [(e.revision, e.key) for e in late] == [(e.revision, e.key) for e in events]
    snapshot = await store.snapshot()
    assert {r.key: r.lease for r in snapshot.records} == {each.key: each for each in leases}


async def test_a_list_costs_a_call_for_a_page_and_not_one_for_a_key(store, raw, monkeypatch):
    await fill(raw, ((b"subnets/" + each.key.encode(), format_lease(each).encode()) for each in many(PAGE + 1)))
    asked = []
    call = Client.call

    async def counted(self, request, answer):
        asked.append(type(request).__name__)
        return await call(self, request, answer)

    monkeypatch.setattr(Client, "call", counted)
    assert len((await store.snapshot()).records) == PAGE + 1
    assert asked == ["RangeRequest"] * 3  # owners, and two pages of leases


async def test_pages_are_of_one_revision(store, raw, monkeypatch):
    """What is written between two pages is not half in the snapshot."""
    await fill(raw, ((b"subnets/" + each.key.encode(), format_lease(each).encode()) for each in many(PAGE + 1)))
    call = Client.call

    async def meanwhile(self, request, answer):
        found = await call(self, request, answer)
        if isinstance(request, rpc.RangeRequest) and request.limit:
            await call(self, rpc.TxnRequest(success=[put(raw.prefix + b"subnets/9.9.9.0-24", VALUE, 0)]), rpc.TxnResponse)
        return found

    monkeypatch.setattr(Client, "call", meanwhile)
    snapshot = await store.snapshot()
    assert "9.9.9.0-24" not in [r.key for r in snapshot.records] and len(snapshot.records) == PAGE + 1


async def test_a_compaction_between_two_pages_starts_the_list_again(store, raw, monkeypatch, ground):
    await fill(raw, ((b"subnets/" + each.key.encode(), format_lease(each).encode()) for each in many(PAGE + 1)))
    call, done = Client.call, []

    async def compacted(self, request, answer):
        found = await call(self, request, answer)
        if isinstance(request, rpc.RangeRequest) and request.limit and not done:
            done.append(await raw.put((b"subnets/9.9.9.0-24", VALUE)))
            await asyncio.to_thread(ground.server.ctl, "compact", str(done[0]))
        return found

    monkeypatch.setattr(Client, "call", compacted)
    snapshot = await store.snapshot()
    assert len(snapshot.records) == PAGE + 2 and snapshot.revision >= done[0]


async def test_the_owner_record_is_plain_json(store, raw):
    await store.create(lease(), ME)
    assert json.loads((await raw.kvs())[b"tweed/owners/10.244.1.0-24"].value) == {"Node": "me", "BootID": "boot-1"}
