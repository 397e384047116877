"""`tweed net`: the network configuration, flannel's JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from tweed.addr import format_address
from tweed.commands.common import json_option, print_json, store_option, with_store
from tweed.config import Settings
from tweed.errors import TweedError, UsageError
from tweed.plan.backend import check_supported
from tweed.wire.flannel import Network, parse_network


@click.group()
def net() -> None:
    """The network configuration in the store: flannel's JSON, flannel's defaults, checked before it is written."""


def read_config(text: str | None, file: Path | None) -> str:
    """JSON given as a word, in a file, or on standard input (`-`)."""
    if (text is None) == (file is None):
        raise UsageError("give the configuration either as JSON or with --file FILE (- for standard input)")
    if text is not None:
        return text
    assert file is not None
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {getattr(error, 'strerror', None) or 'not text'}") from None


config_argument = click.argument("config", required=False)
file_option = click.option("--file", "file", type=click.Path(path_type=Path), help="Read the JSON from a file; - for standard input.")


@net.command()
@config_argument
@file_option
@store_option
def init(config: str | None, file: Path | None, settings: Settings) -> None:
    """Write the configuration of a store that has none."""
    _write(config, file, settings, replace=False)


@net.command("set")
@config_argument
@file_option
@store_option
def set_(config: str | None, file: Path | None, settings: Settings) -> None:
    """Replace the configuration. Agents follow within their resync interval."""
    _write(config, file, settings, replace=True)


def _write(config: str | None, file: Path | None, settings: Settings, *, replace: bool) -> None:
    text = read_config(config, file)
    check_supported(parse_network(text))
    if not with_store(settings, lambda store: store.set_config(text, replace=replace), create=True):
        raise TweedError(f"{settings.store} has a network configuration already: look with tweed net show, replace it with tweed net set")
    click.echo(f"wrote the network configuration to {settings.store}", err=True)


@net.command()
@json_option
@store_option
def show(as_json: bool, settings: Settings) -> None:
    """The configuration as it was written, and every default filled in."""
    text = with_store(settings, lambda store: store.config())
    if text is None:
        raise TweedError(f"{settings.store} has no network configuration: write one with tweed net init")
    network = parse_network(text)
    if as_json:
        print_json({"store": settings.store, "config": msgspec.json.decode(text), "effective": effective(network)})
        return
    click.echo(text.rstrip())
    click.echo()
    for key, value in effective(network).items():
        click.echo(f"{key:<16} {'' if value is None else value}")


def effective(network: Network) -> dict[str, Any]:
    """The configuration with all defaults, in flannel's key names."""
    shown: dict[str, Any] = {}
    for family, word in ((4, ""), (6, "IPv6")):
        span = network.range(family)
        if span is not None:
            shown |= {
                f"{word}Network": str(span.network),
                f"{word}SubnetLen": span.subnet_len,
                f"{word}SubnetMin": format_address(span.first.address),
                f"{word}SubnetMax": format_address(span.last.address),
            }
    shown |= {"Backend": network.backend, "VNI": network.vni, "Port": network.port, "MTU": network.mtu or None, "Learning": network.learning}
    return shown | {"GBP": network.gbp, "DirectRouting": network.direct_routing}
