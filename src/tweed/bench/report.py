"""What the rounds say: medians with their spread, ratios to the limit and to the baseline, a table, and bars. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

import msgspec


class Measure(msgspec.Struct, frozen=True):
    """A column: what is measured, in which unit, and whether more is better. `scale` brings the stored value to the unit."""

    id: str
    title: str
    unit: str
    scale: float
    more_is_better: bool
    digits: int = 1


MEASURES = (
    Measure("tcp_bits_s", "TCP, 1 stream", "Gb/s", 1e-9, True, 2),
    Measure("tcp4_bits_s", "TCP, 4 streams", "Gb/s", 1e-9, True, 2),
    Measure("udp64_packets_s", "UDP, 64 bytes", "kpps", 1e-3, True),
    Measure("tcp_rtt_us", "TCP round trip", "us", 1, False),
    Measure("udp_rtt_us", "UDP round trip", "us", 1, False),
    Measure("cpu_s_per_gb", "CPU", "s/GB", 1, False, 2),
)


class Result(msgspec.Struct, frozen=True):
    """`values`: way -> measure -> one value per round. `load`: one-minute load averages before and after. `others`: share of the machine's CPU
    time that was busy before the rounds began, when nothing of ours ran."""

    rounds: int
    seconds: int
    when: str
    kernel: str
    cpus: int
    load: tuple[float, float]
    others: float
    limit: str | None
    baseline: str | None
    values: dict[str, dict[str, list[float]]]


def ratio(result: Result, way: str, against: str | None, measure: Measure) -> float | None:
    """Median of the ratios of the same round: how many times better than `against` (for what should be small: how many times smaller)."""
    if against is None or against not in result.values:
        return None
    pairs = zip(result.values[way][measure.id], result.values[against][measure.id], strict=True)
    ratios = [a / b if measure.more_is_better else b / a for a, b in pairs if a and b]
    return statistics.median(ratios) if ratios else None


def as_json(result: Result) -> dict[str, Any]:
    """The values and what follows from them, by way and measure."""
    document: dict[str, Any] = msgspec.to_builtins(result)
    document["ways"] = {
        way: {
            m.id: {
                "values": measured[m.id],
                "median": statistics.median(measured[m.id]),
                "to_limit": ratio(result, way, result.limit, m),
                "to_baseline": ratio(result, way, result.baseline, m),
            }
            for m in MEASURES
        }
        for way, measured in document.pop("values").items()
    }
    return document


def lines(result: Result) -> list[str]:
    """For people: one table per measure."""
    out = [
        f"{result.when}, Linux {result.kernel}, {result.cpus} CPUs, {result.rounds} rounds of {result.seconds} s per figure, ways taking turns",
        f"load average {result.load[0]:.2f} before, {result.load[1]:.2f} after; "
        f"{result.others:.0%} of the CPU time went to other programs just before, and counts in s/GB too",
        "ratios are of the same round, and above 1 (100 %) where it is better, which for latency and CPU is less",
    ]
    for measure in MEASURES:
        rows = [("", f"{measure.unit}, median (least … most)", f"of {result.limit}", f"times {result.baseline}")]
        for way, measured in result.values.items():
            values = [value * measure.scale for value in measured[measure.id]]
            to_limit, to_base = ratio(result, way, result.limit, measure), ratio(result, way, result.baseline, measure)
            rows.append((way, _spread(values, measure.digits), "-" if to_limit is None else f"{to_limit:.0%}", "-" if to_base is None else f"{to_base:.2f}"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        shown = [0, 1, *([2] if result.limit else []), *([3] if result.baseline else [])]
        out += ["", f"{measure.title}{'' if measure.more_is_better else ' (less is better)'}"]
        out += ["  " + "  ".join(f"{row[column]:<{widths[column]}}" for column in shown).rstrip() for row in rows]
    return out


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f})"


LEFT, WIDTH, BAR, GAP, HEAD = 110, 420, 18, 6, 40
COLOURS = {"bare": "#8a94a0", "host-gw": "#5cb685", "vxlan": "#1f8a4c", "udp-naive": "#b8cdee", "udp-numpy": "#78a9ec", "udp-fast": "#1e66d0"}


def bars(result: Result) -> str:
    """One SVG document: a group of bars per measure, medians as bars, the rounds' spread as whiskers."""
    body: list[str] = []
    block = HEAD + len(result.values) * (BAR + GAP) + 14
    columns = 2
    for place, measure in enumerate(MEASURES):
        x0, y0 = (place % columns) * (LEFT + WIDTH + 90) + 20, 60 + (place // columns) * block
        body.append(f'<text x="{x0}" y="{y0 + 20}" class="t">{measure.title}, {measure.unit}{"" if measure.more_is_better else " (less is better)"}</text>')
        body += _group(result.values, measure, x0, y0 + HEAD - 8)
    height = 60 + -(-len(MEASURES) // columns) * block + 30
    width = columns * (LEFT + WIDTH + 90) + 20
    note = f"{result.when}, Linux {result.kernel}, {result.cpus} CPUs, {result.rounds} rounds of {result.seconds} s, load {result.load[0]:.2f}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif">',
            "<style>text{fill:#222;font-size:13px}.t{font-weight:bold}.n{fill:#555}.h{font-size:17px;font-weight:bold}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            f'<text x="20" y="28" class="h">What each way of carrying the overlay costs</text><text x="20" y="47" class="n">{escape(note)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )


def _group(values: Mapping[str, Mapping[str, Sequence[float]]], measure: Measure, x0: int, y0: int) -> list[str]:
    most = max((max(measured[measure.id]) for measured in values.values()), default=0) or 1
    out = []
    for row, (way, measured) in enumerate(values.items()):
        y, numbers = y0 + row * (BAR + GAP), measured[measure.id]
        middle = statistics.median(numbers)
        length, low, high = (WIDTH * value / most for value in (middle, min(numbers), max(numbers)))
        x = x0 + LEFT
        out.append(f'<text x="{x - 8}" y="{y + 14}" text-anchor="end">{escape(way)}</text>')
        out.append(f'<rect x="{x}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{COLOURS.get(way, "#c78a1e")}"/>')
        out.append(f'<path d="M{x + low:.1f} {y + BAR / 2}H{x + high:.1f}" stroke="#222" stroke-width="1.5"/>')
        out.append(f'<text x="{x + max(length, high) + 6:.1f}" y="{y + 14}" class="n">{middle * measure.scale:.{measure.digits}f}</text>')
    return out
