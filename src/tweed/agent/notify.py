"""Word to the service manager (sd_notify(3)): that the node is ready, how things stand, and that the agent's loop still turns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

from tweed.agent.agent import Agent
from tweed.agent.log import log


class Notifier:
    """Tells $NOTIFY_SOCKET, a path or (with "@") an abstract address. Nobody there to be told is no error: the agent never waits for its manager."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        text = environment.get("NOTIFY_SOCKET", "")
        self.address = "\0" + text[1:] if text.startswith("@") else text if text.startswith("/") else ""
        self.every_s = watchdog_s(environment) / 2 if self.address else 0.0
        self.ready = False
        self.word = ""

    def tell(self, *lines: str) -> bool:
        """One datagram of `KEY=value` lines. False when it did not get there: a manager that is busy takes ten."""
        if not self.address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(lines).encode(), self.address)
        except OSError as error:
            log.warning("the service manager at $NOTIFY_SOCKET cannot be told: %s", error.strerror or error)
            return False
        return True

    def see(self, agent: Agent) -> None:
        """Tell what is new: ready once, for good, since a manager knows no way back; the word as often as it changes.
        What did not get there is new the next time, too.
        """
        news = []
        ready, word = self.ready or agent.ready, agent.word
        if ready and not self.ready:
            news.append("READY=1")
        if word != self.word:
            news.append(f"STATUS={' '.join(word.split())}")
        if self.every_s:
            news.append("WATCHDOG=1")
        if news and self.tell(*news):
            self.ready, self.word = ready, word

    async def follow(self, agent: Agent) -> None:
        """Until cancelled: at every turn of the agent, and often enough for the watchdog."""
        while True:
            self.see(agent)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.every_s or None):
                    await agent.turned.wait()
            agent.turned.clear()


def watchdog_s(environment: Mapping[str, str]) -> float:
    """How long the manager waits for a sign of life; 0 when it does not, or means another process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(microseconds) / 1e6
