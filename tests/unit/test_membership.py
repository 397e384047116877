"""A node's place in the store: what it writes when, whom it gives way to, and what it says."""

import asyncio
import logging
from types import SimpleNamespace

import msgspec
import pytest

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.agent import membership as module
from tweed.agent.membership import Membership, other_macs, other_subnets
from tweed.errors import Compacted, Conflict, StoreError, StoreUnavailable
from tweed.model import UNKNOWN_S, Endpoint, Junk, Lease, LeaseRecord, Owner
from tweed.stores import JUNK_MAX, MORE_JUNK, TTL_S, Event, Snapshot

ME, OTHER, MY_CLONE = Owner("a", "boot"), Owner("b", "boot"), Owner("a", "another boot")
MARGIN_S = 3600.0


def lease(number: int = 1, host: str = "192.168.2.1", mac: str = "02:00:00:00:00:01") -> Lease:
    return Lease(Endpoint(Prefix.parse(f"10.244.{number}.0/24"), parse_address(host), parse_mac(mac), 1))


MINE = lease()


class Memory:
    """A lease store in a dict, which can be away, and which remembers what it was asked to write."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.records: dict[str, LeaseRecord] = {}
        self.junk: tuple[Junk, ...] = ()
        self.revision = 0
        self.away: StoreError | None = None
        self.writes: list[str] = []
        self.snapshots = 0
        self.events: asyncio.Queue[tuple[Event, ...] | StoreError] = asyncio.Queue()

    def check(self) -> None:
        if self.away is not None:
            raise self.away

    def put(self, lease: Lease, owner: Owner | None, ttl_s: float | None = TTL_S) -> LeaseRecord:
        self.revision += 1
        created = self.records[lease.key].created if lease.key in self.records else self.revision
        self.records[lease.key] = record = LeaseRecord(lease, owner, self.revision, created, ttl_s)
        return record

    async def snapshot(self) -> Snapshot:
        self.check()
        self.snapshots += 1
        return Snapshot(self.revision, tuple(self.records.values()), self.junk)

    async def create(self, lease: Lease, owner: Owner | None, ttl_s: float | None = TTL_S) -> LeaseRecord:
        self.check()
        if lease.key in self.records or any(j.key == lease.key for j in self.junk):
            raise Conflict("exists")
        self.writes.append("create")
        return self.put(lease, owner, ttl_s)

    def spoil(self, key: str, owner: Owner | None = None) -> None:
        """As somebody by hand writes what is no lease over one."""
        self.revision += 1
        del self.records[key]
        self.junk = (Junk(key, "not JSON", self.revision, owner),)

    async def update(self, record: LeaseRecord, lease: Lease, owner: Owner, ttl_s: float = TTL_S) -> LeaseRecord:
        self.check()
        if any((junk.key, junk.revision) == (record.key, record.revision) for junk in self.junk):
            self.junk = ()
            self.writes.append("update")
            return self.put(lease, owner, ttl_s)
        if (now := self.records.get(record.key)) is None or now.revision != record.revision:
            raise Conflict("changed")
        self.writes.append("update")
        return self.put(lease, owner, None if now.ttl_s is None else ttl_s)

    async def timed(self, records):
        return tuple(records)

    async def watch(self, revision: int):
        while True:
            event = await self.events.get()
            if isinstance(event, StoreError):
                raise event
            yield event


class Place:
    """A membership over a `Memory`; `woken` counts, `lines` are the log's, `pauses` what it would have slept, in seconds."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.store = Memory()
        self.woken: list[set[str] | None] = []
        self.configured = 0
        self.pauses: list[float] = []
        self.membership = Membership(self.store, ME, MARGIN_S, self.woken.append, self.on_configuration)
        self.caplog = caplog

    async def sleep(self, delay_s: float) -> None:
        self.pauses.append(delay_s)
        await asyncio.sleep(0)

    def on_configuration(self) -> None:
        self.configured += 1

    async def join(self, ttl_s: float | None = TTL_S) -> None:
        self.membership.hold(self.store.put(MINE, ME, ttl_s))
        self.membership.see_snapshot(await self.store.snapshot())

    async def see(self) -> None:
        self.membership.see_snapshot(await self.store.snapshot())

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.caplog.records]


