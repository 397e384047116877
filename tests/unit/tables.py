"""Tables as people paste them, for tests of the reader and the walk. The seed's are in tests/seed, as they were written."""

from __future__ import annotations

from pathlib import Path

from tweed.trace.read import Source, read
from tweed.trace.snapshot import Node, Snapshot

SEED = (Path(__file__).parents[1] / "seed" / "vxlan-mode.md").read_bytes()


def parsed(text: str | bytes, node: str | None = None, name: str = "a.txt") -> Snapshot:
    return read([Source(node, name, text.encode() if isinstance(text, str) else text)])


def only(text: str | bytes) -> Node:
    """The single node of a text of which all lines can be read."""
    found = parsed(text)
    assert found.unread == ()
    (node,) = found.nodes
    return node


def cluster(**texts: str) -> Snapshot:
    """Nodes by name; `__` in a name stands for the slash of a container's."""
    return read([Source(name.replace("__", "/"), f"{name}.txt", text.encode()) for name, text in texts.items()])
