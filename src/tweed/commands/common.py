"""What several subcommands need: which agent, which store, how to print."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from tweed.config import DEFAULT_RUN_DIR, SOCKET_NAME, STORE_OPTIONS, Settings, load, selects_store
from tweed.errors import TweedError, UsageError
from tweed.stores import LeaseStore, open_store

T = TypeVar("T")

SLOW_S = 1.0  # who waits longer for the store is told so

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
socket_option = click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="The agent's socket; default: this network namespace's agent.")


def agent_socket(given: Path | None) -> Path:
    """`--socket`, else TWEED_SOCKET, else the agent of the lab node whose namespace this is, else the default."""
    if given is not None:
        return given
    if text := os.environ.get("TWEED_SOCKET"):
        return Path(text)
    from tweed.lab.registry import node_for_netns

    found = node_for_netns(own_netns())
    return found[1].socket if found is not None else DEFAULT_RUN_DIR / SOCKET_NAME


def own_netns() -> int:
    """The inode of the network namespace that this command runs in."""
    return os.stat("/proc/self/ns/net").st_ino


def agent_flags() -> list[str]:
    """The flags that this namespace's agent was started with, where it is a lab's node; none elsewhere."""
    from tweed.lab.agents import flags
    from tweed.lab.registry import node_for_netns

    found = node_for_netns(own_netns())
    return flags(*found) if found is not None else []


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--store` and the agent's other flags that say where the leases are. The command gets `settings`, by which to open the store."""

    @functools.wraps(command)
    def with_settings(*arguments: Any, **given: Any) -> Any:
        texts = [(option.name, given.pop(option.field)) for option in STORE_OPTIONS]
        return command(*arguments, settings=store_settings([f"--{name}={text}" for name, text in texts if text is not None]), **given)

    for option in reversed(STORE_OPTIONS):
        shown = "default: the store of this node's agent, else store.db in the state directory" if option.name == "store" else option.help
        with_settings = click.option(f"--{option.name}", option.field, metavar=option.metavar, help=shown)(with_settings)
    return with_settings


def store_settings(flags: Sequence[str]) -> Settings:
    """The settings by which to open the store that the flags mean, else the environment, else what this node's agent uses, else the default file."""
    usual = agent_flags()
    if selects_store(flags, os.environ):
        usual = [flag for flag in usual if flag.partition("=")[0] not in {f"--{option.name}" for option in STORE_OPTIONS}]
    else:
        from tweed.agent.client import AgentError, call

        with contextlib.suppress(AgentError):
            usual += call(agent_socket(None), "GET", "/v1/status", timeout_s=2.0)["store"]["flags"]
    settings = load([*usual, *flags], os.environ, socket.gethostname())[0]
    for flag in flags:
        if (kind := flag[2:6]) in ("etcd", "kube") and settings.store != kind:
            raise UsageError(f"{flag.partition('=')[0]} is for --store {kind}, and here the leases are in {settings.store}")
    return settings


def with_store(settings: Settings, use: Callable[[LeaseStore], Coroutine[Any, Any, T]], *, create: bool = False) -> T:
    """Open, use, close. Only with `create` is an embedded store made that is not there: looking leaves nothing behind."""
    if not create and settings.store_file is not None and not settings.store_file.exists():
        raise TweedError(f"there is no store at {settings.store}: an agent makes it at its start, or tweed net init does; or name another with --store")

    async def run() -> T:
        store = open_store(settings)
        slow = asyncio.get_running_loop().call_later(SLOW_S, lambda: click.echo(f"still asking {settings.store}", err=True))
        try:
            return await use(store)
        finally:
            slow.cancel()
            await store.close()

    return asyncio.run(run())


def print_json(value: Any) -> None:
    """Indented for a person's terminal, one line in a pipe: JSON either way."""
    data = msgspec.json.encode(value)
    click.echo(msgspec.json.format(data, indent=2).decode() if sys.stdout.isatty() else data.decode())
