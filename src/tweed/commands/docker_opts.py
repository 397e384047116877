"""`tweed docker-opts`: put Docker's docker0 on this node's subnet. Flags and variables are those of flannel's mk-docker-opts.sh."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Collection
from pathlib import Path

import click

from tweed.addr import Prefix
from tweed.agent.client import AgentError, call
from tweed.agent.files import read_text, write_atomic
from tweed.commands.common import agent_flags, agent_socket
from tweed.config import load
from tweed.errors import TweedError, UsageError
from tweed.kernel import links, tables
from tweed.kernel.netlink import Netlink
from tweed.plan import docker
from tweed.wire.flannel import SubnetEnv, parse_subnet_env


@click.command("docker-opts")
@click.option("-f", "flannel_env", type=click.Path(path_type=Path), metavar="FILE", help="subnet.env; default: the agent's.")
@click.option("-d", "docker_env", type=click.Path(path_type=Path), metavar="FILE", help="Write an environment file, as for `dockerd $DOCKER_OPTS`.")
@click.option("-i", "individual", is_flag=True, help="Each option as a variable of its own: DOCKER_OPT_BIP and so on.")
@click.option("-c", "combined", is_flag=True, help="All options in one variable. Without -i and -c: both.")
@click.option("-k", "key", default="DOCKER_OPTS", show_default=True, metavar="NAME", help="Name of that variable.")
@click.option("-m", "no_ip_masq", is_flag=True, help="Leave --ip-masq out (for a dockerd that does not know it).")
@click.option("--daemon-json", type=click.Path(path_type=Path), metavar="FILE", help="Set the keys in dockerd's daemon.json; others stay.")
@click.option("--split", is_flag=True, help="Docker gets the upper half of the subnet, pods keep the lower one.")
def docker_opts(
    flannel_env: Path | None,
    docker_env: Path | None,
    individual: bool,
    combined: bool,
    key: str,
    no_ip_masq: bool,
    daemon_json: Path | None,
    split: bool,
) -> None:
    """What dockerd needs to put docker0 on this node's subnet. Printed, or written with -d or --daemon-json."""
    if docker_env is not None and daemon_json is not None:
        raise UsageError("-d and --daemon-json: give one of them")
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) is None:
        raise UsageError(f"-k {key!r}: not a variable's name")
    source = flannel_env or load(agent_flags(), os.environ, socket.gethostname())[0].subnet_file
    env = subnet_of(source)
    options = docker.options(env, ip_masq=not no_ip_masq, split=split)
    docker.check_free(env.subnets, container_bridges(), split=split)
    both = not individual and not combined
    path = daemon_json or docker_env
    if daemon_json is not None:
        text = docker.merged(read_text(daemon_json) or "", options, str(daemon_json))
    else:
        text = docker.environment(options, individual=individual or both, combined=combined or both, key=key, earlier=os.environ.get(key, ""))
    if path is None:
        click.echo(text, nl=False)
        return
    if split:
        tell_agent(env.subnets)
    put(path, text, options)
    if not split:
        tell_agent([])


def subnet_of(path: Path) -> SubnetEnv:
    """What subnet.env says. Raises TweedError while there is no subnet."""
    text = read_text(path)
    env = parse_subnet_env(text or "")
    if not env.subnets:
        raise TweedError(f"{path}: {'it is not there' if text is None else 'it names no subnet'}; the agent writes it when it has a lease, see tweed status")
    return env


def container_bridges() -> list[docker.Bridge]:
    """All bridges of this network namespace with their addresses."""
    with Netlink() as nl:
        return [(link.name, row.address) for link in links.links(nl, "bridge") for row in tables.addresses(nl, link.name)]


def tell_agent(split: Collection[Prefix]) -> None:
    """Of these subnets pods keep the lower half from now on, also before docker0 is there. Whatever else Docker was promised is theirs again."""
    try:
        call(agent_socket(None), "PUT", "/v1/docker", [str(docker.docker_half(subnet)) for subnet in split])
    except AgentError as error:
        if split:
            click.echo(f"until docker0 is there, pods may get addresses of its half too, since the agent does not know of it: {error}", err=True)
        return
    if split:
        click.echo(f"pods keep {' and '.join(str(docker.pods_half(subnet)) for subnet in split)}, also while docker0 is not there")


def put(path: Path, text: str, options: docker.Options) -> None:
    before = read_text(path)
    if before == text:
        click.echo(f"{path} says so already")
        return
    try:
        write_atomic(path.resolve(), text)  # where it is a symlink, the file that it stands for
    except OSError as error:
        raise TweedError(f"{path}: {error.strerror}") from None
    change = "" if before is None else ", which is another than before"
    click.echo(f"wrote {path}: docker0 is {options.bip or options.fixed_cidr_v6}{change}; it takes effect when dockerd is restarted")
