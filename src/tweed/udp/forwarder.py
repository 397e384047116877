"""The process that forwards: `python -m tweed.udp.forwarder TASK [TUN SOCKET]`, with a control.Task in JSON and the descriptors that an
earlier one had. It lives on when its agent ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import zlib
from typing import NamedTuple, Protocol

import msgspec

from tweed.addr import format_address, parse_address
from tweed.errors import KernelError, TweedError
from tweed.kernel import links, tun
from tweed.kernel.netlink import Netlink
from tweed.udp import icmp, outer
from tweed.udp.control import LONGEST, Report, Request, Task
from tweed.udp.naive import Naive
from tweed.udp.packet import COUNTERS
from tweed.udp.peers import Lookup

BURST = 16  # flannel leaves its receive buffer as the kernel makes it, and two long bursts overrun that
QUEUE = 1000  # packets; a TUN's own 500 is less than a window of bursts
FIRST_S = 10.0  # until the agent that started it says who the peers are


class Path(Protocol):
    """What the three data paths have in common."""

    def set_table(self, packed: bytes) -> None: ...
    def run(self, wake: int) -> list[tuple[str, bytes]]: ...
    def hosts(self) -> list[tuple[int, int, int]]: ...
    def counters(self) -> list[int]: ...


class Ends(NamedTuple):
    tun: int
    socket: socket.socket


class Opened(msgspec.Struct):
    """A data path in use: which, between what, and what was refused on the way to it."""

    path: Path
    name: str
    ends: Ends
    offloads: dict[str, str] = {}
    notes: list[str] = []


def open_path(task: Task, left: Ends | None) -> Opened:
    """The best data path of those that the task allows and this machine has. Raises KernelError."""
    notes: list[str] = []
    wanted = ["fast", "numpy", "naive"] if task.data_path == "auto" else list(dict.fromkeys([task.data_path, "fast", "numpy", "naive"]))
    for name in wanted:
        try:
            if name == "naive":
                ends = open_ends(task, left, virtio=False)
                return Opened(Naive(ends.tun, ends.socket, task.port), name, ends, {}, notes)
            return open_bursts(task, left, name, notes)
        except ImportError as error:
            notes.append(f"data path {name} is not there ({error}): " + HINTS[name])
        except KernelError as error:
            if name == "naive":
                raise
            notes.append(f"data path {name}: {error}")
            left = None
    raise AssertionError("naive is always among them")


HINTS = {"fast": "install tweed again where there is a C compiler", "numpy": "pip install tweed[udp]"}


def open_ends(task: Task, left: Ends | None, *, virtio: bool) -> Ends:
    """TUN and socket: those that an earlier process had where they are of the same kind, since packets may wait in them. Raises KernelError."""
    if left is not None:
        if tun.attached(left.tun) == (task.device, virtio) and left.socket.getsockname() == (task.local, task.port):
            return left
        os.close(left.tun)
        left.socket.close()
    opened = outer.open_socket(parse_address(task.local), task.port)
    try:
        return Ends(tun.attach(task.device, virtio=virtio), opened)
    except KernelError:
        opened.close()
        raise


def open_bursts(task: Task, left: Ends | None, name: str, notes: list[str]) -> Opened:
    """The data paths that use offloads: each is asked for by itself, and done without where it is refused."""
    if name == "fast":
        from tweed.udp.fast import Core
    else:
        from tweed.udp.vector import Vector
    ends = open_ends(task, left, virtio=True)
    checksum = tun.F_CSUM
    tcp = checksum | tun.F_TSO4 | tun.F_TSO_ECN
    offloads = {"virtio-header": "", "udp-segment": outer.can_segment(ends.socket), "udp-gro": outer.receive_bursts(ends.socket)}
    offloads["tun-tso"] = tun.turn_on(ends.tun, tcp)
    # The kernel grants segmentation of UDP for both families together only, from Linux 6.2.
    offloads["tun-uso"] = offloads["tun-tso"] or tun.turn_on(ends.tun, tcp | tun.F_USO4 | tun.F_USO6)
    if offloads["tun-tso"]:
        offloads["tun-checksum"] = tun.turn_on(ends.tun, checksum)
    lengthen_queue(task.device, offloads)
    segment, merge_tcp, merge_udp = (not offloads[key] for key in ("udp-segment", "tun-tso", "tun-uso"))
    path: Path
    if name == "fast":
        path = Core(ends.tun, ends.socket.fileno(), segment, merge_tcp, merge_udp, BURST, task.port)
    else:
        path = Vector(ends.tun, ends.socket, task.port, segment=segment, merge_tcp=merge_tcp, merge_udp=merge_udp, burst=BURST)
    return Opened(path, name, ends, offloads, notes)


def lengthen_queue(device: str, offloads: dict[str, str]) -> None:
    # Not gso_max_segs too: a pod behind a bridge does not know of it, and the kernel cuts packets that have more one by one.
    with Netlink() as netlink:
        try:
            links.set_queue(netlink, device, QUEUE)
        except KernelError as error:
            offloads["tun-queue"] = error.text


class Forwarder:
    """A data path, its table, and the agent's requests."""

    def __init__(self, task: Task, opened: Opened) -> None:
        self.task, self.opened = task, opened
        self.allowance = icmp.Allowance()
        self.own, self.digest, self.knows = 0, 0, False
        self.told = self.silent = 0
        self.raw = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        self.epoll = select.epoll()
        self.listening = listen(task.socket)
        self.epoll.register(self.listening, select.EPOLLIN)
        self.connections: dict[int, socket.socket] = {}
        self.ending = False

    def run(self) -> None:
        """Until told to end. Raises OSError when the TUN is gone, TweedError when nobody says who the peers are: until then packets wait."""
        while not self.ending:
            if self.knows:
                for why, quote in self.opened.path.run(self.epoll.fileno()):
                    self.tell(why, quote)
            requests = self.epoll.poll(0 if self.knows else FIRST_S)
            if not requests and not self.knows:
                raise TweedError("no agent told it of peers")
            for descriptor, _ in requests:
                if descriptor == self.listening.fileno():
                    self.accept()
                else:
                    self.serve(descriptor)

    def tell(self, why: str, quote: bytes) -> None:
        answer = icmp.answer(why, quote, self.own)
        if answer is None or not self.allowance.take(time.monotonic()):
            self.silent += 1
            return
        try:
            self.raw.sendto(answer, (format_address(answer[16:20]), 0))
            self.told += 1
        except OSError:
            self.silent += 1

    def accept(self) -> None:
        with contextlib.suppress(OSError):  # it gave up already, or there are no descriptors left
            connection, _ = self.listening.accept()
            connection.setblocking(False)
            self.connections[connection.fileno()] = connection
            self.epoll.register(connection, select.EPOLLIN)

    def serve(self, descriptor: int) -> None:
        connection = self.connections[descriptor]
        try:
            message = connection.recv(LONGEST)
            if message:
                request = msgspec.msgpack.decode(message, type=Request)
                lent = [self.opened.ends.tun, self.opened.ends.socket.fileno()] if request.descriptors else []
                socket.send_fds(connection, [msgspec.msgpack.encode(self.answer(request))], lent)
                return
        except (OSError, msgspec.DecodeError, ValueError):  # whoever says what nobody understands is not listened to
            pass
        self.epoll.unregister(connection)
        del self.connections[descriptor]
        connection.close()

    def answer(self, request: Request) -> Report:
        if request.table is not None:
            self.own = Lookup(request.table[:12]).own
            self.opened.path.set_table(request.table)
            self.digest, self.knows = zlib.crc32(request.table), True
        self.ending = request.end
        hosts = self.opened.path.hosts()
        return Report(
            task=self.task,
            pid=os.getpid(),
            data_path=self.opened.name,
            offloads=self.opened.offloads,
            notes=tuple(self.opened.notes),
            counters=dict(zip(COUNTERS, self.opened.path.counters(), strict=True)) | {"icmp-sent": self.told, "icmp-withheld": self.silent},
            fast_peers=sum(bool(shown) for _, shown, _ in hosts),
            segmenting_off={format_address(host.to_bytes(4)): error for host, _, error in hosts if error},
            table=self.digest,
        )


def listen(path: str) -> socket.socket:
    """The agent's way in. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        listening.bind(path)
    finally:
        os.umask(before)
    listening.listen(8)
    return listening


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent
    task = msgspec.json.decode(sys.argv[1], type=Task)
    try:
        left = None
        if sys.argv[2:]:
            device, opened = map(int, sys.argv[2:])
            left = Ends(device, socket.socket(fileno=opened))
            left.socket.setblocking(False)
        Forwarder(task, open_path(task, left)).run()
    except (OSError, TweedError) as error:
        raise SystemExit(f"tweed: the forwarding process of {task.device}: {error}") from None


if __name__ == "__main__":
    main()
