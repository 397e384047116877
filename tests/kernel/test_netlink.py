"""The rtnetlink socket and namespaces, against the real kernel."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from tweed.errors import KernelError
from tweed.kernel import links
from tweed.kernel import netns as namespaces
from tweed.kernel.netlink import Netlink, open_socket
from tweed.wire import link as wire
from tweed.wire import netlink


def neighbour(index: int, number: int, kind: int = 28, flags: int = netlink.CREATE | netlink.REPLACE) -> bytes:
    """A permanent neighbour 10.x.y.z on a device, packed by hand: family, ifindex, state, flags, type."""
    body = b"\2\0\0\0" + index.to_bytes(4, "little") + b"\x80\0\0\0"
    address = (0x0A000000 + number).to_bytes(4, "big")
    return netlink.message(kind, netlink.REQUEST | flags, body, netlink.attribute(1, address), netlink.attribute(2, b"\2\0" + address))


def device(space) -> int:
    links.create_bridge(space.nl, "d0", mac=b"\2\0\0\0\0\1", mtu=1500)
    links.set_link(space.nl, "d0", up=True)
    return links.link(space.nl, "d0").index


def test_batch_returns_exactly_the_refused(netns):
    index = device(netns)
    batch = [neighbour(index, number) for number in range(1, 16)]
    batch[4] = neighbour(index, 999, kind=29, flags=0)  # delete what is not there
    batch[8] = neighbour(index + 1000, 8)  # no such device
    refused = netns.nl.send(batch)
    assert sorted(refused) == [4, 8]
    assert refused[4][0] == errno.ENOENT
    assert refused[8] == (errno.ENODEV, os.strerror(errno.ENODEV))
    assert len(netns.lines("ip neigh show dev d0 nud permanent")) == 13


def test_kernels_words_come_along(netns):
    index = device(netns)
    message = netlink.message(24, netlink.CREATE, bytes([2, 24, 0, 0, 254, 83, 0, 1, 0, 0, 0, 0]), netlink.attribute(1, bytes([10, 1, 1, 0])))
    message = netlink.message(24, netlink.REQUEST | netlink.CREATE, message[16:], netlink.attribute(5, bytes([10, 1, 1, 1])), netlink.u32(4, index))
    assert netns.nl.send([message]) == {0: (errno.ENETUNREACH, "Nexthop has invalid gateway")}


def test_many_batches_keep_positions(netns):
    index = device(netns)
    batch = [neighbour(index, number) for number in range(1, 7001)]
    bad = {0, 2999, 3000, 3001, 5999, 6000, 6999}
    for position in bad:
        batch[position] = neighbour(index + 1000, position)
    assert set(netns.nl.send(batch)) == bad
    assert len(netns.lines("ip neigh show dev d0 nud permanent")) == 7000 - len(bad)
    assert netns.nl.send([]) == {}


def test_a_batch_of_nothing_but_refusals(netns):
    index = device(netns)
    refused = netns.nl.send([neighbour(index + 1000, number) for number in range(6000)])
    assert sorted(refused) == list(range(6000))
    assert {code for code, _ in refused.values()} == {errno.ENODEV}


UNPRIVILEGED = """
from tests.kernel.test_netlink import neighbour
from tweed.kernel.netlink import Netlink
with Netlink() as nl:
    refused = nl.send([neighbour(4711, number) for number in range(2000)])
    assert sorted(refused) == list(range(2000)), len(refused)
    print("as many as were sent")
