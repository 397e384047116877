"""A lab's leases in the annotations of Nodes, on a stand-in for the Kubernetes API server at the gateway's address in the lab's `world`.

The lab plays kubelet and kube-controller-manager: there is a Node for each machine, and it has pod CIDRs. The agents have a kubeconfig
with one token for all, which may do what the role in deploy/kubernetes allows, and no more; with `kube/admin` one may do everything.
"""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address
from tweed.errors import TweedError
from tweed.lab.agents import environment
from tweed.lab.registry import Lab
from tweed.lab.topology import Topology
from tweed.lab.wiring import WORLD
from tweed.plan.subnets import choose
from tweed.wire.flannel import parse_network

PORT = 6443
START_S = 30.0
RULES = (("get", "nodes"), ("list", "nodes"), ("watch", "nodes"), ("patch", "nodes/status"))


def check() -> None:
    """The stand-in is ours."""


def prepare(lab: Lab, topology: Topology) -> tuple[str, ...]:
    directory = lab.directory / "kube"
    directory.mkdir()
    host = format_address(topology.gateway)
    config = directory / "net-conf.json"
    config.write_text(topology.config)
    tokens: dict[str, Sequence[tuple[str, str]]] = {}
    for name, rules in (("kubeconfig", RULES), ("admin", (("*", "*"),))):
        token = secrets.token_hex(16)
        tokens[token] = rules
        (directory / name).write_bytes(access(f"http://{host}:{PORT}", token))
    start(lab, host, {"tokens": tokens, "nodes": nodes(topology)})
    return "--store=kube", f"--kubeconfig-file={directory / 'kubeconfig'}", f"--net-config-path={config}"


def access(server: str, token: str) -> bytes:
    """A kubeconfig, in JSON."""
    context = {"cluster": "lab", "user": "lab"}
    return msgspec.json.encode(
        {
            "kind": "Config",
            "apiVersion": "v1",
            "clusters": [{"name": "lab", "cluster": {"server": server}}],
            "users": [{"name": "lab", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": context}],
            "current-context": "lab",
        }
    )


def nodes(topology: Topology) -> list[dict[str, Any]]:
    """A Node for each machine: the subnets that are reserved for it, else the first free ones."""
    network = parse_network(topology.config)
    taken: list[Prefix] = [subnet for node in topology.nodes for subnet in (node.subnet, node.subnet6) if subnet is not None]
    made = []
    for node in topology.nodes:
        subnets = [subnet for subnet in (node.subnet, node.subnet6) if subnet is not None]
        if not subnets:
            subnets = [subnet for subnet in choose(network, taken, None, lambda _: 0) if subnet is not None]
            taken += subnets
        cidrs = [str(subnet) for subnet in subnets]
        made.append({"metadata": {"name": node.name}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}})
    return made


def start(lab: Lab, host: str, content: dict[str, Any]) -> None:
    """In a session of its own, as the agents. Returns when it listens."""
    log = lab.directory / "kube" / "log"
    command = ["nsenter", f"--net=/run/netns/{lab.name}-{WORLD}", "--", sys.executable, "-m", "tweed.lab.kubeserver", host, str(PORT)]
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment(os.environ), start_new_session=True)
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        process.stdin.write(msgspec.json.encode(content))
        process.stdin.close()
        if not select.select([process.stdout], [], [], START_S)[0] or not process.stdout.readline():
            lines = log.read_text(errors="replace").strip().splitlines()
            raise TweedError(f"the lab's API server does not listen on {host}:{PORT}: {lines[-1] if lines else 'it said nothing'}")
