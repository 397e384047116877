"""Capture over a veth pair between two namespaces."""

from __future__ import annotations

import socket
import time

import pytest
from tests.kernel.conftest import Namespace

from tweed.errors import KernelError
from tweed.kernel.capture import Capture
from tweed.kernel.netns import run_in
from tweed.wire.packet import Ethernet, encode

A, B = "0a:00:00:00:00:01", "0a:00:00:00:00:02"
ETHERTYPE = 0x88B5  # for experiments: nobody else speaks it
# tcpdump -dd 'ether proto 0x88b5'
ONLY_OURS = ((0x28, 0, 0, 12), (0x15, 0, 1, ETHERTYPE), (0x6, 0, 0, 0x40000), (0x6, 0, 0, 0))


@pytest.fixture
def pair(netns: Namespace, netns2: Namespace) -> tuple[Namespace, Namespace]:
    netns.run(f"ip link add near address {A} type veth peer name far address {B} netns {netns2.name}")
    netns.run("ip link set near up; sysctl -qw net.ipv6.conf.near.disable_ipv6=1")
    netns2.run("ip link set far up; sysctl -qw net.ipv6.conf.far.disable_ipv6=1")
    return netns, netns2


def send(space: Namespace, device: str, *frames: bytes) -> None:
    def make() -> socket.socket:
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)

    with run_in(space.fd, make) as sender:
        sender.bind((device, 0))
        for frame in frames:
            sender.send(frame)


def frame(text: bytes, dst: str = B) -> bytes:
    return encode(Ethernet(bytes.fromhex(dst.replace(":", "")), bytes.fromhex(A.replace(":", "")), ETHERTYPE), payload=text.ljust(46, b"."))


def ours(frames: list) -> list[tuple[str, str, bytes]]:
    return [(f.device, f.direction, f.data[14:].rstrip(b".")) for f in frames if f.data[12:14] == b"\x88\xb5"]


def test_both_ends_see_a_frame_with_its_direction_and_time(pair):
    near, far = pair
    before = time.time_ns()
    with Capture(["near"], near.fd) as sent, Capture(["far"], far.fd) as received:
        send(near, "near", frame(b"one"), frame(b"all", "ff:ff:ff:ff:ff:ff"), frame(b"else", "0a:00:00:00:00:99"))
        out, into = sent.drain(5), received.drain(5)
    assert ours(out) == [("near", "out", b"one"), ("near", "out", b"all"), ("near", "out", b"else")]
    assert ours(into) == [("far", "in", b"one"), ("far", "in", b"all"), ("far", "other", b"else")]
    times = [f.t_ns for f in into]
    assert times == sorted(times) and before <= times[0] <= times[-1] <= time.time_ns()


def test_times_are_those_of_passing_from_the_first_frame_on(pair):
    """The kernel begins to stamp frames a moment after somebody has asked for it, and stops when nobody does any more."""
    near, _ = pair
    for _ in range(30):
        with Capture(["near"], near.fd) as sent:
            send(near, "near", frame(b"one"))
            passed = time.time_ns()
            (seen,) = sent.drain(5)
        assert seen.t_ns <= passed


def test_several_devices_of_one_namespace_come_in_order_of_time(pair):
    near, far = pair
    far.run("ip link add bridge0 type bridge; ip link set bridge0 up; ip link set far master bridge0; sysctl -qw net.ipv6.conf.bridge0.disable_ipv6=1")
    with Capture(["bridge0", "far", "far"], far.fd) as capture:
        send(near, "near", frame(b"first", "ff:ff:ff:ff:ff:ff"))
        seen: list = []
        deadline = time.monotonic() + 5
        while len(ours(seen)) < 2 and time.monotonic() < deadline:
            seen += capture.drain(1)
    assert sorted(ours(seen)) == [("bridge0", "in", b"first"), ("far", "in", b"first")]


def test_nothing_is_seen_before_the_capture_nor_without_traffic(pair):
    near, _ = pair
    send(near, "near", frame(b"early"))
    with Capture(["near"], near.fd, filter=ONLY_OURS) as capture:
        assert capture.drain(0.05) == []


def test_a_filter_in_the_kernel(pair):
    near, far = pair
    other = bytearray(frame(b"no"))
    other[12:14] = b"\x88\xb6"
    with Capture(["far"], far.fd, filter=ONLY_OURS) as capture:
        send(near, "near", bytes(other), frame(b"yes"))
        assert [f.data for f in capture.drain(5)] == [frame(b"yes")]


def test_what_does_not_fit_is_counted(pair):
    near, far = pair
    with Capture(["far"], far.fd, filter=ONLY_OURS, buffer=8192) as capture:
        send(near, "near", *(frame(b"%d" % n) for n in range(200)))
        kept = len(capture.drain(5))
        assert 0 < kept < 200
        assert capture.lost == capture.lost == 200 - kept


def test_a_device_that_goes_down_or_away_is_no_error(pair):
    near, far = pair
    with Capture(["far"], far.fd, filter=ONLY_OURS) as capture:
        far.run("ip link set far down")
        assert capture.drain(0.05) == []
        far.run("ip link set far up")
        near.until("! ip link show near | grep -q NO-CARRIER")
        send(near, "near", frame(b"again"))
        assert [f.data for f in capture.drain(5)] == [frame(b"again")]
        far.run("ip link del far")
        assert capture.drain(0.05) == []


def test_errors_say_where(pair):
    near, _ = pair
    with pytest.raises(KernelError, match=r"^capture at flannel\.9: No such device$"):
        Capture(["near", "flannel.9"], near.fd)
    with pytest.raises(KernelError, match=r"^capture at near: Invalid argument$"):
        Capture(["near"], near.fd, filter=((0xFFFF, 0, 0, 0),))
