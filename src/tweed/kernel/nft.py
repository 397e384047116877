"""nftables in the network namespace of the calling thread: text in, JSON out, one atomic transaction per call.

libnftables through ctypes (0.2 ms a call) where it is installed, else the `nft` program with the same text. Nothing is
loaded before the first call. Two small netlink questions that libnftables does not answer are asked directly: "has
anything changed?" (`generation`) and "tell me when it does" (`NftMonitor`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from shutil import which

from tweed.errors import KernelError
from tweed.plan.nft import Object, Table, table_name

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
PROGRAM_TIMEOUT_S = 10
# nftables/libnftables.h NFT_CTX_OUTPUT_JSON, which implies NFT_CTX_OUTPUT_HANDLE.
OUTPUT_JSON, OUTPUT_HANDLE = 1 << 4, 1 << 3
NOTHING_INSTALLED = "neither libnftables.so.1 nor the nft program is here (apt-get install libnftables1, or nftables)"

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
NFT_MSG_NEWGEN = 10 << 8 | 15
NFT_MSG_GETGEN = 10 << 8 | 16
NFTA_GEN_ID, NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME = 1, 2, 3
HEADER = struct.Struct("=IHHII")
NFGENMSG = struct.Struct("!BBH")
BIG32 = struct.Struct("!I")

ERRNO_BY_TEXT = {os.strerror(code): code for code in errno.errorcode}


def find_program(name: str) -> str | None:
    """The path of a program in PATH or in the sbin directories, which a service's PATH often lacks."""
    return which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")


class Nft:
    """A handle on nftables. Opened by the first call, bound to the network namespace of that moment; close it, or leave `with`."""

    def __init__(self) -> None:
        self._run: Callable[[str, bool], str] | None = None
        self._close: Callable[[], object] = lambda: None

    def __enter__(self) -> Nft:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the library's context back. A later call opens a new one."""
        self._close()
        self._run, self._close = None, lambda: None

    def apply(self, text: str) -> None:
        """Run `text` (nft's own syntax, many commands) as one transaction: all of it or nothing. Raises KernelError."""
        self._call(text, False)

    def objects(self, command: str) -> list[Object]:
        """What a `list ...` command shows, as the objects of libnftables-json(5). Raises KernelError (ENOENT: no such table)."""
        output = self._call(command, True)
        objects: list[Object] = json.loads(output)["nftables"] if output.strip() else []
        return objects

    def listing(self, command: str) -> str:
        """What a `list ...` command shows, as text with the handles of rules. Raises KernelError."""
        return self._call(command, False)

    def _call(self, text: str, as_json: bool) -> str:
        if self._run is None:
            self._run, self._close = _open_library() or _open_program()
        return self._run(text, as_json)


def _error(command: str, text: str) -> KernelError:
    """nft's first line without the position in our text, its errno guessed back from strerror's words."""
    first = next((line for line in text.splitlines() if "rror:" in line), text.strip().splitlines()[0] if text.strip() else "failed without a word")
    words = re.sub(r"^\S+?:\d+:[\d-]+: ", "", first).removeprefix("Error: ").removeprefix("Could not process rule: ")
    code = next((code for known, code in ERRNO_BY_TEXT.items() if words.startswith(known) or words.endswith(known)), errno.EINVAL)
    if code == errno.EPERM:
        words = f"{os.strerror(errno.EPERM)} (CAP_NET_ADMIN is needed: run as root)"
    return KernelError(f"nft {command.strip().splitlines()[0]}", code, words)


