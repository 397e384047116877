"""What the tests of the SQLite store do in other processes: `python sqlite_child.py WHAT PATH`, answers as JSON lines on stdout."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tweed.addr import Prefix
from tweed.errors import Conflict, StoreError
from tweed.model import Endpoint, Lease, Owner
from tweed.plan.subnets import choose
from tweed.stores import Snapshot
from tweed.stores.sqlite import SqliteStore
from tweed.wire.flannel import parse_network

NETWORK = parse_network('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
PROCESSES = 40


def say(value):
    print(json.dumps(value), flush=True)


async def claim(path, name):
    """Everybody wants the first free subnet, so everybody but one loses each time."""
    store = SqliteStore(path)
    while True:
        snapshot: Snapshot = await store.snapshot()
        subnet, _ = choose(NETWORK, [e.subnet for r in snapshot.records for e in r.lease.endpoints], None, lambda n: 0)
        try:
            record = await store.create(Lease(Endpoint(subnet)), Owner(name, "boot"))
        except Conflict:
            continue
        await store.close()
        return str(record.lease)


def race(path):
    """Forty processes make the file and claim a subnet in it, all at once."""
    start_read, start_write = os.pipe()
    answer_read, answer_write = os.pipe()
    children = []
    for number in range(PROCESSES):
        child = os.fork()
        if child == 0:
            os.close(start_write)
            os.read(start_read, 1)
            try:
                answer = asyncio.run(claim(path, f"node{number}"))
            except StoreError as error:
                answer = str(error)
            os.write(answer_write, answer.encode() + b"\n")
            os._exit(0)
        children.append(child)
    os.close(start_read)
    os.close(start_write)
    os.close(answer_write)
    with os.fdopen(answer_read) as answers:
        say(answers.read().split("\n")[:-1])
    for child in children:
        os.waitpid(child, 0)


def stuck(path):
    """Writes one lease, is half-way through the next, and stays there until it is killed."""
    store = SqliteStore(path)
    asyncio.run(store.create(Lease(Endpoint(Prefix.parse("10.244.1.0/24"))), Owner("child", "boot")))
    with store.database.writing("FULL") as connection:
        store.put(connection, Lease(Endpoint(Prefix.parse("10.244.2.0/24"))), Owner("child", "boot"), None, None)
        say("half-way")
        signal.pause()


def full(directory):
    """On a file system of 256 KiB that runs full, is given room again, and is then read-only. In a mount namespace of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", directory]
    subprocess.run(mount, check=True)
    store = SqliteStore(Path(directory) / "store.db")

    async def fill():
        kept = 0
        while True:
            await store.create(Lease(Endpoint(Prefix.parse(f"10.244.{kept}.0/24"))), Owner("x" * 2000, "boot"))
            kept += 1

    async def everything():
        try:
            await fill()
        except StoreError as error:
            before = await store.snapshot()
            say({"error": str(error), "type": type(error).__name__, "kept": len(before.records)})
        subprocess.run(["mount", "-o", "remount,size=8m", directory], check=True)
        await store.create(Lease(Endpoint(Prefix.parse("10.99.0.0/24"))), None)
        say({"kept": len((await store.snapshot()).records)})
        await store.close()
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        try:
            store_ro = SqliteStore(Path(directory) / "store.db")
            await store_ro.create(Lease(Endpoint(Prefix.parse("10.98.0.0/24"))), None)
        except StoreError as error:
            say({"error": str(error), "type": type(error).__name__})

    asyncio.run(everything())


def no_inotify(path):
    """Watches where the kernel grants no inotify instance at all. In a user namespace of its own."""
    Path("/proc/sys/user/max_inotify_instances").write_text("0")

    async def watch():
        store, other = SqliteStore(path), SqliteStore(path)
        snapshot = await store.snapshot()
        watching = asyncio.create_task(anext(aiter(store.watch(snapshot.revision))))
        await asyncio.sleep(0.2)
        say(store.warnings)
        await other.create(Lease(Endpoint(Prefix.parse("10.244.1.0/24"))), None)
        say([event.key for event in await asyncio.wait_for(watching, 20)])
        await store.close()
        await other.close()

    asyncio.run(watch())


if __name__ == "__main__":
    {"race": race, "stuck": stuck, "full": full, "no-inotify": no_inotify}[sys.argv[1]](sys.argv[2])
