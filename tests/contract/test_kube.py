"""What only the Kubernetes store promises: other people's writes to the same Nodes, watches that end, stall and break, and what is given."""

import asyncio
import contextlib
import json
import math
import random
import time

import pytest
from tests.contract.grounds import MAC, ME, lease

from tweed.addr import Prefix, parse_address
from tweed.errors import Compacted, Conflict, StoreError, StoreUnavailable
from tweed.lab.kubeserver import KubeServer
from tweed.lab.stores.kube import RULES
from tweed.model import Endpoint, Lease, LeaseRecord, Owner
from tweed.stores.kube import api
from tweed.stores.kube import store as store_module
from tweed.stores.kube.access import Access, Token
from tweed.stores.kube.store import KubeStore
from tweed.wire.kubenode import Names

NAMES = Names.under("flannel.alpha.coreos.com")
TIMEOUT_S = 20.0
N1 = Owner("n1", "boot-1")


class Place:
    """An API server, and stores on it with the rights of the role that tweed ships, and no others."""

    def __init__(self, directory):
        self.directory, self.stores, self.tasks = directory, [], []

    async def open(self, **options):
        await self.close()
        self.server = KubeServer(tokens={"agent": [*RULES, ("get", "pods")]}, **options)
        await self.server.start()

    def store(self, **options):
        self.stores.append(KubeStore(Access(self.server.url, Token("agent")), NAMES, self.directory / "net-conf.json", **options))
        return self.stores[-1]

    def node(self, number, *cidrs, name="", **annotations):
        """Kubelet and kube-controller-manager make a Node, or give it pod CIDRs."""
        cidrs = cidrs or (f"10.244.{number}.0/24",)
        given = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs[0] else {}
        self.server.objects.create({"metadata": {"name": name or f"n{number}", "annotations": annotations}, "spec": given})

    def flannel(self, number, host=9, mac=MAC):
        """flanneld publishes itself on an existing Node."""
        data = json.dumps({"VNI": 1, "VtepMAC": mac.hex(":")}, separators=(",", ":"))
        self.annotate(f"n{number}", {NAMES.managed: "true", NAMES.backend_type: "vxlan", NAMES.backend_data: data, NAMES.public_ip: f"192.0.2.{host}"})

    def annotate(self, name, annotations):
        return self.server.objects.patch(name, {"metadata": {"annotations": annotations}}, False, "")

    def heartbeat(self, name):
        """What kubelet writes all the time."""
        beat = {"type": "Ready", "lastHeartbeatTime": str(random.random())}
        self.server.objects.patch(name, {"status": {"conditions": [beat]}}, True, "status")

    def follow(self, store, revision):
        """What the watch says, in a list that grows; its end in the task."""
        events = []

        async def run():
            async for batch in store.watch(revision):
                events.extend(batch)

        self.tasks.append(asyncio.create_task(run()))
        return events, self.tasks[-1]

    async def close(self):
        for task in self.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, StoreError):
                await task
        for store in self.stores:
            await store.close()
        if hasattr(self, "server"):
            await self.server.close()


@pytest.fixture
async def place(tmp_path):
    made = Place(tmp_path)
    await made.open()
    yield made
    await made.close()


async def until(condition, what=""):
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


# ---- what others write to the same objects ------------------------------------------------------------------------


async def test_heartbeats_are_no_events_and_no_conflicts(place):
    place.node(1)
    store = place.store()
    record = await store.create(lease(), N1)
    events, _ = place.follow(store, (await store.snapshot()).revision)
    for _ in range(20):
        place.heartbeat("n1")
    updated = await store.update(record, lease(public_ip="192.0.2.7"), N1)
    await until(lambda: events)
    assert [(e.key, e.record) for e in events] == [(record.key, updated)]
    again = await store.snapshot()
    assert [r.lease for r in again.records] == [updated.lease]


