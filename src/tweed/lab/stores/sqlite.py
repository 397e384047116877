"""A lab's leases in one SQLite file, which all its agents share."""

from __future__ import annotations

import asyncio

from tweed.config import load
from tweed.lab.registry import Lab
from tweed.lab.stores.fill import fill
from tweed.lab.topology import Topology


def check() -> None:
    """SQLite is part of Python."""


def prepare(lab: Lab, topology: Topology) -> tuple[str, ...]:
    flags = (f"--store=sqlite://{lab.directory / 'store.db'}",)
    asyncio.run(fill(load(flags, {}, "lab")[0], topology))
    return flags
