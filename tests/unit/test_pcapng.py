"""pcapng files: read back by ourselves and by scapy; files of other writers; damaged ones."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import strategies as st
from scapy.utils import PcapNgReader, PcapNgWriter
from tests.unit.spelling import Choices, cases, spelled

from tweed.errors import TweedError
from tweed.wire import pcapng
from tweed.wire.packet import Ethernet, Ipv4, Udp, encode
from tweed.wire.pcapng import Interface, Record, Section

A, B = bytes(5) + b"\2", bytes(5) + b"\4"
FRAME = encode(Ethernet(A, B), Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 17), Udp(1, 2), payload=b"odd")
SECTION = Section(
    (Interface("cni0", "bridge"), Interface("flannel.1")),
    (Record(0, 1_700_000_000_123_456_789, FRAME, "forwarded: 路由"), Record(1, 1_700_000_000_123_456_790, FRAME + b"!"), Record(1, 5, FRAME[:40], length=45)),
    "tshark -d udp.port==8472,vxlan -r FILE",
    "tweed",
)


@spelled(300)
def sections(choose: Choices) -> Section:
    def name() -> str:
        return choose.text(9).replace("\0", "")

    def record() -> Record:
        return Record(0, choose.number(0, 2**63), choose.bytes(1 + choose.below(70)), name())

    return Section((Interface(name(), name()),), tuple(choose.several(3, record)), name())


@cases(40, sections)
def test_what_is_written_is_read(section: Section):
    assert pcapng.read(pcapng.write(section)) == section


def test_comments_times_and_cut_packets_survive():
    assert pcapng.read(pcapng.write(SECTION)) == SECTION


def test_scapy_reads_it():
    found = list(PcapNgReader(io.BytesIO(pcapng.write(SECTION))))
    assert [bytes(packet) for packet in found] == [record.data for record in SECTION.records]
    assert [packet.sniffed_on for packet in found] == ["cni0", "flannel.1", "flannel.1"]


def test_files_of_scapy_are_read(tmp_path):
    path = str(tmp_path / "theirs.pcapng")
    writer = PcapNgWriter(path)
    writer.write(FRAME)
    writer.close()
    assert [record.data for record in pcapng.read((tmp_path / "theirs.pcapng").read_bytes()).records] == [FRAME]


def other(order: str, kind: int, body: bytes) -> bytes:
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("option", "t_ns"), [(b"", 7_000), (b"\x09", 7), (b"\x03", 7_000_000), (b"\x81", 3_500_000_000)], ids=["none", "ns", "ms", "half seconds"]
)
def test_other_byte_orders_and_clocks(order: str, option: bytes, t_ns: int):
    written = struct.pack(order + "HH", 9, 1) + option + bytes(3) if option else b""
    data = other(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    data += other(order, 4, b"names of hosts..")
    data += other(order, 1, struct.pack(order + "HHI", 1, 0, 3) + written)
    data += other(order, 6, struct.pack(order + "IIIII", 0, 0, 7, 2, 2) + b"ab\0\0")
    data += other(order, 3, struct.pack(order + "I", 9) + b"cde\0")
    data += pcapng.write(SECTION)  # a second section
    assert pcapng.read(data) == Section((Interface("", "", 1, 3),), (Record(0, t_ns, b"ab"), Record(0, 0, b"cde", "", 9)))


GOOD = pcapng.write(Section((Interface("x"),), (Record(0, 0, FRAME),)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "does not start with a section header"),
        (b"\xd4\xc3\xb2\xa1" + bytes(40), "does not start with a section header"),
        (GOOD[:8] + b"????" + GOOD[12:], "no byte-order magic"),
        (GOOD[:-1], "byte 68 says 80 bytes, 79 are here"),
        (GOOD + b"....", "4 bytes are left at byte 148"),
        (GOOD[:76] + b"\1" + GOOD[77:], "names an interface that the file does not describe"),
        (GOOD[:88] + b"\xff" + GOOD[89:], "its packet has 255 bytes, 48 are here"),
    ],
)
def test_damaged_files(data: bytes, said: str):
    with pytest.raises(TweedError, match=said):
        pcapng.read(data)


@cases(33, st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_any_damaged_byte_is_either_read_or_one_error(at: int, value: int):
    try:
        section = pcapng.read(GOOD[:at] + bytes((value,)) + GOOD[at + 1 :])
    except TweedError as error:
        assert "\n" not in str(error)
    else:
        assert len(section.records) <= 1


def test_an_interface_that_is_not_there_cannot_be_written():
    with pytest.raises(ValueError, match="interface 1 of 1"):
        pcapng.write(Section((Interface("x"),), (Record(1, 0, FRAME),)))
