"""A few nodes in namespaces of their own on one bridge, with real agents as separate processes: not the lab, and nothing but the agent is tweed's.

    tweeda-PID-N  ens33 192.168.2.1, fd00:192::1 ─┐
    tweeda-PID-M  ens33 192.168.2.2, fd00:192::2 ─┴─ bridge in a namespace of its own

Traffic between nodes goes from VTEP address to VTEP address: through route, neighbour, fdb and the wire, without any container.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tweed.agent.client import AgentError, call
from tweed.kernel import netns

T = TypeVar("T")
NUMBERS = itertools.count()
V4 = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
DUAL = {**V4, "EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
# The same agent, deaf to the kernel: only its tick can notice anything.
DEAF = "import os, sys; from tweed.config import load; from tweed.agent.main import run; run(load(sys.argv[1:], os.environ, '')[0], watch_kernel=False)"


def wait_for(condition: Callable[[], T], what: str, deadline_s: float = 30.0) -> T:
    """The first true result. Until then an agent that cannot be asked and a command that fails mean no."""
    end = time.monotonic() + deadline_s
    last: Any = None
    while time.monotonic() < end:
        try:
            if last := condition():
                return last
        except (AgentError, OSError, RuntimeError) as error:
            last = error
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {deadline_s:.0f} s; last: {last!r}")


class Namespace:
    def __init__(self) -> None:
        self.name = f"tweeda-{os.getpid()}-{next(NUMBERS)}"
        netns.create(self.name)
        self.fd = netns.open_netns(self.name)
        self.sh("ip link set lo up; sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")

    def argv(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}", *words]

    def sh(self, script: str) -> str:
        """The output of a shell script inside; RuntimeError when a command fails."""
        done = subprocess.run(self.argv("sh", "-euc", script), capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{script}: {done.stderr.strip()}")
        return done.stdout

    def do(self, function: Callable[[], T]) -> T:
        return netns.run_in(self.fd, function)

    def remove(self) -> None:
        os.close(self.fd)
        netns.delete(self.name)


class Node(Namespace):
    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__()
        self.cluster, self.node, self.ip, self.ip6 = cluster, f"n{number}", f"192.168.2.{number}", f"fd00:192::{number:x}"
        self.directory = cluster.directory / self.node
        self.log, self.subnet_file = self.directory / "log", self.directory / "subnet.env"
        self.socket, self.state = self.directory / "run/agent.sock", self.directory / "state"
        self.process: subprocess.Popen[bytes] | None = None
        self.iface: tuple[str, ...] = ("--iface", "ens33")
        self.directory.mkdir()

    @property
    def flags(self) -> list[str]:
        directories = ["--run-dir", str(self.socket.parent), "--state-dir", str(self.state), "--subnet-file", str(self.subnet_file)]
        return ["--store", self.cluster.store, "--node-name", self.node, *self.iface, "--net-config-path", "/nonexistent", *directories]

    def tweed(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A tweed command inside, for this node's agent and store."""
        environment = self.cluster.environment | {"TWEED_SOCKET": str(self.socket), "TWEED_STORE": self.cluster.store}
        return subprocess.run(self.argv(sys.executable, "-m", "tweed", *words), env=environment, capture_output=True, text=True, timeout=60, check=False)

    def start(self, *flags: str, driver: str = "", ready: bool = True) -> None:
        program = ["-c", driver] if driver else ["-m", "tweed", "agent"]
        with self.log.open("ab") as log:
            command = self.argv(sys.executable, *program, *self.flags, *flags)
            self.process = subprocess.Popen(command, env=self.cluster.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if ready:
            wait_for(lambda: self.status()["ready"], f"{self.node} ready (log: {self.log})")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send the agent a signal and wait for its end; its exit status. Nothing happens when there is none."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(30)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Its agent changes nothing meanwhile."""
        call(self.socket, "POST", "/v1/pause")
        try:
            yield
        finally:
            call(self.socket, "POST", "/v1/resume")

    def status(self) -> dict[str, Any]:
        return call(self.socket, "GET", "/v1/status", timeout_s=30.0)

    def problems(self) -> set[str]:
        return {problem["id"] for problem in self.status()["problems"]}

    def tables(self) -> list[str]:
        """What the overlay consists of here, as ip and bridge show it, without device numbers and what the kernel adds for IPv6's link."""
        shown = "ip -d -o link show $d; ip -o addr show $d; ip route show dev $d; ip -6 route show dev $d; ip neigh show dev $d; bridge fdb show dev $d"
        script = f'for d in $(ip -o link show type vxlan | cut -d: -f2); do {{ {shown}; }} | sed "s/^[0-9]*: //; s/^/$d: /"; done'
        return sorted(line.rstrip() for line in self.sh(script).splitlines() if "fe80::" not in line)


class Cluster(contextlib.ExitStack):
    """Nodes 1 to `count` without agents, removed at the end of `with`; `config` is put into the store."""

    def __init__(self, directory: Path, count: int, config: dict[str, Any] | None = V4) -> None:
        super().__init__()
        self.directory, self.store, self.nodes = directory, f"sqlite://{directory}/store.db", list[Node]()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("TWEED_", "FLANNELD_", "NODE_NAME")) or k == "TWEED_MACHINE_BEFORE"}
        with contextlib.ExitStack() as stack:  # what was made is removed when the rest cannot be
            self.switch = Namespace()
            stack.callback(self.switch.remove)
            self.switch.sh("ip link add switch type bridge; ip link set switch up")
            for number in range(1, count + 1):
                self.nodes.append(node := Node(self, number))
                stack.callback(node.remove)
                stack.callback(node.end, signal.SIGKILL)
                self.switch.sh(f"ip link add p{number} type veth peer name ens33 netns {node.name}; ip link set p{number} master switch up")
                node.sh(f"ip link set ens33 up; ip addr add {node.ip}/16 dev ens33; ip addr add {node.ip6}/64 dev ens33 nodad")
            if config is not None:
                self.configure(json.dumps(config))
            self.push(stack.pop_all())

    def configure(self, text: str) -> None:
        done = self.nodes[0].tweed("net", "set", text)
        assert done.returncode == 0, done.stderr

    def start(self, *flags: str) -> None:
        """All agents at the same moment, until each is ready and has programmed every other."""
        for node in self.nodes:
            node.start(*flags, ready=False)
        for node in self.nodes:
            wait_for(lambda node=node: [p["state"] for p in node.status()["peers"]] == ["programmed"] * (len(self.nodes) - 1), f"{node.node} has all peers")
