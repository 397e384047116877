"""This node's place in the store: its own lease, kept, and everybody else's, followed.

Level-triggered like the rest: `publish()` compares what the lease says with what it should say; a lost watch costs a snapshot.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from tweed.addr import Prefix
from tweed.agent.log import log
from tweed.errors import Compacted, Conflict, StoreError
from tweed.model import UNKNOWN_S, Junk, Lease, LeaseRecord, Owner
from tweed.stores import JUNK_MAX, MORE_JUNK, TTL_S, Event, LeaseStore, Snapshot

BACKOFF_S = (0.1, 5.0)
CLONE = "another machine named"
AGAIN_S = 60.0  # whoever spoils our lease again so soon means it
KEPT_S = 30.0  # an agent that runs writes its lease again within seconds


class Backoff:
    """Doubling pauses with jitter, from 0.1 s to 5 s."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.next_s = BACKOFF_S[0]

    async def pause(self) -> None:
        await asyncio.sleep(self.next_s * random.uniform(0.5, 1.5))
        self.next_s = min(self.next_s * 2, BACKOFF_S[1])


class Membership:
    """What this node knows of the store. `woke(keys)` is called after every change, with the keys that changed (None: anything),
    `configured()` when the network configuration may be another one.

    `given`: the store ties our lease to our name, so that whatever somebody writes into it is put right; only another boot id tells a clone.
    """

    def __init__(
        self,
        store: LeaseStore,
        owner: Owner,
        renew_margin_s: float,
        woke: Callable[[set[str] | None], None],
        configured: Callable[[], None],
        *,
        given: bool = False,
    ) -> None:
        self.store = store
        self.owner = owner
        self.renew_margin_s = renew_margin_s
        self.woke = woke
        self.configured = configured
        self.given = given
        self.records: dict[str, LeaseRecord] = {}
        self.junk: dict[str, Junk] = {}
        self.kept: set[str] = set()  # of the records, those that the store has lost, until `kept_until`
        self.kept_until = 0.0
        self.own: LeaseRecord | None = None
        self.read_at = 0.0
        self.revision = 0
        self.fenced = ""
        self.mended_at = -AGAIN_S
        self.down_since: float | None = None
        self.down_at = 0.0
        self.down_why = ""
        self.failed = False

    # ---- following -------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Watch from the last snapshot on, for ever; when the watch breaks, all is read again. Nothing is removed while the store is away."""
        backoff, broken = Backoff(), False
        while True:
            began = boottime()
            try:
                if broken:
                    self.see_snapshot(await self.store.snapshot())
                    self.configured()  # whatever was written while nobody listened
                    broken = False
                async for events in self.store.watch(self.revision):
                    if events:
                        self.see_events(events)
                    else:
                        self.configured()
            except Compacted:
                log.info("the store no longer keeps the changes since revision %d: reading all leases again", self.revision)
                broken = True
                await backoff.pause()
            except StoreError as error:
                self.lost(error)
                broken = True
                if boottime() - began > BACKOFF_S[1]:
                    backoff.reset()  # it had lasted
                await backoff.pause()

    def see_snapshot(self, snapshot: Snapshot) -> None:
        self.found()
        before, self.records = self.records, {record.key: record for record in snapshot.records}
        self.junk = {}
        for junk in snapshot.junk:
            self._see_junk(junk, before.get(junk.key) if junk.key not in self.kept else None)
        self.kept = self._to_keep(before.keys() - self.records.keys() - self.junk.keys())
        self.records |= {key: before[key] for key in self.kept}
        self.revision = snapshot.revision
        self.woke(None)

    def see_events(self, events: tuple[Event, ...]) -> None:
        self.found()
        keep = self._to_keep({event.key for event in events if event.record is None and event.junk is None} & self.records.keys())
        for event in events:
            known = self.records.pop(event.key, None)
            if known is not None and known.revision > event.revision and event.key not in self.kept:
                self.records[event.key] = known  # written by ourselves since, and told of later
                continue
            kept = event.key in self.kept
            self.kept.discard(event.key)
            self.junk.pop(event.key, None)
            if event.record is not None:
                self.records[event.key] = event.record
            elif event.junk is not None:
                self._see_junk(event.junk, known if not kept else None)
            elif known is not None and event.key in keep:
                self.records[event.key] = known
                self.kept.add(event.key)
            self.revision = event.revision
        self.woke({event.key for event in events})

    def _to_keep(self, gone: set[str]) -> set[str]:
        """Of the records that the store has no more those to go on with. When this node's own went with them, the store has lost them, and
        not their nodes: these write them again, or are gone when KEPT_S has passed."""
        if self.own is not None and not self.fenced and self.own.key in gone:
            self.kept_until = boottime() + KEPT_S
            return gone - {self.own.key}
        return gone & self.kept

    def let_go(self) -> None:
        """Of what was kept, when its time is over."""
        if self.kept and boottime() >= self.kept_until:
            gone, self.kept = self.kept, set()
            self.records = {key: record for key, record in self.records.items() if key not in gone}
            self.woke(gone)

    def _see_junk(self, junk: Junk, known: LeaseRecord | None) -> None:
        """Rubbish over another node's lease says nothing of that node, who has the key as before: what it said stays in force. What somebody
        else has signed is a takeover that cannot be read."""
        ours = self.own is not None and junk.key == self.own.key
        if known is not None and not ours and junk.owner in (None, known.owner):
            self.records[junk.key] = known
            junk = msgspec.structs.replace(junk, why=f"{junk.why}; the lease that was there stays in force")
        self._note_junk(junk)

    def _note_junk(self, junk: Junk) -> None:
        """All of it is never kept: but always what lies under our own key."""
        if len(self.junk) < JUNK_MAX or junk.key in self.junk or (self.own is not None and junk.key == self.own.key):
            self.junk[junk.key] = junk
        else:
            self.junk[MORE_JUNK] = Junk(MORE_JUNK, f"more keys are no leases; the first {JUNK_MAX} are named")

    def lost(self, error: StoreError) -> None:
        """Said once: for how long and why it lasts, the status says."""
        if self.down_since is None:
            self.down_since, self.down_at = time.time(), boottime()
            log.warning("the store does not answer: %s; forwarding goes on with what is programmed", error)
        self.down_why = str(error)

    def found(self) -> None:
        if self.down_since is not None:
            log.info("the store answers again after %.0f s", boottime() - self.down_at)
            self.down_since, self.down_why = None, ""

    # ---- the own lease ---------------------------------------------------------------------------------------

    @property
    def own_now(self) -> LeaseRecord | None:
        """The own lease as the store shows it now."""
        return self.records.get(self.own.key) if self.own is not None else None

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until the own lease ends; None for a reservation, or without one."""
        if self.own is None or self.own.ttl_s is None:
            return None
        return self.own.ttl_s - (boottime() - self.read_at)

    def hold(self, record: LeaseRecord) -> None:
        """`record` is ours from now on."""
        self.own, self.read_at, self.fenced = record, boottime(), ""
        self.records[record.key] = record
        self.junk.pop(record.key, None)

    async def publish(self, lease: Lease) -> bool:
        """Make the store say `lease` for this node: create it again where it is gone or spoiled, correct it, renew it in time. True when anything changed.

        Somebody else under our key fences this node: it stops writing and says so; what is programmed stays.
        """
        if self.own is None or self.fenced:
            return False
        self.failed = False
        now = self.own_now
        junk = self.junk.get(self.own.key) if not self.given else None  # a store that gives takes a node's own over
        if other := self._usurper(now, lease) or self._spoiler(junk):
            self.fence(other)
            return True
        try:
            if junk is not None:
                log.warning("lease %s was overwritten with something that is no lease (%s): writing it again", lease, junk.why)
                self.mended_at = boottime()
                self.hold(await self.store.update(msgspec.structs.replace(self.own, revision=junk.revision), lease, self.owner, TTL_S))
            elif now is None:
                log.warning("lease %s is gone from the store: claiming it again", lease)
                self.hold(await self.store.create(lease, self.owner, None if self.own.ttl_s is None else TTL_S))
            elif now.lease != lease or now.owner != self.owner or self.due or (now.revision != self.own.revision and now.ttl_s == UNKNOWN_S):
                self.hold(await self.store.update(now, lease, self.owner, TTL_S))
                log.info("lease %s renewed in the store", lease)
            else:
                if now.revision != self.own.revision:
                    self.hold(now)
                return False
            self.found()
        except Conflict:
            await self._read_again()
        except StoreError as error:
            self.failed = True
            self.lost(error)
        return not self.failed

    async def _read_again(self) -> None:
        try:
            self.see_snapshot(await self.store.snapshot())
        except StoreError as error:
            self.failed = True
            self.lost(error)

    def _usurper(self, now: LeaseRecord | None, lease: Lease) -> str:
        """Who else has written our key, "" when it was nobody. Our own name is no proof: cloned machines share it."""
        assert self.own is not None
        if now is None:
            return self._successor()
        if now.revision <= self.own.revision:
            return ""
        hosts = {None, *(e.public_ip for e in lease.endpoints), *(e.public_ip for e in self.own.lease.endpoints)}
        elsewhere = not self.given and any(e.public_ip not in hosts for e in now.lease.endpoints)
        if now.owner is None:
            return "a node that keeps no owner record" if elsewhere else ""
        if now.owner.node != self.owner.node:
            return now.owner.node
        return f"{CLONE} {now.owner.node}" if elsewhere or now.owner.boot_id != self.owner.boot_id else ""

    def _spoiler(self, junk: Junk | None) -> str:
        """Who has written what is no lease over ours and means it, "" when that was damage: then it is written again, over just that revision."""
        if junk is None:
            return ""
        if junk.owner is not None and junk.owner != self.owner:
            return junk.owner.node
        return "something that is no lease, and comes again" if boottime() < self.mended_at + AGAIN_S else ""

    def _successor(self) -> str:
        """Who has our subnet under another key, which the store's comparison of keys does not see: with the other family beside it, or without."""
        assert self.own is not None
        ours = {e.subnet for e in self.own.lease.endpoints}
        for record in self.records.values():
            if any(e.subnet in ours for e in record.lease.endpoints):
                return record.owner.node if record.owner is not None else "a node that keeps no owner record"
        return ""

    @property
    def next_s(self) -> float | None:
        """Seconds until `publish` or `let_go` has something to do though nothing happens: the renewal, another try, the end of what was kept. None: never."""
        waits = [max(self.kept_until - boottime(), 0.0) + 0.001] if self.kept else []
        if self.own is not None and not self.fenced:
            if self.failed:
                waits.append(BACKOFF_S[1])
            elif (left := self.expires_in_s) is not None:
                waits.append(max(left - self.renew_margin_s, 0.0) + 0.001)
        return min(waits, default=None)

    @property
    def due(self) -> bool:
        left = self.expires_in_s
        return left is not None and left < self.renew_margin_s

    def fence(self, other: str) -> None:
        assert self.own is not None
        # A machine of the same name would take the lease back when it starts again, and fence the other.
        way_out = (
            "give one of the two another name (--node-name) and remove its subnet.env"
            if CLONE in other
            else "tweed lease acquire, or a restart of the agent, takes another subnet"
        )
        self.fenced = (
            f"lease {self.own.lease} now belongs to {other}: this node no longer writes it and takes no new attachments; "
            f"existing pods keep their connections; {way_out}"
        )


def other_macs(records: dict[str, LeaseRecord], own_key: str | None, family: int) -> set[bytes]:
    """VTEP MACs of a family that other leases publish."""
    return {e.mac for r in records.values() if r.key != own_key for e in r.lease.endpoints if e.mac is not None and e.subnet.family == family}


def other_subnets(records: dict[str, LeaseRecord], own_key: str | None) -> list[Prefix]:
    return [e.subnet for r in records.values() if r.key != own_key for e in r.lease.endpoints]


def boottime() -> float:
    """Seconds since boot, time asleep included: a suspended node's lease runs on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
