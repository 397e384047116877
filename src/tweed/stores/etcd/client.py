"""Calls to an etcd cluster: each with a deadline, at the member that answered last, else at the others, each once. Nothing here sleeps.

A call that changes something may have happened although its answer was lost, and then meets itself at the next member: whoever calls
compares, so it cannot happen twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from tweed.errors import Compacted, StoreError, StoreUnavailable
from tweed.stores.etcd import rpc_pb2 as rpc
from tweed.stores.etcd.endpoints import Endpoint, Files, open_channel
from tweed.stores.etcd.layout import Span

Answer = TypeVar("Answer", bound=Message)

# How long one member may take to answer. etcd itself gives up after 5 to 7 s, and is then without a leader.
ATTEMPT_S = 3.0
# A watch that lasted so long breaks because its member went away, and is at once taken to another one.
LASTED_S = 5.0
REASON_MAX = 200
# gRPC wraps the system's words in its own: "UNKNOWN: ipv4:192.0.2.1:2379: Failed to connect to remote host: Connection refused"
WRAPPED = re.compile(r"(?:[A-Z_]+: )?(?:ipv[46]:\S+: )?(?:Failed to connect to remote host: )?(?:connect: )?(.+)", re.DOTALL)
# Refuse at once while there is no leader, instead of waiting for one or, with a watch, for ever.
REQUIRE_LEADER = ("hasleader", "true")
WATCH = "/etcdserverpb.Watch/Watch"

KV, LEASE, AUTH = "/etcdserverpb.KV/", "/etcdserverpb.Lease/", "/etcdserverpb.Auth/"
CALLS: dict[type[Message], tuple[str, type[Message]]] = {
    rpc.RangeRequest: (f"{KV}Range", rpc.RangeResponse),
    rpc.TxnRequest: (f"{KV}Txn", rpc.TxnResponse),
    rpc.LeaseGrantRequest: (f"{LEASE}LeaseGrant", rpc.LeaseGrantResponse),
    rpc.LeaseRevokeRequest: (f"{LEASE}LeaseRevoke", rpc.LeaseRevokeResponse),
    rpc.LeaseTimeToLiveRequest: (f"{LEASE}LeaseTimeToLive", rpc.LeaseTimeToLiveResponse),
    rpc.AuthenticateRequest: (f"{AUTH}Authenticate", rpc.AuthenticateResponse),
}


class TooLarge(StoreError):
    """The answer has more bytes than are accepted: ask for less."""


class TokenRefused(Exception):
    """The member does not know our token (any more): authenticate again."""


class MemberFailed(Exception):
    """This member cannot answer now; another may."""


class Client:
    def __init__(self, endpoints: tuple[Endpoint, ...], files: Files, username: str = "", password: str = "") -> None:
        # Not all nodes of a cluster begin with the first.
        self.endpoints = random.sample(endpoints, len(endpoints))
        self.files = files
        self.username = username
        self.password = password
        self.token = ""
        self.channels: dict[Endpoint, grpc.aio.Channel] = {}
        self.endings: set[asyncio.Task[None]] = set()
        self.closed = False

    async def call(self, request: Message, answer: type[Answer]) -> Answer:
        """The answer of the first member that gives one. Raises StoreUnavailable, Compacted, TooLarge."""
        failures = []
        for endpoint in self.by_turns():
            try:
                return await self.authorized(endpoint, request, answer)
            except MemberFailed as error:
                failures.append(f"{endpoint}: {error}")
        raise away(failures)

    def by_turns(self) -> Iterator[Endpoint]:
        """Every member once, first the one that answered last. Going on means that it has failed."""
        for endpoint in tuple(self.endpoints):
            if self.closed:
                raise StoreUnavailable("etcd: closed")
            yield endpoint
            self.pass_over(endpoint)

    def pass_over(self, endpoint: Endpoint) -> None:
        """Another member is asked first from now on."""
        if self.endpoints[0] == endpoint:
            self.endpoints.append(self.endpoints.pop(0))

    async def authorized(self, endpoint: Endpoint, request: Message, answer: type[Answer]) -> Answer:
        """As `attempt`, with a new token where there is none or it is refused."""
        try:
            return await self.attempt(endpoint, request, answer, await self.metadata(endpoint))
        except TokenRefused:
            self.token = ""
        try:
            return await self.attempt(endpoint, request, answer, await self.metadata(endpoint))
        except TokenRefused as error:
            self.token = ""
            raise MemberFailed(str(error)) from None

    async def metadata(self, endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
        if not self.username:
            return (REQUIRE_LEADER,)
        if not self.token:
            try:
                request = rpc.AuthenticateRequest(name=self.username, password=self.password)
                self.token = (await self.attempt(endpoint, request, rpc.AuthenticateResponse, (REQUIRE_LEADER,))).token
            except AuthenticationOff:
                return (REQUIRE_LEADER,)
        return (REQUIRE_LEADER, ("token", self.token))

    async def attempt(self, endpoint: Endpoint, request: Message, answer: type[Answer], metadata: tuple[tuple[str, str], ...]) -> Answer:
        path, kind = CALLS[type(request)]
        channel = self.channels.get(endpoint)
        if channel is None:
            channel = self.channels[endpoint] = open_channel(endpoint, self.files)
        method: Any = channel.unary_unary(path, request_serializer=type(request).SerializeToString, response_deserializer=kind.FromString)
        try:
            found = await method(request, timeout=ATTEMPT_S, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE and not of_etcd(error):
                self.forget(endpoint)
            raise translated(error) from None
        assert isinstance(found, answer)
        return found

    def forget(self, endpoint: Endpoint) -> None:
        """Connect anew next time, with the certificates that there are then. Other calls on the channel may end first."""
        if (channel := self.channels.pop(endpoint, None)) is not None:
            ending = asyncio.create_task(channel.close(ATTEMPT_S))
            self.endings.add(ending)
            ending.add_done_callback(self.endings.discard)

    # ---- watching --------------------------------------------------------------------------------------------------

    async def watch(self, span: Span, revision: int) -> AsyncGenerator[rpc.WatchResponse, None]:
        """All changes of these keys from `revision` on, without gaps: answers as etcd sends them, `created` first, fragments apart.

        When a member goes away, the next one goes on. Raises StoreUnavailable when all have failed, or one right after the other.
        Raises Compacted where the changes are no longer kept, or the member is of another cluster than the one before, or behind it.
        """
        cluster = 0
        while True:
            failures = []
            for endpoint in self.by_turns():
                began = time.monotonic()
                try:
                    async for answer in self.stream(endpoint, span, revision):
                        if answer.created and (answer.header.revision < revision - 1 or answer.header.cluster_id != (cluster or answer.header.cluster_id)):
                            raise Compacted(f"{endpoint} does not know revision {revision - 1}: it was restored from a backup, or is of another cluster")
                        cluster = answer.header.cluster_id
                        yield answer
                        if answer.events and not answer.fragment:
                            revision = answer.events[-1].kv.mod_revision + 1
                        elif not answer.created and not answer.fragment:
                            revision = max(revision, answer.header.revision + 1)  # a notice of progress
                except MemberFailed as error:
                    failures.append(f"{endpoint}: {error}")
                except TokenRefused as error:
                    self.token = ""
                    failures.append(f"{endpoint}: {error}")
                if time.monotonic() - began > LASTED_S:
                    self.pass_over(endpoint)
                    break
            else:
                raise away(failures)

    async def stream(self, endpoint: Endpoint, span: Span, revision: int) -> AsyncGenerator[rpc.WatchResponse, None]:
        """The answers of one member, on a connection of its own. Raises MemberFailed when they end, however that comes."""
        metadata = await self.metadata(endpoint)
        async with contextlib.AsyncExitStack() as stack:
            channel = open_channel(endpoint, self.files)
            stack.push_async_callback(channel.close)
            method: Any = channel.stream_stream(
                WATCH, request_serializer=rpc.WatchRequest.SerializeToString, response_deserializer=rpc.WatchResponse.FromString
            )
            call = method(metadata=metadata)
            stack.callback(call.cancel)
            create = rpc.WatchCreateRequest(key=span.start, range_end=span.end, start_revision=revision, progress_notify=True, fragment=True)
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    await call.write(rpc.WatchRequest(create_request=create))
                    answer = await call.read()
                while answer is not grpc.aio.EOF:
                    if answer.compact_revision:
                        raise Compacted(f"{endpoint}: changes since revision {revision - 1} are no longer kept (oldest {answer.compact_revision})")
                    if answer.canceled:
                        raise refused(answer.cancel_reason) or MemberFailed(answer.cancel_reason or "it cancelled the watch")
                    yield answer
                    answer = await call.read()
            except grpc.aio.AioRpcError as error:
                raise translated(error) from None
            except TimeoutError:
                raise MemberFailed(f"no answer within {ATTEMPT_S:g} s") from None
        raise MemberFailed("it ended the watch")

    async def close(self) -> None:
        self.closed = True
        for channel in self.channels.values():
            await channel.close()
        self.channels.clear()
        if self.endings:
            await asyncio.wait(self.endings)


# ---- what members answer instead ------------------------------------------------------------------------------------


class AuthenticationOff(Exception):
    """A user was given, but the cluster asks nobody who they are."""


def of_etcd(error: grpc.aio.AioRpcError) -> bool:
    """Whether etcd says so, and not the connection to it."""
    return (error.details() or "").startswith("etcdserver:")


def translated(error: grpc.aio.AioRpcError) -> Exception:
    """A gRPC error as ours. What is wrong with one member only is MemberFailed; what every member would say is StoreUnavailable."""
    details, code = error.details() or "", error.code()
    if (found := refused(details)) is not None:
        return found
    if "required revision has been compacted" in details:
        return Compacted(f"etcd: {details}")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and not of_etcd(error):
        return TooLarge(f"etcd: {details}")
    if "database space exceeded" in details:
        return StoreUnavailable("etcd: its database is full: compact and defragment it (etcdctl compact, defrag, alarm disarm), or raise --quota-backend-bytes")
    return MemberFailed(reason(code, details))


def refused(details: str) -> Exception | None:
    """What etcd says about who we are, None for anything else. Never holds the password."""
    if "authentication is not enabled" in details:
        return AuthenticationOff()
    if "invalid auth token" in details or "auth store is old" in details:
        return TokenRefused(details)
    if "user name is empty" in details:
        return StoreUnavailable("etcd asks for a user: give --etcd-username, and the password in TWEED_ETCD_PASSWORD")
    if "authentication failed" in details:
        return StoreUnavailable("etcd refuses --etcd-username with the password in TWEED_ETCD_PASSWORD (or --etcd-password)")
    if "permission denied" in details:
        who = "this node's user (--etcd-username, else the name in its certificate)"
        return StoreUnavailable(f"etcd: permission denied: the role of {who} needs readwrite on all keys below --etcd-prefix")
    return None


def reason(code: grpc.StatusCode, details: str) -> str:
    """Why a member failed, in one short line that stays the same while the reason does."""
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {ATTEMPT_S:g} s"
    text = details.removeprefix("etcdserver: ").rpartition("last error: ")[2]
    if (wrapped := WRAPPED.match(text)) is not None:
        text = wrapped[1]
    line = "".join(c if c.isprintable() else " " for c in text)[:REASON_MAX]
    return line or code.name


def away(failures: list[str]) -> StoreUnavailable:
    return StoreUnavailable(f"etcd does not answer ({'; '.join(sorted(failures))}): start it, or correct --etcd-endpoints")
