"""Labs for the system tests: the seed's cluster (`lab`) and the same with both families (`lab6`), one of each per run, always removed.

They are shared: a test that breaks something waits until the agents have healed it, or heals it itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from tweed.agent.client import call
from tweed.kernel.netns import open_netns, run_in
from tweed.lab import registry
from tweed.wire.packet.checksum import internet_checksum

TWEED = [sys.executable, "-m", "tweed"]
SOURCE = Path(__file__).parent.parent.parent / "src"
PATIENCE_S = 20.0  # how long something that must happen may take on a busy machine


def tweed(*words: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Run the command `tweed`. Nothing is checked."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.run([*TWEED, *words], capture_output=True, text=True, timeout=timeout, check=False, env=environment, stdin=subprocess.DEVNULL)


class Pod(NamedTuple):
    node: str
    name: str
    netns: str
    ips: tuple[str, ...]

    def ip(self, family: int = 4) -> str:
        return next(ip for ip in self.ips if (":" in ip) == (family == 6))

    def __str__(self) -> str:
        return f"{self.node}/{self.name}"

    def do(self, function: Callable[[], Any]) -> Any:
        """What the function returns inside: with it a pod can be the end of a `Stream`."""
        descriptor = open_netns(self.netns)
        try:
            return run_in(descriptor, function)
        finally:
            os.close(descriptor)


class Lab(registry.Lab, frozen=True):
    """A lab that is up: its registry entry, and what tests do with it."""

    def tweed(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`tweed lab WORDS --name NAME` (the name comes right after the subcommand)."""
        return tweed("lab", words[0], "--name", self.name, *words[1:])

    def status(self) -> dict[str, Any]:
        """What `lab status --json` prints, checked for exit code 0."""
        done = self.tweed("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def node_status(self, name: str) -> dict[str, Any]:
        return next(node for node in self.status()["nodes"] if node["name"] == name)

    @property
    def pods(self) -> list[Pod]:
        """All pods of the overlay."""
        return [Pod(node.name, pod.name, pod.netns, pod.ips) for node in self.nodes for pod in node.pods if not pod.outside]

    def pod(self, where: str) -> Pod:
        """`node/pod`."""
        return next(pod for pod in self.pods if str(pod) == where)

    def run(self, where: str, script: str) -> str:
        """The output of shell commands in a namespace of the lab. A command that fails fails the test."""
        command = ["nsenter", f"--net=/run/netns/{self.netns(where)}", "sh", "-euc", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{where}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def lines(self, where: str, script: str) -> list[str]:
        return [line.rstrip() for line in self.run(where, script).splitlines()]

    def socket(self, where: str, *arguments: Any) -> socket.socket:
        """A socket made inside a namespace of the lab: `socket.socket(*arguments)`."""
        return socket_in(self.netns(where), *arguments)

    def agent(self, node: str, method: str = "GET", path: str = "/v1/status", body: Any = None) -> Any:
        """Ask a node's agent."""
        return call(self.node(node).socket, method, path, body)

    def whole(self) -> bool:
        """Every agent is ready and has programmed every other node."""
        documents = [self.agent(node.name) for node in self.nodes]
        return all(d["ready"] and sum(p["state"] == "programmed" for p in d["peers"]) == len(documents) - 1 for d in documents)


def load(name: str) -> Lab:
    """The lab of that name, which is up."""
    return Lab(**msgspec.structs.asdict(registry.load(name)))


def node_names(name: str) -> list[str]:
    lab = registry.read(name)
    return [node.name for node in lab.nodes] if lab is not None else []


def socket_in(netns: str, *arguments: Any) -> socket.socket:
    descriptor = open_netns(netns)
    try:
        return run_in(descriptor, lambda: socket.socket(*arguments))
    finally:
        os.close(descriptor)


def eventually(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition()`. Fails the test when there is none for a long time."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        time.sleep(0.02)
    return value


def ping(pairs: Iterable[tuple[str, str]], rounds: int = 1, patience_s: float = PATIENCE_S) -> set[tuple[str, str]]:
    """ICMP echo requests from namespaces to addresses, all at once: the pairs (namespace, address) that were NOT answered.

    Each pair has `rounds` requests, and passes when all of them are answered.
    """
    pairs = list(dict.fromkeys(pairs))
    missing = {(pair, number) for pair in pairs for number in range(rounds)}
    with contextlib.ExitStack() as stack:
        sockets: dict[tuple[str, int], socket.socket] = {}
        for netns, address in pairs:
            key = netns, 6 if ":" in address else 4
            if key not in sockets:
                kind = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if key[1] == 6 else (socket.AF_INET, socket.IPPROTO_ICMP)
                sockets[key] = made = stack.enter_context(socket_in(netns, kind[0], socket.SOCK_RAW, kind[1]))
                made.setblocking(False)
                made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)  # all answers wait there until all requests are sent
        owners = {made.fileno(): (key, made) for key, made in sockets.items()}
        poll = select.poll()
        for descriptor in owners:
            poll.register(descriptor, select.POLLIN)
        for number in range(rounds):
            for netns, address in pairs:
                family = 6 if ":" in address else 4
                sockets[netns, family].sendto(echo_request(family, number), (address, 0))
        deadline = time.monotonic() + patience_s
        while missing and time.monotonic() < deadline:
            for descriptor, _ in poll.poll(200):
                (netns, family), made = owners[descriptor]
                data, sender = made.recvfrom(2048)
                body = data[(data[0] & 15) * 4 :] if family == 4 else data
                if body[0] == (0 if family == 4 else 129) and body[4:6] == IDENTIFIER:
                    missing.discard(((netns, sender[0]), struct.unpack("!H", body[6:8])[0]))
    return {pair for pair, _ in missing}


IDENTIFIER = b"tw"
SO_RCVBUFFORCE = 33


def echo_request(family: int, number: int) -> bytes:
    kind = 8 if family == 4 else 128
    message = struct.pack("!BBH2sH", kind, 0, 0, IDENTIFIER, number) + b"tweed system test"[:16]
    return message if family == 6 else message[:2] + internet_checksum(message).to_bytes(2, "big") + message[4:]  # of IPv6 the kernel fills it in


def all_pairs(pods: list[Pod], family: int = 4) -> list[tuple[str, str]]:
    """(namespace, address) of every pod to every other."""
    return [(a.netns, b.ip(family)) for a in pods for b in pods if a is not b]


@contextlib.contextmanager
def running(name: str, *options: str) -> Iterator[Lab]:
    """A lab of one's own."""
    try:
        done = tweed("lab", "up", "--name", name, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        yield load(name)
    finally:
        if name in registry.names():
            logs = {node: tweed("lab", "logs", "--name", name, node, "-n", "40").stdout for node in node_names(name)} if sys.exc_info()[0] else {}
            down = tweed("lab", "down", "--name", name)
            for node, text in logs.items():
                print(f"---- last lines of {node}'s agent\n{text}")
            assert down.returncode == 0, down.stderr


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The seed's cluster."""
    with running(f"t{os.getpid()}") as made:
        yield made


@pytest.fixture(scope="session")
def lab6() -> Iterator[Lab]:
    """The seed's cluster in both families."""
    with running(f"u{os.getpid()}", "--ipv6") as made:
        yield made
