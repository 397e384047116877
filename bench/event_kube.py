"""From a burst of Nodes at an API server to the last of their rows in the kernel of a node with a real agent, and an agent's start among them.

The server is tweed's stand-in, the Nodes have six kilobytes each as real ones. The clock starts before the first Node is there and stops when
the kernel announces the last route, which the agent puts last. The floor is what nobody can save: a reader of the same watch that only
counts the lines, in a run of its own. At the start all are there already, and the clock runs from the process to "ready".
"""

from __future__ import annotations

import json
import subprocess
import sys

from bench.common import Node, agent, circumstances, cpu_s, nodes, ratio, spread, table
from bench.event_etcd import burst
from bench.kube import PORT, Kube, kube
from tweed.kernel import netns

BURSTS, ROUNDS = (1_000, 10_000), 5
COUNT = """
import http.client, sys, time
c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
c.request("GET", "/api/v1/nodes?watch=1&resourceVersion=" + sys.argv[2])
answer = c.getresponse()
print("watching", flush=True)
left = int(sys.argv[3])
while left > 0:
    left -= answer.read1(1 << 20).count(b"\\n")
print(time.perf_counter(), flush=True)
"""


def main() -> None:
    with circumstances(f"Nodes put in one burst until a node has programmed them, {ROUNDS} rounds, and a start among as many"):
        rows = []
        for count in BURSTS:
            read, seen, cpu, starts, start_cpu = [], [], [], [], []
            for _ in range(ROUNDS):
                with nodes(1) as (node,), kube(node) as server:
                    read.append(counted(node, server, count))
                with nodes(1) as (node,), kube(node) as server, agent(node, None, *server.flags) as process:
                    process.wait_for("ready")
                    before = cpu_s(process.pid)
                    seen.append(burst(node, server, process, count)[1])
                    cpu.append(cpu_s(process.pid) - before)
                with nodes(1) as (node,), kube(node) as server:
                    server.ask(f"fill 0 {count}")
                    with agent(node, None, *server.flags) as process:
                        starts.append(process.wait_for("ready"))
                        start_cpu.append(cpu_s(process.pid))
            rows.append((f"{count:,} in a burst", spread(seen, digits=2), spread(cpu, digits=2), spread(read, digits=2), ratio(seen, read)))
            rows.append((f"start among {count:,}", spread(starts, digits=2), spread(start_cpu, digits=2), "", ""))
        table(("", "kernel has all, s", "agent's CPU, s", "lines only counted, s (floor)", "over its floor"), rows)


def counted(node: Node, server: Kube, count: int) -> float:
    """Seconds until a process that does nothing else has read as many lines of the watch."""
    enter = ["nsenter", f"--net={netns.DIRECTORY}/{node.name}", sys.executable, "-c", COUNT, str(PORT)]
    with subprocess.Popen([*enter, revision(node), str(count)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = server.ask(f"burst 0 {count}").began
        return float(process.stdout.readline()) - began


def revision(node: Node) -> str:
    """The server's newest resourceVersion."""
    program = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{PORT}/api/v1/nodes?limit=1').read().decode())"
    done = subprocess.run(["nsenter", f"--net={netns.DIRECTORY}/{node.name}", sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["metadata"]["resourceVersion"])


if __name__ == "__main__":
    main()
