"""CNI's documents (specification 0.3.0 to 1.1.0): a runtime's call and its configuration to values, results and errors to JSON.

relay to agent   NAME=VALUE \\0 NAME=VALUE \\0 ... \\0 then the configuration, to the end of the stream
agent to relay   exit code (one byte), text for stderr, \\0, text for stdout
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address, format_mac, is_unicast_mac, parse_address, parse_mac
from tweed.errors import TweedError, UsageError

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS")  # VERSION never comes this far: the relay answers it
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
TEXT_MAX = 2000
CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # specification 1.1, "Parameters"
CONTAINER_ID_MAX = 128  # runtimes use 64; with the addresses it has to fit an interface alias
NETWORK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

INCOMPATIBLE, UNSUPPORTED, UNKNOWN, ENVIRONMENT, IO, DECODE, INVALID, LATER = 1, 2, 3, 4, 5, 6, 7, 11
UNAVAILABLE, LIMITED = 50, 51
KERNEL, NO_ADDRESS, REFUSED, DIFFERS = 100, 101, 102, 103  # our own


class CniError(TweedError):
    """What the runtime is to be told: a code of the specification (or ours, from 100), one line, and perhaps more.

    What the runtime gave may be quoted in it: control characters are told by their number, and nothing is longer than TEXT_MAX.
    """

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(plain(message))
        self.code = code
        self.details = plain(details)


def plain(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:TEXT_MAX])


# ---- the call ---------------------------------------------------------------------------------------------------


class Call(msgspec.Struct, frozen=True):
    """The environment that the specification names, and stdin."""

    command: str = ""
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""
    config: bytes = b""


def parse_call(data: bytes) -> Call:
    """What a relay sent. Nothing is checked but its form. Raises CniError."""
    head, ended, config = data.partition(b"\0\0")
    if not ended:
        raise CniError(DECODE, "the plugin's call ends within its variables")
    found = {}
    for line in head.split(b"\0"):
        name, _, value = line.partition(b"=")
        found[name.decode(errors="replace").removeprefix("CNI_")] = value.decode(errors="replace")
    names = {"COMMAND": "command", "CONTAINERID": "container_id", "NETNS": "netns", "IFNAME": "ifname", "ARGS": "args"}
    return Call(**{field: found.get(name, "") for name, field in names.items()}, config=config)


def check_call(call: Call) -> None:
    """Raises CniError with the names of the variables that are missing or wrong."""
    if call.command not in COMMANDS:
        raise CniError(ENVIRONMENT, f"CNI_COMMAND is {call.command[:40]!r}: expected one of {', '.join(COMMANDS)}, VERSION")
    if call.command in ("GC", "STATUS"):
        return
    needed = {"CNI_CONTAINERID": call.container_id, "CNI_IFNAME": call.ifname} | ({} if call.command == "DEL" else {"CNI_NETNS": call.netns})
    if missing := [name for name, value in needed.items() if not value]:
        raise CniError(ENVIRONMENT, f"{call.command} needs the variables {', '.join(missing)}")
    for name, container_id, ifname in (("CNI_CONTAINERID", call.container_id, "eth0"), ("CNI_IFNAME", "x", call.ifname)):
        try:
            check_identity(container_id, ifname)
        except UsageError as error:
            raise CniError(ENVIRONMENT, f"{name}: {error}") from None
    if call.netns and (not call.netns.startswith("/") or "\0" in call.netns):
        raise CniError(ENVIRONMENT, f"CNI_NETNS is {call.netns[:80]!r}: expected an absolute path")


def check_identity(container_id: str, ifname: str) -> None:
    """Raises UsageError when these cannot name an attachment (specification 1.1; dev_valid_name in the kernel)."""
    if CONTAINER_ID.fullmatch(container_id) is None or len(container_id) > CONTAINER_ID_MAX:
        raise UsageError(f"container id {container_id[:40]!r}: a letter or digit, then letters, digits, '_', '.', '-', at most {CONTAINER_ID_MAX}")
    if not 1 <= len(ifname.encode(errors="replace")) <= 15 or ifname in (".", "..") or any(c in "/:" or c.isspace() or not c.isprintable() for c in ifname):
        raise UsageError(f"interface name {ifname[:40]!r}: 1 to 15 characters, without '/', ':' and blanks")


class Args(msgspec.Struct, frozen=True):
    """CNI_ARGS as far as we know them."""

    addresses: tuple[bytes, ...] = ()
    mac: bytes | None = None
    pod: str = ""


KNOWN_ARGS = frozenset({"IP", "MAC", "IgnoreUnknown", "K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"})


def parse_args(text: str) -> Args:
    """`IP=10.1.1.5,fd00::5;MAC=…;K8S_POD_NAME=…`. An unknown key is an error unless IgnoreUnknown is true. Raises CniError."""
    found = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(ENVIRONMENT, f"CNI_ARGS: {pair[:80]!r} is not KEY=VALUE")
        found[key] = value
    unknown = sorted(found.keys() - KNOWN_ARGS)
    if unknown and found.get("IgnoreUnknown", "").lower() not in ("1", "t", "true"):
        raise CniError(ENVIRONMENT, f"CNI_ARGS: unknown {', '.join(unknown)[:200]}, and IgnoreUnknown is not set")
    try:
        addresses = tuple(parse_address(ip.partition("/")[0]) for ip in filter(None, found.get("IP", "").split(",")))
        mac = unicast(found["MAC"]) if found.get("MAC") else None
    except ValueError as error:
        raise CniError(ENVIRONMENT, f"CNI_ARGS: {error}") from None
    pod = "/".join(filter(None, (found.get("K8S_POD_NAMESPACE"), found.get("K8S_POD_NAME"))))
    return Args(addresses, mac, "".join(c for c in pod if c.isprintable())[:320])


def unicast(text: str) -> bytes:
    """The MAC. Raises ValueError where no device can have it."""
    mac = parse_mac(text)
    if not is_unicast_mac(mac):
        raise ValueError(f"{text!r} is not a MAC that a device can have")
    return mac


# ---- the configuration ------------------------------------------------------------------------------------------


class RangeConf(msgspec.Struct, rename="camel"):
    """As host-local writes it."""

    subnet: str
    range_start: str = ""
    range_end: str = ""
    gateway: str = ""


class RouteConf(msgspec.Struct):
    dst: str
    gw: str = ""


class Ipam(msgspec.Struct, rename="camel"):
    """`part`: which part of the node's subnets, `"1/2"` the first half. `reserved`: addresses that only who names them gets."""

    type: str = ""
    ranges: list[list[RangeConf]] = []
    routes: list[RouteConf] = []
    reserved: list[str] = []
    part: str = ""


