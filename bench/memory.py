"""What a real agent process weighs with 0, 1,000 and 10,000 leases: when ready, after some looks at everything, and at its highest.

The floor is an interpreter that has imported the agent, and does nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from bench.common import agent, circumstances, fill, nodes, table

COUNTS = (0, 1_000, 10_000)
RESYNC_S, LOOKS, ROUNDS = 2, 5, 3
IMPORTS = {"nothing imported": "sys", "asyncio and aiohttp": "asyncio, aiohttp.web", "the agent imported": "tweed.commands.agent, tweed.agent.main"}
WEIGH = "import {}; print(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])"


def main() -> None:
    with circumstances(f"Resident memory, MB of 2^20 bytes, median of {ROUNDS}; 'later' is after {LOOKS} looks at everything"):
        rows = [(f"interpreter, {what}", *columns([(weigh(modules),) for _ in range(ROUNDS)]), "", "") for what, modules in IMPORTS.items()]
        rows += [(f"agent, {count:,} leases", *columns([one(count) for _ in range(ROUNDS)])) for count in COUNTS]
        table(("", "when ready", "later", "highest"), rows)


def columns(samples: Sequence[Sequence[float]]) -> list[str]:
    return [f"{sorted(values)[len(values) // 2]:.1f}" for values in zip(*samples, strict=True)]


def weigh(modules: str) -> float:
    return int(subprocess.run([sys.executable, "-c", WEIGH.format(modules)], check=True, capture_output=True, text=True).stdout) / 1024


def one(count: int) -> tuple[float, float, float]:
    with nodes(1) as (node,):
        path = node.directory.parent / "store.db"
        fill(path, count)
        with agent(node, path, "--resync", str(RESYNC_S)) as process:
            process.wait_for("ready")
            when_ready, _ = process.memory_mb()
            time.sleep((LOOKS + 0.5) * RESYNC_S)
            return when_ready, *process.memory_mb()


if __name__ == "__main__":
    main()
