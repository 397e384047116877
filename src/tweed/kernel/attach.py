"""The steps of `plan.attach`, carried out. Settings that follow each other go in one send to the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from tweed.errors import KernelError
from tweed.kernel import links, sysctl
from tweed.kernel.container import Container
from tweed.kernel.netlink import Netlink
from tweed.kernel.tables import GONE, indices
from tweed.model import Change
from tweed.plan import attach as plan
from tweed.plan.attach import Hairpin, SetLink, Setting, Step
from tweed.wire import link, rtnl


def do(group: tuple[Step, ...], node: Netlink, known: Mapping[str, int], container: Container | None = None) -> None:
    """One step, or several settings of one side (`plan.groups`), on the node in whose namespace `node` and the caller are, or inside the container.

    `known`: ifindex by name, of devices of the node. Raises KernelError with the first that is refused; settings behind it are made all the same.
    """
    step = group[0]
    if step.inside:
        assert container is not None
        nl, known = container.nl, {}
    else:
        nl = node
    match step.action:
        case SetLink() | Hairpin() | Change():
            apply(nl, [each.action for each in group if isinstance(each.action, Setting)], known)
        case plan.CreateBridge(name, mac, mtu):
            links.create_bridge(nl, name, mac=mac, mtu=mtu)
        case plan.CreateVeth(name, mac, peer, peer_mac, mtu):
            assert container is not None
            links.create_veth(nl, name, peer, mtu=mtu, mac=mac, peer_mac=peer_mac, peer_netns=container.netns)
        case plan.DeleteLink(name):
            links.delete_link(nl, name)
        case plan.Sysctl(key, value):
            if step.inside:
                assert container is not None
                container.sysctl(key, value)
            else:
                sysctl.write(key, value)
        case plan.Announce(device, mac, addresses):
            assert container is not None
            container.send(device, [plan.announcement(mac, address) for address in addresses])


def apply(nl: Netlink, settings: Sequence[Setting], known: Mapping[str, int]) -> None:
    """All settings, in order. Deleting a row that is gone already is no failure. Raises KernelError with the first that is refused."""
    devices = [by_index(each) for each in settings]
    index = {**known, **indices(nl, {device for device in devices if device and device not in known})}
    for setting, device in zip(settings, devices, strict=True):
        if device is not None and device not in index:
            raise KernelError(str(setting), errno.ENODEV, f"no device {device}")
    for position, (code, text) in sorted(nl.send([encode(each, index) for each in settings]).items()):
        setting = settings[position]
        if not (isinstance(setting, Change) and setting.op == "delete" and code in GONE):
            raise KernelError(str(setting), code, text or os.strerror(code))


def by_index(setting: Setting) -> str | None:
    """The device that the message has to name by its index."""
    match setting:
        case SetLink():
            return setting.master
        case Change():
            return setting.row.device
        case Hairpin():
            return None


def encode(setting: Setting, index: Mapping[str, int]) -> bytes:
    match setting:
        case SetLink(name, up, mtu, master, no_link_local, promisc, alias):
            mode = None if no_link_local is None else "none" if no_link_local else "eui64"
            return link.set_link(name, up=up, mtu=mtu, master=None if master is None else index[master], addrgenmode=mode, promisc=promisc, alias=alias)
        case Hairpin(port):
            return link.set_hairpin(port, True)
        case Change():
            return rtnl.encode(setting, index)
