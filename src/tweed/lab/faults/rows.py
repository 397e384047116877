"""Faults of single rows: routes, rules, neighbours, forwarding entries, and the lease that they come from."""

from __future__ import annotations

import msgspec

from tweed.addr import format_address, format_mac
from tweed.errors import UsageError
from tweed.lab.faults.plan import NOBODY, Deeds, Fault, LeaseMac, Plan, delete, on, pod_name, pod_of, put
from tweed.lab.faults.scene import Scene, Side, default_gateway, free_gateway, missing, route_to
from tweed.model import PROTOCOL_BOOT, Change, FdbEntry, Neighbour, Route

TABLE = 100  # the routing table that a rule leads to


def peer_rows(side: Side, peer: Side) -> tuple[FdbEntry, Neighbour, Route]:
    """The three rows by which `side` reaches `peer`. Raises TweedError when one is missing already."""
    route = route_to(side, peer)
    neighbour = next((row for row in side.rows.neighbours if row.address == route.gateway), None)
    entry = next((row for row in side.rows.fdb if neighbour is not None and row.mac == neighbour.mac and row.dst is not None), None)
    if neighbour is None or entry is None:
        raise missing(side, f"neighbour and fdb entry of {peer.node}")
    return entry, neighbour, route


# ---- routes and rules -----------------------------------------------------------------------------------------------


def route_missing(scene: Scene) -> Plan:
    here, route = scene.here.node, route_to(scene.here, scene.peer)
    return Plan(delete(here, route), put(here, [route]))


def route_wrong_node(scene: Scene) -> Plan:
    if not scene.others:
        raise UsageError("route-wrong-node needs a lab of at least three nodes")
    here, route = scene.here.node, route_to(scene.here, scene.peer)
    wrong = msgspec.structs.replace(route, gateway=route_to(scene.here, scene.others[0]).gateway)
    return Plan(put(here, [wrong]), put(here, [route]))


def route_blackhole(scene: Scene) -> Plan:
    target = format_address(pod_of(scene.peer).address)
    return Plan(on(scene.here.node, f"{scene.ip} route add blackhole {target}"), on(scene.here.node, f"{scene.ip} route del blackhole {target}"))


def route_leftover(scene: Scene) -> Plan:
    """IPv6 gives a route without a metric 1024, as ours have: there the leftover has 1."""
    here, route = scene.here.node, route_to(scene.here, scene.peer)
    leftover = msgspec.structs.replace(route, gateway=free_gateway(scene), metric=0 if scene.family == 4 else 1, protocol=PROTOCOL_BOOT)
    return Plan(put(here, [leftover]), delete(here, leftover))


def rule_other_table(scene: Scene) -> Plan:
    here = scene.here
    way_out = f"default via {format_address(default_gateway(here))} dev {here.nic} table {TABLE}"
    rule = f"to {scene.peer.subnet} lookup {TABLE} pref 1000"
    return Plan(
        on(here.node, f"{scene.ip} route add {way_out}", f"{scene.ip} rule add {rule}"),
        on(here.node, f"{scene.ip} rule del {rule}", f"{scene.ip} route del {way_out}"),
    )


def pod_route_missing(scene: Scene) -> Plan:
    here, target = scene.here, pod_of(scene.peer).address
    covering = sorted((route for route in pod_of(here).routes if route.dst.contains(target)), key=lambda route: route.dst.length)
    if not covering:
        raise missing(here, f"route to {format_address(target)} in pod {pod_of(here).name}")
    pod = pod_name(here)
    return Plan(on(pod, *(str(Change("delete", row)) for row in covering)), on(pod, *(str(Change("replace", row)) for row in covering)))


# ---- neighbours and forwarding entries ------------------------------------------------------------------------------


def neighbour_missing(scene: Scene) -> Plan:
    _, neighbour, _ = peer_rows(scene.here, scene.peer)
    return Plan(delete(scene.here.node, neighbour), put(scene.here.node, [neighbour]))


