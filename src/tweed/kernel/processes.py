"""Which programs run here, by name."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def running(names: Collection[str]) -> list[str]:
    """Those of `names` that some process has as its command name (the kernel keeps 15 characters of it)."""
    short = {name[:15]: name for name in names}
    found = set()
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            text = comm.read_text().strip()
        except OSError:
            continue  # it ended meanwhile
        if text in short:
            found.add(short[text])
    return sorted(found)


def in_this_namespace(name: str) -> list[int]:
    """The pids of the processes of that command name in the caller's network namespace."""
    own, found = os.stat("/proc/self/ns/net"), []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "comm").read_text().strip() == name[:15] and os.path.samestat(own, os.stat(directory / "ns/net")):
                found.append(int(directory.name))
        except OSError:
            continue
    return sorted(found)
