"""The values that everything else speaks of. Frozen, comparable, printed as the command or the table row a person knows.

Lease      who has which subnet, and behind which VTEP and host        (the store)
Vtep       the VXLAN device this node should have                      (`ip link add ... type vxlan`)
Tun        the TUN device of the UDP mode                              (`ip tuntap add`)
Link       a device as the kernel shows it                             (`ip -d link`)
InterfaceAddress, Route, Neighbour, FdbEntry: one row of one table     (`ip addr|route|neigh`, `bridge fdb`)
KernelState   many rows: what should be (`want`) or what is (`have`)
Changes       the ordered way from have to want, as commands
Failure       one change the kernel refused, with its words

What comes in thousands has gc=False: frozen values cannot hold each other in a circle, and the collector need not walk them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from tweed.addr import Prefix, format_address, format_mac

# Our routes carry this protocol number (unassigned in iproute2's rt_protos), so that dumps can tell them apart.
PROTOCOL = 83
PROTOCOL_KERNEL = 2  # RTPROT_KERNEL: rows the kernel made itself for an address
PROTOCOL_BOOT = 3  # RTPROT_BOOT: what `ip route add` and flannel use
# The time left of a lease that ends, nobody knows when. JSON shows it as null.
UNKNOWN_S = math.inf
TABLE_MAIN = 254
TABLE_LOCAL = 255
# linux/include/net/ip6_fib.h: the metric of an IPv6 route for which none was asked.
METRIC_IPV6_DEFAULT = 1024

NUD_INCOMPLETE, NUD_REACHABLE, NUD_STALE, NUD_DELAY = 0x01, 0x02, 0x04, 0x08
NUD_PROBE, NUD_FAILED, NUD_NOARP, NUD_PERMANENT = 0x10, 0x20, 0x40, 0x80
NUD_NAMES = {
    NUD_INCOMPLETE: "INCOMPLETE",
    NUD_REACHABLE: "REACHABLE",
    NUD_STALE: "STALE",
    NUD_DELAY: "DELAY",
    NUD_PROBE: "PROBE",
    NUD_FAILED: "FAILED",
    NUD_NOARP: "NOARP",
    NUD_PERMANENT: "PERMANENT",
}
PROTOCOL_NAMES = {0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp", 186: "bgp"}
SCOPE_NAMES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
TYPE_NAMES = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
TABLE_NAMES = {TABLE_MAIN: "main", TABLE_LOCAL: "local", 253: "default"}


# ---- leases -----------------------------------------------------------------------------------------------------


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One family of a lease: pods in `subnet` live on the host `public_ip`, behind the VTEP with `mac`.

    `public_ip` None: not published. `mac` None: the backend has none (host-gw, udp). `vni` is informational (flannel never compares it).
    """

    subnet: Prefix
    public_ip: bytes | None = None
    mac: bytes | None = None
    vni: int | None = None


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A node's subnets and where they are. At least one family is present. `backend` is flannel's BackendType, "" where it writes none."""

    v4: Endpoint | None = None
    v6: Endpoint | None = None
    backend: str = "vxlan"

    @property
    def endpoints(self) -> Iterator[Endpoint]:
        if self.v4 is not None:
            yield self.v4
        if self.v6 is not None:
            yield self.v6

    @property
    def key(self) -> str:
        """The name under which stores keep it, flannel's: `10.5.52.0-24`, dual stack `10.5.52.0-24&fd00:12:13::-56`."""
        return subnet_key(self.v4.subnet if self.v4 else None, self.v6.subnet if self.v6 else None)

    def __str__(self) -> str:
        return ", ".join(str(e.subnet) for e in self.endpoints)


def subnet_key(subnet: Prefix | None, subnet6: Prefix | None) -> str:
    """Flannel's key of a lease. IPv6 alone, which flannel cannot write, is just its second half."""
    return "&".join(f"{format_address(p.address)}-{p.length}" for p in (subnet, subnet6) if p is not None)


class Owner(msgspec.Struct, frozen=True, gc=False):
    """Who holds a lease, kept beside flannel's record where flannel does not look."""

    node: str
    boot_id: str


class LeaseRecord(msgspec.Struct, frozen=True, gc=False):
    """A lease as a store holds it.

    `revision` rises with every change of the record and is what compare-and-swap compares; `created` is the store's
    revision at which the key appeared (the elder of two rivals). `ttl_s`: seconds left when it was read, None for a reservation,
    UNKNOWN_S where the store has not said (`LeaseStore.timed` asks).
    """

    lease: Lease
    owner: Owner | None
    revision: int
    created: int
    ttl_s: float | None = None

    @property
    def key(self) -> str:
        return self.lease.key

    @property
    def reserved(self) -> bool:
        """A reservation whose node has not come yet: one with VXLAN would have said its MAC, one without that it has another backend."""
        waiting = self.lease.backend in ("", "vxlan") and all(e.mac is None for e in self.lease.endpoints)
        return self.ttl_s is None and self.owner is None and waiting


