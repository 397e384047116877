"""What the figures share: leases to order, namespaces that are always removed, agents in them, and a table with its circumstances."""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import platform
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tweed.addr import Prefix
from tweed.kernel import netns
from tweed.model import Endpoint, Lease, Owner
from tweed.plan.subnets import vtep_mac
from tweed.stores import TTL_S
from tweed.stores.sqlite import SqliteStore

VNI = 1
NETWORKS = {4: Prefix.parse("10.0.0.0/8"), 6: Prefix.parse("fd00:10::/48")}
LENGTHS = {4: 24, 6: 64}
HOSTS = {4: Prefix.parse("172.16.0.0/12"), 6: Prefix.parse("fd00:172::/64")}
NODES = {4: Prefix.parse("192.168.2.0/24"), 6: Prefix.parse("fd00:192::/64")}
CONFIG = f'{{"Network": "{NETWORKS[4]}", "SubnetLen": {LENGTHS[4]}, "SubnetMin": "10.250.0.0", "Backend": {{"Type": "vxlan", "VNI": {VNI}}}}}'
PATIENCE_S = 60.0


def lease(number: int, family: int = 4) -> Lease:
    """The lease of an imagined node; agents take theirs from elsewhere (SubnetMin)."""
    network = NETWORKS[family]
    subnet = Prefix.of(network.value + (number + 1) * (1 << (network.bits - LENGTHS[family])), LENGTHS[family], family)
    endpoint = Endpoint(subnet, HOSTS[family].host(number + 1), vtep_mac(network, VNI, subnet, 0), VNI)
    return Lease(v4=endpoint) if family == 4 else Lease(v6=endpoint)


def owner(number: int) -> Owner:
    return Owner(f"node-{number:05}.cluster.example", f"{number:08x}-0000-4000-8000-000000000000")


def fill(path: Path, count: int) -> None:
    """A store in the file `path` with a network configuration and so many leases, put there in one transaction."""
    store = SqliteStore(path)
    store.write_config(CONFIG, True)
    with store.database.writing("NORMAL") as connection:
        for number in range(count):
            store.put(connection, lease(number), owner(number), TTL_S, None)
    store.database.close()


# ---- measuring --------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Seconds of wall time, and of CPU of this process, the kernel's work for it included."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Sample:
    gc.collect()  # the rubbish of what was before is not this one's
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 1) -> str:
    """`median (least … most)`, multiplied by `unit`."""
    return f"{statistics.median(values) * unit:.{digits}f} ({min(values) * unit:.{digits}f} … {max(values) * unit:.{digits}f})"


def ratio(values: Sequence[float], floor: Sequence[float]) -> str:
    """Median of the ratios of pairs measured next to each other, with their spread."""
    return spread([value / least for value, least in zip(values, floor, strict=True)], digits=2)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print(flush=True)


@contextlib.contextmanager
def circumstances(title: str) -> Iterator[None]:
    """Says where and when a figure was taken, and afterwards how busy others kept the machine meanwhile."""
    if os.geteuid() != 0:
        sys.exit("bench: needs root, for network namespaces")
    now = datetime.datetime.now(datetime.UTC)
    print(f"{title}\n{now:%Y-%m-%d %H:%M} UTC, Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs\n", flush=True)
    sweep()
    load, start, busy, ours = os.getloadavg()[0], time.monotonic(), machine_busy_s(), ours_s()
    yield
    took = time.monotonic() - start
    others = max(0.0, machine_busy_s() - busy - (ours_s() - ours))
    share = 100 * others / took / (os.cpu_count() or 1)
    print(f"load {load:.2f} before, {os.getloadavg()[0]:.2f} after; other programs used {share:.0f} % of the machine for these {took:.0f} s\n")


def machine_busy_s() -> float:
    """CPU seconds of the whole machine that were not idle: user, nice, system, irq, softirq, steal (proc(5))."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


def ours_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, in ticks of 10 ms (fields 14 and 15 of proc(5)'s stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def switches(pid: int) -> int:
    """How often all threads of a process went to sleep so far."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(text.split("voluntary_ctxt_switches:")[1].split()[0]) for text in texts)


# ---- nodes and agents -------------------------------------------------------------------------------------------