@pytest.fixture
def place(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Place:
    caplog.set_level(logging.INFO, logger="tweed")
    place = Place(caplog)
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=place.sleep))
    return place


# ---- the own lease ------------------------------------------------------------------------------------------------


async def test_nothing_is_written_and_nothing_said_while_all_is_right(place: Place):
    await place.join()
    for _ in range(3):
        await place.membership.publish(MINE)
    assert (place.store.writes, place.lines) == ([], [])


async def test_before_there_is_a_lease_there_is_nothing_to_publish(place: Place):
    await place.membership.publish(MINE)
    assert place.store.writes == [] and place.membership.next_s is None


@pytest.mark.parametrize("changed", [lease(host="192.168.2.9"), lease(mac="02:00:00:00:00:99")])
async def test_a_new_address_or_mac_is_written(place: Place, changed: Lease):
    await place.join()
    await place.membership.publish(changed)
    await place.membership.publish(changed)
    assert place.store.writes == ["update"]
    assert place.store.records[MINE.key].lease == changed == place.membership.own.lease


async def test_the_lease_of_an_earlier_boot_is_signed_anew(place: Place):
    place.membership.hold(place.store.put(MINE, MY_CLONE))
    await place.see()
    await place.membership.publish(MINE)
    assert place.store.records[MINE.key].owner == ME


async def test_it_is_renewed_when_the_margin_is_left_and_not_before(place: Place):
    await place.join(MARGIN_S + 5)
    await place.membership.publish(MINE)
    assert place.store.writes == [] and 0 < place.membership.next_s < 6
    await place.join(MARGIN_S - 5)
    assert place.membership.next_s < 0.1
    await place.membership.publish(MINE)
    assert place.store.writes == ["update"] and place.store.records[MINE.key].ttl_s == TTL_S
    assert TTL_S - MARGIN_S - 5 < place.membership.next_s < TTL_S
    assert place.lines == ["lease 10.244.1.0/24 renewed in the store"]


async def test_a_reservation_is_never_renewed(place: Place):
    await place.join(None)
    await place.membership.publish(MINE)
    assert (place.store.writes, place.membership.next_s, place.membership.expires_in_s) == ([], None, None)


async def test_a_lease_that_is_gone_is_claimed_again(place: Place):
    for ttl_s in (TTL_S, None):
        await place.join(ttl_s)
        place.store.records.clear()
        await place.see()
        await place.membership.publish(MINE)
        assert place.store.records[MINE.key].ttl_s == ttl_s  # a reservation stays one
    assert place.store.writes == ["create", "create"]
    assert "claiming it again" in place.lines[0]


async def test_a_conflict_is_looked_at_again_and_settled(place: Place):
    await place.join()
    place.store.put(MINE, ME, 10.0)  # somebody wrote the very same: an operator, or we before a lost answer
    await place.membership.publish(lease(host="192.168.2.9"))
    assert place.store.writes == [] and place.woken[-1] is None
    await place.membership.publish(lease(host="192.168.2.9"))
    assert place.store.writes == ["update"]


async def test_a_conflict_while_the_store_goes_away_is_no_crash(place: Place):
    await place.join()
    await place.store.create(lease(2), OTHER)
    place.store.put(MINE, ME)

    async def gone(*_):
        place.store.away = StoreUnavailable("gone")
        raise Conflict("changed")

    place.store.update = gone
    await place.membership.publish(lease(host="192.168.2.9"))
    assert place.membership.down_why == "gone" and place.membership.next_s == module.BACKOFF_S[1]


# ---- somebody else under our key -----------------------------------------------------------------------------------


