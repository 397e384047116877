"""Steps and frames as lines of styled text. Pure: whoever prints gives the styles their colours.

Styles of a packet's layers are those of the seed's figure: `inner` is the container's frame, `outer` what the hosts exchange, `vxlan`
the header between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from tweed.lab.steps import Step
from tweed.wire.packet import Layer, Packet, checksums

Span = tuple[str, str]  # text, style ("" plain)
Line = tuple[Span, ...]

BYTES_A_LINE = 12  # two MACs; of an IPv4 header, the line with the addresses is the second
HEX_WIDTH = BYTES_A_LINE * 3 + 2
Notes = Mapping[int, Sequence[Span]]  # by the layer's place in the packet
SUMS: dict[str, Span] = {"partial": ("  its checksum is left to the network card", "quiet"), "wrong": ("its checksum is wrong", "bad")}


def text(lines: Sequence[Line]) -> str:
    """Without styles."""
    return "\n".join("".join(part for part, _ in line).rstrip() for line in lines)


def step_lines(step: Step, host: str) -> list[Line]:
    """One step: the question, the command that asks, the row as the command shows it, and what follows."""
    lines: list[Line] = [((f"step {step.number}  ", "step"), (step.question, "step"))]
    if step.command:
        lines.append(((f"        [root@{host} ~]# ", "prompt"), (step.command, "command")))
        lines.append((("        ", ""), (str(step.row), "row") if step.row is not None else ("(nothing)", "bad")))
    lines.append((("        → ", ""), (step.answer, "answer" if step.value is not None else "bad")))
    return lines


def frame_lines(packet: Packet, notes: Notes) -> list[Line]:
    """One line per header, more for long ones: bytes on the left, their meaning on the right, then notes and what is wrong with it.

    Of the payload the first bytes are shown.
    """
    sums = {checksum.layer: SUMS[checksum.state] for checksum in checksums(packet) if checksum.state in SUMS}
    lines: list[Line] = []
    for place, layer in enumerate(packet.layers):
        style = layer_style(layer, packet)
        end = layer.offset + layer.length
        left = [packet.data[at : min(at + BYTES_A_LINE, end)].hex(" ") for at in range(layer.offset, end, BYTES_A_LINE)]
        if layer.name in ("payload", "padding") and len(left) > 1:
            left = [left[0] + " …"]
        right: list[Line] = [((layer.title, f"{style} title"), (f" {layer.brief}", style))]
        right += [(note,) for note in (*notes.get(place, ()), *((problem, "bad") for problem in layer.problems))]
        if place in sums:
            right.append((sums[place],))
        for bytes_, meaning in zip_longest(left, right, fillvalue=""):
            lines.append((("        ", ""), (str(bytes_).ljust(HEX_WIDTH if meaning else 0), style), *meaning))
    return lines


def layer_style(layer: Layer, packet: Packet) -> str:
    """A frame without a tunnel is what will be inside one."""
    if layer.name == "vxlan":
        return "vxlan"
    return "outer" if packet.levels > 1 and layer.level == 0 else "inner"


def evidence(steps: Sequence[Step], packet: Packet) -> dict[int, list[Span]]:
    """What the steps decided, held against the bytes of a captured frame: notes for `frame_lines`, style `bad` where they differ.

    Step 2 decides the inner Ethernet destination, steps 3 and 4 the outer IP and Ethernet ones. Step 1 only reads an address.
    """
    notes: dict[int, list[Span]] = {}
    # Of step 4's two rows the later, the MAC, is the one on the frame.
    for number, value in {step.number: step.value for step in steps}.items():
        level = packet.levels - 1 if number in (1, 2) else 0
        names = ("ipv4", "ipv6") if number in (1, 3) else ("ethernet",)
        for place, layer in enumerate(packet.layers):
            if value is None or layer.name not in names or layer.level != level or (field := layer.get("dst")) is None:
                continue
            if number == 1:
                note = ("  the destination that step 1 looks up", "quiet")
            elif field.value == value:
                note = (f"✓ the destination that step {number} decided", "good")
            else:
                note = (f"✗ step {number} decided another destination", "bad")
            notes.setdefault(place, []).append(note)
            break
    return notes