async def test_a_lease_that_did_not_change_keeps_its_revision_over_snapshots(place):
    place.node(1)
    store = place.store()
    await store.create(lease(), N1)
    (first,) = (await store.snapshot()).records
    place.heartbeat("n1")
    assert (await store.snapshot()).records == (first,)


async def test_a_write_between_reading_and_writing_is_read_again(place):
    """Kubelet comes in between every time but the last."""
    place.node(1)
    store = place.store()
    ask, left = store.api.ask, [3]

    async def interrupted(method, path, *arguments, **options):
        if method == "PATCH" and left[0]:
            left[0] -= 1
            place.heartbeat("n1")
        return await ask(method, path, *arguments, **options)

    store.api.ask = interrupted
    assert (await store.create(lease(), N1)).owner == N1
    left[0] = store_module.TRIES
    with pytest.raises(StoreUnavailable, match="changed 10 times"):
        await store.update((await store.snapshot()).records[0], lease(public_ip="192.0.2.7"), N1)


async def test_only_the_status_subresource_is_patched_and_with_a_precondition(place):
    place.node(1)
    store = place.store()
    place.server.requests.clear()
    await store.delete(await store.create(lease(), N1))
    await store.given("n1")
    await store.announce()
    writes = {(method, path) for method, path in place.server.requests if method != "GET"}
    assert writes == {("PATCH", "/api/v1/nodes/n1/status")}


async def test_a_lease_goes_and_the_operators_annotations_stay(place):
    place.node(1, **{NAMES.overwrite: "203.0.113.1", "other": "x"})
    store = place.store()
    await store.delete(await store.create(lease(), N1))
    assert place.server.objects.get("n1")["metadata"]["annotations"] == {NAMES.overwrite: "203.0.113.1", "other": "x"}


async def test_flannels_lease_is_taken_over_and_ours_is_flannels(place):
    place.node(1)
    place.flannel(1)
    store = place.store()
    (theirs,) = (await store.snapshot()).records
    assert (theirs.owner, theirs.created, theirs.ttl_s) == (None, 0, math.inf)
    ours = await store.update(theirs, theirs.lease, N1)
    assert (ours.lease, ours.owner, ours.created) == (theirs.lease, N1, 0)
    place.flannel(1, host=10)
    with pytest.raises(Conflict):
        await store.update(ours, ours.lease, N1)


async def test_annotations_that_somebody_removed_are_an_ended_lease(place):
    place.node(1)
    store = place.store()
    record = await store.create(lease(), N1)
    events, _ = place.follow(store, (await store.snapshot()).revision)
    place.annotate("n1", dict.fromkeys(NAMES.of_lease))
    await until(lambda: events)
    assert [(e.key, e.record, e.junk) for e in events] == [(record.key, None, None)]
    assert (await store.create(lease(), N1)).key == record.key


async def test_who_watches_without_a_snapshot_is_told_of_what_went_too(place):
    place.node(1)
    store = place.store()
    record = await store.create(lease(), N1)
    events, _ = place.follow(place.store(), record.revision)
    await until(lambda: place.server.watchers)
    await store.delete(record)
    await until(lambda: events)
    assert [(e.key, e.record, e.junk) for e in events] == [(record.key, None, None)]


async def test_one_family_that_changes_is_told(place):
    place.node(1, "10.244.1.0/24", "fd00:0:0:1::/64")
    store = place.store()
    both = lease("10.244.1.0/24", "fd00:0:0:1::/64")
    await store.create(both, N1)
    events, _ = place.follow(store, (await store.snapshot()).revision)
    place.annotate("n1", {NAMES.backend_data6: '{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}'})
    await until(lambda: events)
    assert (events[0].record.lease.v4, events[0].record.lease.v6.mac.hex()) == (both.v4, "020000000066")
    place.annotate("n1", {NAMES.public_ip: "192.0.2.77"})
    await until(lambda: len(events) == 2)
    assert events[1].record.lease.v4.public_ip == parse_address("192.0.2.77")


