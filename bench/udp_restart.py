"""The UDP mode's process is killed (SIGKILL) under a datagram every millisecond, pod to pod in a lab: how many are lost, and for how long none arrives.

The floor is the same stream with nothing killed. What cannot be saved is the start of another process: until it answers.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from typing import NamedTuple

from bench.common import circumstances, spread, table
from tweed.kernel.netns import open_netns, run_in
from tweed.lab import cluster, topology
from tweed.lab.registry import Lab, Node
from tweed.udp.control import Report, Request, ask

NAME = "udpb"
EVERY_S = 0.001
BEFORE_S, AFTER_S = 0.5, 2.5  # of the stream, around the kill


class Stream(NamedTuple):
    """Datagrams sent and lost, and seconds: the longest without an arrival, the longest that one was under way, until another process answered."""

    sent: int
    lost: int
    silence: float
    late: float
    answer: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-path", choices=["fast", "numpy", "naive"], default="fast")
    given = parser.parse_args()
    with circumstances(f"A process of the UDP mode ({given.data_path}) is killed, {given.rounds} rounds"):
        found: dict[str, list[Stream]] = {"nobody": [], "the sender's": [], "the receiver's": []}
        lab = cluster.up(NAME, topology.with_backend(topology.generic(2, 1), f'udp:{{"DataPath": "{given.data_path}"}}'), lambda _: None)
        try:
            for _ in range(given.rounds):
                for streams, victim in zip(found.values(), (None, *lab.nodes), strict=True):
                    streams.append(stream(lab, victim))
        finally:
            cluster.down(NAME, lambda _: None)
    rows = []
    for name, streams in found.items():
        row = [name, *(spread([each[column] for each in streams], digits=0) for column in (0, 1))]
        rows.append([*row, *(spread([each[column] for each in streams], 1000, 0) for column in (2, 3, 4))])
    table(["killed", "sent", "lost", "longest silence, ms", "longest under way, ms", "another answers, ms"], rows)


def stream(lab: Lab, victim: Node | None) -> Stream:
    """Datagrams from the first node's pod to the second's, and a kill in their midst. One that could not even be sent is lost, too."""
    source, target = (node.pods[0] for node in lab.nodes)
    sent: list[float] = []
    arrived: dict[int, float] = {}
    answer = 0.0
    with udp_socket(source.netns) as sending, udp_socket(target.netns) as receiving:
        receiving.bind((target.ips[0], 0))
        sending.connect(receiving.getsockname())
        receiving.settimeout(0.5)

        def receive() -> None:
            with contextlib.suppress(TimeoutError):
                while True:
                    arrived[int.from_bytes(receiving.recv(100))] = time.monotonic()

        def send() -> None:
            until = time.monotonic() + BEFORE_S + AFTER_S
            while (now := time.monotonic()) < until:
                sent.append(now)
                with contextlib.suppress(OSError):
                    sending.send(len(sent).to_bytes(8))
                time.sleep(EVERY_S)

        threads = [threading.Thread(target=each) for each in (receive, send)]
        for thread in threads:
            thread.start()
        time.sleep(BEFORE_S)
        if victim is not None:
            start, before = time.monotonic(), report(victim).pid
            os.kill(before, signal.SIGKILL)
            while answer == 0.0:
                with contextlib.suppress(OSError):
                    if report(victim).pid != before:
                        answer = time.monotonic() - start
                time.sleep(0.005)
        for thread in threads:
            thread.join()
    times = sorted(arrived.values())
    silence = max(after - before for before, after in itertools.pairwise(times))
    late = max(at - sent[number - 1] for number, at in arrived.items())
    return Stream(len(sent), len(sent) - len(arrived), silence, late, answer)


def udp_socket(netns: str) -> socket.socket:
    descriptor = open_netns(netns)
    try:
        return run_in(descriptor, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    finally:
        os.close(descriptor)


def report(node: Node) -> Report:
    return ask(node.socket.parent / "udp.sock", Request())


if __name__ == "__main__":
    main()