USURPERS = [
    (lease(host="192.168.2.2"), OTHER, "b:"),
    (MINE, OTHER, "b:"),
    (lease(host="192.168.2.2"), None, "a node that keeps no owner record"),
    (lease(host="192.168.2.2"), ME, "another machine named a"),
    (MINE, MY_CLONE, "another machine named a"),
]


@pytest.mark.parametrize(("theirs", "owner", "who"), USURPERS)
async def test_somebody_else_under_our_key_fences_us(place: Place, theirs: Lease, owner: Owner | None, who: str):
    """Fighting over a record would make both nodes' peers flap; the one that notices gives way, and says so."""
    await place.join()
    place.store.put(theirs, owner)
    await place.see()
    for _ in range(3):
        await place.membership.publish(MINE)
    assert place.store.writes == []
    assert "lease 10.244.1.0/24 now belongs to" in place.membership.fenced and who in place.membership.fenced
    assert place.membership.next_s is None


async def test_our_subnet_under_another_key_fences_us_when_our_lease_has_ended(place: Place):
    """With the other family beside it the key is another one, which create-if-absent does not see."""
    await place.join()
    both = Lease(lease(host="192.168.2.2").v4, Endpoint(Prefix.parse("fd00:0:0:1::/64")))
    place.store.records.clear()
    place.store.put(both, OTHER)
    await place.see()
    assert await place.membership.publish(MINE) is True
    assert place.store.writes == [] and "now belongs to b" in place.membership.fenced


async def test_a_lease_of_half_the_network_does_not_keep_ours_from_coming_back(place: Place):
    await place.join()
    place.store.records.clear()
    place.store.put(Lease(Endpoint(Prefix.parse("10.244.0.0/17"), parse_address("192.168.2.9"))), None)
    await place.see()
    await place.membership.publish(MINE)
    assert place.store.writes == ["create"] and not place.membership.fenced


async def test_what_came_back_without_saying_when_it_ends_is_renewed_at_once(place: Place):
    """The answer to our own write was lost, and etcd does not say with a key when it ends."""
    await place.join()
    place.store.put(MINE, ME, UNKNOWN_S)
    await place.see()
    await place.membership.publish(MINE)
    assert place.store.writes == ["update"] and TTL_S - MARGIN_S - 5 < place.membership.next_s < TTL_S


async def test_our_own_lease_written_by_hand_without_owner_is_taken_back(place: Place):
    await place.join()
    place.store.put(MINE, None)
    await place.see()
    await place.membership.publish(MINE)
    assert place.store.records[MINE.key].owner == ME and not place.membership.fenced


async def test_our_new_address_is_no_usurper(place: Place):
    await place.join()
    await place.membership.publish(lease(host="192.168.2.7"))
    await place.see()
    await place.membership.publish(lease(host="192.168.2.7"))
    assert not place.membership.fenced and place.store.writes == ["update"]


@pytest.mark.parametrize("owner", [None, ME])
async def test_junk_under_our_key_is_damage_and_the_lease_is_written_again(place: Place, owner: Owner | None):
    await place.join()
    place.store.spoil(MINE.key, owner)
    await place.see()
    assert await place.membership.publish(MINE)
    assert not place.membership.fenced and place.store.writes == ["update"] and place.store.junk == ()
    assert place.membership.junk == {} and place.membership.own == place.store.records[MINE.key]
    assert "overwritten with something that is no lease (not JSON)" in place.lines[0]
    assert not await place.membership.publish(MINE)


async def test_junk_that_comes_again_fences_us_instead_of_going_round_for_ever(place: Place):
    await place.join()
    for _ in range(2):
        place.store.spoil(MINE.key)
        await place.see()
        await place.membership.publish(MINE)
    assert "something that is no lease, and comes again" in place.membership.fenced and place.store.writes == ["update"]
    assert not await place.membership.publish(MINE)