class Junk(msgspec.Struct, frozen=True):
    """Something in the store that is no lease: its key, and why it was skipped.

    `revision` of its last change, 0 where that is not known; `owner`: who signed it, as with a lease.
    """

    key: str
    why: str
    revision: int = 0
    owner: Owner | None = None


# ---- devices ----------------------------------------------------------------------------------------------------


class Vxlan(msgspec.Struct, frozen=True):
    """The attributes of a vxlan device (linux/if_link.h IFLA_VXLAN_*). `underlay`: ifindex it is bound to, 0 for none."""

    vni: int
    port: int = 8472
    local: bytes | None = None
    underlay: int = 0
    learning: bool = False
    gbp: bool = False
    udp_csum: bool = True
    udp6_zero_csum_tx: bool = False
    udp6_zero_csum_rx: bool = False
    group: bytes | None = None
    l2miss: bool = False
    l3miss: bool = False
    collect_metadata: bool = False
    ttl: int = 0
    ageing_s: int = 300


class Netconf(msgspec.Struct, frozen=True):
    """Whether a device (or `all`, `default`) forwards packets of a family, 4 or 6."""

    family: int
    device: str
    forwarding: bool


class Link(msgspec.Struct, frozen=True):
    """A device as the kernel shows it. `kind` is "" for a physical device, else "vxlan", "veth", "bridge" and so on.

    `lower`: ifindex of the device (or veth peer) it is tied to, 0 for none; `master`: ifindex of its bridge, 0 for none.
    """

    name: str
    index: int
    kind: str = ""
    mac: bytes = b""
    mtu: int = 0
    up: bool = False
    running: bool = False
    master: int = 0
    lower: int = 0
    lower_netns: int | None = None
    vxlan: Vxlan | None = None
    hairpin: bool | None = None
    alias: str = ""
    promisc: bool = False


class Vtep(msgspec.Struct, frozen=True):
    """The VXLAN device this node should have, of one family: all that decides its creation. Prints as `ip link add`."""

    name: str
    vni: int
    port: int
    local: bytes
    underlay: str
    mac: bytes
    mtu: int
    address: Prefix
    learning: bool = False
    gbp: bool = False

    @property
    def family(self) -> int:
        """The family of the underlay and of the addresses behind the device: 4 or 6."""
        return self.address.family

    def __str__(self) -> str:
        return (
            f"{self.name} address {format_mac(self.mac)} mtu {self.mtu} type vxlan id {self.vni} local {format_address(self.local)} "
            f"dev {self.underlay} dstport {self.port} {'learning' if self.learning else 'nolearning'}{' gbp' if self.gbp else ''}"
        )


class Tun(msgspec.Struct, frozen=True):
    """The TUN device of the UDP mode: a process carries its packets in datagrams of `local`, UDP port `port`. Prints as `ip tuntap add`."""

    name: str
    port: int
    local: bytes
    underlay: str
    mtu: int
    address: Prefix

    @property
    def family(self) -> int:
        """4: flannel's UDP mode knows no other."""
        return self.address.family

    def __str__(self) -> str:
        return f"{self.name} mode tun"


Device = Vtep | Tun


# ---- rows of tables ---------------------------------------------------------------------------------------------


class InterfaceAddress(msgspec.Struct, frozen=True, gc=False):
    """`ip addr` row. `nodad` is asked for at creation and never read back. `scope` as in rtnetlink (0 global, 253 link)."""

    device: str
    address: Prefix
    scope: int = 0
    nodad: bool = False

    def __str__(self) -> str:
        scope = f" scope {SCOPE_NAMES.get(self.scope, self.scope)}" if self.scope else ""
        return f"{self.address} dev {self.device}{scope}{' nodad' if self.nodad else ''}"


