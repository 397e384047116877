"""Shapes and texts of an SVG figure, as strings. Coordinates are pixels from the top left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

SANS = "'DejaVu Sans', 'Noto Sans CJK SC', 'Noto Sans SC', 'Helvetica Neue', Arial, sans-serif"
MONO = "'DejaVu Sans Mono', Menlo, Consolas, monospace"
MONO_WIDTH, SANS_WIDTH, CJK_WIDTH = 0.602, 0.62, 1.0  # of a character, in ems

INK, QUIET, PAPER, BAD, DOUBT = "#1f2933", "#7b8794", "#ffffff", "#c62828", "#b7791f"


class Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def right(self) -> float:
        return self.x + self.width


def text_width(text: str, size: float, mono: bool = False) -> float:
    """About how wide a text is, in pixels; wide scripts take an em each."""
    return sum(size * (CJK_WIDTH if ord(character) > 0x2E7F else MONO_WIDTH if mono else SANS_WIDTH) for character in text)


def shortened(text: str, width: float, size: float, mono: bool = True) -> str:
    """As much of a text as fits, with an ellipsis."""
    if text_width(text, size, mono) <= width:
        return text
    room = width - text_width("…", size, mono)
    for end, character in enumerate(text):
        room -= text_width(character, size, mono)
        if room < 0:
            return text[:end] + "…"
    return text


def clean(text: str) -> str:
    """Escaped, without the characters that XML cannot hold."""
    return escape("".join(c if c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff" else "\ufffd" for c in text))


def say(x: float, y: float, text: str, size: float = 13, *, mono: bool = False, bold: bool = False, ink: str = INK, anchor: str = "start") -> str:
    weight = ' font-weight="bold"' if bold else ""
    family = f" font-family={quoteattr(MONO)}" if mono else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{ink}" text-anchor="{anchor}"{weight}{family}>{clean(text)}</text>'


def box(at: Box, fill: str, stroke: str, *, radius: float = 8, width: float = 1.5, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<rect x="{at.x:.1f}" y="{at.y:.1f}" width="{at.width:.1f}" height="{at.height:.1f}" rx="{radius:g}" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="{width:g}"{dashes}/>'
    )


def line(points: Sequence[tuple[float, float]], ink: str, *, width: float = 3.5, head: bool = True, dashed: bool = False) -> str:
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    marker = f' marker-end="url(#head-{ink[1:]})"' if head else ""
    dashes = ' stroke-dasharray="6 6"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{ink}" stroke-width="{width:g}" stroke-linejoin="round"{dashes}{marker}/>'


def number(x: float, y: float, value: int, ink: str = INK) -> str:
    """A number in a circle around a point."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="10.5" fill="{PAPER}" stroke="{ink}" stroke-width="1.8"/>' + say(
        x, y + 4.3, str(value), 12, bold=True, ink=ink, anchor="middle"
    )


def cross(x: float, y: float) -> str:
    return f'<g stroke="{BAD}" stroke-width="5" stroke-linecap="round"><path d="M{x - 9:.1f} {y - 9:.1f} l18 18 M{x + 9:.1f} {y - 9:.1f} l-18 18"/></g>'


def question(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="12" fill="{PAPER}" stroke="{DOUBT}" stroke-width="2.5"/>' + say(
        x, y + 5, "?", 15, bold=True, ink=DOUBT, anchor="middle"
    )


def at_start(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A little way along the first part of an arrow."""
    (x0, y0), (x1, y1) = points[:2]
    length = max(abs(x1 - x0), abs(y1 - y0), 1.0)
    step = min(14.0, length / 2)
    return x0 + (x1 - x0) * step / length, y0 + (y1 - y0) * step / length
