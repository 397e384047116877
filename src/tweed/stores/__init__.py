"""Who holds which subnet. One contract (`LeaseStore`), one test suite (`tests/contract`), any number of stores.

sqlite:///PATH   embedded: every agent on one kernel, no server
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from tweed.config import Settings
from tweed.errors import UsageError
from tweed.model import Junk, Lease, LeaseRecord, Owner

# flannel's lease time, in seconds.
TTL_S = 86400.0


class Snapshot(msgspec.Struct, frozen=True):
    """All leases at one revision; `junk` is what could not be read as one, by key."""

    revision: int
    records: tuple[LeaseRecord, ...]
    junk: tuple[Junk, ...] = ()


class Event(msgspec.Struct, frozen=True):
    """One change of one key, in the order of revisions.

    `record` None and `junk` None: deleted or expired. `junk` set: it was overwritten with something that is no lease.
    """

    revision: int
    key: str
    record: LeaseRecord | None = None
    junk: Junk | None = None


class LeaseStore(Protocol):
    """What an agent needs of a store. Any call may raise StoreUnavailable; none retries or sleeps by itself.

    `warnings`: one line for each thing that is not as it should be now, though the store works.
    """

    warnings: list[str]

    async def config(self) -> str | None:
        """The network configuration (flannel's JSON text), None while there is none."""

    async def set_config(self, text: str, *, replace: bool = True) -> bool:
        """Write the configuration. With replace=False only into an empty store. True when it was written."""

    async def snapshot(self) -> Snapshot:
        """Every lease that has not expired."""

    async def create(self, lease: Lease, owner: Owner | None, ttl_s: float | None = TTL_S) -> LeaseRecord:
        """Claim `lease.key` if it is absent, else Conflict. `ttl_s` None makes a reservation, which never expires."""

    async def update(self, record: LeaseRecord, lease: Lease, owner: Owner, ttl_s: float = TTL_S) -> LeaseRecord:
        """Replace and renew, if the stored record still has `record.revision`, else Conflict (also when it is gone).

        `lease.key` must equal `record.key`. A reservation stays without a TTL.
        """

    async def delete(self, record: LeaseRecord) -> None:
        """Remove, if the stored record still has `record.revision`, else Conflict. Already gone: nothing happens."""

    def watch(self, revision: int) -> AsyncIterator[tuple[Event, ...]]:
        """Batches of all changes after `revision`, without gaps, in order. Raises Compacted when they are no longer kept."""

    async def close(self) -> None:
        """Let go of files, connections and watches."""


def open_store(settings: Settings) -> LeaseStore:
    """The store that `--store` and the flags of its kind name. Raises UsageError for an unknown form, StoreUnavailable where it cannot be opened."""
    scheme, _, path = settings.store.partition("://")
    if scheme == "sqlite" and path.startswith("/"):
        from tweed.stores.sqlite import SqliteStore

        return SqliteStore(path)
    raise UsageError(f"--store {settings.store}: not a store that tweed knows; use sqlite:///PATH with an absolute path")