async def test_junk_much_later_is_another_damage(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    await place.join()
    for _ in range(3):
        place.store.spoil(MINE.key)
        await place.see()
        await place.membership.publish(MINE)
    assert not place.membership.fenced and place.store.writes == ["update"] * 3


@pytest.mark.parametrize("owner", [OTHER, MY_CLONE])
async def test_junk_that_another_has_signed_is_a_takeover(place: Place, owner: Owner):
    await place.join()
    place.store.spoil(MINE.key, owner)
    await place.see()
    await place.membership.publish(MINE)
    assert place.membership.fenced and place.store.writes == []


async def test_junk_that_became_another_nodes_lease_in_between_is_left_to_it(place: Place):
    """What is written again is compared with what was seen."""
    await place.join()
    place.store.spoil(MINE.key)
    await place.see()
    place.store.junk = ()
    taken = place.store.put(MINE, OTHER)
    await place.membership.publish(MINE)
    await place.membership.publish(MINE)
    assert "belongs to b" in place.membership.fenced and place.store.records[MINE.key] == taken


# ---- a store that is away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreUnavailable("locked"), StoreError("not an SQLite file")])
async def test_a_store_that_cannot_be_written_is_tried_again(place: Place, error: StoreError):
    await place.join(MARGIN_S - 5)
    place.store.away = error
    await place.membership.publish(MINE)
    m = place.membership
    assert m.down_since is not None and m.down_why == str(error) and m.next_s == module.BACKOFF_S[1]
    place.store.away = None
    await m.publish(MINE)
    assert m.down_since is None and place.store.writes == ["update"] and m.next_s > module.BACKOFF_S[1]
    assert [line.split(":")[0] for line in place.lines] == [
        "the store does not answer",
        "lease 10.244.1.0/24 renewed in the store",
        "the store answers again after 0 s",
    ]


async def test_an_absence_is_said_once_whatever_each_try_says(place: Place):
    for text in ("a: refused", "b: refused", "a: no answer"):
        place.membership.lost(StoreUnavailable(text))
    assert len(place.lines) == 1 and place.membership.down_why == "a: no answer"


async def test_junk_is_bounded_however_it_comes(place: Place):
    await place.join()
    junk = [Junk(f"junk{n}", "no lease") for n in range(JUNK_MAX + 50)]
    place.store.junk = tuple(junk)
    await place.see()
    assert len(place.membership.junk) == JUNK_MAX + 1 and MORE_JUNK in place.membership.junk
    place.membership.see_events(tuple(Event(100 + n, f"more{n}", junk=Junk(f"more{n}", "no lease")) for n in range(50)))
    assert len(place.membership.junk) == JUNK_MAX + 1
    place.membership.see_events((Event(200, MINE.key, junk=Junk(MINE.key, "overwritten")),))
    assert MINE.key in place.membership.junk, "what lies under our own key is always known"


async def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never")


async def following(place: Place, error: StoreError) -> None:
    """While the store is away all records stay known, and afterwards they are as the store has them."""
    await place.join()
    m = place.membership
    task = asyncio.create_task(m.follow())
    try:
        second = place.store.put(lease(2), OTHER)
        place.store.events.put_nowait((Event(second.revision, second.key, second),))
        await until(lambda: len(m.records) == 2)
        place.store.away = error
        place.store.events.put_nowait(error)
        await until(lambda: m.down_since is not None)
        since = m.down_since
        await until(lambda: len(place.pauses) > 5)
        assert len(m.records) == 2 and m.down_since == since
        del place.store.records[lease(2).key]
        place.store.away = None
        await until(lambda: len(m.records) == 1)
        assert m.down_since is None
        assert sum("answers again" in line for line in place.lines) == 1
    finally:
        task.cancel()


@pytest.mark.parametrize("error", [StoreUnavailable("no such file"), StoreError("not an SQLite file")])
async def test_following_through_an_absence(place: Place, error: StoreError):
    await following(place, error)


async def test_events_in_order_of_revision(place: Place):
    await place.join()
    m = place.membership
    second, third = LeaseRecord(lease(2), OTHER, 5, 5, 9.0), LeaseRecord(lease(3), OTHER, 6, 6, 9.0)
    m.see_events((Event(5, second.key, second), Event(6, third.key, third)))
    assert (set(m.records), m.revision, place.woken[-1]) == ({MINE.key, second.key, third.key}, 6, {second.key, third.key})
    m.see_events((Event(7, second.key), Event(8, third.key, junk=Junk(third.key, "overwritten"))))
    assert set(m.records) == {MINE.key, third.key} and set(m.junk) == {third.key}
    m.see_events((Event(9, third.key, msgspec.structs.replace(third, revision=9)),))
    assert set(m.records) == {MINE.key, third.key} and m.junk == {}


@pytest.mark.parametrize("owner", [None, OTHER, MY_CLONE], ids=["unsigned", "its own", "another's"])
async def test_rubbish_over_another_nodes_lease_leaves_in_force_what_it_said(place: Place, owner: Owner | None):
    """Until the key is gone, or somebody else has it; by events, and by a snapshot after a watch that broke."""
    await place.join()
    m = place.membership
    theirs = place.store.put(lease(2), OTHER)
    await place.see()
    for see_it in (lambda: m.see_events((Event(7, theirs.key, junk=Junk(theirs.key, "not JSON", 7, owner)),)), None):
        if see_it is not None:
            see_it()
        else:
            place.store.spoil(theirs.key, owner)
            await place.see()
        stays = owner in (None, OTHER)
        assert (m.records.get(theirs.key) == theirs) == stays and m.junk[theirs.key].why.startswith("not JSON")
        assert ("stays in force" in m.junk[theirs.key].why) == stays
    m.see_events((Event(9, theirs.key),))
    assert set(m.records) == {MINE.key} and m.junk == {}


async def test_old_news_of_our_own_lease_does_not_undo_what_we_wrote_since(place: Place):
    await place.join()
    old = place.membership.own
    await place.membership.publish(lease(host="192.168.2.9"))
    place.membership.see_events((Event(old.revision, old.key, old),))
    assert place.membership.own_now.lease == lease(host="192.168.2.9")
    await place.membership.publish(lease(host="192.168.2.9"))
    assert place.store.writes == ["update"]


async def test_a_compacted_watch_takes_a_new_snapshot(place: Place):
    await place.join()
    task = asyncio.create_task(place.membership.follow())
    try:
        place.store.put(lease(2), OTHER)
        place.store.events.put_nowait(Compacted("revision 1 is gone"))
        await until(lambda: len(place.membership.records) == 2)
        assert place.membership.down_since is None
        assert place.store.snapshots == 2, "none at the beginning: join() has read everything already"
    finally:
        task.cancel()


async def test_a_watch_that_breaks_at_once_is_not_reopened_at_full_speed(place: Place):
    await place.join()

    async def broken(revision: int):
        raise StoreUnavailable("no watches here")
        yield

    place.store.watch = broken
    task = asyncio.create_task(place.membership.follow())
    try:
        await until(lambda: place.store.snapshots >= 10)
        for pause_s, middle_s in zip(place.pauses, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], strict=False):
            assert middle_s / 2 <= pause_s <= middle_s * 1.5
        assert len(place.pauses) >= 9, "one before each snapshot"
    finally:
        task.cancel()


