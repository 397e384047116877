"""What a lab keeps its leases in: a file, or a server that runs in the lab's `world` and ends with it.

A kind of store is a module here. It is checked before anything of the lab is made, and asked for the agents' flags once the
namespaces are joined; a process that it starts inside a namespace of the lab needs no end of its own, since `lab down` ends
all that run there, and its files belong below the lab's directory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

import msgspec

from tweed.errors import TweedError, UsageError
from tweed.lab.agents import environment
from tweed.lab.registry import Lab
from tweed.lab.topology import Topology

KINDS = ("sqlite", "etcd", "kube")
FILL_S = 60.0


class Kind(Protocol):
    """What a module of this package offers."""

    def check(self) -> None:
        """Raises TweedError where this machine lacks what the store needs: what, and how to get it."""

    def prepare(self, lab: Lab, topology: Topology) -> tuple[str, ...]:
        """Start it, store the network configuration and the reservations, and return the flags by which agents find it."""


def kind(name: str) -> Kind:
    """The kind of store that `--store NAME` means. Raises UsageError naming those that there are."""
    if name not in KINDS:
        raise UsageError(f"--store {name}: use {' or '.join(KINDS)}")
    module: Kind = import_module(f"tweed.lab.stores.{name}")
    return module


def fill_inside(netns: str, flags: Sequence[str], topology: Topology) -> None:
    """`tweed.lab.stores.fill` as a process in a namespace of the lab, for servers that only the lab can reach."""
    command = ["nsenter", f"--net=/run/netns/{netns}", "--", sys.executable, "-m", "tweed.lab.stores.fill", *flags]
    try:
        done = subprocess.run(command, input=msgspec.json.encode(topology), capture_output=True, timeout=FILL_S, check=False, env=environment(os.environ))
    except subprocess.TimeoutExpired:
        raise TweedError(f"the lab's store cannot be filled: it has not answered for {FILL_S:g} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise TweedError(f"the lab's store cannot be filled: {lines[-1] if lines else f'exit code {done.returncode}'}")
