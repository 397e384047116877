"""Programming and reading back N leases (one onlink route, one neighbour, one fdb entry each) in a namespace of its own.

    PYTHONPATH=src .venv/bin/python bench/netlink_rows.py [N] [ROUNDS]

The floor is the same messages packed beforehand and sent by one loop: what the kernel itself costs. Medians of interleaved rounds,
wall and CPU seconds. Reading back is set against the same dumps without decoding.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

from tweed.addr import Prefix
from tweed.kernel import links, netns, tables
from tweed.kernel.netlink import Netlink
from tweed.model import Change, Changes, FdbEntry, Neighbour, Route, Vtep
from tweed.wire import rtnl

DEVICE = "flannel.1"


def leases(number: int) -> Changes:
    rows: list[Change] = []
    for n in range(1, number + 1):
        base = ((10 << 24) + (n << 8)).to_bytes(4, "big")
        mac, host = b"\2\0" + base, (0xAC100000 + n).to_bytes(4, "big")
        route = Route(Prefix(base, 24), DEVICE, base, metric=1 + (n & 1023), onlink=True)
        rows += [Change("replace", row) for row in (FdbEntry(mac, DEVICE, host), Neighbour(base, DEVICE, mac), route)]
    return tuple(rows)


def fresh(nl: Netlink) -> None:
    """An empty device of flannel's kind."""
    links.delete_link(nl, DEVICE)
    local, mac, address = bytes([192, 0, 2, 1]), b"\2\0\0\0\0\1", Prefix.parse("9.0.0.0/32")
    links.create_vtep(nl, Vtep(DEVICE, 1, 8472, local, "lo", mac, 1450, address))
    links.set_link(nl, DEVICE, up=True)


def timed(function: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(number: int, rounds: int) -> None:
    name = f"tweedb-{os.getpid()}"
    netns.create(name)
    try:
        descriptor = netns.open_netns(name)
        with Netlink(descriptor) as nl:
            os.close(descriptor)
            links.set_link(nl, "lo", up=True)
            measure(nl, number, rounds)
    finally:
        netns.delete(name)


def measure(nl: Netlink, number: int, rounds: int) -> None:
    changes = leases(number)
    undo = tuple(Change("delete", change.row) for change in reversed(changes))
    times: dict[str, list[tuple[float, float]]] = {}

    def note(what: str, function: Callable[[], object]) -> None:
        times.setdefault(what, []).append(timed(function))

    for _ in range(rounds):
        fresh(nl)
        index = tables.indices(nl, [DEVICE])
        packed = [rtnl.encode(change, index) for change in changes]
        note("put, packed beforehand (floor)", lambda packed=packed: nl.send(packed))
        fresh(nl)
        index = tables.indices(nl, [DEVICE])
        note("encode only", lambda index=index: [rtnl.encode(change, index) for change in changes])
        note("put", lambda: tables.apply(nl, changes))
        for table, dump, read in (
            ("routes", rtnl.dump_routes(4, 254, index[DEVICE], 83), lambda: tables.routes(nl, 4, device=DEVICE, protocol=83)),
            ("neighbours", rtnl.dump_neighbours(4, index[DEVICE]), lambda: tables.neighbours(nl, DEVICE, 4)),
            ("fdb", rtnl.dump_fdb(index[DEVICE], False), lambda: tables.fdb(nl, DEVICE)),
        ):
            note(f"dump {table}, bytes only", lambda dump=dump: nl.dump(dump))
            note(f"read {table}", read)
            assert len(read()) == number
        note("delete", lambda: tables.apply(nl, undo))
    print(f"{number} leases, {rounds} rounds, median; Linux {os.uname().release}")
    medians = {what: tuple(statistics.median(column) for column in zip(*rows, strict=True)) for what, rows in times.items()}
    for what, (wall, cpu) in medians.items():
        print(f"{what:34} {wall * 1e3:8.1f} ms wall {cpu * 1e3:8.1f} ms cpu")
    put, floor = medians["put"], medians["put, packed beforehand (floor)"]
    print(f"put / floor: {put[0] / floor[0]:.2f} wall, {put[1] / floor[1]:.2f} cpu")


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:]]
    main(*arguments, *(10_000, 5)[len(arguments) :])
