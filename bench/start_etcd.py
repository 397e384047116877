"""From starting the agent's process, with so many leases in etcd, until it says that it is ready: as `bench.start`, whose floor has gRPC in it here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.common import Node, nodes
from bench.etcd import FLAGS, etcd
from bench.start import compare


@contextlib.contextmanager
def filled(count: int) -> Iterator[tuple[Node, list[str]]]:
    with nodes(1) as (node,), etcd(node) as server:
        server.ask(f"fill 0 {count}")
        yield node, [*FLAGS]


if __name__ == "__main__":
    compare("Process start to ready on etcd", "tweed.commands.agent, tweed.agent.main, tweed.stores.etcd.store", filled)
