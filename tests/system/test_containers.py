"""Real containers: podman on each node of a lab, and containerd, with nothing but the installed plugin between them and the overlay."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.conftest import TWEED, Lab, eventually, ping, running
from tests.system.test_docker import image

MANY = 50
AT_ONCE = 5
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}", "/usr/lib/cni"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Lab]:
    """Both families, no pods but the containers."""
    with running(f"c{os.getpid()}", "--ipv6", "--pods-per-node", "0") as made:
        yield made


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Short, since runtimes put sockets deep into it, and outside of pytest's, since they leave mounts when they are killed."""
    with tempfile.TemporaryDirectory(prefix="tweed-c", dir="/tmp") as directory:
        yield Path(directory)


class Podman:
    """One engine per node: its network namespace, and directories of its own."""

    def __init__(self, lab: Lab, node: str, home: Path) -> None:
        self.lab, self.node, self.home = lab, node, home / node
        self.home.mkdir()
        (self.home / "containers.conf").write_text(CONTAINERS_CONF.format(plugins=self.home / "bin"))
        done = lab.tweed("exec", node, "--", *TWEED, "cni", "install", "--bin-dir", f"{self.home}/bin", "--conf-dir", f"{self.home}/net")
        assert done.returncode == 0, done.stderr

    def command(self, *words: str) -> list[str]:
        places = [f"--root={self.home}/root", f"--runroot={self.home}/run", f"--tmpdir={self.home}/tmp", f"--network-config-dir={self.home}/net"]
        return ["nsenter", f"--net=/run/netns/{self.lab.netns(self.node)}", "--", "podman", *places, "--storage-driver=vfs", *words]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"CONTAINERS_CONF": f"{self.home}/containers.conf"}

    def __call__(self, *words: str, data: bytes | None = None) -> str:
        done = subprocess.run(self.command(*words), input=data, capture_output=True, timeout=120, check=False, env=self.environment)
        assert done.returncode == 0, f"podman {' '.join(words)}: {done.stderr.decode()}"
        return done.stdout.decode().strip()

    def addresses(self, container: str) -> tuple[str, str]:
        found = json.loads(self("inspect", container))[0]["NetworkSettings"]["Networks"]["tweed"]
        return found["IPAddress"], found["GlobalIPv6Address"]


@pytest.fixture(scope="module")
def podmen(own: Lab, home: Path) -> Iterator[dict[str, Podman]]:
    engines = {node: Podman(own, node, home) for node in ("master", "node2")}
    try:
        for engine in engines.values():
            engine("import", "-", "localhost/bb:1", data=image())
        yield engines
    finally:
        for engine in engines.values():
            with contextlib.suppress(AssertionError):
                engine("rm", "-af", "-t", "0")
            subprocess.run(["umount", "-l", f"{engine.home}/root/vfs"], stderr=subprocess.DEVNULL, check=False)


@pytest.fixture
def podman(podmen: dict[str, Podman]) -> Iterator[dict[str, Podman]]:
    yield podmen
    for engine in podmen.values():
        engine("rm", "-af", "-t", "0")


def run(engine: Podman, name: str, *options: str) -> tuple[str, str]:
    engine("run", "-d", "--name", name, "--net", "tweed", *options, "localhost/bb:1", "/bin/sleep", "600")
    return engine.addresses(name)


def left(lab: Lab, node: str) -> dict[str, object]:
    """What containers may leave behind on a node. Its bridge stays, with addresses and routes, so one container has to have been there before."""
    places = f"{lab.node(node).directory} /run/netns /run/cni /var/lib/cni /var/run/libpod"
    return {
        "veths": [line for line in lab.lines(node, "ip -o link show type veth") if "ens3" not in line],
        "addresses": lab.lines(node, "ip -o addr show | sed 's/^[0-9]*: //'"),
        "routes": lab.lines(node, "ip route show table all; ip -6 route show table all"),
        "rules": lab.lines(node, "ip rule; ip -6 rule"),
        "neighbours": lab.lines(node, "ip neigh show dev cni0 nud permanent 2>/dev/null || true"),
        "attachments": lab.agent(node, "GET", "/v1/attachments"),
        "nat": lab.lines(node, "iptables-save -t nat 2>/dev/null | grep -c CNI-DN || true"),
        "files": lab.lines(node, f"find {places} 2>/dev/null | sort"),
    }


def test_containers_on_different_nodes_talk(own: Lab, podman: dict[str, Podman]) -> None:
    here, there = podman["master"], podman["node2"]
    run(here, "one")
    ip, ip6 = run(there, "two")
    assert ip.startswith("10.244.2.") and ip6.startswith("fd00:10:244:2:")
    for address in (ip, ip6):
        assert "3 packets received" in here("exec", "one", "ping", "-c3", "-i0.2", "-W5", address)
    assert "mtu 1430" in here("exec", "one", "ip", "link", "show", "eth0")  # what fits both families' tunnels
    listed = json.loads(own.tweed("exec", "node2", "--", *TWEED, "pods", "--json").stdout)
    assert any(ip in json.dumps(each) for each in listed)


def test_host_ports(own: Lab, podman: dict[str, Podman]) -> None:
    """portmap works behind us: from another node, from the same one, from localhost, and from a container of each."""
    here, there = podman["master"], podman["node2"]
    run(there, "web", "-p", "8080:80")
    run(there, "near")
    run(here, "far")
    there("exec", "-d", "web", "sh", "-c", "while true; do echo hello | nc -l -p 80; done")
    port = f"{own.node('node2').public_ip} 8080"
    hosts = {"another node": ("master", port), "the node": ("node2", port), "localhost": ("node2", "127.0.0.1 8080")}
    for what, (node, target) in hosts.items():
        eventually(lambda at=node, to=target: "hello" in own.run(at, f"timeout 3 busybox nc {to} </dev/null || true"), what)
    for engine, name in ((there, "near"), (here, "far")):
        eventually(lambda at=engine, who=name: "hello" in at("exec", who, "sh", "-c", f"timeout 3 nc {port} </dev/null || true"), f"a container, {name}")


