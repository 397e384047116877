"""`tweed bench`: what each way of carrying the overlay costs on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tweed.bench import grounds, programs
from tweed.bench import report as reports
from tweed.commands.common import json_option, print_json
from tweed.errors import TweedError, UsageError

modes_option = click.option("--modes", default=None, metavar="A,B,…", help=f"Default: all, {','.join(grounds.known())}.")


def say(text: str) -> None:
    click.echo(text, err=True)


def chosen(text: str | None) -> list[str]:
    names = list(dict.fromkeys(name for name in text.split(",") if name)) if text is not None else list(grounds.known())
    if not names:
        raise UsageError(f"--modes: name at least one of {', '.join(grounds.known())}")
    grounds.check(names)
    return names


@click.group()
def bench() -> None:
    """Measure the ways of carrying the overlay against each other, in labs that are brought up for it and gone afterwards."""


@bench.command()
@modes_option
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="The ways take turns in each.")
@click.option("--seconds", type=click.IntRange(1, 60), default=2, show_default=True, help="How long each of a round's five measurements of a way takes.")
@click.option("--against", nargs=3, metavar="NETNS_A NETNS_B ADDR", help="Also an overlay that somebody else set up: ADDR, in NETNS_B, reached from NETNS_A.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Draw the bars into this file.")
@json_option
def dataplane(modes: str | None, rounds: int, seconds: int, against: tuple[str, str, str] | None, svg: Path | None, as_json: bool) -> None:
    """Throughput, packet rate, latency and CPU of each way, with the bare underlay as the limit."""
    from tweed.bench.dataplane import measure

    programs.check()
    names = chosen(modes)
    if svg is not None and not os.access(svg.parent, os.W_OK):  # said before the minutes that it would be in vain
        raise TweedError(f"--svg {svg}: {svg.parent} is not a directory that can be written to")
    with grounds.grounds(names, say, against) as ways:
        result = measure(ways, rounds, seconds, say)
    if svg is not None:
        try:
            svg.write_text(reports.bars(result))
        except OSError as error:
            raise TweedError(f"--svg {svg}: {error.strerror}") from None
    if as_json:
        print_json(reports.as_json(result))
    else:
        for line in reports.lines(result):
            click.echo(line)


@bench.command()
@modes_option
@json_option
def crossings(modes: str | None, as_json: bool) -> None:
    """How often one packet crosses between user and kernel space, in each way, counted on real packets."""
    import msgspec

    from tweed.bench.crossings import lines, observe

    names = chosen(modes)
    with grounds.grounds(names, say) as ways:
        passages = observe(ways, say)
    if as_json:
        print_json(msgspec.to_builtins(passages))
    else:
        for line in lines(passages):
            click.echo(line)
