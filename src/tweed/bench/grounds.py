"""Where a bench measures: two namespaces and an address for each way of carrying packets, all up at once so that rounds can alternate."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence

import msgspec

from tweed.errors import TweedError, UsageError
from tweed.kernel import netns
from tweed.lab import agents, cluster, registry, topology
from tweed.plan.backend import SUPPORTED

LIMIT = "bare"
# The first that was measured is what the others are compared with: the plain user-space way, else the usual one.
BASELINES = ("udp-naive", "vxlan")
BACKENDS = {
    LIMIT: "host-gw",
    "host-gw": "host-gw",
    "vxlan": "vxlan",
    "udp-naive": 'udp:{"DataPath": "naive"}',
    "udp-numpy": 'udp:{"DataPath": "numpy"}',
    "udp-fast": 'udp:{"DataPath": "fast"}',
}
FOREIGN = "against"


class Ground(msgspec.Struct, frozen=True):
    """One way: packets from the namespace `client` to `address` in the namespace `server`. `lab`: the lab that carries them, None for somebody else's."""

    name: str
    client: str
    server: str
    address: str
    lab: registry.Lab | None = None


def known() -> tuple[str, ...]:
    """The ways that this tweed can measure."""
    return tuple(name for name, backend in BACKENDS.items() if backend.partition(":")[0] in SUPPORTED)


def check(names: Sequence[str]) -> None:
    """Raises UsageError for a way that there is none of."""
    for name in names:
        if name not in known():
            raise UsageError(f"--modes {name}: choose from {', '.join(known())}")


def check_data_path(name: str, lab: registry.Lab) -> None:
    """Raises TweedError where a data path fell back: it would be measured under another's name."""
    for node in lab.nodes:
        forwarding = (agents.status(node) or {}).get("forwarding")
        if forwarding is not None and name != f"udp-{forwarding['data_path']}":
            others = ",".join(other for other in known() if other != name)
            raise TweedError(f"{name}: {'; '.join(forwarding['notes'])}; or leave it out: --modes {others}")


@contextlib.contextmanager
def grounds(names: Sequence[str], say: Callable[[str], None], foreign: tuple[str, str, str] | None = None) -> Iterator[list[Ground]]:
    """Labs of two nodes with a pod each, one per way; they are gone afterwards, whatever happens. `foreign`: namespaces and address of somebody else's."""
    check(names)
    others = [_foreign(*foreign)] if foreign is not None else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.endings_raise())
        labs: dict[str, registry.Lab] = {}
        made: list[Ground] = []
        for name in names:
            backend = BACKENDS[name]
            if backend not in labs:
                label = f"b{os.getpid()}x{len(labs)}"[:12]
                say(f"bringing up a lab for {backend}")
                labs[backend] = cluster.up(label, topology.with_backend(topology.generic(2, 1), backend), lambda _: None)
                stack.callback(cluster.down, label, lambda _: None)
                check_data_path(name, labs[backend])
            lab = labs[backend]
            here, there = lab.nodes
            if name == LIMIT:
                made.append(Ground(name, here.netns, there.netns, there.public_ip, lab))
            else:
                made.append(Ground(name, here.pods[0].netns, there.pods[0].netns, there.pods[0].ips[0], lab))
        yield [*made, *others]


def _foreign(client: str, server: str, address: str) -> Ground:
    for name in (client, server):
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name not in netns.names():
            raise TweedError(f"--against: there is no network namespace {name}: ip netns list")
    if not re.fullmatch(r"[0-9a-fA-F:.]+", address):
        raise UsageError(f"--against: {address!r} is not an address")
    return Ground(FOREIGN, client, server, address)
