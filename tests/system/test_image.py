"""The container image: built without any network from what is on this machine, and an agent that runs from it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.cluster import Cluster, wait_for
from tests.system.test_containers import CONTAINERS_CONF

TREE = Path(__file__).parents[2]
PROGRAMS = ("/usr/bin/python3", "/usr/bin/env", "/usr/sbin/nft", "/usr/sbin/xtables-nft-multi")
LINKS = {"usr/sbin/iptables-nft-save": "xtables-nft-multi", "usr/sbin/iptables-nft-restore": "xtables-nft-multi"}
LINKS |= {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/bin/python3": "python3.11"}


def base() -> bytes:
    """A root file system with Python, nft and iptables, from this machine's files: what an image of Debian would have, and nothing else."""
    python = Path("/usr/bin/python3").resolve()
    library = Path(f"/usr/lib/{python.name}")
    files = {path for path in library.rglob("*") if path.is_file() and not {"test", "idlelib", "__pycache__"} & set(path.parts) and "config-" not in str(path)}
    files |= {Path(name).resolve() for name in PROGRAMS} | set(Path("/usr/lib").glob("*/libnftables.so.1")) | set(Path("/usr/lib").glob("*/libstdc++.so.6"))
    files |= set(Path("/usr/lib").glob("*/xtables/*.so"))
    files |= {path for name in ("librt.so.1", "libdl.so.2", "libpthread.so.0") for path in Path("/usr/lib").glob(f"*/{name}")}  # glibc's, for wheels
    linked = [str(f) for f in files if f.suffix == ".so" or ".so." in f.name or "bin" in f.parts or "sbin" in f.parts]
    found = subprocess.run(["ldd", *linked], capture_output=True, text=True, check=False)
    files |= {Path(name) for name in re.findall(r"(/\S+) \(0x", found.stdout)}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        names = {str(path) if path.is_relative_to("/usr") else f"/usr{path}": path.resolve() for path in sorted(files)}  # /lib is /usr/lib
        for name, path in names.items():
            tar.add(path, name.lstrip("/"), recursive=False)
        for name, target in (LINKS | {"usr/bin/python3": python.name}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name in ("run", "tmp", "var/lib", "etc", "proc", "sys", "dev"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
    return data.getvalue()


class Podman:
    """An engine with directories of its own, that touches no network: neither to fetch nor to make one."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "containers.conf").write_text(CONTAINERS_CONF.format(plugins=home))
        self.environment = os.environ | {"CONTAINERS_CONF": f"{home}/containers.conf"}
        self.options = [f"--root={home}/root", f"--runroot={home}/run", f"--tmpdir={home}/tmp", "--storage-driver=vfs"]

    def __call__(self, *words: str, data: bytes | None = None, before: tuple[str, ...] = ()) -> str:
        done = subprocess.run([*before, "podman", *self.options, *words], input=data, capture_output=True, timeout=120, check=False, env=self.environment)
        assert done.returncode == 0, f"podman {' '.join(words)}: {done.stderr.decode()}"
        return done.stdout.decode().strip()


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    with tempfile.TemporaryDirectory(prefix="tweed-i", dir="/tmp") as directory:
        made = Podman(Path(directory))
        try:
            made("import", "-", "localhost/base:1", data=base())
            command = [str(TREE / "script/image"), "localhost/base:1", "localhost/tweed:1", *made.options]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=made.environment)
            assert done.returncode == 0, done.stdout + done.stderr
            yield made
        finally:
            subprocess.run(["podman", *made.options, "rm", "-af", "-t", "0"], capture_output=True, check=False, env=made.environment)
            subprocess.run(["umount", "-l", f"{made.home}/root/vfs"], stderr=subprocess.DEVNULL, check=False)


def test_an_agent_in_a_container_keeps_its_node(podman: Podman, tmp_path: Path) -> None:
    """With two capabilities, the host's network, its sysctls and directories; it takes over what an agent outside of a container had."""
    with Cluster(tmp_path, 2) as cluster:
        a, b = cluster.nodes
        b.start()
        a.start("--ip-masq")
        before, mac = a.tables(), a.status()["vtep_mac"]
        a.end()
        inside = ("nsenter", f"--net=/run/netns/{a.name}")
        a.sh("sysctl -qw net.ipv4.ip_forward=0")
        rights = ["--cap-drop=all", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW", "--security-opt=no-new-privileges", "--security-opt=unmask=/proc/sys"]
        run = ["run", "-d", "--name=agent", "--network=host", *rights, f"--volume={tmp_path}:{tmp_path}", "localhost/tweed:1", "agent", *a.flags, "--ip-masq"]
        podman(*run, before=inside)
        wait_for(lambda: a.status()["ready"], "the agent in the container is ready")
        assert a.tables() == before and a.status()["vtep_mac"] == mac and a.sh("sysctl -n net.ipv4.ip_forward") == "1\n"
        a.sh("ip route flush dev flannel.1 proto 83")
        wait_for(lambda: a.tables() == before, "what is lost comes back")
        podman("stop", "-t", "10", "agent", before=inside)
        assert json.loads(podman("inspect", "agent"))[0]["State"]["ExitCode"] == 0 and a.tables() == before


def test_the_plugin_is_in_it(podman: Podman, tmp_path: Path) -> None:
    """In C, though there is no compiler in the image, and for any node: it needs no library."""
    words = ["cni", "install", "--relay=c", f"--bin-dir={tmp_path}/bin", f"--conf-dir={tmp_path}/net", "--run-dir=/run/tweed"]
    podman("run", "--rm", "--network=none", f"--volume={tmp_path}:{tmp_path}", "localhost/tweed:1", *words)
    question, environment = '{"cniVersion": "1.0.0"}', {"CNI_COMMAND": "VERSION"}
    answer = subprocess.run([tmp_path / "bin/tweed"], env=environment, input=question, capture_output=True, text=True, check=True)
    assert "1.0.0" in json.loads(answer.stdout)["supportedVersions"]


def test_every_store_and_command_is_in_it(podman: Podman) -> None:
    """Whatever is imported late is there: gRPC, YAML, numpy."""
    script = "import grpc, yaml, numpy, aiohttp, rich, prometheus_client, tweed.stores.etcd.store; print('all')"
    assert podman("run", "--rm", "--network=none", "--entrypoint=python3", "localhost/tweed:1", "-c", script) == "all"
