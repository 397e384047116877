"""What the plugin finds when no agent answers: a queue for its DELs, and the words in which it refuses everything else.

RUN_DIR/cni.sock    where it calls
RUN_DIR/cni-queue/  (0700) one raw call per file, named 0 to 999; a name that begins with a dot is still being written
RUN_DIR/cni-away    the rest of an error document, from "msg" on
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tweed.agent.attachments import Attachments
from tweed.agent.files import read_text, write_atomic
from tweed.agent.log import log
from tweed.errors import TweedError
from tweed.wire.cni import CniError, check_call, parse_call


class Spool:
    def __init__(self, run_dir: Path) -> None:
        self.queue = run_dir / "cni-queue"
        self.away = run_dir / "cni-away"

    def open(self) -> None:
        """Make the queue, and remove what calls that were killed left half written. Raises OSError."""
        self.queue.mkdir(mode=0o700, exist_ok=True)
        for path in self.queue.glob(".*"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """As if no agent had ever been here."""
        self.away.unlink(missing_ok=True)
        shutil.rmtree(self.queue, ignore_errors=True)

    def waiting(self) -> Iterator[tuple[Path, tuple[str, str] | None]]:
        """The attachments to be taken back: the file to remove once that is done, and container id and interface. None: unreadable.

        A call that is no DEL is an ADD whose answer nobody got.
        """
        for path in sorted(self.queue.glob("[0-9]*")):
            try:
                call = parse_call(path.read_bytes())
                check_call(msgspec.structs.replace(call, command="DEL"))
            except (CniError, OSError) as error:
                log.warning("%s cannot be read: %s", path, error)
                yield path, None
            else:
                yield path, (call.container_id, call.ifname)

    def replay(self, attachments: Attachments) -> None:
        """Take back what was deleted while no agent was there. What fails stays for the next time."""
        for path, key in self.waiting():
            try:
                if key is not None:
                    attachments.detach(*key)
                    log.info("container %s %s was deleted while no agent was there: done now", *key)
                path.unlink(missing_ok=True)
            except (TweedError, OSError) as error:
                log.warning("%s: %s; it stays in the queue", path, error)

    def tell(self, message: str, details: str) -> None:
        """What the plugin says from now on when it finds no agent. Written only when it differs; a full disk is no reason to stop."""
        text = msgspec.json.encode({"msg": message, "details": details}).decode()[1:]
        if read_text(self.away) != text:
            with contextlib.suppress(OSError):
                write_atomic(self.away, text)
