"""Faults of devices: the VTEP, the underlay's, the bridge, a pod's cable."""

from __future__ import annotations

import msgspec

from tweed.addr import format_address
from tweed.lab.faults.plan import Deeds, Fault, Plan, create, delete, on, pod_name, pod_of, put, put_all, vxlan_of
from tweed.lab.faults.scene import BRIDGE, Scene, Side, free_address
from tweed.model import PROTOCOL_KERNEL, Route, Vxlan

INTRUDER = "vxlan9"
SCOPE_LINK = 253


def anew(side: Side, vxlan: Vxlan) -> Plan:
    """Kernels change neither VNI nor port of a device that exists."""
    gone = on(side.node, f"ip link del {side.vtep.name}")
    return Plan((*gone, *create(side, vxlan)), (*gone, *create(side, vxlan_of(side))))


def vni_mismatch(scene: Scene) -> Plan:
    vxlan = vxlan_of(scene.here)
    return anew(scene.here, msgspec.structs.replace(vxlan, vni=vxlan.vni % 0xFFFFFF + 1))


def port_mismatch(scene: Scene) -> Plan:
    vxlan = vxlan_of(scene.here)
    return anew(scene.here, msgspec.structs.replace(vxlan, port=vxlan.port % 0xFFFF + 1))


def vtep_down(scene: Scene) -> Plan:
    """A device that is down can have neither routes nor neighbours: they go with it."""
    here = scene.here
    return Plan(on(here.node, f"ip link set {here.vtep.name} down"), (*on(here.node, f"ip link set {here.vtep.name} up"), *put_all(here.node, here.rows)))


def vxlan_port_taken(scene: Scene) -> Plan:
    """Devices share a port only where their flags are equal (vxlan_sock_add, VXLAN_F_RCV_FLAGS): of two that differ the second does not come up."""
    here, name, own = scene.here, scene.here.vtep.name, vxlan_of(scene.here)
    assert own.local is not None, "flannel's devices have a local address"
    other = f"id {own.vni % 0xFFFFFF + 1} local {format_address(own.local)} dev {here.nic} dstport {own.port}{'' if own.gbp else ' gbp'}"
    take = [f"ip link set {name} down", f"ip link add {INTRUDER} type vxlan {other}", f"ip link set {INTRUDER} up"]
    return Plan(on(here.node, *take), (*on(here.node, f"ip link del {INTRUDER}", f"ip link set {name} up"), *put_all(here.node, here.rows)))


def local_wrong(scene: Scene) -> Plan:
    here, own = scene.here, vxlan_of(scene.here).local
    assert own is not None, "flannel's devices have a local address"
    texts = (f"ip link set {here.vtep.name} type vxlan local {format_address(address)} dev {here.nic}" for address in (free_address(scene), own))
    do, undo = (on(here.node, text) for text in texts)
    return Plan(do, undo)


def nic_down(scene: Scene) -> Plan:
    here = scene.here
    return Plan(
        on(here.node, f"ip link set {here.nic} down"),
        (*on(here.node, f"ip link set {here.nic} up"), *put_all(here.node, here.underlay), *connected(here)),
        arriving=True,
    )


def connected(side: Side) -> Deeds:
    """The kernel's own routes for the addresses, which come back with the device, where somebody had replaced them (by ones with a metric)."""
    rows = [Route(row.address.network, side.nic, protocol=PROTOCOL_KERNEL, scope=SCOPE_LINK, src=row.address.address) for row in side.underlay.addresses]
    return delete(side.node, *(row for row in rows if side.subnet.family == 4 and row not in side.underlay.routes))


def bridge_down(scene: Scene) -> Plan:
    return Plan(on(scene.here.node, f"ip link set {BRIDGE} down"), (*on(scene.here.node, f"ip link set {BRIDGE} up"), *bridge_rows(scene.here)), arriving=True)


def bridge_rows(side: Side) -> Deeds:
    """IPv4 addresses stay on a device that goes down, IPv6 ones do not, the link-local one among them."""
    link_local = (msgspec.structs.replace(row, nodad=True) for row in side.bridge.addresses if row.scope)
    return (*put(side.node, link_local), *put_all(side.node, side.bridge)) if side.subnet.family == 6 else ()


def veth_detached(scene: Scene) -> Plan:
    here, pod = scene.here, pod_of(scene.here)
    back = [f"ip link set {pod.veth} master {BRIDGE}", f"bridge link set dev {pod.veth} hairpin {'on' if pod.hairpin else 'off'}"]
    return Plan(on(here.node, f"ip link set {pod.veth} nomaster"), on(here.node, *back), arriving=True)


def pod_mtu(scene: Scene) -> Plan:
    here, pod = scene.here, pod_of(scene.here)
    return Plan(on(pod_name(here), f"ip link set eth0 mtu {here.nic_mtu}"), on(pod_name(here), f"ip link set eth0 mtu {pod.mtu}"))


FAULTS = (
    Fault("vni-mismatch", "the node's VXLAN device has another VNI than its peers'", vni_mismatch),
    Fault("port-mismatch", "the node's VXLAN device has another UDP port than its peers'", port_mismatch),
    Fault("vtep-down", "the node's VXLAN device is down", vtep_down),
    Fault("vxlan-port-taken", "a second VXLAN device has taken the UDP port, so the node's own cannot come up", vxlan_port_taken),
    Fault("local-wrong", "the node's VXLAN device sends from an address that is not the node's", local_wrong),
    Fault("nic-down", "the underlay device of the node is down", nic_down),
    Fault("bridge-down", "the bridge of the node's pods is down", bridge_down),
    Fault("veth-detached", "the pod's veth is no port of the bridge", veth_detached),
    Fault("pod-mtu", "the MTU inside the pod is larger than the tunnel's", pod_mtu),
)
