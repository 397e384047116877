"""The walk: what tables say becomes of one packet. A pure function of a snapshot and a probe.

cluster = Cluster(snapshot)
walk(cluster, Probe(src, dst)) -> Walk
"""

from __future__ import annotations

from tweed.addr import format_address
from tweed.errors import UsageError
from tweed.trace import snapshot as s
from tweed.trace.cluster import Cluster, holds_containers
from tweed.trace.frames import Probe
from tweed.trace.inside import from_container, leave_container, over_bridge, over_veth
from tweed.trace.path import Path
from tweed.trace.result import VERDICTS, Finding, Tier, Walk
from tweed.trace.tables import quote
from tweed.trace.trail import Packet
from tweed.trace.udpmode import send_udp
from tweed.trace.vxlan import send_vxlan
from tweed.trace.wire import over_wire

# Kinds that hand a packet on as it is; "" is a NIC, None a device of which nothing tells the kind.
WIRES = (None, "", "veth", "vlan", "bond", "macvlan", "ipvlan", "team", "dummy")


def walk(cluster: Cluster, probe: Probe, findings: tuple[Finding, ...] = (), tier: Tier = "text") -> Walk:
    """Follow one packet. Raises UsageError for a packet that cannot be, and for a source that no table speaks of.

    `findings` (of findings.findings) are about the tables and go along unchanged: one look serves many walks.
    """
    probe.check()
    if not cluster.tables:
        raise UsageError("no tables: nothing in the input looks like the output of ip, bridge, ss or sysctl")
    for address in (probe.src, probe.dst):
        if not cluster.known(address) and (address == probe.src or not cluster.leads_out(address)):
            raise UsageError(f"{format_address(address)}: no table here speaks of this address, so nobody knows where it is")
    path = Path(cluster, probe, leave)
    start(path)
    outcomes = {branch: path.outcomes[branch] for branch in sorted(path.outcomes, key=natural)}
    verdict = max(outcomes.values(), key=VERDICTS.index)
    return Walk(probe.src, probe.dst, verdict, tier, tuple(path.steps), path.divergence, findings, outcomes)


def start(path: Path) -> None:
    """From the namespace that has the source, else from behind the node that reaches it directly."""
    owner = path.cluster.owner(path.src)
    if owner is not None:
        path.ends.add(path.cluster.host_of(owner.tables).name)
        container = path.cluster.host_of(owner.tables) is not owner.tables
        params = {"address": format_address(path.src)}
        packet = Packet(owner.tables)
        if container:
            path.source_device = owner.device
            path.step(packet, owner.device, "source-namespace", params | {"device": owner.device}, quote(owner.row))
        else:
            path.step(packet, owner.device, "source-host", params, quote(owner.row))
        if not path.silent(packet, owner.device):
            path.route(packet)
        return
    behind = path.cluster.behind(path.src)
    if behind is None:
        somewhere = next(iter(path.cluster.tables.values()))
        packet = Packet(somewhere)
        path.step(packet, "", "ends-source-elsewhere", {"address": format_address(path.src)})
        path.end(packet, "unknown")
        return
    from_container(path, behind)


def leave(path: Path, packet: Packet, device: str, target: bytes, row: s.RouteRow) -> None:
    """By the kind of the device. `target`: the next hop, or the destination itself."""
    at = packet.at
    if at.complete("link") and device not in at.devices and len(at.devices) > 1:
        path.fail(packet, device, "dropped", "device-missing", {"device": device}, quote(row))
        return
    if not path.is_up(packet, device):
        return
    fitted = path.fitted(packet, device, row)
    if fitted is None:
        return
    packet = fitted
    if row.encap is not None:
        path.step(packet, device, "ends-encap", {"encap": row.encap, "device": device}, quote(row))
        path.end(packet, "unknown")
        return
    kind, assumed = at.kind(device)
    if path.cluster.host_of(at) is not at:
        leave_container(path, packet, device, target)
    elif kind == "vxlan":
        send_vxlan(path, packet, device, target, assumed)
    elif kind == "tun":
        send_udp(path, packet, device, target, assumed)
    elif kind == "bridge":
        over_bridge(path, packet, device, target)
    elif kind == "veth" and holds_containers(at, device):
        over_veth(path, packet, device, target)
    elif kind in WIRES:
        over_wire(path, packet, device, target)
    else:
        path.step(packet, device, "ends-device-kind", {"device": device, "kind": str(kind)})
        path.end(packet, "unknown")


def natural(branch: str) -> tuple[int, ...]:
    """Branch names in the order of their numbers."""
    return tuple(int(part) for part in branch.split(".") if part)