def vtep_mac_stale(scene: Scene) -> Plan:
    here = scene.here.node
    entry, neighbour, _ = peer_rows(scene.here, scene.peer)
    stale = msgspec.structs.replace(entry, mac=NOBODY)
    return Plan(
        (*put(here, [stale, msgspec.structs.replace(neighbour, mac=NOBODY)]), *delete(here, entry)),
        (*put(here, [entry, neighbour]), *delete(here, stale)),
    )


def fdb_missing(scene: Scene) -> Plan:
    entry, _, _ = peer_rows(scene.here, scene.peer)
    return Plan(delete(scene.here.node, entry), put(scene.here.node, [entry]))


def fdb_wrong_host(scene: Scene) -> Plan:
    entry, _, _ = peer_rows(scene.here, scene.peer)
    wrong = scene.others[0].public if scene.others else default_gateway(scene.here)
    return Plan(put(scene.here.node, [msgspec.structs.replace(entry, dst=wrong)]), put(scene.here.node, [entry]))


def underlay_neighbour_wrong(scene: Scene) -> Plan:
    here, peer = scene.here, scene.peer
    row = next((row for row in here.underlay.neighbours if row.address == peer.public), None)
    if row is None:
        raise missing(here, f"neighbour {format_address(peer.public)} on {here.nic}")
    return Plan(put(here.node, [msgspec.structs.replace(row, mac=NOBODY)]), put(here.node, [row]))


# ---- leases ---------------------------------------------------------------------------------------------------------


def vtep_mac_duplicate(scene: Scene) -> Plan:
    """As cloned machines have it: lease and device of the peer have this node's MAC, and every node has programmed what the leases say."""
    here, peer = scene.here, scene.peer
    do: list[Deeds] = [(LeaseMac(peer.node, str(peer.subnet), format_mac(here.mac)),), set_mac(peer, here.mac)]
    undo: list[Deeds] = [(LeaseMac(peer.node, str(peer.subnet), format_mac(peer.mac)),), set_mac(peer, peer.mac)]
    for side in (here, *scene.others):
        entry, neighbour, _ = peer_rows(side, peer)
        double = msgspec.structs.replace(entry, mac=here.mac)
        # Of one MAC a VXLAN device keeps one host: the last.
        do += [put(side.node, [double, msgspec.structs.replace(neighbour, mac=here.mac)]), delete(side.node, entry)]
        undo += [put(side.node, [entry, neighbour]), delete(side.node, double), put(side.node, (row for row in side.rows.fdb if row.mac == here.mac))]
    return Plan(tuple(deed for deeds in do for deed in deeds), tuple(deed for deeds in undo for deed in deeds))


def set_mac(side: Side, mac: bytes) -> Deeds:
    """The kernel flushes a device's neighbours when its MAC is set."""
    return (*on(side.node, f"ip link set {side.vtep.name} address {format_mac(mac)}"), *put(side.node, side.rows.neighbours))


FAULTS = (
    Fault("route-missing", "the route to the peer's subnet is missing", route_missing),
    Fault("route-wrong-node", "the route to the peer's subnet leads to another node", route_wrong_node),
    Fault("route-blackhole", "a more specific blackhole route covers the peer's pod", route_blackhole),
    Fault("route-leftover", "a leftover route without a metric wins over the right one", route_leftover),
    Fault("rule-other-table", "a policy rule sends packets for the peer to another table", rule_other_table),
    Fault("pod-route-missing", "the pod has no route to the destination", pod_route_missing),
    Fault("neighbour-missing", "the neighbour entry of the peer's VTEP is missing", neighbour_missing),
    Fault("vtep-mac-stale", "neighbour and fdb agree on a MAC that the peer's VTEP does not have", vtep_mac_stale),
    Fault("fdb-missing", "the fdb entry of the peer's VTEP is missing", fdb_missing),
    Fault("fdb-wrong-host", "the fdb entry of the peer's VTEP names another host", fdb_wrong_host),
    Fault("underlay-neighbour-wrong", "the underlay's neighbour entry of the peer's host has a wrong MAC", underlay_neighbour_wrong),
    Fault("vtep-mac-duplicate", "two nodes have one VTEP MAC, in their leases and on their devices", vtep_mac_duplicate),
)