# ---- what others have ------------------------------------------------------------------------------------------------


def test_what_is_others():
    records = {r.key: r for r in (LeaseRecord(lease(1), ME, 1, 1), LeaseRecord(lease(2, mac="02:00:00:00:00:02"), OTHER, 2, 2))}
    assert other_macs(records, MINE.key, 4) == {parse_mac("02:00:00:00:00:02")}
    assert other_macs(records, MINE.key, 6) == set()
    assert other_subnets(records, MINE.key) == [Prefix.parse("10.244.2.0/24")]
    assert len(other_macs(records, None, 4)) == 2


# ---- a lease that is tied to this node's name (Kubernetes) ---------------------------------------------------------


@pytest.mark.parametrize("owner", [ME, None])
async def test_a_given_lease_is_put_right_whatever_somebody_wrote_into_it(place, owner):
    place.membership.given = True
    await place.join()
    place.store.put(lease(host="192.168.2.99", mac="02:00:00:00:00:99"), owner)
    await place.see()
    await place.membership.publish(MINE)
    assert not place.membership.fenced and place.store.records[MINE.key].lease == MINE and place.store.records[MINE.key].owner == ME


async def test_a_given_lease_that_is_rubbish_is_written_anew(place):
    place.membership.given = True
    await place.join()
    place.store.records.clear()
    place.store.junk = (Junk(MINE.key, "not JSON"),)
    await place.see()
    place.store.junk = ()  # the store takes a node's own over
    await place.membership.publish(MINE)
    assert not place.membership.fenced and place.store.writes == ["create"]


