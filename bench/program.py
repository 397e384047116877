"""10,000 leases into an empty kernel, and a look at them when nothing changed.

Ours: the agent's own `Dataplane.look()`: dumps, wanted rows, difference, encoding, sending, answers. The floor: the same messages,
packed beforehand, sent by one loop that waits until the kernel is done. The floor of a look: the same dumps, unread.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from msgspec.structs import replace

from bench.common import LENGTHS, NETWORKS, NODES, VNI, Node, Sample, circumstances, lease, nodes, ratio, spread, table, timed
from tweed.addr import Prefix
from tweed.agent.dataplane import Dataplane
from tweed.kernel import links, netns
from tweed.kernel.netlink import BATCH, RECEIVE, Netlink, open_socket
from tweed.model import Changes, KernelState, Route, Vtep
from tweed.plan.diff import diff
from tweed.plan.rows import lease_rows
from tweed.wire import netlink as wire
from tweed.wire import rtnl

LEASES, ROUNDS = 10_000, 9


def main() -> None:
    with circumstances(f"{LEASES:,} leases into an empty kernel, median (least … most) of {ROUNDS} rounds"):
        for family in (4, 6):
            with nodes(1) as (node,):
                Bench(node, family).run()


class Bench:
    """One VTEP device of one family, emptied before each round by deleting it: the kernel answers once all rows are gone."""

    def __init__(self, node: Node, family: int) -> None:
        network = NETWORKS[family]
        self.node, self.family, self.nl = node, family, Netlink(node.fd)
        self.name = f"flannel.{VNI}" if family == 4 else f"flannel-v6.{VNI}"
        self.dataplane = Dataplane(self.nl)
        own = Prefix(network.host(60_000 << network.bits - LENGTHS[family]), network.bits)
        self.dataplane.vteps = (Vtep(self.name, VNI, 8472, NODES[family].host(1), "ens33", bytes.fromhex("0e0000000001"), 1400, own),)
        self.dataplane.networks = (network,)
        self.peers = {each.key: each for each in (lease(number, family) for number in range(LEASES))}
        self.changes = diff(lease_rows(self.peers.values(), self.dataplane.devices), KernelState())

    def run(self) -> None:
        floor, ours, dumps, look, one = ([] for _ in range(5))  # type: tuple[list[Sample], ...]
        for _ in range(ROUNDS):
            self.empty()
            floor.append(self.send_packed(self.changes))
            self.empty()
            self.dataplane.peers = self.peers
            ours.append(timed(self.program))
            dumps.append(timed(self.dump))
            look.append(timed(self.dataplane.look))
            one.append(timed(self.one_more))
        print(f"IPv{self.family}")
        table(
            ("", "wall, ms", "CPU, ms", "CPU over its floor"),
            [
                line("the messages alone (floor)", floor, floor),
                line("look(): empty kernel to 10,000", ours, floor),
                line("the dumps alone (floor)", dumps, dumps),
                line("look(): nothing changed", look, dumps),
                line("change(): one lease among them", one, None),
            ],
        )
        if self.family == 4:
            self.empty()
            wall, cpu = self.send_packed(tuple(replace(c, row=replace(c.row, metric=0)) if isinstance(c.row, Route) else c for c in self.changes))
            print(f"the messages alone without the metric measure, once: {wall * 1000:.0f} ms wall, {cpu * 1000:.0f} ms CPU\n", flush=True)
        self.nl.close()

    def empty(self) -> None:
        self.dataplane.peers = {}
        if links.link(self.nl, self.name) is not None:
            links.delete_link(self.nl, self.name)
        netns.run_in(self.node.fd, self.dataplane.look)  # inside: it makes the device, whose sysctls are files of the namespace

    def program(self) -> None:
        report = self.dataplane.look()
        assert len(report.changes) == len(self.changes) and not report.failures, report.failures[:1]

    def one_more(self) -> None:
        self.dataplane.change(self.peers | {"one": lease(LEASES, self.family)})

    def dump(self) -> None:
        """What look() asks of the kernel, without reading the answers."""
        link = links.link(self.nl, self.name)
        assert link is not None
        for question in (rtnl.dump_routes(self.family, 254, 0, 0), rtnl.dump_neighbours(self.family, link.index), rtnl.dump_fdb(link.index, False)):
            self.nl.dump(question)

    def send_packed(self, changes: Changes) -> Sample:
        """Seconds to send all changes, packed beforehand."""
        link = links.link(self.nl, self.name)
        assert link is not None
        messages = [rtnl.encode(change, {self.name: link.index}) for change in changes]
        fence = wire.message(wire.NOOP, wire.REQUEST | wire.ACK, b"")
        batches = [b"".join([*messages[at : at + BATCH], fence]) for at in range(0, len(messages), BATCH)]
        with open_socket(self.node.fd) as opened:
            opened.setblocking(True)
            return timed(lambda: send_all(opened, batches))


def send_all(opened: socket.socket, batches: Sequence[bytes]) -> None:
    """One send and one answer each: that of the fence, since nothing is refused."""
    for batch in batches:
        opened.send(batch)
        answer = opened.recv(RECEIVE)
        code, text = wire.read_error(answer, 16, len(answer), wire.HEADER.unpack_from(answer)[2])
        assert code == 0, f"the kernel refused a message: {text or code}"


def line(name: str, samples: Sequence[Sample], floor: Sequence[Sample] | None) -> tuple[str, str, str, str]:
    wall, cpu = [s.wall for s in samples], [s.cpu for s in samples]
    return name, spread(wall, 1000), spread(cpu, 1000), ratio(cpu, [s.cpu for s in floor]) if floor else ""


if __name__ == "__main__":
    main()
