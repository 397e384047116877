"""From leases put into etcd to their last rows in the kernel of a node with a real agent: one alone, and bursts of thousands.

All are put by one process beside etcd, each by a request of its own, in a burst up to 128 on their way at once. The clock starts before
the first request and stops when the kernel announces the last route, which the agent puts last. The floor is what nobody can save: until
etcd has acknowledged the last one.
"""

from __future__ import annotations

import socket
import statistics
import time

from bench.common import Agent, Node, agent, circumstances, cpu_s, lease, nodes, ratio, spread, table
from bench.etcd import FLAGS, Etcd, etcd
from bench.event import figures, last_arrival
from bench.kube import Kube
from tweed.kernel.monitor import IPV4_ROUTE
from tweed.kernel.netlink import RECEIVE, open_socket
from tweed.wire.netlink import HEADER
from tweed.wire.route import RTM_NEWROUTE

ONES, PAUSE_S = 200, 0.05
BURSTS, ROUNDS = (1_000, 10_000), 5
PATIENCE_S = 60.0
SO_RCVBUFFORCE = 33


def main() -> None:
    with circumstances(f"Leases put into etcd until a node has programmed them: {ONES} one by one, and bursts, {ROUNDS} rounds"):
        with nodes(1) as (node,), etcd(node) as server, agent(node, None, *FLAGS) as process:
            process.wait_for("ready")
            rows = one_by_one(node, server, process)
        table(("one lease, ms", "median", "99 of 100 within", "slowest"), rows)
        rows = []
        for count in BURSTS:
            put, seen, cpu = [], [], []
            for _ in range(ROUNDS):
                with nodes(1) as (node,), etcd(node) as server, agent(node, None, *FLAGS) as process:
                    process.wait_for("ready")
                    before = cpu_s(process.pid)
                    written, arrived = burst(node, server, process, count)
                    put.append(written)
                    seen.append(arrived)
                    cpu.append(cpu_s(process.pid) - before)
            rows.append((f"{count:,}", spread(put, digits=2), spread(seen, digits=2), ratio(seen, put), spread(cpu, digits=2)))
        table(("burst of", "etcd has all, s (floor)", "kernel has all, s", "over its floor", "agent's CPU, s"), rows)


def one_by_one(node: Node, server: Etcd, process: Agent) -> list[tuple[str, ...]]:
    put, seen = [], []
    with open_socket(node.fd, IPV4_ROUTE) as monitor:
        for number in range(ONES):
            new = lease(number)
            assert new.v4 is not None
            written = server.ask(f"one {number}")
            put.append(written.ended - written.began)
            seen.append(last_arrival([monitor], new.v4.subnet) - written.began)
            process.drain()
            time.sleep(PAUSE_S)
    over = statistics.median(mine / least for mine, least in zip(seen, put, strict=True))
    return [("acknowledged by etcd (floor)", *figures(put)), ("programmed", *figures(seen)), ("over its floor", f"{over:.2f}", "", "")]


def burst(node: Node, server: Etcd | Kube, process: Agent, count: int) -> tuple[float, float]:
    """Seconds until the server has all, and until the kernel has announced as many routes."""
    with open_socket(node.fd, IPV4_ROUTE) as monitor:
        monitor.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        written = server.ask(f"burst 0 {count}")
        monitor.settimeout(PATIENCE_S)
        routes = 0
        while routes < count:
            routes += count_routes(monitor.recv(RECEIVE))
            arrived = time.perf_counter()
            process.drain()
    return written.ended - written.began, arrived - written.began


def count_routes(data: bytes) -> int:
    at = found = 0
    while at < len(data):
        length, kind = HEADER.unpack_from(data, at)[:2]
        found += kind == RTM_NEWROUTE
        at += (length + 3) & ~3
    return found


if __name__ == "__main__":
    main()
