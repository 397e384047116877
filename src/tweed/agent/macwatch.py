"""Somebody else's idea of the VTEP's MAC: restored, but not for ever."""

from __future__ import annotations

import time
from collections import deque

from tweed.agent.dataplane import Report
from tweed.kernel.processes import running
from tweed.plan.device import SetMac
from tweed.plan.screen import Problem

RESTORATIONS, WITHIN_S = 3, 60.0
REWRITERS = ("systemd-networkd", "NetworkManager", "systemd-udevd", "connmand", "wickedd")


class MacWatch:
    """After a few restorations in a row somebody insists: then `adopted` is True, whoever it is gets named, and the device's MAC published."""

    def __init__(self) -> None:
        self.restored: deque[float] = deque(maxlen=RESTORATIONS)
        self.adopted = False

    def see(self, report: Report) -> Problem | None:
        """To be told of every pass; answers once, when the fight is given up."""
        names = [step.name for step in report.steps if isinstance(step, SetMac)]
        if not names or self.adopted:
            return None
        self.restored.append(time.monotonic())
        if len(self.restored) < RESTORATIONS or self.restored[-1] - self.restored[0] > WITHIN_S:
            return None
        self.adopted = True
        who = " or ".join(running(REWRITERS)) or "another program (udev, systemd-networkd and NetworkManager do that)"
        text = f"{who} keeps changing its MAC: this node publishes whatever MAC it has; tell it to leave the device alone with `tweed node-files`"
        return Problem("mac-rewritten", names[0], text)
