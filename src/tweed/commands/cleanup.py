"""`tweed cleanup`: as if tweed had never been here."""

from __future__ import annotations

import os
import socket
import sys

import click

from tweed.commands.common import agent_flags
from tweed.config import load


# No -h: it would take the agent's -healthz-port for help.
@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option("--keep-lease", is_flag=True, help="Leave this node's lease in the store.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def cleanup(keep_lease: bool, words: tuple[str, ...]) -> None:
    """Remove everything tweed ever made on this node and nothing else, and release its lease.

    A running agent is told to end first. WORDS: the agent's own flags (--run-dir, --state-dir, --store …) where it was given any;
    those of a lab's node are known.
    """
    from tweed.agent.cleanup import clean

    settings, _ = load([*agent_flags(), *words], os.environ, socket.gethostname())
    found = False
    for line in clean(settings, keep_lease=keep_lease):
        found = True
        click.echo(line)
    if not found:
        print("nothing of tweed's was found on this node", file=sys.stderr)
