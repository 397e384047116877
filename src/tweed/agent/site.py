"""Where this node is, read from the kernel at the moment it is asked for: its underlay, and what else the host has."""

from __future__ import annotations

import socket
from collections.abc import Collection

import msgspec

from tweed.addr import Prefix, format_address, parse_address
from tweed.agent import files
from tweed.agent.claim import Request
from tweed.config import Settings
from tweed.errors import UsageError
from tweed.kernel import links, tables
from tweed.kernel.netlink import Netlink
from tweed.model import Owner
from tweed.plan.device import TUN_DEVICE
from tweed.plan.docker import Bridge, bridge_problems
from tweed.plan.screen import Problem
from tweed.plan.underlay import Host, Underlay, Way, Wish, choose_underlay, keep_underlay, lost, not_demoted
from tweed.stores import Given
from tweed.wire.flannel import Network, device_name, host_overlaps

DOCKER = ("docker", "br-")  # its default bridge, and those of networks that users make
EVERYTHING = (Prefix.parse("0.0.0.0/0"), Prefix.parse("::/0"))


class Site:
    """This host, seen by an agent that serves `network`, with what the store prescribes for this node (`given`)."""

    def __init__(self, settings: Settings, network: Network, netlink: Netlink, given: Given | None = None) -> None:
        self.settings = settings
        self.given = given
        self.network = network
        self.netlink = netlink

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(f for f, on in ((4, self.network.enable_ipv4), (6, self.network.enable_ipv6)) if on)

    @property
    def _our_names(self) -> set[str]:
        """Devices that are ours in one mode or the other."""
        return {TUN_DEVICE, *(device_name(self.network.vni, family) for family in (4, 6))}

    def host(self) -> Host:
        """The host's devices, addresses and default routes without our own devices."""
        ours = self._our_names
        found = tuple(link for link in links.links(self.netlink) if link.name not in ours)
        addresses = tuple(a for a in tables.addresses(self.netlink) if a.device not in ours)
        defaults = tuple(r for everything in EVERYTHING for r in tables.routes(self.netlink, everything.family, inside=everything, exact=True))
        return Host(found, addresses, defaults)

    def underlay(self) -> Underlay:
        """The one that would be chosen. Raises NoUnderlay, UsageError, KernelError."""
        return self._underlay(self.host(), None)

    def follow(self, now: Underlay) -> tuple[Underlay, str]:
        """The underlay `now` while it lasts, else the one that would be chosen; and what is to be said of it, "" where nothing is. Raises as `underlay`."""
        host = self.host()
        underlay = self._underlay(host, now)
        return underlay, self.down(underlay.device) or lost(underlay, host)

    def _underlay(self, host: Host, now: Underlay | None) -> Underlay:
        s = self.settings
        wish = with_node_ip(Wish(self.families, s.iface, s.iface_regex, s.iface_can_reach, s.public_ip, s.public_ipv6, self.network.networks), self.given)
        if now is not None and (kept := keep_underlay(now, host, {a for a in (wish.public_ip, wish.public_ip6) if a is not None})) is not None:
            return kept
        chosen = choose_underlay(wish, msgspec.structs.replace(host, flags=tables.address_flags(self.netlink)), self._reach)
        return chosen if now is None else not_demoted(now, chosen)

    def down(self, device: str) -> str:
        """What is to be said of an underlay that carries nothing now, "" while it does."""
        link = links.link(self.netlink, device)
        if link is None or link.running:
            return ""
        return f"{device} is down, so no other node can be reached: {'it has no carrier' if link.up else f'ip link set {device} up'}"

    def _reach(self, address: bytes) -> Way:
        """The route, and the source by the kernel's own choice for a socket; nothing is sent. Raises KernelError where there is no way."""
        device = tables.lookup_route(self.netlink, address).device
        with socket.socket(socket.AF_INET if len(address) == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((format_address(address), 9))
            except OSError:  # a route without a source: the interface's addresses decide
                return Way(device)
            return Way(device, parse_address(probe.getsockname()[0]))

    def check_overlap(self, pods: Collection[str] = ()) -> None:
        """Refuse a cluster network that contains the host's own addresses; bridges on this node's own subnet are where its pods are.

        Docker's bridge on what looks like another node's subnet is from before the subnet changed: a problem to name, not to refuse.
        The same goes for `pods`, the bridges that we made ourselves: they keep it while a container has an address of it.
        """
        host = self.host()
        own: list[Prefix] = list(files.previous_subnet(self.settings.subnet_file).subnets)
        own += [address for name, address in self.container_bridges() if name.startswith(DOCKER) or name in pods]
        addresses = [(a.device, a.address) for a in host.addresses if not any(p.contains(a.address) for p in own)]
        if overlaps := host_overlaps(self.network, addresses, self._our_names):
            raise UsageError(overlaps[0])

    def container_bridges(self) -> list[Bridge]:
        """Bridges with an address of the cluster network whose prefix is no wider than a node's subnet."""
        found = [(row.device, row.address) for link in links.links(self.netlink, "bridge") for row in tables.addresses(self.netlink, link.name)]
        lengths = {r.network: r.subnet_len for family in self.families if (r := self.network.range(family)) is not None}
        return [
            (name, address) for name, address in found for network, length in lengths.items() if network.contains(address.address) and address.length >= length
        ]

    def bridge_problems(self, subnets: tuple[Prefix, ...], pods: Collection[str]) -> list[Problem]:
        """What is wrong with container bridges such as docker0, now that this node has these subnets, and pods on the bridges `pods`."""
        return bridge_problems(self.network.networks, subnets, pods, self.container_bridges())

    def request(self, owner: Owner, underlay: Underlay) -> Request:
        """Who asks for a lease."""
        public_ip, public_ip6 = published(underlay, self.given)
        devices = {family: links.link(self.netlink, device_name(self.network.vni, family)) for family in self.families}
        return Request(
            network=self.network,
            owner=owner,
            public_ip=public_ip,
            public_ip6=public_ip6,
            previous=files.previous_subnet(self.settings.subnet_file),
            local_macs={family: link.mac for family, link in devices.items() if link is not None},
            renew_margin_s=self.settings.renew_margin_s,
            given=self.given,
        )


def with_node_ip(wish: Wish, given: Given | None) -> Wish:
    """The wish, with the addresses that the store prescribes for this node in place of `--public-ip` and `--public-ipv6`."""
    if given is None:
        return wish
    said = ("annotation node-public-ip" if given.node_ip else wish.said[0], "annotation node-public-ipv6" if given.node_ip6 else wish.said[1])
    return msgspec.structs.replace(wish, public_ip=given.node_ip or wish.public_ip, public_ip6=given.node_ip6 or wish.public_ip6, said=said)


def published(underlay: Underlay, given: Given | None) -> tuple[bytes | None, bytes | None]:
    """The addresses that other nodes are told: the underlay's own, unless the store prescribes others (behind NAT)."""
    if given is None:
        return underlay.local, underlay.local6
    return given.public_ip or underlay.local, given.public_ip6 or underlay.local6
