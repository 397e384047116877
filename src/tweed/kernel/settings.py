"""Settings of devices and rows that follow each other, in one send to the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from tweed.errors import KernelError
from tweed.kernel.netlink import Netlink
from tweed.kernel.tables import GONE, indices
from tweed.model import Change
from tweed.plan.attach import Hairpin, SetLink, Setting
from tweed.wire import link, rtnl


def apply(nl: Netlink, settings: Sequence[Setting], known: Mapping[str, int]) -> None:
    """Carry out all, in order. Raises KernelError with the first that the kernel refuses; those behind it are carried out all the same.

    Deleting a row that is gone already is no failure. `known`: ifindex by name, of devices that need not be looked up.
    """
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
