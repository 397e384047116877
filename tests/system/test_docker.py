"""The seed's own picture: containers behind docker0, on two nodes with a dockerd each, over flannel.1."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.system.conftest import TWEED, Lab, eventually, ping, running, tweed

from tweed.lab.agents import flags

APPLETS = ("sh", "ip", "ping", "nc", "sleep", "cat", "sha256sum", "timeout")
TEN_MEGABYTES = 10 << 20


def image() -> bytes:
    """A root file system that is busybox alone."""
    busybox = Path("/bin/busybox").read_bytes()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(busybox), 0o755
        tar.addfile(entry, io.BytesIO(busybox))
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return file.getvalue()


class Engine:
    """A dockerd in a node's namespace, with all of its files below `home`."""

    def __init__(self, lab: Lab, node: str, home: Path, options: list[str]) -> None:
        self.socket = home / "sock"
        inside = ["nsenter", f"--net=/run/netns/{lab.netns(node)}", "--", "/usr/sbin/dockerd"]
        places = ["--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "--pidfile", f"{home}/pid", "-H", f"unix://{self.socket}"]
        quiet = ["--iptables=false", "--ip6tables=false", "--userland-proxy=false", "--default-ulimit", "nofile=1024:1024", "--storage-driver", "vfs"]
        home.mkdir()
        self.log = (home / "log").open("wb")
        self.process = subprocess.Popen(
            [*inside, *places, *quiet, *options], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def docker(self, *words: str, data: bytes | None = None, check: bool = True) -> bytes:
        done = subprocess.run(["/usr/bin/docker", "-H", f"unix://{self.socket}", *words], input=data, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, f"docker {' '.join(words)}: {done.stderr.decode()}{Path(self.log.name).read_text()[-2000:]}"
        return done.stdout

    def answers(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()[-2000:]
        return bool(self.docker("version", "--format", "{{.Server.Version}}", check=False).strip())

    def end(self) -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            for container in self.docker("ps", "-aq").decode().split():
                self.docker("rm", "-f", container)
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def own() -> Iterator[Lab]:
    """Without pods: the subnets are Docker's."""
    with running(f"d{os.getpid()}", "--pods-per-node", "0") as made:
        yield made


def docker_opts(lab: Lab, node: str, *words: str) -> subprocess.CompletedProcess[str]:
    return lab.tweed("exec", node, "--", *TWEED, "docker-opts", *words)


@contextlib.contextmanager
def engines(lab: Lab, home: Path, *nodes: str, words: tuple[str, ...] = ()) -> Iterator[list[Engine]]:
    with contextlib.ExitStack() as stack:
        started = []
        for node in nodes:
            options = docker_opts(lab, node, "-c", "-k", "O", *words).stdout.removeprefix('O="').rstrip('"\n').split()
            assert any(option.startswith("--bip=10.244.") for option in options)
            stack.callback(lab.run, node, "ip link del docker0 || true")  # dockerd leaves it
            started.append(Engine(lab, node, home / node, options))
            stack.callback(started[-1].end)
        for engine in started:
            eventually(engine.answers, "dockerd answers", 40)
            engine.docker("import", "-", "tweed-test:1", data=image())
        yield started


@pytest.fixture
def home() -> Iterator[Path]:
    """Short: a unix socket's path has 108 bytes, and containerd's are deep."""
    with tempfile.TemporaryDirectory(prefix="tweed-d", dir="/tmp") as directory:
        yield Path(directory)


def test_containers_of_docker_run_talk_over_the_overlay(own: Lab, home: Path) -> None:
    with engines(own, home, "master", "node2") as (here, there):
        here.docker("run", "-d", "--name", "one", "tweed-test:1", "/bin/sleep", "600")
        there.docker("run", "-d", "--name", "two", "tweed-test:1", "/bin/sleep", "600")
        a, b = (json.loads(engine.docker("inspect", name))[0]["NetworkSettings"] for engine, name in ((here, "one"), (there, "two")))
        assert (a["IPAddress"], a["Gateway"], b["IPAddress"], b["Gateway"]) == ("10.244.0.2", "10.244.0.1", "10.244.2.2", "10.244.2.1")
        assert b"mtu 1450" in here.docker("exec", "one", "ip", "link", "show", "eth0")
        assert b"3 packets received" in here.docker("exec", "one", "ping", "-c3", "-i0.2", "-W5", b["IPAddress"])

        listener = ["/usr/bin/docker", "-H", f"unix://{there.socket}", "exec", "-i", "two", "sh", "-c", "nc -l -p 9 | sha256sum"]
        sink = subprocess.Popen(listener, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # at the end of its input it would hang up
        eventually(lambda: b":0009" in there.docker("exec", "two", "cat", "/proc/net/tcp6", "/proc/net/tcp"), "the sink listens")
        data = os.urandom(1 << 20) * (TEN_MEGABYTES >> 20)
        here.docker("exec", "-i", "one", "nc", "-w", "20", b["IPAddress"], "9", data=data)
        assert sink.communicate(timeout=60)[0].split()[0].decode() == hashlib.sha256(data).hexdigest()

        # The node's own pods must not take the same addresses.
        status = own.agent("master")
        assert status["problems"] == []
        done = own.tweed("exec", "master", "--", "ip", "link", "show", "cni0")
        assert done.returncode == 1


def test_a_changed_subnet_is_said(own: Lab) -> None:
    own.run("node1", "ip link add docker0 type bridge && ip addr add 10.244.9.1/24 dev docker0 && ip link set docker0 up")
    try:
        problems = eventually(lambda: [p for p in own.agent("node1")["problems"] if p["subject"] == "docker0"], "the agent sees docker0", 40)
        assert problems[0]["id"] == "bridge-subnet" and "has 10.244.9.1/24, but this node's subnet is 10.244.1.0/24" in problems[0]["text"]
        assert own.tweed("exec", "node1", "--", *TWEED, "agent", "--dry-run", *flags(own, own.node("node1"))).returncode == 0, "no reason not to start"
    finally:
        own.run("node1", "ip link del docker0")


def test_files(own: Lab, tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    file.write_text('{"debug": true, "bip": "10.244.7.1/24"}')
    done = docker_opts(own, "node1", "--daemon-json", str(file))
    assert (
        done.returncode == 0
        and done.stdout == f"wrote {file}: docker0 is 10.244.1.1/24, which is another than before; it takes effect when dockerd is restarted\n"
    )
    assert json.loads(file.read_text()) == {"debug": True, "bip": "10.244.1.1/24", "ip-masq": False, "mtu": 1450}
    assert docker_opts(own, "node1", "--daemon-json", str(file)).stdout == f"{file} says so already\n"
    environment = tmp_path / "docker_opts.env"
    assert docker_opts(own, "node1", "-d", str(environment), "--split").returncode == 0
    assert environment.read_text().splitlines() == [
        'DOCKER_OPT_BIP="--bip=10.244.1.129/25"',
        'DOCKER_OPT_IPMASQ="--ip-masq=false"',
        'DOCKER_OPT_MTU="--mtu=1450"',
        'DOCKER_OPTS=" --bip=10.244.1.129/25 --ip-masq=false --mtu=1450 "',
    ]
    done = tweed("docker-opts", "-f", str(tmp_path / "none"))
    assert done.returncode == 1 and done.stderr == f"tweed: {tmp_path}/none: it is not there; the agent writes it when it has a lease, see tweed status\n"


def test_pods_and_docker_share_no_address(own: Lab) -> None:
    """On one subnet: refused. Split: pods in the lower half, Docker in the upper one."""
    own.run("node1", "ip link add docker0 type bridge && ip addr add 10.244.1.1/24 dev docker0 && ip link set docker0 up")
    request = {"container_id": "c1", "ifname": "eth0", "netns": f"/run/netns/{own.name}-node1-x"}
    subprocess.run(["ip", "netns", "add", f"{own.name}-node1-x"], check=True)
    try:
        with pytest.raises(Exception, match=r"docker0 has 10\.244\.1\.1/24, so its containers and the pods would share 10\.244\.1\.0/24"):
            own.agent("node1", "POST", "/v1/attachments", request)
        own.run("node1", "ip addr del 10.244.1.1/24 dev docker0; ip addr add 10.244.1.129/25 dev docker0")
        answer = own.agent("node1", "POST", "/v1/attachments", request)
        assert answer["addresses"] == ["10.244.1.2/25"]
        assert "10.244.1.1/25" in own.run("node1", "ip -o addr show dev cni0")
        done = docker_opts(own, "node1")
        assert done.returncode == 1 and "cni0 has 10.244.1.1/25, so its containers and Docker's would share 10.244.1.0/24: use --split" in done.stderr
        assert docker_opts(own, "node1", "--split").returncode == 0
    finally:
        own.agent("node1", "DELETE", "/v1/attachments/c1/eth0")
        own.run("node1", "ip link del docker0")
        subprocess.run(["ip", "netns", "del", f"{own.name}-node1-x"], check=True)


@pytest.fixture
def attach(own: Lab) -> Iterator[Callable[[], str]]:
    """Attaches one pod more to node1 at each call: its address."""
    made: list[str] = []

    def one_more() -> str:
        name = f"{own.name}-node1-y{len(made)}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        made.append(name)
        request = {"container_id": name, "ifname": "eth0", "netns": f"/run/netns/{name}"}
        return str(own.agent("node1", "POST", "/v1/attachments", request)["addresses"][0])

    yield one_more
    for name in made:
        own.agent("node1", "DELETE", f"/v1/attachments/{name}/eth0")
        subprocess.run(["ip", "netns", "del", name], check=True)
    own.run("node1", "ip link del cni0 || true")


def test_a_split_holds_before_docker0_is_there(own: Lab, attach: Callable[[], str], tmp_path: Path) -> None:
    """At boot pods may come first. What was written for Docker counts until something else is."""
    write = ("node1", "-d", str(tmp_path / "options"))
    done = docker_opts(own, *write, "--split")
    assert done.returncode == 0 and done.stdout.startswith("pods keep 10.244.1.0/25, also while docker0 is not there\nwrote ")
    (tmp_path / "junk").write_text("{")
    assert docker_opts(own, "node1", "--daemon-json", str(tmp_path / "junk")).returncode == 1  # nothing was written, so nothing is forgotten
    assert attach().endswith("/25")
    done = docker_opts(own, *write)
    assert (done.returncode, done.stdout) == (1, "") and "cni0 has 10.244.1.1/25" in done.stderr and done.stderr.endswith("share 10.244.1.0/24: use --split\n")
    assert "10.244.1.129/25" in (tmp_path / "options").read_text() and attach().endswith("/25")
    for pod in own.agent("node1", "GET", "/v1/attachments"):
        own.agent("node1", "DELETE", f"/v1/attachments/{pod['container_id']}/eth0")
    own.run("node1", "ip link del cni0")
    assert docker_opts(own, *write).returncode == 0 and attach().endswith("/24")
    done = docker_opts(own, *write, "--split")
    assert done.returncode == 1 and done.stderr.startswith("tweed: cni0 has 10.244.1.1/24, so its containers and Docker's would share 10.244.1.128/25: while")
    assert "10.244.1.1/24" in (tmp_path / "options").read_text() and attach().endswith("/24")


def test_docker0_on_the_subnet_of_pods_that_were_there_before(own: Lab, attach: Callable[[], str]) -> None:
    """Nobody keeps dockerd from it, but it is said, and no pod more is attached."""
    attach()
    own.run("node1", "ip link add docker0 type bridge && ip addr add 10.244.1.1/24 dev docker0 && ip link set docker0 up")
    try:
        said = eventually(lambda: [p["text"] for p in own.agent("node1")["problems"] if p["id"] == "shared-subnet"], "the agent sees docker0", 40)
        assert "has 10.244.1.1/24, and cni0 is on the same subnet: containers of both may get one address" in said[0]
        with pytest.raises(Exception, match=r"docker0 has 10\.244\.1\.1/24, so its containers and the pods would share 10\.244\.1\.0/24"):
            attach()
    finally:
        own.run("node1", "ip link del docker0")
    attach()
    eventually(lambda: not own.agent("node1")["problems"], "all is well", 40)


def test_docker_and_pods_share_a_node(own: Lab, home: Path) -> None:
    """Each has a half of its subnet; a container, a pod beside it and one of another node all reach each other."""
    with engines(own, home, "master", words=("--split",)) as (engine,), contextlib.ExitStack() as stack:
        engine.docker("run", "-d", "--name", "one", "tweed-test:1", "/bin/sleep", "600")
        container = json.loads(engine.docker("inspect", "one"))[0]["NetworkSettings"]["IPAddress"]
        pods = {}
        for node in ("master", "node2"):
            netns = f"{own.name}-{node}-x"
            subprocess.run(["ip", "netns", "add", netns], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", netns], check=True)
            request = {"container_id": "c1", "ifname": "eth0", "netns": f"/run/netns/{netns}"}
            pods[netns] = own.agent(node, "POST", "/v1/attachments", request)["addresses"][0].partition("/")[0]
            stack.callback(own.agent, node, "DELETE", "/v1/attachments/c1/eth0")
        (here, near), (there, far) = pods.items()
        assert (container, near, far) == ("10.244.0.130", "10.244.0.2", "10.244.2.2") and own.agent("master")["problems"] == []
        assert ping([(here, container), (here, far), (there, container), (there, near)]) == set()
        for pod in (near, far):
            assert b"3 packets received" in engine.docker("exec", "one", "ping", "-c3", "-i0.2", "-W5", pod)
