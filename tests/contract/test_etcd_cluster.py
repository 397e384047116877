"""A cluster of three members with TLS and users, and what may happen to it. Nothing is lost, nobody waits for ever, nobody else's key is touched."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from tests import etcd_server
from tests.contract.grounds import ME, OTHER, lease
from tests.contract.test_etcd import collect

from tweed.config import Settings
from tweed.errors import Compacted, StoreUnavailable
from tweed.stores.etcd import endpoints
from tweed.stores.etcd import rpc_pb2 as rpc
from tweed.stores.etcd.client import Client, MemberFailed
from tweed.stores.etcd.endpoints import parse_endpoints
from tweed.stores.etcd.store import EtcdStore

PREFIX = "/coreos.com/network"
PATIENCE_S = 30.0
TRIES_PAUSE_S = 0.1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cluster")
    with etcd_server.running(directory, members=3, pki=etcd_server.make_pki(directory / "pki")) as server:
        etcd_server.lock_up(server, PREFIX)
        yield server


@pytest.fixture
async def connect(cluster):
    """Stores on the cluster; all members run when a test begins and its keys are gone when it ends."""
    stores = []

    def open_one(**changes):
        pki = cluster.pki
        given = {"etcd_endpoints": cluster.endpoints, "etcd_cafile": pki / "ca.pem", "etcd_certfile": pki / "client.pem", "etcd_keyfile": pki / "client.key"}
        given |= {"etcd_username": "agent", "etcd_password": "pw2", "etcd_prefix": PREFIX}
        stores.append(EtcdStore(Settings(node_name="n", store="etcd", **(given | changes))))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.close()
    if stopped := [member for member in cluster.members if member.process is None]:
        cluster.start(*stopped)  # not in another thread: members die with the one that started them
    cluster.wait()
    cluster.ctl("del", "--prefix", "/")


async def leader(cluster):
    """The member that leads now."""
    return await asyncio.to_thread(cluster.wait)


async def insist(work):
    """What an agent does: try again until it works."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await work()
            await asyncio.sleep(TRIES_PAUSE_S)


