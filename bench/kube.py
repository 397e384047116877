"""A stand-in API server in a node's namespace, that puts Nodes as a cluster would and tells when.

As a program (`python -m bench.kube`) it is that server: a line `burst FIRST COUNT` or `fill FIRST COUNT` on its standard input is answered
with the time before the first and after the last one was there (time.perf_counter, the same clock for all processes). The Nodes of a
burst are made beforehand, so that what is measured is the way from the server on, not how fast it validates.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.common import CONFIG, Node, lease, owner
from bench.etcd import Written
from tweed.kernel import netns
from tweed.lab.kubeobjects import Change, Objects
from tweed.lab.kubeserver import KubeServer
from tweed.wire.kubenode import Names, lease_annotations

PORT = 6443
NAMES = Names.under("flannel.alpha.coreos.com")
AGENT = "agent0"
AGENT_CIDR = "10.250.0.0/24"
# What makes most of a real Node: the images that kubelet lists. With them an object has about six kilobytes.
IMAGES = [{"names": [f"registry.example/library/image-{n}@sha256:{n:064x}"], "sizeBytes": 123456789} for n in range(40)]


def made(number: int) -> dict[str, Any]:
    one = lease(number)
    assert one.v4 is not None
    annotations = {k: v for k, v in lease_annotations(one, owner(number), 1, NAMES).items() if v is not None}
    cidr = str(one.v4.subnet)
    return {
        "metadata": {"name": owner(number).node, "annotations": annotations},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"images": IMAGES, "conditions": [{"type": "Ready", "status": "True"}]},
    }


async def serve() -> None:
    server = KubeServer(keep=100_000)
    server.objects.create({"metadata": {"name": AGENT}, "spec": {"podCIDR": AGENT_CIDR}})
    await server.start("127.0.0.1", PORT)
    print("0 0", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, first, count = line.split()
        numbers = range(int(first), int(first) + int(count))
        changes: list[Change] = []
        apart = Objects(changes.append, keep=100_000)
        apart.revision = server.objects.revision
        for number in numbers:
            apart.create(made(number))
        began = time.perf_counter()
        for at, change in enumerate(changes):
            objects = server.objects
            objects.revision, objects.nodes[change.name] = change.revision, apart.nodes[change.name]
            objects.history.append(change)
            objects.changed(change)
            if what == "burst" and at % 50 == 0:
                await asyncio.sleep(0)
        print(began, time.perf_counter(), flush=True)


class Kube:
    """The server of one node."""

    def __init__(self, node: Node) -> None:
        enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={netns.DIRECTORY}/{node.name}"]
        command = [*enter, sys.executable, "-m", "bench.kube"]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
        self.config = node.directory.parent / "net-conf.json"
        self.config.write_text(CONFIG)
        self.answer()

    @property
    def flags(self) -> tuple[str, ...]:
        return "--store=kube", f"--kube-api-url=http://127.0.0.1:{PORT}", f"--net-config-path={self.config}", f"--node-name={AGENT}"

    def ask(self, what: str) -> Written:
        assert self.server.stdin is not None
        print(what, file=self.server.stdin, flush=True)
        return self.answer()

    def answer(self) -> Written:
        assert self.server.stdout is not None
        began, ended = self.server.stdout.readline().split()
        return Written(float(began), float(ended))

    def stop(self) -> None:
        self.server.kill()
        self.server.wait()
        for stream in filter(None, (self.server.stdin, self.server.stdout)):
            stream.close()


@contextlib.contextmanager
def kube(node: Node) -> Iterator[Kube]:
    started = Kube(node)
    try:
        yield started
    finally:
        started.stop()


if __name__ == "__main__":
    asyncio.run(serve())
