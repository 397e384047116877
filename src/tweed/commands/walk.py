"""`tweed walk`: what becomes of a packet between two addresses."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from tweed.commands import spaces
from tweed.commands.common import json_option, print_json
from tweed.commands.walk_show import Wanted, save, show, show_options, wanted
from tweed.errors import UsageError
from tweed.trace.ask import ask, differs
from tweed.trace.cluster import Cluster
from tweed.trace.ends import ends
from tweed.trace.findings import find
from tweed.trace.intent import Intent
from tweed.trace.messages import sayer
from tweed.trace.read import Source, read
from tweed.trace.result import Walk
from tweed.trace.result import as_json as document
from tweed.trace.snapshot import Snapshot
from tweed.trace.trip import trip

UNREAD_SHOWN = 20
TRIES = 2


class ManyFiles(click.Command):
    """`--tables` takes all words up to the next option: all FILEs, and behind them SRC and DST unless those came before."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        valued = {name for option in self.params if isinstance(option, click.Option) and not option.is_flag for name in option.opts}
        return super().parse_args(ctx, spread(args, valued - {"--tables"}))


def spread(args: list[str], valued: Collection[str]) -> list[str]:
    """`--tables A B SRC DST` as `--tables A --tables B SRC DST`: SRC and DST are the last words that no option takes.

    `valued`: the other options that take the word behind them.
    """
    taken: list[str] = []
    words: list[str] = []  # in order, those that are addresses or files
    files: list[str] = []
    position = 0
    collecting = False
    while position < len(args):
        word = args[position]
        position += 1
        if word == "--tables" or word.startswith("--tables="):
            collecting = True
            files += [word.partition("=")[2]] if "=" in word else []
        elif word.startswith("-") and word != "-":
            taken.append(word)
            if word in valued and position < len(args):
                taken.append(args[position])
                position += 1
            collecting = False
        elif collecting:
            files.append(word)
        else:
            words.append(word)
    missing = max(0, 2 - len(words))
    if missing and files:
        words += files[-missing:] if len(files) >= missing else files
        files = files[: max(0, len(files) - missing)]
    return [*taken, *(part for name in files for part in ("--tables", name)), *words]


