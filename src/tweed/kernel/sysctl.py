"""/proc/sys of the calling thread's network namespace: read, write, and forwarding turned on without losing the host's way out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from tweed.errors import KernelError
from tweed.model import Route
from tweed.plan import forwarding
from tweed.plan.forwarding import Note, Write

ROOT = Path("/proc/sys")
CONF = {4: "net/ipv4/conf", 6: "net/ipv6/conf"}
# A key that holds an interface's name, which may contain dots itself: net.ipv6.conf.flannel.1.accept_ra
INTERFACE_KEY = re.compile(r"net\.(ipv4|ipv6|mpls)\.(conf|neigh)\.(.+)\.([^.]+)")


def path(key: str) -> Path:
    """The file of a key as sysctl(8) writes it: `net.ipv4.ip_forward`, `net/ipv4/ip_forward`, `net.ipv6.conf.flannel/1.forwarding`,
    and also with the interface's name as it is: `net.ipv6.conf.flannel.1.forwarding`."""
    if match := INTERFACE_KEY.fullmatch(key):
        family, kind, name, leaf = match.groups()
        return ROOT / "net" / family / kind / name.replace("/", ".") / leaf
    if 0 <= key.find("/") < key.find(".") or "." not in key:
        return ROOT / key
    return ROOT / key.translate(str.maketrans("./", "/."))


def read(key: str) -> str | None:
    """The value without its newline, None where this kernel (or namespace) has no such key. Raises KernelError."""
    try:
        return path(key).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _refused(f"sysctl {key}", error) from None


def read_int(key: str) -> int | None:
    """`read` as a number."""
    value = read(key)
    return None if value is None else int(value)


def write(key: str, value: str | int, missing_ok: bool = False) -> None:
    """Set it. Raises KernelError (ENOENT when the kernel has no such key, unless `missing_ok`)."""
    try:
        # Not Path.write_text: that would truncate, which some keys take as a write of its own.
        descriptor = os.open(path(key), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, f"{value}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (missing_ok and error.errno == errno.ENOENT):
            raise _refused(f"sysctl -w {key}={value}", error) from None


def _refused(operation: str, error: OSError) -> KernelError:
    code = error.errno or 0
    what_to_do = {
        errno.EROFS: " (/proc/sys is mounted read-only here: run privileged, or set it on the host)",
        errno.EACCES: " (run as root)",
        errno.EPERM: " (run as root)",
        errno.ENOENT: " (this kernel has no such key)",
    }
    return KernelError(operation, code, os.strerror(code) + what_to_do.get(code, ""))


def boot_id() -> str:
    """The kernel's name for this boot; every namespace sees the same."""
    return read("kernel.random.boot_id") or ""


def has_ipv6() -> bool:
    """False when the kernel was started with ipv6.disable=1 or built without."""
    return os.path.isdir(f"{ROOT}/{CONF[6]}/all")


# ---- forwarding -------------------------------------------------------------------------------------------------


def snapshot(families: Iterable[int]) -> dict[str, str]:
    """Every key that `plan.forwarding` decides by, for families 4 and 6 as asked."""
    found: dict[str, str] = {}
    for family in families:
        try:
            interfaces = os.listdir(ROOT / CONF[family])
        except FileNotFoundError:
            continue
        keys = [forwarding.key(family, name, leaf) for name in interfaces for leaf in forwarding.LEAVES[family]]
        found |= {key: value for key in keys if (value := read(key)) is not None}
    return found


def turn_on_forwarding(
    families: Iterable[int],
    ours: Iterable[str],
    through: Iterable[str] = (),
    *,
    note: Callable[[list[Note]], object],
    default_routes: Callable[[], Iterable[Route]],
    put_back: Callable[[Route], object],
) -> tuple[list[Write], list[Route]]:
    """Make this namespace forward, if it does not yet. Returns what was written, and the IPv6 default routes that the kernel
    dropped on the way and that were put back. A pass that finds all right reads some files and does nothing else.

    `ours`: devices that never take router advertisements and always forward (cni0, the VTEPs); `through`: devices of others
    that have to forward. `note` is called with
    (key, old value) pairs before the first write. `default_routes` reads IPv6 default routes (any table), `put_back` adds one.
    Raises KernelError; what was noted and not written reads as unchanged to `restore`.
    """
    have, before, writes = _look(tuple(families), ours, through, default_routes)
    if not writes:
        return [], []
    note(forwarding.notes(have, writes))
    for wanted in writes:
        write(wanted.key, wanted.value)
    lost = forwarding.lost(before, list(default_routes())) if before else []
    for route in lost:
        put_back(route)
    return writes, lost


def forwarding_writes(families: Iterable[int], ours: Iterable[str], through: Iterable[str], default_routes: Callable[[], Iterable[Route]]) -> list[Write]:
    """What `turn_on_forwarding` would write now."""
    return _look(tuple(families), ours, through, default_routes)[2]


def _look(
    families: tuple[int, ...], ours: Iterable[str], through: Iterable[str], default_routes: Callable[[], Iterable[Route]]
) -> tuple[dict[str, str], list[Route], list[Write]]:
    """The values now, the IPv6 default routes that are in danger, and what is to be written."""
    have = snapshot(families)
    # The routes cost a dump: only asked for when a first look says that they could matter.
    routes = list(default_routes()) if 6 in families and forwarding.routes_matter(have, ours) else []
    return have, routes, forwarding.writes(have, families, ours, routes, through)


def restore(notes: Iterable[Note]) -> list[Write]:
    """Put the noted values back, except where somebody has changed them since. Returns what was written."""
    notes = list(notes)
    done = forwarding.restoration(notes, {key: value for key, _ in notes if (value := read(key)) is not None})
    for wanted in done:
        write(wanted.key, wanted.value, missing_ok=True)
    return done
