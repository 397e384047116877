"""Whole labs: up, down, status, and what is asked of their agents. Whatever ends `up` before it is done, nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from tweed.addr import format_address
from tweed.agent.client import call
from tweed.errors import TweedError
from tweed.kernel import netns
from tweed.lab import agents, processes, registry, stores, wiring
from tweed.lab.registry import Lab, Node, Pod
from tweed.lab.topology import Node as Machine
from tweed.lab.topology import Topology, check_name
from tweed.plan.backend import check_supported
from tweed.wire.flannel import parse_network

Say = Callable[[str], None]
SWEEPS = 3  # a process that is ending may just have started another
ENDINGS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def up(name: str, topology: Topology, say: Say, store: str = "sqlite") -> Lab:
    """Bring a whole lab up, its leases in a store of this kind. `say` gets a line per step.

    Raises TweedError; then, and when it is interrupted, all is removed again.
    """
    check_name("--name", name)
    check_supported(parse_network(topology.config))
    check_root()
    kind = stores.kind(store)
    kind.check()
    with registry.locked(name), endings_raise():
        if name in registry.names():
            lab = registry.read(name)
            if lab is not None and lab.up:
                raise TweedError(f"lab {name} is up already: take it down with `tweed lab down --name {name}`, or choose another --name")
            say(f"removing what an interrupted start of lab {name} left")
            remove(name)
        spaces = wiring.namespaces(name, topology)
        wiring.check_free(spaces)
        try:
            return build(name, topology, spaces, kind, say)
        except BaseException:
            with endings_wait():
                say("removing what was made")
                remove(name)
            raise


def build(name: str, topology: Topology, spaces: Sequence[str], kind: stores.Kind, say: Say) -> Lab:
    clock = Clock(say)
    (registry.DIRECTORY / name).mkdir(mode=0o700)
    registry.write_namespaces(name, dict.fromkeys(spaces, 0))
    for space in spaces:
        netns.create(space)
    inodes = {space: wiring.inode(space) for space in spaces}
    registry.write_namespaces(name, inodes)
    wiring.wire(name, topology)
    clock.tell(f"{len(spaces)} namespaces joined by the underlay {topology.underlay}{f' and {topology.underlay6}' if topology.underlay6 else ''}")
    lab = Lab(name, tuple(node_entry(name, node, inodes) for node in topology.nodes))
    registry.write(lab)
    lab = msgspec.structs.replace(lab, store_flags=kind.prepare(lab, topology))
    registry.write(lab)
    clock.tell("network configuration and reservations stored")
    lab = msgspec.structs.replace(lab, nodes=agents.start_all(lab, say))
    registry.write(lab)
    clock.tell(f"{len(lab.nodes)} agents ready, each with a route to every other node")
    lab = msgspec.structs.replace(lab, nodes=tuple(attach_pods(node) for node in lab.nodes), up=True)
    registry.write(lab)
    clock.tell(f"{sum(len(node.pods) for node in topology.nodes)} pods attached")
    return lab


class Clock:
    """Tells each step with the seconds that it took."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.last = time.monotonic()

    def tell(self, text: str) -> None:
        now = time.monotonic()
        self.say(f"{text} ({now - self.last:.1f} s)")
        self.last = now


def node_entry(lab: str, node: Machine, inodes: dict[str, int]) -> Node:
    space = f"{lab}-{node.name}"
    pods = [Pod(pod, f"{space}-{pod}") for pod in node.pods]
    if node.outside is not None:
        pods.append(Pod(node.outside.container, f"{space}-{node.outside.container}", (format_address(node.outside.container_address.address),), outside=True))
    return Node(
        name=node.name,
        netns=space,
        inode=inodes[space],
        home=str(registry.DIRECTORY / lab / "nodes" / node.name),
        public_ip=format_address(node.address),
        public_ip6=format_address(node.address6) if node.address6 else None,
        pods=tuple(pods),
    )


