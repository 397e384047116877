"""Log lines: `TIME LEVEL words key=value`, to stderr. The same failure at most once a minute."""

from __future__ import annotations

import logging
import sys
import time

log = logging.getLogger("tweed")
REPEAT_S = 60.0


class Once(logging.Filter):
    """Passes a WARNING or worse only if the same text was not logged within the last minute; says how often it was held back."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        text, now = record.getMessage(), time.monotonic()
        last, held = self.seen.get(text, (-REPEAT_S, 0))
        if now - last < REPEAT_S:
            self.seen[text] = (last, held + 1)
            return False
        if len(self.seen) > 1000:  # bounded, whatever the failures say
            self.seen = {t: (at, n) for t, (at, n) in self.seen.items() if now - at < REPEAT_S}
        self.seen[text] = (now, 0)
        if held:
            record.msg, record.args = f"{text} ({held} times more in the last {now - last:.0f} s)", ()
        return True


class OneLine(logging.Formatter):
    """ISO time in UTC; line breaks in foreign text cannot forge a second line."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


def start_logging(level: int = logging.INFO) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    handler.addFilter(Once())
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False
