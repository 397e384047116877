"""`tweed bench dataplane`: every way measured in turn, round after round, so that what disturbs one disturbs all."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tweed.bench import programs
from tweed.bench.grounds import BASELINES, LIMIT, Ground
from tweed.bench.report import Result

QUIET_S = 1.0


def measure(grounds: Sequence[Ground], rounds: int, seconds: int, say: Callable[[str], None]) -> Result:
    """All figures of all ways. Raises TweedError when a way carries nothing."""
    values: dict[str, dict[str, list[float]]] = {ground.name: {} for ground in grounds}
    when, load, others = datetime.datetime.now(datetime.UTC), os.getloadavg()[0], busy_share(QUIET_S)
    for number in range(1, rounds + 1):
        for ground in grounds:
            say(f"round {number} of {rounds}: {ground.name}")
            for name, value in once(ground, seconds).items():
                values[ground.name].setdefault(name, []).append(value)
    names = list(values)
    return Result(
        rounds=rounds,
        seconds=seconds,
        when=f"{when:%Y-%m-%d %H:%M} UTC",
        kernel=platform.release(),
        cpus=os.cpu_count() or 1,
        load=(load, os.getloadavg()[0]),
        others=others,
        limit=LIMIT if LIMIT in names else None,
        baseline=next((name for name in BASELINES if name in names), None),
        values=values,
    )


def once(ground: Ground, seconds: int) -> dict[str, float]:
    """One round of one way."""
    before = busy_s()
    single = programs.tcp(ground, seconds, 1)
    cpu = busy_s() - before
    return {
        "tcp_bits_s": single.bits_s,
        "cpu_s_per_gb": cpu / (single.bytes / 1e9) if single.bytes else 0.0,
        "tcp4_bits_s": programs.tcp(ground, seconds, 4).bits_s,
        "udp64_packets_s": programs.packets(ground, seconds),
        "tcp_rtt_us": programs.latency_us(ground, seconds, over_tcp=True),
        "udp_rtt_us": programs.latency_us(ground, seconds, over_tcp=False),
    }


def busy_s() -> float:
    """CPU seconds of the whole machine that were not idle (proc(5), stat): softirqs and forwarding processes belong to no client."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


def busy_share(seconds: float) -> float:
    """The share of the machine's CPU time that is used now, by whoever it is."""
    before, started = busy_s(), time.monotonic()
    time.sleep(seconds)
    return (busy_s() - before) / ((time.monotonic() - started) * (os.cpu_count() or 1))
