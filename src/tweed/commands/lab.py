"""`tweed lab`: a whole cluster in network namespaces on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from tweed.commands.common import json_option, print_json
from tweed.errors import TweedError, UsageError
from tweed.lab import breakage, cluster, faults, registry, stores, topology

name_option = click.option("--name", default=None, metavar="LAB", help=f"Which lab; default: {registry.DEFAULT_NAME}, or the only one.")

# Click keeps paragraphs that begin with \b as they are.
FILE_FORMAT = "\b\n" + (topology.__doc__ or "").partition("\n\n")[2].replace("\n\n", "\n\n\b\n")


def say(text: str) -> None:
    click.echo(text, err=True)


@click.group()
def lab() -> None:
    """A whole cluster in network namespaces on this machine: real agents, real packets, nothing of the machine's own network touched."""


@lab.command(epilog=FILE_FORMAT)
@click.option("--topology", "source", metavar="seed|FILE", help="The seed's cluster (default), or a topology file (see below).")
@click.option("--nodes", type=int, metavar="N", help="N alike nodes instead: node1 to nodeN.")
@click.option("--pods-per-node", type=int, metavar="M", help="Default 2; 1 in labs of more than ten nodes.")
@click.option("--name", default=registry.DEFAULT_NAME, show_default=True, metavar="LAB")
@click.option("--ipv6", is_flag=True, help="Both families, over an underlay of both.")
@click.option("--store", type=click.Choice(stores.KINDS), default="sqlite", show_default=True, help="Where the nodes keep their leases.")
@click.option("--backend", metavar="TYPE[:JSON]", help="As in --backend 'vxlan:{\"VNI\": 7}'.")
def up(source: str | None, nodes: int | None, pods_per_node: int | None, name: str, ipv6: bool, store: str, backend: str | None) -> None:
    """Bring a lab up."""
    chosen = choose(source, nodes, pods_per_node, ipv6)
    if backend is not None:
        chosen = topology.with_backend(chosen, backend)
    made = cluster.up(name, chosen, say, store)
    show(made, cluster.status(made))
    option = "" if name == registry.DEFAULT_NAME else f" --name {name}"
    click.echo(f"\nlook around:  ip netns exec {made.nodes[0].netns} ip route    tweed lab exec{option} {made.nodes[0].name} -- tweed status")
    click.echo(f"end it:       tweed lab down{option}")


def choose(source: str | None, nodes: int | None, pods_per_node: int | None, ipv6: bool) -> topology.Topology:
    """What the flags describe. Raises UsageError."""
    if nodes is not None:
        if source is not None:
            raise UsageError("--nodes and --topology: give one of them")
        return topology.generic(nodes, pods_per_node, ipv6=ipv6)
    if source in (None, "seed"):
        return topology.seed(pods_per_node, ipv6=ipv6)
    assert source is not None
    try:
        text = Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--topology {source}: {error.strerror if isinstance(error, OSError) else 'not a text file'}; it is `seed` or a file") from None
    return topology.parse(text, source, pods_per_node, ipv6=ipv6)


@lab.command()
@click.option("--keep", is_flag=True, help="Leave the lab up afterwards.")
@click.option("--name", default=registry.DEFAULT_NAME, show_default=True, metavar="LAB")
def demo(keep: bool, name: str) -> None:
    """Show one packet's way through the seed's cluster. Then a row is broken, and the repair watched. Exit 1 when a check fails."""
    from rich.console import Console

    from tweed.lab.demo import demo as run

    sys.exit(run(keep=keep, name=name, console=Console()))


@lab.command()
@click.option("--name", default=None, metavar="LAB", help=f"Which lab; default: {registry.DEFAULT_NAME}.")
@click.option("--all", "everything", is_flag=True, help="All labs, also what crashed ones left.")
def down(name: str | None, everything: bool) -> None:
    """Take a lab down. Its processes end, its namespaces and files go."""
    if everything and name is not None:
        raise UsageError("--all and --name: give one of them")
    if not everything:
        cluster.down(name or registry.DEFAULT_NAME, say)
        return
    names = registry.names()
    failures = []
    for each in names:
        try:
            cluster.down(each, say)
        except TweedError as error:
            failures.append(str(error))
    if not names:
        say("no lab is up")
    if failures:
        raise TweedError("; ".join(failures))


