"""What a lab consists of, as values: the seed's cluster, N alike nodes, or a file. Pure.

A topology file is TOML. Only `node` with `name` and `address` is needed; unknown keys are errors:

    underlay = "192.168.2.0/24"         # what joins the nodes
    gateway = "192.168.2.1"             # of the underlay, played by `world`; else the last address
    underlay6 = "fd00:192:168:2::/64"   # dual stack, as with --ipv6

    [network]                           # flannel's net-conf.json
    Network = "10.244.0.0/16"
    Backend = { Type = "vxlan" }

    [[node]]
    name = "a"
    address = "192.168.2.10"
    address6 = "fd00:192:168:2::10"     # else the host number of `address`, its decimal digits read as hexadecimal
    subnet = "10.244.7.0/24"            # reserved for it; else the agent finds one
    subnet6 = "fd00:10:244:7::/64"
    pods = ["web", "db"]                # else pod1 .. podM of --pods-per-node
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address, parse_address
from tweed.errors import UsageError

NAME = re.compile(r"[a-z0-9]{1,12}")
RESERVED = ("underlay", "world")  # `L-underlay` and `L-world` are the lab's own namespaces
MAX_NODES = 250
MAX_PODS = 100
UNDERLAY_DEVICE = "ens33"
UNDERLAY_MTU = 1500
UNDERLAY = "192.168.2.0/24"
UNDERLAY6 = "fd00:192:168:2::/64"
NETWORK: dict[str, Any] = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
NETWORK6: dict[str, Any] = {"EnableIPv6": True, "IPv6Network": "fd00:10:244::/56"}
# What pods find behind the gateway: documentation addresses (RFC 5737, RFC 3849), on the loopback of `world`.
WORLD_ADDRESS = parse_address("203.0.113.1")
WORLD_ADDRESS6 = parse_address("2001:db8:ffff::1")


class Outside(msgspec.Struct, frozen=True):
    """A bridge with one container that is no part of the overlay, as Docker's default network makes it."""

    bridge: str
    address: Prefix
    mac: bytes
    port: str
    port_mac: bytes
    container: str
    container_address: Prefix


class Node(msgspec.Struct, frozen=True):
    """One machine: its underlay addresses, the subnets reserved for it (None: whatever it gets), its pods by name."""

    name: str
    address: bytes
    address6: bytes | None = None
    subnet: Prefix | None = None
    subnet6: Prefix | None = None
    pods: tuple[str, ...] = ()
    spare_device: str = ""
    outside: Outside | None = None

    @property
    def mac(self) -> bytes:
        """The MAC of its underlay device: known beforehand, since the underlay's neighbours are PERMANENT."""
        return underlay_mac(self.address)


class Topology(msgspec.Struct, frozen=True):
    """A whole lab. `config` is the network configuration as flannel's JSON text."""

    nodes: tuple[Node, ...]
    underlay: Prefix
    gateway: bytes
    config: str
    underlay6: Prefix | None = None
    gateway6: bytes | None = None

    @property
    def ipv6(self) -> bool:
        return self.underlay6 is not None


def underlay_mac(address: bytes) -> bytes:
    """A locally administered unicast MAC that shows the IPv4 address it belongs to: 52:54:c0:a8:02:c8 is 192.168.2.200."""
    return b"\x52\x54" + address


def check_name(what: str, name: str) -> str:
    """The name, or UsageError: names become parts of namespaces and devices, hence short and plain."""
    if NAME.fullmatch(name) is None:
        raise UsageError(f"{what} {name!r}: use 1 to 12 of a-z and 0-9")
    return name


def seed(pods_per_node: int | None = None, *, ipv6: bool = False) -> Topology:
    """The cluster of seed/vxlan-mode.md: three nodes, reserved subnets from 10.244.0.0/24 on, one Docker container aside."""
    docker0 = Outside(
        bridge="docker0",
        address=Prefix.parse("172.17.0.1/16"),
        mac=bytes.fromhex("0242700859b7"),
        port="veth375d278",
        port_mac=bytes.fromhex("a67d245730ef"),
        container="box1",
        container_address=Prefix.parse("172.17.0.2/16"),
    )
    nodes = tuple(
        Node(
            name=name,
            address=parse_address(f"192.168.2.{200 + i}"),
            subnet=Prefix.parse(f"10.244.{i}.0/24"),
            subnet6=Prefix.parse(f"fd00:10:244:{i}::/64") if ipv6 else None,
            pods=pod_names(2 if pods_per_node is None else pods_per_node),
            spare_device="ens34",
            outside=docker0 if name == "master" else None,
        )
        for i, name in enumerate(("master", "node1", "node2"))
    )
    network = {"Network": "10.244.0.0/16", "SubnetMin": "10.244.0.0", "Backend": {"Type": "vxlan"}}
    network6 = NETWORK6 | {"IPv6SubnetMin": "fd00:10:244::"} if ipv6 else {}
    return assemble("seed", nodes, network | network6, gateway="192.168.2.1", underlay6=UNDERLAY6 if ipv6 else None)


