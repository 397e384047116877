"""A UDP stream from one namespace to another, a datagram every 10 ms: how many were lost, and how long nothing came."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time

from tests.system.cluster import Namespace

INTERVAL_S = 0.01
QUIET_S = 0.5  # nothing more comes when nothing came for so long


class Stream:
    """Runs from `with` on; what came is known after it. Each end is bound to its address, so both directions of a route matter to nobody else."""

    def __init__(self, sender: Namespace, source: str, receiver: Namespace, destination: str) -> None:
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        self.receiver = receiver.do(lambda: socket.socket(family, socket.SOCK_DGRAM))
        self.sender = sender.do(lambda: socket.socket(family, socket.SOCK_DGRAM))
        self.receiver.bind((destination, 0))
        self.sender.bind((source, 0))
        self.sender.setblocking(False)
        self.destination = self.receiver.getsockname()[:2]
        self.sent = 0
        self.came: dict[int, float] = {}
        self.ending, self.all_sent = threading.Event(), threading.Event()
        self.threads = [threading.Thread(target=self.send), threading.Thread(target=self.receive)]

    def send(self) -> None:
        while not self.ending.wait(INTERVAL_S):
            with contextlib.suppress(OSError):  # no route, no device, no buffer: lost, as any other
                self.sender.sendto(self.sent.to_bytes(4, "big"), self.destination)
            self.sent += 1
        self.all_sent.set()

    def receive(self) -> None:
        while not (all_sent := self.all_sent.is_set()) or len(self.came) < self.sent:
            if not select.select([self.receiver], [], [], QUIET_S if all_sent else INTERVAL_S)[0]:
                if all_sent:
                    return
                continue
            with contextlib.suppress(BlockingIOError):
                number = int.from_bytes(self.receiver.recv(16, socket.MSG_DONTWAIT), "big")
                self.came.setdefault(number, time.monotonic())

    def __enter__(self) -> Stream:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join()
        self.sender.close()
        self.receiver.close()

    @property
    def lost(self) -> list[int]:
        """Numbers of the datagrams that did not come."""
        return [number for number in range(self.sent) if number not in self.came]

    @property
    def hole_s(self) -> float:
        """The longest time without a datagram, in seconds."""
        times = sorted(self.came.values())
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)
