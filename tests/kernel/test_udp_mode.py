"""The forwarding process of the UDP mode against the real kernel, with a plain peer on the other side that checks every checksum."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from tests.kernel.conftest import Namespace

from tweed.addr import Prefix, parse_address
from tweed.agent.forwarding import Forwarding
from tweed.config import Settings
from tweed.kernel import tun
from tweed.kernel.netlink import SO_RCVBUFFORCE
from tweed.kernel.netns import run_in
from tweed.udp.control import Report, Request, Task, ask, descriptors
from tweed.udp.peers import Table, peer

ROOM = 8 << 20  # for all that waits while one process follows another
PLAIN = Path(__file__).parent / "plain_peer.py"
OUTER = ("192.0.2.1", "192.0.2.2")
INNER = ("10.244.1.0", "10.244.2.0")
PATHS = ("fast", "numpy", "naive")
PATIENCE_S = 20.0
SIOCETHTOOL, ETHTOOL_STXCSUM, ETHTOOL_SSG, ETHTOOL_SGSO = 0x8946, 0x17, 0x19, 0x24
NO_BURSTS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR((struct msghdr *)message, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == 103 /* UDP_SEGMENT */) { errno = EIO; return -1; }
    ssize_t (*kernels)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    return kernels(fd, message, flags);
}
"""


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.02)


