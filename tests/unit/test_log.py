"""Log lines: the same failure once a minute, one line each."""

import logging

import pytest

from tweed.agent import log as module
from tweed.agent.log import Once, OneLine


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def record(text: str, level: int = logging.WARNING, *args) -> logging.LogRecord:
    return logging.LogRecord("tweed", level, "", 0, text, args, None)


def said(once: Once, text: str, level: int = logging.WARNING) -> str | None:
    """The line, None when it is held back."""
    r = record(text, level)
    return r.getMessage() if once.filter(r) else None


def test_the_same_warning_once_a_minute_with_its_count(clock: Clock):
    once = Once()
    assert said(once, "no route") == "no route"
    for _ in range(7):
        clock.now += 8
        assert said(once, "no route") is None
    clock.now += 4
    assert said(once, "no route") == "no route (7 times more in the last 60 s)"
    clock.now += 60
    assert said(once, "no route") == "no route"


def test_others_are_not_held_back_by_it(clock: Clock):
    once = Once()
    assert [said(once, "a"), said(once, "b"), said(once, "a"), said(once, "c", logging.ERROR), said(once, "c", logging.ERROR)] == ["a", "b", None, "c", None]


def test_what_happened_is_always_said(clock: Clock):
    once = Once()
    assert [said(once, "did this", logging.INFO) for _ in range(3)] == ["did this"] * 3


def test_the_text_counts_and_not_the_template(clock: Clock):
    once = Once()
    assert [once.filter(record("route %d", logging.WARNING, n)) for n in (1, 2, 1)] == [True, True, False]


def test_a_count_with_a_percent_sign_in_the_text(clock: Clock):
    once = Once()
    assert said(once, "disk 100% full") == "disk 100% full"
    said(once, "disk 100% full")
    clock.now += 61
    assert said(once, "disk 100% full").startswith("disk 100% full (1 times more")


def test_memory_is_bounded_whatever_the_failures_say(clock: Clock):
    once = Once()
    for n in range(5000):
        clock.now += 0.001
        said(once, f"failure {n}")
    assert len(once.seen) <= module.SEEN_MAX
    assert said(once, "failure 4999") is None


def test_foreign_text_cannot_forge_a_line():
    line = OneLine().format(record("key %s", logging.WARNING, "x\n2026-01-01T00:00:00Z INFO all is well\r\n\x1b[2Jgone"))
    assert "\n" not in line and "\r" not in line and "\x1b" not in line
    assert line.count("INFO") == 1 and "WARNING key x" in line