"""


def test_without_the_right_to_large_buffers():
    """In a user namespace the kernel grants only what net.core.rmem_max and wmem_max say."""
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", UNPRIVILEGED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."])})
    assert (done.stdout, done.returncode) == ("as many as were sent\n", 0), done.stderr


def test_small_buffers_lose_no_refusal(netns, monkeypatch):
    """Batches shrink to what the buffers hold."""
    monkeypatch.setattr("tweed.kernel.netlink.open_socket", lambda descriptor: open_socket(descriptor, receive_buffer=1 << 15))
    with Netlink(netns.fd) as small:
        assert small._batch == 32
        refused = small.send([neighbour(4711, number) for number in range(500)])
        assert sorted(refused) == list(range(500))
        small._batch = 500  # more than fits: then answers are lost, and that is said
        with pytest.raises(KernelError, match="the kernel's answer was lost: No buffer space"):
            small.send([neighbour(4711, number) for number in range(500)])
        assert links.link(small, "lo") is not None


def test_sequence_numbers_wrap(netns):
    index = device(netns)
    netns.nl._sequence = 0xFFFFFFFF - 5
    batch = [neighbour(index, number) for number in range(1, 21)]
    batch[3] = batch[15] = neighbour(index + 1000, 1)
    assert sorted(netns.nl.send(batch)) == [3, 15]
    assert links.link(netns.nl, "d0").index == index
    netns.nl._sequence = 0xFFFFFFFF
    assert [link.name for link in links.links(netns.nl)] == ["lo", "d0"]


def test_request_and_dump_refused(netns):
    with pytest.raises(KernelError, match=r"^look for it: No such device$") as refused:
        netns.nl.request(wire.get_link("nosuch"), "look for it")
    assert (refused.value.operation, refused.value.errno) == ("look for it", errno.ENODEV)
    with pytest.raises(KernelError, match=r"^look at all: Invalid"):
        netns.nl.dump(netlink.message(18, 0, b"\0" * 12 + b"\1\0\0\0"), "look at all")
    assert [link.name for link in links.links(netns.nl)] == ["lo"]  # the socket goes on


def test_interrupted_dumps_are_repeated(netns):
    """Links are added and removed under link dumps, whose sequence the kernel does check."""
    stop = threading.Event()

    def churn() -> None:
        with Netlink(netns.fd) as other:
            while not stop.is_set():
                links.create_bridge(other, "x0", mac=None, mtu=1500)
                links.delete_link(other, "x0")

    for number in range(60):
        links.create_bridge(netns.nl, f"b{number}", mac=None, mtu=1500)
    tries: list[bool] = []
    once = netns.nl._dump_once

    def counted(message: bytes, operation: str):
        datagrams, interrupted = once(message, operation)
        tries.append(interrupted)
        return datagrams, interrupted

    netns.nl._dump_once = counted
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        repeated = False
        for _ in range(2000):
            tries.clear()
            names = {link.name for link in links.links(netns.nl)}
            assert len(tries) <= 5
            assert tries[:-1] == [True] * (len(tries) - 1)
            repeated = repeated or len(tries) > 1
            if repeated and not tries[-1]:
                assert {f"b{number}" for number in range(60)} <= names
                break
        assert repeated, "no dump was ever interrupted"
    finally:
        stop.set()
        thread.join()


def test_socket_lives_in_its_namespace(netns):
    links.create_bridge(netns.nl, "only-here", mac=None, mtu=1500)
    with Netlink() as own:
        assert links.link(own, "only-here") is None
    with Netlink(netns.fd) as other:
        assert links.link(other, "only-here") is not None
        assert other.port not in (0, netns.nl.port)


def test_run_in(netns):
    inside = namespaces.run_in(netns.fd, lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    assert inside == namespaces.inode(netns.fd)
    assert os.stat("/proc/thread-self/ns/net").st_ino != inside
    with pytest.raises(ZeroDivisionError):
        namespaces.run_in(netns.fd, lambda: 1 // 0)
    with open(os.devnull) as other, pytest.raises(KernelError, match="enter the network namespace"):
        namespaces.run_in(other.fileno(), lambda: None)


def test_named_namespaces(netns):
    assert netns.name in namespaces.names()
    with pytest.raises(KernelError, match="File exists") as refused:
        namespaces.create(netns.name)
    assert refused.value.errno == errno.EEXIST
    by_path = namespaces.open_netns(f"/run/netns/{netns.name}")
    assert namespaces.inode(by_path) == namespaces.inode(netns.fd)
    os.close(by_path)
    with pytest.raises(KernelError, match=r"^open network namespace /run/netns/nosuch-here: No such file") as refused:
        namespaces.open_netns("nosuch-here")
    assert refused.value.errno == errno.ENOENT
    with pytest.raises(KernelError, match="it is not a network namespace"):
        namespaces.open_netns("/proc/self/ns/mnt")
    with pytest.raises(KernelError, match="it is not a network namespace"):
        namespaces.open_netns("/dev/null")
    namespaces.delete(netns.name)
    assert netns.name not in namespaces.names()
    with pytest.raises(KernelError, match="No such file"):
        namespaces.delete(netns.name)
