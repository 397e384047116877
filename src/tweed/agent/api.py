"""What an agent answers: everything on its unix socket (0600), and health and metrics on a TCP port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from aiohttp import web

from tweed.addr import Prefix, format_address
from tweed.agent.agent import Agent
from tweed.agent.log import log
from tweed.agent.status import document
from tweed.errors import TweedError, UsageError
from tweed.plan import attachment as attach
from tweed.plan.screen import Problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BODY_MAX = 1 << 20
BACKLOG = 1024  # a client with a time limit is refused at once where the queue of a unix socket is full


def json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", status=status)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Our errors and malformed input as one JSON line; a defect is logged with its trace and answered without it."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return json({"error": f"{request.method} {request.path}: {error.reason}"}, error.status)
    except TweedError as error:
        return json({"error": str(error)}, 409)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # RecursionError: nested a thousand deep
        return json({"error": f"malformed JSON: {error}"}, 400)
    except Exception:
        log.exception("internal error answering %s %s", request.method, request.path)
        return json({"error": "internal error, see the agent's log"}, 500)


class Api:
    """The handlers. `stop` ends the agent's process."""

    def __init__(self, agent: Agent, stop: Callable[[], None]) -> None:
        self.agent = agent
        self.stop = stop
        self.attaching = asyncio.Lock()

    def health_routes(self) -> list[web.AbstractRouteDef]:
        return [web.get("/healthz", self.healthz), web.get("/readyz", self.readyz), web.get("/metrics", self.get_metrics)]

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            *self.health_routes(),
            web.get("/v1/status", self.get_status),
            web.post("/v1/pause", self.pause),
            web.post("/v1/resume", self.resume),
            web.post("/v1/acquire", self.acquire),
            web.post("/v1/stop", self.post_stop),
            web.get("/v1/attachments", self.get_attachments),
            web.post("/v1/attachments", self.post_attachment),
            web.delete("/v1/attachments/{container}/{ifname}", self.delete_attachment),
            web.put("/v1/docker", self.put_docker),
        ]

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="tweed is running\n")

    async def readyz(self, _: web.Request) -> web.Response:
        if self.agent.ready:
            return web.Response(text="tweed is ready\n")
        return web.Response(text=f"tweed is not ready: {self.agent.reason or self.agent.fenced}\n", status=503)

    async def get_metrics(self, _: web.Request) -> web.Response:
        from tweed.agent import metrics  # 2 MB that only a node which is scraped needs

        await self.agent.forwarding.look()
        return web.Response(body=metrics.text(self.agent), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def get_status(self, _: web.Request) -> web.Response:
        await self.agent.forwarding.look()
        return json(document(self.agent))

    async def pause(self, _: web.Request) -> web.Response:
        self.agent.paused = True
        log.info("paused: reads are answered, nothing is changed until resumed")
        return json({"paused": True})

    async def resume(self, _: web.Request) -> web.Response:
        self.agent.paused = False
        log.info("resumed")
        self.agent.look_again("resume")
        return json({"paused": False})

    async def acquire(self, _: web.Request) -> web.Response:
        self._changing()
        return json({"said": self.agent.acquire()})

    async def post_stop(self, _: web.Request) -> web.Response:
        log.info("told to end through the socket")
        asyncio.get_running_loop().call_later(0.05, self.stop)
        return json({"stopping": True})

    def _changing(self) -> None:
        if self.agent.paused:
            raise TweedError("the agent is paused: resume it first (tweed lab resume)")

    async def get_attachments(self, _: web.Request) -> web.Response:
        return json([attach.as_json(a) for a in self.agent.attachments.list()])

    async def post_attachment(self, request: web.Request) -> web.Response:
        self._changing()
        wanted = attach.request_from_json(msgspec.json.decode(await request.read()))
        async with self.attaching:
            return json(attach.as_json(self.agent.attachments.attach(wanted, self.agent.node_network())))

    async def delete_attachment(self, request: web.Request) -> web.Response:
        self._changing()
        async with self.attaching:
            self.agent.attachments.detach(request.match_info["container"], request.match_info["ifname"])
        return json({})

    async def put_docker(self, request: web.Request) -> web.Response:
        """The subnets that Docker is promised, one of a family at most: docker0 may come later than pods do."""
        texts = msgspec.json.decode(await request.read(), type=list[str])
        try:
            subnets = [str(Prefix.parse(text).network) for text in texts]
        except ValueError as error:
            raise UsageError(f"docker: {error}") from None
        if len(subnets) > 2:
            raise UsageError(f"docker: {len(subnets)} subnets: one of each family")
        self.agent.notes.save(docker=subnets)
        log.info("Docker is to have %s", " and ".join(subnets) or "no part of its own")
        return json(subnets)


async def serve(agent: Agent, stop: Callable[[], None], stack: AsyncExitStack) -> None:
    """Listen until `stack` closes. The unix socket must come up; the TCP port may be taken, which is a problem but no end."""
    api = Api(agent, stop)
    settings = agent.settings
    runner = await _runner(api.routes(), stack)
    old = os.umask(0o177)
    try:
        settings.socket.unlink(missing_ok=True)
        await web.UnixSite(runner, settings.socket, backlog=BACKLOG).start()
    except OSError as error:
        raise TweedError(f"cannot listen on {settings.socket}: {error.strerror or error}; choose another --run-dir") from None
    finally:
        os.umask(old)
    stack.callback(settings.socket.unlink, missing_ok=True)
    if settings.healthz_port:
        address = format_address(settings.healthz_ip)
        try:
            await web.TCPSite(await _runner(api.health_routes(), stack), address, settings.healthz_port).start()
        except OSError as error:
            problem = Problem("healthz", f"{address}:{settings.healthz_port}", f"cannot listen: {os.strerror(error.errno or 0)}; choose another --healthz-port")
            agent.problems["healthz"] = problem
            log.warning("%s", problem)


async def _runner(routes: list[web.AbstractRouteDef], stack: AsyncExitStack) -> web.AppRunner:
    app = web.Application(middlewares=[errors], client_max_size=BODY_MAX)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner
