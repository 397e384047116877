"""Who holds which subnet. One contract (`LeaseStore`), one test suite (`tests/contract`), any number of stores.

sqlite:///PATH   embedded: every agent on one kernel, no server
etcd             the cluster's etcd v3 (--etcd-endpoints and its kin), beside flanneld or without
kube             annotations of Kubernetes' Node objects, as flannel's kube mode
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from tweed.addr import Prefix
from tweed.config import Settings
from tweed.errors import StoreError, UsageError
from tweed.model import Junk, Lease, LeaseRecord, Owner

# flannel's lease time, in seconds.
TTL_S = 86400.0
# So many keys that are no leases are named; whoever fills a store with rubbish does not fill the memory of all nodes.
JUNK_MAX = 1000
MORE_JUNK = "(more)"


class Snapshot(msgspec.Struct, frozen=True):
    """All leases at one revision; `junk` is what could not be read as one, by key: at most JUNK_MAX of them, and one that counts the rest."""

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


def more_junk(count: int) -> Junk:
    """What stands for those that are not named."""
    return Junk(MORE_JUNK, f"{count} more keys are no leases; the first {JUNK_MAX} are named")


class Given(msgspec.Struct, frozen=True):
    """What a store prescribes to one node: its subnets; the addresses to publish instead of its own, and those to use as its own, where it says so.

    `record` is the lease that the node has now, if any.
    """

    subnet: Prefix | None = None
    subnet6: Prefix | None = None
    public_ip: bytes | None = None
    public_ip6: bytes | None = None
    node_ip: bytes | None = None
    node_ip6: bytes | None = None
    record: LeaseRecord | None = None

    def like(self, other: Given) -> bool:
        """The same, the lease left aside."""
        return msgspec.structs.replace(self, record=None) == msgspec.structs.replace(other, record=None)


class LeaseStore(Protocol):
    """What an agent needs of a store. Any call may raise StoreUnavailable; none retries or sleeps by itself.

    `warnings`: one line for each thing that is not as it should be now, though the store works.
    """

    warnings: list[str]

    async def given(self, node: str) -> Given | None:
        """What this node, and no other from now on, has to take. None where nodes choose among the free subnets themselves.

        Raises StoreUnavailable with the reason while nothing is given yet.
        """

    async def announce(self) -> None:
        """Tell whoever waits for it that the network of this node works. Asked often; costs nothing when it is told."""

    async def node_of_pod(self, namespace: str, name: str) -> str:
        """The name of the node that a pod runs on, for agents that only know their pod."""

    async def config(self) -> str | None:
        """The network configuration (flannel's JSON text), None while there is none."""

    async def set_config(self, text: str, *, replace: bool = True) -> bool:
        """Write the configuration. With replace=False only into an empty store. True when it was written."""

    async def snapshot(self) -> Snapshot:
        """Every lease that has not expired."""

    async def timed(self, records: Sequence[LeaseRecord]) -> tuple[LeaseRecord, ...]:
        """The same records, each with the time that it has left, for stores that say so only when they are asked for one lease."""

    async def create(self, lease: Lease, owner: Owner | None, ttl_s: float | None = TTL_S) -> LeaseRecord:
        """Claim `lease.key` if it is absent, else Conflict. `ttl_s` None makes a reservation, which never expires."""

    async def update(self, record: LeaseRecord, lease: Lease, owner: Owner, ttl_s: float = TTL_S) -> LeaseRecord:
        """Replace and renew, if the stored record still has `record.revision`, else Conflict (also when it is gone).

        `lease.key` must equal `record.key`. A reservation stays without a TTL.
        """

    async def delete(self, record: LeaseRecord) -> None:
        """Remove, if the stored record still has `record.revision`, else Conflict. Already gone: nothing happens."""

    def watch(self, revision: int) -> AsyncIterator[tuple[Event, ...]]:
        """Batches of all changes after `revision`, without gaps, in order. Raises Compacted when they are no longer kept.

        An empty batch, from stores that hear of it: the network configuration may be another one now.
        """

    async def close(self) -> None:
        """Let go of files, connections and watches."""


class NodesChoose:
    """What is the same for all stores whose nodes choose their subnets themselves, and know their names."""

    async def given(self, node: str) -> Given | None:
        return None

    async def announce(self) -> None:
        return None

    async def node_of_pod(self, namespace: str, name: str) -> str:
        raise StoreError(f"pod {namespace}/{name}: only Kubernetes knows pods; give --node-name")


def open_store(settings: Settings) -> LeaseStore:
    """The store that `--store` and the flags of its kind name. Raises UsageError for an unknown form, StoreUnavailable where it cannot be opened."""
    scheme, _, path = settings.store.partition("://")
    if scheme == "sqlite" and path.startswith("/"):
        from tweed.stores.sqlite import SqliteStore

        return SqliteStore(path)
    if settings.store == "etcd":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its library writes to stderr what we report ourselves
        try:
            from tweed.stores.etcd.store import EtcdStore
        except ImportError as error:
            raise UsageError(f"--store etcd: {error}; install it with pip install 'tweed[etcd]'") from None
        return EtcdStore(settings)
    if settings.store == "kube":
        from tweed.stores.kube.store import KubeStore

        return KubeStore.of(settings)
    raise UsageError(f"--store {settings.store}: not a store that tweed knows; use etcd, kube, or sqlite:///PATH with an absolute path")


async def named(settings: Settings, store: LeaseStore) -> Settings:
    """The settings with this node's name, where only the store can tell it: that of the pod. Raises StoreError."""
    if settings.pod is None:
        return settings
    return msgspec.structs.replace(settings, node_name=await store.node_of_pod(*settings.pod), pod=None)
