"""One rtnetlink socket: many changes in one send, single requests, dumps.

The kernel handles every message of a send before send() returns. Changes go out without asking for acknowledgements, so only
refusals answer, each with the sequence number of its message; one acknowledged no-op at the end (the fence) says that all has been
answered. A refusal never stops the messages behind it. And since all answers are queued by then, the socket never needs to block.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Sequence
from struct import Struct

from tweed.errors import KernelError
from tweed.kernel.netns import run_in
from tweed.wire import netlink as wire

SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SIOCGIFNAME = 0x8910
BUFFER = 4 << 20
BATCH = 3000
# What one refusal can cost in the receive buffer (its skb's truesize), so that a batch of nothing but refusals fits.
REFUSAL = 2048
# The kernel fills dumps in pieces of at most 32 KiB; a single link with many virtual functions may be larger.
RECEIVE = 1 << 17
DUMP_TRIES = 5

PATCH = Struct("=I")
IFREQ = Struct("=16si20x")


def open_socket(netns: int | None, groups: int = 0, receive_buffer: int = BUFFER) -> socket.socket:
    """A bound NETLINK_ROUTE socket that does not block, in the namespace of that file descriptor (None: the caller's)."""

    def make() -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    try:
        opened = make() if netns is None else run_in(netns, make)
    except OSError as error:
        raise KernelError("open an rtnetlink socket", error.errno or 0, error.strerror or str(error)) from None
    return set_up(opened, groups, receive_buffer)


def set_up(opened: socket.socket, groups: int = 0, receive_buffer: int = BUFFER) -> socket.socket:
    """Bind a new NETLINK_ROUTE socket and make it as the rest of this file expects it.

    `receive_buffer` in bytes of payload and bookkeeping; the kernel doubles it and takes memory only for what waits.
    """
    for forced, plain, size in ((SO_RCVBUFFORCE, socket.SO_RCVBUF, receive_buffer), (SO_SNDBUFFORCE, socket.SO_SNDBUF, BUFFER)):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, size)
        except PermissionError:  # no CAP_NET_ADMIN over the first namespace: as much as net.core.[rw]mem_max grants
            opened.setsockopt(socket.SOL_SOCKET, plain, size)
    for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
        opened.setsockopt(SOL_NETLINK, option, 1)
    opened.bind((0, groups))
    opened.setblocking(False)
    return opened


