"""The agent's files: subnet.env, and the notes of what it changed on this host, so that cleanup can undo it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from tweed.agent.log import log
from tweed.config import Settings
from tweed.errors import KernelError
from tweed.kernel import links
from tweed.kernel.netlink import Netlink
from tweed.kernel.netns import libc
from tweed.model import Lease
from tweed.wire.flannel import Network, SubnetEnv, format_subnet_env, parse_subnet_env

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def write_atomic(path: Path, text: str, mode: int = 0o644) -> None:
    """Temp file, fsync, rename: a reader sees the old text or the new one. Raises OSError, also where something other than a file is in the way."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    elif not path.is_file():
        raise OSError(errno.EEXIST, "it exists and is no file", str(path))  # a rename would replace /dev/null
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with open(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_swapping(path: Path, data: bytes) -> None:
    """For a file that is replaced all the time: who opens it finds the old content or the new one. A mixture may be seen after a
    loss of power (not of the process), and by who still reads what he opened when the next content but one is written. Raises OSError.

    The content goes into the file that this one replaced, and the two change names (rename(2), RENAME_EXCHANGE): no file is made, no
    block allocated or freed, which costs ten times as much. File systems without it rename.
    """
    how = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(spare(path), how, 0o600)
    except FileNotFoundError:  # somebody has removed the directory
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(spare(path), how, 0o600)
    try:
        done = os.write(descriptor, data)
        while done < len(data):
            done += os.write(descriptor, data[done:])
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)
    names = AT_FDCWD, os.fsencode(spare(path)), AT_FDCWD, os.fsencode(path)
    if libc.renameat2(*names, RENAME_EXCHANGE):  # ENOENT: there was none yet
        spare(path).rename(path)


def spare(path: Path) -> Path:
    """Where `write_swapping` writes."""
    return path.with_name(f".{path.name}.spare")


def read_text(path: Path) -> str | None:
    """The file's text; None when it is absent or not readable."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def previous_subnet(subnet_file: Path) -> SubnetEnv:
    """What this node held when it last ran, as flannel's file says."""
    return parse_subnet_env(read_text(subnet_file) or "")


def write_subnet_file(settings: Settings, network: Network, lease: Lease, mtu: int) -> None:
    """For CNI plugins and Docker; written only when it differs. Raises OSError."""
    text = format_subnet_env(network, lease, mtu, settings.ip_masq)
    if read_text(settings.subnet_file) != text:
        write_atomic(settings.subnet_file, text)
        log.info("wrote %s", settings.subnet_file)


OUR_KINDS = ("vxlan", "tun")  # of the devices that an agent makes: one of another kind by a noted name is somebody else's


class Noted(msgspec.Struct):
    """What this node's agents made or changed, oldest value first. `sysctls`: key and the value before us.

    `docker`: the subnets that Docker was promised, which pods are not to have.
    """

    devices: list[str] = []
    networks: list[str] = []
    files: list[str] = []
    sysctls: list[tuple[str, str]] = []
    nft_vnis: list[int] = []
    iptables_vnis: list[int] = []
    docker: list[str] = []


class Notes:
    """`Noted` in a file that survives kill -9 and reboot. A note is written before the deed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = read_text(path)
        try:
            self.noted = msgspec.json.decode(text, type=Noted) if text else Noted()
        except msgspec.MsgspecError as error:
            log.warning("%s cannot be read (%s): cleanup will not know what earlier runs changed", path, error)
            self.noted = Noted()

    def save(self, **changed: list[Any]) -> None:
        """Write it down, then know it. Raises KernelError where the file cannot be written: what is not noted must not be done."""
        noted = msgspec.structs.replace(self.noted, **changed)
        if noted == self.noted:
            return
        try:
            write_atomic(self.path, msgspec.json.encode(noted).decode(), 0o600)
        except OSError as error:
            raise KernelError(f"write {self.path}", error.errno or 0, error.strerror or str(error)) from None
        self.noted = noted

    def add(self, field: Literal["devices", "networks", "files"], names: Iterable[str]) -> None:
        self.save(**{field: list(dict.fromkeys([*getattr(self.noted, field), *names]))})

    def set_networks(self, networks: list[str]) -> None:
        """The cluster networks whose rows may stand in the kernel."""
        self.save(networks=networks)

    def set_nft_vnis(self, vnis: list[int]) -> None:
        """The VNIs whose nft tables of ours may exist."""
        self.save(nft_vnis=vnis)

    def set_iptables_vnis(self, vnis: list[int]) -> None:
        """The VNIs whose accept rules of ours may stand in iptables."""
        self.save(iptables_vnis=vnis)

    def forget_device(self, name: str) -> None:
        self.save(devices=[device for device in self.noted.devices if device != name])

    def add_sysctls(self, changes: Sequence[tuple[str, str]]) -> None:
        """The first note of a key stands: it is the value that was there before any agent."""
        known = {key for key, _ in self.noted.sysctls}
        self.save(sysctls=[*self.noted.sysctls, *((key, old) for key, old in changes if key not in known)])


def remove_stale_devices(netlink: Netlink, notes: Notes, keep: Sequence[str]) -> None:
    """Devices that an earlier configuration (another VNI or backend, one family less) made and this one does not want."""
    for name in [name for name in notes.noted.devices if name not in keep]:
        link = links.link(netlink, name)
        if link is not None and link.kind in OUR_KINDS:
            links.delete_link(netlink, name)
            log.info("did ip link del %s (left over from an earlier configuration)", name)
        notes.forget_device(name)
