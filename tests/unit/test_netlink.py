"""Netlink framing: what is built can be read, what cannot be read is refused at once."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from tests.unit.spelling import Choices, cases, spelled

from tweed.wire import netlink


@spelled(140)
def some_attributes(choose: Choices) -> dict[int, bytes]:
    return {choose.number(0, netlink.KIND_MASK): choose.bytes(choose.below(21)) for _ in range(choose.below(7))}


@spelled(130)
def some_messages(choose: Choices) -> list[tuple[int, int, bytes]]:
    return choose.several(5, lambda: (choose.number(0, 0xFFFF), choose.number(0, 0xFFFF), choose.bytes(choose.below(21))))


@cases(30, some_attributes)
def test_attributes_round_trip(wanted):
    data = b"".join(netlink.attribute(kind, payload) for kind, payload in wanted.items())
    assert len(data) % 4 == 0
    assert netlink.attributes(data, 0, len(data)) == wanted


@cases(30, some_messages)
def test_messages_round_trip(wanted):
    data = b"".join(netlink.message(kind, flags, body) for kind, flags, body in wanted)
    found = [(kind, flags, data[start:end]) for kind, flags, sequence, port, start, end in netlink.messages(data)]
    assert found == wanted


def test_layout_of_a_message():
    built = netlink.message(24, 0x305, b"abcd", netlink.attribute(4, b"xy"), netlink.text(3, "lo"), netlink.u32(15, 254), netlink.nest(18, netlink.u32(1, 7)))
    assert netlink.HEADER.unpack_from(built) == (16 + 4 + 8 + 8 + 8 + 12, 24, 0x305, 0, 0)
    found = netlink.attributes(built, 20, len(built))
    assert found == {4: b"xy", 3: b"lo\0", 15: netlink.U32.pack(254), 18: netlink.u32(1, 7)}
    assert netlink.ATTRIBUTE.unpack_from(built, 44) == (12, 18 | netlink.NESTED)
    assert netlink.read_u32(found[15]) == 254
    assert netlink.read_text(found[3]) == "lo"


@pytest.mark.parametrize("name", ["flannel.1", "eth0", "", "\udcff\udcfe"])
def test_names_are_kept_whatever_their_bytes(name):
    encoded = netlink.text(3, name)
    assert netlink.read_text(netlink.attributes(encoded, 0, len(encoded))[3]) == name


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\1\0", "an attribute of 0 bytes where 4 are left"),
        (b"\3\0\1\0", "an attribute of 3 bytes where 4 are left"),
        (b"\x09\0\1\0abcd", "an attribute of 9 bytes where 8 are left"),
        (b"\x08\0\1\0abcd\4\0", "2 stray bytes after the last attribute"),
    ],
)
def test_attributes_that_lie_about_their_length(data, words):
    with pytest.raises(ValueError, match=words):
        netlink.attributes(data, 0, len(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(16), "a message of 0 bytes where 16 are left"),
        (b"\x0f" + bytes(15), "a message of 15 bytes where 16 are left"),
        (b"\x11" + bytes(15), "a message of 17 bytes where 16 are left"),
        (netlink.message(3, 0, b"") + b"\0\0\0\0", "4 stray bytes after the last message"),
    ],
)
def test_messages_that_lie_about_their_length(data, words):
    with pytest.raises(ValueError, match=words):
        list(netlink.messages(data))


@cases(27, st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data):
    """A first byte of 0 or 1 as length low byte is common, so the walk often gets far."""
    try:
        assert sum(end - start + 16 for *_, start, end in netlink.messages(data)) <= len(data)
    except ValueError as error:
        assert str(error).startswith("netlink: ")
    try:
        assert sum(len(payload) + 4 for payload in netlink.attributes(data, 0, len(data)).values()) <= len(data)
    except ValueError as error:
        assert str(error).startswith("netlink: ")


def test_u32_of_another_size():
    with pytest.raises(ValueError, match="2 bytes where 4 belong"):
        netlink.read_u32(b"\0\1")


def answer(kind: int, flags: int, body: bytes) -> tuple[int, str]:
    data = netlink.message(kind, flags, body)
    ((_, flags, _, _, start, end),) = netlink.messages(data)
    return netlink.read_error(data, start, end, flags)


def test_errors():
    code, header = netlink.INT.pack(-101), bytes(16)
    words = netlink.attribute(netlink.ERROR_TEXT, b"Nexthop has invalid gateway\0")
    assert answer(netlink.ERROR, 0, netlink.INT.pack(0) + header) == (0, "")
    assert answer(netlink.ERROR, 0, code + header) == (101, "")
    assert answer(netlink.ERROR, netlink.EXTENDED, code + header + netlink.u32(2, 9) + words) == (101, "Nexthop has invalid gateway")
    assert answer(netlink.ERROR, netlink.EXTENDED, code + header + netlink.u32(2, 9)) == (101, "")
    assert answer(netlink.DONE, 0, code) == (101, "")
    assert answer(netlink.DONE, netlink.EXTENDED, code + words) == (101, "Nexthop has invalid gateway")
    with pytest.raises(ValueError, match="without its code"):
        answer(netlink.ERROR, 0, b"\0\0")
    with pytest.raises(ValueError, match="without the header"):
        answer(netlink.ERROR, netlink.EXTENDED, code + header[:8])
