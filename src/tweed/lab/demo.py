"""One packet from container to container, shown: a lab, real traffic, the four steps beside real frames, a fault and its repair.

Everything printed is measured or asked in this very run; a check that fails is said and makes the exit code 1.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tweed import __version__
from tweed.addr import format_address, parse_address
from tweed.errors import TweedError
from tweed.kernel.capture import Capture
from tweed.kernel.monitor import NEIGH, Monitor
from tweed.kernel.netlink import Netlink
from tweed.kernel.netns import open_netns
from tweed.lab import cluster, registry, topology
from tweed.lab.picture import Line, evidence, frame_lines, step_lines
from tweed.lab.registry import DEFAULT_NAME, Lab, Node, Pod
from tweed.lab.steps import Step, four_steps
from tweed.lab.traffic import ping, transfer
from tweed.model import Change, FdbEntry, Route
from tweed.wire.packet import Packet, decode

if TYPE_CHECKING:
    from rich.console import Console

SOURCE, DESTINATION = ("master", "pod1"), ("node2", "pod1")
BRIDGE, UNDERLAY = "cni0", topology.UNDERLAY_DEVICE
PAYLOAD = b"one packet, from container to container, step by step..."  # 56 bytes, as of `ping`
SEEN_S = 2.0
REPAIRED_S = 10.0
ECHO_REQUEST = 8

STYLES = {
    "inner": "bright_blue",
    "outer": "green",
    "vxlan": "bright_black",
    "heading": "bold",
    "step": "bold",
    "prompt": "bright_black",
    "command": "default",
    "row": "bold cyan",
    "answer": "default",
    "good": "bold green",
    "bad": "bold red",
    "quiet": "bright_black",
    "title": "bold",
}
# For terminals that cannot show them.
PLAIN = str.maketrans({"✓": "+", "✗": "!", "→": ">", "…": "~"})


class Voice:
    """Prints lines, and counts checks and failures."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.checks = self.failed = 0

    def say(self, *lines: Line) -> None:
        from rich.text import Text

        for line in lines:
            text = Text()
            for part, style in line:
                shown = part if self.console.encoding.startswith("utf") else part.translate(PLAIN)
                text.append(shown, " ".join(STYLES.get(word, word) for word in style.split()))
            self.console.print(text, soft_wrap=True)

    def progress(self, line: str) -> None:
        self.say((("   ", ""), (line, "quiet")))

    def heading(self, text: str) -> None:
        self.say((), ((text, "heading"),))

    def check(self, name: str, good: bool, text: str) -> None:
        self.checks += 1
        self.failed += not good
        self.say((("   ", ""), ("✓ " if good else "✗ ", "good" if good else "bad"), (f"{name:<10}", ""), (text, "" if good else "bad")))


def demo(*, keep: bool, name: str = DEFAULT_NAME, console: Console) -> int:
    """Run it all. 0 when every check held, else 1. Raises TweedError. Unless `keep`, the lab is gone afterwards, whatever happens."""
    voice = Voice(console)
    started = time.monotonic()
    voice.say((("tweed ", "heading"), (__version__, "heading"), (": one packet from container to container", "heading")))
    with standing(name, voice, keep) as lab:
        introduce(voice, lab)
        follow(voice, lab)
        took = time.monotonic() - started
    voice.heading(f"{voice.checks - voice.failed} of {voice.checks} checks held, {took:.1f} s in all.")
    if not voice.failed:
        voice.say((("One route, one neighbour and one fdb entry per node carry every packet between containers.", ""),))
        voice.say((("The agents put them there, and put them back.", ""),))
    explore(voice, keep, name)
    return 1 if voice.failed else 0


@contextlib.contextmanager
def standing(name: str, voice: Voice, keep: bool) -> Iterator[Lab]:
    """A lab of the seed's topology for as long as the block runs; with `keep` it stays, unless the block is left by an error."""
    voice.heading("1  A cluster on this machine: three nodes in network namespaces, an agent in each")
    stays = False
    with cluster.endings_raise():
        if is_up(name):
            raise TweedError(f"lab {name} is up already: take it down with `tweed lab down --name {name}`")
        try:
            try:
                lab = cluster.up(name, topology.seed(), voice.progress)
            except TweedError:  # it has removed what it made, or somebody else is at it
                stays = True
                raise
            yield lab
            stays = keep
        finally:
            if not stays and name in registry.names():
                with cluster.endings_wait():
                    cluster.down(name, lambda _: None)


