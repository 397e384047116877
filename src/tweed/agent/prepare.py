"""What only a privileged container may do on a Kubernetes node: `python3 -m tweed.agent.prepare FLAGS…`, with the agent's flags, before it starts.

It loads br_netfilter, without which kube-proxy's rules see nothing of what pods on one bridge send each other, and turns forwarding on.
The forwarding that was is noted for `tweed cleanup`; br_netfilter stays, since whoever else runs on this node may need it by then.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

from tweed.agent import files
from tweed.agent.firewall import forward
from tweed.agent.needs import BRIDGE_CALLS
from tweed.config import Settings, load
from tweed.errors import TweedError
from tweed.kernel import sysctl
from tweed.kernel.netlink import Netlink
from tweed.plan.attachment import BRIDGE
from tweed.wire.flannel import device_name, parse_network

MODULE = "br_netfilter"


def prepare(settings: Settings) -> Iterator[str]:
    """Do it, yielding a line per thing that was done or could not be. Raises TweedError where forwarding stays off."""
    text = files.read_text(settings.net_config_path)
    if text is None:
        raise TweedError(f"--net-config-path {settings.net_config_path}: no such file")
    network = parse_network(text)
    families = [n.family for n in network.networks]
    if any(sysctl.read(BRIDGE_CALLS[family]) is None for family in families):
        yield _load_module()
    for family in families:
        key = BRIDGE_CALLS[family]
        if sysctl.read(key) not in (None, "1"):
            sysctl.write(key, "1")
            yield f"sysctl -w {key}=1"
    notes = files.Notes(settings.state_dir / "notes.json")
    with Netlink() as netlink:
        ours = [*(device_name(network.vni, family) for family in families), BRIDGE]
        writes, lost = forward(netlink, notes, families, ours)
    yield from map(str, writes)
    yield from (f"put back the default route `{route}`, which the kernel dropped" for route in lost)


def _load_module() -> str:
    """Not fatal: the kernel may have it built in under another name, or Services may not be wanted; the agent goes on saying that it is missing."""
    try:
        done = subprocess.run(["modprobe", MODULE], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot load {MODULE}: {error}"
    return f"modprobe {MODULE}" if done.returncode == 0 else f"cannot load {MODULE}: {done.stderr.strip() or done.returncode}"


def main() -> None:
    try:
        for line in prepare(load(sys.argv[1:], os.environ, socket.gethostname())[0]):
            print(f"did {line}" if not line.startswith("cannot") else line, flush=True)
    except TweedError as error:
        sys.exit(f"tweed: {error}")


if __name__ == "__main__":
    main()
