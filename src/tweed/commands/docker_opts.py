"""`tweed docker-opts`: put Docker's docker0 on this node's subnet. Flags and variables are those of flannel's mk-docker-opts.sh."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import click

from tweed.agent.files import read_text, write_atomic
from tweed.commands.common import agent_flags
from tweed.config import load
from tweed.errors import TweedError, UsageError
from tweed.kernel import links, tables
from tweed.kernel.netlink import Netlink
from tweed.plan import docker
from tweed.wire.flannel import SubnetEnv, parse_subnet_env

BRIDGE = "cni0"


@click.command("docker-opts")
@click.option("-f", "flannel_env", type=click.Path(path_type=Path), metavar="FILE", help="subnet.env; default: the agent's.")
@click.option("-d", "docker_env", type=click.Path(path_type=Path), metavar="FILE", help="Write an environment file, as for `dockerd $DOCKER_OPTS`.")
@click.option("-i", "individual", is_flag=True, help="Each option as a variable of its own: DOCKER_OPT_BIP and so on.")
@click.option("-c", "combined", is_flag=True, help="All options in one variable. Without -i and -c: both.")
@click.option("-k", "key", default="DOCKER_OPTS", show_default=True, metavar="NAME", help="Name of that variable.")
@click.option("-m", "no_ip_masq", is_flag=True, help="Leave --ip-masq out (for a dockerd that does not know it).")
@click.option("--daemon-json", type=click.Path(path_type=Path), metavar="FILE", help="Set the keys in dockerd's daemon.json; others stay.")
@click.option("--split", is_flag=True, help=f"Docker gets the upper half of the subnet, {BRIDGE}'s pods keep the lower one.")
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
    check_bridges(env, split)
    both = not individual and not combined
    if daemon_json is not None:
        put(daemon_json, docker.merged(read_text(daemon_json) or "", options, str(daemon_json)), options)
        return
    text = docker.environment(options, individual=individual or both, combined=combined or both, key=key, earlier=os.environ.get(key, ""))
    if docker_env is not None:
        put(docker_env, text, options)
    else:
        click.echo(text, nl=False)


def subnet_of(path: Path) -> SubnetEnv:
    """What subnet.env says. Raises TweedError while there is no subnet."""
    text = read_text(path)
    env = parse_subnet_env(text or "")
    if not env.subnets:
        raise TweedError(f"{path}: {'it is not there' if text is None else 'it names no subnet'}; the agent writes it when it has a lease, see tweed status")
    return env


def check_bridges(env: SubnetEnv, split: bool) -> None:
    """Raises TweedError where pods already use addresses that Docker would give to its containers."""
    with Netlink() as nl:
        bridge = links.link(nl, BRIDGE)
        on_bridge = [row.address for row in tables.addresses(nl, BRIDGE)] if bridge is not None else []
    for subnet in env.subnets:
        wanted = docker.docker_half(subnet) if split else subnet
        for address in on_bridge:
            if address.network.overlaps(wanted):
                how = f"remove {BRIDGE} while no pod is on it (ip link del {BRIDGE})" if split else "use --split"
                raise TweedError(f"{BRIDGE} has {address}, so its pods and Docker's containers would share {wanted}: {how}")


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
