"""The agent as a service: what it tells its manager, and that what the unit leaves it is enough."""

from __future__ import annotations

import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.system.cluster import Cluster, Namespace, wait_for
from tests.system.stream import Stream

from tweed.agent.client import call

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd/tweed.service"


def test_the_unit_says_nothing_that_systemd_does_not_understand(tmp_path: Path) -> None:
    """Its exit code is 0 for unknown keys too: what counts is that it has nothing to say."""

    def verify(text: str) -> str:
        path = tmp_path / "tweed.service"
        path.write_text(text)
        return subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60, check=True).stderr

    text = UNIT.read_text()
    assert verify(text) == ""
    assert "Unknown key 'ProtectWatch'" in verify(text.replace("ProtectClock", "ProtectWatch")), "it would say so"


def test_an_agent_with_no_more_than_the_unit_leaves_it(tmp_path: Path) -> None:
    """Its capabilities, no new privileges: devices, rows, sysctls, nftables, iptables and a container's namespace all the same."""
    (capabilities,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.M)
    bounding = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities.split())])
    with Cluster(tmp_path, 2) as cluster, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        a, b = cluster.nodes
        b.start()
        a.sh("iptables -P FORWARD DROP")
        command = a.argv("setpriv", f"--bounding-set={bounding}", "--no-new-privs", sys.executable, "-m", "tweed", "agent", *a.flags, "--ip-masq")
        environment = cluster.environment | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with a.log.open("ab") as log:
            a.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        heard = listen(manager, "READY=1")
        assert heard[-1] == ["READY=1", "STATUS=ready: 1 peers programmed", "WATCHDOG=1"], heard
        assert a.status()["ready"] and not a.problems()
        assert (Path("/proc") / str(a.process.pid) / "status").read_text().partition("CapEff:\t")[2][:16].lstrip("0") == "203000"
        assert "tweed forward" in a.sh("iptables-save") and "tweed-1" in a.sh("nft list tables") and a.sh("sysctl -n net.ipv4.ip_forward") == "1\n"
        pod = Namespace()
        try:
            made = call(a.socket, "POST", "/v1/attachments", {"container_id": "c1", "netns": f"/run/netns/{pod.name}", "ifname": "eth0"})
            address = next(line.split()[3].split("/")[0] for line in pod.sh("ip -4 -o addr show dev eth0").splitlines())
            assert address in str(made)
            with Stream(pod, address, b, str(b.status()["subnet"]).split("/")[0]) as stream:
                wait_for(lambda: len(stream.came) > 3, "the pod reaches the other node")
        finally:
            pod.remove()
        for _ in range(3):
            listen(manager, "WATCHDOG=1")
        a.sh("ip link set ens33 down; ip link del ens33")
        listen(manager, "STATUS=not ready: ")
        a.process.terminate()
        assert listen(manager, "STOPPING=1")[-1] == ["STOPPING=1"]
        assert a.process.wait(30) == 0


def listen(manager: socket.socket, line: str) -> list[list[str]]:
    """What is heard until a line that begins like this, inclusive."""
    heard: list[list[str]] = []
    deadline = time.monotonic() + 30.0  # signs of life come all the time
    while not (heard and any(word.startswith(line) for word in heard[-1])):
        assert select.select([manager], [], [], max(0.0, deadline - time.monotonic()))[0], f"{line} is not heard: {heard}"
        heard.append(manager.recv(4096).decode().split("\n"))
    return heard
