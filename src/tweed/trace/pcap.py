"""A walk as a capture file: one packet per place, one interface per device, and in the comments what decided."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tweed.trace.bits import VXLAN_PORT
from tweed.trace.frames import Probe, Stage, frames
from tweed.trace.messages import Language, label
from tweed.trace.render import sentence
from tweed.trace.result import Step, Walk
from tweed.wire.pcapng import ETHERNET, RAW, Interface, Record, Section

Taken = tuple[Step, ...]  # the steps that brought the packet to one place


def stages_of(walk: Walk, probe: Probe, branch: str | None = None) -> tuple[Stage, ...]:
    """The frames along one branch of a walk, the first if none is named. Raises UsageError for a packet that cannot be."""
    return frames(probe, [step.hop for step in walk.way(branch) if step.hop is not None])


def decode_command(stages: Sequence[Stage], file: str) -> str:
    """The command line that reads the file with tunnels understood at the ports that its packets have."""
    tunnels = {port: carried for stage in stages for frame in stage.frames for port, carried in frame.tunnels.items()} or {VXLAN_PORT: "vxlan"}
    return " ".join(["tshark", *(f"-d udp.port=={port},{carried}" for port, carried in tunnels.items()), "-r", shlex.quote(file)])


def section(walk: Walk, stages: Sequence[Stage], file: str, language: Language, branch: str | None = None) -> Section:
    """What `wire.pcapng.write` writes. `stages` are those of `stages_of` for the same branch; `file` is named in the decode command.

    Times that nobody measured are a microsecond apart, from 1970 on: they only give the order.
    """
    places = [f"{stage.hop.node} {stage.hop.device}" for stage in stages]
    bare = {where for where, stage in zip(places, stages, strict=True) if stage.hop.bare}
    interfaces = list(dict.fromkeys(places))
    records = []
    for number, (stage, where, steps) in enumerate(zip(stages, places, taken(walk.way(branch)), strict=True)):
        t_us = steps[-1].t_us
        for piece, frame in enumerate(stage.frames, 1):
            comment = [f"{where} {label(language, stage.hop.direction)}"]
            if len(stage.frames) > 1:
                comment[0] += f", {label(language, 'fragment', number=piece, count=len(stage.frames))}"
            for step in steps:
                comment.append(sentence(step.decision, language))
                if step.row is not None:
                    comment.append(f"    {step.row.text.strip()}   [{step.row.source}]")
            if frame.unknown:
                comment.append(label(language, "unknown fields", fields=", ".join(frame.unknown)))
            t_ns = number * 1000 if t_us is None else round(t_us * 1000)
            records.append(Record(interfaces.index(where), t_ns, frame.data, "\n".join(comment)))
    about = decode_command(stages, file)
    if any(step.t_us is None for step in walk.way(branch)):
        about += f"\n{label(language, 'example values')}"
    return Section(tuple(Interface(name, link_type=RAW if name in bare else ETHERNET) for name in interfaces), tuple(records), about, "tweed walk")


def taken(steps: Taken) -> list[Taken]:
    """For each place, the decisions since the place before and its own."""
    found: list[Taken] = []
    since: list[Step] = []
    for step in steps:
        since.append(step)
        if step.hop is not None:
            found.append(tuple(since))
            since = []
    return found
