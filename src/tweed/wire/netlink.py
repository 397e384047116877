"""Netlink's framing (RFC 3549, linux/netlink.h): messages that carry a fixed body and attributes. All of it in host byte order.

    datagram   message, message, ...
    message    length u32, kind u16, flags u16, sequence u32, port u32, body, attributes     each padded to 4
    attribute  length u16 (without padding), kind u16 (two top bits are flags), payload      each padded to 4

Whatever cannot be read raises ValueError: nothing here loops on a length of zero or reads past the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

NOOP, ERROR, DONE, OVERRUN = 1, 2, 3, 4
REQUEST, MULTI, ACK = 0x01, 0x02, 0x04
DUMP_INTERRUPTED = 0x10
DUMP = 0x300
REPLACE, EXCLUSIVE, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
NESTED = 0x8000
KIND_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG
EXTENDED = 0x200  # NLM_F_ACK_TLVS: attributes follow in an error message
AF_UNSPEC, AF_INET, AF_BRIDGE, AF_INET6 = 0, 2, 7, 10
FAMILIES = {4: AF_INET, 6: AF_INET6}  # by the number that people use
SIZES = {AF_INET: 4, AF_INET6: 16}

HEADER = Struct("=IHHII")
ATTRIBUTE = Struct("=HH")
INT = Struct("=i")
U32 = Struct("=I")
SEQUENCE_AT = 8


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute with its padding."""
    size = len(payload)
    return ATTRIBUTE.pack(size + 4, kind) + payload + b"\0" * (-size % 4)


def nest(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes, marked as such (strict kernels insist for some kinds)."""
    return attribute(kind | NESTED, b"".join(attributes))


def u32(kind: int, value: int) -> bytes:
    """An attribute of one 32-bit number in host byte order."""
    return ATTRIBUTE.pack(8, kind) + U32.pack(value)


def text(kind: int, value: str) -> bytes:
    """An attribute of a string that ends in a zero byte, as names do. Device names are bytes to the kernel, so nothing is lost."""
    return attribute(kind, value.encode("utf-8", "surrogateescape") + b"\0")


def read_text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode("utf-8", "surrogateescape")


def read_u32(payload: bytes) -> int:
    """A 32-bit number in host byte order. Raises ValueError when the payload has another size."""
    if len(payload) != 4:
        raise ValueError(f"netlink attribute of {len(payload)} bytes where 4 belong")
    value: int = U32.unpack(payload)[0]
    return value


def message(kind: int, flags: int, body: bytes, *attributes: bytes) -> bytes:
    """One message. Sequence and port are zero: the socket numbers what it sends."""
    payload = body + b"".join(attributes)
    size = 16 + len(payload)
    return HEADER.pack(size, kind, flags, 0, 0) + payload + b"\0" * (-size % 4)


def flags_of(new: bool) -> int:
    """Of a message that puts a row (create or replace), or deletes one."""
    return REQUEST | CREATE | REPLACE if new else REQUEST


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
    """The messages of a datagram: kind, flags, sequence, port, and where the body begins and ends."""
    at, size = 0, len(data)
    while at < size:
        if size - at < 16:
            raise ValueError(f"netlink: {size - at} stray bytes after the last message")
        length, kind, flags, sequence, port = HEADER.unpack_from(data, at)
        if length < 16 or at + length > size:
            raise ValueError(f"netlink: a message of {length} bytes where {size - at} are left")
        yield kind, flags, sequence, port, at + 16, at + length
        at += (length + 3) & ~3


def attributes(data: bytes, at: int, end: int) -> dict[int, bytes]:
    """The attributes in data[at:end] by kind, flag bits removed. Of two with one kind the last is kept."""
    found: dict[int, bytes] = {}
    while at < end:
        if end - at < 4:
            raise ValueError(f"netlink: {end - at} stray bytes after the last attribute")
        size, kind = ATTRIBUTE.unpack_from(data, at)
        if size < 4 or at + size > end:
            raise ValueError(f"netlink: an attribute of {size} bytes where {end - at} are left")
        found[kind & KIND_MASK] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def fixed(form: Struct, data: bytes, start: int, end: int) -> tuple[int, ...]:
    """The fixed part of a message. Raises ValueError when the message ends before it."""
    if end - start < form.size:
        raise ValueError(f"netlink: a body of {end - start} bytes where {form.size} belong")
    return form.unpack_from(data, start)


def check_address(address: bytes, length: int, size: int) -> None:
    """Raises ValueError unless it is an address of `size` bytes with a prefix of `length` bits."""
    if len(address) != size or length > size * 8:
        raise ValueError(f"netlink: an address of {len(address)} bytes and {length} bits where {size} bytes belong")


def read_error(data: bytes, start: int, end: int, flags: int) -> tuple[int, str]:
    """errno and the kernel's own words, "" where it has none, of the body of an ERROR or DONE message. (0, "") is an acknowledgement.

    Expects NETLINK_CAP_ACK: an ERROR then repeats only the header of what it answers, and its attributes follow that.
    """
    if end - start < 4:
        raise ValueError("netlink: an error message without its code")
    code: int = -INT.unpack_from(data, start)[0]
    if not flags & EXTENDED:
        return code, ""
    at = start + 20 if HEADER.unpack_from(data, start - 16)[1] == ERROR else start + 4
    if at > end:
        raise ValueError("netlink: an error message without the header that it answers")
    return code, attributes(data, at, end).get(ERROR_TEXT, b"").rstrip(b"\0").decode("utf-8", "replace")
