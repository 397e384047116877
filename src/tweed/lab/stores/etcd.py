"""A lab's leases in an etcd of its own, one member, at the gateway's address in the lab's `world`."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from tweed.addr import format_address
from tweed.errors import TweedError
from tweed.lab.registry import Lab
from tweed.lab.stores import fill_inside
from tweed.lab.topology import Topology
from tweed.lab.wiring import WORLD

PORT, PEER_PORT = 2379, 2380
START_S = 30.0


def check() -> None:
    if shutil.which("etcd") is None:
        raise TweedError("--store etcd: there is no etcd on this machine: apt-get install etcd-server")


def prepare(lab: Lab, topology: Topology) -> tuple[str, ...]:
    space, url = f"{lab.name}-{WORLD}", f"http://{format_address(topology.gateway)}:{PORT}"
    process = start(lab, space, url)
    wait(lab, process, url, space)
    flags = ("--store=etcd", f"--etcd-endpoints={url}")
    fill_inside(space, flags, topology)
    return flags


def start(lab: Lab, space: str, url: str) -> subprocess.Popen[bytes]:
    """In a session of its own, as the agents: neither Ctrl-C nor the end of the terminal reaches it. Goes on with the data of an earlier one."""
    directory = lab.directory / "etcd"
    directory.mkdir(exist_ok=True)
    words = [f"--data-dir={directory / 'data'}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}"]
    words += [f"--listen-peer-urls=http://127.0.0.1:{PEER_PORT}", "--logger=zap", "--log-level=warn"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{space}", "--", "etcd", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )


def wait(lab: Lab, process: subprocess.Popen[bytes], url: str, space: str) -> None:
    """Until it serves clients: etcd listens only once it has a leader."""
    port = f":{PORT:04X} 00000000:0000 0A"  # proc(5), net/tcp: the local address, nobody remote, TCP_LISTEN
    deadline = time.monotonic() + START_S
    while True:
        if (code := process.poll()) is not None:
            raise TweedError(f"the lab's etcd ended at its start (exit {code}): {last_words(lab)}")
        done = subprocess.run(["nsenter", f"--net=/run/netns/{space}", "--", "cat", "/proc/net/tcp"], capture_output=True, text=True, check=False)
        if port in done.stdout:
            return
        if time.monotonic() > deadline:
            raise TweedError(f"the lab's etcd does not listen on {url} after {START_S:g} s: {last_words(lab)}")
        time.sleep(0.05)


def last_words(lab: Lab) -> str:
    lines = (lab.directory / "etcd" / "log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
