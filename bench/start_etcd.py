"""From starting the agent's process, with so many leases in etcd, until it says that it is ready: joined, and every peer programmed.

The floor is an interpreter that imports the agent and gRPC and ends. 'again' is a restart: lease, device and all rows are there already.
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench.common import Node, Sample, agent, circumstances, cpu_s, nodes, ours_s, ratio, spread, table
from bench.etcd import FLAGS, etcd

COUNTS, ROUNDS = (0, 1_000, 10_000), 5
IMPORTS = "import tweed.commands.agent, tweed.agent.main, tweed.stores.etcd.store; print('imported', flush=True)"


def main() -> None:
    with circumstances(f"Process start to ready on etcd, seconds, median (least … most) of {ROUNDS}"):
        floor: list[Sample] = []
        first: dict[int, list[Sample]] = {count: [] for count in COUNTS}
        again: dict[int, list[Sample]] = {count: [] for count in COUNTS}
        for _ in range(ROUNDS):
            floor.append(imported())
            for count in COUNTS:
                with nodes(1) as (node,), etcd(node) as server:
                    server.ask(f"fill 0 {count}")
                    first[count].append(ready(node))
                    again[count].append(ready(node))
        named = [("imports alone (floor)", floor)]
        named += [(f"{count:,} leases, {how}", some[count]) for count in COUNTS for how, some in (("first", first), ("again", again))]
        rows = []
        for name, some in named:
            wall, cpu = [s.wall for s in some], [s.cpu for s in some]
            rows.append((name, spread(wall, digits=2), spread(cpu, digits=2), ratio(wall, [s.wall for s in floor])))
        table(("", "wall, s", "CPU, s", "wall over floor"), rows)


def imported() -> Sample:
    start, before = time.perf_counter(), ours_s()
    with subprocess.Popen([sys.executable, "-c", IMPORTS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wall = time.perf_counter() - start
    return Sample(wall, ours_s() - before)


def ready(node: Node) -> Sample:
    with agent(node, None, *FLAGS) as process:
        wall = process.wait_for("ready")
        return Sample(wall, cpu_s(process.pid))


if __name__ == "__main__":
    main()