async def test_a_node_with_another_pod_cidr_loses_the_old_lease(place):
    """The API gives a Node its pod CIDR once: it is deleted and made again."""
    place.node(1)
    place.flannel(1)
    store = place.store()
    events, _ = place.follow(store, (await store.snapshot()).revision)
    place.server.objects.delete("n1")
    place.node(1, "10.244.9.0/24")
    place.flannel(1)
    await until(lambda: len(events) == 2)
    assert [(e.key, e.record is not None) for e in events] == [("10.244.1.0-24", False), ("10.244.9.0-24", True)]


async def test_a_family_that_joins_later_changes_the_key(place):
    place.node(1, "10.244.1.0/24", "fd00:0:0:1::/64")
    place.flannel(1)
    store = place.store()
    await store.given("n1")
    (record,) = (await store.snapshot()).records
    assert record.key == "10.244.1.0-24"
    events, _ = place.follow(store, (await store.snapshot()).revision)
    both = lease("10.244.1.0/24", "fd00:0:0:1::/64")
    assert (await store.create(both, N1)).lease == both
    await until(lambda: events)
    assert [(e.key, e.record is not None) for e in events] == [("10.244.1.0-24", False), (both.key, True)]


async def test_two_nodes_with_one_pod_cidr_are_one_lease_and_one_complaint(place):
    for name in ("n1", "n2"):
        place.node(1, name=name)
    store = place.store()
    elder = await store.create(lease(), N1)
    younger = await place.store().create(lease(public_ip="192.0.2.2"), Owner("n2", "b"))
    assert elder.created < younger.created
    snapshot = await store.snapshot()
    assert snapshot.records == (elder,)
    assert [(j.key, j.why) for j in snapshot.junk] == [("10.244.1.0-24 of node n2", "node n1 has the same pod CIDR; skipped")]
    events, task = place.follow(store, snapshot.revision)
    place.heartbeat("n2")
    place.annotate("n2", {NAMES.public_ip: "192.0.2.3"})
    place.server.objects.delete("n1")
    with pytest.raises(Compacted, match="n2, which has the same pod CIDR"):
        await asyncio.wait_for(task, TIMEOUT_S)
    assert events == [] and [r.owner.node for r in (await store.snapshot()).records] == ["n2"]


async def test_rubbish_on_a_node_with_the_same_pod_cidr_harms_no_lease(place):
    """Whichever was there first, in a list and in a watch, and when it goes."""
    rubbish = {NAMES.managed: "true", NAMES.backend_data: "rubbish"}
    place.node(1, name="a", **rubbish)
    store = place.store()
    events, _ = place.follow(store, (await store.snapshot()).revision)
    place.node(1, name="b")
    record = await place.store().create(lease(), Owner("b", "x"))
    place.node(1, name="c", **rubbish)
    for name in ("a", "c"):
        place.server.objects.delete(name)
    await until(lambda: len(events) == 3)
    assert [(e.key, e.record) for e in events] == [(record.key, record), ("10.244.1.0-24 of node c", None), ("10.244.1.0-24 of node c", None)]
    for name in ("a", "c"):
        place.node(1, name=name, **rubbish)
    snapshot = await store.snapshot()
    assert snapshot.records == (record,) and sorted(j.key for j in snapshot.junk) == [f"10.244.1.0-24 of node {name}" for name in "ac"]


async def test_a_node_writes_no_other_nodes_lease(place):
    for number in (1, 2):
        place.node(number)
    mine, other = place.store(), place.store()
    await mine.given("n1")
    theirs = await other.create(lease("10.244.2.0/24"), Owner("n2", "b"))
    await mine.snapshot()
    for write in (mine.update(theirs, theirs.lease, N1), mine.delete(theirs), mine.create(lease("10.244.2.0/24"), N1)):
        with pytest.raises(Conflict, match="n2"):
            await write
    with pytest.raises(Conflict, match=r"node n1 has the pod CIDR 10\.244\.1\.0/24, not 10\.244\.7\.0/24"):
        await mine.create(lease("10.244.7.0/24"), N1)
    with pytest.raises(StoreError, match="nothing can be reserved"):
        await mine.create(lease("10.244.3.0/24"), None, None)


