"""What the contract suite needs of a store: several of them on the same data, time that passes, foreign hands.

A new store joins with a class like SqliteGround and one more entry in GROUNDS.
"""

from __future__ import annotations

import sqlite3

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.model import Endpoint, Lease, Owner
from tweed.stores.clock import Clock
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

    def __init__(self, directory):
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
        """Somebody sets the clock; no time passes. Stores whose server keeps the time have nothing to step."""
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


GROUNDS = {"sqlite": SqliteGround}
