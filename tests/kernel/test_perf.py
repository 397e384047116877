"""Counting system calls with perf events: exactly what a thread does, and nothing of others."""

from __future__ import annotations

import os
import platform
import threading

import pytest

from tweed.errors import KernelError
from tweed.kernel.perf import Counter, moves_data, threads_of, tracepoint

CALLS = 500
FUTEX = {"x86_64": 202, "aarch64": 98}[platform.machine()]


def test_calls_of_one_thread_are_counted_and_told_apart():
    reader, writer = os.pipe()
    others = threading.Event()
    noise = threading.Thread(target=lambda: [os.getppid() for _ in iter(others.is_set, True)])
    noise.start()
    try:
        own = [threading.get_native_id()]
        with Counter("raw_syscalls/sys_enter", own, f"id != {FUTEX}") as entered, Counter("raw_syscalls/sys_exit", own, moves_data()) as moved:
            before, useful = entered.read(), moved.read()
            for _ in range(CALLS):
                os.write(writer, b"x")
                os.read(reader, 1)
                os.getppid()
            useful, after = moved.read() - useful, entered.read()
        # The counters are read by this thread too: a few calls each, of which reads move bytes.
        assert 2 * CALLS <= useful < 2 * CALLS + 20
        # (It also waits for the other one to let go of the interpreter, by futex(2).) That one made many thousands meanwhile.
        assert 3 * CALLS <= after - before < 3 * CALLS + 60
    finally:
        others.set()
        noise.join()
        os.close(reader)
        os.close(writer)


def test_what_there_is_not_is_named():
    with pytest.raises(KernelError, match="no_such"):
        tracepoint("raw_syscalls/no_such")
    with Counter("raw_syscalls/sys_enter", [2**22 + 1]) as nobody:
        assert nobody.read() == 0, "a thread that is gone already"


def test_threads_of_a_process():
    assert threading.get_native_id() in threads_of([os.getpid()]) and threads_of([2**22 + 1]) == []
