"""Follows one probe through all network namespaces of this machine: bpf/observe.bpf.c, loaded and read."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from struct import Struct

from tweed.errors import KernelError
from tweed.kernel.bpf import Btf, Programs, RingBuffer, update
from tweed.trace.events import Event, decode
from tweed.wire.packet import INNER_AT, Carried

OBJECT = "observe.bpf.o"
READS_SCATTERED = "bpf_dynptr_from_skb"
# Program of observe.bpf.c: its tracepoint.
PROGRAMS = {
    "queued": "net_dev_queue",
    "received": "netif_receive_skb",
    "dropped": "kfree_skb",
    "icmp_sent": "icmp_send",
    "routed": "fib_table_lookup",
    "routed6": "fib6_table_lookup",
}
BUFFER = 1 << 22  # as in observe.bpf.c
PORTS, ADDRESSES = 4, 8
TUNNEL, WORD = Struct(">H"), Struct("=H")


class Tracer:
    """Attached from the moment this is made until `close`, or until the process ends, however it ends. A context manager.

    `bursts`: look into buffers of several datagrams too, which a process sends or receives at once (flannel's UDP mode). It is false afterwards
    where the kernel lets no tracepoint do that (before Linux 6.12).
    Raises KernelError: EPERM without CAP_BPF and CAP_PERFMON, ENOENT where kernel or libbpf lack what it takes.
    """

    def __init__(self, *, bursts: bool = False) -> None:
        with Btf() as btf:
            self.reasons = btf.enum("skb_drop_reason")
            without = tuple(name for name, tracepoint in PROGRAMS.items() if not btf.has_tracepoint(tracepoint))
            self.bursts = bursts and btf.has_function(READS_SCATTERED)
        with resources.as_file(resources.files("tweed.bpf") / OBJECT) as path:
            try:
                self._programs = Programs(Path(path), tuple(PROGRAMS), without, ("scattered",) if self.bursts else ())
            except KernelError as error:
                if not self.bursts or error.errno not in (errno.EACCES, errno.EINVAL):
                    raise
                self.bursts = False  # Linux 6.4 to 6.11 have the function, for other programs
                self._programs = Programs(Path(path), tuple(PROGRAMS), without)
        try:
            self._ring = RingBuffer(self._programs.map("events"), BUFFER)
        except BaseException:
            self._programs.close()
            raise

    @property
    def programs(self) -> Mapping[str, int]:
        """File descriptors of the programs, by name."""
        return self._programs.programs

    def look_for(self, protocol: int, nonce: bytes, answer: bytes, tunnels: Mapping[int, Carried], addresses: Iterable[bytes]) -> None:
        """From now on tell of this probe only.

        `nonce`: the first 8 bytes of its payload, of TCP those of its header; `answer`: of TCP the ports and the acknowledgement that an
        answer has. `tunnels`: what UDP ports carry. `addresses`: look-ups for them count.
        """
        ports = b"".join(TUNNEL.pack(port) + WORD.pack(INNER_AT[carried]) for port, carried in list(tunnels.items())[:PORTS])
        flows = b"".join(address.ljust(16, b"\0") for address in list(dict.fromkeys(addresses))[:ADDRESSES])
        value = nonce + answer.ljust(8, b"\0") + bytes([protocol, 0, 0, 0]) + ports.ljust(4 * PORTS, b"\0") + flows.ljust(16 * ADDRESSES, b"\0")
        update(self._programs.map("wanted"), bytes(4), value + bytes(-len(value) % 8))

    def drain(self, wait_s: float = 0) -> list[Event]:
        """What has happened since, in the order of time. Waits at most `wait_s` for a first event."""
        events = [decode(record, self.reasons) for record in self._ring.drain(wait_s)]
        return sorted(events, key=lambda event: event.t_ns)

    def close(self) -> None:
        self._ring.close()
        self._programs.close()

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
