"""Leases in the annotations of Kubernetes' Node objects, as flannel's kube mode keeps them (`tweed.wire.kubenode` has the format).

A node's subnets are its pod CIDRs, which kube-controller-manager gives; so a lease can be written only for the Node it belongs to, and
it does not end but goes with its Node. kubelet and others write to the same objects all the time. Therefore a change counts only when
the lease itself changed, and compare-and-swap compares the lease: when only the rest of the Node changed, the write is tried again.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from tweed.config import Settings
from tweed.errors import Compacted, Conflict, StoreError, StoreUnavailable
from tweed.model import Junk, Lease, LeaseRecord, Owner
from tweed.stores import JUNK_MAX, TTL_S, Event, Given, Snapshot, more_junk
from tweed.stores.kube.access import Access, find_access
from tweed.stores.kube.api import STRATEGIC_MERGE, Absent, KubeApi
from tweed.stores.kube.watch import OwnNode, Published, Reader, decode, possible_keys, read, revision_of, same
from tweed.wire import kubenode
from tweed.wire.kubenode import Names, Node

Wanted = tuple[Lease, Owner | None, int]  # what a Node is to publish: the lease, its owner, the revision after which it appeared

NODES = "/api/v1/nodes"
PAGE = 500
# A watch that the server ends by itself costs one request; its end, or a bookmark, shows that it lives.
WATCH_S = 300
BOOKMARK_S = 75.0  # servers send one a minute; of one that sends none, streams are only shorter
SILENCE_S = 15.0  # beyond the server's time
QUICK_S = 1.0  # a watch that ends sooner, without a word, is no watch
TRIES = 10


class ListMeta(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    next: str = msgspec.field(name="continue", default="")


class NodeList(msgspec.Struct):
    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


class PodSpec(msgspec.Struct):
    node_name: str = msgspec.field(name="nodeName", default="")


class Pod(msgspec.Struct):
    spec: PodSpec = msgspec.field(default_factory=PodSpec)


class KubeStore:
    """`LeaseStore` on the API server of `access`. The network configuration is the file `config_path`, as in flannel's kube mode."""

    def __init__(self, access: Access, names: Names, config_path: Path, *, tell_condition: bool = True, watch_s: float = WATCH_S) -> None:
        self.api = KubeApi(access)
        self.names = names
        self.config_path = config_path
        self.tell_condition = tell_condition
        self.watch_s = watch_s
        self.own = OwnNode(names)
        self.warnings = self.own.warnings
        self.published = Published(0)  # at the last snapshot
        self.holders: dict[str, str] = {}  # the Node's name by key, as last heard
        self.watches = 0

    @classmethod
    def of(cls, settings: Settings) -> KubeStore:
        """Raises UsageError for settings that cannot be used."""
        access = find_access(settings.kube_api_url, settings.kubeconfig_file, os.environ)
        names = Names.under(settings.kube_annotation_prefix)
        return cls(access, names, settings.net_config_path, tell_condition=settings.set_node_network_unavailable)

    async def close(self) -> None:
        await self.api.close()

    # ---- configuration -------------------------------------------------------------------------------------------

    async def config(self) -> str | None:
        try:
            return self.config_path.read_text(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable(f"--net-config-path {self.config_path}: {error.strerror}") from None

    async def set_config(self, text: str, *, replace: bool = True) -> bool:
        raise StoreError(f"in Kubernetes the network configuration is the file {self.config_path} of each node: change the ConfigMap that it comes from")

    # ---- this node -----------------------------------------------------------------------------------------------

    async def node_of_pod(self, namespace: str, name: str) -> str:
        """The Node that a pod runs on."""
        body = await self.api.ask("GET", f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}")
        if not (found := decode(body, Pod).spec.node_name):
            raise StoreError(f"node name not present in pod spec of {namespace}/{name}")
        return found

    async def given(self, node: str) -> Given:
        """What the watch last saw of the Node, while there is a watch. Raises StoreUnavailable with the reason to wait for."""
        self.own.name = node
        if self.own.now is None or not self.watches:
            try:
                body = await self.api.ask("GET", path(node))
                self.own.see(decode(body, Node), body, node)
            except Absent:
                self.own.now = None
                raise StoreUnavailable(f"Node {node} does not exist: kubelet makes it; if its name is another, say so with NODE_NAME or --node-name") from None
            except StoreUnavailable:
                if self.own.now is None:
                    raise
        own = self.own.now
        if own is None or not (own.given.subnet or own.given.subnet6):
            self.own.now = None  # ask again
            raise StoreUnavailable(
                f'node "{node}" pod cidr not assigned: waiting for kube-controller-manager, which gives pod CIDRs '
                "when it runs with --allocate-node-cidrs=true and --cluster-cidr, and has some left"
            )
        return own.given

    async def announce(self) -> None:
        node = self.own.name
        if not self.tell_condition or not node or (self.own.now is not None and self.own.now.available):
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        body = await self.api.ask("PATCH", f"{path(node)}/status", body=kubenode.condition_patch(now), kind=STRATEGIC_MERGE)
        self.own.see(decode(body, Node), body, node)

    # ---- reading -------------------------------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        for _ in range(TRIES):
            try:
                return await self._list()
            except Compacted:
                continue  # the pages that were left are no longer kept: a cluster that changes fast, or a slow reader
        raise StoreUnavailable(f"{self.api.access.server}: the list of nodes ran out of time {TRIES} times")

    async def _list(self) -> Snapshot:
        found: list[tuple[str, LeaseRecord | Junk | None]] = []
        strange: list[Junk] = []
        seen = False
        query = {"limit": str(PAGE)}
        while True:
            page = decode(await self.api.ask("GET", NODES, query), NodeList)
            for raw in page.items or ():
                try:
                    node = decode(raw, Node)
                    name = node.metadata.name
                    found.append((name, read(node, self.names)))
                    if name == self.own.name:
                        self.own.see(node, raw, name)
                        seen = True
                except StoreError as error:
                    strange.append(Junk("an object that is no Node", str(error)))
            if not page.metadata.next:
                break
            query = {"limit": str(PAGE), "continue": page.metadata.next}
        if not seen:
            self.own.now = None
        published = Published(revision_of(page.metadata.resource_version))
        # The elder first, so that it is the one that keeps a contested subnet, and leases before what is none.
        for name, what in sorted(found, key=lambda f: (f[1].created if isinstance(f[1], LeaseRecord) else math.inf, f[0])):
            published.see(name, what, self.published.by_node.get(name))
        self.published = published
        self.holders.clear()
        self.holders.update(published.holders)
        known = published.by_node.values()
        records = sorted((r for r in known if isinstance(r, LeaseRecord)), key=lambda r: r.key)
        junk = [*strange, *(j for j in known if isinstance(j, Junk))]
        more = [more_junk(len(junk) - JUNK_MAX)] if len(junk) > JUNK_MAX else []
        return Snapshot(published.revision, tuple(records), (*junk[:JUNK_MAX], *more))

    # ---- watching ------------------------------------------------------------------------------------------------

    async def watch(self, revision: int) -> AsyncIterator[tuple[Event, ...]]:
        self.watches += 1
        try:
            async with contextlib.aclosing(self._streams(revision)) as batches:
                async for events in batches:
                    yield events
        finally:
            self.watches -= 1

    async def _streams(self, revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
        """Streams are followed one after the other, each from where the last one ended: the server ends every one after a while."""
        now = self.published.copy() if self.published.revision == revision else Published(revision)
        reader = Reader(now, self.names, self.own, self.holders)
        while True:
            opened, start = time.monotonic(), reader.now.revision
            seconds = self.watch_s * random.uniform(0.8, 1.2)  # so that not all nodes come back at once
            query = {"watch": "1", "resourceVersion": str(start), "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, round(seconds)))}
            error = None
            try:
                async with contextlib.aclosing(self.api.lines(NODES, query, min(seconds, BOOKMARK_S) + SILENCE_S)) as stream:
                    async for lines in stream:
                        events, end = reader.read(lines)
                        if events:
                            yield events
                        if end is not None:
                            raise end
            except StoreUnavailable as broken:
                error = broken
            # One that lived for a while is followed by the next. One that did not would be by another that does not, and so on.
            if reader.now.revision == start and time.monotonic() - opened < QUICK_S:
                raise error or StoreUnavailable(f"{self.api.access.server}: ends every watch at once")

    # ---- writing -------------------------------------------------------------------------------------------------

    def node_name(self, key: str, owner: Owner | None) -> str:
        """The Node whose lease `key` is. Raises Conflict for one that is not ours to write."""
        holder = self.holders.get(key) or (owner.node if owner is not None else "")
        if not holder:
            raise StoreError("in Kubernetes a node's subnets are the pod CIDRs of its Node, which kube-controller-manager gives: nothing can be reserved")
        if self.own.name and holder != self.own.name:
            raise Conflict(f"lease {key} belongs to node {holder}")
        return holder

    async def timed(self, records: Sequence[LeaseRecord]) -> tuple[LeaseRecord, ...]:
        return tuple(records)

    async def create(self, lease: Lease, owner: Owner | None, ttl_s: float | None = TTL_S) -> LeaseRecord:
        name = self.node_name(lease.key, owner)

        def change(node: Node) -> Wanted:
            now = read(node, self.names)
            if lease.key not in possible_keys(node):
                raise Conflict(f"node {name} has the pod CIDR {', '.join(node.spec.pod_cidrs or ()) or node.spec.pod_cidr or 'none'}, not {lease}")
            # A node may put right what somebody made of its own lease, and give it another family.
            if now is not None and not (owner is not None and owner.node == name and (isinstance(now, Junk) or now.key != lease.key)):
                raise Conflict(f"lease {lease} exists already")
            return lease, owner, node.revision

        return await self._write(name, change, lease)

    async def update(self, record: LeaseRecord, lease: Lease, owner: Owner, ttl_s: float = TTL_S) -> LeaseRecord:
        if lease.key != record.key:
            raise ValueError(f"an update of lease {record.lease} cannot make it {lease}")

        def change(node: Node) -> Wanted:
            self._check(node, record)
            return lease, owner, record.created

        return await self._write(self.node_name(record.key, owner), change, lease)

    async def delete(self, record: LeaseRecord) -> None:
        name = self.node_name(record.key, record.owner)

        def change(node: Node) -> None:
            if read(node, self.names) is not None:
                self._check(node, record)

        with contextlib.suppress(Absent):
            await self._patch(name, change, record.lease)

    def _check(self, node: Node, record: LeaseRecord) -> None:
        """Raises Conflict when the Node no longer publishes that very lease."""
        now = read(node, self.names)
        if not isinstance(now, LeaseRecord) or not same(now, record):
            raise Conflict(f"lease {record.lease} was changed by somebody else, or released")

    async def _write(self, name: str, change: Callable[[Node], Wanted], lease: Lease) -> LeaseRecord:
        try:
            written = await self._patch(name, change, lease)
        except Absent:
            raise Conflict(f"lease {lease}: Node {name} does not exist") from None
        if not isinstance(written, LeaseRecord):
            raise StoreError(f"{self.api.access.server}: did not keep lease {lease} in the annotations of Node {name}")
        self.holders[lease.key] = name
        return written

    async def _patch(self, name: str, change: Callable[[Node], Wanted | None], lease: Lease) -> LeaseRecord | Junk | None:
        """Read the Node, decide, and patch it as it was read; again when it was written meanwhile. `change` None: remove. Raises Absent.

        The status subresource, as flannel: it takes annotations too, and is all that the role of a node's agent allows to change.
        """
        for _ in range(TRIES):
            node = decode(await self.api.ask("GET", path(name)), Node)
            wanted = change(node)
            if wanted is None and read(node, self.names) is None:
                return None
            fields = kubenode.lease_annotations(*wanted, self.names) if wanted else dict.fromkeys(self.names.of_lease)
            patch = kubenode.annotations_patch(fields, node.metadata.resource_version)
            with contextlib.suppress(Conflict):
                return read(decode(await self.api.ask("PATCH", f"{path(name)}/status", body=patch, kind=STRATEGIC_MERGE), Node), self.names)
        raise StoreUnavailable(f"{self.api.access.server}: Node {name} changed {TRIES} times while lease {lease} was to be written")


def path(node: str) -> str:
    return f"{NODES}/{quote(node, safe='')}"
