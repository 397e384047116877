"""The demo's own traffic, between two namespaces and into nothing."""

from __future__ import annotations

import pytest
from tests.kernel.conftest import Namespace

from tweed.addr import parse_address
from tweed.errors import TweedError
from tweed.lab.traffic import ping, transfer

ADDRESSES = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd09::1", "fd09::2")}


@pytest.fixture
def pair(netns: Namespace, netns2: Namespace) -> tuple[Namespace, Namespace]:
    netns.run(f"ip link add near type veth peer name far netns {netns2.name}; ip link set near up")
    netns2.run("ip link set far up; ip addr add 10.9.0.2/24 dev far; ip addr add fd09::2/64 dev far nodad")
    netns.run("ip addr add 10.9.0.1/24 dev near; ip addr add fd09::1/64 dev near nodad")
    for space in (netns, netns2):
        space.until("ip -6 route show table local | grep -q '^local fd09::'")
    return netns, netns2


@pytest.mark.parametrize("family", [4, 6])
def test_an_echo_comes_back_and_a_stream_arrives(pair, family: int):
    near, far = pair
    src, dst = map(parse_address, ADDRESSES[family])
    times = ping(near.fd, src, dst, id=7, count=2, payload=b"odd")
    assert len(times) == 2 and all(seconds is not None and seconds > 0 for seconds in times)
    done = transfer(near.fd, far.fd, dst, size=100_001)
    assert done.size == 100_001 and done.sent == done.received and len(done.sent) == 64 and done.duration_s > 0


@pytest.mark.parametrize("family", [4, 6])
def test_no_answer_is_none(pair, family: int):
    near, far = pair
    src, dst = map(parse_address, ADDRESSES[family])
    far.run("ip link set far down")
    assert ping(near.fd, src, dst, id=7, count=2, timeout_s=0.05) == [None, None]


def test_an_echo_of_somebody_else_is_not_ours(pair):
    near, far = pair
    src, dst = map(parse_address, ADDRESSES[4])
    far.run("nft 'add table t; add chain t in { type filter hook input priority 0; }; add rule t in icmp id 7 drop'")
    assert ping(near.fd, src, dst, id=8, count=1)[0] is not None
    assert ping(near.fd, src, dst, id=7, count=1, timeout_s=0.05) == [None]


def test_a_stream_that_cannot_begin_is_one_error_at_once(pair):
    near, far = pair
    far.run("nft 'add table t; add chain t in { type filter hook input priority 0; }; add rule t in tcp dport 1-65535 reject with tcp reset'")
    with pytest.raises(TweedError, match=r"^TCP transfer of 10 bytes to 10\.9\.0\.2 failed: Connection refused$"):
        transfer(near.fd, far.fd, parse_address("10.9.0.2"), size=10)
