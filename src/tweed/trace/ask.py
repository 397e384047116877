"""The kernel's own answer to every question of a walk: which row wins? One request each, of a row that our evaluation has chosen already.

A kernel that answers otherwise shows a mistake of ours (or a table that changed meanwhile): it is told, and never hidden.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping

import msgspec

from tweed.addr import format_address, format_mac
from tweed.errors import KernelError
from tweed.kernel import tables as kernel
from tweed.kernel.netlink import Netlink
from tweed.model import NUD_FAILED, NUD_INCOMPLETE, NUD_PERMANENT, TABLE_NAMES, TYPE_NAMES, Route
from tweed.trace.cluster import Cluster
from tweed.trace.fib import metric
from tweed.trace.inside import port_of
from tweed.trace.path import NO_ANSWER
from tweed.trace.result import Asked, Finding, Said, Step, Walk
from tweed.trace.rules import PROTOCOLS_WITH_PORTS, Flow
from tweed.trace.tables import Answer, Tables

KINDS = {errno.EINVAL: "blackhole", errno.EHOSTUNREACH: "unreachable", errno.EACCES: "prohibit", errno.ENETUNREACH: "missing"}
# The kernel checks a forwarded packet's source and whether the device forwards in the same call; neither is about the row.
ABOUT_THE_SOURCE = (errno.EXDEV, errno.EINVAL, errno.EHOSTUNREACH)


def ask(walk: Walk, cluster: Cluster, spaces: Mapping[str, int | None]) -> Walk:
    """The walk with the kernel's word at each step, and a finding for each difference. `spaces`: file descriptors of the namespaces by node."""
    with contextlib.ExitStack() as stack:
        sockets: dict[str, Netlink] = {}
        answers: dict[tuple[str, Asked], tuple[str, str] | None] = {}
        steps: list[Step] = []
        findings: list[Finding] = []
        for step in walk.steps:
            if step.asked is None or step.node not in spaces:
                steps.append(step)
                continue
            if step.node not in sockets:
                sockets[step.node] = stack.enter_context(Netlink(spaces[step.node]))
            key = (step.node, step.asked)
            if key not in answers:
                answers[key] = compare(sockets[step.node], cluster.tables[step.node], step.asked)
                if (pair := answers[key]) is not None and pair[0] != pair[1]:
                    params = {"question": question(step.asked), "ours": pair[0], "kernel": pair[1]}
                    findings.append(Finding(step.node, Said("evaluation-differs", params), (step.row,) if step.row is not None else ()))
            told = answers[key]
            steps.append(step if told is None else msgspec.structs.replace(step, kernel="agrees" if told[0] == told[1] else "differs"))
    reply = walk.reply
    if reply is not None:
        asked = ask(reply, cluster, spaces)
        findings += [each for each in asked.findings if each not in findings]
        reply = msgspec.structs.replace(asked, findings=reply.findings)
    return msgspec.structs.replace(walk, steps=tuple(steps), findings=(*walk.findings, *findings), reply=reply)


def differs(walk: Walk) -> bool:
    return any(step.kernel == "differs" for each in (walk, walk.reply) if each is not None for step in each.steps)


def question(asked: Asked) -> str:
    """As a person would ask it."""
    if asked.table == "fdb":
        return f"bridge fdb get {format_mac(asked.address)} {'br' if asked.master else 'dev'} {asked.device}"
    if asked.table == "neighbour":
        return f"ip neigh get {format_address(asked.address)} dev {asked.device}"
    words = {"from": format_address(asked.src) if asked.src else None, "iif": asked.iif, "oif": asked.oif}
    return " ".join(["ip route get fibmatch", format_address(asked.address), *(f"{name} {value}" for name, value in words.items() if value)])


