"""Where a watch goes on when its member goes away, with members whose every word is known."""

import contextlib

import pytest

from tweed.errors import Compacted, StoreUnavailable
from tweed.stores.etcd import client as module
from tweed.stores.etcd import rpc_pb2 as rpc
from tweed.stores.etcd.client import Client, MemberFailed, TokenRefused
from tweed.stores.etcd.endpoints import Endpoint, Files
from tweed.stores.etcd.layout import Span

A, B = Endpoint("a:1", False), Endpoint("b:1", False)
SPAN = Span(b"a", b"b")


def created(revision=500, cluster=7):
    return rpc.WatchResponse(created=True, header=rpc.ResponseHeader(revision=revision, cluster_id=cluster))


def events(*revisions, at=99, fragment=False):
    changes = [rpc.Event(kv=rpc.KeyValue(key=b"a", mod_revision=revision)) for revision in revisions]
    return rpc.WatchResponse(header=rpc.ResponseHeader(revision=at, cluster_id=7), events=changes, fragment=fragment)


def progress(revision):
    return rpc.WatchResponse(header=rpc.ResponseHeader(revision=revision, cluster_id=7))


class Members(Client):
    """`script`: what each stream says, one after the other, then it breaks; `asked`: whom, from which revision on."""

    def __init__(self, *script):
        super().__init__((A, B), Files())
        self.endpoints = [A, B]
        self.script, self.asked = list(script), []

    async def stream(self, endpoint, span, revision):
        self.asked.append((endpoint, revision))
        for answer in self.script.pop(0) if self.script else [MemberFailed("gone")]:
            if isinstance(answer, Exception):
                raise answer
            yield answer
        raise MemberFailed("it broke")


@pytest.fixture
def lasting(monkeypatch):
    """Every stream counts as one that had lasted, as long as the script goes on."""
    monkeypatch.setattr(module, "LASTED_S", -1.0)


async def heard(members, revision=10, most=20):
    """The revisions of all events until the watch ends, and how it does."""
    found = []
    try:
        async with contextlib.aclosing(members.watch(SPAN, revision)) as answers:
            async for answer in answers:
                found += [event.kv.mod_revision for event in answer.events]
                if len(found) >= most or not members.script:
                    return found, None
    except (StoreUnavailable, Compacted) as error:
        return found, error


async def test_the_next_member_goes_on_after_the_last_change_and_not_after_what_the_store_has_by_now(lasting):
    members = Members([created(), events(11, 12, at=500)], [created(), events(13)], [created()])
    assert await heard(members, 11) == ([11, 12, 13], None)
    assert members.asked == [(A, 11), (B, 13), (A, 14)]


async def test_half_a_batch_is_asked_for_again(lasting):
    """Its parts may belong to one revision."""
    members = Members([created(), events(11, fragment=True), events(11)], [created(), events(12, fragment=True)], [created()])
    await heard(members, 11)
    assert [revision for _, revision in members.asked] == [11, 12, 12]


async def test_a_notice_of_progress_moves_the_place_to_go_on_from(lasting):
    """So that a compaction meanwhile costs nothing."""
    members = Members([created(), progress(40)], [created()], [created()])
    await heard(members, 11)
    assert [revision for _, revision in members.asked[:2]] == [11, 41]


@pytest.mark.parametrize("answer", [created(revision=5), created(revision=9)])
async def test_a_member_that_is_behind_was_restored_from_a_backup(answer):
    _, error = await heard(Members([answer, events(11)], []), 11)
    assert isinstance(error, Compacted) and "restored from a backup" in str(error)


async def test_a_member_of_another_cluster_is_not_followed(lasting):
    _, error = await heard(Members([created(), events(11)], [created(cluster=8)], []), 11)
    assert isinstance(error, Compacted)


async def test_a_watch_that_breaks_at_once_everywhere_is_for_the_caller_to_try_again():
    members = Members([created(), MemberFailed("x")], [TokenRefused("invalid auth token")], [])
    members.token = "old"
    found, error = await heard(members, 11)
    assert found == [] and isinstance(error, StoreUnavailable)
    assert "http://a:1: x" in str(error) and "http://b:1: invalid auth token" in str(error)
    assert members.asked == [(A, 11), (B, 11)] and members.token == ""
