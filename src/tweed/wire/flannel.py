"""Two of flannel's formats: the network configuration and subnet.env (flannel v0.28). The third, a lease's key and value, is in `lease.py`.

What flannel reads leniently is read leniently; what it would silently misread is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address, parse_address
from tweed.errors import UsageError
from tweed.model import Lease
from tweed.wire.gojson import field, lower_keys, read_object, shown

DATA_PATHS = ("auto", "fast", "numpy", "naive")
BACKENDS = ("vxlan", "udp", "host-gw", "wireguard", "ipip", "ipsec", "extension", "alloc", "tencent-vpc")
PORTS = {"vxlan": 8472, "udp": 8285}
VNI_MAX = (1 << 24) - 1  # RFC 7348 section 5
DEVICE_NAME_MAX = 15  # IFNAMSIZ minus the final zero
# The smallest MTU of a link (RFC 791: 68, RFC 8200: 1280) plus the bytes that VXLAN puts around a frame.
MTU_MIN = {4: 68 + 50, 6: 1280 + 70}


# ---- network configuration ----------------------------------------------------------------------------------------


class Range(msgspec.Struct, frozen=True):
    """Where the subnets of one family come from: all of length `subnet_len` from `first` to `last`, inside `network`."""

    network: Prefix
    subnet_len: int
    first: Prefix
    last: Prefix

    def fits(self, subnet: Prefix) -> bool:
        """True for a subnet that a node may have: right length, not outside of the range."""
        return subnet.length == self.subnet_len and subnet.family == self.network.family and self.first.address <= subnet.address <= self.last.address

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """The network configuration with every default filled in. The fields of a family that is off are None and 0.

    `mtu` is the underlay's, 0: take the interface's. `raw` is the Backend object with lower-cased keys, for backends with options of their own.
    """

    enable_ipv4: bool = True
    enable_ipv6: bool = False
    enable_nftables: bool = False
    network: Prefix | None = None
    subnet_len: int = 0
    subnet_min: Prefix | None = None
    subnet_max: Prefix | None = None
    network6: Prefix | None = None
    subnet_len6: int = 0
    subnet_min6: Prefix | None = None
    subnet_max6: Prefix | None = None
    backend: str = "vxlan"
    backend_given: bool = True
    vni: int = 1
    port: int = PORTS["vxlan"]
    mtu: int = 0
    learning: bool = False
    gbp: bool = False
    direct_routing: bool = False
    data_path: str = "auto"
    strict_source: bool = False
    raw: dict[str, Any] = {}

    def range(self, family: int) -> Range | None:
        """The range of one family (4 or 6), None when that family is off."""
        network, first, last = (self.network, self.subnet_min, self.subnet_max) if family == 4 else (self.network6, self.subnet_min6, self.subnet_max6)
        if network is None or first is None or last is None:
            return None
        return Range(network, first.length, first, last)

    @property
    def lease_backend(self) -> str:
        """What leases of this backend say as BackendType: its name, except that flannel's udp says nothing."""
        return "" if self.backend == "udp" else self.backend

    @property
    def networks(self) -> tuple[Prefix, ...]:
        """The cluster's network of each family that is on."""
        return tuple(n for n in (self.network, self.network6) if n is not None)

    @property
    def lengths(self) -> frozenset[int]:
        """The lengths of the subnets that nodes get."""
        return frozenset(span.subnet_len for family in (4, 6) if (span := self.range(family)) is not None)


def device_name(vni: int, family: int) -> str:
    """The VTEP's name, flannel's: `flannel.1`, `flannel-v6.1`."""
    return f"flannel.{vni}" if family == 4 else f"flannel-v6.{vni}"


def parse_network(text: str) -> Network:
    """flannel's JSON with its defaults and checks, and some that it lacks. Raises UsageError with one line naming key and value.

    An absent Backend means vxlan, as flannel documents (its code says udp): `backend_given` is False then.
    """
    try:
        fields = read_object(text)
        enable_ipv4 = field(fields, "EnableIPv4", bool, True)
        enable_ipv6 = field(fields, "EnableIPv6", bool, False)
        if not enable_ipv4 and not enable_ipv6:
            raise ValueError("EnableIPv4 false and EnableIPv6 false: none defined stack; turn on at least one")
        families: dict[str, Any] = {"enable_ipv4": enable_ipv4, "enable_ipv6": enable_ipv6, "enable_nftables": field(fields, "EnableNFTables", bool, False)}
        for enabled, family, suffix in ((enable_ipv4, 4, ""), (enable_ipv6, 6, "6")):
            if enabled:
                r = _range(fields, family)
                families |= {f"network{suffix}": r.network, f"subnet_len{suffix}": r.subnet_len}
                families |= {f"subnet_min{suffix}": r.first, f"subnet_max{suffix}": r.last}
        return Network(**families, **_backend(fields, enable_ipv4, enable_ipv6))
    except ValueError as error:
        raise UsageError(f"network configuration: {error}") from None