class Node:
    """A network namespace with an underlay device `ens33` that leads nowhere, and a directory."""

    def __init__(self, number: int, directory: Path) -> None:
        self.number = number
        self.directory = directory
        self.name = f"tweedb-{os.getpid()}-{number}"
        netns.create(self.name)
        self.fd = netns.open_netns(self.name)

    def set_up(self) -> None:
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "ens33", "type", "veth", "peer", "name", "nowhere")
        for device in ("ens33", "nowhere"):
            self.ip("link", "set", device, "up")
        for family in (4, 6):
            prefix = NODES[family]
            extra = ["nodad"] if family == 6 else []
            self.ip("addr", "add", str(Prefix(prefix.host(self.number + 1), prefix.length)), "dev", "ens33", *extra)

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", "-n", self.name, *words], check=True)

    def remove(self) -> None:
        os.close(self.fd)
        netns.delete(self.name)


@contextlib.contextmanager
def nodes(count: int) -> Iterator[list[Node]]:
    """Namespaces and a directory that are gone afterwards, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="tweed-bench-") as directory, contextlib.ExitStack() as stack:
        made = []
        for number in range(count):
            node = Node(number, Path(directory) / f"node{number}")
            stack.callback(node.remove)
            node.set_up()
            made.append(node)
        yield made


def sweep() -> None:
    """Remove what an earlier run left that was killed: its agents first, then their namespaces."""
    for name in netns.names():
        bench, _, number = name.rpartition("-")[0].partition("-")
        if bench == "tweedb" and not Path(f"/proc/{number}").exists():
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout
            for pid in pids.split():
                os.kill(int(pid), signal.SIGTERM)
            netns.delete(name)


class Agent:
    """A real agent process in a node, on the SQLite file at `store`, or on what `more` says. Its log lines come through a pipe."""

    def __init__(self, node: Node, store: Path | None, *more: str) -> None:
        words = ["--node-name", f"agent{node.number}", "--iface", "ens33", *(["--store", f"sqlite://{store}"] if store is not None else [])]
        for flag, path in (("run-dir", "run"), ("state-dir", "state"), ("subnet-file", "subnet.env")):
            words += [f"--{flag}", str(node.directory / path)]
        command = ["nsenter", f"--net={netns.DIRECTORY}/{node.name}", sys.executable, "-m", "tweed", "agent", *words, *more]
        self.log: list[str] = []
        self.started = time.monotonic()
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("TWEED_", "FLANNELD_"))}
        self.process = subprocess.Popen(command, env=plain, stderr=subprocess.PIPE)
        self.pid = self.process.pid  # nsenter becomes the agent
        self.rest = b""

    def wait_for(self, words: str) -> float:
        """When the agent logged a line with these words, in seconds since its process was started."""
        deadline = time.monotonic() + PATIENCE_S
        while (left := deadline - time.monotonic()) > 0:
            lines = self.read(left)
            now = time.monotonic()
            self.log = [*self.log, *lines][-100:]
            if any(words in line for line in lines):
                return now - self.started
        raise TimeoutError(f"the agent did not log {words!r}:\n" + "\n".join(self.log[-20:]))

    def read(self, timeout_s: float) -> list[str]:
        """Whole lines that it has logged."""
        assert self.process.stderr is not None
        if not select.select([self.process.stderr], [], [], timeout_s)[0]:
            return []
        data = os.read(self.process.stderr.fileno(), 1 << 16)
        if not data:
            raise EOFError("the agent ended:\n" + "\n".join(self.log[-20:]))
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [line.decode() for line in lines]

    def drain(self) -> None:
        """Take what it has logged, so that it never waits for us."""
        while lines := self.read(0):
            self.log = [*self.log, *lines][-100:]

    def memory_mb(self) -> tuple[float, float]:
        """Resident memory now and at its highest, in MB of 2^20 bytes."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) / 1024, int(status["VmHWM"].split()[0]) / 1024

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.stderr is not None
        while os.read(self.process.stderr.fileno(), 1 << 16):  # it may have more to say than the pipe holds
            pass
        self.process.stderr.close()
        self.process.wait()


@contextlib.contextmanager
def agent(node: Node, store: Path | None, *more: str) -> Iterator[Agent]:
    """`more`: further flags of `tweed agent`."""
    started = Agent(node, store, *more)
    try:
        yield started
    finally:
        started.stop()
