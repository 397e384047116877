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
    """What containers may leave behind on a node."""
    return {
        "veths": [line for line in lab.lines(node, "ip -o link show type veth") if "ens3" not in line],
        "neighbours": lab.lines(node, "ip neigh show dev cni0 nud permanent 2>/dev/null || true"),
        "attachments": lab.agent(node, "GET", "/v1/attachments"),
        "nat": lab.lines(node, "iptables-save -t nat 2>/dev/null | grep -c CNI-DN || true"),
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


@pytest.fixture
def containerd(own: Lab, home: Path) -> Iterator[list[str]]:
    """A containerd in node1's network namespace, and the words that run a command beside it: `ctr` knows only the usual CNI directories."""
    place = home / "ctr"
    place.mkdir()
    done = own.tweed("exec", "node1", "--", *TWEED, "cni", "install", "--bin-dir", f"{place}/bin", "--conf-dir", f"{place}/net")
    assert done.returncode == 0, done.stderr
    for plugin in ("portmap", "bandwidth"):
        shutil.copy(f"/usr/lib/cni/{plugin}", place / "bin")
    (place / "config.toml").write_text(CONTAINERD.format(home=place))
    script = f'mkdir -p /opt/cni/bin /etc/cni/net.d && mount --bind {place}/bin /opt/cni/bin && mount --bind {place}/net /etc/cni/net.d && exec "$@"'
    inside = ["nsenter", f"--net=/run/netns/{own.netns('node1')}", "--", "unshare", "--mount", "sh", "-c", script, "sh"]
    made = [directory for directory in (Path("/opt/cni/bin"), Path("/opt/cni"), Path("/etc/cni/net.d"), Path("/etc/cni")) if not directory.exists()]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([*inside, "containerd", "-c", str(place / "config.toml")], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            eventually((place / "sock").exists, "containerd listens")
            yield [*inside, "ctr", "-a", str(place / "sock")]
        finally:
            process.terminate()
            process.wait(20)
            for directory in made:
                directory.rmdir()


def test_containerd_attaches_by_the_plugin(own: Lab, containerd: list[str]) -> None:
    def ctr(*words: str, data: bytes | None = None) -> str:
        done = subprocess.run([*containerd, *words], input=data, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, f"ctr {' '.join(words)}: {done.stderr.decode()}"
        return done.stdout.decode()

    before = left(own, "node1")
    with tempfile.TemporaryDirectory(prefix="tweed-c", dir="/tmp") as directory:
        root = Path(directory)
        subprocess.run(["tar", "-x", "-C", directory], input=image(), check=True)
        (root / "etc").mkdir()
        # In the foreground: with -d, `ctr` would never send the DEL.
        running = subprocess.Popen([*containerd, "run", "--cni", "--rootfs", directory, "box", "/bin/sleep", "600"], stderr=subprocess.PIPE)
        attached = eventually(lambda: own.agent("node1", "GET", "/v1/attachments"), "the container is attached")
        addresses = [text.partition("/")[0] for text in attached[0]["addresses"]]
        assert len(addresses) == 2 and ping([(own.netns("master"), address) for address in addresses]) == set()
        eventually(lambda: "RUNNING" in ctr("task", "ls"), "the container runs")
        assert addresses[0] in ctr("task", "exec", "--exec-id", "e1", "box", "/bin/ip", "addr")
        ctr("task", "kill", "-s", "KILL", "box")
        assert running.communicate(timeout=60)[1] == b""
        ctr("container", "rm", "box")
    assert left(own, "node1") == before