class World:
    """`here` runs the forwarding process, `there` a plain peer."""

    def __init__(self, here: Namespace, there: Namespace, directory: Path) -> None:
        self.here, self.there = here, there
        self.socket = directory / "udp.sock"
        here.run(f"ip link add eth0 type veth peer name eth0 netns {there.name}")
        for space, outer, inner in zip((here, there), OUTER, INNER, strict=True):
            run_in(space.fd, lambda: tun.create("flannel0"))
            space.run(f"sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip addr add {outer}/24 dev eth0; ip link set eth0 up")
            space.run(f"ip addr add {inner}/32 dev flannel0; ip link set flannel0 mtu 1472 up; ip route add 10.244.0.0/16 dev flannel0")
        self.table = Table(Prefix.parse("10.244.1.0/24"), (peer(Prefix.parse("10.244.2.0/24"), parse_address(OUTER[1])),))

    def task(self, data_path: str = "auto", version: str = "") -> Task:
        return Task(str(self.socket), "flannel0", OUTER[0], 8285, data_path, version)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def forwarding(self, data_path: str, left: Sequence[int] = (), environment: Mapping[str, str] = {}) -> Iterator[subprocess.Popen[bytes]]:
        """`left`: the descriptors of an earlier process, which are closed."""
        task = self.task(data_path)
        command = ["ip", "netns", "exec", self.here.name, sys.executable, "-m", "tweed.udp.forwarder", msgspec.json.encode(task).decode(), *map(str, left)]
        process = subprocess.Popen(command, pass_fds=left, env=os.environ | environment)
        for descriptor in left:
            os.close(descriptor)
        try:
            eventually(lambda: self.answers(), "the process answers")
            assert self.report(Request(table=self.table.pack())).data_path == data_path
            yield process
        finally:
            process.kill()
            process.wait()

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            ask(self.socket, Request())
            return True
        return False

    def report(self, request: Request | None = None) -> Report:
        return ask(self.socket, request or Request())

    def count(self, name: str) -> int:
        return self.report().counters[name]

    @contextlib.contextmanager
    def plain(self) -> Iterator[Callable[[], list[str]]]:
        """The plain peer; what it yields ends it and tells what it saw."""
        command = ["ip", "netns", "exec", self.there.name, sys.executable, str(PLAIN), "flannel0", OUTER[1], "8285", OUTER[0]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def verdict() -> list[str]:
            process.send_signal(signal.SIGTERM)
            return process.communicate(timeout=PATIENCE_S)[0].split()

        try:
            yield verdict
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def world(netns: Namespace, netns2: Namespace, tmp_path: Path) -> World:
    return World(netns, netns2, tmp_path)


def opened(space: Namespace, kind: int, bound: tuple[str, int] | None = None) -> socket.socket:
    made = run_in(space.fd, lambda: socket.socket(socket.AF_INET, kind))
    if kind == socket.SOCK_DGRAM:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
    made.settimeout(PATIENCE_S)
    if bound:
        made.bind(bound)
    return made


def transfer(source: Namespace, target: Namespace, to: str, size: int) -> None:
    """So many bytes in one TCP stream, as fast as it goes, every one compared."""
    data = os.urandom(1 << 16) * (size >> 16)
    with opened(target, socket.SOCK_STREAM, (to, 0)) as listening, opened(source, socket.SOCK_STREAM) as client:
        listening.listen(1)
        client.connect(listening.getsockname())
        server, _ = listening.accept()
        sending = threading.Thread(target=client.sendall, args=(data,))
        sending.start()
        with server:
            server.settimeout(PATIENCE_S)
            got = bytearray()
            while len(got) < len(data):
                piece = server.recv(1 << 20)
                assert piece
                got += piece
        sending.join()
        assert got == data


def test_the_compiled_path_is_here() -> None:
    import tweed.udp.fast

    assert tweed.udp.fast.Core


@pytest.mark.parametrize("data_path", PATHS)
def test_a_plain_peer_sees_only_right_packets(world: World, data_path: str) -> None:
    with world.plain() as verdict, world.forwarding(data_path):
        for size in (0, 56, 1444, 1445, 4000):
            for space, to in ((world.here, INNER[1]), (world.there, INNER[0])):
                assert "1 packets received" in space.run(f"busybox ping -c 1 -W 10 -s {size} {to}")
        transfer(world.here, world.there, INNER[1], 8 << 20)
        sent = world.report().counters  # what goes out afterwards acknowledges, at times one by one
        transfer(world.there, world.here, INNER[0], 8 << 20)
        report = world.report()
        assert report.counters["tx-packets"] > 5000
        assert not {name: n for name, n in report.counters.items() if n and name.startswith("rx-") and name not in ("rx-packets", "rx-bytes", "rx-writes")}
        if data_path != "naive":
            assert set(report.offloads.values()) == {""}
            assert sent["tx-sends"] < sent["tx-packets"] / 4, "long packets go out as bursts"
            assert report.fast_peers == 0
        words = verdict()
        assert words[2:] == ["bad", "0"]
        assert int(words[1]) > 5000


@pytest.mark.parametrize("data_path", ["fast", "numpy"])
def test_a_burst_that_the_route_has_no_room_for_goes_out_one_by_one(world: World, data_path: str) -> None:
    """The kernel refuses to cut into datagrams that are longer than the route's MTU; a single one it sends in fragments."""
    with world.plain() as verdict, world.forwarding(data_path):
        world.here.run("ip route change 192.0.2.0/24 dev eth0 src 192.0.2.1 mtu 1400")
        transfer(world.here, world.there, INNER[1], 2 << 20)
        report = world.report()
        assert report.segmenting_off[OUTER[1]] in (errno.EMSGSIZE, errno.EINVAL)
        assert report.counters["fallbacks"] == 1
        assert report.counters["tx-sends"] >= report.counters["tx-packets"] > 1000
        assert (report.counters["tx-refused"], verdict()[2:]) == (0, ["bad", "0"])


@pytest.mark.parametrize("data_path", ["fast", "numpy"])
def test_a_device_without_offloads_loses_nothing(world: World, data_path: str) -> None:
    """Since Linux 6.11 the kernel cuts and sums for it; before, it refused."""
    with opened(world.here, socket.SOCK_DGRAM) as handle:
        for command in (ETHTOOL_STXCSUM, ETHTOOL_SSG, ETHTOOL_SGSO):
            value = ctypes.create_string_buffer(struct.pack("=II", command, 0), 8)
            fcntl.ioctl(handle, SIOCETHTOOL, struct.pack("16sP16x", b"eth0", ctypes.addressof(value)))
    with world.plain() as verdict, world.forwarding(data_path):
        transfer(world.here, world.there, INNER[1], 2 << 20)
        report = world.report()
        assert report.segmenting_off in ({}, {OUTER[1]: errno.EIO})
        assert (report.counters["fallbacks"], report.counters["tx-refused"]) == (len(report.segmenting_off), 0)
        assert verdict()[2:] == ["bad", "0"]


@pytest.mark.parametrize("data_path", ["fast", "numpy"])
def test_a_burst_that_the_kernel_cannot_sum_goes_out_one_by_one(world: World, data_path: str, tmp_path: Path) -> None:
    """EIO, which Linux from 6.11 says of IPsec only, and this one may know none: the library's sendmsg() says it here."""
    library = tmp_path / "no_bursts.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-o", library, "-"], input=NO_BURSTS, text=True, check=True)
    with world.plain() as verdict, world.forwarding(data_path, environment={"LD_PRELOAD": str(library)}):
        transfer(world.here, world.there, INNER[1], 2 << 20)
        report = world.report()
        assert report.segmenting_off == {OUTER[1]: errno.EIO}
        assert report.counters["fallbacks"] == 1
        assert report.counters["tx-sends"] >= report.counters["tx-packets"] > 1000
        assert (report.counters["tx-refused"], verdict()[2:]) == (0, ["bad", "0"])


