"""Log lines: `TIME LEVEL words key=value`, to stderr. The same failure at most once a minute."""

from __future__ import annotations

import logging
import re
import sys
import time

log = logging.getLogger("tweed")
REPEAT_S = 60.0
SEEN_MAX = 1000  # texts that are remembered, whatever the failures say
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


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
        self.seen.pop(text, None)
        if len(self.seen) == SEEN_MAX:
            del self.seen[next(iter(self.seen))]  # the one that was said the longest time ago
        self.seen[text] = (now, 0)
        if held:
            record.msg, record.args = f"{text} ({held} times more in the last {now - last:.0f} s)", ()
        return True


class OneLine(logging.Formatter):
    """ISO time in UTC; line breaks and escape sequences in foreign text cannot forge a line or paint the terminal."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", super().format(record).replace("\n", " | "))


def start_logging(level: int = logging.INFO) -> None:
    """To stderr, our own lines and those of the libraries that have something to complain of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    handler.addFilter(Once())
    logging.getLogger().handlers[:] = [handler]
    log.setLevel(level)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # a trace for every malformed request; the client has its answer
