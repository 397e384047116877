"""From a lease put into the store by one process to its last row in the kernel of two other nodes, each with a real agent.

The clock starts before the store's transaction and stops when the kernel announces the route, which the agent puts last. The floor
is what nobody can save: the transaction itself, on the disk, and the kernel's time for the three messages of one lease.
"""

from __future__ import annotations

import select
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench.common import PATIENCE_S, Agent, Node, agent, circumstances, cpu_s, fill, lease, nodes, owner, table
from bench.overlay import Overlay
from tweed.addr import Prefix
from tweed.kernel.monitor import IPV4_ROUTE
from tweed.kernel.netlink import RECEIVE, open_socket
from tweed.stores import TTL_S
from tweed.stores.sqlite import SqliteStore

COUNTS = (0, 1_000, 10_000)
EVENTS, PAUSE_S = 200, 0.05


def main() -> None:
    with circumstances(f"One lease put into the SQLite store until two other nodes have programmed it, {EVENTS} leases, ms"):
        rows = []
        for count in COUNTS:
            with nodes(3) as (first, second, third):
                path = first.directory.parent / "store.db"
                fill(path, count)
                with agent(first, path) as one, agent(second, path) as two:
                    rows += measure(count, path, (first, second), (one, two), Overlay(third, 4))
        table(("leases before", "", "median", "99 of 100 within", "slowest"), rows)


def measure(count: int, path: Path, where: Sequence[Node], agents: Sequence[Agent], bare: Overlay) -> list[tuple[str, ...]]:
    for each in agents:
        each.wait_for("ready")
    time.sleep(2)  # until each has programmed the other
    bare.empty()
    store = SqliteStore(path)
    monitors = [open_socket(node.fd, IPV4_ROUTE) for node in where]
    put, floor, seen, cpu = [], [], [], [cpu_s(each.pid) for each in agents]
    for number in range(count, count + EVENTS):
        new = lease(number)
        assert new.v4 is not None
        start = time.perf_counter()
        store.insert(new, owner(number), TTL_S)
        put.append(time.perf_counter() - start)
        seen.append(last_arrival(monitors, new.v4.subnet) - start)
        floor.append(put[-1] + bare.send_packed(bare.changes([new])).wall)
        for each in agents:
            each.drain()
        time.sleep(PAUSE_S)
    cpu_ms = [1000 * (cpu_s(each.pid) - before) / EVENTS for each, before in zip(agents, cpu, strict=True)]
    for monitor in monitors:
        monitor.close()
    bare.nl.close()
    store.database.close()
    over = statistics.median(mine / least for mine, least in zip(seen, floor, strict=True))
    return [
        (f"{count:,}", "the transaction alone", *figures(put)),
        ("", "transaction and kernel (floor)", *figures(floor)),
        ("", "until both nodes have it", *figures(seen)),
        ("", "over its floor", f"{over:.2f}", "", ""),
        ("", "an agent's CPU for one", f"{statistics.mean(cpu_ms):.1f}", "", ""),
    ]


def last_arrival(monitors: Sequence[socket.socket], subnet: Prefix) -> float:
    """When the last of these namespaces' kernels announced a route to `subnet`."""
    waiting = list(monitors)
    deadline = time.perf_counter() + PATIENCE_S
    while True:
        ready, _, _ = select.select(waiting, [], [], max(0.0, deadline - time.perf_counter()))
        now = time.perf_counter()
        if not ready:
            raise TimeoutError(f"no route to {subnet} within {PATIENCE_S:g} s")
        waiting = [monitor for monitor in waiting if monitor not in ready or subnet.address not in monitor.recv(RECEIVE)]
        if not waiting:
            return now


def figures(seconds: Sequence[float]) -> tuple[str, ...]:
    ordered = sorted(seconds)
    return tuple(f"{1000 * value:.1f}" for value in (statistics.median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1]))


if __name__ == "__main__":
    main()
