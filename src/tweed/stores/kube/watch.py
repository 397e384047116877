"""What all Nodes publish, as a watch brings it: which of its lines are changes of leases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import msgspec

from tweed.addr import Prefix
from tweed.errors import Compacted, StoreError, StoreUnavailable
from tweed.model import Junk, LeaseRecord, subnet_key
from tweed.stores import Event, Given
from tweed.stores.kube.api import Refusal, one_line
from tweed.wire import kubenode
from tweed.wire.gojson import printable
from tweed.wire.kubenode import Names, Node, NodeStatus

T = TypeVar("T")


class WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


def read(node: Node, names: Names) -> LeaseRecord | Junk | None:
    """What the Node publishes: a lease, something that is none, or nothing. Raises StoreError where it is no Node."""
    revision = revision_of(node.metadata.resource_version)
    try:
        lease = kubenode.read_lease(node, names)
    except ValueError as error:
        keys = possible_keys(node)
        return Junk(keys[0] if keys else f"node {printable(node.metadata.name.encode())}", str(error))
    if lease is None:
        return None
    owner, created = kubenode.read_owner(node, names)
    return LeaseRecord(lease, owner, revision, created, math.inf)


class Own(msgspec.Struct, frozen=True):
    """What an agent has to know of its own Node beside the lease. `available`: somebody has said that its network works."""

    given: Given
    available: bool


class OwnNode:
    """This agent's own Node, once it has asked for it by `name`. `now` None: it is gone, or was not looked at. `warnings`: what cannot be read of it."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.name = ""
        self.now: Own | None = None
        self.warnings: list[str] = []

    def see(self, node: Node | None, body: bytes | msgspec.Raw, name: str) -> bool:
        """A Node as it is now, None: gone. True when it is our own and says something else than before, the lease left aside."""
        if not self.name or name != self.name:
            return False
        before, self.now = self.now, None if node is None else self._read(node, body)
        return before is None or self.now is None or before.available != self.now.available or not before.given.like(self.now.given)

    def _read(self, node: Node, body: bytes | msgspec.Raw) -> Own:
        self.warnings.clear()

        def attempt(what: Callable[[], T], otherwise: T) -> T:
            try:
                return what()
            except ValueError as error:
                self.warnings.append(f"Node {self.name}: {error}")
                return otherwise

        def address(name: str, family: int) -> bytes | None:
            return attempt(lambda: kubenode.read_address(node, name, family), None)

        n = self.names
        nothing: tuple[Prefix | None, Prefix | None] = (None, None)
        subnet, subnet6 = attempt(lambda: kubenode.pod_cidrs(node), nothing)
        found = read(node, n)
        record = found if isinstance(found, LeaseRecord) else None
        given = Given(subnet, subnet6, address(n.overwrite, 4), address(n.overwrite6, 6), address(n.node_ip, 4), address(n.node_ip6, 6), record)
        return Own(given, decode(body, NodeStatus).network_available)


