"""The UDP mode's data paths beside a stand-in of flannel's proxy, which is built here: throughput, 64-byte packets, latency and CPU.

Two nodes joined by a veth, each with a bridge and a pod behind it: pod, bridge, TUN, process, wire, process, TUN, bridge, pod.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec

from bench.common import circumstances, cpu_s, ratio, spread, table
from tweed.addr import Prefix, parse_address
from tweed.udp.control import Request, Task, ask
from tweed.udp.peers import Table, peer

HERE = Path(__file__).parent
NODES = {"a": ("192.0.2.1", "10.244.1.0"), "b": ("192.0.2.2", "10.244.2.0")}
PODS = {"a": "10.244.1.5", "b": "10.244.2.5"}
OTHER = {"a": "b", "b": "a"}
# Which path on either node: the peer is the same, or a plain one.
PAIRS = {
    "stand-in": "plain plain",
    "fast": "fast fast",
    "numpy": "numpy numpy",
    "naive": "naive naive",
    "fast to plain": "fast plain",
    "plain to fast": "plain fast",
}
TRIES = 3
Figures = dict[str, float]


class Pair:
    """Two nodes and their pods, in namespaces that are gone at the end."""

    def __init__(self, stack: contextlib.ExitStack, directory: Path, program: Path) -> None:
        self.directory, self.program = directory, program
        self.prefix = f"tweedb-{os.getpid()}"
        for name in ("a", "b", "pa", "pb"):
            subprocess.run(["ip", "netns", "add", self.netns(name)], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", self.netns(name)], check=False)
            self.sh(name, "ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        self.sh("a", f"ip link add eth0 mtu 1500 type veth peer name eth0 netns {self.netns('b')}")
        for name, (address, subnet) in NODES.items():
            gateway = subnet[:-1] + "1"
            self.sh(name, f"ip addr add {address}/24 dev eth0; ip link set eth0 up; sysctl -qw net.ipv4.ip_forward=1")
            self.sh(name, f"ip link add pod mtu 1472 type veth peer name eth0 netns {self.netns('p' + name)}; ip link set pod up")
            self.sh(name, f"ip link add cni0 type bridge; ip addr add {gateway}/24 dev cni0; ip link set cni0 up; ip link set pod master cni0")
            self.sh(name, f"ip tuntap add flannel0 mode tun; ip link set flannel0 mtu 1472 up; ip addr add {subnet}/32 dev flannel0")
            self.sh(name, "ip route add 10.244.0.0/16 dev flannel0")
            self.sh("p" + name, f"ip link set eth0 mtu 1472 up; ip addr add {PODS[name]}/24 dev eth0; ip route add default via {gateway}")

    def netns(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def inside(self, name: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.netns(name), *command]

    def sh(self, name: str, script: str) -> None:
        subprocess.run(self.inside(name, "sh", "-euc", script), check=True)

    @contextlib.contextmanager
    def carried(self, paths: str) -> Iterator[list[int]]:
        """With these data paths on a and b; the pids of the processes."""
        started: list[subprocess.Popen[bytes]] = []
        try:
            for name, path in zip("ab", paths.split(), strict=True):
                started.append(self.start(name, path))
            self.wait_for_peer()
            yield [process.pid for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()

    def start(self, name: str, path: str) -> subprocess.Popen[bytes]:
        local, _ = NODES[name]
        host, subnet = NODES[OTHER[name]]
        if path == "plain":
            self.sh(name, "ip link set flannel0 txqueuelen 500")
            command = [str(self.program), "proxy", "flannel0", local, "8285", subnet, "255.255.255.0", host]
            return subprocess.Popen(self.inside(name, *command))
        control = self.directory / f"{name}.sock"
        control.unlink(missing_ok=True)
        task = Task(socket=str(control), device="flannel0", local=local, port=8285, data_path=path)  # type: ignore[arg-type]
        process = subprocess.Popen(self.inside(name, sys.executable, "-m", "tweed.udp.forwarder", msgspec.json.encode(task).decode()))
        own = Table(Prefix.parse(NODES[name][1] + "/24"), (peer(Prefix.parse(subnet + "/24"), parse_address(host)),))
        for _ in range(200):
            with contextlib.suppress(OSError):
                report = ask(control, Request(table=own.pack()))
                assert report.data_path == path, report
                return process
            time.sleep(0.05)
        sys.exit(f"bench: the {path} data path does not answer")

    def wait_for_peer(self) -> None:
        for _ in range(100):
            if subprocess.run(self.inside("pa", "busybox", "ping", "-c1", "-W1", PODS["b"]), stdout=subprocess.DEVNULL, check=False).returncode == 0:
                return
        sys.exit("bench: the pods do not reach each other")

    def figures(self, paths: str, seconds: float) -> Figures:
        with self.carried(paths) as pids:
            return {"latency": self.latency(seconds), **self.stream(pids, seconds), "packets": self.packets(seconds)}

    def stream(self, pids: list[int], seconds: float) -> Figures:
        """Gbit/s of one TCP connection, CPU seconds of both processes per GB, retransmissions. A run that loses iperf3's own messages is run again."""
        for _ in range(TRIES):
            with contextlib.suppress(subprocess.TimeoutExpired, subprocess.CalledProcessError):
                return self.one_stream(pids, seconds)
            print("iperf3 did not come to its end: again", file=sys.stderr, flush=True)
        sys.exit(f"bench: iperf3 came to its end in none of {TRIES} runs")

    def one_stream(self, pids: list[int], seconds: float) -> Figures:
        server = subprocess.Popen(self.inside("pb", "iperf3", "--forceflush", "-s", "-1"), stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        while "listening" not in server.stdout.readline():
            pass
        before = sum(map(cpu_s, pids))
        try:
            command = self.inside("pa", "iperf3", "-J", "-t", str(seconds), "-c", PODS["b"])
            client = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 10)
            used = sum(map(cpu_s, pids)) - before
        finally:
            server.kill()
            server.communicate()
        end = json.loads(client.stdout)["end"]
        received = end["sum_received"]["bytes"]
        return {"gbit": received * 8 / end["sum_received"]["seconds"] / 1e9, "cpu": used / received * 1e9, "again": end["sum_sent"]["retransmits"]}

    def packets(self, seconds: float) -> float:
        """Thousands of 64-byte datagrams that arrive in a second, while one thread sends all it can."""
        counter = subprocess.Popen(self.inside("pb", str(self.program), "count", "7000", str(seconds + 0.5)), stdout=subprocess.PIPE, text=True)
        assert counter.stdout is not None
        counter.stdout.readline()
        subprocess.run(self.inside("pa", str(self.program), "flood", PODS["b"], "7000", str(seconds)), check=True, stdout=subprocess.DEVNULL)
        return int(counter.communicate()[0]) / seconds / 1000

    def latency(self, seconds: float) -> float:
        """Microseconds of half a round trip of one UDP packet, the median."""
        server = subprocess.Popen(self.inside("pb", "sockperf", "server", "-p", "7001"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.3)
            command = self.inside("pa", "sockperf", "ping-pong", "-i", PODS["b"], "-p", "7001", "-t", str(max(1, round(seconds))))
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        finally:
            server.kill()
            server.wait()
        found = re.search(r"percentile 50.000 =\s*([\d.]+)", text)
        return float(found[1]) if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=list(PAIRS))
    given = parser.parse_args()
    with circumstances("The UDP mode beside a stand-in of flannel's proxy"), contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program = directory / "udp_proxy"
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "udp_proxy.c"], check=True)
        pair = Pair(stack, directory, program)
        results: dict[str, list[Figures]] = {name: [] for name in given.only}
        for number in range(given.rounds):
            for name in given.only:
                results[name].append(pair.figures(PAIRS[name], given.seconds))
                print(
                    f"round {number + 1}, {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in results[name][-1].items()), file=sys.stderr, flush=True
                )
        show(results)


def show(results: dict[str, list[Figures]]) -> None:
    floor = results.get("stand-in")
    columns = {"gbit": "TCP Gbit/s", "packets": "64 B kpps", "latency": "half RTT us", "cpu": "CPU s/GB"}
    rows = []
    for name, found in results.items():
        row = [name]
        for key in columns:
            values = [each[key] for each in found]
            row += [spread(values, digits=2), ratio(values, [each[key] for each in floor]) if floor else "-"]
        rows.append([*row, f"{median(each['again'] for each in found):.0f}"])
    table(["", *(word for text in columns.values() for word in (text, "x stand-in")), "retransmitted"], rows)


if __name__ == "__main__":
    main()
