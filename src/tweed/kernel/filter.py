"""Classic BPF: a small program by which the kernel keeps from a socket what nobody wants to read (socket(7), SO_ATTACH_FILTER)."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence
from struct import Struct

SO_ATTACH_FILTER = 26
INSTRUCTION = Struct("=HBBI")  # struct sock_filter, linux/filter.h

# As `tcpdump -dd` prints it: code, jump if true, jump if false, constant.
Filter = Sequence[tuple[int, int, int, int]]


def attach(opened: socket.socket, filter: Filter) -> None:
    """Let the kernel drop what the program does not accept. Raises OSError when it is no valid program."""
    code = ctypes.create_string_buffer(b"".join(INSTRUCTION.pack(*instruction) for instruction in filter))
    # struct sock_fprog: u16 length, padding to a pointer, pointer
    program = Struct("@HP").pack(len(filter), ctypes.addressof(code))
    opened.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
