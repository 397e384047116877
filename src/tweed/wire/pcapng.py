"""pcapng files (draft-ietf-opsawg-pcapng): one section with its interfaces and packets, comments included.

    data = write(Section((Interface("cni0"), Interface("flannel.1")), (Record(0, t_ns, frame, "routed to flannel.1"),), "made by ..."))

Written little-endian, with times in nanoseconds. Read in either byte order, with times of any resolution; blocks that say nothing about
packets (names, statistics, secrets) are passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from tweed.errors import TweedError

SECTION, INTERFACE, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 3, 6
BYTE_ORDER = 0x1A2B3C4D
END, COMMENT, DESCRIPTION = 0, 1, 3
IF_NAME, IF_TSRESOL, IF_TSOFFSET, SHB_USERAPPL = 2, 9, 14, 4
ETHERNET, RAW = 1, 101  # tcpdump.org/linktypes.html; RAW begins with an IPv4 or IPv6 header
NANOSECONDS = 9  # if_tsresol: a negative power of ten
LONGEST_OPTION = 0xFFFF


class Interface(msgspec.Struct, frozen=True):
    """A device that packets were seen at. `link_type`: ETHERNET, RAW. `snap_length` 0: packets were not cut."""

    name: str
    description: str = ""
    link_type: int = ETHERNET
    snap_length: int = 0


class Record(msgspec.Struct, frozen=True):
    """One packet. `interface` is the place of its device in the section, `t_ns` since 1970, `length` the size it had before it was cut (0: not cut)."""

    interface: int
    t_ns: int
    data: bytes
    comment: str = ""
    length: int = 0


class Section(msgspec.Struct, frozen=True):
    interfaces: tuple[Interface, ...]
    records: tuple[Record, ...]
    comment: str = ""
    application: str = ""


# ---- writing ------------------------------------------------------------------------------------------------------------


def write(section: Section) -> bytes:
    """The file. Raises ValueError when a record names an interface that is not there, or its time is before 1970."""
    for record in section.records:
        if not 0 <= record.interface < len(section.interfaces) or record.t_ns < 0:
            raise ValueError(f"no packet can be at interface {record.interface} of {len(section.interfaces)}, {record.t_ns} ns after 1970")
    blocks = [block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1), text_option(COMMENT, section.comment), text_option(SHB_USERAPPL, section.application))]
    for interface in section.interfaces:
        body = struct.pack("<HHI", interface.link_type, 0, interface.snap_length)
        names = text_option(IF_NAME, interface.name), text_option(DESCRIPTION, interface.description)
        blocks.append(block(INTERFACE, body, *names, option(IF_TSRESOL, bytes((NANOSECONDS,)))))
    for record in section.records:
        length = record.length or len(record.data)
        head = struct.pack("<IIIII", record.interface, record.t_ns >> 32, record.t_ns & 0xFFFFFFFF, len(record.data), length)
        blocks.append(block(ENHANCED_PACKET, head + padded(record.data), text_option(COMMENT, record.comment)))
    return b"".join(blocks)


def block(kind: int, body: bytes, *options: bytes) -> bytes:
    """The length stands before and behind, so that a file can be read backwards."""
    written = b"".join(options)
    if written:
        written += struct.pack("<HH", END, 0)
    length = 12 + len(body) + len(written)
    return struct.pack("<II", kind, length) + body + written + struct.pack("<I", length)


def option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + padded(value)


def text_option(code: int, text: str) -> bytes:
    """Nothing for an empty text; one that is too long is cut between two characters."""
    return option(code, text.encode()[:LONGEST_OPTION].decode(errors="ignore").encode()) if text else b""


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# ---- reading ------------------------------------------------------------------------------------------------------------


def read(data: bytes) -> Section:
    """The first section of a file. Raises TweedError: not pcapng, or cut off or contradictory, with the offset."""
    if len(data) < 28 or data[:4] != SECTION.to_bytes(4, "big"):
        raise TweedError("not a pcapng file: it does not start with a section header")
    order = next((mark for mark in "<>" if struct.unpack_from(mark + "I", data, 8) == (BYTE_ORDER,)), None)
    if order is None:
        raise TweedError("not a pcapng file: its section header has no byte-order magic")
    comment = application = ""
    interfaces: list[Interface] = []
    clocks: list[tuple[int, int]] = []
    records: list[Record] = []
    for at, kind, body in blocks(data, order):
        try:
            if kind == SECTION:
                found = options(body[16:], order)
                comment, application = text(found, COMMENT), text(found, SHB_USERAPPL)
            elif kind == INTERFACE:
                link_type, _, snap_length = struct.unpack_from(order + "HHI", body)
                found = options(body[8:], order)
                interfaces.append(Interface(text(found, IF_NAME), text(found, DESCRIPTION), link_type, snap_length))
                clocks.append((found.get(IF_TSRESOL, b"\6")[0], int.from_bytes(found.get(IF_TSOFFSET, b""), "little" if order == "<" else "big", signed=True)))
            elif kind == ENHANCED_PACKET:
                number, high, low, size, length = struct.unpack_from(order + "IIIII", body)
                if size > len(body) - 20:
                    raise ValueError(f"its packet has {size} bytes, {len(body) - 20} are here")
                found = options(body[20 + size + -size % 4 :], order)
                t_ns = nanoseconds(high << 32 | low, *clocks[number])
                records.append(Record(number, t_ns, body[20 : 20 + size], text(found, COMMENT), 0 if length == size else length))
            elif kind == SIMPLE_PACKET:  # no time, and always at the first interface
                (length,) = struct.unpack_from(order + "I", body)
                size = min(length, interfaces[0].snap_length or length)
                if size > len(body) - 4:
                    raise ValueError(f"its packet has {size} bytes, {len(body) - 4} are here")
                records.append(Record(0, 0, body[4 : 4 + size], "", 0 if length == size else length))
        except IndexError:
            raise TweedError(f"damaged pcapng file: the packet at byte {at} names an interface that the file does not describe") from None
        except (struct.error, ValueError) as error:
            raise TweedError(f"damaged pcapng file: block at byte {at}: {error}") from None
    return Section(tuple(interfaces), tuple(records), comment, application)


def blocks(data: bytes, order: str) -> Iterator[tuple[int, int, bytes]]:
    """Where each block starts, its kind, and its body without the lengths; up to the next section, which may have another byte order."""
    at = 0
    while at < len(data):
        if len(data) - at < 12:
            raise TweedError(f"damaged pcapng file: {len(data) - at} bytes are left at byte {at}, the least block has 12")
        kind, length = struct.unpack_from(order + "II", data, at)
        if kind == SECTION and at:
            return
        if length % 4 or length < 12 or length > len(data) - at:
            raise TweedError(f"damaged pcapng file: block at byte {at} says {length} bytes, {len(data) - at} are here")
        yield at, kind, data[at + 8 : at + length - 4]
        at += length


def options(data: bytes, order: str) -> dict[int, bytes]:
    """The first option of each code."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        code, length = struct.unpack_from(order + "HH", data, at)
        if code == END:
            break
        if length > len(data) - at - 4:
            raise ValueError(f"option {code} says {length} bytes, {len(data) - at - 4} are here")
        found.setdefault(code, data[at + 4 : at + 4 + length])
        at += 4 + length + -length % 4
    return found


def text(found: dict[int, bytes], code: int) -> str:
    return found.get(code, b"").rstrip(b"\0").decode(errors="replace")


def nanoseconds(ticks: int, resolution: int, offset_s: int) -> int:
    """`resolution` as in if_tsresol: a power of ten, or with the high bit of two, that a second is divided by."""
    per_second = 1 << (resolution & 0x7F) if resolution & 0x80 else 10**resolution
    return ticks * 1_000_000_000 // per_second + offset_s * 1_000_000_000
