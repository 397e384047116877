"""One agent per VTEP device: two in one network namespace would take each other's addresses and rows away for ever."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from tweed.errors import TweedError


class Exclusive:
    """Names that this process alone uses in its network namespace.

    Each is an abstract unix socket: those belong to the namespace, and the kernel lets go of them however the process ends.
    """

    def __init__(self) -> None:
        self.held: dict[str, socket.socket] = {}

    def hold(self, names: Collection[str]) -> None:
        """Exactly these. Raises TweedError when another process holds one of them."""
        for name in [name for name in self.held if name not in names]:
            self.held.pop(name).close()
        for name in names:
            if name in self.held:
                continue
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                made.bind(f"\0tweed/{name}")
            except OSError as error:
                made.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                raise TweedError(f"another agent keeps {name} in this network namespace: stop it, or give this one a network with another VNI") from None
            self.held[name] = made

    def close(self) -> None:
        self.hold(())
