"""The clocks by which a lease ends."""

from __future__ import annotations

import time
from pathlib import Path


class Clock:
    """This kernel's clocks. Boot time runs on during suspend and is not moved by anybody, but begins anew with every boot."""

    def __init__(self) -> None:
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def boottime(self) -> float:
        """Seconds since boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """Seconds since 1970, as far as anybody has set the clock."""
        return time.time()
