"""`tweed agent`: flannel's flags in Go's forms, so click only hands the words on."""

from __future__ import annotations

import os
import socket
import sys

import click

from tweed import __version__
from tweed.config import load, usage


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def agent(words: tuple[str, ...]) -> None:
    if {"-h", "-help", "--help"} & set(words):
        click.echo(usage())
        return
    if {"-version", "--version"} & set(words):
        click.echo(f"tweed {__version__}")
        return
    settings, warnings = load(words, os.environ, socket.gethostname())
    for warning in warnings:
        print(f"tweed: {warning}", file=sys.stderr)
    if settings.dry_run:
        from tweed.agent.dryrun import commands

        for line in commands(settings):
            click.echo(line)
        return
    from tweed.agent.main import run

    run(settings)