class Route(msgspec.Struct, frozen=True, gc=False):
    """`ip route` row. One next hop: a multipath route is one row per next hop. `device` is "" for blackhole and its kin.

    `other`: attributes that tweed neither sets nor reads, as the kernel sent them, so that two rows that differ only there stay two.
    """

    dst: Prefix
    device: str
    gateway: bytes | None = None
    metric: int = 0
    protocol: int = PROTOCOL
    onlink: bool = False
    scope: int = 0
    src: bytes | None = None
    table: int = TABLE_MAIN
    type: int = 1
    other: bytes = b""

    def __str__(self) -> str:
        default = self.dst.length == 0
        dst = "default" if default else format_address(self.dst.address) if self.dst.is_host else str(self.dst)
        words = [dst] if self.type == 1 else [TYPE_NAMES.get(self.type, str(self.type)), dst]
        if self.gateway is not None:
            via = "via inet6" if len(self.gateway) != len(self.dst.address) and len(self.gateway) == 16 else "via"
            words += [via, format_address(self.gateway)]
        if self.device:
            words += ["dev", self.device]
        if self.table != TABLE_MAIN:
            words += ["table", TABLE_NAMES.get(self.table, str(self.table))]
        if self.protocol != PROTOCOL_BOOT:
            words += ["proto", PROTOCOL_NAMES.get(self.protocol, str(self.protocol))]
        if self.scope:
            words += ["scope", SCOPE_NAMES.get(self.scope, str(self.scope))]
        if self.src is not None:
            words += ["src", format_address(self.src)]
        if self.metric:
            words += ["metric", str(self.metric)]
        if self.onlink:
            words.append("onlink")
        return " ".join(words)


class Neighbour(msgspec.Struct, frozen=True, gc=False):
    """`ip neigh` row. `mac` None: not resolved. `state` is the NUD_ bits."""

    address: bytes
    device: str
    mac: bytes | None
    state: int = NUD_PERMANENT

    def __str__(self) -> str:
        lladdr = f" lladdr {format_mac(self.mac)}" if self.mac is not None else ""
        return f"{format_address(self.address)} dev {self.device}{lladdr} {NUD_NAMES.get(self.state, hex(self.state))}"


class FdbEntry(msgspec.Struct, frozen=True, gc=False):
    """`bridge fdb` row of a VXLAN device (`dst`: the host behind the MAC) or of a bridge port (`dst` None).

    `port`, `vni`, `via` (ifindex) are None when the device's own apply. `master`: the row lives in the bridge, not in the device.
    """

    mac: bytes
    device: str
    dst: bytes | None = None
    port: int | None = None
    vni: int | None = None
    via: int | None = None
    vlan: int | None = None
    master: bool = False
    permanent: bool = True

    def __str__(self) -> str:
        words = [format_mac(self.mac), "dev", self.device]
        if self.dst is not None:
            words += ["dst", format_address(self.dst)]
        for name in ("vlan", "port", "vni"):
            if (value := getattr(self, name)) is not None:
                words += [name, str(value)]
        if self.via is not None:
            words += ["via", f"if{self.via}"]  # iproute2 takes this for a name too
        words.append("master" if self.master else "self")
        if self.permanent:
            words.append("permanent")
        return " ".join(words)


Row = InterfaceAddress | Route | Neighbour | FdbEntry
TOOLS: dict[type, str] = {InterfaceAddress: "ip addr", Route: "ip route", Neighbour: "ip neigh", FdbEntry: "bridge fdb"}


class KernelState(msgspec.Struct, frozen=True):
    """Rows of the four tables. A multiset: two equal rows are two rows."""

    addresses: tuple[InterfaceAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    fdb: tuple[FdbEntry, ...] = ()

    @property
    def rows(self) -> Iterator[Row]:
        yield from self.addresses
        yield from self.routes
        yield from self.neighbours
        yield from self.fdb

    def __len__(self) -> int:
        return len(self.addresses) + len(self.routes) + len(self.neighbours) + len(self.fdb)


class Change(msgspec.Struct, frozen=True, gc=False):
    """One row to put (create or replace) or to delete, exactly as described. Prints as the command that does it."""

    op: Literal["replace", "delete"]
    row: Row

    def __str__(self) -> str:
        row = self.row
        family6 = (
            not isinstance(row, FdbEntry)
            and len(row.dst.address if isinstance(row, Route) else row.address if isinstance(row, Neighbour) else row.address.address) == 16
        )
        tool = TOOLS[type(row)].replace("ip ", "ip -6 ") if family6 else TOOLS[type(row)]
        verb = "del" if self.op == "delete" else "replace"
        text = str(row)
        if isinstance(row, Route):
            if row.protocol == PROTOCOL_BOOT:
                text += " proto boot"  # `ip` hides it, and a delete must name it
        elif isinstance(row, Neighbour):
            text = text.rpartition(" ")[0] + f" nud {NUD_NAMES.get(row.state, hex(row.state)).lower()}"
            if self.op == "delete":
                text = f"{format_address(row.address)} dev {row.device}"
        elif isinstance(row, FdbEntry):
            text = text.removesuffix(" permanent") if self.op == "delete" else text if row.permanent else f"{text} dynamic"
        return f"{tool} {verb} {text}"


Changes = tuple[Change, ...]


class Failure(msgspec.Struct, frozen=True):
    """A change that the kernel refused: the command, errno and the kernel's own words."""

    change: Change
    errno: int
    text: str

    def __str__(self) -> str:
        return f"{self.change}: {self.text}"
