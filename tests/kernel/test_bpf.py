"""The tracer: its object is its source, it is gone when its process is, and it tells of its probe alone."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

import pytest
from tests.kernel.conftest import Namespace

from tweed.addr import parse_address
from tweed.errors import KernelError
from tweed.kernel import bpf
from tweed.kernel.netns import run_in
from tweed.kernel.tracer import Tracer
from tweed.trace.events import DROPPED, QUEUED, RECEIVED, ROUTED, Event
from tweed.wire.packet import Ipv4, Udp, decode, encode

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
BPF_PROG_GET_FD_BY_ID = 13
HERE, THERE = "10.9.0.1", "10.9.0.2"


def test_the_shipped_objects_are_their_sources(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "script" / "bpf", str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    built = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shipped = {path.name: path.read_bytes() for path in (ROOT / "src" / "tweed" / "bpf").glob("*.o")}
    assert built and built.keys() == shipped.keys()
    assert [name for name in built if built[name] != shipped[name]] == [], "build them anew: script/bpf"


def program_ids(pid: int) -> set[int]:
    """The BPF programs that a process holds."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(line.split()[1]) for line in entry.read_text().splitlines() if line.startswith("prog_id:")}
    return found


def exists(program: int) -> bool:
    try:
        os.close(bpf.system(BPF_PROG_GET_FD_BY_ID, Struct("=III").pack(program, 0, 0), "find a program"))
    except KernelError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


def test_nothing_stays_attached_after_kill_9() -> None:
    script = "from tweed.kernel.tracer import Tracer; import sys, time\nt = Tracer(); print('attached', flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "attached\n"
            programs = program_ids(process.pid)
            assert len(programs) >= 5 and all(map(exists, programs))
        finally:
            process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while any(map(exists, programs)):  # the kernel frees them a grace period later
        assert time.monotonic() < deadline, "programs are left"
        time.sleep(0.02)


@pytest.fixture
def pair(netns: Namespace, netns2: Namespace) -> Iterator[tuple[Namespace, Namespace]]:
    netns.run(
        f"ip link add x0 type veth peer name x0 netns {netns2.name}; ip link set x0 up; ip addr add {HERE}/24 dev x0; ip addr add fd00:9::1/64 dev x0 nodad"
    )
    netns2.run(f"ip link set x0 up; ip addr add {THERE}/24 dev x0; ip addr add fd00:9::2/64 dev x0 nodad")
    yield netns, netns2


def send(space: Namespace, *datagrams: bytes, family: int = socket.AF_INET, to: str = THERE) -> None:
    opened = run_in(space.fd, lambda: socket.socket(family, socket.SOCK_DGRAM))
    with opened:
        for datagram in datagrams:
            with contextlib.suppress(ConnectionRefusedError):
                opened.sendto(datagram, (to, 33434))


def told(tracer: Tracer, spaces: tuple[Namespace, Namespace]) -> list[Event]:
    inodes = {os.fstat(space.fd).st_ino for space in spaces}
    found: list[Event] = []
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and not any(event.kind == DROPPED for event in found):
        found += [event for event in tracer.drain(0.05) if event.netns in inodes]
    return found


def test_it_tells_of_its_probe_alone(pair: tuple[Namespace, Namespace]) -> None:
    with Tracer() as tracer:
        tracer.look_for(17, b"NONCE-01", b"", {8472: "vxlan"}, [parse_address(THERE)])
        # The short one lies in memory where the nonce of the one before may still be.
        send(pair[0], b"NONCE-02" + bytes(20), b"NONCE-01" + bytes(20), b"NONC", b"", bytes(20) + b"NONCE-01")
        events = told(tracer, pair)
    moves = [(event.kind, event.device, event.size) for event in events if event.kind in (QUEUED, RECEIVED)]
    # The datagram, and the error that quotes it.
    assert moves == [("queued", "x0", 70), ("received", "x0", 70), ("queued", "x0", 98), ("received", "x0", 98)]
    drop = next(event for event in events if event.kind == DROPPED)
    assert (drop.reason, drop.netns) == ("NO_SOCKET", os.fstat(pair[1].fd).st_ino) and drop.function.startswith("__udp4_lib_rcv+0x")
    assert drop.frame[-28:-20] == b"NONCE-01"
    route = next(event for event in events if event.kind == ROUTED and event.table == 254)
    assert (route.device, route.dst, route.code) == ("x0", parse_address(THERE), 0)
    assert all(event.t_ns <= after.t_ns for event, after in itertools.pairwise(events))


