"""CNI ADD and DEL: the plugin in C and in Python, beside Debian's bridge and host-local driven by a stand-in for flannel's meta plugin.

The three take turns on namespaces of the same age, on one node with a real agent, IPv4 only: with IPv6 the bridge plugin waits more
than a second for duplicate address detection. The stand-in is a C program that reads no JSON (bench/flannel_stand_in.c), so cheaper than
flannel's own in Go. CPU seconds are those of all processes, the agent's included; the kernel's work is in them where a process did it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.common import Agent, Node, agent, circumstances, cpu_s, fill, nodes, ratio, spread, table
from tweed.kernel import netns
from tweed.kernel.netns import CLONE_NEWNET, libc
from tweed.stores.sqlite import SqliteStore

ROUNDS, PARALLEL, BATCHES = 50, 16, 5
SUBNET = "10.99.0.0/20"
CONFIG = '{"Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.250.0.0", "Backend": {"Type": "vxlan"}}'


class Way(NamedTuple):
    name: str
    program: Path
    config: str


class Cost(NamedTuple):
    wall: float
    cpu: float


def main() -> None:
    with circumstances(f"CNI ADD and DEL, {ROUNDS} of each in turns, and {PARALLEL} at once"), nodes(1) as (node,):
        path = node.directory.parent / "store.db"
        fill(path, 0)
        SqliteStore(path).write_config(CONFIG, True)
        with agent(node, path) as running:
            running.wait_for("ready")
            enter(node)
            ways = install(node)
            alone(ways, running)
            together(ways, running)


def enter(node: Node) -> None:
    """This process goes into the node, and all plugins that it starts with it."""
    if libc.setns(node.fd, CLONE_NEWNET):
        sys.exit("bench: cannot enter the node's namespace")


def install(node: Node) -> list[Way]:
    ways = []
    own = json.dumps({"cniVersion": "1.0.0", "name": "tweed", "type": "tweed"})
    for relay in ("c", "python"):
        directory = node.directory / relay
        command = ["cni", "install", "--bin-dir", str(directory), "--conf-dir", str(node.directory / "net.d"), "--relay", relay]
        subprocess.run([sys.executable, "-m", "tweed", *command, "--run-dir", str(node.directory / "run")], check=True, stdout=subprocess.DEVNULL)
        ways.append(Way(f"tweed, relay.{'c' if relay == 'c' else 'py'}", directory / "tweed", own))
    stand_in = node.directory / "flannel"
    subprocess.run(["cc", "-O2", "-static", "-o", stand_in, Path(__file__).with_name("flannel_stand_in.c")], check=True)
    delegate = {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "bridge",
        "bridge": "cni9",
        "mtu": 1450,
        "ipMasq": False,
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "dataDir": str(node.directory / "host-local"), "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "10.0.0.0/8"}]},
    }
    (node.directory / "delegate.json").write_text(json.dumps(delegate))
    (node.directory / "flannel-data").mkdir()
    os.environ["STAND_IN_CONF"] = str(node.directory / "delegate.json")
    os.environ["STAND_IN_DATA"] = str(node.directory / "flannel-data")
    os.environ["STAND_IN_ENV"] = str(node.directory / "subnet.env")
    return [Way("bridge + host-local (3 processes)", stand_in, json.dumps({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel"})), *ways]


def start(way: Way, command: str, name: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": f"/run/netns/{name}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/usr/lib/cni",
    }
    process = subprocess.Popen([way.program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(way.config.encode())
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen[bytes]) -> None:
    out, _ = process.communicate(timeout=60)
    if process.returncode:
        raise RuntimeError(out.decode())


def run(way: Way, command: str, names: Sequence[str]) -> None:
    """At once for all of them, until the last is done."""
    for process in [start(way, command, name) for name in names]:
        finish(process)


def measure(work: Callable[[], object], running: Agent) -> Cost:
    before, wall = used(running), time.perf_counter()
    work()
    wall = time.perf_counter() - wall
    return Cost(wall, used(running) - before)


def used(running: Agent) -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    running.drain()
    return children.ru_utime + children.ru_stime + cpu_s(running.pid)


def alone(ways: Sequence[Way], running: Agent) -> None:
    costs: dict[tuple[str, str], list[Cost]] = {}
    for number in range(-2, ROUNDS):
        names = [f"tweedb-{os.getpid()}-c{number % 1000}{letter}" for letter in "abc"]
        for name in names:
            netns.create(name)
        for command in ("ADD", "DEL"):
            for turn in range(len(ways)):
                at = (turn + number) % len(ways)
                cost = measure(partial(run, ways[at], command, [names[at]]), running)
                if number >= 0:
                    costs.setdefault((command, ways[at].name), []).append(cost)
        for name in names:
            netns.delete(name)
    show("one at a time", ways, costs, 1)


def together(ways: Sequence[Way], running: Agent) -> None:
    costs: dict[tuple[str, str], list[Cost]] = {}
    for batch in range(BATCHES):
        for turn in range(len(ways)):
            way = ways[(turn + batch) % len(ways)]
            names = [f"tweedb-{os.getpid()}-p{batch}{turn}-{i}" for i in range(PARALLEL)]
            for name in names:
                netns.create(name)
            for command in ("ADD", "DEL"):
                costs.setdefault((command, way.name), []).append(measure(partial(run, way, command, names), running))
            for name in names:
                netns.delete(name)
    show(f"{PARALLEL} at once, for all of them", ways, costs, PARALLEL)


def show(title: str, ways: Sequence[Way], costs: dict[tuple[str, str], list[Cost]], count: int) -> None:
    rows: list[tuple[Any, ...]] = []
    for command in ("ADD", "DEL"):
        peer = costs[command, ways[0].name]
        for way in ways:
            found = costs[command, way.name]
            rows.append(
                (
                    command if way is ways[0] else "",
                    way.name,
                    spread([c.wall for c in found], 1000),
                    ratio([c.wall for c in found], [c.wall for c in peer]) if way is not ways[0] else "1",
                    f"{1000 * statistics.mean(c.cpu for c in found) / count:.1f}",
                )
            )
    table((title, "", "ms", "× the chain", "CPU ms each"), rows)


if __name__ == "__main__":
    main()
