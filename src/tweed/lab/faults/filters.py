"""Faults of what lets packets pass: packet filters and sysctls."""

from __future__ import annotations

from tweed.addr import format_address
from tweed.errors import UsageError
from tweed.lab.faults.plan import Fault, Plan, on, pod_of, vxlan_of
from tweed.lab.faults.scene import Scene

TABLE = "inet intruder"


def dropped(scene: Scene, hook: str, rule: str, *, arriving: bool) -> Plan:
    text = f"nft 'add table {TABLE}; add chain {TABLE} {hook} {{ type filter hook {hook} priority 0; }}; add rule {TABLE} {hook} {rule} drop'"
    return Plan(on(scene.here.node, text), on(scene.here.node, f"nft delete table {TABLE}"), arriving)


def udp_dropped(scene: Scene) -> Plan:
    return dropped(scene, "input", f"udp dport {vxlan_of(scene.here).port}", arriving=True)


def forward_dropped(scene: Scene) -> Plan:
    return dropped(scene, "forward", f"{'ip' if scene.family == 4 else 'ip6'} daddr {scene.peer.subnet}", arriving=False)


def rp_filter(scene: Scene) -> Plan:
    """Strict, while the way back to the peer's pod is another device than the one that its packets come in by."""
    if scene.family == 6:
        raise UsageError("rp-filter: Linux has no rp_filter for IPv6")
    here, peer = scene.here, scene.peer
    key = f"net/ipv4/conf/{here.vtep.name}/rp_filter"
    back = f"{format_address(pod_of(peer).address)} via {format_address(peer.public)} dev {here.nic}"
    return Plan(
        on(here.node, f"sysctl -qw {key}=1", f"ip route add {back}"),
        on(here.node, f"ip route del {back}", f"sysctl -qw {key}={here.rp_filter}"),
        arriving=True,
    )


def forward_off(scene: Scene) -> Plan:
    key = "net.ipv4.ip_forward" if scene.family == 4 else "net.ipv6.conf.all.forwarding"
    return Plan(on(scene.here.node, f"sysctl -qw {key}=0"), on(scene.here.node, f"sysctl -qw {key}=1"))


FAULTS = (
    Fault("udp-dropped", "a packet filter drops the tunnel's UDP packets on arrival", udp_dropped),
    Fault("forward-dropped", "a packet filter drops forwarded packets for the peer's pods", forward_dropped),
    Fault("rp-filter", "rp_filter is strict and the way back is another device", rp_filter),
    Fault("ip-forward-off", "the node does not forward packets", forward_off),
)