async def test_a_node_puts_right_what_somebody_made_of_its_own_lease(place):
    place.node(1)
    store = place.store()
    await store.create(lease(), N1)
    place.annotate("n1", {NAMES.backend_data: "garbage"})
    assert [j.key for j in (await store.snapshot()).junk] == ["10.244.1.0-24"]
    with pytest.raises(Conflict):
        await place.store().create(lease(), ME)
    assert (await store.create(lease(), N1)).lease == lease()


# ---- lists and watches --------------------------------------------------------------------------------------------


async def test_a_long_list_comes_in_pages(place, monkeypatch):
    monkeypatch.setattr(store_module, "PAGE", 7)
    for number in range(30):
        place.node(number)
        place.flannel(number)
    store = place.store()
    snapshot = await store.snapshot()
    assert len(snapshot.records) == 30 and snapshot.revision == place.server.objects.revision
    assert sum("continue=" in path for _, path in place.server.requests) == 4


async def test_a_list_whose_rest_is_forgotten_is_begun_again(place, monkeypatch):
    monkeypatch.setattr(store_module, "PAGE", 2)
    for number in range(5):
        place.node(number)
        place.flannel(number)
    store = place.store()
    ask, times = store.api.ask, [2]

    async def forgetful(method, path, query=None, *arguments, **options):
        if query and "continue" in query and times[0]:
            times[0] -= 1
            place.heartbeat("n1")
            place.server.compact()
        return await ask(method, path, query, *arguments, **options)

    store.api.ask = forgetful
    assert len((await store.snapshot()).records) == 5 and times == [0]
    times[0] = 99
    with pytest.raises(StoreUnavailable, match="ran out of time"):
        await store.snapshot()


async def test_a_watch_goes_on_from_bookmarks_when_the_server_ends_it(place):
    """Compacted behind the bookmark, so that who had not heeded it would be told to list again."""
    await place.open(bookmark_s=0.05)
    for number in (1, 2):
        place.node(number)
    place.flannel(1)
    store = place.store(watch_s=1.5)
    events, task = place.follow(store, (await store.snapshot()).revision)
    watches = lambda: [path for _, path in place.server.requests if "watch=1" in path]  # noqa: E731
    await until(watches)
    for _ in range(5):
        place.heartbeat("n1")
    await asyncio.sleep(0.2)
    place.server.compact()
    await until(lambda: len(watches()) > 1)
    place.flannel(2)
    await until(lambda: events)
    assert [e.key for e in events] == ["10.244.2.0-24"] and not task.done()
    assert not [path for _, path in place.server.requests if "limit" in path][1:], "one list was enough"


async def test_a_watch_that_breaks_goes_on_without_a_list(place, monkeypatch):
    monkeypatch.setattr(store_module, "QUICK_S", 0.05)
    place.node(1)
    store = place.store()
    events, task = place.follow(store, (await store.snapshot()).revision)
    for host in range(5):
        await until(lambda: place.server.watchers)
        await asyncio.sleep(0.06)
        place.server.drop()
        place.flannel(1, host=host + 1)
        await until(lambda host=host: len(events) == host + 1)
    assert [e.record.lease.v4.public_ip[3] for e in events] == [1, 2, 3, 4, 5] and not task.done()


async def test_what_cannot_be_reached_says_so_and_is_left_to_the_caller(place):
    store = place.store()
    revision = (await store.snapshot()).revision
    await place.server.close()
    for call in (store.snapshot(), store.given("n1"), anext(aiter(store.watch(revision))), store.create(lease(), N1)):
        with pytest.raises(StoreUnavailable, match=r"http://127\.0\.0\.1:\d+: cannot connect: "):
            await asyncio.wait_for(call, TIMEOUT_S)


