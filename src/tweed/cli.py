"""The command `tweed`. Subcommands live in `tweed.commands`, each imported only when it is called for."""

from __future__ import annotations

import importlib
import os
import sys

import click

from tweed import __version__
from tweed.errors import TweedError

COMMANDS = {
    "agent": ("tweed.commands.agent:agent", "Keep this node in the overlay."),
    "status": ("tweed.commands.status:status", "What this node's agent holds, programmed and failed at."),
    "net": ("tweed.commands.net:net", "The network configuration in the store."),
    "lease": ("tweed.commands.lease:lease", "Who holds which subnet."),
    "walk": ("tweed.commands.walk:walk", "How a packet travels, and which row of which table decides at each step."),
    "snapshot": ("tweed.commands.snapshot:snapshot", "This node's tables, or a lab's, as one file for walk."),
    "pods": ("tweed.commands.pods:pods", "The containers of this node: who has which address."),
    "cni": ("tweed.commands.cni:cni", "The plugin by which container runtimes attach containers."),
    "lab": ("tweed.commands.lab:lab", "A whole cluster in network namespaces on this machine."),
    "bench": ("tweed.commands.bench:bench", "What each way of carrying the overlay costs on this machine."),
    "cleanup": ("tweed.commands.cleanup:cleanup", "Remove everything tweed made on this node."),
    "docker-opts": ("tweed.commands.docker_opts:docker_opts", "Put Docker's docker0 on this node's subnet."),
    "node-files": ("tweed.commands.node_files:node_files", "Files that keep other network programs away from tweed's devices."),
}


class Lazy(click.Group):
    """A group that knows its commands' names and one-line helps without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="tweed %(version)s")
def tweed() -> None:
    """A VXLAN container network that carries packets, keeps itself right and explains itself."""


def main() -> None:
    """Entry point: errors are one line on stderr; 1 found a problem, 2 usage, 130 interrupted."""
    try:
        code = tweed.main(prog_name="tweed", standalone_mode=False)
    except TweedError as error:
        print(f"tweed: {error}", file=sys.stderr)
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.ClickException as error:
        print(f"tweed: {error.format_message().rstrip('.')}; see tweed --help", file=sys.stderr)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        print("tweed: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # no room for the output, no file descriptor left: the machine's trouble, not a defect to be traced
        print(f"tweed: {': '.join(str(part) for part in (error.filename, error.strerror or error) if part)}", file=sys.stderr)
        code = 1
    sys.exit(code or 0)
