"""`LeaseStore` in etcd v3, beside flanneld's that keep their leases there too.

Every write is one transaction that compares the revision which was read, so nobody's key is ever overwritten unseen. Each lease hangs on
an etcd lease of its own, as flannel's do; a renewal grants a new one and takes the old one back, once nothing hangs on it.
A reservation hangs on none. When a foreign lease ends is asked for only where it matters (`timed`): that costs a call for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from tweed.config import Settings
from tweed.errors import Compacted, Conflict, StoreError, StoreUnavailable
from tweed.model import UNKNOWN_S, Junk, Lease, LeaseRecord, Owner
from tweed.stores import JUNK_MAX, TTL_S, Event, NodesChoose, Snapshot, more_junk
from tweed.stores.etcd import rpc_pb2 as rpc
from tweed.stores.etcd.client import Client, TooLarge
from tweed.stores.etcd.endpoints import Files, parse_endpoints
from tweed.stores.etcd.layout import Layout, Span, format_owner, parse_owner, record
from tweed.wire.gojson import printable
from tweed.wire.lease import format_lease

PAGE = 1000  # keys
ASK_AT_ONCE = 64  # calls on their way
READINGS = 5  # in a row that a compaction overtook


class EtcdStore(NodesChoose):
    """The leases below `--etcd-prefix`. Raises UsageError for settings that can never work; nothing is connected before the first call."""

    def __init__(self, settings: Settings) -> None:
        files = Files(settings.etcd_keyfile, settings.etcd_certfile, settings.etcd_cafile)
        endpoints = parse_endpoints(settings.etcd_endpoints, files)
        self.layout = Layout(settings.etcd_prefix)
        self.client = Client(endpoints, files, settings.etcd_username, settings.etcd_password)
        self.warnings: list[str] = []

    async def config(self) -> str | None:
        found = await self.client.call(rpc.RangeRequest(key=self.layout.config), rpc.RangeResponse)
        return found.kvs[0].value.decode("utf-8", "replace") if found.kvs else None

    async def set_config(self, text: str, *, replace: bool = True) -> bool:
        compare = [] if replace else [absent(self.layout.config)]
        request = rpc.TxnRequest(compare=compare, success=[put(self.layout.config, text.encode(), 0)])
        return (await self.client.call(request, rpc.TxnResponse)).succeeded

    # ---- reading ---------------------------------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        for _ in range(READINGS):
            with contextlib.suppress(Compacted):  # between two pages: begin again with the present revision
                return await self.read_all()
        raise StoreUnavailable(f"etcd was compacted {READINGS} times while all leases were read")

    async def read_all(self) -> Snapshot:
        owners: dict[bytes, tuple[int, Owner | None]] = {}
        revision = 0
        async for page in self.pages(self.layout.owners):
            revision = revision or page.header.revision
            owners.update({kv.key[len(self.layout.owners.start) :]: (kv.mod_revision, parse_owner(kv.value)) for kv in page.kvs})
        records: list[LeaseRecord] = []
        junk: list[Junk] = []
        more = 0
        async for page in self.pages(self.layout.leases, revision):
            for kv in page.kvs:
                read = self.layout.read(kv)
                written, owner = owners.get(kv.key[len(self.layout.leases.start) :], (0, None))
                owner = owner if written == kv.mod_revision else None
                if isinstance(read, Lease):
                    records.append(record(read, kv, owner))
                elif len(junk) < JUNK_MAX:
                    junk.append(msgspec.structs.replace(read, owner=owner))
                else:
                    more += 1
        return Snapshot(revision, tuple(records), (*junk, *([more_junk(more)] if more else [])))

    async def pages(self, span: Span, revision: int = 0, *, keys_only: bool = False) -> AsyncIterator[rpc.RangeResponse]:
        """All keys of the span as they were at one revision (0: now), at least one page. Pages get smaller where values are huge."""
        start, limit = span.start, PAGE
        while True:
            request = rpc.RangeRequest(key=start, range_end=span.end, limit=limit, revision=revision, keys_only=keys_only)
            try:
                page = await self.client.call(request, rpc.RangeResponse)
            except TooLarge:
                if limit == 1:
                    raise
                limit = max(1, limit // 8)
                continue
            yield page
            if not page.more:
                return
            revision = revision or page.header.revision
            start = page.kvs[-1].key + b"\0"
            limit = min(PAGE, limit * 2)

    async def timed(self, records: Sequence[LeaseRecord]) -> tuple[LeaseRecord, ...]:
        unknown = {self.layout.lease_key(r.key): r.revision for r in records if r.ttl_s == UNKNOWN_S}
        left: dict[bytes, float] = {}
        gate = asyncio.Semaphore(ASK_AT_ONCE)

        async def ask(key: bytes, lease_id: int) -> None:
            async with gate:
                answer = await self.client.call(rpc.LeaseTimeToLiveRequest(ID=lease_id), rpc.LeaseTimeToLiveResponse)
                left[key] = max(0.0, answer.TTL)

        if unknown:
            async for page in self.pages(self.layout.leases, keys_only=True):
                await asyncio.gather(*(ask(kv.key, kv.lease) for kv in page.kvs if kv.lease and unknown.get(kv.key) == kv.mod_revision))
        return tuple(msgspec.structs.replace(r, ttl_s=left.get(self.layout.lease_key(r.key), r.ttl_s)) for r in records)

    # ---- writing ---------------------------------------------------------------------------------------------------

    async def create(self, lease: Lease, owner: Owner | None, ttl_s: float | None = TTL_S) -> LeaseRecord:
        answer = await self.write(lease, owner, ttl_s, absent(self.layout.lease_key(lease.key)))
        if answer is None:
            raise Conflict(f"lease {lease} exists already")
        return LeaseRecord(lease, owner, answer, answer, ttl_s)

    async def update(self, record: LeaseRecord, lease: Lease, owner: Owner, ttl_s: float = TTL_S) -> LeaseRecord:
        if lease.key != record.key:
            raise ValueError(f"an update of lease {record.lease} cannot make it {lease}")
        left_s = None if record.ttl_s is None else ttl_s
        answer = await self.write(lease, owner, left_s, unchanged(self.layout.lease_key(record.key), record.revision))
        if answer is None:
            raise Conflict(f"lease {record.lease} was changed by somebody else, has ended, or was released")
        return LeaseRecord(lease, owner, answer, record.created, left_s)

    async def write(self, lease: Lease, owner: Owner | None, ttl_s: float | None, compare: rpc.Compare) -> int | None:
        """Lease and owner in one transaction, on a new etcd lease. Its revision, or None where the comparison fails."""
        key, owner_key = self.layout.lease_key(lease.key), self.layout.owner_key(lease.key)
        value = format_lease(lease).encode()
        granted = 0
        if ttl_s is not None:
            granted = (await self.client.call(rpc.LeaseGrantRequest(TTL=math.ceil(ttl_s)), rpc.LeaseGrantResponse)).ID
        puts = [put(key, value, granted)]
        puts.append(put(owner_key, format_owner(owner), granted) if owner is not None else delete(owner_key))
        before = rpc.RequestOp(request_range=rpc.RangeRequest(key=key))
        answer = await self.client.call(rpc.TxnRequest(compare=[compare], success=[before, *puts], failure=[before]), rpc.TxnResponse)
        found = answer.responses[0].response_range.kvs
        if answer.succeeded:
            if found:
                await self.take_back(found[0].lease)
            return answer.header.revision
        if found and granted and found[0].lease == granted:
            return found[0].mod_revision  # ours: the answer to an earlier try was lost, and the next member knew it done
        await self.take_back(granted)
        return None

    async def delete(self, record: LeaseRecord) -> None:
        key = self.layout.lease_key(record.key)
        before = rpc.RequestOp(request_range=rpc.RangeRequest(key=key))
        success = [before, delete(key), delete(self.layout.owner_key(record.key))]
        answer = await self.client.call(rpc.TxnRequest(compare=[unchanged(key, record.revision)], success=success, failure=[before]), rpc.TxnResponse)
        found = answer.responses[0].response_range.kvs
        if answer.succeeded:
            await self.take_back(found[0].lease)
        elif found:
            raise Conflict(f"lease {record.lease} was changed by somebody else")

    async def take_back(self, lease_id: int) -> None:
        """End an etcd lease on which nothing hangs any more; whatever a stranger hung on it would go with it."""
        if not lease_id:
            return
        with contextlib.suppress(StoreError):  # it ends by itself, a day later
            answer = await self.client.call(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True), rpc.LeaseTimeToLiveResponse)
            if answer.TTL > 0 and not answer.keys:
                await self.client.call(rpc.LeaseRevokeRequest(ID=lease_id), rpc.LeaseRevokeResponse)

    # ---- watching --------------------------------------------------------------------------------------------------

    async def watch(self, revision: int) -> AsyncIterator[tuple[Event, ...]]:
        batch = Batch(self.layout)
        async with contextlib.aclosing(self.client.watch(self.layout.watched, revision + 1)) as answers:
            async for answer in answers:
                if answer.created:
                    batch = Batch(self.layout)  # another member goes on: what a broken one had begun to say comes again
                batch.add(answer.events)
                if any(event.kv.key == self.layout.config for event in answer.events):
                    yield ()
                if not answer.fragment and (events := batch.take()):
                    yield events

    async def close(self) -> None:
        await self.client.close()


class Batch:
    """Changes that belong together, until their last part has come; of each only what it says, since hostile values are large."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.owners: dict[tuple[bytes, int], Owner | None] = {}
        self.found: list[tuple[bytes, Event]] = []

    def add(self, events: Iterable[rpc.Event]) -> None:
        for event in events:
            kv, gone = event.kv, event.type == rpc.Event.DELETE
            if (name := self.layout.lease_name(kv.key)) is not None:
                read = None if gone else self.layout.read(kv)
                if isinstance(read, Lease):
                    self.found.append((name, Event(kv.mod_revision, read.key, record(read, kv, None))))
                else:
                    self.found.append((name, Event(kv.mod_revision, read.key if read else printable(name), junk=read)))
            elif not gone and (name := self.layout.owner_name(kv.key)) is not None:
                self.owners[name, kv.mod_revision] = parse_owner(kv.value)

    def take(self) -> tuple[Event, ...]:
        """All of them, each lease with the owner that the same transaction wrote."""
        events = tuple(self.owned(event, self.owners.get((name, event.revision))) for name, event in self.found)
        self.owners.clear()
        self.found.clear()
        return events

    def owned(self, event: Event, owner: Owner | None) -> Event:
        if owner is not None and event.junk is not None:
            return msgspec.structs.replace(event, junk=msgspec.structs.replace(event.junk, owner=owner))
        if owner is None or event.record is None:
            return event
        r = event.record
        return Event(event.revision, event.key, LeaseRecord(r.lease, owner, r.revision, r.created, r.ttl_s))


# ---- parts of transactions --------------------------------------------------------------------------------------------


def absent(key: bytes) -> rpc.Compare:
    return rpc.Compare(target=rpc.Compare.CREATE, key=key, create_revision=0)


def unchanged(key: bytes, revision: int) -> rpc.Compare:
    return rpc.Compare(target=rpc.Compare.MOD, key=key, mod_revision=revision)


def put(key: bytes, value: bytes, lease_id: int) -> rpc.RequestOp:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease_id))


def delete(key: bytes) -> rpc.RequestOp:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
