"""What the agent says to its forwarding process over a unix socket of packets, and what it hears: one request, one report."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from struct import Struct
from typing import Literal

import msgspec

CREDENTIALS = Struct("=iII")  # struct ucred, unix(7)
LONGEST = 16 << 20
TIMEOUT_S = 2.0

DataPath = Literal["auto", "fast", "numpy", "naive"]


class Task(msgspec.Struct, frozen=True):
    """What a forwarding process is started with. `local`: the outer address, as text; `device`: the TUN."""

    socket: str
    device: str
    local: str
    port: int
    data_path: DataPath = "auto"
    version: str = ""


class Request(msgspec.Struct, frozen=True):
    """`table`: peers.Table.pack(), None to only ask. `end`: answer, then end. `descriptors`: answer with those of the TUN and the socket, too."""

    table: bytes | None = None
    end: bool = False
    descriptors: bool = False


class Report(msgspec.Struct, frozen=True):
    """`data_path` is the one that is used, `notes` say what fell back and why. `offloads`: name to "" where it is on, else why it is not.

    `segmenting_off`: outer addresses that get no bursts any more, with the errno that said so. `table`: its digest, to be told apart.
    """

    task: Task
    pid: int
    data_path: str
    offloads: dict[str, str]
    notes: tuple[str, ...]
    counters: dict[str, int]
    fast_peers: int
    segmenting_off: dict[str, int]
    table: int


def listener(path: str | Path) -> int:
    """The pid of the process that listens at `path`, whether it answers or not. Raises OSError when none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(path))
        return int(CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))[0])


def ask(path: str | Path, request: Request) -> Report:
    """The report of the process that listens at `path`. Raises OSError when none does, TimeoutError when it does not answer in time."""
    return _exchange(path, request)[0]


def descriptors(path: str | Path) -> list[int]:
    """Duplicates of that process's TUN and UDP socket, for the caller to close. None where it is too old to give them, or there is no room here.
    Raises as ask() does."""
    _, came = _exchange(path, Request(descriptors=True))
    if len(came) == 2:
        return came
    for descriptor in came:
        os.close(descriptor)
    return []


def _exchange(path: str | Path, request: Request) -> tuple[Report, list[int]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.setsockopt(socket.SOL_SOCKET, 32, LONGEST)  # SO_SNDBUFFORCE: a message is one packet
        connection.connect(str(path))
        connection.sendall(msgspec.msgpack.encode(request))
        answer, came, *_ = socket.recv_fds(connection, LONGEST, 2, socket.MSG_CMSG_CLOEXEC)
    try:
        return msgspec.msgpack.decode(answer, type=Report), came
    except msgspec.DecodeError as error:
        raise OSError(f"{path}: not a report: {error}") from None
