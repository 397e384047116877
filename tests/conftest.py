"""What all tests share: their order, the need for root, and the check that the machine is left as it was."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from tests import machine

# Quick ones first.
ORDER = ("unit", "contract", "oracles", "kernel", "system")
NEED_ROOT = {"kernel", "system"}

# What collecting makes stays until the end: the garbage collector need not walk it, neither now nor after each hundred tests.
gc.disable()

# How long one example takes says nothing on a machine that others use too.
hypothesis.settings.register_profile("tweed", deadline=None)
hypothesis.settings.load_profile("tweed")


@cache
def directory(path: Path) -> str:
    """The directory under tests that a file is in, "" for tests itself."""
    parts = path.relative_to(Path(__file__).parent).parts
    return parts[0] if len(parts) > 1 else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(directory(item.path)) if directory(item.path) in ORDER else -1)
    if os.geteuid() != 0:
        for item in items:
            if directory(item.path) in NEED_ROOT:
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(100_000)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def machine_is_left_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up first and torn down last. Under script/test, and in a run of everything; single tests may run beside other people's."""
    if machine.VARIABLE not in os.environ and request.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        yield
        return
    before = machine.before()
    os.environ.setdefault(machine.VARIABLE, os.devnull)  # marks the processes that tests start
    yield
    if found := machine.lasting_differences(before):
        pytest.fail("this machine changed (+ new, - gone):\n  " + "\n  ".join(found), pytrace=False)