@pytest.mark.parametrize(("watch_s", "bookmark_s"), [(1.0, 75.0), (300.0, 1.0)], ids=["its-end", "its-bookmarks"])
async def test_a_watch_that_stalls_without_a_word_is_noticed(place, monkeypatch, watch_s, bookmark_s):
    """By the end that it should have had, or by bookmarks that do not come."""
    monkeypatch.setattr(store_module, "SILENCE_S", 0.2)
    monkeypatch.setattr(store_module, "BOOKMARK_S", bookmark_s)
    place.node(1)
    store = place.store(watch_s=watch_s)
    events, _ = place.follow(store, (await store.snapshot()).revision)
    await until(lambda: place.server.watchers)
    place.server.stall()
    place.flannel(1)
    stalled = set(place.server.watchers)
    await until(lambda: place.server.watchers - stalled)
    assert events == []
    place.server.stall(False)
    await until(lambda: events)
    assert [e.key for e in events] == ["10.244.1.0-24"]


async def test_history_that_is_gone_is_told_in_the_stream_and_from_the_answer(place):
    place.node(1)
    store = place.store()
    revision = (await store.snapshot()).revision
    place.heartbeat("n1")
    place.server.compact()
    with pytest.raises(Compacted):
        await asyncio.wait_for(anext(aiter(store.watch(revision))), TIMEOUT_S)
    place.server.fail(410)
    with pytest.raises(Compacted):
        await asyncio.wait_for(anext(aiter(store.watch(place.server.objects.revision))), TIMEOUT_S)


async def test_what_came_before_an_error_in_the_stream_is_told_and_the_next_stream_goes_on(place, monkeypatch):
    monkeypatch.setattr(store_module, "QUICK_S", 0.05)
    for number in (1, 2):
        place.node(number)
    store = place.store()
    events, task = place.follow(store, (await store.snapshot()).revision)
    await until(lambda: place.server.watchers)
    (watcher,) = place.server.watchers
    place.flannel(1)
    watcher.tell(json.dumps({"type": "ERROR", "object": {"code": 500, "message": "etcd has no leader"}}).encode())
    place.flannel(2)
    await until(lambda: len(events) == 2)
    assert [e.key for e in events] == ["10.244.1.0-24", "10.244.2.0-24"] and not task.done()


async def test_events_of_one_node_keep_their_order_in_a_burst(place):
    await place.open(keep=100_000)
    for number in range(10):
        place.node(number)
    store = place.store()
    events, _ = place.follow(store, (await store.snapshot()).revision)
    expected = {number: [] for number in range(10)}
    for _ in range(2000):
        number, host = random.randrange(10), random.randrange(1, 255)
        if expected[number][-1:] != [host]:
            expected[number].append(host)
        place.flannel(number, host=host)
    await until(lambda: len(events) == sum(map(len, expected.values())))
    for number, hosts in expected.items():
        assert [e.record.lease.v4.public_ip[3] for e in events if e.key == f"10.244.{number}.0-24"] == hosts


async def test_a_stream_of_rubbish_is_an_error_and_bounded(place, monkeypatch):
    monkeypatch.setattr(api, "LINE_MAX", 10_000)
    store = place.store()
    for line, error in ((b"garbage\n", "no WatchEvent"), (b'{"type":"ADDED","object":7}\n', "no Node"), (b"x" * (3 << 20), "one object has more than")):
        place.server.objects.history[:] = []
        watching = asyncio.create_task(anext(aiter(store.watch(place.server.objects.revision))))
        await until(lambda: place.server.watchers)
        for watcher in place.server.watchers:
            watcher.tell(line)
        with pytest.raises(StoreError, match=error):
            await asyncio.wait_for(watching, TIMEOUT_S)
        await until(lambda: not place.server.watchers)