@lab.command()
@name_option
@json_option
def status(name: str | None, as_json: bool) -> None:
    """Nodes, subnets and pods. Exit 1 when an agent does not answer."""
    found = registry.load(name)
    document = cluster.status(found)
    if as_json:
        print_json(document)
    else:
        show(found, document)
    if any(node["agent_pid"] is None for node in document["nodes"]):
        sys.exit(1)


def show(lab: registry.Lab, document: dict[str, Any]) -> None:
    """The lab as a table. What lies beside the overlay is in it too, in brackets."""
    rows = [("NODE", "AGENT", "UNDERLAY", "SUBNET", "VTEP MAC", "PODS")]
    for entry, node in zip(document["nodes"], lab.nodes, strict=True):
        pods = [f"{pod.name} {' '.join(pod.ips)}" if not pod.outside else f"({pod.name} {' '.join(pod.ips)})" for pod in node.pods]
        agent = str(entry["agent_pid"]) if entry["agent_pid"] else "silent"
        rows.append((node.name, agent, node.public_ip, entry["subnet"] or "-", entry["vtep_mac"] or "-", ", ".join(pods)))
        if node.public_ip6:
            rows.append(("", "", node.public_ip6, entry["subnet6"] or "-", entry["vtep_mac6"] or "-", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@name_option
@click.argument("where", metavar="NODE|POD")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str | None, where: str, command: tuple[str, ...]) -> None:
    """Run a command in a node, a pod (node/pod) or `world`. Its exit code is ours."""
    words = cluster.command_in(registry.load(name), where, command[1:] if command[0] == "--" else command)
    os.execvp(words[0], words)


@lab.command()
@name_option
@click.argument("node")
@click.option("-n", "lines", type=click.IntRange(min=0), help="Only the last so many lines.")
def logs(name: str | None, node: str, lines: int | None) -> None:
    """What a node's agent has logged."""
    path = registry.load(name).node(node).log
    try:
        text = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise TweedError(f"{path}: {error.strerror}") from None
    for line in text if lines is None else text[len(text) - min(lines, len(text)) :]:
        click.echo(line)


@lab.command()
@name_option
@click.argument("node", required=False)
def pause(name: str | None, node: str | None) -> None:
    """Let one agent (or all) change nothing. They answer, and whatever is broken by hand stays broken."""
    say(f"paused: {', '.join(cluster.pause(registry.load(name), node))}")


@lab.command()
@name_option
@click.argument("node", required=False)
def resume(name: str | None, node: str | None) -> None:
    """Let one agent (or all) go on."""
    say(f"resumed: {', '.join(cluster.pause(registry.load(name), node, resume=True))}")


@lab.command("break")
@name_option
@click.argument("fault")
@click.option("--node", metavar="NODE", help="Where to put it; default: the first node that has a pod.")
@json_option
def break_(name: str | None, fault: str, node: str | None, as_json: bool) -> None:
    """Break one thing with plain commands while the agents look on (`tweed lab faults` lists what). Heal it with `tweed lab heal`."""
    found = registry.load(name)
    broken = breakage.break_(found, fault, node)
    if as_json:
        print_json({key: getattr(broken, key) for key in ("fault", "node", "peer", "src", "dst")})
        return
    click.echo(f"{broken.fault}: {faults.find(fault).title}")
    for deed in broken.do:
        click.echo(f"  [root@{deed.where} ~]# {deed.text}")
    option = "" if found.name == registry.DEFAULT_NAME else f" --lab {found.name}"
    click.echo(f"\nsee it:   tweed walk --live{option} {broken.src} {broken.dst}")
    click.echo(f"undo it:  tweed lab heal{option.replace('--lab', '--name')}")


@lab.command()
@name_option
def heal(name: str | None) -> None:
    """Undo whatever `tweed lab break` broke, and let the agents go on. Exit 1 when a command failed."""
    broken, problems = breakage.heal(registry.load(name))
    say(f"healed: {', '.join(each.fault for each in broken)}" if broken else "nothing was broken; the agents go on")
    for problem in problems:
        say(f"failed: {problem}")
    if problems:
        sys.exit(1)


@lab.command("faults")
@json_option
def faults_(as_json: bool) -> None:
    """What `tweed lab break` can break."""
    if as_json:
        print_json([{"name": fault.name, "title": fault.title} for fault in faults.CATALOGUE.values()])
        return
    width = max(map(len, faults.CATALOGUE))
    for fault in faults.CATALOGUE.values():
        click.echo(f"{fault.name.ljust(width)}  {fault.title}")