class Published:
    """What every Node publishes at `revision`, by its name, nothing included. `holders`: whose each key is; `rivals`: who else would have had it."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.by_node: dict[str, LeaseRecord | Junk | None] = {}
        self.holders: dict[str, str] = {}
        self.rivals: dict[str, str] = {}

    def copy(self) -> Published:
        made = Published(self.revision)
        made.by_node, made.holders, made.rivals = dict(self.by_node), dict(self.holders), dict(self.rivals)
        return made

    def see(self, name: str, read: LeaseRecord | Junk | None, before: LeaseRecord | Junk | None) -> LeaseRecord | Junk | None:
        """Remember it. A lease that did not change keeps the revision that it had; one whose subnet another Node has is none.

        What is no lease holds no subnet, so that it keeps nobody else from it.
        """
        if read is not None and (holder := self.holders.get(read.key, name)) != name:
            self.rivals[read.key] = name
            read = Junk(f"{read.key} of node {printable(name.encode())}", f"node {printable(holder.encode())} has the same pod CIDR; skipped")
        elif isinstance(read, LeaseRecord):
            self.holders[read.key] = name
            if isinstance(before, LeaseRecord) and same(read, before):
                read = before
        self.by_node[name] = read
        return read

    def forget(self, name: str) -> LeaseRecord | Junk | None:
        known = self.by_node.pop(name, None)
        if known is not None and self.holders.get(known.key) == name:
            del self.holders[known.key]
        return known


class Reader:
    """Turns a watch's lines into events: those that change a lease, or what our own Node says to us."""

    def __init__(self, now: Published, names: Names, own: OwnNode, holders: dict[str, str]) -> None:
        self.now = now
        self.names = names
        self.own = own
        self.holders = holders

    def read(self, lines: list[bytes]) -> tuple[tuple[Event, ...], StoreError | None]:
        """The events, and what came after them instead of another one.

        That is Compacted where the server has forgotten, StoreUnavailable for another error of it, StoreError for what is no answer.
        """
        events: list[Event] = []
        try:
            for line in lines:
                events += self.read_line(line)
        except StoreError as error:
            return tuple(events), error
        return tuple(events), None

    def read_line(self, line: bytes) -> list[Event]:
        told = decode(line, WatchEvent)
        if told.type == "ERROR":
            refusal = decode(told.object, Refusal)
            text = f"the API server ended the watch: {refusal.code} {one_line(refusal.message)}"
            raise Compacted(text) if refusal.code == 410 else StoreUnavailable(text)
        node = decode(told.object, Node)
        self.now.revision = revision_of(node.metadata.resource_version)
        if told.type == "BOOKMARK":
            return []
        gone = told.type == "DELETED"
        events = self.change(node, told.type)
        if self.own.see(None if gone else node, told.object, node.metadata.name) and not events:
            return [self.event(node.metadata.name)]  # nothing of the lease, but the agent wants to know
        return events

    def change(self, node: Node, kind: str) -> list[Event]:
        name = node.metadata.name
        known = kind == "ADDED" or name in self.now.by_node
        before = self.now.forget(name)
        now = None if kind == "DELETED" else self.now.see(name, read(node, self.names), before)
        if before is not None and before.key not in self.now.holders and before.key in self.now.rivals:
            raise Compacted(f"{before.key} is free for node {self.now.rivals[before.key]}, which has the same pod CIDR: reading all nodes again")
        if isinstance(now, LeaseRecord):
            self.holders[now.key] = name
        if known and now == before:
            return []
        # Of a Node that was not heard of before, what it had is not known either.
        earlier = [before.key] if before is not None else [] if known else possible_keys(node)
        events = [Event(self.now.revision, key) for key in earlier if (now is None or key != now.key) and key not in self.now.holders]
        return events if now is None else [*events, self.event(name)]

    def event(self, name: str) -> Event:
        match self.now.by_node.get(name):
            case LeaseRecord() as record:
                return Event(self.now.revision, record.key, record)
            case Junk() as junk:
                return Event(self.now.revision, junk.key, junk=junk)
            case None:
                return Event(self.now.revision, f"node {name}")


def same(a: LeaseRecord, b: LeaseRecord) -> bool:
    """Whether nobody wrote the lease in between."""
    return (a.lease, a.owner, a.created) == (b.lease, b.owner, b.created)


def possible_keys(node: Node) -> list[str]:
    """The keys that a lease of this Node can have: of all its subnets, or of one family."""
    try:
        subnets = kubenode.pod_cidrs(node)
    except ValueError:
        return []
    v4, v6 = subnets
    return list(dict.fromkeys(subnet_key(*pair) for pair in (subnets, (v4, None), (None, v6)) if any(pair)))


def decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """What the server sent. Raises StoreError for what it should not have sent."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"the API server answered with something that is no {kind.__name__}: {one_line(str(error))}") from None


def revision_of(text: str) -> int:
    try:
        return kubenode.revision(text)
    except ValueError as error:
        raise StoreError(f"the API server answered with {error}") from None
