"""A live walk in the lab: how long the whole command takes, and what tracing costs everybody else's packets.

The first table is wall clock of `tweed walk --live`, interpreter start, tables, tracer, probe, answer and second probe included; beside it the
same walk from tables alone. The second is the kernel's own accounting of our programs (BPF_ENABLE_STATS, on for this only) while foreign packets
flood the path: what one event costs, and what one packet costs one node, which meets several. The third is the same in UDP mode, where a TCP
stream travels in buffers of many packets: each of these is looked at, or, with `bursts` off, none.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from bench.common import circumstances, table
from tweed.addr import parse_address
from tweed.agent.client import call
from tweed.kernel import bpf
from tweed.kernel.netns import open_netns, run_in
from tweed.kernel.tracer import Tracer
from tweed.lab import cluster, registry, topology

NAME = "walkb"
RUNS = 7
PACKETS = 20_000
STREAM = 256 << 20
SRC, DST = "master/pod1", "node2/pod1"
NODES = 2  # the sender's and the receiver's: what pods and the switch between cost is counted to them
NONCE = b"bench-no"


def main() -> None:
    with circumstances(f"tweed walk --live in the seed's lab, median of {RUNS}"):
        lab = cluster.up(NAME, topology.seed(), lambda _: None)
        try:
            cluster.pause(lab, None)
            durations()
            costs(lab)
        finally:
            cluster.down(NAME, lambda _: None)
        lab = cluster.up(NAME, topology.with_backend(topology.seed(), "udp"), lambda _: None)
        try:
            rows = [stream(lab, on) for on in (True, False) for _ in range(3)]
            table(("UDP mode, one TCP stream", "packets per event", "ns per event", "ns per packet and node"), rows)
        finally:
            cluster.down(NAME, lambda _: None)


def durations() -> None:
    rows = []
    predicted = [command("walk", SRC, DST) for _ in range(RUNS)]
    healthy = [command("walk", "--live", SRC, DST) for _ in range(RUNS)]
    rows.append(("from tables alone", *figures(predicted), "1.00"))
    rows.append(("live, healthy", *figures(healthy), f"{statistics.median(healthy) / statistics.median(predicted):.2f}"))
    for fault in ("vtep-mac-stale", "neighbour-missing"):
        subprocess.run([sys.executable, "-m", "tweed", "lab", "break", "--name", NAME, fault], check=True, capture_output=True)
        broken = [command("walk", "--live", SRC, DST) for _ in range(RUNS if fault != "neighbour-missing" else 3)]
        subprocess.run([sys.executable, "-m", "tweed", "lab", "heal", "--name", NAME], check=True, capture_output=True)
        cluster.pause(registry.load(NAME), None)
        rows.append((f"live, {fault}", *figures(broken), f"{statistics.median(broken) / statistics.median(predicted):.2f}"))
    attached = []
    for _ in range(RUNS):
        start = time.perf_counter()
        Tracer().close()
        attached.append(time.perf_counter() - start)
    rows.append(("tracer attached and gone", *figures(attached), ""))
    table(("", "median, ms", "fastest", "slowest", "over tables alone"), rows)


def command(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tweed", *words, "--lab", NAME, "--json"], stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def figures(seconds: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{1000 * value:.0f}" for value in (statistics.median(seconds), min(seconds), max(seconds)))


def costs(lab: registry.Lab) -> None:
    """A flood of datagrams that are not the probe's: plain at the pods, in the tunnel at the NICs."""
    pods = {f"{node.name}/{pod.name}": pod for node in lab.nodes for pod in node.pods}
    rows = [flood(pods[SRC], pods[DST], wanted, kind) for kind, wanted in (("foreign", b"another!"), ("all ours", NONCE)) for _ in range(3)]
    rows.sort(key=lambda row: (row[0], float(row[2])))
    table(("packets", "events per packet", "ns per event", "ns per packet and node", "busiest program", "its ns per event"), rows)


def flood(source: registry.Pod, sink: registry.Pod, wanted: bytes, kind: str) -> tuple[str, ...]:
    spaces = [open_netns(source.netns), open_netns(sink.netns)]
    statistics_on = bpf.enable_statistics()
    try:
        sender, receiver = (run_in(space, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for space in spaces)
        with sender, receiver, Tracer() as tracer:
            receiver.bind((sink.ips[0], 33434))
            sender.connect((sink.ips[0], 33434))
            tracer.look_for(17, wanted, b"", {8472: "vxlan"}, [parse_address("203.0.113.1")])
            before = {name: bpf.run_time(program) for name, program in tracer.programs.items()}
            for _ in range(PACKETS):
                sender.send(NONCE + b"x" * 56)
            spent = {name: tuple(now - was for now, was in zip(bpf.run_time(program), before[name], strict=True)) for name, program in tracer.programs.items()}
    finally:
        os.close(statistics_on)
        for space in spaces:
            os.close(space)
    nanoseconds, count = (sum(values) for values in zip(*spent.values(), strict=True))
    busiest = max(spent, key=lambda name: spent[name][0])
    each = spent[busiest][0] / max(1, spent[busiest][1])
    return kind, f"{count / PACKETS:.1f}", f"{nanoseconds / count:.0f}", f"{nanoseconds / PACKETS / NODES:.0f}", busiest, f"{each:.0f}"


def stream(lab: registry.Lab, bursts: bool) -> tuple[str, ...]:
    pods = {f"{node.name}/{pod.name}": pod for node in lab.nodes for pod in node.pods}
    source, sink = pods[SRC], pods[DST]
    spaces = [open_netns(source.netns), open_netns(sink.netns)]
    statistics_on = bpf.enable_statistics()
    try:
        sender, listener = (run_in(space, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for space in spaces)
        with sender, listener, Tracer(bursts=bursts) as tracer:
            listener.bind((sink.ips[0], 5001))
            listener.listen()
            sender.connect((sink.ips[0], 5001))
            tracer.look_for(17, b"another!", b"", {8285: "ip"}, [parse_address("203.0.113.1")])
            taker = threading.Thread(target=take, args=(listener.accept()[0],))
            taker.start()
            sent = forwarded(lab)
            before = {name: bpf.run_time(tracer.programs[name]) for name in ("queued", "received")}
            for _ in range(STREAM >> 20):
                sender.sendall(bytes(1 << 20))
            sender.shutdown(socket.SHUT_WR)
            taker.join()
            sent = forwarded(lab) - sent
            spent = [[now - was for now, was in zip(bpf.run_time(tracer.programs[name]), before[name], strict=True)] for name in before]
    finally:
        os.close(statistics_on)
        for space in spaces:
            os.close(space)
    nanoseconds, count = (sum(values) for values in zip(*spent, strict=True))
    return f"bursts {'looked into' if bursts else 'left alone'}", f"{sent / count:.1f}", f"{nanoseconds / count:.0f}", f"{nanoseconds / sent / NODES:.0f}"


def take(opened: socket.socket) -> None:
    with opened:
        while opened.recv(1 << 20):
            pass


def forwarded(lab: registry.Lab) -> int:
    """How many packets the nodes' processes have sent."""
    return sum(int(call(node.socket, "GET", "/v1/status")["forwarding"]["counters"]["tx-packets"]) for node in lab.nodes)


if __name__ == "__main__":
    main()
