"""How a walk is shown: options that every kind of walk has, lines in colours, bytes, a capture file, a figure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from tweed.errors import UsageError
from tweed.trace.figure import figure
from tweed.trace.frames import PING_SIZE, Probe, Protocol
from tweed.trace.messages import LANGUAGES, Language, label, language_of
from tweed.trace.pcap import decode_command, section, stages_of
from tweed.trace.render import Line, stage_lines, walk_lines
from tweed.trace.result import Walk
from tweed.trace.snapshot import Snapshot
from tweed.trace.trip import answering
from tweed.wire import pcapng

Command = TypeVar("Command", bound=Callable[..., Any])

STYLES: dict[str, dict[str, Any]] = {
    "inner": {"fg": "bright_blue"},
    "outer": {"fg": "green"},
    "vxlan": {"fg": "bright_black"},
    "heading": {"bold": True},
    "title": {"bold": True},
    "place": {"bold": True},
    "step": {"fg": "magenta", "bold": True},
    "row": {"fg": "cyan", "bold": True},
    "command": {"bold": True},
    "good": {"fg": "green", "bold": True},
    "warn": {"fg": "yellow", "bold": True},
    "bad": {"fg": "red", "bold": True},
    "unknown": {"fg": "yellow"},
    "seen": {"fg": "bright_black"},
    "quiet": {"fg": "bright_black"},
}
# For terminals that cannot show them.
PLAIN = str.maketrans({"→": ">", "…": "~", "µ": "u"})

OPTIONS = (
    click.option("--hex", "as_hex", is_flag=True, help="The packet's bytes at each device; ?? is what no table says."),
    click.option("--fields", is_flag=True, help="The packet's fields at each device."),
    click.option("--proto", type=click.Choice(["icmp", "udp", "tcp"]), default="icmp", show_default=True, help="What the packet is."),
    click.option("--size", type=int, metavar="BYTES", help="Of the IP packet, as MTUs count; default 84, of TCP its headers."),
    click.option("--df", is_flag=True, help="The packet may not be cut into fragments."),
    click.option("--sport", type=click.IntRange(0, 65535), metavar="PORT", help="Source port; of icmp the identifier."),
    click.option("--dport", type=click.IntRange(0, 65535), metavar="PORT", help="Destination port."),
    click.option("--pcapng", "pcapng_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the packets as a capture."),
    click.option("--svg", "svg_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw the way."),
    click.option("--lang", type=click.Choice(LANGUAGES), help="Default: the locale's."),
)
NAMES = ("as_hex", "fields", "proto", "size", "df", "sport", "dport", "pcapng_file", "svg_file", "lang")


class Wanted(msgspec.Struct, frozen=True):
    """What those options say."""

    as_hex: bool = False
    fields: bool = False
    proto: Protocol = "icmp"
    size: int | None = None
    df: bool = False
    sport: int | None = None
    dport: int | None = None
    pcapng_file: Path | None = None
    svg_file: Path | None = None
    lang: Language | None = None

    @property
    def language(self) -> Language:
        return self.lang or language_of(os.environ)

    def probe(self, src: bytes, dst: bytes) -> Probe:
        """The packet that walks. Raises UsageError when there is no such packet."""
        probe = Probe(src, dst, self.proto, 0, self.sport, self.dport)
        size = self.size if self.size is not None else probe.least if self.proto == "tcp" else PING_SIZE
        probe = msgspec.structs.replace(probe, size=size, dont_fragment=True if self.df else None)
        probe.check()
        return probe


def show_options(command: Command) -> Command:
    """Give a command those options; its keyword arguments then go through `wanted`."""
    return reduce(lambda made, option: option(made), reversed(OPTIONS), command)


def wanted(arguments: dict[str, Any]) -> Wanted:
    """Take those options out of a command's keyword arguments."""
    return Wanted(**{name: arguments.pop(name) for name in NAMES})


def show(walk: Walk, snapshot: Snapshot, want: Wanted) -> None:
    """Print the walk, and its bytes when asked."""
    echo(walk_lines(walk, want.language))
    if want.as_hex or want.fields:
        for title, one, probe in legs(walk, want):
            echo([*([(), ((title, "heading"),)] if title else []), *stage_lines(stages_of(one, probe), want.language, as_hex=want.as_hex, fields=want.fields)])
    save(walk, snapshot, want)


def legs(walk: Walk, want: Wanted) -> list[tuple[str, Walk, Probe]]:
    """Each branch of the walk and of the answer's as a walk of its own, with its packet and a title; the only way there needs none."""
    there = walk.probe or want.probe(walk.src, walk.dst)
    found = [(label(want.language, "way", branch=branch) if branch else "", walk.along(branch), there) for branch in walk.outcomes or ("",)]
    if walk.reply is not None:
        title = label(want.language, "the reply")
        found += [(f"{title} {branch}".strip(), walk.reply.along(branch), walk.reply.probe or answering(there)) for branch in walk.reply.outcomes]
    return [leg for number, leg in enumerate(found) if not number or any(step.hop is not None for step in leg[1].steps)]


def save(walk: Walk, snapshot: Snapshot, want: Wanted) -> None:
    """Write the capture and the figure when asked; how to decode the capture goes to stderr, so that what programs read stays as it is.

    A capture has a section for each way there and back; of several ways there each has a figure, the others' files beside the first's.
    """
    if want.pcapng_file is None and want.svg_file is None:
        return
    ways = [(one, stages_of(one, probe)) for _, one, probe in legs(walk, want)]
    if want.pcapng_file is not None:
        file = str(want.pcapng_file)
        write(want.pcapng_file, b"".join(pcapng.write(section(one, stages, file, want.language)) for one, stages in ways))
        click.echo(f"{label(want.language, 'decode')}: {decode_command([stage for _, stages in ways for stage in stages], file)}", err=True)
    if want.svg_file is not None:
        for number, (one, stages) in enumerate((way for way in ways if way[0].src == walk.src), 1):
            path = want.svg_file if number == 1 else want.svg_file.with_stem(f"{want.svg_file.stem}-{number}")
            write(path, figure(one, snapshot, stages, want.language).encode())


def write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None


def echo(lines: Sequence[Line]) -> None:
    """Styled text; click drops the colours when it is piped."""
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    for line in lines:
        parts = (styled(part.translate(PLAIN) if plain else part, style) for part, style in line)
        text = "".join(parts).rstrip()
        click.echo(text.encode(sys.stdout.encoding or "ascii", "replace").decode(sys.stdout.encoding or "ascii") if plain else text)


def styled(text: str, style: str) -> str:
    found: dict[str, Any] = {}
    for word in style.split():
        found |= STYLES.get(word, {})
    return click.style(text, **found) if found else text
