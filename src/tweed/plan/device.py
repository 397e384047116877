"""Our devices: what they should be, and the steps from what is there."""

from __future__ import annotations

import msgspec

from tweed.addr import Prefix, format_address, format_mac
from tweed.model import Device, Lease, Link, Tun, Vtep
from tweed.plan.underlay import Underlay
from tweed.wire.flannel import Network, device_name

# What encapsulation adds to a container's packet: inner Ethernet 14, outer IP 20 or 40, UDP 8, VXLAN 8 (RFC 7348 section 5).
OVERHEAD = {4: 50, 6: 70}
# flannel's device of the UDP mode, and what that adds: outer IP 20, UDP 8.
TUN_DEVICE, TUN_OVERHEAD = "flannel0", 28


def wanted_vteps(network: Network, lease: Lease, underlay: Underlay) -> tuple[Vtep, ...]:
    """This node's VTEP devices, one per family of its lease. The MTU is the underlay's (or the configured one, where less) less the overhead."""
    base = min(network.mtu or underlay.mtu, underlay.mtu)
    vteps = []
    for endpoint, local in ((lease.v4, underlay.local), (lease.v6, underlay.local6)):
        if endpoint is None or endpoint.mac is None or local is None:
            continue
        family = endpoint.subnet.family
        vteps.append(
            Vtep(
                name=device_name(network.vni, family),
                vni=network.vni,
                port=network.port,
                local=local,
                underlay=underlay.device,
                mac=endpoint.mac,
                mtu=base - OVERHEAD[family],
                address=Prefix(endpoint.subnet.address, endpoint.subnet.bits),
                learning=network.learning,
                gbp=network.gbp,
            )
        )
    return tuple(vteps)


def wanted_tun(network: Network, lease: Lease, underlay: Underlay) -> tuple[Tun, ...]:
    """This node's TUN device in the UDP mode."""
    if lease.v4 is None or underlay.local is None:
        return ()
    subnet = lease.v4.subnet
    return (Tun(TUN_DEVICE, network.port, underlay.local, underlay.device, underlay.mtu - TUN_OVERHEAD, Prefix(subnet.address, subnet.bits)),)


class Create(msgspec.Struct, frozen=True):
    device: Device

    def __str__(self) -> str:
        return f"ip tuntap add {self.device}" if isinstance(self.device, Tun) else f"ip link add {self.device}"


class Delete(msgspec.Struct, frozen=True):
    """Only for a device of ours that cannot be changed in place; `why` names the attribute."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"ip link del {self.name}"


class SetLocal(msgspec.Struct, frozen=True):
    """Attributes that `vxlan_changelink` takes in place: no row is lost."""

    vtep: Vtep

    def __str__(self) -> str:
        v = self.vtep
        learning = "learning" if v.learning else "nolearning"
        return f"ip link set {v.name} type vxlan id {v.vni} local {format_address(v.local)} dev {v.underlay} {learning}"


class SetMtu(msgspec.Struct, frozen=True):
    name: str
    mtu: int

    def __str__(self) -> str:
        return f"ip link set {self.name} mtu {self.mtu}"


class SetMac(msgspec.Struct, frozen=True):
    """Never planned when the MAC is right already: the kernel flushes all permanent neighbours even for the same value."""

    name: str
    mac: bytes

    def __str__(self) -> str:
        return f"ip link set {self.name} address {format_mac(self.mac)}"


class SetUp(msgspec.Struct, frozen=True):
    name: str

    def __str__(self) -> str:
        return f"ip link set {self.name} up"


DeviceStep = Create | Delete | SetLocal | SetMtu | SetMac | SetUp


def device_steps(want: Device, have: Link | None, underlay: int) -> tuple[DeviceStep, ...]:
    """Steps that make the device `want`, given it as the kernel shows it and the ifindex of its underlay. Empty when it is right.

    Raises ValueError with a reason when a device of this name exists that is of another kind: it is not ours to delete.
    """
    if have is not None and have.kind != ("tun" if isinstance(want, Tun) else "vxlan"):
        raise ValueError(f"a device named {want.name} exists and is a {have.kind or 'physical'} device: rename or remove it")
    if isinstance(want, Tun):
        created = (Create(want),) if have is None else ()
        # The kernel gives a new TUN device its own MTU, whatever it is asked for.
        sized = (SetMtu(want.name, want.mtu),) if have is None or have.mtu != want.mtu else ()
        return (*created, *sized, *((SetUp(want.name),) if have is None or not have.up else ()))
    if have is None:
        return (Create(want), SetUp(want.name))
    if why := _unchangeable(want, have):
        return (Delete(want.name, why), Create(want), SetUp(want.name))
    assert have.vxlan is not None
    steps: list[DeviceStep] = []
    if (have.vxlan.local, have.vxlan.underlay, have.vxlan.learning) != (want.local, underlay, want.learning):
        steps.append(SetLocal(want))
    if have.mtu != want.mtu:
        steps.append(SetMtu(want.name, want.mtu))
    if have.mac != want.mac:
        steps.append(SetMac(want.name, want.mac))
    if not have.up:
        steps.append(SetUp(want.name))
    return tuple(steps)


def _unchangeable(want: Vtep, have: Link) -> str:
    """The attribute that only a new device can have, "" when there is none.

    `udpcsum` is not among them: a receiver takes IPv4 packets with and without it. IPv6 without is dropped by default.
    Nor is `l2miss`, which old flannelds set: it only makes the kernel tell listeners of its own host.
    """
    vxlan = have.vxlan
    assert vxlan is not None
    for name, is_now, should in (
        ("id", vxlan.vni, want.vni),
        ("dstport", vxlan.port, want.port),
        ("gbp", vxlan.gbp, want.gbp),
        ("group", vxlan.group is not None, False),
        ("external", vxlan.collect_metadata, False),
        ("udp6zerocsumtx", want.family == 6 and vxlan.udp6_zero_csum_tx, False),
    ):
        if is_now != should:
            return f"{name} is {is_now}, should be {should}"
    return ""
