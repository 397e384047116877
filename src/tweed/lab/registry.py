"""Which labs exist on this machine, and where their parts are: one directory each below /run/tweed/labs.

L/lab.json       nodes with namespace, agent and pods; `up` only once everything stands
L/namespaces     `NAME INODE` per line, written before the first is made (INODE 0), so that a crash leaves nothing unknown
L/store.db       the lease store of all nodes, where it is a file; a server has a directory of its name instead
L/faults.json    what `lab break` broke, and how to undo it
L/nodes/N/       run (socket), state, subnet.env and agent.log of one node
.L.lock          held while the lab is brought up, taken down, broken or healed
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tweed.agent.files import write_atomic
from tweed.errors import TweedError
from tweed.lab.topology import check_name

DIRECTORY = Path("/run/tweed/labs")
DEFAULT_NAME = "tweed"


class Pod(msgspec.Struct, frozen=True):
    """`outside`: a container beside the overlay, on a bridge of its own."""

    name: str
    netns: str
    ips: tuple[str, ...] = ()
    outside: bool = False


class Node(msgspec.Struct, frozen=True):
    """`inode` tells its network namespace, `pid` and `started` (clock ticks after boot) its agent's process; 0 before they exist."""

    name: str
    netns: str
    inode: int
    home: str
    public_ip: str
    public_ip6: str | None = None
    pid: int = 0
    started: int = 0
    pods: tuple[Pod, ...] = ()

    @property
    def directory(self) -> Path:
        return Path(self.home)

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "agent.sock"

    @property
    def log(self) -> Path:
        return self.directory / "agent.log"


class Lab(msgspec.Struct, frozen=True):
    """`store_flags`: by which its agents, and commands in its nodes, find the lease store."""

    name: str
    nodes: tuple[Node, ...]
    up: bool = False
    store_flags: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        return DIRECTORY / self.name

    def node(self, name: str) -> Node:
        """Raises TweedError naming those that there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise TweedError(f"lab {self.name} has no node {name!r}, only {', '.join(node.name for node in self.nodes)}")

    def netns(self, where: str) -> str:
        """The namespace of `node`, `node/pod`, `world` or `underlay`. Raises TweedError naming those that there are."""
        node, slash, pod = where.partition("/")
        if not slash:
            return f"{self.name}-{node}" if node in ("world", "underlay") else self.node(node).netns
        pods = self.node(node).pods
        for each in pods:
            if each.name == pod:
                return each.netns
        raise TweedError(f"node {node} of lab {self.name} has no pod {pod!r}, only {', '.join(each.name for each in pods) or 'none'}")


def names() -> list[str]:
    """All labs, whole or not, sorted."""
    try:
        return sorted(entry.name for entry in DIRECTORY.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def read(name: str) -> Lab | None:
    """The lab as it was last written down, None when it has not come that far."""
    try:
        return msgspec.json.decode((DIRECTORY / name / "lab.json").read_bytes(), type=Lab)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise TweedError(f"{DIRECTORY / name / 'lab.json'} cannot be read: permission denied; a lab is root's") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise TweedError(f"{DIRECTORY / name / 'lab.json'} cannot be read: {error}; remove the lab with `tweed lab down --name {name}`") from None


def load(name: str | None = None) -> Lab:
    """The lab of that name, or the only one. Raises TweedError when it is not up."""
    if name is None:
        found = names()
        if len(found) > 1 and DEFAULT_NAME not in found:
            raise TweedError(f"several labs are up ({', '.join(found)}): say which with --name")
        name = DEFAULT_NAME if DEFAULT_NAME in found or not found else found[0]
    lab = read(check_name("--name", name))
    if lab is None or not lab.up:
        state = "is being brought up, or was interrupted" if name in names() else "is not up"
        raise TweedError(f"lab {name} {state}: `tweed lab up{'' if name == DEFAULT_NAME else f' --name {name}'}` starts it")
    return lab


def write(lab: Lab) -> None:
    write_atomic(lab.directory / "lab.json", msgspec.json.format(msgspec.json.encode(lab), indent=1).decode(), 0o600)


def write_namespaces(name: str, inodes: dict[str, int]) -> None:
    write_atomic(DIRECTORY / name / "namespaces", "".join(f"{netns} {inode}\n" for netns, inode in inodes.items()), 0o600)


def read_namespaces(name: str) -> dict[str, int]:
    """The lab's namespaces by name: inode, or 0 where it is not known whether it was made."""
    try:
        lines = (DIRECTORY / name / "namespaces").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {netns: int(inode) for netns, _, inode in (line.partition(" ") for line in lines)}


def node_for_netns(inode: int) -> tuple[Lab, Node] | None:
    """The lab's node that has this network namespace, None when it is no lab's node."""
    for name in names():
        with contextlib.suppress(TweedError):
            lab = read(name)
            for node in lab.nodes if lab is not None else ():
                if lab is not None and node.inode == inode:
                    return lab, node
    return None


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lab's lock. Raises TweedError when somebody else does. Afterwards empty directories of ours are gone."""
    path = DIRECTORY / f".{name}.lock"
    while True:
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # another lab's end removed the directory between the two calls
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        except BlockingIOError:
            os.close(descriptor)
            raise TweedError(f"lab {name} is being brought up, taken down, broken or healed by another tweed: wait for it, or interrupt it") from None
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the one who held it has just removed the file: begin again with a new one
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        for directory in (DIRECTORY, DIRECTORY.parent):
            with contextlib.suppress(OSError):
                directory.rmdir()  # refused while anything is in it


def forget(name: str) -> None:
    """Remove the lab's directory."""
    shutil.rmtree(DIRECTORY / name, ignore_errors=False)
