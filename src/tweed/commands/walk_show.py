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
        echo(stage_lines(stages_of(walk, walk.probe or want.probe(walk.src, walk.dst)), want.language, as_hex=want.as_hex, fields=want.fields))
    save(walk, snapshot, want)


def save(walk: Walk, snapshot: Snapshot, want: Wanted) -> None:
    """Write the capture and the figure when asked; how to decode the capture goes to stderr, so that what programs read stays as it is."""
    if want.pcapng_file is None and want.svg_file is None:
        return
    stages = stages_of(walk, walk.probe or want.probe(walk.src, walk.dst))
    if want.pcapng_file is not None:
        file = str(want.pcapng_file)
        write(want.pcapng_file, pcapng.write(section(walk, stages, file, want.language)))
        click.echo(f"{label(want.language, 'decode')}: {decode_command(stages, file)}", err=True)
    if want.svg_file is not None:
        write(want.svg_file, figure(walk, snapshot, stages, want.language).encode())


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
