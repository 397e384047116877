"""From starting the agent's process until it says that it is ready: joined, and every peer programmed.

The floor is an interpreter that imports the agent and ends. 'again' is a restart: lease, device and all rows are there already.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from bench.common import Node, Sample, agent, circumstances, cpu_s, fill, nodes, ours_s, ratio, spread, table

COUNTS, ROUNDS = (0, 1_000, 10_000), 5


@contextlib.contextmanager
def sqlite(count: int) -> Iterator[tuple[Node, list[str]]]:
    """A node, and the flags by which an agent finds a store of so many leases."""
    with nodes(1) as (node,):
        path = node.directory.parent / "store.db"
        fill(path, count)
        yield node, [f"--store=sqlite://{path}"]


def main() -> None:
    compare("Process start to ready", "tweed.commands.agent, tweed.agent.main", sqlite)


def compare(title: str, imports: str, ground: Callable[[int], AbstractContextManager[tuple[Node, list[str]]]]) -> None:
    with circumstances(f"{title}, seconds, median (least … most) of {ROUNDS}"):
        floor: list[Sample] = []
        first: dict[int, list[Sample]] = {count: [] for count in COUNTS}
        again: dict[int, list[Sample]] = {count: [] for count in COUNTS}
        for _ in range(ROUNDS):
            floor.append(imported(imports))
            for count in COUNTS:
                with ground(count) as (node, flags):
                    first[count].append(ready(node, flags))
                    again[count].append(ready(node, flags))
        named = [("imports alone (floor)", floor)]
        named += [(f"{count:,} leases, {how}", some[count]) for count in COUNTS for how, some in (("first", first), ("again", again))]
        rows = []
        for name, some in named:
            wall, cpu = [s.wall for s in some], [s.cpu for s in some]
            rows.append((name, spread(wall, digits=2), spread(cpu, digits=2), ratio(wall, [s.wall for s in floor])))
        table(("", "wall, s", "CPU, s", "wall over floor"), rows)


def imported(modules: str) -> Sample:
    command = [sys.executable, "-c", f"import {modules}; print('imported', flush=True)"]
    start, before = time.perf_counter(), ours_s()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wall = time.perf_counter() - start
    return Sample(wall, ours_s() - before)


def ready(node: Node, flags: Sequence[str]) -> Sample:
    with agent(node, None, *flags) as process:
        wall = process.wait_for("ready")
        return Sample(wall, cpu_s(process.pid))


if __name__ == "__main__":
    main()