def generic(count: int, pods_per_node: int | None = None, *, ipv6: bool = False) -> Topology:
    """`node1` at 192.168.2.1 to `nodeN` at 192.168.2.N, the gateway at .254; two pods each, one each in labs of more than ten nodes."""
    if not 1 <= count <= MAX_NODES:
        raise UsageError(f"--nodes {count}: between 1 and {MAX_NODES}")
    pods = pod_names((2 if count <= 10 else 1) if pods_per_node is None else pods_per_node)
    nodes = tuple(Node(name=f"node{i}", address=parse_address(f"192.168.2.{i}"), pods=pods) for i in range(1, count + 1))
    return assemble(f"--nodes {count}", nodes, NETWORK | (NETWORK6 if ipv6 else {}), underlay6=UNDERLAY6 if ipv6 else None)


class NodeEntry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    address: str
    address6: str | None = None
    subnet: str | None = None
    subnet6: str | None = None
    pods: list[str] | None = None


class FileEntry(msgspec.Struct, forbid_unknown_fields=True):
    node: list[NodeEntry]
    underlay: str = UNDERLAY
    underlay6: str | None = None
    gateway: str | None = None
    network: dict[str, Any] = msgspec.field(default_factory=dict)


def parse(text: str, source: str, pods_per_node: int | None = None, *, ipv6: bool = False) -> Topology:
    """The topology that a file's text describes; `source` names the file in errors. Raises UsageError."""
    try:
        entry = msgspec.convert(tomllib.loads(text), FileEntry)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}: {error}".replace("`$.", "`")) from None
    underlay6 = entry.underlay6 or (UNDERLAY6 if ipv6 else None)
    pods = pod_names(2 if pods_per_node is None else pods_per_node)
    nodes = tuple(
        Node(
            name=node.name,
            address=address_of(node.address, f"{source}: node {node.name!r}: address"),
            address6=address_of(node.address6, f"{source}: node {node.name!r}: address6") if node.address6 else None,
            subnet=prefix_of(node.subnet, f"{source}: node {node.name!r}: subnet") if node.subnet else None,
            subnet6=prefix_of(node.subnet6, f"{source}: node {node.name!r}: subnet6") if node.subnet6 else None,
            pods=pods if node.pods is None else tuple(node.pods),
        )
        for node in entry.node
    )
    network = NETWORK | (NETWORK6 if underlay6 else {}) | entry.network
    return assemble(source, nodes, network, underlay=entry.underlay, underlay6=underlay6, gateway=entry.gateway)


def with_backend(topology: Topology, backend: str) -> Topology:
    """The same with another backend: `TYPE` or `TYPE:JSON`, as in `vxlan:{"DirectRouting": true}`. Raises UsageError."""
    kind, _, text = backend.partition(":")
    try:
        options = msgspec.json.decode(text, type=dict[str, Any]) if text else {}
    except msgspec.DecodeError as error:
        raise UsageError(f"--backend {backend}: what follows the colon is not a JSON object: {error}") from None
    if not kind:
        raise UsageError(f"--backend {backend}: a type is missing, as in `vxlan`")
    config = msgspec.json.decode(topology.config, type=dict[str, Any])
    config["Backend"] = {"Type": kind} | options
    return msgspec.structs.replace(topology, config=msgspec.json.encode(config).decode())


def pod_names(count: int) -> tuple[str, ...]:
    if not 0 <= count <= MAX_PODS:
        raise UsageError(f"--pods-per-node {count}: between 0 and {MAX_PODS}")
    return tuple(f"pod{i}" for i in range(1, count + 1))


