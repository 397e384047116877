"""The process that forwards in the UDP mode: started, told of peers, and started again when it ends. It outlives the agent as routes do,
and ends by itself when its TUN device is deleted.

A TUN loses its carrier, and what waits in it, with its last descriptor. So the agent has duplicates of the process's TUN and socket, never reads
from them, and gives them to the next process; if that does not come soon, it lets go, since packets are to fail where nobody forwards them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from tweed import __version__
from tweed.addr import Prefix, format_address
from tweed.agent.log import log
from tweed.config import Settings
from tweed.errors import TweedError
from tweed.model import Endpoint, Lease, Tun
from tweed.plan.screen import Problem
from tweed.udp.control import TIMEOUT_S, Report, Request, Task, ask, descriptors, listener
from tweed.udp.peers import Table, peer
from tweed.wire.flannel import Network

START_S = 10.0
END_S = 3.0
LIVED_S = 1.0  # a process that ends sooner is not started again at once
HELD_S = 2.0  # what the last process had, when the next one should have it


class Forwarding:
    """At most one forwarding process. `woke` is called when it has ended."""

    def __init__(self, settings: Settings, woke: Callable[[str], None]) -> None:
        self.socket, self.log = settings.run_dir / "udp.sock", settings.run_dir / "udp.log"
        self.woke = woke
        self.report: Report | None = None
        self.problem: Problem | None = None
        self.told: frozenset[Endpoint] = frozenset()  # the peers that the process has
        self.starts = 0
        self.started_at = 0.0
        self.watched: int | None = None
        self.held: dict[int, list[int]] = {}  # of which process

    @property
    def files(self) -> list[str]:
        """What `tweed cleanup` is to remove."""
        return [str(path.absolute()) for path in (self.socket, self.log)]

    async def follow(self, network: Network, device: Tun | None, own: Lease, peers: Iterable[Lease]) -> None:
        """Have the process run for `device` with these peers; None: there is none to be."""
        if device is None:
            self.report, self.problem, self.told = None, None, frozenset()
            self.let_go()
            return
        task = Task(str(self.socket.absolute()), device.name, format_address(device.local), device.port, network.data_path, __version__)  # type: ignore[arg-type]
        assert own.v4 is not None
        endpoints = [lease.v4 for lease in peers if lease.v4 is not None]
        rows = tuple(peer(e.subnet, e.public_ip) for e in endpoints if e.public_ip is not None)
        table = Table(Prefix(own.v4.subnet.address, own.v4.subnet.length), rows, network.strict_source).pack()
        try:
            report = await asyncio.to_thread(self.have, task, table)
        except TweedError as error:
            self.report, self.problem, self.told = None, Problem("udp-process", device.name, str(error)), frozenset()
            return
        self.report, self.problem, self.told = report, None, frozenset(endpoints)
        self.watch(report.pid)

    async def look(self) -> None:
        """A fresh report of what it counts, where it runs."""
        if self.report is not None:
            with contextlib.suppress(OSError):
                self.report = await asyncio.to_thread(ask, self.socket, Request())

    # ---- in a thread ---------------------------------------------------------------------------------------------

    def have(self, task: Task, table: bytes) -> Report:
        """The process of this task, with this table. Raises TweedError when it cannot be started."""
        try:
            report = ask(self.socket, Request())
            self.hold(report.pid)
        except TimeoutError:
            self.kill()
            return self.start(task, table)
        except OSError:
            return self.start(task, table)
        if report.task != task:
            log.info("the forwarding process (pid %d) has another task now", report.pid)
            with contextlib.suppress(OSError):
                ask(self.socket, Request(end=True))
            wait(report.pid)
            return self.start(task, table)
        if report.table == zlib.crc32(table):
            return report
        return self.tell(table)

    def hold(self, pid: int) -> None:
        """Have duplicates of what this process forwards between. Raises OSError when it does not answer."""
        if pid not in self.held:
            self.let_go()
            self.held[pid] = descriptors(self.socket)

    def take(self, pid: int | None = None) -> list[int]:
        """What is held of this process, or of any. It is the caller's then, in whatever thread."""
        return [descriptor for each in (list(self.held) if pid is None else [pid]) for descriptor in self.held.pop(each, ())]

    def let_go(self, pid: int | None = None) -> None:
        for descriptor in self.take(pid):
            os.close(descriptor)

    def kill(self) -> None:
        """End a process that hangs: it holds the port and the TUN, and forwards nothing. What waits there has waited too long."""
        self.let_go()
        with contextlib.suppress(OSError):
            pid = listener(self.socket)
            log.warning("the forwarding process (pid %d) has not answered for %g s: killed", pid, TIMEOUT_S)
            os.kill(pid, signal.SIGKILL)
            wait(pid)

    def tell(self, table: bytes) -> Report:
        try:
            return ask(self.socket, Request(table=table))
        except OSError as error:
            raise TweedError(f"the forwarding process does not answer ({error}): it is tried again") from None

    def start(self, task: Task, table: bytes) -> Report:
        self.starts += 1
        self.started_at = time.monotonic()
        left = self.take()
        command = [sys.executable, "-m", "tweed.udp.forwarder", msgspec.json.encode(task).decode(), *map(str, left)]
        try:
            with open(self.log, "wb") as output:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/", pass_fds=left)
        finally:  # they are the new process's, or nobody's
            for descriptor in left:
                os.close(descriptor)
        while process.poll() is None and time.monotonic() < self.started_at + START_S:
            with contextlib.suppress(OSError):
                report = ask(self.socket, Request(table=table))
                self.hold(report.pid)
                log.info("forwarding by process %d: data path %s", report.pid, report.data_path)
                return report
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
            process.wait()
        lines = last_lines(self.log)
        raise TweedError(f"the forwarding process ended at its start: {lines[-1] if lines else 'it said nothing'}")

    # ---- its end -------------------------------------------------------------------------------------------------

    def watch(self, pid: int) -> None:
        """Be told at once when the process ends, also one that an earlier agent started."""
        if self.watched == pid:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self.woke("udp")
            return
        self.watched = pid
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if self.watched == pid:
                self.watched = None
            delay_s = LIVED_S if time.monotonic() < self.started_at + LIVED_S else 0.0
            loop.call_later(delay_s, self.woke, "udp")
            loop.call_later(delay_s + HELD_S, self.let_go, pid)

        loop.add_reader(descriptor, ended)

    @property
    def problems(self) -> list[Problem]:
        """What an operator should know: that it does not run, and what fell back."""
        if self.report is None:
            return [self.problem] if self.problem is not None else []
        return [Problem("udp-fallback", "flannel0", note) for note in self.report.notes]


def wait(pid: int) -> None:
    """Until a process has ended, and has let go of its TUN."""
    deadline = time.monotonic() + END_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)


def last_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return []
