"""A stand-in for the Kubernetes API server, with Nodes (and Pods to ask for their Node) only: `python -m tweed.lab.kubeserver HOST PORT`.

It takes tokens and Nodes as JSON on its standard input, and keeps nothing on disk. For a lab, and for tests, which make it fail: see
`KubeServer`'s last methods.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec
from aiohttp import web

from tweed.lab.kubeobjects import KEEP, Change, Object, Objects, Refused

JSON = "application/json"
PATCHES = {"application/merge-patch+json": False, "application/strategic-merge-patch+json": True}
# What a token may do: (verb, resource), as in a role. `*` for any.
Rules = Collection[tuple[str, str]]
BODY_MAX = 3 << 20
AT_ONCE = 100  # lines of a watch in one write
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class KubeServer:
    """`tokens`: what each bearer token may do; None lets everybody do everything. `bookmark_s`: how often watchers that want bookmarks get one."""

    def __init__(self, *, tokens: Mapping[str, Rules] | None = None, keep: int = KEEP, bookmark_s: float = 60.0) -> None:
        self.objects = Objects(self._tell, keep)
        self.pods: dict[tuple[str, str], str] = {}  # the Node's name, "" before it is scheduled, by namespace and name
        self.tokens = tokens
        self.bookmark_s = bookmark_s
        self.watchers: set[Watcher] = set()
        self.requests: list[tuple[str, str]] = []  # method and path with query
        self.failures: list[tuple[int, int | None]] = []
        self.stalled = False
        self.runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; `url` says where."""
        app = web.Application(client_max_size=BODY_MAX, middlewares=[self._guard])
        nodes = "/api/v1/nodes"
        app.add_routes(
            [
                web.get("/readyz", self._readyz),
                web.get(nodes, self._list),
                web.post(nodes, self._create),
                web.get(nodes + "/{name}", self._get),
                web.put(nodes + "/{name}", self._put),
                web.patch(nodes + "/{name}", self._patch),
                web.delete(nodes + "/{name}", self._delete),
                web.get(nodes + "/{name}/{subresource:status}", self._get),
                web.put(nodes + "/{name}/{subresource:status}", self._put),
                web.patch(nodes + "/{name}/{subresource:status}", self._patch),
                web.get("/api/v1/namespaces/{namespace}/pods/{name}", self._pod),
            ]
        )
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self.runner.setup()
        site = web.TCPSite(self.runner, host, port)
        await site.start()
        address = self.runner.addresses[0]
        self.url = f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}"

    async def close(self) -> None:
        self.drop()
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    # ---- requests ------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """Faults, authentication, authorization; refusals as Status objects."""
        self.requests.append((request.method, request.path_qs))
        if self.failures:
            status, retry_after = self.failures.pop(0)
            headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
            refused = Refused(status, "TooManyRequests" if status == 429 else "InternalError", "told to fail")
            return answer(refused.status(), status, headers)
        try:
            self._authorize(request)
            return await handler(request)
        except Refused as refused:
            return answer(refused.status(), refused.code)
        except web.HTTPException as error:
            return answer(Refused(error.status, error.reason.replace(" ", ""), f"{error.reason}: {request.path}").status(), error.status)

    def _authorize(self, request: web.Request) -> None:
        if self.tokens is None or request.path == "/readyz":
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            raise Refused(401, "Unauthorized", "Unauthorized")
        parts = request.path.removeprefix("/api/v1/").split("/")
        resource = "pods" if parts[0] == "namespaces" else "nodes/status" if request.match_info.get("subresource") else "nodes"
        get = "watch" if wanted(request, "watch") else "get" if "name" in request.match_info else "list"
        verb = VERBS.get(request.method, get)
        if not any(may_verb in ("*", verb) and may in ("*", resource) for may_verb, may in self.tokens[token]):
            name = request.match_info.get("name", "")
            who = "system:serviceaccount:tweed"
            raise Refused(
                403, "Forbidden", f'{resource} "{name}" is forbidden: User "{who}" cannot {verb} resource "{resource}" in API group "" at the cluster scope'
            )

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _pod(self, request: web.Request) -> web.Response:
        key = request.match_info["namespace"], request.match_info["name"]
        if key not in self.pods:
            raise Refused(404, "NotFound", f'pods "{key[1]}" not found')
        node = self.pods[key]
        return answer({"kind": "Pod", "apiVersion": "v1", "metadata": {"namespace": key[0], "name": key[1]}, "spec": {"nodeName": node} if node else {}})

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if "labelSelector" in request.query or "fieldSelector" in request.query:
            raise Refused(400, "BadRequest", "this stand-in has no selectors")
        if wanted(request, "watch"):
            return await self._watch(request)
        page = self.objects.page(number(request, "limit"), request.query.get("continue", ""))
        metadata: Object = {"resourceVersion": str(page.revision)}
        if page.next:
            metadata |= {"continue": page.next, "remainingItemCount": page.remaining}
        return answer({"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": page.items})

    async def _get(self, request: web.Request) -> web.Response:
        return answer(self.objects.get(request.match_info["name"]))

    async def _create(self, request: web.Request) -> web.Response:
        return answer(self.objects.create(await body(request, {JSON})), 201)

    async def _put(self, request: web.Request) -> web.Response:
        given = await body(request, {JSON})
        return answer(self.objects.replace(request.match_info["name"], given, request.match_info.get("subresource", "")))

    async def _patch(self, request: web.Request) -> web.Response:
        given = await body(request, PATCHES)
        return answer(self.objects.patch(request.match_info["name"], given, PATCHES[request.content_type], request.match_info.get("subresource", "")))

    async def _delete(self, request: web.Request) -> web.Response:
        options = await body(request, {JSON}) if request.can_read_body else {}
        return answer(self.objects.delete(request.match_info["name"], options.get("preconditions", {}).get("resourceVersion", "")))

    # ---- watches -------------------------------------------------------------------------------------------------

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": JSON})
        watcher = Watcher(request, number(request, "resourceVersion"))
        try:
            # Without a revision, or from 0: what there is now, as if it had just been added.
            if watcher.revision == 0:
                watcher.revision = self.objects.revision
                for node in self.objects.nodes.values():
                    watcher.tell(event("ADDED", node))
            else:
                for change in self.objects.since(watcher.revision):
                    watcher.tell(change.line)
        except Refused as refused:
            watcher.tell(event("ERROR", refused.status()))
            watcher.ended = True
        self.watchers.add(watcher)
        try:
            await response.prepare(request)
            # aiohttp sends the header with the first bytes; a watcher waits for it before it lists.
            await response.write(b"")
            ends = asyncio.get_running_loop().time() + (number(request, "timeoutSeconds") or 1800)
            await self._serve(watcher, response, ends, wanted(request, "allowWatchBookmarks"))
        except ConnectionError:
            pass  # the watcher has gone
        finally:
            self.watchers.discard(watcher)
        return response

    async def _serve(self, watcher: Watcher, response: web.StreamResponse, ends: float, bookmarks: bool) -> None:
        loop = asyncio.get_running_loop()
        bookmark = loop.time() + self.bookmark_s
        while True:
            if watcher.lines and not self.stalled:
                lines, watcher.lines = watcher.lines, []
                for at in range(0, len(lines), AT_ONCE):  # asyncio moves all that waits with each part that is sent
                    await response.write(b"\n".join(lines[at : at + AT_ONCE]) + b"\n")
            if watcher.ended and not self.stalled:
                return
            until = None if self.stalled else min(ends, bookmark) if bookmarks else ends
            watcher.more.clear()
            if watcher.lines and not self.stalled:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await watcher.more.wait()
            if until is None or self.stalled or loop.time() < until:
                continue
            if bookmarks:
                # `objects.revision` only when all up to it has been told
                metadata = {"resourceVersion": str(self.objects.revision), "creationTimestamp": None}
                watcher.lines.append(event("BOOKMARK", {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": {}}))
            bookmark = loop.time() + self.bookmark_s
            watcher.ended = loop.time() >= ends

    def _tell(self, change: Change) -> None:
        for watcher in self.watchers:
            if change.revision > watcher.revision:
                watcher.tell(change.line)

    # ---- faults --------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Cut every watch, as a server does that dies."""
        for watcher in list(self.watchers):
            if watcher.request.transport is not None:
                watcher.request.transport.abort()

    def stall(self, stalled: bool = True) -> None:
        """Watches stay open and carry nothing, however long, until told otherwise."""
        self.stalled = stalled
        for watcher in self.watchers:
            watcher.more.set()

    def fail(self, status: int, count: int = 1, retry_after: int | None = None) -> None:
        """Answer the next requests with an error."""
        self.failures += [(status, retry_after)] * count

    def compact(self) -> None:
        """Forget all changes; watches that have fallen behind are told so, the others go on."""
        self.objects.compact()


class Watcher:
    """One watch: the lines that wait to be sent."""

    def __init__(self, request: web.Request, revision: int) -> None:
        self.request = request
        self.revision = revision
        self.lines: list[bytes] = []
        self.more = asyncio.Event()
        self.ended = False

    def tell(self, line: bytes) -> None:
        self.lines.append(line)
        self.more.set()


def event(kind: str, value: Object) -> bytes:
    return msgspec.json.encode({"type": kind, "object": value})


def wanted(request: web.Request, key: str) -> bool:
    return request.query.get(key, "") in ("1", "true")


def number(request: web.Request, key: str) -> int:
    text = request.query.get(key, "0") or "0"
    if not (text.isascii() and text.isdecimal()):
        raise Refused(400, "BadRequest", f"{key}: Invalid value: {text!r}")
    return int(text)


async def body(request: web.Request, kinds: Collection[str]) -> Object:
    if request.content_type not in kinds:
        raise Refused(415, "UnsupportedMediaType", f"the body of the request was in an unknown format - accepted media types include: {', '.join(kinds)}")
    try:
        value = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(400, "BadRequest", f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "BadRequest", "the body is no object")
    return value


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=JSON, headers=headers)


class Content(msgspec.Struct):
    """What a server begins with."""

    tokens: dict[str, list[tuple[str, str]]] | None = None
    nodes: list[dict[str, Any]] = []
    pods: list[tuple[str, str, str]] = []  # namespace, name, and the Node's name


async def serve(host: str, port: int, content: Content) -> None:
    """Until it is killed. Its address is printed once it listens."""
    server = KubeServer(tokens=content.tokens)
    for node in content.nodes:
        server.objects.create(node)
    server.pods = {(namespace, name): node for namespace, name, node in content.pods}
    await server.start(host, port)
    print(server.url, flush=True)
    os.close(sys.stdout.fileno())
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), msgspec.json.decode(sys.stdin.buffer.read() or b"{}", type=Content)))
