"""The agents of a lab's nodes: started in their namespaces, waited for until every node knows every other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

import tweed
from tweed.agent.client import AgentError, call
from tweed.config import OPTIONS
from tweed.errors import TweedError
from tweed.lab.processes import started
from tweed.lab.registry import Lab, Node
from tweed.lab.topology import UNDERLAY_DEVICE

READY_S = 60.0  # without any sign of progress of any agent
POLL_S = 0.05
TELL_EVERY = 20  # agents


def command(lab: Lab, node: Node) -> list[str]:
    """The agent's command line, as it can be typed. `nsenter`, since `ip netns exec` would hide cgroups and remount /sys."""
    return [
        *("nsenter", f"--net=/run/netns/{node.netns}", "--", sys.executable, "-m", "tweed", "agent"),
        *flags(lab, node),
    ]


def flags(lab: Lab, node: Node) -> list[str]:
    """The agent's own flags, which `tweed cleanup` in the node's namespace needs too."""
    return [
        f"--config={os.devnull}",  # this machine's own settings file is not meant
        *lab.store_flags,
        f"--node-name={node.name}",
        f"--iface={UNDERLAY_DEVICE}",
        f"--run-dir={node.socket.parent}",
        f"--state-dir={node.directory / 'state'}",
        f"--subnet-file={node.directory / 'subnet.env'}",
        "--ip-masq",
    ]


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Ours without settings that would reach the agent, and with this very tweed to be imported wherever it runs."""
    source = str(Path(tweed.__file__).parent.parent)
    settings = {prefix + option.name.upper().replace("-", "_") for option in OPTIONS for prefix in ("TWEED_", "FLANNELD_")} | {"NODE_NAME", "TWEED_CONFIG"}
    return {key: value for key, value in given.items() if key not in settings} | {
        "PYTHONPATH": os.pathsep.join(filter(None, (source, given.get("PYTHONPATH"))))
    }


def start(lab: Lab, node: Node) -> subprocess.Popen[bytes]:
    """Start the agent in a session of its own, so that neither Ctrl-C nor the end of the terminal reaches it."""
    node.directory.mkdir(parents=True, exist_ok=True)
    with node.log.open("ab") as log:
        return subprocess.Popen(
            command(lab, node),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=node.directory,
            env=environment(os.environ),
            start_new_session=True,
        )


def last_words(node: Node) -> str:
    """The last line of an agent's log."""
    lines = node.log.read_text(errors="replace").strip().splitlines() if node.log.exists() else []
    return lines[-1] if lines else "it said nothing"


def status(node: Node) -> dict[str, Any] | None:
    """The agent's own document, None while it does not answer."""
    try:
        document: dict[str, Any] = call(node.socket, "GET", "/v1/status")
    except AgentError:
        return None
    return document


def progress(node: Node) -> int:
    """How far an agent has come: 0 nothing, 1 it answers, 2 it is ready, and one more for every peer that it has programmed."""
    if not node.socket.exists():
        return 0
    try:
        call(node.socket, "GET", "/readyz")  # cheap, unlike the whole document
    except AgentError:
        return 1
    document = status(node)
    return 2 + sum(peer["state"] == "programmed" for peer in document["peers"]) if document is not None else 1


def start_all(lab: Lab, say: Callable[[str], None]) -> tuple[Node, ...]:
    """Start all agents at once and wait until each has programmed every other node. Returns the nodes with pids."""
    processes = {node.name: start(lab, node) for node in lab.nodes}
    nodes = tuple(msgspec.structs.replace(node, pid=processes[node.name].pid, started=started(processes[node.name].pid)) for node in lab.nodes)
    come = dict.fromkeys(processes, 0)
    goal = 2 + len(nodes) - 1
    deadline = time.monotonic() + READY_S
    told = 0
    while waiting := [node for node in nodes if come[node.name] < goal]:
        for node in waiting:
            if (code := processes[node.name].poll()) is not None:
                raise TweedError(f"the agent of {node.name} ended at its start (exit {code}): {last_words(node)}")
            if (now := progress(node)) > come[node.name]:
                come[node.name] = now
                deadline = time.monotonic() + READY_S
        if time.monotonic() > deadline:
            behind = min(waiting, key=lambda node: come[node.name])
            raise TweedError(f"the agent of {behind.name} is not ready, and nothing has moved for {READY_S:g} s: {last_words(behind)}")
        answering = sum(map(bool, come.values()))
        if answering // TELL_EVERY > told // TELL_EVERY:
            say(f"  {answering} of {len(nodes)} agents answer")
            told = answering
        time.sleep(POLL_S * (1 + len(waiting) / 10))  # asking must not be what keeps them busy
    return nodes
