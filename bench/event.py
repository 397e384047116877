"""From a lease put into the store by one process to its last row in the kernel of two other nodes, each with a real agent.

The clock starts before the store's transaction and stops when the kernel announces the route, which the agent puts last. The floor
is what nobody can save: the same transaction, synced to the disk, and the three messages of one lease sent to the kernel.
"""

from __future__ import annotations

import select
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench.common import PATIENCE_S, Agent, Node, agent, circumstances, cpu_s, fill, lease, nodes, owner, table
from tweed.addr import Prefix
from tweed.kernel.monitor import IPV4_ROUTE
from tweed.kernel.netlink import RECEIVE, open_socket
from tweed.stores import TTL_S
from tweed.stores.sqlite import SqliteStore

COUNTS = (0, 1_000, 10_000)
EVENTS, PAUSE_S = 120, 0.05


def main() -> None:
    with circumstances(f"One lease put into the SQLite store until two other nodes have programmed it, {EVENTS} leases, ms"):
        rows = []
        for count in COUNTS:
            with nodes(2) as (first, second):
                path = first.directory.parent / "store.db"
                fill(path, count)
                with agent(first, path) as one, agent(second, path) as two:
                    rows += measure(count, path, (first, second), (one, two))
        table(("leases before", "from, to", "median", "99 of 100 within", "slowest"), rows)


def measure(count: int, path: Path, where: Sequence[Node], agents: Sequence[Agent]) -> list[tuple[str, ...]]:
    for each in agents:
        each.wait_for("ready")
    time.sleep(2)  # each programs the other
    store = SqliteStore(path)
    monitors = [open_socket(node.fd, IPV4_ROUTE) for node in where]
    put, seen, cpu = [], [], [cpu_s(each.pid) for each in agents]
    for number in range(count, count + EVENTS):
        new = lease(number)
        assert new.v4 is not None
        start = time.perf_counter()
        store.insert(new, owner(number), TTL_S)
        put.append(time.perf_counter() - start)
        seen += [at - start for at in arrivals(monitors, new.v4.subnet)]
        for each in agents:
            each.drain()
        time.sleep(PAUSE_S)
    cpu_ms = [1000 * (cpu_s(each.pid) - before) / EVENTS for each, before in zip(agents, cpu, strict=True)]
    for monitor in monitors:
        monitor.close()
    store.database.close()
    return [
        (f"{count:,}", "put: start to committed", *figures(put)),
        ("", "put's start to route in both kernels", *figures(seen)),
        ("", "CPU of an agent for each lease", f"{statistics.mean(cpu_ms):.1f}", "", ""),
    ]


def arrivals(monitors: Sequence[socket.socket], subnet: Prefix) -> list[float]:
    """When each namespace's kernel announced a route to `subnet`."""
    found: dict[socket.socket, float] = {}
    deadline = time.perf_counter() + PATIENCE_S
    while len(found) < len(monitors):
        ready, _, _ = select.select([m for m in monitors if m not in found], [], [], max(0.0, deadline - time.perf_counter()))
        now = time.perf_counter()
        if not ready:
            raise TimeoutError(f"no route to {subnet} within {PATIENCE_S:g} s")
        found.update({monitor: now for monitor in ready if subnet.address in monitor.recv(RECEIVE)})
    return list(found.values())


def figures(seconds: Sequence[float]) -> tuple[str, str, str]:
    ordered = sorted(seconds)
    return tuple(f"{1000 * value:.1f}" for value in (statistics.median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1]))


if __name__ == "__main__":
    main()