def _range(fields: dict[str, Any], family: int) -> Range:
    key, word, bits, usual = ("Network", "", 32, 24) if family == 4 else ("IPv6Network", "IPv6", 128, 64)
    network_text = field(fields, key, str, "")
    network = _network(network_text, key, family)
    too_long = bits - 1  # a subnet needs room for its own address and one pod's
    length = field(fields, f"{word}SubnetLen", int, 0)
    if length == 0:
        if network.length > bits - 4:
            raise ValueError(f"{key} {network_text}: network is too small. Minimum useful network prefix is /{bits - 4}")
        length = max(usual, network.length + 2)
    elif not 0 < length < too_long:
        raise ValueError(f"{word}SubnetLen {length}: SubnetLen must be less than /{too_long}")
    elif length < network.length + 2:
        raise ValueError(f"{word}SubnetLen {length}: network must be able to accommodate at least four subnets; {network} needs {network.length + 2} or more")

    step = 1 << (bits - length)
    first = _bound(fields, f"{word}SubnetMin", network, length, Prefix.of(network.value + step, length, family))
    last = _bound(fields, f"{word}SubnetMax", network, length, Prefix.of(network.value + network.step - step, length, family))
    if first > last:
        raise ValueError(f"{word}SubnetMin {format_address(first.address)} is above {word}SubnetMax {format_address(last.address)}: exchange them")
    return Range(network, length, first, last)