def address_of(text: str, where: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def prefix_of(text: Any, where: str) -> Prefix:
    try:
        return Prefix.parse(str(text)).network
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def assemble(
    source: str, nodes: tuple[Node, ...], network: dict[str, Any], *, underlay: str = UNDERLAY, underlay6: str | None = None, gateway: str | None = None
) -> Topology:
    """Fill in what follows from the rest, and refuse what cannot work: every error names the source, the key and the value."""
    net = prefix_of(underlay, f"{source}: underlay")
    net6 = prefix_of(underlay6, f"{source}: underlay6") if underlay6 else None
    if net.family != 4 or not 8 <= net.length <= 29 or (net6 is not None and (net6.family != 6 or net6.length > 64)):
        raise UsageError(
            f"{source}: underlay {net}{f', underlay6 {net6}' if net6 else ''}: an IPv4 network between /8 and /29, and an IPv6 network of /64 or wider"
        )
    way_out = address_of(gateway, f"{source}: gateway") if gateway else net.host(net.step - 2)
    if net6 is not None:
        nodes = tuple(
            node if node.address6 else msgspec.structs.replace(node, address6=address6(net, net6, node.address, f"{source}: node {node.name!r}"))
            for node in nodes
        )
    topology = Topology(
        nodes=nodes,
        underlay=net,
        gateway=way_out,
        underlay6=net6,
        gateway6=address6(net, net6, way_out, f"{source}: gateway") if net6 else None,
        config=msgspec.json.encode(network).decode(),
    )
    check(source, topology, network)
    return topology


def address6(underlay: Prefix, underlay6: Prefix, address: bytes, where: str) -> bytes:
    """192.168.2.200 of 192.168.2.0/24 becomes fd00:192:168:2::200: the host number's decimal digits, read as hexadecimal."""
    if not underlay.contains(address):
        raise UsageError(f"{where}: {format_address(address)} is outside the underlay {underlay}")
    return underlay6.host(int(str(int.from_bytes(address, "big") - underlay.value), 16))


def check(source: str, topology: Topology, network: dict[str, Any]) -> None:
    if not topology.nodes or len(topology.nodes) > MAX_NODES:
        raise UsageError(f"{source}: {len(topology.nodes)} nodes: between 1 and {MAX_NODES}")
    clusters = [(key, prefix_of(network[key], f"{source}: network: {key}")) for key in ("Network", "IPv6Network") if key in network]
    for key, cluster in clusters:
        for what, underlay in (("underlay", topology.underlay), ("underlay6", topology.underlay6)):
            if underlay is not None and underlay.overlaps(cluster):
                raise UsageError(f"{source}: {what} {underlay} and network {key} {cluster} overlap: packets of the one would be taken for the other's")
    names: set[str] = set()
    taken: dict[bytes, str] = {topology.gateway: "the gateway"}
    if topology.gateway6 is not None:
        taken[topology.gateway6] = "the gateway"
    reserved: dict[Prefix, str] = {}
    check_host(f"{source}: gateway", topology.gateway, topology.underlay)
    for node in topology.nodes:
        where = f"{source}: node {node.name!r}"
        check_name(f"{source}: node", node.name)
        if node.name in RESERVED or node.name in names:
            raise UsageError(f"{where}: the name is {'the lab’s own' if node.name in RESERVED else 'used twice'}; choose another")
        names.add(node.name)
        check_host(f"{where}: address", node.address, topology.underlay)
        if node.address6 is not None:
            if topology.underlay6 is None:
                raise UsageError(f"{where}: address6 needs underlay6, or --ipv6")
            check_host(f"{where}: address6", node.address6, topology.underlay6)
        for address in filter(None, (node.address, node.address6)):
            if address in taken:
                raise UsageError(f"{where}: {format_address(address)} is {taken[address]}'s already")
            taken[address] = node.name
        for subnet in filter(None, (node.subnet, node.subnet6)):
            if not any(cluster.contains(subnet) for _, cluster in clusters):
                raise UsageError(f"{where}: subnet {subnet} is outside of {' and '.join(str(cluster) for _, cluster in clusters)}")
            for other, owner in reserved.items():
                if other.overlaps(subnet):
                    raise UsageError(f"{where}: subnet {subnet} overlaps {other} of node {owner!r}")
            reserved[subnet] = node.name
        for pod in node.pods:
            check_name(f"{where}: pod", pod)
        if len(set(node.pods)) < len(node.pods):
            raise UsageError(f"{where}: two pods of one name in {', '.join(node.pods)}")


def check_host(where: str, address: bytes, network: Prefix) -> None:
    """An address that a machine of the network can have: inside, and neither its first nor (IPv4) its last."""
    offset = int.from_bytes(address, "big") - network.value
    if not network.contains(address) or offset == 0 or (network.family == 4 and offset == network.step - 1):
        raise UsageError(f"{where} {format_address(address)}: not an address that a host of {network} can have")