async def follow(store, revision, events):
    """A watch that is opened again where it broke, as the contract allows: from the last revision that was seen."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            async for batch in store.watch(revision):
                events += batch
                revision = batch[-1].revision
        await asyncio.sleep(TRIES_PAUSE_S)


async def written_through(connect, number, happens):
    """Leases written one after the other while something happens to the cluster. Returns their keys, those that a watcher saw, and those that are there."""
    writer, watcher = connect(), connect()
    events = []
    watching = asyncio.create_task(follow(watcher, (await watcher.snapshot()).revision, events))
    written = []
    for n in range(number):
        if n == number // 3:
            await happens()
        new = lease(f"10.244.{n}.0/24")
        written.append((await insist(lambda new=new: created(writer, new))).key)
    async with asyncio.timeout(PATIENCE_S):
        while {e.key for e in events} < set(written):
            assert not watching.done()
            await asyncio.sleep(0.02)
    watching.cancel()
    return written, [e.key for e in events], [r.key for r in (await insist(watcher.snapshot)).records]


async def created(store, new):
    """Created, also where an earlier try did it and its answer was lost."""
    for record in (await store.snapshot()).records:
        if record.key == new.key:
            assert record.owner == ME
            return record
    return await store.create(new, ME)


async def test_a_member_that_is_killed_costs_nothing(cluster, connect):
    async def kill_a_follower():
        first = await leader(cluster)
        next(member for member in cluster.members if member is not first).end()

    written, seen, there = await written_through(connect, 60, kill_a_follower)
    assert seen == written and there == sorted(written), "each once, in order"


async def test_the_leader_killed_costs_a_pause(cluster, connect):
    async def kill_the_leader():
        (await leader(cluster)).end()

    written, seen, there = await written_through(connect, 60, kill_the_leader)
    assert seen == written and there == sorted(written), "each once, in order"


async def test_without_a_majority_every_call_ends_in_time_and_afterwards_all_is_there(cluster, connect):
    store, other = connect(), connect()
    kept = await store.create(lease(), ME)
    events = []
    watching = asyncio.create_task(follow(other, kept.revision, events))
    for member in cluster.members[:2]:
        member.end()
    async with asyncio.timeout(2 * PATIENCE_S):  # a deadline at every member for every call
        for work in (store.snapshot, store.config, lambda: store.create(lease("10.244.2.0/24"), ME), lambda: store.update(kept, lease(), ME)):
            with pytest.raises(StoreUnavailable, match="etcd does not answer"):
                await work()
        with pytest.raises(StoreUnavailable):
            async for _ in store.watch(kept.revision):
                pass
    cluster.start(*cluster.members[:2])
    assert [r.key for r in (await insist(store.snapshot)).records] == [kept.key]
    later = await insist(lambda: store.create(lease("10.244.3.0/24"), OTHER))
    async with asyncio.timeout(PATIENCE_S):
        while not events:
            await asyncio.sleep(0.02)
    watching.cancel()
    assert [e.key for e in events] == [later.key]


async def test_a_member_that_stops_without_a_word_is_passed_over(cluster, connect, monkeypatch):
    """No reset comes, only silence. As often as etcd lets us ask whether it is there."""
    often = {"grpc.keepalive_time_ms": 5000, "grpc.keepalive_timeout_ms": 1000, "grpc.http2.ping_timeout_ms": 1000}
    monkeypatch.setattr(endpoints, "CHANNEL_OPTIONS", tuple((dict(endpoints.CHANNEL_OPTIONS) | often).items()))
    first = await leader(cluster)
    silent = next(member for member in cluster.members if member is not first)
    store = connect()
    store.client.endpoints.sort(key=lambda endpoint: str(endpoint) != silent.url)
    record = await store.create(lease(), ME)
    watching = asyncio.create_task(collect(store, record.revision, 1))
    await asyncio.sleep(0.2)
    silent.pause()
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert [r.key for r in (await store.snapshot()).records] == [record.key]
        later = await store.create(lease("10.244.2.0/24"), ME)
        assert [e.key for e in await asyncio.wait_for(watching, 40)] == [later.key], "the watch notices the silence and goes on elsewhere"
    finally:
        silent.pause(go_on=True)


async def test_compaction_and_defragmentation_while_nobody_looks(cluster, connect):
    """The watch says so, and the list has everything, changed attributes too; nobody's key was touched."""
    store, other = connect(), connect()
    mine, theirs = await store.create(lease(), ME), await other.create(lease("10.244.2.0/24"), OTHER)
    seen = await store.snapshot()
    changed = await other.update(theirs, lease("10.244.2.0/24", public_ip="192.0.2.77"), OTHER)
    await other.create(lease("10.244.3.0/24"), OTHER)
    await asyncio.to_thread(cluster.compact)
    with pytest.raises(Compacted):
        await collect(store, seen.revision, 1)
    snapshot = await store.snapshot()
    assert {r.key: (r.lease, r.owner, r.revision) for r in snapshot.records if r.key in (mine.key, theirs.key)} == {
        mine.key: (mine.lease, ME, mine.revision),
        theirs.key: (changed.lease, OTHER, changed.revision),
    }
    assert len(snapshot.records) == 3
    await store.create(lease("10.244.4.0/24"), ME)
    assert [e.key for e in await collect(store, snapshot.revision, 1)] == ["10.244.4.0-24"]


async def test_the_answer_that_was_lost_is_no_conflict(cluster, connect, monkeypatch):
    """The transaction happened, its answer did not come: at the next member it finds itself done."""
    store, lost = connect(), []
    attempt = Client.attempt

    async def answerless(self, endpoint, request, answer, metadata):
        found = await attempt(self, endpoint, request, answer, metadata)
        if isinstance(request, rpc.TxnRequest) and not lost:
            lost.append(endpoint)
            raise MemberFailed("no answer")
        return found

    monkeypatch.setattr(Client, "attempt", answerless)
    record = await store.create(lease(), ME)
    lost.clear()
    record = await store.update(record, lease(public_ip="192.0.2.9"), ME)
    (read,) = (await store.snapshot()).records
    assert (read.lease, read.owner, read.revision, read.created) == (record.lease, ME, record.revision, record.created)


# ---- who we are -----------------------------------------------------------------------------------------------------


