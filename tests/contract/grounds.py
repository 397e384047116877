"""What the contract suite needs of a store: several of them on the same data, time that passes, foreign hands.

A new store joins with a class like SqliteGround and one more entry in GROUNDS.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time

from tests.contract.kube_ground import KUBE_GROUNDS

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.config import Settings
from tweed.model import Endpoint, Lease, Owner
from tweed.stores.clock import Clock
from tweed.stores.etcd import rpc_pb2 as rpc
from tweed.stores.etcd.store import EtcdStore, put
from tweed.stores.sqlite import SqliteStore

ME, OTHER = Owner("me", "boot-1"), Owner("other", "boot-1")
MAC = parse_mac("56:4e:6b:10:49:50")


def lease(subnet="10.244.1.0/24", subnet6=None, public_ip="192.0.2.1", mac=MAC):
    v6 = Endpoint(Prefix.parse(subnet6), parse_address("2001:db8::1"), mac, 1) if subnet6 else None
    return Lease(Endpoint(Prefix.parse(subnet), parse_address(public_ip), mac, 1), v6)


class FakeClock(Clock):
    """Both clocks stand still until a test moves them."""

    def __init__(self):
        self.boot_id, self.boot_s, self.wall_s = "boot-1", 1000.0, 1_700_000_000.0

    def boottime(self):
        return self.boot_s

    def wall(self):
        return self.wall_s


class SqliteGround:
    """Stores on one file, all with one clock that tests move."""

    KEEP = 40
    UNIT_S = 1.0  # what tests count a lease's time in
    HAS_CLOCK = True  # the stores read this machine's clock, which somebody may set
    ENDS = True  # leases end with their time
    SETS_CONFIG = True

    def __init__(self, directory, servers):
        self.path = directory / "store.db"
        self.clock = FakeClock()
        self.stores = []

    async def open(self):
        store = SqliteStore(self.path, self.clock, keep=self.KEEP)
        self.stores.append(store)
        return store

    async def pass_time(self, seconds):
        self.clock.boot_s += seconds
        self.clock.wall_s += seconds

    def step_wall(self, seconds):
        """Somebody sets the clock; no time passes."""
        self.clock.wall_s += seconds

    async def write_raw(self, key, value):
        """What a foreign writer, who knows nothing of formats, does to a key. Both are bytes."""
        connection = sqlite3.connect(self.path)
        with connection:
            (revision,) = connection.execute("UPDATE counter SET revision = revision + 1 RETURNING revision").fetchone()
            row = "(key, value, revision, created) VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?, ?)"
            connection.execute(f"REPLACE INTO lease {row}", (key, value, revision, revision))
            connection.execute(f"INSERT INTO log {row}", (key, value, revision, revision))
        connection.close()

    async def forget_history(self, store):
        """Makes the store drop the changes that led to the present state."""
        for number in range(self.KEEP):
            await store.delete(await store.create(lease(f"10.99.{number}.0/24"), None))

    async def close(self):
        for store in self.stores:
            await store.close()


class EtcdGround:
    """Stores on a real etcd that all tests share, each test below a prefix of its own. Time passes by waiting."""

    ENDS = True
    SETS_CONFIG = True
    UNIT_S = 0.6
    HAS_CLOCK = False
    SOON_S = 1.0  # nothing of what is longer away than that will happen in a test
    numbers = itertools.count()

    def __init__(self, version, servers):
        self.server = servers.etcd(version)
        self.prefix = f"/ground{next(self.numbers)}/network"
        self.stores = []

    async def open(self):
        self.stores.append(EtcdStore(Settings(node_name="n", store="etcd", etcd_endpoints=self.server.endpoints, etcd_prefix=self.prefix)))
        return self.stores[-1]

    async def pass_time(self, seconds):
        """Also until etcd, which looks twice a second, has ended what had to end."""
        until = time.monotonic() + (seconds if seconds < 60 else self.SOON_S)
        before = await self.leases()
        await asyncio.sleep(until - time.monotonic())
        due = {lease for lease, left in before.items() if left <= seconds}
        async with asyncio.timeout(20):
            while due & (await self.leases()).keys():
                await asyncio.sleep(0.05)

    async def leases(self):
        """etcd's leases on which one of our keys hangs, and the seconds that each has left, at least."""
        client = (self.stores or [await self.open()])[0].client
        found = await client.call(rpc.RangeRequest(key=self.prefix.encode(), range_end=self.prefix.encode() + b"0"), rpc.RangeResponse)
        asked = {kv.lease: await client.call(rpc.LeaseTimeToLiveRequest(ID=kv.lease), rpc.LeaseTimeToLiveResponse) for kv in found.kvs if kv.lease}
        return {lease: answer.TTL + 1 for lease, answer in asked.items()}

    async def write_raw(self, key, value):
        request = rpc.TxnRequest(success=[put(f"{self.prefix}/subnets/".encode() + key, value, 0)])
        await self.stores[0].client.call(request, rpc.TxnResponse)

    async def forget_history(self, store):
        for number in range(2):  # what led to the newest revision is kept
            await store.delete(await store.create(lease(f"10.99.{number}.0/24"), None))
        await asyncio.to_thread(self.server.compact)

    async def close(self):
        for store in self.stores:
            await store.close()


GROUNDS = {
    "sqlite": SqliteGround,
    "etcd34": lambda directory, servers: EtcdGround("etcd34", servers),
    **KUBE_GROUNDS,
    "etcd35": lambda directory, servers: EtcdGround("etcd35", servers),
}
