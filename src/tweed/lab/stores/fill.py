"""Put a lab's network configuration and reservations into its store. As a program: FLAGS… are the store's, the topology comes as JSON."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from tweed.config import Settings, load
from tweed.errors import TweedError
from tweed.lab.topology import Topology
from tweed.model import Endpoint, Lease
from tweed.stores import open_store


async def fill(settings: Settings, topology: Topology) -> None:
    store = open_store(settings)
    try:
        await store.set_config(topology.config)
        for node in topology.nodes:
            v4 = Endpoint(node.subnet, node.address) if node.subnet is not None else None
            v6 = Endpoint(node.subnet6, node.address6) if node.subnet6 is not None else None
            if v4 is not None or v6 is not None:
                await store.create(Lease(v4, v6), None, None)
    finally:
        await store.close()


def main() -> None:
    try:
        asyncio.run(fill(load(sys.argv[1:], {}, "lab")[0], msgspec.json.decode(sys.stdin.buffer.read(), type=Topology)))
    except TweedError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