class Netlink:
    """One socket, for one thread at a time. `port` is its port id, which the notifications of its changes carry."""

    def __init__(self, netns: int | None = None, *, opened: socket.socket | None = None) -> None:
        """`netns`: file descriptor of the namespace to work in (it may be closed afterwards), None for the caller's own. `opened`: a
        new rtnetlink socket that somebody has made there already."""
        self._socket = open_socket(netns) if opened is None else set_up(opened)
        self.port: int = self._socket.getsockname()[0]
        self._sequence = 0
        self._batch_bytes = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 4
        self._batch = max(1, min(BATCH, self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // REFUSAL))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def device_name(self, index: int) -> str | None:
        """The name of the device with that index in the socket's namespace, None when there is none. (By ioctl: a tenth of a request's time.)"""
        try:
            answer = fcntl.ioctl(self._socket, SIOCGIFNAME, IFREQ.pack(b"", index))
        except OSError:
            return None
        return wire.read_text(answer[:16])

    def send(self, messages: Sequence[bytes]) -> dict[int, tuple[int, str]]:
        """Have the kernel carry out all messages, in order. Returns those refused: position -> errno and the kernel's words.

        The messages ask for no acknowledgement (no ACK flag) and must be changes, not gets. Raises KernelError only when the
        kernel's answers were lost, so that nobody knows which of the messages took effect.
        """
        refused: dict[int, tuple[int, str]] = {}
        first = 0
        while first < len(messages):
            size, last = 0, first
            while last < len(messages) and last - first < self._batch and (size == 0 or size + len(messages[last]) < self._batch_bytes):
                size += len(messages[last])
                last += 1
            self._send_batch(messages[first:last], first, refused)
            first = last
        return refused

    def _send_batch(self, batch: Sequence[bytes], first: int, refused: dict[int, tuple[int, str]]) -> None:
        base = self._sequence + 1
        fence = self._sequence = base + len(batch)
        # A control message is not for rtnetlink: the kernel only acknowledges it (netlink_rcv_skb).
        data = bytearray(b"".join(batch) + wire.message(wire.NOOP, wire.REQUEST | wire.ACK, b""))
        at = wire.SEQUENCE_AT
        for sequence, message in enumerate(batch, base):
            PATCH.pack_into(data, at, sequence & 0xFFFFFFFF)
            at += len(message)
        PATCH.pack_into(data, at, fence & 0xFFFFFFFF)
        self._write(data, "send a netlink batch")
        while True:
            answer = self._read("send a netlink batch")
            for kind, flags, sequence, _, start, end in wire.messages(answer):
                if kind != wire.ERROR:
                    continue
                position = (sequence - base) & 0xFFFFFFFF
                if position == len(batch):
                    return
                code, text = wire.read_error(answer, start, end, flags)
                if code and position < len(batch):
                    refused[first + position] = code, text or os.strerror(code)

    def request(self, message: bytes, operation: str = "netlink request") -> list[bytes]:
        """Send one message and return the messages that answer it, whole; none for a change. Raises KernelError on refusal.

        `operation` names it in that error, best as the command that a person would type.
        """
        sequence = self._ask(message, wire.REQUEST | wire.ACK, operation)
        answers: list[bytes] = []
        while True:
            data = self._read(operation)
            for kind, flags, answered, _, start, end in wire.messages(data):
                if answered != sequence:
                    continue
                if kind == wire.ERROR:
                    code, text = wire.read_error(data, start, end, flags)
                    if code:
                        raise KernelError(operation, code, text or os.strerror(code))
                    return answers
                answers.append(data[start - 16 : end])

    def dump(self, message: bytes, operation: str = "netlink dump") -> list[bytes]:
        """All datagrams that answer one dump; the last holds the DONE message too. Raises KernelError on refusal.

        A dump that the kernel marks as interrupted by changes is repeated, a few times. That mark is no guarantee: route, neighbour
        and fdb tables change under a dump without it, and rows may be missed or doubled.
        """
        for _ in range(DUMP_TRIES):
            datagrams, interrupted = self._dump_once(message, operation)
            if not interrupted:
                break
        return datagrams

    def _dump_once(self, message: bytes, operation: str) -> tuple[list[bytes], bool]:
        sequence = self._ask(message, wire.REQUEST | wire.DUMP, operation)
        datagrams: list[bytes] = []
        interrupted = 0
        while True:
            data = self._read(operation)
            ours = False
            for kind, flags, answered, _, start, end in wire.messages(data):
                if answered != sequence:
                    continue
                ours = True
                interrupted |= flags & wire.DUMP_INTERRUPTED
                if kind in (wire.ERROR, wire.DONE):
                    code, text = wire.read_error(data, start, end, flags)
                    if code:
                        raise KernelError(operation, code, text or os.strerror(code))
                    datagrams.append(data)
                    return datagrams, bool(interrupted)
            if ours:
                datagrams.append(data)

    def _ask(self, message: bytes, flags: int, operation: str) -> int:
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        length, kind, given, _, _ = wire.HEADER.unpack_from(message)
        self._write(wire.HEADER.pack(length, kind, given | flags, sequence, 0) + message[16:], operation)
        return sequence

    def _write(self, data: bytes | bytearray, operation: str) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError(operation, error.errno or 0, error.strerror or "") from None

    def _read(self, operation: str) -> bytes:
        try:
            return self._socket.recv(RECEIVE)
        except OSError as error:
            self._discard()
            raise KernelError(operation, error.errno or 0, f"the kernel's answer was lost: {error.strerror}") from None

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(RECEIVE):
                pass
