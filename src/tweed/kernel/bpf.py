"""BPF programs in the kernel: libbpf (which iproute2 brings along) through ctypes, and a ring buffer read without it.

Programs and links live by file descriptors of this process alone. Nothing is pinned: whatever ends the process detaches them.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import select
from pathlib import Path
from struct import Struct

from tweed.errors import KernelError

LIBRARY = "libbpf.so.1"
BTF_ENUM, BTF_TYPEDEF, BTF_FUNC = 6, 8, 12
BPF_ENABLE_STATS, BPF_MAP_UPDATE_ELEM, BPF_OBJ_GET_INFO_BY_FD = 32, 2, 15
SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
ATTRIBUTES = 128  # bytes of union bpf_attr that the kernel gets to see; what is behind those that a command has must be 0

# struct btf_type: name, info (how many members in the low half), size; an enum's members follow
BTF_TYPE = Struct("=III")
BTF_MEMBER = Struct("=Ii")
UPDATE = Struct("=I4xQQQ")
SWITCH = Struct("=I")
INFO = Struct("=IIQ")
RECORD = Struct("=II")
BUSY, DISCARD = 1 << 31, 1 << 30
HEADER = 8
POSITION = Struct("=Q")
RUN_TIME_AT = 192  # of bpf_prog_info: run_time_ns, run_cnt


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf, silent. Raises KernelError when it is not installed."""
    try:
        found = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as error:
        raise KernelError(f"load {LIBRARY}", errno.ENOENT, f"{error}: install libbpf1, which iproute2 needs too") from None
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    signatures = {
        "bpf_object__open_file": (pointer, [text, pointer]),
        "bpf_object__load": (ctypes.c_int, [pointer]),
        "bpf_object__close": (None, [pointer]),
        "bpf_object__find_program_by_name": (pointer, [pointer, text]),
        "bpf_object__find_map_fd_by_name": (ctypes.c_int, [pointer, text]),
        "bpf_object__find_map_by_name": (pointer, [pointer, text]),
        "bpf_map__set_initial_value": (ctypes.c_int, [pointer, text, ctypes.c_size_t]),
        "bpf_program__attach": (pointer, [pointer]),
        "bpf_program__fd": (ctypes.c_int, [pointer]),
        "bpf_program__set_autoload": (ctypes.c_int, [pointer, ctypes.c_bool]),
        "bpf_link__destroy": (ctypes.c_int, [pointer]),
        "libbpf_set_print": (pointer, [pointer]),
        "btf__load_vmlinux_btf": (pointer, []),
        "btf__find_by_name_kind": (ctypes.c_int, [pointer, text, ctypes.c_uint]),
        "btf__type_by_id": (pointer, [pointer, ctypes.c_uint]),
        "btf__name_by_offset": (text, [pointer, ctypes.c_uint]),
        "btf__free": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    found.libbpf_set_print(None)
    return found


class Btf:
    """What the running kernel says of its own types. A context manager. Raises KernelError where it says nothing (CONFIG_DEBUG_INFO_BTF)."""

    def __init__(self) -> None:
        self._btf = library().btf__load_vmlinux_btf()
        if not self._btf:
            raise refused("read the kernel's BTF")

    def __enter__(self) -> Btf:
        return self

    def __exit__(self, *_: object) -> None:
        library().btf__free(self._btf)

    def has_tracepoint(self, name: str) -> bool:
        return bool(library().btf__find_by_name_kind(self._btf, f"btf_trace_{name}".encode(), BTF_TYPEDEF) > 0)

    def has_function(self, name: str) -> bool:
        return bool(library().btf__find_by_name_kind(self._btf, name.encode(), BTF_FUNC) > 0)

    def enum(self, name: str) -> dict[int, str]:
        """The names of an enum's values, {} when there is no such enum."""
        number = library().btf__find_by_name_kind(self._btf, name.encode(), BTF_ENUM)
        if number <= 0:
            return {}
        at = library().btf__type_by_id(self._btf, number)
        _, info, _ = BTF_TYPE.unpack(ctypes.string_at(at, BTF_TYPE.size))
        members = ctypes.string_at(at + BTF_TYPE.size, (info & 0xFFFF) * BTF_MEMBER.size)
        return {value: library().btf__name_by_offset(self._btf, offset).decode() for offset, value in BTF_MEMBER.iter_unpack(members)}


class Programs:
    """The programs of an object file, loaded and attached until `close`; a context manager.

    `without`: names of programs that this kernel has no place for. `on`: switches in the source (`.rodata.NAME`) that are set; what is behind the
    others is not even verified. Raises KernelError: EPERM without CAP_BPF and CAP_PERFMON, EACCES when the kernel's verifier refuses a program.
    """

    def __init__(self, path: Path, names: tuple[str, ...], without: tuple[str, ...] = (), on: tuple[str, ...] = ()) -> None:
        call = library()
        self._links: list[int] = []
        self._object = call.bpf_object__open_file(str(path).encode(), None)
        if not self._object:
            raise refused(f"open {path.name}")
        try:
            for name in without:
                call.bpf_program__set_autoload(call.bpf_object__find_program_by_name(self._object, name.encode()), False)
            for name in on:
                switch = call.bpf_object__find_map_by_name(self._object, f".rodata.{name}".encode())
                if call.bpf_map__set_initial_value(switch, SWITCH.pack(1), SWITCH.size) < 0:
                    raise refused(f"set {name}")
            if (result := call.bpf_object__load(self._object)) < 0:
                raise KernelError(f"load {path.name}", -result, os.strerror(-result))
            self.programs: dict[str, int] = {}
            for name in names:
                if name in without:
                    continue
                program = call.bpf_object__find_program_by_name(self._object, name.encode())
                link = call.bpf_program__attach(program)
                if not link:
                    raise refused(f"attach {name}")
                self._links.append(link)
                self.programs[name] = call.bpf_program__fd(program)
        except BaseException:
            self.close()
            raise

    def map(self, name: str) -> int:
        """The file descriptor of a map; it is closed with the object."""
        descriptor: int = library().bpf_object__find_map_fd_by_name(self._object, name.encode())
        if descriptor < 0:
            raise KernelError(f"find map {name}", errno.ENOENT, os.strerror(errno.ENOENT))
        return descriptor

    def close(self) -> None:
        for link in self._links:
            library().bpf_link__destroy(link)
        self._links.clear()
        if self._object:
            library().bpf_object__close(self._object)
            self._object = None

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RingBuffer:
    """The reader's side of a BPF_MAP_TYPE_RINGBUF (kernel/bpf/ringbuf.c): records of 8 bytes of header and data, in pages mapped twice in a row."""

    def __init__(self, descriptor: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._size, self._page = size, page
        self._consumer = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer = mmap.mmap(descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def drain(self, wait_s: float = 0) -> list[bytes]:
        """The records that are there; waits at most `wait_s` for a first one."""
        if wait_s > 0:
            self._poll.poll(wait_s * 1000)
        records: list[bytes] = []
        (consumed,), (produced,) = POSITION.unpack_from(self._consumer), POSITION.unpack_from(self._producer)
        while consumed < produced:
            at = self._page + (consumed & (self._size - 1))
            length, _ = RECORD.unpack_from(self._producer, at)
            if length & BUSY:  # another CPU is still writing it
                break
            size = length & ~(BUSY | DISCARD)
            if not length & DISCARD:
                records.append(self._producer[at + HEADER : at + HEADER + size])
            consumed += (size + HEADER + 7) & ~7
        POSITION.pack_into(self._consumer, 0, consumed)
        return records

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()


def update(map: int, key: bytes, value: bytes) -> None:
    """Put a value into a map."""
    keys, values = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    system(BPF_MAP_UPDATE_ELEM, UPDATE.pack(map, ctypes.addressof(keys), ctypes.addressof(values), 0), "change a BPF map")


def enable_statistics() -> int:
    """Have the kernel count the time of all BPF programs until the file descriptor that is returned is closed."""
    return system(BPF_ENABLE_STATS, bytes(4), "count the time of BPF programs")


def run_time(program: int) -> tuple[int, int]:
    """Nanoseconds that a program took since statistics were enabled, and how often it ran."""
    info = ctypes.create_string_buffer(232)
    system(BPF_OBJ_GET_INFO_BY_FD, INFO.pack(program, len(info), ctypes.addressof(info)), "ask for a BPF program")
    nanoseconds, count = Struct("=QQ").unpack_from(info, RUN_TIME_AT)
    return nanoseconds, count


def system(command: int, attributes: bytes, operation: str) -> int:
    """bpf(2)."""
    buffer = ctypes.create_string_buffer(attributes.ljust(ATTRIBUTES, b"\0"), ATTRIBUTES)
    result = libc().syscall(SYSCALL[os.uname().machine], command, buffer, ATTRIBUTES)
    if result < 0:
        raise refused(operation)
    return int(result)


@functools.cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def refused(operation: str) -> KernelError:
    code = ctypes.get_errno()
    return KernelError(operation, code, os.strerror(code))
