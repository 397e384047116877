"""Real traffic between two namespaces: an echo and its reply, a TCP stream whose digest is compared. No tool needs to be installed."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time

import msgspec

from tweed.addr import format_address
from tweed.errors import TweedError
from tweed.kernel.netns import run_in
from tweed.wire.packet import Icmp, Icmpv6, Ipv6, encode
from tweed.wire.packet import tables as t

CHUNK = 1 << 16


class Transfer(msgspec.Struct, frozen=True):
    """`sent` and `received` are SHA-256 in hexadecimal, each computed at its own end."""

    size: int
    duration_s: float
    sent: str
    received: str


def ping(netns: int, src: bytes, dst: bytes, *, id: int, count: int = 3, timeout_s: float = 1.0, payload: bytes = bytes(56)) -> list[float | None]:
    """Round-trip seconds of `count` echo requests, sequence 1 and up, one after the other; None for one that was not answered."""
    family, protocol = (socket.AF_INET, t.ICMP) if len(dst) == 4 else (socket.AF_INET6, t.ICMPV6)
    with run_in(netns, lambda: socket.socket(family, socket.SOCK_RAW, protocol)) as opened:
        opened.bind((format_address(src), 0))
        return [echo(opened, src, dst, id, sequence, payload, timeout_s) for sequence in range(1, count + 1)]


def echo(opened: socket.socket, src: bytes, dst: bytes, id: int, sequence: int, payload: bytes, timeout_s: float) -> float | None:
    started = time.perf_counter()
    # The kernel writes the IP header, hands an IPv4 reply over with it and an IPv6 one without.
    if len(dst) == 4:
        request, start, wanted = encode(Icmp.echo(id, sequence), payload=payload), 20, encode(Icmp.echo(id, sequence, reply=True), payload=payload)
    else:
        request = Icmpv6.echo(id, sequence).pack(payload, Ipv6(src, dst, t.ICMPV6))
        start, wanted = 0, Icmpv6.echo(id, sequence, reply=True).pack(payload, Ipv6(dst, src, t.ICMPV6))
    try:
        opened.sendto(request, (format_address(dst), 0))
        while (left := started + timeout_s - time.perf_counter()) > 0:
            opened.settimeout(left)
            data, sender = opened.recvfrom(CHUNK)
            if data[start:] == wanted and sender[0] == format_address(dst):
                return time.perf_counter() - started
    except OSError:  # a timeout, or the kernel's own word that there is no way
        pass
    return None


def transfer(client_netns: int, server_netns: int, server: bytes, *, size: int = 1 << 20, timeout_s: float = 10.0) -> Transfer:
    """Send `size` random bytes over TCP to `server`, an address of the second namespace. Raises TweedError when that fails."""
    family = socket.AF_INET if len(server) == 4 else socket.AF_INET6
    data = os.urandom(size)
    digest = hashlib.sha256()
    failure: list[OSError] = []
    where = format_address(server)
    with (
        run_in(server_netns, lambda: socket.create_server((where, 0), family=family)) as listener,
        run_in(client_netns, lambda: socket.socket(family, socket.SOCK_STREAM)) as client,
    ):
        listener.settimeout(timeout_s)
        client.settimeout(timeout_s)

        def receive() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(timeout_s)
                    while chunk := connection.recv(CHUNK):
                        digest.update(chunk)
            except OSError as error:
                failure.append(error)

        receiver = threading.Thread(target=receive, name="receive", daemon=True)
        receiver.start()
        started = time.perf_counter()
        try:
            client.connect(listener.getsockname()[:2])
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        except OSError as error:
            failure.insert(0, error)
            client.close()
            listener.shutdown(socket.SHUT_RDWR)  # wakes the receiver
        receiver.join()
        duration = time.perf_counter() - started
    if failure:
        raise TweedError(f"TCP transfer of {size} bytes to {where} failed: {failure[0].strerror or failure[0]}")
    return Transfer(size, duration, hashlib.sha256(data).hexdigest(), digest.hexdigest())