async def test_a_token_that_is_no_longer_known_is_replaced(connect):
    store = connect()
    record = await store.create(lease(), ME)
    for token in ("bogus", "AAAAAAAAAAAAAAAA.1"):
        store.client.token = token
        assert len((await store.snapshot()).records) == 1
        assert store.client.token not in ("", token)
    store.client.token = "bogus"
    assert (await store.update(record, lease(), ME)).revision > record.revision


async def test_a_watch_with_a_token_that_is_no_longer_known_says_so_and_the_next_works(cluster, connect):
    store = connect()
    record = await store.create(lease(), ME)
    store.client.token = "bogus"
    watching = asyncio.create_task(collect_insisting(store, record.revision))
    await asyncio.sleep(0.5)
    later = await connect().create(lease("10.244.2.0/24"), ME)
    assert (await asyncio.wait_for(watching, PATIENCE_S)).key == later.key


async def collect_insisting(store, revision):
    (event,) = await insist(lambda: collect(store, revision, 1))
    return event


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"etcd_password": "wrong"}, "refuses --etcd-username with the password in TWEED_ETCD_PASSWORD"),
        ({"etcd_username": "nobody"}, "refuses --etcd-username with the password in TWEED_ETCD_PASSWORD"),
        ({"etcd_username": ""}, "permission denied: the role of this node's user (--etcd-username, else the name in its certificate) needs"),
        ({"etcd_username": "other", "etcd_password": "pw3"}, "permission denied"),
        ({"etcd_prefix": "/elsewhere"}, "permission denied"),
        ({"etcd_cafile": None}, "etcd does not answer"),
        ({"etcd_certfile": None, "etcd_keyfile": None}, "etcd does not answer"),
        ({"etcd_cafile": Path("/nowhere/ca.pem")}, "--etcd-cafile /nowhere/ca.pem: No such file or directory"),
    ],
)
async def test_why_etcd_lets_nobody_in_is_one_line_without_secrets(cluster, connect, changes, says):
    store = connect(**changes)
    for work in (store.snapshot, lambda: store.create(lease(), ME), lambda: collect(store, 1, 1)):
        with pytest.raises(StoreUnavailable) as error:
            await work()
        text = str(error.value)
        assert says in text and "\n" not in text and not any(secret in text for secret in ("wrong", "pw2", "pw3"))


async def test_nothing_is_spoken_in_the_clear_to_a_member_that_wants_tls(cluster, connect):
    plain = tuple(url.replace("https", "http") for url in cluster.endpoints)
    store = connect(etcd_endpoints=plain, etcd_cafile=None, etcd_certfile=None, etcd_keyfile=None)
    with pytest.raises(StoreUnavailable, match="etcd does not answer"):
        await store.snapshot()


async def test_one_good_endpoint_among_dead_ones_is_enough(cluster, connect):
    (nobody,) = etcd_server.free_ports(1)
    store = connect(etcd_endpoints=(f"https://127.0.0.1:{nobody}", "https://name.invalid:2379", cluster.endpoints[0]))
    record = await store.create(lease(), ME)
    assert store.client.endpoints[0] == parse_endpoints((cluster.endpoints[0],), store.client.files)[0], "and is asked first from now on"
    later = asyncio.create_task(collect(store, record.revision, 1))
    await store.create(lease("10.244.2.0/24"), ME)
    assert len(await later) == 1


async def test_certificates_are_read_anew_for_a_new_connection(cluster, connect, tmp_path):
    """They are replaced while agents run."""
    for name in ("ca.pem", "client.pem", "client.key"):
        (tmp_path / name).write_bytes((cluster.pki / name).read_bytes())
    stranger = etcd_server.make_pki(tmp_path / "stranger")
    (tmp_path / "ca.pem").write_bytes((stranger / "ca.pem").read_bytes())
    store = connect(etcd_cafile=tmp_path / "ca.pem", etcd_certfile=tmp_path / "client.pem", etcd_keyfile=tmp_path / "client.key")
    with pytest.raises(StoreUnavailable):
        await store.snapshot()
    (tmp_path / "ca.pem").write_bytes((cluster.pki / "ca.pem").read_bytes())
    assert (await store.snapshot()).records == ()
