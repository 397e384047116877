"""`tweed pods`: who has which address on this node."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from tweed.agent.client import call
from tweed.commands.common import agent_socket, json_option, print_json, socket_option
from tweed.commands.lease import duration


@click.command()
@json_option
@socket_option
def pods(as_json: bool, socket_path: Path | None) -> None:
    """The containers that this node's agent has attached: address, device, MAC, and since when."""
    found = call(agent_socket(socket_path), "GET", "/v1/attachments")
    if as_json:
        print_json(found)
        return
    for line in lines(found, time.time()):
        click.echo(line)


def lines(found: list[dict[str, Any]], now: float) -> list[str]:
    """A table; the container's id is cut to what tells it from others."""
    if not found:
        return ["no container is attached"]
    head = ("POD", "CONTAINER", "INTERFACE", "ADDRESSES", "MAC", "DEVICE", "BRIDGE", "SINCE")
    rows = [
        (
            pod["pod"] or "-",
            pod["container_id"][:13],
            pod["ifname"],
            ", ".join(address.partition("/")[0] for address in pod["addresses"]),
            pod["mac"],
            pod["host_name"],
            pod["bridge"],
            duration(max(now - pod["since"], 0)),
        )
        for pod in found
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