async def test_a_thousand_junk_nodes_are_named_and_a_good_one_works(place):
    for number in range(1003):
        place.node(number, f"10.{number // 250}.{number % 250}.0/24", **{NAMES.managed: "true", NAMES.backend_data: "x" * 2000})
    place.node(1, "10.244.1.0/24", name="good")
    store = place.store()
    await store.create(lease(), Owner("good", "b"))
    snapshot = await store.snapshot()
    assert [r.owner.node for r in snapshot.records] == ["good"] and len(snapshot.junk) == 1001
    assert snapshot.junk[-1].why.startswith("3 more keys")
    assert all(len(j.why) < 200 for j in snapshot.junk)


# ---- refusals -----------------------------------------------------------------------------------------------------


async def test_an_overloaded_server_is_left_alone_as_long_as_it_asks(place):
    store = place.store()
    place.server.fail(429, retry_after=60)
    with pytest.raises(StoreUnavailable, match="429"):
        await store.snapshot()
    asked = len(place.server.requests)
    with pytest.raises(StoreUnavailable, match="asked to be left alone"):
        await store.snapshot()
    assert len(place.server.requests) == asked
    store.api.not_before = time.monotonic()
    assert (await store.snapshot()).records == ()


async def test_a_token_that_was_replaced_is_read_again_at_once(place, tmp_path):
    file = tmp_path / "token"
    file.write_text("old\n")
    store = KubeStore(Access(place.server.url, Token(file=file)), NAMES, tmp_path / "x")
    place.stores.append(store)
    with pytest.raises(StoreUnavailable, match=r"401 .*: the token or certificate is not"):
        await store.snapshot()
    file.write_text("agent\n")
    assert (await store.snapshot()).records == ()


async def test_missing_rights_are_named_with_where_they_are_listed(place):
    place.server.tokens = {"agent": [("get", "nodes")]}
    place.node(1)
    store = place.store()
    with pytest.raises(StoreError, match=r"cannot list resource .*nodes.*deploy/kubernetes/base/rbac\.yaml") as error:
        await store.snapshot()
    assert "\n" not in str(error.value) and not isinstance(error.value, StoreUnavailable)
    with pytest.raises(StoreError, match="cannot patch resource"):
        await store.create(lease(), N1)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_failing_server_is_asked_again_later(place, status):
    store = place.store()
    place.server.fail(status)
    with pytest.raises(StoreUnavailable, match=str(status)):
        await store.snapshot()
    assert (await store.snapshot()).records == ()


# ---- what a node is given -----------------------------------------------------------------------------------------


async def test_a_node_that_is_not_there_and_one_without_a_pod_cidr_are_waited_for_with_the_reason(place):
    store = place.store()
    with pytest.raises(StoreUnavailable, match="Node n1 does not exist: kubelet makes it"):
        await store.given("n1")
    place.node(1, "")
    with pytest.raises(StoreUnavailable, match=r'node "n1" pod cidr not assigned: .*--allocate-node-cidrs=true'):
        await store.given("n1")
    place.server.objects.patch("n1", {"spec": {"podCIDR": "10.244.1.0/24"}}, False, "")
    given = await store.given("n1")
    assert (given.subnet, given.subnet6, given.record) == (Prefix.parse("10.244.1.0/24"), None, None)


async def test_what_is_given_comes_from_the_watch_and_costs_no_request(place):
    place.node(1, "10.244.1.0/24", "fd00:0:0:1::/64")
    store = place.store()
    await store.given("n1")
    events, _ = place.follow(store, (await store.snapshot()).revision)
    await until(lambda: place.server.watchers)
    asked = len(place.server.requests)
    place.annotate("n1", {NAMES.overwrite: "203.0.113.1", NAMES.overwrite6: "2001:db8::1", NAMES.node_ip: "192.0.2.5", NAMES.node_ip6: "2001:db8::5"})
    await until(lambda: events)
    given = await store.given("n1")
    assert [given.public_ip, given.public_ip6, given.node_ip, given.node_ip6] == [
        parse_address(t) for t in ("203.0.113.1", "2001:db8::1", "192.0.2.5", "2001:db8::5")
    ]
    assert len(place.server.requests) == asked and not given.like(store_module.Given())
    place.heartbeat("n1")
    place.annotate("n1", {NAMES.overwrite: "rubbish"})
    await until(lambda: len(events) == 2)
    assert (await store.given("n1")).public_ip is None
    assert store.warnings == [f'Node n1: annotation {NAMES.overwrite}="rubbish" of node n1: not an IPv4 address']


