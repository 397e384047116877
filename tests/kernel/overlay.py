"""Two nodes of an overlay, their pods and an outside world, made with `ip` alone: what the tests of nftables and forwarding send through.

world 192.168.2.1 ── switch ──┬── node a 192.168.2.201 ── flannel.1 10.244.1.0, cni0 10.244.1.1 ── pods a1 .2, a2 .3
fd00:2::1                     └── node b 192.168.2.202 ── flannel.1 10.244.2.0, cni0 10.244.2.1 ── pod b1 .2
                                  fd00:2::201, ::202      (IPv6 the same in fd00:10:244::/48 over flannel-v6.1)
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import TypeVar

from tweed.addr import Prefix
from tweed.kernel import netns as namespaces
from tweed.plan.forward_rules import Overlay

T = TypeVar("T")

NETWORK = {4: Prefix.parse("10.244.0.0/16"), 6: Prefix.parse("fd00:10:244::/48")}
SUBNET = {4: {"a": Prefix.parse("10.244.1.0/24"), "b": Prefix.parse("10.244.2.0/24")}}
SUBNET[6] = {"a": Prefix.parse("fd00:10:244:1::/64"), "b": Prefix.parse("fd00:10:244:2::/64")}
WORLD = {4: "192.168.2.1", 6: "fd00:2::1"}
NODE = {4: {"a": "192.168.2.201", "b": "192.168.2.202"}, 6: {"a": "fd00:2::201", "b": "fd00:2::202"}}
VTEP = {4: {"a": "10.244.1.0", "b": "10.244.2.0"}, 6: {"a": "fd00:10:244:1::", "b": "fd00:10:244:2::"}}
POD = {4: {"a1": "10.244.1.2", "a2": "10.244.1.3", "b1": "10.244.2.2"}, 6: {"a1": "fd00:10:244:1::2", "a2": "fd00:10:244:1::3", "b1": "fd00:10:244:2::2"}}
OVERLAYS = {
    4: Overlay(NETWORK[4], SUBNET[4]["a"], "cni0", "flannel.1"),
    6: Overlay(NETWORK[6], SUBNET[6]["a"], "cni0", "flannel-v6.1"),
}
NUMBER = {"a": 1, "b": 2}
PATIENT_S = 5.0  # for what is expected to come
QUIET_S = 0.2  # how long nothing must come before it counts as lost


class Space:
    """A network namespace by name, with a descriptor."""

    def __init__(self, name: str) -> None:
        self.name = name
        namespaces.create(name)
        self.fd = namespaces.open_netns(name)
        self.sh("ip link set lo up; sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0")

    def sh(self, script: str) -> str:
        """The output of a shell script inside, which must succeed."""
        done = subprocess.run(["ip", "netns", "exec", self.name, "sh", "-euc", script], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def do(self, function: Callable[[], T]) -> T:
        return namespaces.run_in(self.fd, function)

    def socket(self, family: int, kind: int = socket.SOCK_DGRAM, bind: tuple[str, int] | None = None) -> socket.socket:
        """A socket that lives inside, with a time limit on all it does."""
        sock = self.do(lambda: socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], kind))
        sock.settimeout(PATIENT_S)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bind is not None:
            sock.bind(bind)
        return sock

    def remove(self) -> None:
        os.close(self.fd)
        namespaces.delete(self.name)


class Network:
    """The whole of it; `net["a"]`, `net["a1"]`, `net["world"]` are its namespaces."""

    def __init__(self, label: str, stack: contextlib.ExitStack) -> None:
        self.spaces: dict[str, Space] = {}
        for name in ("world", "switch", "a", "b", "a1", "a2", "b1"):
            self.spaces[name] = space = Space(f"tweednft-{os.getpid()}-{label}{name}")
            stack.callback(space.remove)
        switch = self["switch"]
        switch.sh("ip link add switch type bridge; ip link set switch up")
        for name in ("world", "a", "b"):
            self.cable(name, "ens33", "switch", name)
            switch.sh(f"ip link set dev {name} master switch")
        self["world"].sh("ip addr add 192.168.2.1/24 dev ens33; ip addr add fd00:2::1/64 dev ens33 nodad")
        for node, pods in {"a": ("a1", "a2"), "b": ("b1",)}.items():
            self.node(node)
            for pod in pods:
                self.pod(node, pod)

    def __getitem__(self, name: str) -> Space:
        return self.spaces[name]

    def cable(self, name: str, device: str, other: str, other_device: str) -> None:
        self[name].sh(f"ip link add {device} type veth peer name {other_device} netns {self[other].name}; ip link set dev {device} up")
        self[other].sh(f"ip link set dev {other_device} up")

    def node(self, node: str) -> None:
        peer = {"a": "b", "b": "a"}[node]
        n, p = NUMBER[node], NUMBER[peer]
        self[node].sh(f"""
            ip addr add 192.168.2.20{n}/24 dev ens33; ip addr add fd00:2::20{n}/64 dev ens33 nodad
            ip route add default via 192.168.2.1; ip -6 route add default via fd00:2::1
            ip link add cni0 type bridge; ip link set cni0 up
            ip addr add 10.244.{n}.1/24 dev cni0; ip addr add fd00:10:244:{n}::1/64 dev cni0 nodad
            ip link add flannel.1 address 02:00:00:00:04:0{n} type vxlan id 1 dev ens33 local 192.168.2.20{n} dstport 8472 nolearning
            ip link add flannel-v6.1 address 02:00:00:00:06:0{n} type vxlan id 1 dev ens33 local fd00:2::20{n} dstport 8472 nolearning
            ip link set flannel.1 up; ip link set flannel-v6.1 up
            ip addr add 10.244.{n}.0/32 dev flannel.1; ip addr add fd00:10:244:{n}::/128 dev flannel-v6.1 nodad
            ip neigh add 10.244.{p}.0 lladdr 02:00:00:00:04:0{p} dev flannel.1 nud permanent
            ip neigh add fd00:10:244:{p}:: lladdr 02:00:00:00:06:0{p} dev flannel-v6.1 nud permanent
            bridge fdb add 02:00:00:00:04:0{p} dev flannel.1 dst 192.168.2.20{p} self permanent
            bridge fdb add 02:00:00:00:06:0{p} dev flannel-v6.1 dst fd00:2::20{p} self permanent
            ip route add 10.244.{p}.0/24 via 10.244.{p}.0 dev flannel.1 onlink
            ip -6 route add fd00:10:244:{p}::/64 via fd00:10:244:{p}:: dev flannel-v6.1 onlink
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
            for device in ens33 cni0 flannel.1; do echo 0 > /proc/sys/net/ipv4/conf/$device/rp_filter; done
        """)

    def pod(self, node: str, pod: str) -> None:
        n = NUMBER[node]
        self.cable(pod, "eth0", node, pod)
        self[node].sh(f"ip link set dev {pod} master cni0")
        self[pod].sh(f"""
            ip addr add {POD[4][pod]}/24 dev eth0; ip addr add {POD[6][pod]}/64 dev eth0 nodad
            ip route add default via 10.244.{n}.1; ip -6 route add default via fd00:10:244:{n}::1
        """)

    # ---- what the other side sees

    def seen(self, source: str, target: str, family: int, address: str, bind: str | None = None, port: int = 0, wait_s: float = PATIENT_S) -> str | None:
        """Send one datagram from namespace `source` to `address` (which `target` has, unless something translates on the way)
        and return the address it arrives from, None when it does not arrive. `bind`: the sender's own address; `port`: the one
        it sends to, where that is not the one `target` listens on."""
        server = self[target].socket(family, bind=("", 8080))
        client = self[source].socket(family, bind=(bind, 0) if bind else None)
        with server, client:
            server.settimeout(wait_s)
            client.sendto(b"hello", (address, port or 8080))
            try:
                return str(server.recvfrom(100)[1][0])
            except TimeoutError:
                return None

    def talks(self, source: str, target: str, family: int, address: str, wait_s: float = PATIENT_S) -> bool:
        """A datagram goes there and its answer comes back."""
        server = self[target].socket(family, bind=("", 8080))
        client = self[source].socket(family)
        with server, client:
            server.settimeout(wait_s)
            client.settimeout(wait_s)
            client.connect((address, 8080))
            client.send(b"hello")
            try:
                server.sendto(b"there", server.recvfrom(100)[1])
                return client.recv(100) == b"there"
            except OSError:  # silence, or an ICMP error
                return False

    def open(self, family: int) -> bool:
        """Pods of both nodes reach each other."""
        return self.talks("a1", "b1", family, POD[family]["b1"]) and self.talks("b1", "a1", family, POD[family]["a1"])

    def closed(self, family: int) -> bool:
        """They do not, from either side."""
        return not self.talks("a1", "b1", family, POD[family]["b1"], QUIET_S) and not self.talks("b1", "a1", family, POD[family]["a1"], QUIET_S)


@contextlib.contextmanager
def network(label: str) -> Iterator[Network]:
    """`label` keeps the namespaces of one test file apart from another's."""
    with contextlib.ExitStack() as stack:
        yield Network(label, stack)
