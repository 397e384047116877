"""A walk as lines of styled text, for a terminal or a pipe: each step with the row that decided, verbatim and with its FILE:LINE.

Whoever prints gives the styles their colours. Those of a packet's layers are the figure's: `inner` is the container's frame, `outer` what
the hosts exchange, `vxlan` what stands between them; `unknown` is a byte or a field that no table says.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import msgspec

from tweed.addr import format_address
from tweed.trace.bits import Frame
from tweed.trace.frames import Stage
from tweed.trace.messages import Language, label, sayer
from tweed.trace.result import Divergence, Finding, Quote, Said, Seen, Step, Walk
from tweed.trace.vocabulary import kind_of
from tweed.wire.packet import Layer

Span = tuple[str, str]  # text, style ("" plain)
Line = tuple[Span, ...]

LOSERS_SHOWN = 4
PLACE_WIDTH = 20  # at least
BYTES_A_LINE = 16
VERDICT_STYLES = {"delivered": "good", "detour": "warn", "unknown": "warn", "elsewhere": "bad", "lost": "bad", "dropped": "bad"}


def text(lines: Sequence[Line]) -> str:
    """Without styles."""
    return "\n".join("".join(part for part, _ in line).rstrip() for line in lines)


def width(text: str) -> int:
    """Columns on a terminal: wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


# ---- the walk -----------------------------------------------------------------------------------------------------------


def walk_lines(walk: Walk, language: Language) -> list[Line]:
    """All of it: verdict, steps, first divergence, findings."""
    lines: list[Line] = [heading(walk, language), ()]
    places = [place(step) for step in walk.steps]
    column = max([PLACE_WIDTH, *map(width, places)]) + 2
    lines.append((("  #  ", "quiet"), (padded(label(language, "where"), column), "quiet"), (label(language, "decided by"), "quiet")))
    branch = before = ""
    for number, (step, where) in enumerate(zip(walk.steps, places, strict=True), 1):
        if step.branch != branch:
            branch, before = step.branch, ""
            lines.append(branch_line(walk, branch, language))
        lines += step_lines(step, number, where if where != before else "", column, language)
        before = where
    if walk.reply is not None:
        lines += other_lines(walk.reply, label(language, "the reply"), language)
    if walk.whole is not None:
        title = label(language, "the whole")
        lines += same_lines(walk.whole, title, language) if same_way(walk.whole, walk) else other_lines(walk.whole, title, language)
    if (asked := kernel_line(walk, language)) is not None:
        lines += [(), asked]
    if walk.first_divergence is not None:
        lines += [(), *divergence_lines(walk.first_divergence, language)]
    for said in walk.blind:
        lines.append(((f"{label(language, 'not seen')}: {sayer(language)('blind', said)}", "quiet"),))
    if findings := [finding for finding in walk.findings if matters(finding, walk)]:
        lines += [(), ((label(language, "findings"), "heading"),)]
        for finding in findings:
            lines += finding_lines(finding, language)
    return lines


def other_lines(walk: Walk, title: str, language: Language) -> list[Line]:
    """The way back, or of a larger packet: of one that is only predicted, and arrives or ends where tables end, the verdict is enough."""
    if walk.tier in ("text", "tables") and walk.verdict in ("delivered", "unknown"):
        return [(), ((f"{title}: ", "heading"), *heading(walk, language)[:3])]
    return [(), ((title, "heading"),), *walk_lines(msgspec.structs.replace(walk, first_divergence=None), language)]


def same_way(walk: Walk, first: Walk) -> bool:
    """Whether both arrived by the same decisions, there and back, with no more on a frame that was not expected than the first had."""
    if {walk.verdict, first.verdict} != {"delivered"} or decisions(walk) != decisions(first):
        return False
    if any(differing(step) - differing(before) for step, before in zip(walk.steps, first.steps, strict=True)):
        return False
    return walk.reply is first.reply if walk.reply is None or first.reply is None else same_way(walk.reply, first.reply)


def differing(step: Step) -> set[str]:
    return {name for seen in step.seen for name in seen.differs}


def decisions(walk: Walk) -> list[tuple[str, str, str, Said, Quote | None]]:
    return [(step.branch, step.node, step.device, step.decision, step.row) for step in walk.steps]