def compare(nl: Netlink, tables: Tables, asked: Asked) -> tuple[str, str] | None:
    """Our answer and the kernel's, in words; None where the kernel cannot be asked that."""
    try:
        if asked.table == "route":
            return compare_route(nl, tables, asked)
        if asked.table == "neighbour":
            row, _ = tables.neighbour(asked.address, asked.device)
            there = kernel.lookup_neighbour(nl, asked.address, asked.device)
            mac = there.mac if there is not None and not there.state & (NUD_FAILED | NUD_INCOMPLETE) else None
            ours = row.mac if row is not None and row.state not in NO_ANSWER else None
            lasting = (row is not None and row.state == "PERMANENT") or (there is not None and bool(there.state & NUD_PERMANENT))
            if (ours is None) != (mac is None) and not lasting:
                return None  # learned or forgotten since the tables were read
            return mac_words(ours), mac_words(mac)
        if asked.master:
            port = port_of(tables, asked.device, asked.address)
            found = kernel.lookup_fdb(nl, asked.address, asked.device, vlan=port.vlan if port is not None else None, master=True)
            return port.device if port is not None else "none", found.device if found is not None else "none"
        found = kernel.lookup_fdb(nl, asked.address, asked.device)
        if any(row.nexthop_id is not None for row in tables.fdb.get((asked.device, asked.address), ())):
            return None
        hosts = [format_address(row.dst) for row in tables.fdb.get((asked.device, asked.address), ()) if row.dst is not None]
        host = format_address(found.dst) if found is not None and found.dst is not None else "none"
        return host if host in hosts else " ".join(hosts) or "none", host
    except KernelError as error:
        if error.errno in (errno.ENODEV, errno.ENETDOWN, errno.EOPNOTSUPP):  # the device has gone, or this kernel cannot tell
            return None
        raise


def mac_words(mac: bytes | None) -> str:
    return "none" if mac is None else format_mac(mac)


def compare_route(nl: Netlink, tables: Tables, asked: Asked) -> tuple[str, str] | None:
    flow = Flow(asked.proto, asked.sport, asked.dport)
    ours = tables.lookup(asked.address, src=asked.src, iif=asked.iif, oif=asked.oif, flow=flow)
    if ours.kind == "unknown" or any(said.id == "rule-not-evaluated" for said in ours.assumptions):
        return None
    ports = (asked.sport, asked.dport) if asked.proto in PROTOCOLS_WITH_PORTS else (None, None)
    proto = asked.proto if ports != (None, None) else None
    try:
        theirs = kernel.lookup_route(nl, asked.address, src=asked.src, iif=asked.iif, oif=asked.oif, proto=proto, sport=ports[0], dport=ports[1])
    except KernelError as error:
        kind = KINDS.get(error.errno)
        if kind is None or (asked.iif is not None and error.errno in ABOUT_THE_SOURCE and ours.kind in ("unicast", "local")):
            return None
        # A rule that drops and a table without the row may look the same from here.
        kind = ours.kind if kind == "missing" and ours.row is None else kind
        return ours.kind if ours.row is None or ours.kind == kind else row_words(ours), kind
    return row_words(ours, theirs), kernel_words(theirs)


def row_words(ours: Answer, theirs: Route | None = None) -> str:
    """Destination, metric and next hop of our row; of several next hops the one that the kernel names, which for IPv6 a hash chooses."""
    row = ours.row
    if row is None:
        return ours.kind
    if ours.kind in ("blackhole", "unreachable", "prohibit"):
        return f"{ours.kind} {row.dst}"
    hops = [(hop.gateway, hop.device or "") for hop in ours.hops] or [(None, "")]
    named = (theirs.gateway, theirs.device) if theirs is not None else hops[0]
    return words(ours.kind, str(row.dst), named if named in hops else hops[0], metric(row), row.table)


def kernel_words(row: Route) -> str:
    return words(TYPE_NAMES.get(row.type, "?"), str(row.dst), (row.gateway, row.device), row.metric, TABLE_NAMES.get(row.table, str(row.table)))


def words(kind: str, dst: str, hop: tuple[bytes | None, str], metric: int, table: str) -> str:
    # Without rules of one's own the kernel keeps local and main in one table, and says main of both (fib_trie).
    parts = [kind if kind != "unicast" else "", dst, f"via {format_address(hop[0])}" if hop[0] is not None else "", f"dev {hop[1]}" if hop[1] else ""]
    parts += [f"metric {metric}" if metric else "", f"table {table}" if table not in ("main", "local") else ""]
    return " ".join(filter(None, parts))