@pytest.mark.parametrize("data_path", PATHS)
def test_a_time_to_live_that_ends_is_told(world: World, data_path: str) -> None:
    with world.plain(), world.forwarding(data_path):
        with run_in(world.here.fd, icmp_socket) as ear:
            with opened(world.here, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
                sender.sendto(b"x", (INNER[1], 9))
            answer = ear.recv(1000)
            assert answer[20:22] == bytes((11, 0))
            assert answer[12:16] == parse_address(INNER[0])
            assert answer[28 + 16 : 28 + 20] == parse_address(INNER[1]), "it quotes the packet"
            with opened(world.here, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", ("10.244.9.9", 9))
            assert ear.recv(1000)[20:22] == bytes((3, 0)), "and an address in nobody's subnet is unreachable"
        assert world.count("icmp-sent") == 2
        with run_in(world.there.fd, icmp_socket) as ear, opened(world.there, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)  # the plain peer takes one, and says nothing
            sender.sendto(b"x", (INNER[0], 9))
            assert ear.recv(1000)[20:22] == bytes((11, 0))
        assert (world.count("tx-ttl"), world.count("tx-no-peer"), world.count("rx-ttl")) == (1, 1, 1)


def icmp_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    made.settimeout(PATIENCE_S)
    return made


@pytest.mark.parametrize("data_path", PATHS)
def test_it_comes_back_to_the_same_device(world: World, data_path: str) -> None:
    """Killed, the TUN keeps its address and routes; a second process is refused while the first one has it."""
    with world.plain():
        with world.forwarding(data_path) as first:
            before = world.here.lines("ip -o -4 addr show flannel0; ip route")
            first.kill()
            first.wait()
            # What shows that nobody reads it now is gone when the next one comes.
            assert "10.244.0.0/16 dev flannel0" in world.here.run("ip route")
        with world.forwarding("naive" if data_path == "fast" else "fast"):
            assert world.here.lines("ip -o -4 addr show flannel0; ip route") == before
            assert "1 packets received" in world.here.run(f"busybox ping -c 1 -W 10 {INNER[1]}")


@pytest.mark.parametrize(("first", "second"), [("fast", "numpy"), ("numpy", "fast"), ("naive", "naive"), ("fast", "naive"), ("naive", "fast")])
def test_what_waits_is_the_next_ones(world: World, first: str, second: str) -> None:
    """Killed while somebody holds its descriptors, the TUN keeps its carrier and both queues fill, until another process of the same kind has them."""
    ends = list(zip((world.here, world.there), (world.there, world.here), (INNER[1], INNER[0]), strict=True))
    with world.plain() as verdict, contextlib.ExitStack() as stack:
        receiving = [stack.enter_context(opened(target, socket.SOCK_DGRAM, (to, 9))) for _, target, to in ends]
        with world.forwarding(first) as process:
            left = descriptors(world.socket)
            process.kill()
            process.wait()
        assert "LOWER_UP" in world.here.run("ip link show flannel0")
        for source, _, to in ends:
            with opened(source, socket.SOCK_DGRAM) as sender:
                for number in range(100):
                    sender.sendto(bytes([number]) * 100, (to, 9))
        with world.forwarding(second, left):
            if (first == "naive") == (second == "naive"):
                for each in receiving:
                    assert [each.recv(100)[0] for _ in range(100)] == list(range(100))
            assert "1 packets received" in world.here.run(f"busybox ping -c 1 -W 10 {INNER[1]}")
            assert verdict()[2:] == ["bad", "0"]


@pytest.mark.parametrize("data_path", PATHS)
def test_another_version_takes_over_without_a_gap(world: World, data_path: str) -> None:
    """As an agent does that was upgraded: it finds the process of the one before."""

    def have(version: str) -> Report:
        agents = Forwarding(Settings(node_name="n", store="", run_dir=world.socket.parent), lambda _: None)
        try:
            return run_in(world.here.fd, lambda: agents.have(world.task(data_path, version), world.table.pack()))
        finally:
            agents.let_go()

    pids, done, count = [], threading.Event(), 0
    with world.plain(), opened(world.there, socket.SOCK_DGRAM, (INNER[1], 9)) as receiver, opened(world.here, socket.SOCK_DGRAM) as sender:

        def send() -> None:
            nonlocal count
            while not done.wait(0.005):
                sender.sendto(count.to_bytes(4), (INNER[1], 9))
                count += 1

        sending = threading.Thread(target=send)
        try:
            pids.append(have("1").pid)
            sending.start()
            pids.append(have("2").pid)
        finally:
            done.set()
            sending.join()
            assert [int.from_bytes(receiver.recv(4)) for _ in range(count)] == list(range(count))
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        assert len(set(pids)) == 2


def test_peers_change_without_a_gap(world: World) -> None:
    """A thousand tables while a stream runs: nothing is dropped."""
    more = [peer(Prefix.parse(f"10.{i // 256}.{i % 256}.0/24"), parse_address("192.0.2.3")) for i in range(500)]
    with world.plain() as verdict, world.forwarding("fast"):
        for i in range(200):
            peers = (*world.table.peers, *more[: i * 7 % 500])
            world.report(Request(table=Table(world.table.own, peers).pack()))
            if i % 50 == 0:
                transfer(world.here, world.there, INNER[1], 1 << 20)
        assert world.count("tx-no-peer") == 0
        assert verdict()[3] == "0"


def test_hostile_datagrams_on_the_wire(world: World) -> None:
    with world.forwarding("fast"):
        with opened(world.there, socket.SOCK_DGRAM, (OUTER[1], 8285)) as sender:
            for i in range(3000):
                sender.sendto(os.urandom(i % 200), (OUTER[0], 8285))
        world.there.run("ip addr add 192.0.2.9/24 dev eth0")
        with opened(world.there, socket.SOCK_DGRAM, ("192.0.2.9", 8285)) as stranger:
            stranger.sendto(b"x" * 40, (OUTER[0], 8285))
        eventually(lambda: world.count("rx-stranger") == 1, "the stranger's is counted")
        counters = world.report().counters
        assert sum(n for name, n in counters.items() if name.startswith("rx-") and name not in ("rx-bytes", "rx-writes", "rx-foreign")) == 3001
        assert counters["rx-packets"] == 0


@pytest.mark.parametrize("data_path", ("fast", "numpy"))
def test_a_route_that_was_away_ends_no_bursts(world: World, data_path: str) -> None:
    with world.forwarding(data_path) as process, opened(world.here, socket.SOCK_DGRAM) as sender:

        def burst() -> None:
            """Ten datagrams that the process finds all at once."""
            process.send_signal(signal.SIGSTOP)
            for _ in range(10):
                sender.sendto(bytes(64), (INNER[1], 9))
            process.send_signal(signal.SIGCONT)

        world.here.run(f"ip route add unreachable {OUTER[1]}/32")
        burst()
        eventually(lambda: world.count("tx-refused") == 10, "they are refused")
        world.here.run(f"ip route del unreachable {OUTER[1]}/32")
        burst()
        eventually(lambda: world.count("tx-packets") == 10, "they are sent")
        report = world.report()
        assert (report.segmenting_off, report.counters["fallbacks"]) == ({}, 0)
        assert report.counters["tx-sends"] < 20, "bursts, not datagrams"


def test_two_fast_peers_know_each_other(world: World, tmp_path: Path) -> None:
    other = World.__new__(World)
    other.here, other.there, other.socket = world.there, world.here, tmp_path / "other.sock"
    other.table = Table(Prefix.parse("10.244.2.0/24"), (peer(Prefix.parse("10.244.1.0/24"), parse_address(OUTER[0])),))
    task = Task(socket=str(other.socket), device="flannel0", local=OUTER[1], port=8285)
    command = ["ip", "netns", "exec", world.there.name, sys.executable, "-m", "tweed.udp.forwarder", msgspec.json.encode(task).decode()]
    process = subprocess.Popen(command)
    try:
        with world.forwarding("numpy"):
            eventually(other.answers, "the other process answers")
            assert other.report(Request(table=other.table.pack())).data_path == "fast"
            transfer(world.here, world.there, INNER[1], 8 << 20)
            transfer(world.there, world.here, INNER[0], 8 << 20)
            assert (world.report().fast_peers, other.report().fast_peers) == (1, 1)
            assert other.count("rx-writes") < other.count("rx-packets") / 4, "bursts stay bursts"
    finally:
        process.kill()
        process.wait()


def test_the_process_ends_with_its_device(world: World) -> None:
    with world.forwarding("fast") as process:
        world.here.run("ip link del flannel0")
        assert process.wait(timeout=PATIENCE_S) == 1
