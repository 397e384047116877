"""What an agent costs that has nothing to do: its CPU over two of its slow looks at everything, one every 30 s.

The floor is a process without an agent: Python, asyncio, and one timer a second.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

from bench.common import agent, circumstances, cpu_s, fill, nodes, switches, table

COUNTS, SECONDS = (0, 1_000, 10_000), 60
FLOOR = """
import asyncio
async def main():
    for _ in range(120):
        await asyncio.sleep(1)
asyncio.run(main())
"""


def main() -> None:
    with circumstances(f"Idle for {SECONDS} s, all at the same time"), nodes(len(COUNTS)) as made, contextlib.ExitStack() as stack:
        floor = stack.enter_context(subprocess.Popen([sys.executable, "-c", FLOOR]))
        stack.callback(floor.kill)
        pids = {"asyncio and a timer (floor)": floor.pid}
        for node, count in zip(made, COUNTS, strict=True):
            path = node.directory.with_suffix(".db")
            fill(path, count)
            process = stack.enter_context(agent(node, path))
            process.wait_for("ready")
            pids[f"agent, {count:,} leases"] = process.pid
        time.sleep(5)
        before = {name: (time.monotonic(), cpu_s(pid), switches(pid)) for name, pid in pids.items()}
        time.sleep(SECONDS)
        rows = []
        for name, pid in pids.items():
            took, used, woken = (now - then for now, then in zip((time.monotonic(), cpu_s(pid), switches(pid)), before[name], strict=True))
            rows.append((name, f"{used:.2f}", f"{100 * used / took:.2f} %", f"{woken / took:.1f}"))
        table(("", "CPU, s", "of one core", "switches a second"), rows)


if __name__ == "__main__":
    main()