async def test_a_node_that_is_deleted_is_noticed(place):
    place.node(1)
    store = place.store()
    await store.given("n1")
    await store.create(lease(), N1)
    events, _ = place.follow(store, (await store.snapshot()).revision)
    place.server.objects.delete("n1")
    await until(lambda: events)
    assert (events[0].key, events[0].record) == ("10.244.1.0-24", None)
    with pytest.raises(StoreUnavailable, match="does not exist"):
        await store.given("n1")
    with pytest.raises(Conflict, match="does not exist"):
        await store.create(lease(), N1)


def condition(place, name="n1"):
    found = [c for c in place.server.objects.get(name)["status"].get("conditions", []) if c["type"] == "NetworkUnavailable"]
    return found[0] if found else None


async def test_the_condition_is_told_once_kept_and_told_again_when_somebody_takes_it_back(place):
    place.node(1)
    place.heartbeat("n1")
    store = place.store()
    await store.given("n1")
    events, _ = place.follow(store, (await store.snapshot()).revision)
    place.server.fail(503)
    with pytest.raises(StoreUnavailable):
        await store.announce()
    assert condition(place) is None
    await store.announce()
    told = condition(place)
    assert (told["status"], told["reason"]) == ("False", "FlannelIsUp") and told["lastTransitionTime"] and told["lastHeartbeatTime"]
    assert [c["type"] for c in place.server.objects.get("n1")["status"]["conditions"]] == ["Ready", "NetworkUnavailable"]
    asked = len(place.server.requests)
    await store.announce()
    assert len(place.server.requests) == asked
    taken_back = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    place.server.objects.patch("n1", {"status": {"conditions": [taken_back]}}, True, "status")
    await until(lambda: store.own.now is not None and not store.own.now.available)
    await until(lambda: events)
    await store.announce()
    assert condition(place)["status"] == "False"


async def test_the_condition_is_left_alone_when_told_to(place):
    place.node(1)
    store = place.store(tell_condition=False)
    await store.given("n1")
    await store.announce()
    assert condition(place) is None


async def test_a_pod_knows_its_node(place):
    place.server.pods["kube-system", "tweed-x"] = "n1"
    place.server.pods["kube-system", "new"] = ""
    store = place.store()
    assert await store.node_of_pod("kube-system", "tweed-x") == "n1"
    with pytest.raises(StoreError, match="node name not present in pod spec of kube-system/new"):
        await store.node_of_pod("kube-system", "new")
    with pytest.raises(StoreError, match="404"):
        await store.node_of_pod("../../nodes", "n1?x")


async def test_the_configuration_is_a_file_that_tweed_does_not_write(place, tmp_path):
    store = place.store()
    assert await store.config() is None
    (tmp_path / "net-conf.json").write_text("{}")
    assert await store.config() == "{}"
    with pytest.raises(StoreError, match="change the ConfigMap"):
        await store.set_config("x")


async def test_a_lease_of_no_vtep_is_kept(place):
    place.node(1)
    bare = Lease(Endpoint(Prefix.parse("10.244.1.0/24"), parse_address("192.0.2.1")), backend="host-gw")
    store = place.store()
    assert isinstance(await store.create(bare, N1), LeaseRecord)
    assert place.server.objects.get("n1")["metadata"]["annotations"][NAMES.backend_data] == "null"
    assert [r.lease for r in (await store.snapshot()).records] == [bare]
