"""The teaching baseline: one packet, two system calls. This is all of UDP mode; everything else in this directory makes it faster."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import Counter
from contextlib import suppress

from tweed.udp import outer
from tweed.udp.packet import COUNTERS, look_inbound, look_outbound, lower_ttl
from tweed.udp.peers import Lookup

TURNS = 64  # packets of one direction before the other has its turn
EVENTS = 8
LONGEST = 65535


class Naive:
    """One packet at a time. `tun` and `opened` do not block."""

    def __init__(self, tun: int, opened: socket.socket, port: int) -> None:
        self.tun, self.socket, self.port = tun, opened, port
        self.table = Lookup(bytes(12))
        self.count: Counter[str] = Counter()
        self.waiting: list[tuple[str, bytes]] = []

    def set_table(self, packed: bytes) -> None:
        self.table = Lookup(packed)

    def hosts(self) -> list[tuple[int, int, int]]:
        """No peer is ever sent a burst."""
        return []

    def counters(self) -> list[int]:
        return [self.count[name] for name in COUNTERS]

    def events(self) -> list[tuple[str, bytes]]:
        """Packets whose senders are to be told: why, and the packet's beginning."""
        told, self.waiting = self.waiting, []
        return told

    def drop(self, why: str, ip: bytearray | memoryview) -> None:
        self.count[why] += 1
        if why in ("tx-ttl", "tx-no-peer", "rx-ttl") and len(self.waiting) < EVENTS:
            self.waiting.append((why, bytes(ip[:68])))

    def run(self, wake: int) -> list[tuple[str, bytes]]:
        """Forward until the descriptor `wake` is readable or senders are to be told of something: the events. Raises OSError."""
        poll = select.poll()
        for descriptor in (self.tun, self.socket.fileno(), wake):
            poll.register(descriptor, select.POLLIN)
        while not self.waiting:
            ready = dict(poll.poll())
            if wake in ready:
                break
            if ready.get(self.tun, 0) & ~select.POLLIN:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            if self.tun in ready:
                self.turn_outbound()
            if self.socket.fileno() in ready:
                self.turn_inbound()
        return self.events()

    def turn_outbound(self) -> None:
        for _ in range(TURNS):
            try:
                packet = os.read(self.tun, LONGEST)
            except BlockingIOError:
                return
            for wire, host in self.outbound(packet):
                self.send(wire, host)

    def send(self, wire: bytes | memoryview, host: int) -> None:
        self.count["tx-sends"] += 1
        try:
            self.socket.sendto(wire, (outer.text(host), self.port))
        except OSError as error:
            self.count["tx-queue-full" if isinstance(error, BlockingIOError) or error.errno == errno.ENOBUFS else "tx-refused"] += 1
            return
        self.count["tx-packets"] += 1
        self.count["tx-bytes"] += len(wire)

    def outbound(self, packet: bytes) -> list[tuple[bytes, int]]:
        """What is sent for one packet of the TUN, and to which host."""
        ip = bytearray(packet)
        why, host = look_outbound(self.table, ip)
        if why:
            self.drop(why, ip)
            return []
        lower_ttl(ip)
        return [(bytes(ip), host)]

    def turn_inbound(self) -> None:
        for _ in range(TURNS):
            datagram = bytearray(outer.RECEIVE)
            with suppress(BlockingIOError):
                n, sender = self.socket.recvfrom_into(datagram)
                for packet in self.inbound(outer.number(sender[0]), bytes(datagram[:n])):
                    self.write(packet)
                continue
            return

    def write(self, packet: bytes) -> None:
        self.count["rx-writes"] += 1
        try:
            os.write(self.tun, packet)
        except OSError:
            self.count["rx-refused"] += 1
            return
        self.count["rx-packets"] += 1
        self.count["rx-bytes"] += len(packet)

    def inbound(self, sender: int, datagram: bytes) -> list[bytes]:
        """What the TUN is given for one datagram."""
        if sender not in self.table.hosts:
            self.count["rx-stranger"] += 1
            return []
        ip = bytearray(datagram)
        why, foreign = look_inbound(self.table, sender, ip)
        if why:
            self.drop(why, ip)
            return []
        self.count["rx-foreign"] += foreign
        lower_ttl(ip)
        return [bytes(ip)]