def attach_pods(node: Node) -> Node:
    """Have the node's agent attach its pods, as a container runtime would."""
    pods = []
    for pod in node.pods:
        if not pod.outside:
            request = {"container_id": pod.netns, "ifname": "eth0", "netns": f"/run/netns/{pod.netns}"}
            answer = call(node.socket, "POST", "/v1/attachments", request)
            pod = msgspec.structs.replace(pod, ips=tuple(address.partition("/")[0] for address in answer["addresses"]))
        pods.append(pod)
    return msgspec.structs.replace(node, pods=tuple(pods))


# ---- down -------------------------------------------------------------------------------------------------------


def down(name: str, say: Say) -> None:
    """Take a lab down, whole or not. Raises TweedError when there is none, or something of it cannot be removed."""
    check_name("--name", name)
    check_root()
    with registry.locked(name), endings_wait():
        if name not in registry.names():
            raise TweedError(f"no lab {name} is up")
        count = len(registry.read_namespaces(name))
        remove(name)
        say(f"lab {name} is down: {count} namespaces removed")


def remove(name: str) -> None:
    """End the lab's processes, delete its namespaces and its directory, in this order; each is done as far as it exists."""
    spaces = registry.read_namespaces(name)
    present = {space: inode for space in spaces if (inode := wiring.inode(space)) != 0}
    ours = {inode for space, inode in present.items() if spaces[space] in (0, inode)}
    with contextlib.suppress(TweedError):  # a registry that cannot be read is no reason to keep the lab: the namespaces say who runs in them
        lab = registry.read(name)
        processes.end((node.pid, node.started) for node in (lab.nodes if lab is not None else ()) if node.pid)
    for _ in range(SWEEPS):
        if not processes.inside(ours):
            break
        if stubborn := processes.end((), ours):
            raise TweedError(f"process {stubborn[0]} in a namespace of lab {name} does not end even when killed: look at /proc/{stubborn[0]}/stack")
    foreign = wiring.remove(spaces)
    registry.forget(name)
    if foreign:
        raise TweedError(f"network namespace {foreign[0]} is not the one that lab {name} made: left alone")


# ---- asking -----------------------------------------------------------------------------------------------------


def status(lab: Lab) -> dict[str, Any]:
    """The contract of `lab status --json`: what each agent says of itself now; null where it says nothing, or a family is off."""
    return {"name": lab.name, "nodes": [node_status(node) for node in lab.nodes]}


def node_status(node: Node) -> dict[str, Any]:
    said = agents.status(node) or {}
    return {
        "name": node.name,
        "netns": node.netns,
        "agent_pid": said.get("pid"),
        "public_ip": node.public_ip,
        "public_ip6": node.public_ip6,
        **{key: said.get(key) for key in ("subnet", "subnet6", "vtep_mac", "vtep_mac6")},
        "pods": [{"name": pod.name, "netns": pod.netns, "ips": list(pod.ips)} for pod in node.pods if not pod.outside],
    }


def pause(lab: Lab, name: str | None, *, resume: bool = False) -> list[str]:
    """Have one agent, or all, change nothing any more, or go on. Returns the nodes' names. Raises AgentError."""
    nodes = lab.nodes if name is None else (lab.node(name),)
    for node in nodes:
        call(node.socket, "POST", "/v1/resume" if resume else "/v1/pause")
    return [node.name for node in nodes]


def command_in(lab: Lab, where: str, words: Sequence[str]) -> list[str]:
    """The command line that runs `words` in a node, pod, `world` or `underlay`: mounts stay as they are, unlike with `ip netns exec`."""
    return ["nsenter", f"--net=/run/netns/{lab.netns(where)}", "--", *words]


# ---- signals ----------------------------------------------------------------------------------------------------


def check_root() -> None:
    if os.geteuid() != 0:
        raise TweedError("a lab needs root: it makes network namespaces and devices")


@contextlib.contextmanager
def endings_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that what it made is removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ENDINGS - {signal.SIGINT}}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def endings_wait() -> Iterator[None]:
    """Signals that would end the block halfway arrive after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