def _network(text: str, key: str, family: int) -> Prefix:
    if not text:
        raise ValueError(f"{key} is missing: please define a correct {key} parameter in the flannel config")
    example = "10.244.0.0/16" if family == 4 else "fd00:10:244::/48"
    address, _, length = text.partition("/")
    try:
        if not length.isdecimal():
            raise ValueError
        given = Prefix(parse_address(address), int(length))
        if given.family != family or given.length > given.bits:
            raise ValueError
    except ValueError:
        raise ValueError(f"{key} {shown(text)}: expected an IPv{family} network such as {example}") from None
    network = given.network
    unusable = [Prefix.parse(p) for p in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/16", "fe80::/10", "ff00::/8")]
    if any(network.overlaps(p) for p in unusable):
        raise ValueError(f"{key} {shown(text)}: holds loopback, link-local, multicast or reserved addresses; use a private network such as {example}")
    return network


def _bound(fields: dict[str, Any], key: str, network: Prefix, length: int, default: Prefix) -> Prefix:
    text = field(fields, key, str, "")
    if not text:
        return default
    try:
        address = parse_address(text)
        if len(address) != len(network.address):
            raise ValueError
    except ValueError:
        raise ValueError(f"{key} {shown(text)}: expected an IPv{network.family} address in {network}") from None
    if not network.contains(address):
        raise ValueError(f"{key} {text}: {key} is not in the range of the Network {network}")
    subnet = Prefix(address, length)
    if subnet.network != subnet:
        raise ValueError(f"{key} {text}: {key} is not on a SubnetLen boundary: use {format_address(subnet.network.address)}")
    return subnet


def _backend(fields: dict[str, Any], enable_ipv4: bool, enable_ipv6: bool) -> dict[str, Any]:
    given = fields.get("backend") is not None
    raw = lower_keys(field(fields, "Backend", dict, {}))
    try:
        kind = field(raw, "Type", str, "" if given else "vxlan").lower()
        if kind not in BACKENDS:
            raise ValueError(f"Type {shown(kind)}: unknown backend type: {shown(kind)[1:-1]}; use vxlan")
        options: dict[str, Any] = {"backend": kind, "backend_given": given, "raw": raw}
        if kind in PORTS:
            options["port"] = _number(raw, "Port", 0, 65535) or PORTS[kind]
        if kind == "udp":
            options["data_path"] = field(raw, "DataPath", str, "auto").lower()
            if options["data_path"] not in DATA_PATHS:
                raise ValueError(f"DataPath {shown(options['data_path'])}: use {', '.join(DATA_PATHS)}")
            options["strict_source"] = field(raw, "StrictSource", bool, False)
        if kind == "vxlan":
            options["vni"] = _number(raw, "VNI", 1, VNI_MAX, default=1)
            options["mtu"] = _number(raw, "MTU", 0, 65535)
            options["learning"] = field(raw, "Learning", bool, False)
            options["gbp"] = field(raw, "GBP", bool, False)
            options["direct_routing"] = field(raw, "DirectRouting", bool, False)
            for family in [f for f, on in ((4, enable_ipv4), (6, enable_ipv6)) if on]:
                name = device_name(options["vni"], family)
                if len(name) > DEVICE_NAME_MAX:
                    raise ValueError(
                        f"VNI {options['vni']}: the device name {name} has {len(name)} characters, the kernel takes {DEVICE_NAME_MAX}; "
                        f"use a VNI up to {'9' * (DEVICE_NAME_MAX - len(name.rstrip('0123456789')))}"
                    )
                if 0 < options["mtu"] < MTU_MIN[family]:
                    raise ValueError(f"MTU {options['mtu']}: too small for IPv{family} through VXLAN; use {MTU_MIN[family]} or more, or 0 for the interface's")
        return options
    except ValueError as error:
        raise ValueError(f"Backend.{error}") from None


def _number(raw: dict[str, Any], key: str, low: int, high: int, default: int = 0) -> int:
    value = field(raw, key, int, default)
    if not low <= value <= high:
        raise ValueError(f"{key} {value}: use {low} to {high}")
    return value


def host_overlaps(network: Network, addresses: Iterable[tuple[str, Prefix]], own_devices: Collection[str]) -> list[str]:
    """One line for each address of the host, as (device, address), that lies in the cluster's network without being of our own devices.

    A wider connected network around it is fine: the routes to the nodes' subnets are more specific.
    """
    return [
        f"{'Network' if n.family == 4 else 'IPv6Network'} {n} holds the address {address} of {device}: use another network, or move that address"
        for device, address in addresses
        if device not in own_devices
        for n in network.networks
        if n.contains(address.address)
    ]


# ---- subnet.env ---------------------------------------------------------------------------------------------------


class SubnetEnv(msgspec.Struct, frozen=True):
    """What subnet.env says: this node's subnets (host bits cleared) and the cluster's networks. None where it says nothing useful.

    `mtu` is that of a container's interface; `ip_masq`: the agent masquerades.
    """

    network: Prefix | None = None
    subnet: Prefix | None = None
    network6: Prefix | None = None
    subnet6: Prefix | None = None
    mtu: int | None = None
    ip_masq: bool = False

    @property
    def subnets(self) -> tuple[Prefix, ...]:
        return tuple(s for s in (self.subnet, self.subnet6) if s is not None)


def format_subnet_env(network: Network, lease: Lease, mtu: int, ip_masq: bool) -> str:
    """The file's text; `mtu` is what a container's interface gets, in bytes. The subnets carry the node's own address (base + 1)."""
    lines = []
    for word, cluster, endpoint in (("", network.network, lease.v4), ("IPV6_", network.network6, lease.v6)):
        if cluster is not None and endpoint is not None:
            lines += [f"FLANNEL_{word}NETWORK={cluster}", f"FLANNEL_{word}SUBNET={Prefix(endpoint.subnet.host(1), endpoint.subnet.length)}"]
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={'true' if ip_masq else 'false'}"]
    return "\n".join(lines) + "\n"


def parse_subnet_env(text: str) -> SubnetEnv:
    """Reads the file as flannel does: dotenv lines, comma lists, bad items skipped, more than one item taken as none. Never fails."""
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            values[name.strip()] = value.partition(" #")[0].strip().strip("\"'")

    def only(name: str, family: int) -> Prefix | None:
        found = []
        for item in values.get(name, "").split(","):
            try:
                found.append(Prefix.parse(item).network if "/" in item else None)
            except ValueError:
                continue
        items = [p for p in found if p is not None and p.family == family]
        return items[0] if len(items) == 1 else None

    mtu = values.get("FLANNEL_MTU", "")
    return SubnetEnv(
        network=only("FLANNEL_NETWORK", 4),
        subnet=only("FLANNEL_SUBNET", 4),
        network6=only("FLANNEL_IPV6_NETWORK", 6),
        subnet6=only("FLANNEL_IPV6_SUBNET", 6),
        mtu=int(mtu) if mtu.isascii() and mtu.isdigit() and 0 < int(mtu[:6]) <= 65535 else None,
        ip_masq=values.get("FLANNEL_IPMASQ") == "true",
    )