def same_lines(walk: Walk, title: str, language: Language) -> list[Line]:
    """A packet of which no more is to be said than that it went as the one before: --json has all of it."""
    size = walk.probe.size if walk.probe is not None else 0
    which = "same way back" if walk.reply is not None else "same way"
    return [
        (),
        ((f"{title}: ", "heading"), (label(language, walk.verdict), VERDICT_STYLES[walk.verdict]), (f"   {label(language, which, size=size)}", "quiet")),
    ]


def matters(finding: Finding, walk: Walk) -> bool:
    """Whether to print it. What is true of every healthy node is said of pasted tables, whose reader may not know the node; of a live one only
    a bridge beside the overlay that the packet passes."""
    if walk.tier == "text" or finding.said.id not in ("nft-evidence", "bridge-outside-overlay"):
        return True
    return any(step.node == finding.node and step.device == finding.said.params.get("bridge") for step in walk.steps)


def kernel_line(walk: Walk, language: Language) -> Line | None:
    """How many of the decisions the kernel was asked for, and that it answers the same; a difference is a finding."""
    told = [step.kernel for step in walk.steps if step.kernel]
    return ((label(language, "kernel agrees", count=len(told)), "quiet"),) if told and "differs" not in told else None


def heading(walk: Walk, language: Language) -> Line:
    ends = f"{format_address(walk.src)} → {format_address(walk.dst)}"
    return (ends, "heading"), ("   ", ""), (label(language, walk.verdict), VERDICT_STYLES[walk.verdict]), (f"   {label(language, walk.tier)}", "quiet")


def place(step: Step) -> str:
    """Where a step is: its node, and its device if there is one."""
    return f"{step.node} {step.device}".strip()


def branch_line(walk: Walk, branch: str, language: Language) -> Line:
    verdict = walk.outcomes.get(branch)  # None: it parts again
    line: Line = (("     ", ""), (label(language, "way", branch=branch), "heading"))
    return line if verdict is None else (*line, (" ", ""), (label(language, verdict), VERDICT_STYLES[verdict]))


def step_lines(step: Step, number: int, where: str, column: int, language: Language) -> Iterator[Line]:
    say = sayer(language)
    left = " " * (5 + column)
    kind = kind_of(step.decision.id)
    line: list[Span] = [(f"{number:>3}  ", "quiet"), (padded(where, column), "place")]
    if step.question:
        line.append((f"{label(language, 'step', number=step.question)}  ", "step"))
    line.append((say(kind, step.decision), "bad" if kind == "cause" else ""))
    yield tuple(line)
    if step.row is not None:
        yield (left, ""), *quote(step.row, "row")
    for loser in step.losers[:LOSERS_SHOWN]:
        yield (left, ""), (f"{label(language, 'not')} ", "quiet"), *quote(loser.row, "quiet"), (f"   {say('loss', loser.why)}", "quiet")
    if (more := len(step.losers) - LOSERS_SHOWN) > 0:
        yield (left, ""), (f"{label(language, 'not')} {label(language, 'more', count=more)}", "quiet")
    for said in step.assumptions:
        yield (left, ""), (f"{label(language, 'assumed')}: {say('assumption', said)}", "quiet")
    for said in step.unknowns:
        yield (left, ""), (f"{label(language, 'not known')}: {say('unknown', said)}", "unknown")
    for sight in step.seen:
        yield (left, ""), *seen_line(sight, language)


def seen_line(sight: Seen, language: Language) -> Line:
    """When, how long after the sight before, which event where, and what the kernel said."""
    times = "" if sight.t_us is None else f"{sight.t_us:9.1f} µs {'' if sight.hop_us is None else f'{sight.hop_us:+.1f}':>8}  "
    words = [
        sight.event,
        sight.node if sight.node and sight.event == "kfree_skb" else "",
        sight.device,
        label(language, sight.direction) if sight.direction else "",
    ]
    words += [label(language, "bytes", size=sight.size) if sight.size else "", sight.text]
    style = "bad" if sight.event in ("kfree_skb", "icmp_send") else "seen"
    line: Line = ((times, "quiet"), (" ".join(filter(None, words)), style))
    return (*line, (f"   {label(language, 'differs')}: {', '.join(sight.differs)}", "warn")) if sight.differs else line


