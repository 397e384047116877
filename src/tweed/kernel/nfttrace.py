"""Which nftables rule dropped a packet (`nft monitor trace`), iptables-nft's rules included.

Packets that a small table of our own matches are marked for tracing, and the kernel tells each rule that they meet. The table belongs to our
netlink socket (flag owner): it goes with the process, whatever ends it.
"""

from __future__ import annotations

import errno
import os
import socket
import time

import msgspec

from tweed.errors import KernelError
from tweed.kernel.nft import NETLINK_ADD_MEMBERSHIP, NETLINK_NETFILTER, SOL_NETLINK, Nft
from tweed.wire import netlink as wire

NFNLGRP_NFTRACE = 9
NFT_MSG_TRACE = 10 << 8 | 17
NFGENMSG = 4
# linux/netfilter/nf_tables.h, enum nft_trace_attributes and nft_verdict_attributes
TABLE, CHAIN, HANDLE, VERDICT, POLICY = 1, 2, 3, 5, 16
VERDICT_CODE = 1
NF_DROP = 0
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
FIRST = -400  # before connection tracking puts fragments together


class Culprit(msgspec.Struct, frozen=True):
    """What dropped it: a rule by its handle, or a chain's policy (`handle` None). `text`: the rule as it was written."""

    family: str
    table: str
    chain: str
    handle: int | None
    text: str

    @property
    def command(self) -> str:
        """What takes it away."""
        if self.handle is not None:
            return f"nft delete rule {self.family} {self.table} {self.chain} handle {self.handle}"
        return f"nft chain {self.family} {self.table} {self.chain} '{{ policy accept ; }}'"


class RuleTrace:
    """Attached from the moment this is made, in the calling thread's network namespace, until `close`. Raises KernelError."""

    def __init__(self, matches: tuple[str, ...]) -> None:
        """`matches`: nft expressions, each of which marks what it fits."""
        self._nft = Nft()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTRACE)
            rules = "".join(f"{match} meta nftrace set 1\n" for match in matches)
            chains = "".join(f"chain {hook} {{ type filter hook {hook} priority {FIRST};\n{rules}}}\n" for hook in ("prerouting", "output"))
            self._nft.apply(f"table inet tweed-walk-{os.getpid()} {{ flags owner;\n{chains}}}\n")
        except OSError as error:
            self.close()
            raise KernelError("trace nftables", error.errno or 0, error.strerror or "") from None
        except KernelError:
            self.close()
            raise

    def culprit(self, wait_s: float) -> Culprit | None:
        """The first rule or policy that dropped a marked packet; None when none does within that time."""
        deadline = time.monotonic() + wait_s
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                raise KernelError("trace nftables", error.errno or 0, error.strerror or "") from None
            for kind, _, _, _, start, end in wire.messages(data):
                if kind == NFT_MSG_TRACE and (found := self._read(data, start, end)) is not None:
                    return found
        return None

    def _read(self, data: bytes, start: int, end: int) -> Culprit | None:
        told = wire.attributes(data, start + NFGENMSG, end)
        verdict = wire.attributes(told.get(VERDICT, b""), 0, len(told.get(VERDICT, b""))).get(VERDICT_CODE)
        by_rule = verdict is not None and int.from_bytes(verdict, "big") == NF_DROP and HANDLE in told
        by_policy = POLICY in told and int.from_bytes(told[POLICY], "big") == NF_DROP and not by_rule
        if not by_rule and not by_policy:
            return None
        family = FAMILIES.get(data[start], "inet")
        table, chain = (wire.read_text(told.get(kind, b"?\0")) for kind in (TABLE, CHAIN))
        handle = int.from_bytes(told[HANDLE], "big") if by_rule else None
        return Culprit(family, table, chain, handle, self._text(family, table, chain, handle))

    def _text(self, family: str, table: str, chain: str, handle: int | None) -> str:
        """The rule as nft lists it: the library numbers rules only in JSON, and both lists have one order."""
        command = f"list chain {family} {table} {chain}"
        try:
            lines = [line.strip() for line in self._nft.listing(command).splitlines()]
            if handle is None:
                return next((line for line in lines if "policy" in line), command)
            handles = [each["rule"]["handle"] for each in self._nft.objects(command) if "rule" in each]
            rules = [line for line in lines if line and not line.startswith(("table ", "chain ", "type ", "}"))]
            return rules[handles.index(handle)]
        except (KernelError, ValueError, IndexError):
            return command

    def close(self) -> None:
        self._socket.close()
        self._nft.close()

    def __enter__(self) -> RuleTrace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
