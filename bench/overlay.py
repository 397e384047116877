"""One VTEP device in a node's namespace: programmed by the agent's own data plane, or by messages that were packed beforehand."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from bench.common import LENGTHS, NETWORKS, NODES, VNI, Node, Sample, timed
from tweed.addr import Prefix
from tweed.agent.dataplane import Dataplane
from tweed.kernel import links, netns
from tweed.kernel.netlink import BATCH, RECEIVE, Netlink, open_socket
from tweed.model import Changes, KernelState, Lease, Vtep
from tweed.plan.backend import Backend
from tweed.plan.diff import diff
from tweed.plan.rows import lease_rows
from tweed.wire import netlink as wire
from tweed.wire import rtnl


class Overlay:
    """The data plane of one family in `node`."""

    def __init__(self, node: Node, family: int) -> None:
        network = NETWORKS[family]
        self.node, self.family, self.nl = node, family, Netlink(node.fd)
        self.name = f"flannel.{VNI}" if family == 4 else f"flannel-v6.{VNI}"
        self.dataplane = Dataplane(self.nl)
        own = Prefix(network.host(60_000 << network.bits - LENGTHS[family]), network.bits)
        vtep = Vtep(self.name, VNI, 8472, NODES[family].host(1), "ens33", bytes.fromhex("0e0000000001"), 1400, own)
        self.dataplane.backend = Backend("vxlan", "ens33", (family,), (vtep,))
        self.dataplane.networks = (network,)

    def empty(self) -> None:
        """The device without peers; made anew, since the kernel answers that only once all old rows are gone."""
        self.dataplane.peers = {}
        if links.link(self.nl, self.name) is not None:
            links.delete_link(self.nl, self.name)
        netns.run_in(self.node.fd, self.dataplane.look)  # inside: the device's sysctls are files of the namespace

    def changes(self, leases: Sequence[Lease]) -> Changes:
        """What puts these leases into an empty kernel."""
        return diff(lease_rows(leases, self.dataplane.backend.tunnels), KernelState())

    def dump(self) -> None:
        """What a look asks of the kernel, without reading the answers."""
        link = links.link(self.nl, self.name)
        assert link is not None
        for question in (rtnl.dump_routes(self.family, 254, 0, 0), rtnl.dump_neighbours(self.family, link.index), rtnl.dump_fdb(link.index, False)):
            self.nl.dump(question)

    def send_packed(self, changes: Changes) -> Sample:
        """Seconds to send these changes, packed beforehand, until the kernel is done."""
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