def quote(row: Quote, style: str) -> Line:
    return (row.text.strip(), style), (f"   [{row.source}]", "quiet")


def divergence_lines(found: Divergence, language: Language) -> Iterator[Line]:
    labels = {name: label(language, name) for name in ("cause", "evidence", "fix")}
    column = max(map(width, labels.values())) + 2
    where = f"{found.node} {found.device}".strip()
    yield (padded(labels["cause"], column), "heading"), (f"{where}: ", "place"), (sayer(language)("cause", found.cause), "bad")
    for number, row in enumerate(found.evidence):
        yield (padded("" if number else labels["evidence"], column), "heading"), *quote(row, "row")
    for number, fix in enumerate(found.fix):
        prompt, hash_sign, command = fix.line.partition("# ")
        yield (padded("" if number else labels["fix"], column), "heading"), (prompt + hash_sign, "quiet"), (command, "command")


def finding_lines(finding: Finding, language: Language) -> Iterator[Line]:
    yield ("  ! ", "warn"), (f"{finding.node}: ", "place"), (sayer(language)("finding", finding.said), "")
    for row in finding.rows:
        yield ("    ", ""), *quote(row, "quiet")


def sentence(said: Said, language: Language) -> str:
    """What a step says, without its row."""
    return sayer(language)(kind_of(said.id), said)


# ---- bytes --------------------------------------------------------------------------------------------------------------


def stage_lines(stages: Sequence[Stage], language: Language, *, as_hex: bool, fields: bool) -> list[Line]:
    """Each place's frames: a heading, then hex, then the field tree, as asked. Bytes that are those of the place before are not repeated."""
    lines: list[Line] = []
    before: tuple[Frame, ...] = ()
    for stage in stages:
        hop = stage.hop
        where = f"{hop.node} {hop.device} {label(language, hop.direction)}"
        if stage.frames == before:
            lines += [(), ((where, "heading"), (f"   {label(language, 'same')}", "quiet"))]
            continue
        for number, frame in enumerate(stage.frames, 1):
            line: list[Span] = [(where, "heading"), (f"   {label(language, 'bytes', size=len(frame))}", "")]
            if frame.added:
                line.append((f", {label(language, 'added', size=frame.added)}", "outer"))
            if len(stage.frames) > 1:
                line.append((f", {label(language, 'fragment', number=number, count=len(stage.frames))}", ""))
            lines += [(), tuple(line)]
            if as_hex:
                lines += hex_lines(frame)
            if fields:
                lines += field_lines(frame, language)
        before = stage.frames
    return lines


def hex_lines(frame: Frame) -> Iterator[Line]:
    """`offset  bytes`, sixteen a line, coloured by layer; `?` for each digit that is not known."""
    packet = frame.packet
    styles = [layer_style(layer, frame) for layer in packet.layers for _ in range(layer.length)]
    digits = frame.hex.split()
    for start in range(0, len(digits), BYTES_A_LINE):
        line: list[Span] = [(f"  {start:04x}  ", "quiet")]
        for at in range(start, min(start + BYTES_A_LINE, len(digits))):
            style = "unknown" if "?" in digits[at] else styles[at]
            gap = " " if at % 8 else "  " if at % BYTES_A_LINE else ""
            if line[-1][1] == style:
                line[-1] = (f"{line[-1][0]}{gap}{digits[at]}", style)
            else:
                line.append((f"{gap}{digits[at]}", style))
        yield tuple(line)


def field_lines(frame: Frame, language: Language) -> Iterator[Line]:
    """The layers, and below each its fields, one a line."""
    for layer in frame.packet.layers:
        style = layer_style(layer, frame)
        yield ("  ", ""), (layer.title, f"{style} title"), (f"  {label(language, 'layer', size=layer.length, offset=layer.offset)}", "quiet")
        names = max((width(field.name) for field in layer.fields), default=0)
        for field in layer.fields:
            yield ("    ", ""), (padded(field.name.replace("_", " "), names + 2), "quiet"), (field.text, "unknown" if field.text == "?" else style)


def layer_style(layer: Layer, frame: Frame) -> str:
    """A frame without a tunnel is what will be inside one."""
    if layer.name == "vxlan":
        return "vxlan"
    return "outer" if layer.offset < frame.added else "inner"
