"""One real packet that is told from all others: an echo request, a datagram, or a TCP SYN, sent from a namespace.

An echo and a datagram begin with eight random bytes. A SYN has no room for them: its ports and sequence number are what tells it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
from collections.abc import Iterator
from struct import Struct

import msgspec

from tweed.addr import format_address
from tweed.errors import KernelError, UsageError
from tweed.kernel.netns import run_in
from tweed.trace.frames import FILLING, PROTOCOLS, Probe, transport

NONCE = 8
TRACEROUTE_PORT, HTTP_PORT = 33434, 80  # a port where nobody listens, and one where many do: an answer comes either way
UNREACHABLE_SIZE = 84  # about what a refusal has: it is never near an MTU
FIRST_PORT = 32768  # net.ipv4.ip_local_port_range
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DONT, PMTUDISC_PROBE = 10, 23, 0, 3
HALF, WORD = Struct("!H"), Struct("!I")


class Shot(msgspec.Struct, frozen=True):
    """A probe without unknowns, and how it is told: `nonce` as the tracer compares it, `answer` the first bytes of a TCP answer."""

    probe: Probe
    nonce: bytes
    answer: bytes = b""

    @property
    def protocol(self) -> int:
        return PROTOCOLS[self.probe.proto, self.probe.family]


def load(probe: Probe, chance: bytes | None = None) -> Shot:
    """Give a probe what it lacks. Raises UsageError when it has no room for the nonce. `chance`: eight bytes, instead of random ones."""
    if probe.proto != "icmp" and probe.dport == 0:
        raise UsageError("--dport 0: nothing can be sent to port 0")
    chance = chance or os.urandom(NONCE)
    port = FIRST_PORT | HALF.unpack(chance[:2])[0]
    sport = port if probe.sport is None else probe.sport
    if probe.proto == "tcp":
        dport = HTTP_PORT if probe.dport is None else probe.dport
        sequence = WORD.unpack(chance[4:])[0]
        loaded = msgspec.structs.replace(probe, sport=sport, dport=dport, sequence=sequence)
        nonce = HALF.pack(sport) + HALF.pack(dport) + WORD.pack(sequence)
        return Shot(loaded, nonce, HALF.pack(dport) + HALF.pack(sport) + WORD.pack((sequence + 1 + probe.size - probe.least) & 0xFFFFFFFF))
    room = probe.size - probe.least
    if room < NONCE:
        raise UsageError(f"--size {probe.size}: a packet that is followed carries {NONCE} bytes to tell it by: at least {probe.least + NONCE}")
    payload = chance + (FILLING * (room // len(FILLING) + 1))[: room - NONCE]
    if probe.proto == "icmp":
        return Shot(msgspec.structs.replace(probe, sport=sport, sequence=1, payload=payload), chance)
    return Shot(msgspec.structs.replace(probe, sport=sport, dport=TRACEROUTE_PORT if probe.dport is None else probe.dport, payload=payload), chance)


def agreed(probe: Probe) -> bytes:
    """What several machines put for chance without a word between them: it follows from the packet."""
    words = (probe.src, probe.dst, probe.proto.encode(), str((probe.size, probe.sport, probe.dport)).encode())
    return hashlib.blake2b(b"\0".join(words), digest_size=NONCE, person=b"tweed walk").digest()


def reply_to(shot: Shot) -> Probe | None:
    """The packet that answers, where it is known to the byte: that of an echo."""
    if shot.probe.proto != "icmp":
        return None
    return msgspec.structs.replace(shot.probe, src=shot.probe.dst, dst=shot.probe.src, reply=True, id=None, dont_fragment=None)


def permitted(probe: Probe) -> bool:
    """Whether this process may send it: all but datagrams need CAP_NET_RAW."""
    if probe.proto == "udp":
        return True
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    except PermissionError:
        return False
    return True


@contextlib.contextmanager
def opened(shot: Shot, netns: int | None) -> Iterator[socket.socket]:
    """The socket that sends it, in a namespace; held while answers are awaited, so that the port stays ours. Raises KernelError."""
    probe = shot.probe
    family = socket.AF_INET if probe.family == 4 else socket.AF_INET6

    def make() -> socket.socket:
        if probe.proto == "udp":
            return socket.socket(family, socket.SOCK_DGRAM)
        return socket.socket(family, socket.SOCK_RAW, shot.protocol)

    try:
        made = make() if netns is None else run_in(netns, make)
    except OSError as error:
        raise KernelError(f"open a socket for {probe.proto}", error.errno or 0, error.strerror or "") from None
    with made:
        if probe.dont_fragment is not None:
            level, option = (socket.IPPROTO_IP, IP_MTU_DISCOVER) if probe.family == 4 else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
            made.setsockopt(level, option, PMTUDISC_PROBE if probe.dont_fragment else PMTUDISC_DONT)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield made


def send(made: socket.socket, shot: Shot) -> str:
    """Send it. "" when the kernel took it, else the name of the errno."""
    probe = shot.probe
    try:
        made.bind((format_address(probe.src), (probe.sport or 0) if probe.proto == "udp" else 0))
        if probe.proto == "udp":
            made.sendto(probe.payload or b"", (format_address(probe.dst), probe.dport or 0))
        else:
            made.sendto(transport(probe).data, (format_address(probe.dst), 0))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return ""
