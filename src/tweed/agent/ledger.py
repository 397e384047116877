"""The ledger of attachments: one JSON file, replaced atomically, that survives kill -9 and reboot.

An attachment is written down as pending before its first step and as done after its last, so that whatever kill -9 leaves half-made is
found at the next start. Of another boot only the addresses handed out last are worth anything: every container of it is gone. Therefore
no fsync: a loss of power takes the containers too, and a file that it left empty or torn is one of an earlier boot.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tweed.addr import format_address, parse_address
from tweed.agent.files import spare, write_swapping
from tweed.agent.log import log
from tweed.errors import TweedError
from tweed.kernel import sysctl
from tweed.plan import attachment as plan
from tweed.plan.addresses import QUARANTINE_S
from tweed.plan.attachment import Attachment


class Bridge(msgspec.Struct, frozen=True):
    """What we did to a bridge of the node. `index` None: it is about to be made.

    `addresses`: those that we gave it. `mtu`, `up`: as they were before us, None if we made it.
    """

    index: int | None = None
    addresses: tuple[str, ...] = ()
    mtu: int | None = None
    up: bool | None = None

    @property
    def ours(self) -> bool:
        return self.up is None


class Page(msgspec.Struct, frozen=True):
    """The file. `last`: the addresses handed out last. `freed`: when an address was freed, in seconds since boot."""

    boot_id: str
    last: tuple[str, ...] = ()
    bridges: dict[str, Bridge] = {}
    attachments: tuple[Any, ...] = ()
    freed: dict[str, float] = {}


class Ledger:
    """What the file says, in memory. Whoever changes it calls `save`."""

    def __init__(self, path: Path) -> None:
        """Reads the file, if there is one. Raises TweedError when it cannot be read: the addresses in it are in use."""
        self.path = path
        self.boot_id = sysctl.boot_id()
        self.last: tuple[bytes, ...] = ()
        self.bridges: dict[str, Bridge] = {}
        self.entries: dict[tuple[str, str], Attachment] = {}
        self.freed: dict[bytes, float] = {}  # replaced by another at each change
        self._freed_written: tuple[dict[bytes, float], dict[str, float]] = ({}, {})
        self._written: dict[tuple[str, str], tuple[Attachment, msgspec.Raw]] = {}
        self._load()

    def free(self, entry: Attachment) -> None:
        """Strike an entry; its addresses go into quarantine."""
        del self.entries[entry.key]
        self._written.pop(entry.key, None)
        self.quarantine([prefix.address for prefix in entry.addresses])

    def quarantine(self, addresses: Iterable[bytes]) -> None:
        """Nobody gets these for a while."""
        now = clock_s()
        self.freed = {address: at for address, at in self.freed.items() if now < at + QUARANTINE_S} | dict.fromkeys(addresses, now)

    def _load(self) -> None:
        try:
            page = self._read()
            self.last = tuple(parse_address(text) for text in page.last)
            if page.boot_id == self.boot_id:
                self.bridges = page.bridges
                self.entries = {entry.key: entry for entry in map(plan.from_json, page.attachments)}
                self.freed = {parse_address(text): at for text, at in page.freed.items()}
        except FileNotFoundError:
            return
        except OSError as error:
            raise TweedError(f"{self.path}: {error.strerror}") from None
        except ValueError as error:
            raise TweedError(f"{self.path} cannot be read: {error}; move it away, and restart the containers of this node") from None

    def _read(self) -> Page:
        """The file. Raises OSError, and ValueError where it cannot be read and is not what an earlier boot left half written."""
        data = self.path.read_bytes()
        try:
            return msgspec.json.decode(data, type=Page)
        except ValueError:
            of_a_boot = data.startswith(b'{"boot_id":"')  # the file's first bytes, which no loss of power tears
            if data.strip(b"\0") and (not of_a_boot or data.startswith(f'{{"boot_id":"{self.boot_id}"'.encode())):
                raise
            log.warning("%s is what an earlier boot left half written: it counts as empty", self.path)
            return Page("")

    def remove(self) -> None:
        """The file, and what it was written in."""
        for path in (self.path, spare(self.path)):
            path.unlink(missing_ok=True)

    def save(self) -> None:
        """Raises TweedError when the file cannot be written."""
        page = Page(
            self.boot_id,
            tuple(map(format_address, self.last)),
            self.bridges,
            self._encoded(),
            self._freed_texts(),
        )
        try:
            write_swapping(self.path, msgspec.json.encode(page))
        except OSError as error:
            raise TweedError(f"{self.path} cannot be written: {error.strerror}") from None

    def _freed_texts(self) -> dict[str, float]:
        """Made anew only where it changed: there may be hundreds, and attaching changes none."""
        if self._freed_written[0] is not self.freed:
            self._freed_written = self.freed, {format_address(address): round(at, 1) for address, at in self.freed.items()}
        return self._freed_written[1]

    def _encoded(self) -> tuple[msgspec.Raw, ...]:
        """The entries. Each is encoded once, since all are written at every change."""
        written = self._written
        for key, entry in self.entries.items():
            if key not in written or written[key][0] is not entry:
                written[key] = entry, msgspec.Raw(msgspec.json.encode(plan.as_json(entry)))
        return tuple(written[key][1] for key in self.entries)


def clock_s() -> float:
    """Seconds since boot, sleep included: a clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
