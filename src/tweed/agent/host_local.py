"""What the plugin before us left on a node that we took over: host-local's files, one per address, and the containers that still run.

    /var/lib/cni/networks/NETWORK/ADDRESS    container id, CR LF, interface name

An address with a file is its container's until that is deleted; one that no network namespace has any more has leaked.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tweed.addr import Prefix, format_address, parse_address
from tweed.errors import KernelError, TweedError
from tweed.kernel import links, netns, tables
from tweed.kernel.netlink import Netlink
from tweed.plan.attachment import Attachment

YOUNG_S = 60.0  # a file may be there before its container has the address


class Holding:
    """A file of host-local's."""

    def __init__(self, path: Path, address: bytes) -> None:
        self.path = path
        self.address = address

    def owner(self) -> tuple[str, str]:
        """Container id and interface, "" where an old file does not tell."""
        with contextlib.suppress(OSError):
            container, _, ifname = self.path.read_text(errors="replace")[:1024].partition("\n")
            return container.strip(), ifname.strip()
        return "", ""

    def is_young(self) -> bool:
        with contextlib.suppress(OSError):
            return time.time() - self.path.stat().st_mtime < YOUNG_S
        return False

    def remove(self) -> None:
        """Raises TweedError when the file cannot be removed: the address stays taken."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise TweedError(f"{self.path} cannot be removed: {error.strerror}") from None


def holdings(directory: Path) -> Iterator[Holding]:
    """All addresses that host-local has given out on this node, of every network."""
    with contextlib.suppress(OSError):
        for network in os.scandir(directory):
            if network.is_dir(follow_symlinks=False):
                for entry in os.scandir(network.path):
                    with contextlib.suppress(ValueError):  # its lock, and the address given out last
                        yield Holding(Path(entry.path), parse_address(entry.name))


def hand_over(directory: Path, attachments: Iterable[Attachment]) -> int:
    """Write down for host-local which addresses containers of ours have that stay, so that it gives them to nobody. Returns how many.

    Raises OSError.
    """
    count = 0
    for attachment in attachments:
        for prefix in attachment.addresses:
            path = directory / (attachment.network or "cbr0") / format_address(prefix.address)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{attachment.container_id}\r\n{attachment.ifname}", newline="")
            count += 1
    return count


def in_use(nl: Netlink, subnets: Iterable[Prefix], own: int) -> dict[bytes, set[int | None]] | None:
    """The addresses of these subnets that network namespaces of this machine have, each with the numbers by which links of the node's
    name these namespaces (see `links.nsid`). Without the node's own namespace, whose inode is `own`.

    None when one of them cannot be looked into: then nobody knows.
    """
    wanted = tuple(subnets)
    found: dict[bytes, set[int | None]] = {}
    for path in namespaces(own):
        try:
            descriptor = netns.open_netns(path)
        except KernelError:
            continue  # it ended meanwhile
        try:
            with Netlink(descriptor) as inside:
                here = [row.address.address for row in tables.addresses(inside)]
            for address in here:
                if any(subnet.contains(address) for subnet in wanted):
                    found.setdefault(address, set()).add(links.nsid(nl, descriptor))
        except KernelError:
            return None
        finally:
            os.close(descriptor)
    return found


def namespaces(own: int) -> list[str]:
    """A path to each network namespace that has a process or a name."""
    seen, found = {own}, []
    paths = [f"{netns.DIRECTORY}/{name}" for name in netns.names()] + [f"/proc/{pid}/ns/net" for pid in os.listdir("/proc") if pid.isdecimal()]
    for path in paths:
        with contextlib.suppress(OSError):
            inode = os.stat(path).st_ino
            if inode not in seen:
                seen.add(inode)
                found.append(path)
    return found
