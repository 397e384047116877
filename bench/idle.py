"""What an agent costs that has nothing to do, with 1,000 leases: its CPU over two of its slow looks at everything.

The floor is the same process without an agent: Python, asyncio, and one timer a second.
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench.common import agent, circumstances, cpu_s, fill, nodes, switches, table

LEASES, SECONDS = 1_000, 60  # the agent's tick comes every 30 s
FLOOR = """
import asyncio
async def main():
    while True:
        await asyncio.sleep(1)
asyncio.run(main())
"""


def main() -> None:
    with circumstances(f"An idle agent with {LEASES:,} leases, for {SECONDS} s"), nodes(1) as (node,):
        path = node.directory.parent / "store.db"
        fill(path, LEASES)
        floor = subprocess.Popen([sys.executable, "-c", FLOOR])
        try:
            with agent(node, path) as process:
                process.wait_for("ready")
                time.sleep(5)
                pids = {"asyncio and a timer (floor)": floor.pid, "agent": process.pid}
                before = {name: (cpu_s(pid), switches(pid)) for name, pid in pids.items()}
                start = time.monotonic()
                time.sleep(SECONDS)
                took = time.monotonic() - start
                rows = []
                for name, pid in pids.items():
                    used, woken = cpu_s(pid) - before[name][0], switches(pid) - before[name][1]
                    rows.append((name, f"{used:.2f}", f"{100 * used / took:.2f} %", f"{woken / took:.1f}"))
        finally:
            floor.kill()
            floor.wait()
        table(("", "CPU, s", "of one core", "switches a second"), rows)


if __name__ == "__main__":
    main()
