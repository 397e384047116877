"""The tables of network namespaces as they are now, one dump per table: what `tweed snapshot` writes and a live walk starts from."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from tweed.addr import format_address
from tweed.errors import KernelError
from tweed.kernel import iptables
from tweed.kernel.netlink import Netlink
from tweed.kernel.netns import run_in
from tweed.kernel.nft import Nft
from tweed.trace import rtnetlink, xfrm
from tweed.trace import rtnetlink_routes as routing
from tweed.trace import snapshot as s
from tweed.trace.iptables import SAVED_BY
from tweed.wire import link as link_wire
from tweed.wire import rtnl
from tweed.wire.rule import dump_rules

SYSCTLS = Path("/proc/sys")
NETLINK_XFRM = 6
# What a walk evaluates; `*` is every device, `all` and `default`.
KEYS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/*/accept_local",
    "net/ipv4/conf/*/ignore_routes_with_linkdown",
    "net/ipv4/conf/*/proxy_arp",
    "net/ipv4/icmp_echo_ignore_all",
    "net/ipv6/icmp/echo_ignore_all",
    "net/ipv6/conf/*/forwarding",
    "net/ipv6/conf/*/disable_ipv6",
    "net/ipv6/conf/*/ignore_routes_with_linkdown",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
)
COMMANDS: dict[s.Table, str] = {
    "link": "ip -d link",
    "address": "ip addr",
    "port": "bridge link",
    "nexthop": "ip nexthop",
    "neighbour": "ip neigh",
    "fdb": "bridge fdb",
    "socket": "ss -uln",
    "sysctl": "sysctl -a",
    "nft": "nft list ruleset",
}
SHOWN = (
    *(s.Shown(table=table, command=command, source="kernel") for table, command in COMMANDS.items()),
    *(s.Shown(table="rule", family=family, command=f"ip -{family} rule", source="kernel") for family in (4, 6)),
    *(s.Shown(table="route", family=family, route_table="all", command=f"ip -{family} route show table all", source="kernel") for family in (4, 6)),
)


def node(name: str, netns: int | None = None) -> s.Node:
    """The tables of one namespace (a file descriptor, None: the caller's own). Raises KernelError."""
    with Netlink(netns) as nl:
        links = nl.dump(link_wire.dump_links(), COMMANDS["link"])
        known = rtnetlink.names(links)
        rows = rtnetlink.devices(links, known)
        families = (4, 6)
        made = s.Node(
            name=name,
            devices=tuple(row for row in rows if isinstance(row, s.DeviceRow)),
            ports=tuple(row for row in rows if isinstance(row, s.PortRow)),
            addresses=tuple(rtnetlink.addresses(nl.dump(rtnl.dump_addresses(0, 0), COMMANDS["address"]), known)),
            rules=tuple(row for f in families for row in routing.rules(dump(nl, dump_rules(f), f"ip -{f} rule"))),
            routes=tuple(row for f in families for row in routing.routes(dump(nl, rtnl.dump_routes(f, 0, 0, 0), f"ip -{f} route show table all"), known)),
            nexthops=tuple(routing.nexthops(dump(nl, routing.dump_nexthops(), COMMANDS["nexthop"]), known)),
            neighbours=tuple(row for f in families for row in rtnetlink.neighbours(dump(nl, rtnetlink.dump_neighbours(f), "ip neigh"), known)),
            fdb=tuple(rtnetlink.fdb(nl.dump(rtnl.dump_fdb(0, bridge=False), COMMANDS["fdb"]), known)),
            shown=SHOWN,
        )
    return run_in(netns, lambda: with_files(made, known)) if netns is not None else with_files(made, known)


def dump(nl: Netlink, question: bytes, operation: str) -> list[bytes]:
    """An empty answer where the kernel has no such family (IPv6 off) or no such table."""
    try:
        return nl.dump(question, operation)
    except KernelError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT):
            return []
        raise


def with_files(made: s.Node, known: Mapping[int, str]) -> s.Node:
    """The same with what the calling thread's namespace says in /proc and of its firewalls. `known`: device names by index."""
    more = {"sockets": sockets(), "sysctls": sysctls(), "nft": ruleset(), "iptables": old_rules(), "policies": policies(known)}
    return s.Node(**{field: getattr(made, field) for field in made.__struct_fields__} | more)


def sysctls() -> tuple[s.SysctlRow, ...]:
    rows: list[s.SysctlRow] = []
    for key in KEYS:
        before, star, after = key.partition("*")
        try:
            names = sorted(os.listdir(SYSCTLS / before)) if star else [""]
        except FileNotFoundError:
            continue
        for name in names:
            path = f"{before}{name}{after}"
            try:
                value = (SYSCTLS / path).read_text().strip()
            except OSError:  # a device that has gone, a module that is not loaded
                continue
            text = f"{path.replace('.', chr(0)).replace('/', '.').replace(chr(0), '/')} = {value}"
            rows.append(s.SysctlRow(source=f"sysctl:{len(rows) + 1}", text=text, key=path, value=value))
    return tuple(rows)


def sockets() -> tuple[s.SocketRow, ...]:
    """UDP sockets, the kernel's own (vxlan) too."""
    rows: list[s.SocketRow] = []
    for name in ("udp", "udp6"):
        try:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            address, port = endpoint(line.split()[1])
            host = format_address(address) if len(address) == 4 else f"[{format_address(address)}]"
            rows.append(s.SocketRow(source=f"ss:{len(rows) + 1}", text=f"UNCONN 0 0 {host}:{port}", port=port, address=address))
    return tuple(rows)


def endpoint(text: str) -> tuple[bytes, int]:
    """`0100007F:2118`: the address as 32-bit numbers in host byte order, the port as a number."""
    address, _, port = text.partition(":")
    words = [int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)]
    return b"".join(words), int(port, 16)


def ruleset() -> tuple[s.EvidenceRow, ...]:
    """The nft rules as lines; none where nothing can be asked (neither libnftables nor nft is installed, or no rights)."""
    try:
        with Nft() as nft:
            text = nft.listing("list ruleset")
    except KernelError:
        return ()
    return tuple(s.EvidenceRow(source=f"nft:{number}", text=line.strip()) for number, line in enumerate(text.splitlines(), 1))


def old_rules() -> tuple[s.EvidenceRow, ...]:
    """The rules of iptables' old tables, where there are some and a program that reads them."""
    try:
        saved = iptables.legacy_rules()
    except KernelError:
        return ()
    rows = []
    for program, text in saved:  # which calls itself plain iptables
        lines = [f"{SAVED_BY}{program}-save", *(line.strip() for line in text.splitlines()[1:])]
        rows += [s.EvidenceRow(source=f"{program}-save:{number}", text=line) for number, line in enumerate(lines, 1) if number == 1 or line[:1] != "#"]
    return tuple(rows)


def policies(known: Mapping[int, str]) -> tuple[s.PolicyRow, ...]:
    """IPsec's policies; none in a kernel without IPsec, and none without the right to see them (CAP_NET_ADMIN)."""
    try:
        with Netlink(opened=socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_XFRM)) as nl:
            return tuple(xfrm.policies(nl.dump(xfrm.dump_policies(), "ip xfrm policy"), known))
    except (KernelError, OSError):
        return ()
