"""Tables of nodes as values: what somebody pasted, what a bundle holds, what a kernel was asked for.

Every row keeps where it was read (`source`, "FILE:LINE") and its words (`text`). What a table does not say is None: never a default.

    Snapshot     nodes by name, leases, and the lines that could not be read
    Node         the tables of one network namespace: a machine's ("master") or a container's ("master/pod1")
    Shown        that a table was shown at all, and how much of it: only then does a missing row mean that there is none

Devices are named and not numbered, since tables that people paste name them. Route tables are text: "main", "local", "100".
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tweed.addr import MAC, Prefix, format_address, format_mac, parse_address, parse_mac
from tweed.errors import UsageError
from tweed.model import Lease

FORMAT = "tweed-bundle"
VERSION = 1

Table = Literal["link", "address", "rule", "route", "neighbour", "fdb", "port", "socket", "sysctl", "nft", "iptables", "lease", "nexthop", "vlan"]


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a row was read and its words, without the line's end."""

    source: str
    text: str


class VxlanAttributes(msgspec.Struct, frozen=True, kw_only=True):
    """`ip -d link` of a vxlan device. `group`: multicast group or default remote. `external`: its routes, not its fdb, name the remote (lwtunnel)."""

    vni: int | None = None
    port: int | None = None
    local: bytes | None = None
    group: bytes | None = None
    underlay: str | None = None
    learning: bool | None = None
    ttl: int | None = None
    checksum: bool | None = None
    gbp: bool | None = None
    external: bool | None = None
    df: str | None = None


class DeviceRow(Row, frozen=True, kw_only=True):
    """`ip link`. `kind` is "vxlan", "bridge", "veth", "tun" ... , "" where `-d` shows none (a physical device), None without `-d`.

    `up`: the administrator's UP; `running`: the carrier, LOWER_UP. `lower`: what follows the `@`: a device, or "if7" for an index elsewhere.
    """

    name: str
    index: int | None = None
    kind: str | None = None
    mac: bytes | None = None
    mtu: int | None = None
    up: bool | None = None
    running: bool | None = None
    point_to_point: bool | None = None
    master: str | None = None
    lower: str | None = None
    lower_netns: str | None = None
    vxlan: VxlanAttributes | None = None
    vlan_filtering: bool | None = None
    vlan_id: int | None = None


class AddressRow(Row, frozen=True, kw_only=True, gc=False):
    """`ip addr`. `peer`: the far end, or its network, of a point-to-point device."""

    device: str
    address: Prefix
    peer: Prefix | None = None
    scope: str | None = None
    flags: tuple[str, ...] = ()


class RuleRow(Row, frozen=True, kw_only=True):
    """`ip rule`. `action` is "lookup", "blackhole", "unreachable", "prohibit", "goto" or "nop"; `others`: selectors kept as words, not evaluated.

    `sport`, `dport`, `uid`: first and last of a range. `ipproto` is the number.
    """

    family: int
    priority: int
    action: str = "lookup"
    table: str | None = None
    goto: int | None = None
    src: Prefix | None = None
    dst: Prefix | None = None
    iif: str | None = None
    oif: str | None = None
    fwmark: int | None = None
    fwmask: int | None = None
    negated: bool = False
    suppress_length: int | None = None
    tos: int | None = None
    ipproto: int | None = None
    sport: tuple[int, int] | None = None
    dport: tuple[int, int] | None = None
    uid: tuple[int, int] | None = None
    others: tuple[str, ...] = ()