def test_ipv6(pair: tuple[Namespace, Namespace]) -> None:
    with Tracer() as tracer:
        tracer.look_for(17, b"NONCE-06", b"", {8472: "vxlan"}, [parse_address("fd00:9::2")])
        send(pair[0], b"NONCE-06" + bytes(20), family=socket.AF_INET6, to="fd00:9::2")
        events = told(tracer, pair)
    assert [(event.kind, event.size) for event in events if event.kind in (QUEUED, RECEIVED)][:2] == [("queued", 90), ("received", 90)]
    assert any(event.kind == ROUTED and event.dst == parse_address("fd00:9::2") and event.device == "x0" for event in events)


def test_fragments_are_joined_by_their_identification(pair: tuple[Namespace, Namespace]) -> None:
    with Tracer() as tracer:
        tracer.look_for(17, b"NONCE-03", b"", {}, [])
        send(pair[0], b"NONCE-04" + bytes(3992), b"NONCE-03" + bytes(3992))
        sizes = [event.size for event in told(tracer, pair) if event.kind == QUEUED and event.netns == os.fstat(pair[0].fd).st_ino]
    assert sizes == [1514, 1514, 14 + 20 + 1048]


def test_look_ups_that_others_make_for_the_same_address_leave_room_for_the_probe(pair: tuple[Namespace, Namespace]) -> None:
    """A socket that is not connected looks up its route for each datagram."""
    with Tracer() as tracer:
        tracer.look_for(17, b"NONCE-09", b"", {}, [parse_address(THERE)])
        send(pair[0], *itertools.repeat(b"somebody's", 25_000), b"NONCE-09" + bytes(20))
        events = told(tracer, pair)
    assert sum(event.kind == ROUTED for event in events) > 5_000
    assert [event.kind for event in events if event.kind in (QUEUED, RECEIVED)][:2] == [QUEUED, RECEIVED]


UDP_SEGMENT = 103


def carried(payload: bytes) -> bytes:
    """An IP packet as the daemons of UDP mode send it, in a datagram."""
    return encode(Ipv4(parse_address("10.244.0.2"), parse_address("10.244.2.2"), 17), Udp(40000, 33434), payload=payload)


def test_each_packet_in_a_burst_is_looked_at(pair: tuple[Namespace, Namespace]) -> None:
    """Several datagrams sent at once are one buffer, its payload in pages of its own, until a device cuts it."""
    mine, other, short = carried(b"NONCE-07" + bytes(292)), carried(b"NONCE-08" + bytes(292)), carried(b"NONCE-07" + bytes(20))
    headers = 14 + 20 + 8
    with Tracer(bursts=True) as tracer:
        assert tracer.bursts
        tracer.look_for(17, b"NONCE-07", b"", {8285: "ip"}, [])
        with run_in(pair[0].fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as opened:
            for packets in ([other, mine, other, short], [other] * 60, [mine]):
                opened.sendmsg([b"".join(packets)], [(socket.IPPROTO_UDP, UDP_SEGMENT, Struct("=H").pack(len(other)))], 0, (THERE, 8285))
        events = told(tracer, pair)
    assert {event.reason for event in events if event.kind == DROPPED} == {"NO_SOCKET"}
    for kind in (QUEUED, RECEIVED, DROPPED):
        seen = [event for event in events if event.kind == kind and event.frame[23] == 17]
        burst = headers + 3 * len(other) + len(short)
        assert [(event.size, event.burst) for event in seen] == [(headers + len(mine), burst), (headers + len(short), burst), (headers + len(mine), 0)]
        assert [event.frame[headers:] for event in seen] == [packet[:192] for packet in (mine, short, mine)]  # of 256, 64 are kept for headers
        for event in seen:
            packet = decode(event.frame, tunnels={8285: "ip"})
            assert [layer.name for layer in packet.layers[:5]] == ["ethernet", "ipv4", "udp", "ipv4", "udp"]


def test_without_rights_it_says_so() -> None:
    script = "from tweed.kernel.tracer import Tracer\nfrom tweed.errors import KernelError\ntry: Tracer()\nexcept KernelError as e: print(e.errno)"
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups", "--reuid=65534", "--regid=65534", sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.stdout.strip() == str(errno.EPERM), done.stdout + done.stderr


def test_the_kernel_counts_the_time_of_programs_while_it_is_asked_to(pair: tuple[Namespace, Namespace]) -> None:
    statistics = bpf.enable_statistics()
    try:
        with Tracer() as tracer:
            send(pair[0], b"x" * 20)
            nanoseconds, count = bpf.run_time(tracer.programs["queued"])
    finally:
        os.close(statistics)
    assert count > 0 and nanoseconds > 0
