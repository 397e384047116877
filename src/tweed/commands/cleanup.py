"""`tweed cleanup`: as if tweed had never been here."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import click

from tweed.commands.common import agent_flags
from tweed.config import load, selects_store
from tweed.errors import UsageError


# No -h: it would take the agent's -healthz-port for help.
@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option("--keep-lease", is_flag=True, help="Leave this node's lease in the store.")
@click.option("--flannel", is_flag=True, help="Remove what a flanneld left behind, and nothing of tweed's; the agent may run.")
@click.option("--to-flannel", is_flag=True, help="Leave the node to flanneld: its device, rows, rules and lease stay, and no packet is lost.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def cleanup(keep_lease: bool, flannel: bool, to_flannel: bool, words: tuple[str, ...]) -> None:
    """Remove everything tweed ever made on this node and nothing else, and release its lease.

    A running agent is told to end first. WORDS: the agent's own flags (--run-dir, --state-dir, --store …) where it was given any;
    those of a lab's node are known.
    """
    from tweed.agent.cleanup import clean, give_back
    from tweed.agent.client import AgentError, call
    from tweed.agent.files import read_text
    from tweed.agent.leftovers import remove_leftovers
    from tweed.commands.cni import AGENT_FILE, BIN_DIR

    if keep_lease + flannel + to_flannel > 1:
        raise UsageError("--keep-lease, --flannel and --to-flannel: use one of them; --to-flannel keeps the lease")
    settings, _ = load([*agent_flags(), *words], os.environ, socket.gethostname())
    if not selects_store(words, os.environ):  # a running agent knows best where its lease is
        with contextlib.suppress(AgentError):
            told = call(settings.socket, "GET", "/v1/status", timeout_s=2.0)["store"]["flags"]
            settings, _ = load([*agent_flags(), *told, *words], os.environ, socket.gethostname())
    if flannel:
        lines, nothing = remove_leftovers(settings), "nothing of flanneld's was found on this node"
    elif to_flannel:
        lines, nothing = give_back(settings), "nothing of tweed's was found on this node"
    else:
        lines, nothing = clean(settings, keep_lease=keep_lease), "nothing of tweed's was found on this node"
    found = False
    for line in lines:
        found = True
        click.echo(line)
    if not flannel and read_text(BIN_DIR / AGENT_FILE) == f"{settings.run_dir.absolute()}\n":
        print(f"left alone the CNI plugin in {BIN_DIR}: tweed cni uninstall removes it", file=sys.stderr)
    if not found:
        print(nothing, file=sys.stderr)