@pytest.mark.parametrize("owner", [OTHER, MY_CLONE])
async def test_a_given_lease_of_another_boot_or_name_still_fences(place, owner):
    place.membership.given = True
    await place.join()
    place.store.put(MINE, owner)
    await place.see()
    await place.membership.publish(MINE)
    assert place.membership.fenced and place.store.writes == []


# ---- a store that lost its leases -------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module, "boottime", lambda: now[0])
    return now


@pytest.mark.parametrize("told", ["by a snapshot", "by events"])
async def test_nodes_whose_leases_vanish_with_ours_are_kept_until_they_write_them_again(place: Place, clock: list[float], told: str):
    second, third = lease(2), lease(3)
    place.store.revision = 100
    for each in (second, third):
        place.store.put(each, OTHER)
    await place.join()
    m, old = place.membership, place.membership.records[second.key]
    place.store.records.clear()
    place.store.revision = 0  # a new file
    if told == "by a snapshot":
        await place.see()
    else:
        m.see_events(tuple(Event(110, key) for key in (second.key, MINE.key, third.key)))
    assert set(m.records) == {second.key, third.key} == m.kept and m.own_now is None
    assert await m.publish(MINE) and place.store.writes == ["create"] and MINE.key in m.records
    again = place.store.put(second, OTHER)
    assert again.revision < old.revision
    m.see_events((Event(again.revision, again.key, again),))
    assert m.records[second.key] == again and m.kept == {third.key}
    await place.see()  # which has no third either
    assert set(m.records) == {MINE.key, second.key, third.key} and 29 < m.next_s <= 31
    clock[0] += 31
    m.let_go()
    assert set(m.records) == {MINE.key, second.key} and m.kept == set() and place.woken[-1] == {third.key}
    assert m.next_s > 1000


async def test_a_node_that_leaves_alone_is_not_kept(place: Place, clock: list[float]):
    place.store.put(lease(2), OTHER)
    place.store.put(lease(3), OTHER)
    await place.join()
    m = place.membership
    m.see_events((Event(10, lease(2).key),))
    assert set(m.records) == {MINE.key, lease(3).key} and not m.kept
    m.see_events((Event(11, MINE.key),))  # and ours alone means nothing for those that are there
    assert set(m.records) == {lease(3).key} and not m.kept


async def test_a_fenced_node_keeps_nobody(place: Place, clock: list[float]):
    place.store.put(lease(2), OTHER)
    await place.join()
    place.membership.fence("b")
    place.membership.see_events((Event(10, MINE.key), Event(10, lease(2).key)))
    assert place.membership.records == {}


async def test_a_lease_that_is_kept_gives_way_to_what_is_written_over_it(place: Place, clock: list[float]):
    place.store.put(lease(2), OTHER)
    await place.join()
    m = place.membership
    m.see_events((Event(10, MINE.key), Event(10, lease(2).key)))
    m.see_events((Event(11, lease(2).key, junk=Junk(lease(2).key, "no lease")),))
    assert m.records == {} and set(m.junk) == {lease(2).key} and not m.kept
