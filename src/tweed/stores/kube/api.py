"""Requests to a Kubernetes API server: one answer, or a stream of lines. Its refusals become the errors of stores."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from tweed import __version__
from tweed.errors import Compacted, Conflict, StoreError, StoreUnavailable
from tweed.stores.kube.access import Access

REQUEST_S = 30.0
CONNECT_S = 10.0
# A Node has some ten kilobytes, of which we keep a few hundred bytes; etcd takes no object above 1.5 MiB.
LINE_MAX = 4 << 20
RETRY_AFTER_MAX_S = 60.0
SAID_MAX = 300  # characters

STRATEGIC_MERGE = "application/strategic-merge-patch+json"


class Absent(StoreError):
    """404: there is no such object."""


class Refusal(msgspec.Struct):
    """What of the server's Status object says why."""

    message: str = ""
    code: int = 0


class KubeApi:
    """One connection pool. Everything raises StoreUnavailable where the server cannot be reached or is not able, StoreError where it refuses."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.session: aiohttp.ClientSession | None = None
        self.closed = False
        self.not_before = 0.0  # monotonic; the server asked to be left alone until then

    async def close(self) -> None:
        self.closed = True
        if self.session is not None:
            await self.session.close()

    async def ask(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None, kind: str = "application/json") -> bytes:
        """The answer's body."""
        data = None if body is None else msgspec.json.encode(body)
        async with self._open(method, path, query or {}, data, kind, aiohttp.ClientTimeout(total=REQUEST_S, sock_connect=CONNECT_S)) as response:
            return await response.read()

    async def lines(self, path: str, query: Mapping[str, str], silence_s: float) -> AsyncGenerator[list[bytes], None]:
        """Whole lines of an endless answer, as many at once as have come. StoreUnavailable when nothing comes for `silence_s`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        async with self._open("GET", path, query, None, "", timeout) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LINE_MAX:
                    raise StoreError(f"{self.access.server}: one object has more than {LINE_MAX >> 20} MiB")
                if lines := [line for line in lines if line.strip()]:
                    yield lines

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, query: Mapping[str, str], body: bytes | None, kind: str, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer's beginning, checked. A token that the server no longer takes is read again once."""
        server = self.access.server
        if self.closed:
            raise StoreUnavailable(f"{server}: closed")
        if (left := self.not_before - time.monotonic()) > 0:
            raise StoreUnavailable(f"{server}: is overloaded and asked to be left alone for {left:.0f} s more")
        try:
            for again in (True, False):
                headers = self.access.headers() | ({"Content-Type": kind} if body is not None else {})
                async with self._session().request(
                    method, server + path, params=dict(query), data=body, headers=headers, timeout=timeout, allow_redirects=False, **self._tls_name()
                ) as response:
                    if response.status == 401 and again and self.access.token.forget():
                        continue
                    if response.status >= 300:
                        raise self._refusal(response.status, await response.content.read(1 << 16), response.headers.get("Retry-After", ""))
                    yield response
                    return
        except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise StoreUnavailable(f"{server}: {_why(error)}") from None

    def _session(self) -> aiohttp.ClientSession:
        if self.session is None:
            connector = aiohttp.TCPConnector(ssl=self.access.tls if self.access.tls is not None else True, limit=4, socket_factory=_socket)
            headers = {"User-Agent": f"tweed/{__version__}", "Accept": "application/json"}
            self.session = aiohttp.ClientSession(connector=connector, headers=headers, read_bufsize=1 << 20, auto_decompress=True)
        return self.session

    def _tls_name(self) -> dict[str, Any]:
        return {"server_hostname": self.access.tls_name} if self.access.tls_name else {}

    def _refusal(self, status: int, body: bytes, retry_after: str) -> StoreError:
        try:
            said = msgspec.json.decode(body, type=Refusal).message
        except msgspec.DecodeError:
            said = ""
        text = f"{self.access.server}: {status} {one_line(said) or 'without a reason'}"
        if retry_after.isdecimal():
            self.not_before = time.monotonic() + min(float(retry_after), RETRY_AFTER_MAX_S)
        match status:
            case 404:
                return Absent(text)
            case 409:
                return Conflict(text)
            case 410:
                return Compacted(text)
            case 401:
                return StoreUnavailable(f"{text}: the token or certificate is not (or no longer) valid")
            case 403:
                return StoreError(f"{text}: see deploy/kubernetes/base/rbac.yaml for what tweed needs")
            case 429 | 500 | 502 | 503 | 504:
                return StoreUnavailable(text)
            case _:
                return StoreError(text)


def one_line(text: str) -> str:
    """What a server says, for a person."""
    return "".join(c if c.isprintable() else " " for c in text[:SAID_MAX])


def _socket(info: tuple[Any, ...]) -> socket.socket:
    """A peer that is gone without a word is noticed within half a minute, also while nothing is sent."""
    made = socket.socket(*info[:3])
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3), (socket.TCP_USER_TIMEOUT, 30_000)):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):  # aiohttp's own are that too
        return "does not answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not to be trusted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        return f"cannot connect: {os.strerror(number) if number > 0 else error.os_error.strerror or error.os_error}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or "the connection broke"
