"""Namespaces of a test's own, always removed."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator

import pytest

from tweed.errors import KernelError
from tweed.kernel import netns as namespaces
from tweed.kernel.netlink import Netlink

numbers = itertools.count()


class Namespace:
    """A network namespace with its lo up: its name, a file descriptor, and an rtnetlink socket in it."""

    def __init__(self) -> None:
        self.name = f"tweedt-{os.getpid()}-{next(numbers)}"
        namespaces.create(self.name)
        self.fd = namespaces.open_netns(self.name)
        self.nl = Netlink(self.fd)
        self.run("ip link set lo up")

    def run(self, script: str) -> str:
        """The output of shell commands inside. A command that fails fails the test."""
        command = ["ip", "netns", "exec", self.name, "sh", "-euc", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def lines(self, script: str) -> list[str]:
        """The same as lines, trailing blanks removed."""
        return [line.rstrip() for line in self.run(script).splitlines()]

    def until(self, script: str) -> None:
        """Wait for what the kernel does in its own time, such as putting an IPv6 address into the local table or giving a carrier."""
        self.run(f"for i in $(seq 1000); do if {script}; then exit 0; fi; sleep 0.01; done; echo never; exit 1")

    def remove(self) -> None:
        self.nl.close()
        os.close(self.fd)
        with contextlib.suppress(KernelError):
            namespaces.delete(self.name)


@pytest.fixture
def netns() -> Iterator[Namespace]:
    space = Namespace()
    try:
        yield space
    finally:
        space.remove()


@pytest.fixture
def netns2() -> Iterator[Namespace]:
    space = Namespace()
    try:
        yield space
    finally:
        space.remove()
