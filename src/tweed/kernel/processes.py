"""Which programs run here, by name."""

from __future__ import annotations

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
