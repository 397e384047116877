"""`tweed walk --live`: a real packet, and with `--fix` what mends its way and a second one."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator

import click
import msgspec

from tweed.commands import spaces
from tweed.commands.walk_show import Wanted
from tweed.kernel.netns import run_in
from tweed.lab.registry import Lab
from tweed.trace.ask import ask
from tweed.trace.cluster import Cluster
from tweed.trace.ends import ends
from tweed.trace.findings import find
from tweed.trace.intent import Intent
from tweed.trace.live import live, watching
from tweed.trace.probe import permitted
from tweed.trace.result import Fix, Said, Walk
from tweed.trace.snapshot import Snapshot
from tweed.trace.trip import trip

COMMAND_TIMEOUT_S = 20


class Done(msgspec.Struct, frozen=True):
    """A fix that was carried out, and what it said when it failed."""

    fix: Fix
    error: str = ""


def observe(lab: Lab | None, opened: spaces.Spaces, src: str, dst: str, want: Wanted) -> tuple[Walk, Snapshot]:
    """Follow one packet. Without the rights to see or send any, predict from the tables, and say so.

    A packet that got through where tables said no may have met other tables: an agent mends them at any time. Then it is done once more.
    """
    found, snapshot = once(lab, opened, src, dst, want)
    if found.first_divergence is not None and found.first_divergence.cause.id == "evaluation-differs":
        found, snapshot = once(lab, opened, src, dst, want)
    return spaces.entered(found, lab), snapshot


def once(lab: Lab | None, opened: spaces.Spaces, src: str, dst: str, want: Wanted) -> tuple[Walk, Snapshot]:
    snapshot = spaces.take(lab, opened)
    cluster = Cluster(snapshot)
    probe = want.probe(*ends(cluster, src, dst))
    with watching(cluster, opened) as watch:
        if watch is None or not permitted(probe):
            predicted = trip(cluster, Intent(cluster), probe, find(cluster), "tables")
            return msgspec.structs.replace(ask(predicted, cluster, opened), blind=(Said("everything-sent"),)), snapshot
        found = live(cluster, opened, probe, watch)
    reply = found.reply.findings if found.reply is not None else ()
    return msgspec.structs.replace(found, findings=(*find(cluster), *dict.fromkeys((*found.findings, *reply)))), snapshot


def mend(opened: spaces.Spaces, fixes: tuple[Fix, ...]) -> Iterator[Done]:
    """Run the commands, each where it belongs, as a person would type it; one that fails ends it."""
    for fix in fixes:
        if fix.node not in opened:
            yield Done(fix, "that node is not on this machine")
            return
        error = run(opened[fix.node], fix.command)
        yield Done(fix, error)
        if error:
            return


def run(netns: int | None, command: str) -> str:
    """ "" or what went wrong."""

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)

    try:
        done = start() if netns is None else run_in(netns, start)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return str(error)
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else ""


def tell(done: list[Done]) -> None:
    for each in done:
        click.echo(f"{each.fix.line}{f'   {each.error}' if each.error else ''}")
