"""`tweed bench crossings`: how often one packet makes somebody enter the kernel, counted while real packets pass.

Every thread of every process in both nodes' namespaces is watched, and the two threads here that send and receive. A call is useful when it
moved bytes; all others (probes that find nothing, polls, clocks) are crossings too and move none.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from tweed.bench.grounds import LIMIT, Ground
from tweed.errors import TweedError
from tweed.kernel import netns
from tweed.kernel.netlink import SO_RCVBUFFORCE
from tweed.kernel.perf import Counter, moves_data, threads_of
from tweed.lab import processes

ENTER, EXIT = "raw_syscalls/sys_enter", "raw_syscalls/sys_exit"
DATAGRAMS, PACE_S, SIZE = 2000, 0.0005, 64
STREAM_BYTES, CHUNK = 32 << 20, 1 << 16
TCP_INFO_SEGMENTS_OUT = 136  # struct tcp_info, tcpi_segs_out: with every segment of a burst counted
PATIENCE_S = 10.0
SETTLE_S = 1.5  # an agent looks once more a second after it wrote to nftables


class Calls(msgspec.Struct, frozen=True):
    """System calls: those that moved bytes, and the others."""

    useful: int
    empty: int


class Passage(msgspec.Struct, frozen=True):
    """What one way did for one kind of traffic.

    `packets`: on the wire, segments of a burst each counted; `skbs`: what the underlay device counted, a burst being one; `device`: the overlay's
    device at the sender and the packets that it transmitted meanwhile. `sender`, `receiver`: processes of the two nodes.
    """

    way: str
    traffic: str
    packets: int
    received: int
    skbs: int
    device: str
    through_device: int
    app_send: Calls
    sender: Calls
    receiver: Calls
    app_receive: Calls


def observe(grounds: list[Ground], say: Callable[[str], None]) -> list[Passage]:
    """Each way with paced datagrams and with a TCP stream. Raises TweedError when nothing passes."""
    found = []
    time.sleep(SETTLE_S)
    for ground in grounds:
        for traffic, run in (("64-byte datagrams", datagrams), ("TCP stream", stream)):
            say(f"{ground.name}: {traffic}")
            found.append(_observe(ground, traffic, run))
    return found


class Ends:
    """A sender and a receiver that have their sockets and wait to be let go, each in a thread of its own, with what they did."""

    def __init__(self, send: Callable[[], int], receive: Callable[[], int]) -> None:
        self.go = threading.Event()
        self.counts = [0, 0]
        self.threads = [threading.Thread(target=self._run, args=(at, work), daemon=True) for at, work in enumerate((send, receive))]
        for thread in self.threads:
            thread.start()

    def _run(self, at: int, work: Callable[[], int]) -> None:
        self.go.wait()
        with contextlib.suppress(OSError):  # the other end has given up, which the counts show
            self.counts[at] = work()

    def finish(self) -> None:
        for thread in self.threads:
            thread.join(2 * PATIENCE_S)


@contextlib.contextmanager
def datagrams(client: int, server: int, address: str) -> Iterator[tuple[Ends, Callable[[], int]]]:
    """`DATAGRAMS` of `SIZE` bytes, paced, so that nothing can be put together."""
    with (
        netns.run_in(client, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as out,
        netns.run_in(server, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as into,
    ):
        into.bind((address, 0))
        out.connect(into.getsockname())
        # A timeout of Python's would cost a poll for each datagram. There is room for all of them, should the receiver be held up.
        into.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(PATIENCE_S), 0))
        into.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, DATAGRAMS * 2048)

        def send() -> int:
            due = time.monotonic()
            for _ in range(DATAGRAMS):
                due += PACE_S
                if (left := due - time.monotonic()) > 0:
                    time.sleep(left)
                out.send(bytes(SIZE))
            return DATAGRAMS

        def receive() -> int:
            got = 0
            while got < DATAGRAMS:
                try:
                    into.recv(2048)
                except BlockingIOError:
                    break
                got += 1
            return got

        out.send(b"first")  # neighbours are found before anything is counted
        into.recv(2048)
        ends = Ends(send, receive)
        yield ends, lambda: ends.counts[0]


@contextlib.contextmanager
def stream(client: int, server: int, address: str) -> Iterator[tuple[Ends, Callable[[], int]]]:
    """`STREAM_BYTES` over TCP, as fast as it goes."""
    with (
        netns.run_in(server, lambda: socket.create_server((address, 0))) as listener,
        netns.run_in(client, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as out,
    ):
        out.settimeout(PATIENCE_S)
        listener.settimeout(PATIENCE_S)
        out.connect(listener.getsockname())
        into, _ = listener.accept()
        with into:
            out.settimeout(None)
            into.settimeout(None)
            before = segments(out)

            def send() -> int:
                for _ in range(STREAM_BYTES // CHUNK):
                    out.sendall(bytes(CHUNK))
                out.shutdown(socket.SHUT_WR)
                return STREAM_BYTES

            def receive() -> int:
                got = 0
                while data := into.recv(CHUNK):
                    got += len(data)
                return got

            yield Ends(send, receive), lambda: segments(out) - before


def segments(connection: socket.socket) -> int:
    """How many segments the kernel has sent of it."""
    return int.from_bytes(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)[TCP_INFO_SEGMENTS_OUT:][:4], sys.byteorder)


def _observe(ground: Ground, traffic: str, run: Callable[[int, int, str], contextlib.AbstractContextManager[tuple[Ends, Callable[[], int]]]]) -> Passage:
    lab = ground.lab
    assert lab is not None
    here, there = lab.nodes
    with contextlib.ExitStack() as stack:
        client, server, node = (netns.open_netns(space) for space in (ground.client, ground.server, here.netns))
        for descriptor in (client, server, node):
            stack.callback(os.close, descriptor)
        try:
            ends, packets = stack.enter_context(run(client, server, ground.address))
        except OSError as error:
            raise TweedError(f"{ground.name}: nothing passes: {error.strerror or error}") from None
        groups = [
            [ends.threads[0].native_id or 0],
            threads_of(processes.inside([here.inode])),
            threads_of(processes.inside([there.inode])),
            [ends.threads[1].native_id or 0],
        ]
        entered = [stack.enter_context(Counter(ENTER, group)) for group in groups]
        moved = [stack.enter_context(Counter(EXIT, group, moves_data())) for group in groups]
        before, all0, useful0 = transmitted(node), [c.read() for c in entered], [c.read() for c in moved]
        ends.go.set()
        ends.finish()
        all1, useful1, after = [c.read() for c in entered], [c.read() for c in moved], transmitted(node)
        received = ends.counts[1]
        if not received:
            raise TweedError(f"{ground.name}: nothing arrived at {ground.address}")
        # A thread's last call may still be on its way out of the kernel: it has entered and not left.
        calls = [Calls(useful, max(0, total - useful)) for total, useful in zip(_less(all1, all0), _less(useful1, useful0), strict=True)]
        device = next((name for name in after if name.startswith("flannel")), "") if ground.name != LIMIT else ""
        return Passage(
            way=ground.name,
            traffic=traffic,
            packets=packets(),
            received=received,
            skbs=after["ens33"] - before["ens33"],
            device=device,
            through_device=after[device] - before[device] if device else 0,
            app_send=calls[0],
            sender=calls[1],
            receiver=calls[2],
            app_receive=calls[3],
        )


def _less(after: list[int], before: list[int]) -> list[int]:
    return [a - b for a, b in zip(after, before, strict=True)]


def transmitted(space: int) -> dict[str, int]:
    """Packets that each device of a namespace has transmitted (proc(5), net/dev)."""

    def read() -> str:
        with open("/proc/thread-self/net/dev") as file:
            return file.read()

    rows = [line.split() for line in netns.run_in(space, read).splitlines()[2:]]
    return {row[0].rstrip(":"): int(row[10]) for row in rows}


def lines(passages: list[Passage]) -> list[str]:
    """The table, and what it says."""
    head = ("way", "traffic", "packets", "skbs", "app sends", "node A useful + empty", "node B useful + empty", "app receives", "overlay device")
    rows: list[tuple[str, ...]] = [head]
    for p in passages:
        n = max(p.packets, 1)
        device = f"{p.device} sent {p.through_device}" if p.device else "none"
        between = [f"{calls.useful / n:.3f} + {calls.empty / n:.3f}" for calls in (p.sender, p.receiver)]
        ends = [f"{calls.useful / n:.3f}" for calls in (p.app_send, p.app_receive)]
        rows.append((p.way, p.traffic, str(p.packets), str(p.skbs), ends[0], *between, ends[1], device))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    out = ["system calls per packet on the wire, that moved data (useful) or none (empty); nodes: all processes there, agents and forwarders", ""]
    out += ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*out, "", *reading(passages)]


def reading(passages: list[Passage]) -> list[str]:
    """What the figures mean, from the figures themselves."""
    out = []
    for p in passages:
        n, s = max(p.packets, 1), max(p.skbs, 1)
        app, useful, empty = p.app_send.useful / n, p.sender.useful / n, p.sender.empty / n
        if p.way.startswith("udp"):
            out += [
                f"{p.way}, {p.traffic}: {app + useful:.2f} crossings that move data to send one packet, {app:.2f} by the application and {useful:.2f} by the",
                f"  forwarder, which makes {empty:.2f} more that move none; per skb of the underlay it is {p.sender.useful / s:.2f}",
            ]
        elif p.device:
            out += [
                f"{p.way}, {p.traffic}: {p.device} sent {p.through_device} packets while all processes of its node made "
                f"{p.sender.useful + p.sender.empty} system calls:",
                "  the kernel encapsulates without entering it any further",
            ]
    return [*out, "an application's own call is in every way's count; a call that moves a burst is one crossing for all its packets (packets / skbs)"]
