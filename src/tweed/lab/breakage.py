"""Breaks a lab and heals it again: the agents are paused, the commands of a fault are run, and what undoes them is kept in the lab's directory.

The undoing is written down before the first command runs, so that a fault which was interrupted halfway can be healed like any other.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec

from tweed.addr import Prefix
from tweed.agent.client import AgentError
from tweed.agent.files import write_atomic
from tweed.errors import TweedError, UsageError
from tweed.lab import agents, cluster, registry
from tweed.lab.faults import find
from tweed.lab.faults.plan import Deed
from tweed.lab.faults.scene import scene
from tweed.lab.registry import Lab

COMMAND_S = 30.0
# What `ip`, `bridge` and `nft` say of something that is as the undoing wants it already: somebody has mended it.
MENDED = ("No such", "Cannot find", "File exists", "Object 'does not exist", "does not exist")


class Broken(msgspec.Struct, frozen=True):
    """One fault in a lab. `src` and `dst`: the pods of a walk that shows it. `paused`: the agents that were told to look on."""

    fault: str
    node: str
    peer: str
    src: str
    dst: str
    do: tuple[Deed, ...]
    undo: tuple[Deed, ...]


def break_(lab: Lab, name: str, node: str | None) -> Broken:
    """Pause all agents and put a fault on a node. Raises TweedError; what was done until then, `heal` undoes."""
    fault = find(name)
    if node is not None:
        lab.node(node)
    with registry.locked(lab.name):
        earlier = read(lab)
        cluster.pause(lab, None)
        try:
            seen = scene(lab, node, *overlay(lab))
            plan = fault.plan(seen)
        except TweedError:
            if not earlier:
                cluster.pause(lab, None, resume=True)
            raise
        pods = [f"{side.node}/{side.pod.name}" for side in (seen.here, seen.peer) if side.pod is not None]
        src, dst = reversed(pods) if plan.arriving else pods
        broken = Broken(name, seen.here.node, seen.peer.node, src, dst, plan.do, plan.undo)
        write(lab, [*earlier, broken])
        for deed in plan.do:
            if problem := carry_out(lab, deed):
                raise TweedError(f"{name} on {seen.here.node}: {deed.text}: {problem}; `tweed lab heal` undoes what was done")
    return broken


def heal(lab: Lab) -> tuple[list[Broken], list[str]]:
    """Undo every fault, the last first, and let all agents go on. Returns the faults and a line for each command that failed."""
    with registry.locked(lab.name):
        broken = read(lab)
        answers = [(deed, carry_out(lab, deed)) for each in reversed(broken) for deed in each.undo]
        problems = [f"{deed.where}: {deed.text}: {said}" for deed, said in answers if said and not any(word in said for word in MENDED)]
        path(lab).unlink(missing_ok=True)
        cluster.pause(lab, None, resume=True)
    return broken, problems


def overlay(lab: Lab) -> tuple[int, Prefix, dict[str, Prefix], str]:
    """Family (IPv4 where it is on), cluster network, every node's subnet, and the VTEP device's name, as the agents say."""
    said = {node.name: agents.status(node) for node in lab.nodes}
    if silent := [name for name, document in said.items() if document is None]:
        raise AgentError(f"the agent of {silent[0]} does not answer: look at tweed lab logs {silent[0]}")
    documents = {name: document for name, document in said.items() if document is not None}
    first = next(iter(documents.values()))
    network = Prefix.parse(first["network"]["networks"][0])
    key = "subnet" if network.family == 4 else "subnet6"
    if lacking := [name for name, document in documents.items() if not document[key]]:
        raise TweedError(f"{lacking[0]} has no subnet yet: {documents[lacking[0]]['reason']}")
    if not first["devices"]:
        raise UsageError(f"lab {lab.name} has the backend {first['network']['backend']}: faults are those of vxlan")
    return network.family, network, {name: Prefix.parse(document[key]).network for name, document in documents.items()}, first["devices"][0]["name"]


def carry_out(lab: Lab, deed: Deed) -> str:
    """Do one thing where it belongs. What went wrong, in the tool's words; "" when nothing did."""
    try:
        done = subprocess.run(
            cluster.command_in(lab, deed.where, deed.words(lab.store_flags)),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=agents.environment(os.environ),
        )
    except subprocess.TimeoutExpired:
        return f"not done within {COMMAND_S:g} s"
    return "" if done.returncode == 0 else " ".join((done.stderr.strip() or f"exit {done.returncode}").split())


def path(lab: Lab) -> Path:
    return lab.directory / "faults.json"


def read(lab: Lab) -> list[Broken]:
    """The faults that are in the lab, in the order in which they came."""
    try:
        return msgspec.json.decode(path(lab).read_bytes(), type=list[Broken])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        raise TweedError(f"{path(lab)} cannot be read: {error}; take the lab down (tweed lab down --name {lab.name}) and up again") from None


def write(lab: Lab, broken: list[Broken]) -> None:
    write_atomic(path(lab), msgspec.json.format(msgspec.json.encode(broken), indent=1).decode(), 0o600)
