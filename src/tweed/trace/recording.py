"""What one machine saw of a probe, as a file of JSON lines: a heading, then an event a line. Pure.

The heading holds the tables of the machine's namespaces too, so that several files together are a walk: trace.join.
"""

from __future__ import annotations

import msgspec

from tweed.errors import UsageError
from tweed.trace import snapshot as s
from tweed.trace.events import Event
from tweed.trace.frames import Probe
from tweed.trace.result import Said, Tier
from tweed.wire.packet import Carried

FORMAT, VERSION = "tweed-recording", 1
MOST_EVENTS = 100_000


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """`machine`: the node. `places`: node or container by the inode of its namespace. `refused`: as judge.Outcome has it. `sent`: it sent the probe.

    `probe`: without unknowns. `bundle`: the tables, as snapshot.encode has them. `tunnels`: what UDP ports carry.
    """

    format: str = FORMAT
    version: int = VERSION
    machine: str
    places: dict[int, str]
    probe: Probe
    sent: bool
    refused: str = ""
    tier: Tier = "bpf"
    blind: tuple[Said, ...] = ()
    tunnels: dict[int, Carried]
    bundle: str


class Recording(msgspec.Struct, frozen=True):
    heading: Heading
    events: tuple[Event, ...]

    @property
    def snapshot(self) -> s.Snapshot:
        """Raises UsageError when it is none."""
        return s.decode(self.heading.bundle.encode(), self.heading.machine)


def encode(recording: Recording) -> bytes:
    encoder = msgspec.json.Encoder()
    return b"".join(encoder.encode(each) + b"\n" for each in (recording.heading, *recording.events))


def decode(data: bytes, name: str) -> Recording:
    """The reverse. `name`: of the file, for the error. Raises UsageError in one line for what is no recording of ours."""
    lines = data.splitlines()
    try:
        if not lines:
            raise ValueError("it is empty")
        if len(lines) > MOST_EVENTS:
            raise ValueError(f"it has more than {MOST_EVENTS} lines")
        heading = msgspec.json.decode(lines[0], type=Heading)
        if (heading.format, heading.version) != (FORMAT, VERSION):
            raise ValueError(f"it says {heading.format} {heading.version}")
        heading.probe.check()
        events = msgspec.json.Decoder(Event)
        return Recording(heading, tuple(checked(events.decode(line)) for line in lines[1:] if line.strip()))
    except (ValueError, UsageError, RecursionError) as error:
        raise UsageError(f"{name}: no recording that tweed can read: {' '.join(str(error).split())[:200]}") from None


def checked(event: Event) -> Event:
    """Raises ValueError for an event that no kernel tells."""
    if not 0 <= event.network <= len(event.data) or len(event.data) > 1 << 16:
        raise ValueError("an event's packet is not where it says")
    if any(len(address) not in (0, 4, 16) for address in (event.src, event.dst, event.gateway)):
        raise ValueError("an event's address has no length of any family")
    return event