class Delegate(msgspec.Struct, rename="camel"):
    """flannel's: what the bridge plugin would be told."""

    type: str = "bridge"
    bridge: str = ""
    mtu: int = 0
    hairpin_mode: bool = False
    promisc_mode: bool = False
    is_gateway: bool = True
    is_default_gateway: bool = False
    ip_masq: bool | None = None
    name: Any = None
    ipam: Any = None


class RuntimeConfig(msgspec.Struct, rename="camel"):
    ips: list[str] = []
    mac: str = ""
    dns: dict[str, Any] | None = None
    ip_ranges: list[list[RangeConf]] = []


class Reference(msgspec.Struct):
    """An attachment that the runtime knows of."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str = ""


class Conf(msgspec.Struct, rename="camel"):
    """A network configuration. Keys that are not here belong to others, or to nobody."""

    cni_version: str = "0.1.0"  # what the specification says of a configuration without
    name: str = ""
    type: str = ""
    bridge: str = "cni0"
    mtu: int = 0
    hairpin_mode: bool | None = None
    promisc_mode: bool = False
    ip_masq: bool = False
    is_default_gateway: bool = True
    vlan: int = 0
    ipam: Ipam = msgspec.field(default_factory=Ipam)
    dns: dict[str, Any] = {}
    prev_result: dict[str, Any] | None = None
    runtime_config: RuntimeConfig = msgspec.field(default_factory=RuntimeConfig)
    args: dict[str, Any] = {}
    delegate: Delegate = msgspec.field(default_factory=Delegate)
    subnet_file: str = ""
    valid: list[Reference] | None = msgspec.field(default=None, name="cni.dev/valid-attachments")
    misnamed: list[Reference] | None = msgspec.field(default=None, name="cni.dev/attachments")

    @property
    def is_flannel(self) -> bool:
        """Written for flannel's plugin, whose name and place we have taken."""
        return self.type == "flannel"


def parse_conf(data: bytes, command: str = "ADD") -> Conf:
    """Raises CniError: 6 for what cannot be read, 1 for a version that we do not speak, 2 and 7 for what we cannot do."""
    try:
        conf = msgspec.json.decode(data, type=Conf)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        text = str(error) or "it is nested too deep"
        raise CniError(DECODE, f"the network configuration on stdin cannot be read: {text}") from None
    if conf.cni_version not in VERSIONS:
        raise CniError(INCOMPATIBLE, f"incompatible CNI versions: the configuration has {conf.cni_version[:40]!r}, tweed has {', '.join(VERSIONS)}")
    if NETWORK_NAME.fullmatch(conf.name) is None or len(conf.name) > 255:
        raise CniError(INVALID, f"name is {conf.name[:40]!r}: a network's is a letter or digit, then letters, digits, '_', '.', '-'")
    if (since := SINCE.get(command)) is not None and VERSIONS.index(conf.cni_version) < VERSIONS.index(since):
        raise CniError(INCOMPATIBLE, f"incompatible CNI versions: {command} came with {since}, the configuration has {conf.cni_version}")
    return conf


