"""`tweed snapshot`: the tables of a node or a lab as one file, which `tweed walk --tables` reads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from tweed.commands import spaces
from tweed.errors import UsageError
from tweed.trace import snapshot as s


@click.command()
@click.option("--lab", "lab_name", metavar="LAB", help="All nodes and pods of this lab; default: the lab that is up, else this node.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Default: standard output.")
def snapshot(lab_name: str | None, output: Path | None) -> None:
    """Take this node's tables, or a lab's, into one JSON file.

    Devices, addresses, rules, routes, neighbours, fdb, bridge ports, UDP sockets, the sysctls that matter, nft rules and leases, of every
    namespace. It holds no keys and no traffic; addresses and MACs are in it.
    """
    lab = spaces.lab_of(lab_name)
    with spaces.opened(lab) as opened:
        taken = spaces.take(lab, opened)
    data = s.encode(taken) + b"\n"
    if output is None:
        if sys.stdout.isatty():
            raise UsageError("that is one long line for a program: name a file with -o FILE, or send it into one")
        sys.stdout.buffer.write(data)
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {error.strerror}") from None
    rows = sum(map(len, taken.nodes))
    click.echo(
        f"{output}: {len(taken.nodes)} namespace{'s'[: len(taken.nodes) != 1]}, {rows} rows, {len(taken.leases)} leases; tweed walk --tables {output} SRC DST"
    )