def is_up(name: str) -> bool:
    with contextlib.suppress(TweedError):
        lab = registry.read(name)
        return lab is not None and lab.up
    return False


def introduce(voice: Voice, lab: Lab) -> None:
    """The nodes as a table."""
    rows = [("node", "host", "subnet", "VTEP MAC", "pods")]
    for node, said in zip(lab.nodes, cluster.status(lab)["nodes"], strict=True):
        pods = ", ".join(f"{pod.name} {pod.ips[0]}" for pod in node.pods if not pod.outside)
        rows.append((node.name, node.public_ip, str(said["subnet"]), str(said["vtep_mac"]), pods))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    voice.say(())
    for number, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        voice.say((("   ", ""), (line, "" if number else "quiet")))


def follow(voice: Voice, lab: Lab) -> None:
    """Everything that happens to the packet."""
    node, peer = lab.node(SOURCE[0]), lab.node(DESTINATION[0])
    source, destination = pod(node, SOURCE[1]), pod(peer, DESTINATION[1])
    src, dst = parse_address(source.ips[0]), parse_address(destination.ips[0])
    with contextlib.ExitStack() as stack:
        spaces = {}
        for space in (node.netns, source.netns, destination.netns):
            spaces[space] = open_netns(space)
            stack.callback(os.close, spaces[space])
        nl = stack.enter_context(Netlink(spaces[node.netns]))

        voice.heading(f"2  {'/'.join(SOURCE)} {format_address(src)} talks to {'/'.join(DESTINATION)} {format_address(dst)}")
        vtep = four_steps(nl, dst, src=src, iif=BRIDGE)[0]
        tunnel = vtep.row.device if isinstance(vtep.row, Route) else UNDERLAY
        with Capture((BRIDGE, tunnel, UNDERLAY), spaces[node.netns]) as capture:
            frames = echoes(voice, capture, spaces[source.netns], src, dst)
        stream(voice, spaces[source.netns], spaces[destination.netns], dst)

        voice.heading(f"3  The four steps: what {node.name}'s kernel answers now, and the echo request as it passed")
        steps = four_steps(nl, dst, src=src, iif=BRIDGE)
        walk(voice, node, steps, frames, tunnel)

        voice.heading(f"4  A peer is broken by hand: {node.name} forgets which host {peer.name}'s VTEP is on")
        repair(voice, node, spaces[node.netns], steps)
        answered = ping(spaces[source.netns], src, dst, id=echo_id() ^ 1)
        voice.check("ping", None not in answered, f"{len(answered) - answered.count(None)} of {len(answered)} answered again")


def pod(node: Node, name: str) -> Pod:
    return next(pod for pod in node.pods if pod.name == name)


def echo_id() -> int:
    """The identifier of our echo requests, which tells them from everybody else's."""
    return os.getpid() & 0xFFFE


def echoes(voice: Voice, capture: Capture, netns: int, src: bytes, dst: bytes) -> dict[str, Packet]:
    """Ping, and the first request as it was seen at each device."""
    times = ping(netns, src, dst, id=echo_id(), payload=PAYLOAD)
    answered = [seconds * 1000 for seconds in times if seconds is not None]
    spread = f": {min(answered):.3f} to {max(answered):.3f} ms" if answered else ""
    voice.check("ping", len(answered) == len(times), f"{len(answered)} of {len(times)} answered{spread}")
    found: dict[str, Packet] = {}
    deadline = time.monotonic() + SEEN_S
    while len(found) < 3 and (left := deadline - time.monotonic()) > 0:
        for frame in capture.drain(left):
            packet = decode(frame.data)
            if frame.device not in found and is_request(packet, src, dst):
                found[frame.device] = packet
    return found


def is_request(packet: Packet, src: bytes, dst: bytes) -> bool:
    """Whether the innermost packet is our first echo request."""
    level = packet.levels - 1
    network, echo = packet.find("ipv4", level), packet.find("icmp", level)
    if network is None or echo is None or echo.problems or echo.number("type") != ECHO_REQUEST:
        return False
    return network.octets("src") == src and network.octets("dst") == dst and echo.number("id") == echo_id() and echo.number("sequence") == 1


def stream(voice: Voice, client: int, server: int, dst: bytes) -> None:
    done = transfer(client, server, dst)
    same = done.sent == done.received
    rate = f"{done.size:,} bytes in {done.duration_s * 1000:.1f} ms"
    voice.check("TCP", same, f"{rate}, SHA-256 {done.sent[:16]}… {'the same at both ends' if same else f'became {done.received[:16]}…'}")