def wanted_addresses(conf: Conf, args: Args) -> tuple[bytes, ...]:
    """The addresses that were asked for, by CNI_ARGS, `runtimeConfig` or `args`. Raises CniError."""
    cni = conf.args.get("cni")
    conventional = cni.get("ips", []) if isinstance(cni, dict) else []
    texts = [*conf.runtime_config.ips, *(conventional if isinstance(conventional, list) else [conventional])]
    try:
        return tuple(dict.fromkeys([*args.addresses, *(parse_address(str(text).partition("/")[0]) for text in texts)]))
    except ValueError as error:
        raise CniError(INVALID, f"the addresses asked for: {error}") from None


def wanted_mac(conf: Conf, args: Args) -> bytes | None:
    """Raises CniError."""
    try:
        return unicast(conf.runtime_config.mac) if conf.runtime_config.mac else args.mac
    except ValueError as error:
        raise CniError(INVALID, f"runtimeConfig.mac: {error}") from None


class After(msgspec.Struct, frozen=True):
    """How the chain left a container by its own word, `prevResult` at CHECK. None: it does not say.

    `routes`: destination and gateway, None for the network's own. Without any where the chain took all of them away.
    """

    mac: bytes | None = None
    mtu: int | None = None
    routes: frozenset[tuple[Prefix, bytes | None]] | None = None


def after(conf: Conf, ifname: str) -> After:
    """What later plugins made of the container's device and routes: tuning may have given it another MAC, others may have taken routes away."""
    result = conf.prev_result or {}
    inside = next((each for each in dictionaries(result, "interfaces") if each.get("name") == ifname and each.get("sandbox")), {})
    mac, mtu, routes = None, inside.get("mtu"), set[tuple[Prefix, bytes | None]]()
    with contextlib.suppress(ValueError):
        mac = parse_mac(str(inside.get("mac")))
    for route in dictionaries(result, "routes"):
        with contextlib.suppress(ValueError):
            routes.add((Prefix.parse(str(route.get("dst"))).network, parse_address(str(route["gw"])) if route.get("gw") else None))
    # Go's plugins leave out a list that is empty; a result with addresses is whole.
    return After(mac, mtu if type(mtu) is int and mtu > 0 else None, frozenset(routes) if dictionaries(result, "ips") else None)


def dictionaries(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = result.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


# ---- the answer -------------------------------------------------------------------------------------------------


class Interface(msgspec.Struct, frozen=True):
    """`sandbox`: the namespace's path, "" for one on the node."""

    name: str
    mac: bytes
    mtu: int
    sandbox: str = ""


class Address(msgspec.Struct, frozen=True):
    """Of the last of the interfaces."""

    address: Prefix
    gateway: bytes


def result(conf: Conf, interfaces: Sequence[Interface], ips: Sequence[Address], routes: Sequence[tuple[Prefix, bytes]]) -> dict[str, Any]:
    """What ADD prints, in the configuration's version; what a plugin before us made comes first."""
    before = conf.prev_result or {}
    lists = {name: found if isinstance(found := before.get(name), list) else [] for name in ("interfaces", "ips", "routes")}
    last = len(lists["interfaces"]) + len(interfaces) - 1
    old = conf.cni_version not in ("1.0.0", "1.1.0")
    return before | {
        "cniVersion": conf.cni_version,
        "interfaces": [*lists["interfaces"], *(interface_document(each, conf.cni_version) for each in interfaces)],
        "ips": [
            *lists["ips"],
            *(
                ({"version": str(ip.address.family)} if old else {}) | {"address": str(ip.address), "gateway": format_address(ip.gateway), "interface": last}
                for ip in ips
            ),
        ],
        "routes": [*lists["routes"], *({"dst": str(dst), "gw": format_address(gateway)} for dst, gateway in routes)],
        "dns": conf.runtime_config.dns if conf.runtime_config.dns is not None else conf.dns or before.get("dns") or {},
    }


def interface_document(interface: Interface, version: str) -> dict[str, Any]:
    mtu = {"mtu": interface.mtu} if version == "1.1.0" else {}
    sandbox = {"sandbox": interface.sandbox} if interface.sandbox else {}
    return {"name": interface.name, "mac": format_mac(interface.mac)} | mtu | sandbox


def error_document(version: str, error: CniError) -> dict[str, Any]:
    return {"cniVersion": version, "code": error.code, "msg": str(error)} | ({"details": error.details} if error.details else {})


def version_of(data: bytes) -> str:
    """The version that an error is told in, also where the rest of the configuration cannot be read."""
    found = re.search(rb'"cniVersion"\s*:\s*"([0-9A-Za-z.+-]{1,32})"', data)
    return found[1].decode() if found and found[1].decode() in VERSIONS else VERSIONS[-1]


def answer(code: int, document: Any = None, log: str = "") -> bytes:
    """The bytes that the relay gets."""
    return bytes([code]) + log.replace("\0", " ").encode() + b"\0" + (msgspec.json.encode(document) if document is not None else b"")
