"""The live walk of UDP mode without a kernel: nodes `node1` and `node2`, a process on each between flannel0 and UDP port 8285."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st
from tests.unit.recorded import changed, judged, recordings
from tests.unit.spelling import cases

from tweed.addr import parse_address
from tweed.trace.events import CAPTURED, DROPPED, QUEUED, RECEIVED, Event
from tweed.trace.frames import Probe
from tweed.trace.recording import Recording
from tweed.trace.result import Walk
from tweed.trace.sights import Recognised, datagrams
from tweed.wire.packet import Ethernet, Ipv4, Udp
from tweed.wire.packet import encode as encode_packet

SRC, DST = parse_address("10.244.0.2"), parse_address("10.244.2.2")
ETHERNET = Ethernet(bytes(6), bytes(6))


def test_udp_mode_is_the_predicted_walk_byte_for_byte_between_the_processes_too() -> None:
    walk = judged(recordings("udp-mode"))
    assert (walk.verdict, walk.first_divergence) == ("delivered", None) and walk.reply is not None and walk.reply.verdict == "delivered"
    for each, (here, there) in ((walk, ("node1", "node2")), (walk.reply, ("node2", "node1"))):
        places = [step for step in each.steps if step.hop is not None]
        moves = [[sight for sight in step.seen if sight.size] for step in places]
        assert all(moves) and not [sight for those in moves for sight in those if sight.differs]
        between = [(sight.node, sight.device, sight.direction, sight.size) for those in moves[2:6] for sight in those]
        assert between == [(here, "flannel0", "out", 84), (here, "ens33", "out", 126), (there, "ens33", "in", 126), (there, "flannel0", "in", 84)]


def test_fragments_that_are_sent_at_once_are_told_one_by_one() -> None:
    walk = judged(recordings("udp-mode-burst"))
    assert (walk.verdict, walk.first_divergence) == ("delivered", None)
    outer = [sight for step in walk.steps for sight in step.seen if sight.device == "ens33" and sight.size]
    assert [(sight.node, sight.size) for sight in outer] == [(node, size) for node in ("node1", "node2") for size in (1510, 1510, 1146)]
    assert {sight.text for sight in outer} == {"in a burst of 4082 bytes"}


def outer_of(those: list[Recording], kind: str) -> Event:
    """The first frame between the processes that was `queued` at one NIC or `received` at the other."""
    return min((event for each in those for event in each.events if event.kind == kind and event.device == "ens33"), key=lambda event: event.t_ns)


def until(those: list[Recording], last_ns: int, change=lambda event: event) -> list[Recording]:
    return changed(those, lambda event: change(event) if event.t_ns <= last_ns else None)


def named(walk: Walk) -> tuple[str, str, str]:
    assert walk.first_divergence is not None
    return walk.first_divergence.node, walk.first_divergence.device, walk.first_divergence.cause.id


def test_a_process_that_keeps_it_is_named_where_drops_would_be_seen() -> None:
    those = recordings("udp-mode")
    arrived = until(those, outer_of(those, RECEIVED).t_ns)
    taken = until(those, outer_of(those, QUEUED).t_ns - 1)
    assert [named(judged(each)) for each in (taken, arrived)] == [("node1", "flannel0", "process-silent"), ("node2", "flannel0", "process-silent")]
    assert [named(judged(each, "packet"))[2] for each in (taken, arrived)] == ["vanished", "vanished"]


def test_what_the_process_sends_counts_for_the_nic_though_it_is_dropped_before_any_device() -> None:
    those = recordings("udp-mode")
    out = outer_of(those, QUEUED)

    def drop(event: Event) -> Event:
        words = {"kind": DROPPED, "device": "", "reason": "NETFILTER_DROP", "function": "nft_do_chain+0x1"}
        return msgspec.structs.replace(event, data=event.data[14:], network=0, **words) if event == out else event

    walk = judged(until(those, out.t_ns, drop))
    assert (walk.verdict, named(walk)) == ("dropped", ("node1", "ens33", "firewall-drops"))


def carried(*payloads: bytes) -> bytes:
    """A frame of UDP mode as a packet socket has it: several datagrams' IP packets behind one header."""
    packets = b"".join(encode_packet(Ipv4(SRC, DST, 17), Udp(1, 2), payload=payload) for payload in payloads)
    return encode_packet(ETHERNET, Ipv4(parse_address("192.168.2.1"), parse_address("192.168.2.2"), 17), Udp(8285, 8285), payload=packets)


def frame(data: bytes) -> Event:
    return Event(t_ns=1, kind=CAPTURED, device="ens33", length=len(data), data=data, network=14)


@cases(100, st.lists(st.binary(max_size=40), min_size=1, max_size=9))
def test_a_burst_is_the_frames_that_are_on_the_wire(payloads: list[bytes]) -> None:
    whole = frame(carried(*payloads))
    found = list(datagrams(whole, {8285: "ip"}))
    assert [each.data[42 + 28 :] for each in found] == payloads
    assert all(each.data[:42] == whole.data[:42] and each.length == len(each.data) for each in found)
    assert {each.burst for each in found} == {whole.length if len(payloads) > 1 else 0}
    assert list(datagrams(whole, {8472: "vxlan"})) == [whole]  # nobody said that the port carries anything


@cases(100, st.binary(max_size=200), st.integers(0, 250), st.binary(max_size=8))
def test_a_burst_of_lies_ends(tail: bytes, at: int, lie: bytes) -> None:
    data = bytearray(carried(b"one", b"two") + tail)
    data[at : at + len(lie)] = lie
    found = list(datagrams(frame(bytes(data)), {8285: "ip"}))
    assert len(found) <= len(data) // 20 and sum(len(each.data) - 42 for each in found) <= len(data)


def test_the_second_of_a_burst_is_recognised() -> None:
    ours = Recognised(b"NONCE-02", Probe(SRC, DST, "udp"), {8285: "ip"})
    (mine,) = ours.those_of(frame(carried(b"NONCE-01", b"NONCE-02", b"NONCE-03")))
    assert mine.data[70:] == b"NONCE-02" and ours.those_of(frame(carried(b"NONCE-01"))) == []