def test_many_containers_leave_nothing(own: Lab, podman: dict[str, Podman]) -> None:
    engine = podman["master"]
    run(engine, "first")
    engine("rm", "-f", "-t", "0", "first")
    before = left(own, "master")
    names = [f"m{number}" for number in range(MANY)]
    for first in range(0, MANY, AT_ONCE):
        batch = names[first : first + AT_ONCE]
        starting = [
            subprocess.Popen(
                engine.command("run", "-d", "--name", name, "--net", "tweed", "localhost/bb:1", "/bin/sleep", "600"),
                env=engine.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for name in batch
        ]
        for process in starting:
            assert process.communicate(timeout=120)[1] is not None and process.returncode == 0
        found = {engine.addresses(name)[0] for name in batch}
        assert len(found) == len(batch)
        assert ping([(own.netns("node2"), address) for address in found]) == set()
        engine("rm", "-f", "-t", "0", *batch)
    assert left(own, "master") == before


# ---- containerd ------------------------------------------------------------------------------------------------------


CONTAINERD = """
version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "{home}/sock"
"""


@contextlib.contextmanager
def containerd(lab: Lab, node: str, place: Path) -> Iterator[Ctr]:
    """A containerd in the node's network namespace. `ctr` knows only the usual CNI directories, so it has a mount namespace too."""
    place.mkdir()
    done = lab.tweed("exec", node, "--", *TWEED, "cni", "install", "--bin-dir", f"{place}/bin", "--conf-dir", f"{place}/net")
    assert done.returncode == 0, done.stderr
    for plugin in ("portmap", "bandwidth"):
        shutil.copy(f"/usr/lib/cni/{plugin}", place / "bin")
    (place / "config.toml").write_text(CONTAINERD.format(home=place))
    script = f'mkdir -p /opt/cni/bin /etc/cni/net.d && mount --bind {place}/bin /opt/cni/bin && mount --bind {place}/net /etc/cni/net.d && exec "$@"'
    inside = ["nsenter", f"--net=/run/netns/{lab.netns(node)}", "--", "unshare", "--mount", "sh", "-c", script, "sh"]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([*inside, "containerd", "-c", str(place / "config.toml")], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            eventually((place / "sock").exists, "containerd listens")
            yield Ctr([*inside, "ctr", "-a", str(place / "sock")], f"{lab.name}-{node}")
        finally:
            process.terminate()
            process.wait(20)


class Ctr:
    """`ctr` beside one containerd, and the one container that it runs: runc knows all of a machine by their names."""

    def __init__(self, command: list[str], box: str) -> None:
        self.command, self.name = command, box

    def __call__(self, *words: str) -> str:
        done = subprocess.run([*self.command, *words], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, f"ctr {' '.join(words)}: {done.stderr.decode()}"
        return done.stdout.decode()

    def exec(self, *words: str) -> str:
        """What a command in the container prints."""
        return self("task", "exec", "--exec-id", "e", self.name, *words)

    @contextlib.contextmanager
    def box(self, rootfs: str) -> Iterator[None]:
        """A container that runs meanwhile: in the foreground, since with -d `ctr` would never send the DEL."""
        running = subprocess.Popen([*self.command, "run", "--cni", "--rootfs", rootfs, self.name, "/bin/sleep", "600"], stderr=subprocess.PIPE)
        try:
            eventually(lambda: "RUNNING" in self("task", "ls"), "the container runs")
            yield
        finally:
            self("task", "kill", "-s", "KILL", self.name)
            assert running.communicate(timeout=60)[1] == b""
            self("container", "rm", self.name)


@pytest.fixture
def containerds(own: Lab, home: Path) -> Iterator[dict[str, Ctr]]:
    made = [directory for directory in (Path("/opt/cni/bin"), Path("/opt/cni"), Path("/etc/cni/net.d"), Path("/etc/cni")) if not directory.exists()]
    try:
        with contextlib.ExitStack() as stack:
            yield {node: stack.enter_context(containerd(own, node, home / f"ctr-{node}")) for node in ("master", "node1")}
    finally:
        for directory in made:
            directory.rmdir()


def test_containers_of_containerd_on_different_nodes_talk_and_leave_nothing(own: Lab, containerds: dict[str, Ctr], tmp_path: Path) -> None:
    for node in containerds:
        root = tmp_path / node
        (root / "etc").mkdir(parents=True)
        subprocess.run(["tar", "-x", "-C", root], input=image(), check=True)

    def once() -> dict[str, object]:
        with contextlib.ExitStack() as stack:
            for node, ctr in containerds.items():
                stack.enter_context(ctr.box(str(tmp_path / node)))
            addresses = {node: [text.partition("/")[0] for text in own.agent(node, "GET", "/v1/attachments")[0]["addresses"]] for node in containerds}
            for (node, ctr), other in zip(containerds.items(), reversed(containerds), strict=True):
                assert len(addresses[node]) == 2 and addresses[node][0] in ctr.exec("/bin/ip", "addr")
                for address in addresses[other]:
                    assert "3 packets received" in ctr.exec("/bin/ping", "-c3", "-i0.2", "-W5", address)
        return {node: left(own, node) for node in containerds}

    first = once()
    assert once() == first and not any(own.agent(node, "GET", "/v1/attachments") for node in containerds)