def _open_library() -> tuple[Callable[[str, bool], str], Callable[[], object]] | None:
    """libnftables as (run, close), None where it is not installed."""
    import ctypes

    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    pointer = ctypes.c_void_p
    library.nft_ctx_new.restype = pointer
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [pointer]
    library.nft_ctx_output_set_flags.argtypes = [pointer, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [pointer, ctypes.c_char_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_char_p, [pointer]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [pointer]

    context = library.nft_ctx_new(0)
    if not context:
        raise KernelError("nft", errno.ENOMEM, "libnftables gave no context")
    if library.nft_ctx_buffer_output(context) or library.nft_ctx_buffer_error(context):
        library.nft_ctx_free(context)
        raise KernelError("nft", errno.ENOMEM, "libnftables gave no buffers")

    def run(text: str, as_json: bool) -> str:
        library.nft_ctx_output_set_flags(context, OUTPUT_JSON if as_json else OUTPUT_HANDLE)
        failed = library.nft_run_cmd_from_buffer(context, text.encode())
        output: bytes = library.nft_ctx_get_output_buffer(context) or b""
        words: bytes = library.nft_ctx_get_error_buffer(context) or b""
        if failed:
            raise _error(text, words.decode(errors="replace"))
        return output.decode()

    return run, lambda: library.nft_ctx_free(context)


def _open_program() -> tuple[Callable[[str, bool], str], Callable[[], object]]:
    """The `nft` program as (run, close)."""
    program = find_program("nft")
    if program is None:
        raise KernelError("nft", errno.ENOENT, NOTHING_INSTALLED)

    def run(text: str, as_json: bool) -> str:
        # With -j, nft 1.0.6 reads what comes through -f as JSON and answers text with nothing.
        command = [program, "-j", text] if as_json else [program, "-a", "-f", "-"]
        try:
            done = subprocess.run(command, input="" if as_json else text, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"nft {text.strip().splitlines()[0]}", errno.EIO, str(error)) from None
        if done.returncode:
            raise _error(text, done.stderr)
        return done.stdout

    return run, lambda: None


# ---- what the agent asks for ------------------------------------------------------------------------------------


def present(nft: Nft, table: Table) -> bool:
    """True when the table is exactly as described."""
    return table.is_in(_list_table(nft, table.family, table.name))


def ensure(nft: Nft, table: Table) -> bool:
    """Make `table` be exactly as described. True when it was not and has been put right; a right one is not touched.

    Raises KernelError, also when the table still reads differently after it was written.
    """
    if present(nft, table):
        return False
    nft.apply(table.text)
    if not present(nft, table):
        raise KernelError(
            f"nft list table {table.family} {table.name}", errno.EILSEQ, "reads differently from what was just written; is somebody else writing it?"
        )
    return True


def remove(nft: Nft, vni: int, keep: frozenset[str] = frozenset()) -> list[str]:
    """Delete our tables of this VNI whose family is not in `keep` ("ip", "ip6"). Returns the commands that were run."""
    name = table_name(vni)
    present = [o["table"] for o in nft.objects("list tables") if "table" in o]
    gone = [f"delete table {t['family']} {name}" for t in present if t["name"] == name and t["family"] in {"ip", "ip6"} - keep]
    if gone:
        nft.apply("\n".join(gone))
    return [f"nft {command}" for command in gone]


def forward_listing(nft: Nft) -> list[Object]:
    """Every table that has a chain at the forward hook, whole: what `plan.forward_rules.decide` reads.

    Other tables (kube-proxy's services can be megabytes) are not listed. A table that vanishes meanwhile is skipped.
    """
    at_hook = {(c["family"], c["table"]): None for o in nft.objects("list chains") if (c := o.get("chain")) and c.get("hook") == "forward"}
    return [o for family, name in at_hook for o in _list_table(nft, family, name)]


def _list_table(nft: Nft, family: str, name: str) -> list[Object]:
    try:
        return nft.objects(f"list table {family} {name}")
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


# ---- has anything changed? --------------------------------------------------------------------------------------


class NftMonitor:
    """Says that somebody changed nftables in this network namespace, and who. One readable file descriptor for the loop.

    Changes by the thread `own` (of a `task_struct`'s pid, as the kernel reports it) are not told, so that a repair does
    not wake the repairer. Inside another pid namespace the number differs: then our own changes cost one needless look.
    """

    def __init__(self, own: int | None = None) -> None:
        self.own = threading.get_native_id() if own is None else own
        self._socket = _netfilter_socket()
        try:
            self._socket.setblocking(False)
            self._socket.bind((0, 0))  # a socket that only joins the group, and is not bound, hears nothing
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError as error:
            self._socket.close()
            raise KernelError("nftables monitor", error.errno or 0, error.strerror or str(error)) from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> tuple[str, ...]:
        """Take everything that is waiting: who changed nftables, one `name (pid N)` each, empty when nobody else did.

        An overrun socket lost messages: the answer then contains "somebody".
        """
        who: dict[str, None] = {}
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return tuple(who)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("nftables monitor", error.errno or 0, error.strerror or str(error)) from None
                who["somebody"] = None
                continue
            for kind, body in _messages(data):
                if kind == NFT_MSG_NEWGEN:
                    attributes = dict(_attributes(body[NFGENMSG.size :]))
                    pid = BIG32.unpack(attributes.get(NFTA_GEN_PROC_PID, bytes(4)))[0]
                    if pid != self.own:
                        name = attributes.get(NFTA_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
                        who[f"{name or 'somebody'} (pid {pid})"] = None


def generation() -> int:
    """The number that the kernel raises with every nftables transaction in this network namespace (NFT_MSG_GETGEN).

    Equal numbers mean that nothing in nftables, iptables-nft included, has changed in between. Legacy iptables has none.
    """
    request = HEADER.pack(HEADER.size + NFGENMSG.size, NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0) + NFGENMSG.pack(0, 0, 0)
    try:
        with _netfilter_socket() as sock:
            sock.settimeout(PROGRAM_TIMEOUT_S)
            sock.send(request)
            for kind, body in _messages(sock.recv(1 << 16)):
                if kind == NFT_MSG_NEWGEN:
                    number: int = BIG32.unpack(dict(_attributes(body[NFGENMSG.size :]))[NFTA_GEN_ID])[0]
                    return number
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise KernelError("nftables generation", code, os.strerror(code))
    except OSError as error:
        raise KernelError("nftables generation", error.errno or 0, error.strerror or str(error)) from None
    raise KernelError("nftables generation", errno.EBADMSG, "the kernel's answer holds none")


def _netfilter_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        raise KernelError("nftables", error.errno or 0, f"{error.strerror} (is nf_tables in this kernel?)") from None


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    """(type, body) of each netlink message in a datagram."""
    found, offset = [], 0
    while offset + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            break
        found.append((kind, data[offset + HEADER.size : offset + length]))
        offset += (length + 3) & ~3
    return found


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    found, offset = [], 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found.append((kind & 0x3FFF, data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found
