"""Random harm to three nodes with containers, and whether all is well again after each round. By hand, as root, not part of the test run:

    .venv/bin/python -m tests.system.soak [SECONDS [SEED]]

Harm is what people and machines do: agents and forwarding processes killed, stopped and started, devices, rows, addresses, sysctls and firewall
changed, the store's file removed, another backend, containers that come and go, several at once and with the agent killed in the middle. After each
round every node has to be ready with all peers, CHECK to find nothing, the ledger to be what is attached, no address to be there twice, and
containers to reach each other: on both families, or with an odd seed on IPv4 alone, which the UDP mode needs. The first round that fails ends it,
with exit 1 and the seed; the nodes' logs stay.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.system.cluster import DUAL, V4, Cluster, Node, wait_for
from tests.system.conftest import ping
from tests.system.runtime import PluginFailed, Runtime, Sandbox

from tweed.udp.control import listener

NETWORK = {"cniVersion": "1.1.0", "name": "tweed", "plugins": [{"type": "tweed"}]}
# More would fill the kernel's neighbour table, which all namespaces share: 1024 rows, and each may know each other.
PODS = 18
BACKENDS = [{"Type": "vxlan"}, {"Type": "vxlan", "DirectRouting": True}, {"Type": "vxlan", "VNI": 7}, {"Type": "host-gw"}]
OF_IPV4 = [{"Type": "udp"}, {"Type": "udp", "DataPath": "numpy"}, {"Type": "udp", "DataPath": "naive"}]
SCRIPTS = {
    "link flaps": "ip link set ens33 down; sleep 0.2; ip link set ens33 up; ip addr add {ip6}/64 dev ens33 nodad",
    "fdb": "for d in {devices}; do for m in $(bridge fdb show dev $d | cut -d' ' -f1); do bridge fdb del $m dev $d; done; done",
    "neighbours": "for d in {devices}; do ip neigh flush dev $d nud permanent; ip -6 neigh flush dev $d nud permanent; done",
    "routes": "for d in {devices}; do ip route flush dev $d; ip -6 route flush dev $d; done",
    "devices": "for d in {devices}; do ip link del $d; done",
    "MTU": "for d in {devices}; do ip link set $d mtu 1300; done",
    "MAC": "for d in {devices}; do ip link set $d address 02:11:22:33:44:55; break; done",
    "addresses": "for d in {devices}; do ip addr flush dev $d; done",
    "firewall": "nft flush ruleset",
    "forwarding": "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
    "bridge's MTU": "ip link set cni0 mtu 1400 || true",
    "bridge down and up": "ip link set cni0 down && sleep 0.1 && ip link set cni0 up || true",
    "bridge gone": "ip link del cni0 || true",
    "ports": "for p in $(ip -o link show master cni0 2>/dev/null | cut -d: -f2 | cut -d@ -f1); do ip link set $p nomaster; done",
}
DEEDS = ["add", "add", "add", "add", "delete", "delete", "several", "kill", "end", "stop", "forwarder", "veth", "store", "backend", *SCRIPTS]


class Soak:
    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster, self.random = cluster, random.Random(seed)
        self.config = dict(V4 if seed % 2 else DUAL)
        self.backends = BACKENDS + (OF_IPV4 if seed % 2 else [])
        self.pods: dict[tuple[Node, str], tuple[Sandbox, dict]] = {}
        self.refused: collections.Counter[str] = collections.Counter()
        self.names = iter(f"c{number}" for number in range(1 << 30))
        self.runtimes = {}
        for node, relay in zip(cluster.nodes, ("c", "python", "c"), strict=True):
            directory = node.directory / "bin"
            done = node.tweed("cni", "install", "--bin-dir", str(directory), "--conf-dir", str(node.directory / "net.d"), "--relay", relay)
            assert done.returncode == 0, done.stderr
            self.runtimes[node] = Runtime(node, directory)

    # ---- harm ----------------------------------------------------------------------------------------------------

    def round(self) -> None:
        for _ in range(self.random.randrange(3, 9)):
            node, deed = self.random.choice(self.cluster.nodes), self.random.choice(DEEDS)
            if deed in ("add", "several") and len(self.pods) > PODS:
                deed = "delete"
            say(f"{node.node}: {deed}")
            if deed in SCRIPTS:
                # What is broken already breaks no further.
                with contextlib.suppress(RuntimeError):
                    node.sh(SCRIPTS[deed].format(ip6=node.ip6, devices="$(ip -o link show | cut -d: -f2 | grep flannel)"))
            else:
                getattr(self, deed)(node)

    def add(self, node: Node) -> None:
        name, box = next(self.names), Sandbox()
        try:
            self.pods[node, name] = box, self.runtimes[node].add(NETWORK, name, box.path)
        except PluginFailed as error:
            self.refused[error.answer.document["msg"].partition(";")[0]] += 1
            box.remove()

    def delete(self, node: Node) -> None:
        if mine := [key for key in self.pods if key[0] is node]:
            key = self.random.choice(mine)
            box, _ = self.pods.pop(key)
            self.runtimes[node].delete(NETWORK, key[1], box.path)
            box.remove()

    def several(self, node: Node) -> None:
        threads = [threading.Thread(target=self.add, args=[node]) for _ in range(6)]
        for thread in threads:
            thread.start()
        if self.random.random() < 0.5:
            time.sleep(self.random.uniform(0, 0.05))
            node.end(signal.SIGKILL)
            node.start(ready=False)
        for thread in threads:
            thread.join()

    def kill(self, node: Node) -> None:
        self.end(node, signal.SIGKILL)

    def end(self, node: Node, number: int = signal.SIGTERM) -> None:
        node.end(number)
        time.sleep(self.random.uniform(0, 0.5))
        if self.random.random() < 0.5:
            self.delete(node)
        node.start(ready=False)

    def stop(self, node: Node) -> None:
        assert node.process is not None
        os.kill(node.process.pid, signal.SIGSTOP)
        time.sleep(self.random.uniform(0, 2))
        os.kill(node.process.pid, signal.SIGCONT)

    def forwarder(self, node: Node) -> None:
        """The process of the UDP mode, where there is one."""
        with contextlib.suppress(OSError):
            os.kill(listener(node.socket.parent / "udp.sock"), signal.SIGKILL)

    def veth(self, node: Node) -> None:
        if mine := [key for key in self.pods if key[0] is node]:
            self.pods[self.random.choice(mine)][0].sh("ip link del eth0")
            self.delete_lost(node)

    def delete_lost(self, node: Node) -> None:
        """As a runtime does with a container that is broken."""
        for key, (box, _) in [*self.pods.items()]:
            if key[0] is node and "eth0" not in box.sh("ip link"):
                del self.pods[key]
                self.runtimes[node].delete(NETWORK, key[1], box.path)
                box.remove()

    def store(self, node: Node) -> None:
        for file in self.cluster.directory.glob("store.db*"):
            file.unlink()
        time.sleep(self.random.uniform(0, 2))
        self.configure()

    def backend(self, node: Node) -> None:
        self.config["Backend"] = self.random.choice(self.backends)
        say(f"  {self.config['Backend']}")
        self.configure()

    def configure(self) -> None:
        self.cluster.configure(json.dumps(self.config))

    # ---- whether all is well ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises AssertionError or PluginFailed."""
        for node in self.cluster.nodes:
            wait_for(lambda node=node: well(node), f"{node.node} is ready with all peers", 60.0)
        for (node, name), (box, _) in self.pods.items():
            wait_for(lambda node=node, name=name, box=box: self.passes(node, name, box), f"{node.node} {name} is as it was attached", 10.0)
        for node in self.cluster.nodes:
            names = {name for other, name in self.pods if other is node}
            assert {pod["container_id"] for pod in json.loads(node.tweed("pods", "--json").stdout)} == names, node.node
            ports = node.sh("ip -o link show type veth master cni0 2>/dev/null || true").splitlines()
            assert len(ports) == len(names), (node.node, ports)
        addresses = [ip["address"] for _, result in self.pods.values() for ip in result["ips"]]
        assert len(set(addresses)) == len(addresses), addresses
        pairs = [(box.name, address.partition("/")[0]) for box, _ in self.pods.values() for address in addresses]
        pairs = self.random.sample(pairs, min(len(pairs), 150))
        wait_for(lambda: not ping(pairs), "all reach each other", 30.0)
        say(f"well: {len(self.pods)} containers, {len(pairs)} pairs")

    def passes(self, node: Node, name: str, box: Sandbox) -> bool:
        try:
            self.runtimes[node].check(NETWORK, name, box.path)
        except PluginFailed as error:
            raise RuntimeError(str(error)) from None
        return True


def well(node: Node) -> bool:
    status = node.status()
    return status["ready"] and [peer["state"] for peer in status["peers"]] == ["programmed"] * 2


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    directory, rounds = Path(tempfile.mkdtemp(prefix="tweed-soak-")), 0
    say(f"seed {seed}, {seconds:g} s")
    with Cluster(directory, 3, V4 if seed % 2 else DUAL) as cluster:
        cluster.start()
        soak = Soak(cluster, seed)
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                soak.round()
                soak.check()
                rounds += 1
            assert not any("Traceback" in node.log.read_text() for node in cluster.nodes), "an agent's log has a traceback"
        except (AssertionError, PluginFailed) as error:
            say(f"failed after {rounds} rounds, seed {seed}, logs in {directory}: {error}")
            for node in cluster.nodes:
                say(f"{node.node}: {node.tweed('status').stdout}")
            return 1
        finally:
            for box, _ in soak.pods.values():
                box.remove()
            for node in cluster.nodes:
                node.end(signal.SIGKILL)
                soak.forwarder(node)  # it would outlive all else
    shutil.rmtree(directory)
    say(f"{rounds} rounds; refused: {dict(soak.refused) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