def walk(voice: Voice, node: Node, steps: Sequence[Step], frames: dict[str, Packet], tunnel: str) -> None:
    """Each step, and behind the steps that decided its headers the frame itself."""
    places = ((BRIDGE, (1,), "as it came from the container"), (tunnel, (2,), "with the inner Ethernet header"), (UNDERLAY, (3, 4), "as it leaves the host"))
    agreed = 0
    for device, numbers, what in places:
        mine = [step for step in steps if step.number in numbers]
        for step in mine:
            voice.say((), *step_lines(step, node.name))
        packet = frames.get(device)
        if packet is None:
            voice.say((), (("        ", ""), (f"the echo request was not seen at {device}", "bad")))
            continue
        inside = packet.find("ethernet", 1)
        size = f"{len(packet.data)} bytes" + (f", {inside.offset} of them around the {len(packet.data) - inside.offset} before" if inside is not None else "")
        notes = evidence(mine, packet)
        agreed += sum(style == "good" for spans in notes.values() for _, style in spans)
        voice.say((), (("        ", ""), (f"the frame at {device}, {what}: {size}", "quiet")), *frame_lines(packet, notes))
    voice.say(())
    found = sum(step.value is not None for step in steps)
    rows, headers = f"{found} of {len(steps)} rows decide", f"{agreed} of 3 destinations on the frames are the ones they decided"
    voice.check("steps", found == len(steps) and agreed == 3, f"{rows}; {headers}")


def repair(voice: Voice, node: Node, netns: int, steps: Sequence[Step]) -> None:
    """Delete the peer's fdb entry as a person would, and wait for the agent."""
    row = next((step.row for step in steps if isinstance(step.row, FdbEntry)), None)
    if row is None:
        voice.check("repaired", False, "there was no fdb entry to delete")
        return
    command = str(Change("delete", row))
    voice.say((), (("   ", ""), (f"[root@{node.name} ~]# ", "prompt"), (command, "command")))
    with contextlib.closing(Monitor(netns, NEIGH)) as monitor:
        waiting = select.poll()
        waiting.register(monitor.fileno(), select.POLLIN)
        # Counted from here, so the time of `bridge` itself is in it: loss and repair are often announced before this process gets to run.
        started = time.monotonic()
        process = subprocess.Popen(["nsenter", f"--net=/run/netns/{node.netns}", "--", *command.split()])
        ops: list[str] = []
        while ops[-2:] != ["del", "new"] and (left := started + REPAIRED_S - time.monotonic()) > 0:
            waiting.poll(left * 1000)
            ops += [notice.op for notice in monitor.drain() if notice.row == row]
        took = time.monotonic() - started
        process.wait()
    if ops[-2:] == ["del", "new"]:
        voice.say((("   ", ""), (str(row), "row")))
        voice.check("repaired", True, f"by the agent: the row was back {took * 1000:.1f} ms after the command was started")
    else:
        voice.check("repaired", False, f"the row was not {'back' if ops else 'deleted'} after {REPAIRED_S:g} s")


def explore(voice: Voice, keep: bool, name: str) -> None:
    """What to do next, in commands that work as they stand."""
    tweed = "tweed"
    if shutil.which(tweed) is None and os.path.basename(sys.argv[0]) == tweed:
        tweed = os.path.relpath(sys.argv[0])
    option = "" if name == registry.DEFAULT_NAME else f" --name {name}"
    commands = [
        ("the tables", f"ip netns exec {name}-master ip route"),
        ("", f"ip netns exec {name}-master ip neigh show dev flannel.1"),
        ("", f"ip netns exec {name}-master bridge fdb show dev flannel.1"),
        ("an agent", f"{tweed} lab exec{option} master -- {tweed} status"),
        ("its log", f"{tweed} lab logs{option} master"),
        ("a pod", f"{tweed} lab exec{option} master/pod1 -- ip addr"),
        ("no repairs", f"{tweed} lab pause{option}"),
        ("", f"{tweed} lab resume{option}"),
        ("the end", f"{tweed} lab down{option}"),
    ]
    voice.say(())
    if keep:
        voice.say((("The lab stays up. Look around:", ""),))
    else:
        voice.say((("The lab is gone, nothing is left of it. Look around in another:", ""),))
        commands.insert(0, ("a lab", f"{tweed} lab up{option}"))
    for what, command in commands:
        voice.say((("   ", ""), (f"{what:<12}", "quiet"), (command, "command")))