@click.command(cls=ManyFiles)
@click.option("--tables", "files", multiple=True, metavar="FILE...", help="Pasted tables: FILE, NODE=FILE, NODE/POD=FILE, a directory per node, - for stdin.")
@click.option("--lab", "lab_name", metavar="LAB", help="In this lab; needed when several are up.")
@click.option("--live", "as_live", is_flag=True, help="Send a real packet and show what every device does with it.")
@click.option("--fix", is_flag=True, help="With --live: run the commands that mend the first divergence, then send another.")
@click.option("--record", "recording", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Across machines: write what this one sees.")
@click.option("--join", "joining", is_flag=True, help="Across machines: put the recordings that follow together as one walk.")
@click.argument("words", nargs=-1, metavar="SRC DST")
@json_option
@show_options
def walk(
    files: tuple[str, ...],
    lab_name: str | None,
    as_live: bool,
    fix: bool,
    recording: Path | None,
    joining: bool,
    words: tuple[str, ...],
    as_json: bool,
    **shown: Any,
) -> None:
    """How a packet travels from SRC to DST, which row of which table decides at each step, and what the tables do not say.

    Each is an address, a pod, node/pod or a node. Without --tables the tables are those of the kernel now, of this node or of the lab that is
    up, and the kernel is asked for each decision too. With --live a real packet goes that way: every device, look-up and drop that it meets is
    shown beside what the tables say, and the first difference is named with what mends it.

    Across machines: `walk --record FILE SRC DST` on each, the one that has SRC last, which sends the packet; then `walk --join FILE...`

    Exit 0 delivered, 1 a problem, 2 usage (no tables, an unknown address), 3 not enough known.
    """
    want = wanted(shown)
    ways = {"--tables": bool(files), "--live": as_live, "--record": recording is not None, "--join": joining}
    if len(given := [name for name, is_given in ways.items() if is_given]) > 1:
        raise UsageError(f"{' and '.join(given)}: give one of them")
    if joining:
        from tweed.commands.walk_record import joined

        if not words:
            raise UsageError("--join: name the files that `tweed walk --record` wrote on each machine")
        finish(*joined(words, want), want, as_json=as_json)
        return
    if len(words) != 2:
        raise UsageError(f"SRC and DST: two words are needed, {len(words)} are there")
    src, dst = words
    if recording is not None:
        from tweed.commands.walk_record import record

        record(recording, src, dst, want)
        return
    if fix and not as_live:
        raise UsageError("--fix: it goes with --live, which shows whether it helped")
    if as_live:
        sys.exit(observed(lab_name, src, dst, want, fix=fix, as_json=as_json))
    if not files:
        found, snapshot = live(lab_name, src, dst, want)
    else:
        if lab_name is not None:
            raise UsageError("--lab and --tables: give one of them")
        snapshot = read([source for name in files for source in sources(name)])
        if not any(len(node) for node in snapshot.nodes):
            raise UsageError(f"{', '.join(files)}: no tables: nothing there looks like the output of ip, bridge, ss or sysctl")
        cluster = Cluster(snapshot)
        found = trip(cluster, Intent(cluster), want.probe(*ends(cluster, src, dst)), find(cluster))
    finish(found, snapshot, want, as_json=as_json)


def finish(found: Walk, snapshot: Snapshot, want: Wanted, *, as_json: bool) -> None:
    if as_json:
        print_json(document(found, sayer(want.language), snapshot.unread))
        save(found, snapshot, want)
    else:
        show(found, snapshot, want)
        report(snapshot)
    if found.exit_code:
        sys.exit(found.exit_code)


def observed(lab_name: str | None, src: str, dst: str, want: Wanted, *, fix: bool, as_json: bool) -> int:
    """One real packet, with `fix` the cure and a second one. Returns the exit code of the last."""
    from tweed.commands.walk_live import mend, observe, tell

    lab = spaces.lab_of(lab_name)
    with spaces.opened(lab) as opened:
        found, snapshot = observe(lab, opened, src, dst, want)
        shown: dict[str, Any] = document(found, sayer(want.language))
        if not as_json:
            show(found, snapshot, want)
        if fix and found.first_divergence is not None and found.first_divergence.fix:
            done = list(mend(opened, found.first_divergence.fix))
            if not as_json:
                click.echo()
                tell(done)
            again = None
            if not done[-1].error:
                again, snapshot = observe(lab, opened, src, dst, want)
                found = again
                if not as_json:
                    click.echo()
                    show(again, snapshot, want)
            commands = [{"node": each.fix.node, "command": each.fix.command, "error": each.error} for each in done]
            shown["fixed"] = {"commands": commands, "after": again and document(again, sayer(want.language))}
    if as_json:
        print_json(shown)
        save(found, snapshot, want)
    return found.exit_code


def live(lab_name: str | None, src: str, dst: str, want: Wanted) -> tuple[Walk, Snapshot]:
    """From the tables as they are now, each decision asked of the kernel. Tables that changed in between are read once more."""
    lab = spaces.lab_of(lab_name)
    with spaces.opened(lab) as opened:
        for _ in range(TRIES):
            snapshot = spaces.take(lab, opened)
            cluster = Cluster(snapshot)
            found = ask(trip(cluster, Intent(cluster), want.probe(*ends(cluster, src, dst)), find(cluster), "tables"), cluster, opened)
            if not differs(found):
                break
    return spaces.entered(found, lab), snapshot


def sources(name: str) -> list[Source]:
    """What one word behind `--tables` means. Raises UsageError for a file that cannot be read."""
    if name == "-":
        return [Source(None, "-", sys.stdin.buffer.read())]
    node, equals, file = name.partition("=")
    path = Path(name)
    if equals and node and not path.exists():
        path = Path(file)
    else:
        node = ""
    if path.is_dir():
        return directory(path, node or path.resolve().name)
    return [Source(node or None, str(path), contents(path))]


def directory(path: Path, node: str) -> list[Source]:
    """The files of a directory are one node's; directories in it are nodes where it has no files, else that node's containers."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file()]
    found = [Source(node, str(file), contents(file)) for file in files]
    for entry in entries:
        if entry.is_dir():
            found += directory(entry, f"{node}/{entry.name}" if files else entry.name)
    return found


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def report(snapshot: Snapshot) -> None:
    """Lines that look like rows and could not be read, on stderr."""
    for line in snapshot.unread[:UNREAD_SHOWN]:
        click.echo(f"tweed: {line.source}: skipped: {line.why}: {line.text[:100]}", err=True)
    if (more := len(snapshot.unread) - UNREAD_SHOWN) > 0:
        click.echo(f"tweed: and {more} more lines could not be read: tweed walk --json lists all", err=True)