class NextHop(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One way of a route. `device` None: the row does not name one. `flags`: onlink, linkdown, dead, pervasive ..."""

    device: str | None = None
    gateway: bytes | None = None
    weight: int = 1
    flags: tuple[str, ...] = ()
    source: str | None = None
    text: str | None = None


class RouteRow(Row, frozen=True, kw_only=True, gc=False):
    """`ip route`, all next hops of it. `type` is "unicast", "local", "blackhole" ... `metric` None: none is shown.

    `protocol` and `scope` None: not shown, which iproute2 does for boot and global. `nexthop_id`: the hops are in a table that is not here.
    """

    dst: Prefix
    hops: tuple[NextHop, ...] = ()
    type: str = "unicast"
    table: str = "main"
    metric: int | None = None
    protocol: str | None = None
    scope: str | None = None
    src: bytes | None = None
    mtu: int | None = None
    tos: int | None = None
    nexthop_id: int | None = None
    encap: str | None = None


class NexthopRow(Row, frozen=True, kw_only=True, gc=False):
    """`ip nexthop`: an object that routes and fdb rows name. `group`: the ids of others with their weights; `blackhole` has no hop."""

    id: int
    hop: NextHop | None = None
    group: tuple[tuple[int, int], ...] = ()
    blackhole: bool = False


class VlanRow(Row, frozen=True, kw_only=True, gc=False):
    """`bridge vlan`: VLANs `first` to `last` of a port, or of the bridge itself. `pvid`: what comes in without a tag is of this one."""

    device: str
    first: int
    last: int
    pvid: bool = False
    untagged: bool = False


class NeighbourRow(Row, frozen=True, kw_only=True, gc=False):
    """`ip neigh`. `device` None: neither row nor command name it. `state`: PERMANENT, STALE, FAILED ..., None where it is not shown."""

    address: bytes
    device: str | None = None
    mac: bytes | None = None
    state: str | None = None
    flags: tuple[str, ...] = ()


class FdbRow(Row, frozen=True, kw_only=True, gc=False):
    """`bridge fdb`. `master`: the bridge whose table it is in; `own`: it is in the device's own (`self`). An old iproute2 tells neither."""

    mac: bytes
    device: str
    dst: bytes | None = None
    vlan: int | None = None
    port: int | None = None
    vni: int | None = None
    src_vni: int | None = None
    via: str | None = None
    nexthop_id: int | None = None
    master: str | None = None
    own: bool = False
    state: str | None = None
    flags: tuple[str, ...] = ()


class PortRow(Row, frozen=True, kw_only=True, gc=False):
    """`bridge link`. `state`: forwarding, disabled, blocking, listening, learning."""

    device: str
    master: str | None = None
    state: str | None = None
    hairpin: bool | None = None
    isolated: bool | None = None


class SocketRow(Row, frozen=True, kw_only=True, gc=False):
    """`ss -uln`. `address` None: any of both families (`*`). `process`: as ss has it, None for the kernel's own (vxlan) or without rights to see."""

    port: int
    address: bytes | None = None
    device: str | None = None
    process: str | None = None


class SysctlRow(Row, frozen=True, kw_only=True, gc=False):
    """`sysctl -a`. `key` as below /proc/sys, with slashes: a device's name may hold dots."""

    key: str
    value: str


class EvidenceRow(Row, frozen=True, kw_only=True, gc=False):
    """A line that is kept as it is (`nft list ruleset`, `iptables-legacy-save`)."""


class PolicyRow(Row, frozen=True, kw_only=True, gc=False):
    """`ip xfrm policy`: what IPsec does with what fits. `proto` 0: any; `sport`, `dport`: a number and the bits of it that count; `mark` and its mask.

    `transforms`: it has templates; `templates`: how many of them must have been applied to what comes in.
    """

    family: int
    direction: str
    action: str
    priority: int
    src: Prefix
    dst: Prefix
    proto: int = 0
    sport: tuple[int, int] = (0, 0)
    dport: tuple[int, int] = (0, 0)
    device: str | None = None
    mark: tuple[int, int] = (0, 0)
    if_id: int = 0
    transforms: bool = False
    templates: int = 0


class LeaseRow(Row, frozen=True, kw_only=True, gc=False):
    """Who should have which subnet: the intent behind the rows. `node` None: the store does not name it."""

    lease: Lease
    node: str | None = None


class Shown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A table was shown: all of it, or narrowed to a device, a family (4, 6), a route table ("all" for every one).

    `command` None: no command line said so, only rows of this shape were there; `excerpt`: it is known to leave rows out. `repeats`: where the very same
    table was shown before.
    """

    table: Table
    device: str | None = None
    family: int | None = None
    route_table: str | None = None
    command: str | None = None
    source: str = ""
    excerpt: bool = False
    repeats: str | None = None


class Unread(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A line that looks like a row and is none: where, its words, and why."""

    source: str
    text: str
    why: str


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of one network namespace. A container's is named after its node: "master/pod1"."""

    name: str
    devices: tuple[DeviceRow, ...] = ()
    addresses: tuple[AddressRow, ...] = ()
    rules: tuple[RuleRow, ...] = ()
    routes: tuple[RouteRow, ...] = ()
    nexthops: tuple[NexthopRow, ...] = ()
    neighbours: tuple[NeighbourRow, ...] = ()
    fdb: tuple[FdbRow, ...] = ()
    ports: tuple[PortRow, ...] = ()
    vlans: tuple[VlanRow, ...] = ()
    sockets: tuple[SocketRow, ...] = ()
    sysctls: tuple[SysctlRow, ...] = ()
    nft: tuple[EvidenceRow, ...] = ()
    iptables: tuple[EvidenceRow, ...] = ()
    policies: tuple[PolicyRow, ...] = ()
    shown: tuple[Shown, ...] = ()

    @property
    def host(self) -> str | None:
        """The node that a container's namespace is on, None for a node's own."""
        return self.name.rpartition("/")[0] or None

    def __len__(self) -> int:
        """How many rows there are."""
        tables = (self.devices, self.addresses, self.rules, self.routes, self.neighbours, self.fdb, self.ports, self.sockets, self.sysctls, self.nft)
        return sum(map(len, (*tables, self.nexthops, self.vlans, self.iptables, self.policies)))


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes in the order they were found, each name once. `prose`: lines around the tables that speak about them.

    `config`: the network configuration in the store, flannel's JSON as text.
    """

    nodes: tuple[Node, ...] = ()
    leases: tuple[LeaseRow, ...] = ()
    config: str | None = None
    prose: tuple[EvidenceRow, ...] = ()
    unread: tuple[Unread, ...] = ()

    def node(self, name: str) -> Node | None:
        return next((node for node in self.nodes if node.name == name), None)


# ---- a bundle: the same as JSON -----------------------------------------------------------------------------------------

# Where bytes and prefixes are; everything else is text, number or list. Which of the three it is their form tells.
ADDRESSES = frozenset({"mac", "address", "dst", "src", "gateway", "local", "group", "peer", "subnet", "public_ip"})


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON file of a node or of a cluster."""

    format: str
    version: int
    snapshot: Snapshot


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot as one line of JSON, with addresses as text and without what is empty."""
    return msgspec.json.encode(to_text(msgspec.to_builtins(Bundle(format=FORMAT, version=VERSION, snapshot=snapshot), builtin_types=(bytes,))))


def decode(data: bytes, name: str) -> Snapshot:
    """The reverse. `name`: of the file, for the error. Raises UsageError in one line for anything that is no bundle of ours."""
    try:
        document = msgspec.json.decode(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError("it has no format tweed-bundle")
        if document.get("version") != VERSION:
            raise ValueError(f"its version {document.get('version')!r:.20} is not {VERSION}: it was made by another tweed")
        snapshot = msgspec.convert(from_text(document), Bundle, builtin_types=(bytes,)).snapshot
        names = [node.name for node in snapshot.nodes]
        if len(names) != len(set(names)):
            raise ValueError("it has two nodes of one name")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: no bundle that tweed can read: {' '.join(str(error).split())[:200]}") from None
    return snapshot


def to_text(value: Any) -> Any:
    """Plain values with every address and prefix as text, and without what is None or an empty list."""
    if isinstance(value, dict):
        if value.keys() == {"address", "length"}:
            return str(Prefix(**value))
        return {key: to_text(each) for key, each in value.items() if each not in (None, (), [])}
    if isinstance(value, (list, tuple)):
        return [to_text(each) for each in value]
    if isinstance(value, bytes):
        return format_mac(value) if len(value) == 6 else format_address(value)
    return value


def from_text(value: Any) -> Any:
    """The reverse of `to_text`. Raises ValueError for an address that is none."""
    if isinstance(value, dict):
        return {key: to_bytes(each) if key in ADDRESSES and isinstance(each, str) else from_text(each) for key, each in value.items()}
    if isinstance(value, list):
        return [from_text(each) for each in value]
    return value


def to_bytes(text: str) -> bytes | dict[str, Any]:
    if "/" in text:
        prefix = Prefix.parse(text)
        return {"address": prefix.address, "length": prefix.length}
    return parse_mac(text) if MAC.fullmatch(text) else parse_address(text)
