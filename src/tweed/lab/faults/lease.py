"""Publish another VTEP MAC in the lease of a subnet. As a program, for stores that only the lab can reach: SUBNET MAC, then the store's FLAGS…"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from tweed.addr import Prefix, parse_mac
from tweed.config import Settings, load
from tweed.errors import StoreError, TweedError
from tweed.model import Endpoint
from tweed.stores import open_store


async def set_mac(settings: Settings, subnet: Prefix, mac: bytes) -> None:
    """Raises StoreError where there is no such lease, or nobody's."""

    def changed(endpoint: Endpoint | None) -> Endpoint | None:
        return msgspec.structs.replace(endpoint, mac=mac) if endpoint is not None and endpoint.subnet == subnet else endpoint

    store = open_store(settings)
    try:
        for record in (await store.snapshot()).records:
            if any(endpoint.subnet == subnet for endpoint in record.lease.endpoints):
                if record.owner is None:
                    raise StoreError(f"the lease of {subnet} has no owner")
                lease = msgspec.structs.replace(record.lease, v4=changed(record.lease.v4), v6=changed(record.lease.v6))
                await store.update(record, lease, record.owner)
                return
        raise StoreError(f"there is no lease of {subnet}")
    finally:
        await store.close()


def main() -> None:
    subnet, mac, *flags = sys.argv[1:]
    try:
        asyncio.run(set_mac(load(flags, {}, "lab")[0], Prefix.parse(subnet), parse_mac(mac)))
    except TweedError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
