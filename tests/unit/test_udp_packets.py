"""The three data paths of the UDP mode say the same as the oracle, byte for byte, of every packet and every burst."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import strategies as st
from tests.oracles import udp as oracle
from tests.unit.spelling import Choices, cases, spelled
from tests.unit.udp_packets import ELSEWHERE, HERE, OUTSIDE, OWN, PEERS, SENDER, THERE, bursts, equal_sizes, tcp, tun_packets, udp, virtio

from tweed.addr import Prefix
from tweed.udp.naive import Naive
from tweed.udp.outer import open_socket, receive_bursts
from tweed.udp.packet import COUNTERS
from tweed.udp.peers import Lookup, Table, peer

np = pytest.importorskip("numpy")
fast = pytest.importorskip("tweed.udp.fast")

from tweed.udp.vector import Vector  # noqa: E402


def world(strict: bool = False) -> oracle.World:
    return oracle.World(OWN, PEERS, strict)


@cache
def packed(strict: bool = False) -> bytes:
    peers = tuple(peer(Prefix.parse(str(subnet)), host.packed) for subnet, host in PEERS.items())
    return Table(Prefix.parse(str(OWN)), peers, strict).pack()


def make_fast(strict: bool = False) -> fast.Core:
    core = fast.Core(-1, -1, True, True, True, 16, 8285)
    core.set_table(packed(strict))
    return core


@cache
def shared_core(strict: bool) -> fast.Core:
    return make_fast(strict)


class Again:
    """A core that is used again and again, since one is large to make: what it counts is from now on."""

    def __init__(self, strict: bool = False) -> None:
        self.core = shared_core(strict)
        self.inbound, self.outbound, self.events = self.core.inbound, self.core.outbound, self.core.events
        self.events()
        self.before = self.core.counters()

    def counters(self) -> list[int]:
        return [now - before for now, before in zip(self.core.counters(), self.before, strict=True)]


def make_vector(strict: bool = False) -> Vector:
    vector = Vector(-1, None, 8285, segment=True, merge_tcp=True, merge_udp=True, burst=16)  # type: ignore[arg-type]
    vector.set_table(packed(strict))
    return vector


def make_naive(strict: bool = False) -> Naive:
    naive = Naive(-1, None, 8285)  # type: ignore[arg-type]
    naive.set_table(packed(strict))
    return naive


def counted(path: fast.Core | Again | Naive) -> dict[str, int]:
    return {name: n for name, n in zip(COUNTERS, path.counters(), strict=True) if n}


def drops(path: fast.Core | Again | Naive) -> dict[str, int]:
    return {name: n for name, n in counted(path).items() if name != "rx-foreign"}


# ---- TUN to UDP -------------------------------------------------------------------------------------------------


@cases(150, tun_packets)
def test_outbound_is_the_oracles_byte_for_byte(packet: bytes) -> None:
    core, vector = Again(), make_vector()
    wanted = oracle.outbound(world(), packet)
    sent = core.outbound(packet)
    assert [wire for wire, _ in vector.outbound(packet)] == sent
    if isinstance(wanted, str):
        assert sent == []
        assert drops(core) == drops(vector) == {wanted: 1}
        assert core.events() == vector.events() == ([(wanted, packet[10:78])] if wanted in ("tx-ttl", "tx-no-peer") else [])
    else:
        assert sent == wanted
        assert all(map(oracle.sums_are_right, sent))
        assert counted(core) == counted(vector) == {}


LONGEST = 65535 - 40


@pytest.mark.parametrize(("size", "cut"), [(1449, 1), (LONGEST, 1), *((size, cut) for size in (1449, 62480, LONGEST) for cut in (536, 1432))])
def test_the_longest_packets_are_cut_alike(size: int, cut: int) -> None:
    packet = virtio(tcp(HERE, THERE, random.Random(size).randbytes(size), flags=0xFF), 1, cut)
    wanted = oracle.outbound(world(), packet)
    assert make_fast().outbound(packet) == wanted == [wire for wire, _ in make_vector().outbound(packet)]


@pytest.mark.parametrize("cut", range(len(virtio(udp(HERE, THERE, b"x"))) + 1))
def test_cut_short_packets_of_the_tun(cut: int) -> None:
    packet = virtio(udp(HERE, THERE, b"x"))[:cut]
    wanted = oracle.outbound(world(), packet)
    core, vector = make_fast(), make_vector()
    if isinstance(wanted, str):
        assert core.outbound(packet) == []
        assert vector.outbound(packet) == []
        assert drops(core) == drops(vector) == {wanted: 1}
    else:
        assert core.outbound(packet) == wanted


def test_naive_sends_what_the_others_send_of_a_packet_without_offloads() -> None:
    packet = udp(HERE, THERE, b"hello")
    plain = bytes(10) + packet
    assert make_naive().outbound(packet) == [(one, int(SENDER)) for one in make_fast().outbound(plain)]


def test_zero_is_sent_as_its_complement_by_udp_only() -> None:
    for make, number in ((udp, 17), (tcp, 6)):
        field = 26 if number == 17 else 36
        body = bytearray(4)
        packet = make(HERE, THERE, bytes(body))
        body[2:4] = packet[field : field + 2]  # the sum is then 0xffff, its complement 0
        packet = make(HERE, THERE, bytes(body))
        found = make_fast().outbound(virtio(packet))[0]
        assert found[field : field + 2] == (b"\xff\xff" if number == 17 else b"\0\0")
        assert make_vector().outbound(virtio(packet))[0][0] == found


# ---- UDP to TUN -------------------------------------------------------------------------------------------------


def check_inbound(datagrams: list[bytes], size: int, strict: bool, sender: IPv4Address = SENDER) -> list[bytes]:
    core, vector, naive = Again(strict), make_vector(strict), make_naive(strict)
    data = b"".join(datagrams)
    given = core.inbound(int(sender), data, size)
    assert vector.inbound(int(sender), data, size) == given
    wanted, why = oracle.inbound(world(strict), sender, datagrams)
    assert given == wanted
    assert drops(core) == drops(vector) == dict(Counter(why))
    assert core.events() == vector.events()
    assert counted(core) == counted(vector)
    alone = [packet for datagram in datagrams for packet in naive.inbound(int(sender), datagram)]
    assert drops(naive) == dict(Counter(why))
    assert sum(len(p) for p in alone) >= sum(len(p) - 10 for p in given)
    return given


@cases(250, bursts, st.booleans())
def test_inbound_is_the_oracles_byte_for_byte(datagrams: list[bytes], strict: bool) -> None:
    check_inbound(*equal_sizes(datagrams), strict)


@spelled(200)
def noise(choose: Choices) -> list[bytes]:
    return choose.several(4, lambda: choose.bytes(choose.number(1, 70)), least=1)


@cases(150, noise, st.booleans())
def test_inbound_of_noise(datagrams: list[bytes], strict: bool) -> None:
    check_inbound(*equal_sizes(datagrams), strict)


@cases(100, bursts)
def test_a_merged_packet_is_cut_into_what_it_was_made_of(datagrams: list[bytes]) -> None:
    """The other way round: merged on arrival and cut by the oracle, every packet has lost two hops and nothing else."""
    datagrams, size = equal_sizes(datagrams)
    back = oracle.World(IPv4Network("10.244.2.0/24"), {OWN: IPv4Address("192.0.2.1")})
    for merged in Again().inbound(int(SENDER), b"".join(datagrams), size):
        cut = oracle.outbound(back, merged)
        assert isinstance(cut, list)
        for packet in cut:
            assert packet[20:] in [d[20:] for d in datagrams]


def test_a_long_burst_becomes_one_packet() -> None:
    body = bytes(range(200)) * 7
    datagrams = [tcp(THERE, HERE, body, seq=1000 + i * len(body), flags=oracle.ACK | (oracle.PSH if i == 43 else 0)) for i in range(44)]
    given = check_inbound(datagrams, len(datagrams[0]), False)
    assert len(given) == 1
    assert given[0][:2] == bytes([1, 1])
    datagrams = [udp(THERE, HERE, b"x" * 64, number=i) for i in range(70)]
    assert [len(given) for given in check_inbound(datagrams, 92, False)] == [10 + 28 + 64 * 64, 10 + 28 + 6 * 64]


def test_a_wrong_checksum_is_passed_on_for_the_receiver_to_see_and_never_trusted() -> None:
    datagrams = [tcp(THERE, HERE, b"x" * 100, seq=1 + 100 * i) for i in range(3)]
    datagrams[1] = datagrams[1][:-1] + b"y"
    given = check_inbound(datagrams, 140, False)
    assert [packet[0] for packet in given] == [0, 0, 0]
    assert [oracle.sums_are_right(packet[10:]) for packet in given] == [True, False, True]


def test_a_udp_packet_without_checksum_passes_unchanged_and_alone() -> None:
    bare = [packet[:26] + bytes(2) + packet[28:] for packet in [udp(THERE, HERE, b"x" * 50)] * 3]
    given = check_inbound(bare, 78, False)
    assert [packet[10 + 20 :] for packet in given] == [packet[20:] for packet in bare]


# ---- hostile datagrams ------------------------------------------------------------------------------------------

GOOD = udp(THERE, HERE, b"hello")
BAD: list[tuple[str, bytes]] = [
    ("rx-short", b""),
    ("rx-short", GOOD[:19]),
    ("rx-version", b"\x65" + GOOD[1:]),
    ("rx-length", b"\x44" + GOOD[1:]),
    ("rx-length", b"\x4f" + GOOD[1:]),
    ("rx-length", GOOD[:-1]),
    ("rx-length", GOOD + b"\0"),
    ("rx-header-checksum", GOOD[:1] + b"\1" + GOOD[2:]),
    *(("rx-source-martian", udp(IPv4Address(a), HERE, b"x")) for a in ("127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "240.0.0.1")),
    ("rx-source-spoofed", udp(ELSEWHERE, HERE, b"x")),
    ("rx-source-spoofed", udp(HERE, HERE, b"x")),
    *(("rx-destination", udp(THERE, IPv4Address(a), b"x")) for a in ("10.244.2.9", "192.0.2.1", "127.0.0.1", "224.0.0.1", "255.255.255.255")),
    ("rx-ttl", udp(THERE, HERE, b"x", ttl=1)),
]


@pytest.mark.parametrize(("why", "datagram"), BAD)
@pytest.mark.parametrize("make", [make_fast, make_vector, make_naive])
def test_hostile_datagrams_are_dropped_for_a_reason(make: Callable[[], fast.Core | Naive], why: str, datagram: bytes) -> None:
    path = make()
    assert (path.inbound(int(SENDER), datagram) if isinstance(path, Naive) else path.inbound(int(SENDER), datagram, 0)) == []
    assert counted(path) == {why: 1}
    assert make_naive().inbound(int(SENDER), GOOD) != []


@pytest.mark.parametrize("make", [make_fast, make_vector, make_naive])
def test_strangers_are_not_heard(make: Callable[[], fast.Core | Naive]) -> None:
    path = make()
    stranger = int(IPv4Address("192.0.2.99"))
    assert (path.inbound(stranger, GOOD) if isinstance(path, Naive) else path.inbound(stranger, GOOD, 0)) == []
    assert counted(path) == {"rx-stranger": 1}


def test_what_a_stranger_says_of_itself_is_not_kept() -> None:
    with open_socket(b"\x7f\0\0\1", 0) as opened, open_socket(b"\x7f\0\0\2", 0) as sender:
        assert receive_bursts(opened) == receive_bursts(sender) == ""
        path = Vector(-1, opened, 8285, segment=True, merge_tcp=True, merge_udp=True, burst=16)
        for known in (False, True):
            if known:
                path.set_table(Table(Prefix.parse("10.244.1.0/24"), (peer(Prefix.parse("10.244.2.0/24"), b"\x7f\0\0\2"),)).pack())
            sender.sendto(b"x", opened.getsockname())
            path.turn_inbound()
            assert path.shown_fast == ({0x7F000002} if known else set())
    path.set_table(bytes(12))
    assert path.shown_fast == set()


def test_a_source_in_nobodys_subnet_passes_counted_unless_strict() -> None:
    packet = udp(OUTSIDE, HERE, b"x")
    core = make_fast()
    assert len(core.inbound(int(SENDER), packet, 0)) == 1
    assert counted(core) == {"rx-foreign": 1}
    assert check_inbound([packet], len(packet), True) == []


def test_a_hundred_thousand_random_datagrams() -> None:
    """Bytes that were never a packet, and packets with a few bytes changed; C agrees with the plain path on each."""
    chance = random.Random(6)
    core, naive, lengths = make_fast(), make_naive(), Counter[str]()
    noise = memoryview(chance.randbytes(1 << 20))
    for i in range(100_000):
        at = i * 10  # each stretch of the noise says how long it is itself, or what is changed where
        if i % 2:
            datagram = bytes(noise[at : at + noise[at] % 100])
        else:
            changed = bytearray(GOOD)
            for place in range(at + 1, at + 1 + noise[at] % 3 * 2, 2):
                changed[noise[place] % len(changed)] = noise[place + 1]
            datagram = bytes(changed)
        given = core.inbound(int(SENDER), datagram, 0)
        assert [packet[10:] for packet in given] == naive.inbound(int(SENDER), datagram)
        lengths["given" if given else "dropped"] += 1
    assert counted(core) == counted(naive)
    assert lengths["dropped"] > 50_000 > lengths["given"] > 1000


@cases(100, st.binary(max_size=300), st.integers(0, 400))
def test_random_bursts_and_tun_packets(data: bytes, size: int) -> None:
    core, vector = Again(), make_vector()
    assert core.inbound(int(SENDER), data, size) == vector.inbound(int(SENDER), data, size)
    assert core.outbound(data) == [wire for wire, _ in vector.outbound(data)]
    assert counted(core) == counted(vector)


# ---- the table --------------------------------------------------------------------------------------------------


@cases(50, spelled(21)(lambda choose: set(choose.several(20, lambda: choose.number(0, 255)))), st.integers(0, 2**32 - 1))
def test_looking_up_is_trying_all(thirds: set[int], address: int) -> None:
    subnets = {IPv4Network((10 << 24 | third << 8, 24)): IPv4Address(3000 + third % 3) for third in thirds}
    table = Table(Prefix.parse("10.255.0.0/24"), tuple(peer(Prefix.parse(str(s)), h.packed) for s, h in subnets.items()))
    for tried in (address, 10 << 24 | address & 0xFFFF):
        wanted = oracle.World(OWN, subnets).host(IPv4Address(tried))
        assert Lookup(table.pack()).host(tried) == (None if wanted is None else int(wanted))
    core = fast.Core(-1, -1, True, True, True, 16, 8285)
    core.set_table(table.pack())
    assert [address for address, _, _ in core.hosts()] == sorted(Lookup(table.pack()).hosts)


def test_the_counters_of_c_are_those_of_python() -> None:
    assert fast.COUNTERS == COUNTERS


@pytest.mark.parametrize("packed", [b"", bytes(11), bytes(13), bytes(25)])
def test_what_is_no_table_is_refused(packed: bytes) -> None:
    for path in (make_fast(), make_naive()):
        with pytest.raises(ValueError, match="a table is 12 bytes"):
            path.set_table(packed)


def test_a_new_table_keeps_what_is_known_of_hosts() -> None:
    core = make_fast()
    core.inbound(int(SENDER), GOOD * 2, len(GOOD))
    core.set_table(packed())
    assert core.hosts() == [(int(SENDER), 0, 0), (int(IPv4Address("192.0.2.3")), 0, 0)]
    core.set_table(bytes(12))
    assert core.hosts() == []
