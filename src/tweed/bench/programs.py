"""iperf3 and sockperf in two namespaces: start the server, run the client, end the server, read what the client printed."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from tweed.bench.grounds import Ground
from tweed.errors import TweedError
from tweed.kernel import netns

# Each run has a port of its own: sockperf cannot bind one whose last connection is in TIME_WAIT.
PORTS = itertools.cycle(range(5201, 6201))
START_S, SPARE_S = 5.0, 20.0


def check() -> None:
    """Raises TweedError with what to install."""
    missing = [name for name in ("iperf3", "sockperf") if shutil.which(name) is None]
    if missing:
        raise TweedError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: apt-get install {' '.join(missing)}")


class Stream(msgspec.Struct, frozen=True):
    """`bits_s`: goodput at the receiver; `bytes` that it took in; `retransmits` of the sender."""

    bits_s: float
    bytes: int
    retransmits: int


def tcp(ground: Ground, seconds: int, streams: int) -> Stream:
    """iperf3's TCP throughput."""
    ended = _iperf3(ground, seconds, "-P", str(streams))
    received, sent = ended["sum_received"], ended["sum_sent"]
    return Stream(received["bits_per_second"], received["bytes"], sent.get("retransmits", 0))


def packets(ground: Ground, seconds: int) -> float:
    """Datagrams of 64 bytes that arrived, per second, while one sender sends as fast as it can."""
    ended = _iperf3(ground, seconds, "-u", "-l", "64", "-b", "0")
    total = ended["sum"]
    return float((total["packets"] - total["lost_packets"]) / total["seconds"])


def latency_us(ground: Ground, seconds: int, *, over_tcp: bool) -> float:
    """sockperf's median round trip of one request and its answer, in microseconds."""
    port = next(PORTS)
    options = ["-i", ground.address, "-p", str(port), *(["--tcp"] if over_tcp else [])]
    with _server(ground, port, ["sockperf", "server", *options]):
        text = _client(ground, ["sockperf", "ping-pong", *options, "-t", str(seconds), "--full-rtt", "-m", "64"], seconds)
    found = re.search(r"percentile 50\.000 =\s*([0-9.]+)", text)
    if found is None:
        raise TweedError(f"{ground.name}: sockperf measured nothing: {text.strip().splitlines()[-1:] or ['no output']}")
    return float(found[1])


def _iperf3(ground: Ground, seconds: int, *options: str) -> dict[str, Any]:
    port = next(PORTS)
    with _server(ground, port, ["iperf3", "-s", "-1", "-p", str(port)]):
        text = _client(ground, ["iperf3", "-c", ground.address, "-J", "--connect-timeout", "3000", "-t", str(seconds), "-p", str(port), *options], seconds)
    document = msgspec.json.decode(text)
    if "error" in document:
        raise TweedError(f"{ground.name}: iperf3: {document['error']}")
    ended: dict[str, Any] = document["end"]
    return ended


def _inside(space: str, words: list[str]) -> list[str]:
    return ["nsenter", f"--net={netns.DIRECTORY}/{space}", "--", *words]


@contextlib.contextmanager
def _server(ground: Ground, port: int, words: list[str]) -> Iterator[None]:
    """Run it until the block ends, from when its socket is there."""
    process = subprocess.Popen(_inside(ground.server, words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not _listens(ground.server, port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TweedError(f"{ground.name}: {words[0]} does not listen on port {port} in {ground.server}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(space: str, port: int) -> bool:
    """Whether anything in the namespace has the port, TCP or UDP."""
    command = _inside(space, ["ss", "-Hlntu", f"sport = :{port}"])
    return bool(subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False).stdout.strip())


def _client(ground: Ground, words: list[str], seconds: int) -> str:
    try:
        done = subprocess.run(_inside(ground.client, words), capture_output=True, text=True, timeout=seconds + SPARE_S, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise TweedError(f"{ground.name}: {words[0]} did not end within {seconds + SPARE_S:.0f} s: do packets pass? tweed walk tells") from None
    if done.returncode and not done.stdout.strip():
        raise TweedError(f"{ground.name}: {words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout
