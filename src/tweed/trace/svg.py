"""The data-flow figure of one walk, with its real values: nodes side by side, from the bottom container, bridge, VTEP and NIC; what
the container sent in blue, what the hosts exchange in green, and the packet between them, layer by layer.

    text = draw(Picture(title, nodes, source, target, frame, ...))

One self-contained SVG 1.1 document without scripts or outside references. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple
from xml.sax.saxutils import quoteattr

import msgspec

from tweed.trace.bits import Frame
from tweed.trace.ink import BAD, INK, PAPER, QUIET, SANS, Box, at_start, box, clean, cross, line, number, question, say, shortened, text_width
from tweed.wire.packet import Layer

Role = Literal["container", "bridge", "vtep", "nic"]
ROLES: tuple[Role, ...] = ("nic", "vtep", "bridge", "container")  # from the top
BYSTANDERS = 2  # more nodes than these say nothing about this packet

MARGIN, TITLE_HEIGHT, HEAD = 36, 92, 44
DEVICE_HEIGHT, DEVICE_GAP, DEVICE_LEAST = 62, 40, 196
NODE_PADDING, COLUMN_GAP = 22, 64
LAYER_HEIGHT, WIRE_ROOM = 46, 66
STEP_HEIGHT, LONGEST_ROW = 26, 1100

INNER, OUTER, GREY = "#1e66d0", "#1f8a4c", "#8a94a0"
# Of the packet's layers: fill and the line at its left.
SHADES = {
    "outer ethernet": ("#dff3e6", "#5cb685"),
    "outer ip": ("#b9e4c9", OUTER),
    "udp": ("#e9edf1", GREY),
    "vxlan": ("#d5dbe2", "#5f6b78"),
    "ethernet": ("#e3eefc", "#78a9ec"),
    "ip": ("#c0d9f9", INNER),
    "payload": ("#fdf6e3", "#d8b24a"),
}
WORDS = {
    "container": "container",
    "bridge": "bridge",
    "vtep": "VTEP",
    "nic": "NIC",
    "on the wire": "on the wire: {size} bytes",
    "inside": "container's frame: {size} bytes",
    "added": "+{size} bytes",
    "outer": "outer",
    "inner": "inner",
    "bytes": "{size} bytes",
    "unknown": "unknown",
    "more nodes": "and {count} more nodes",
    "of fragments": "first of {count} fragments",
}


class Device(msgspec.Struct, frozen=True):
    """A box. `lines`: what is to be said of it, the first few are shown. `used`: the packet passes it."""

    role: Role
    name: str
    lines: tuple[str, ...] = ()
    used: bool = True


class NodeBox(msgspec.Struct, frozen=True):
    """A node: its devices, at most one of each role, and its containers that matter."""

    name: str
    devices: tuple[Device, ...]
    containers: tuple[Device, ...] = ()

    def device(self, role: Role) -> Device | None:
        return next((device for device in self.devices if device.role == role), None)


class Mark(msgspec.Struct, frozen=True):
    """A numbered decision: where it is made (the arrow that leaves that device), and the row that made it."""

    number: int
    node: str
    role: Role
    text: str
    good: bool = True


class Picture(msgspec.Struct, frozen=True):
    """All that is drawn. The first node sends, the second receives (the same one when `same_node`), more stand by.

    `frame`: the packet at its largest, None: none is known. `fragments`: how many there are of it. `stop`: node and device at which
    the packet goes no further; `unknown`: or behind which nothing is known of it. `words`: replacements for WORDS in another language.
    """

    title: str
    subtitle: str
    nodes: tuple[NodeBox, ...]
    frame: Frame | None = None
    same_node: bool = False
    fragments: int = 1
    marks: tuple[Mark, ...] = ()
    stop: tuple[str, Role] | None = None
    delivered: bool = True
    unknown: bool = False
    words: Mapping[str, str] = {}


Boxes = Mapping[tuple[str, Role, str], Box]  # by node, role and name of the device


class LayerBox(NamedTuple):
    """A layer as it is drawn: its shade, its title and its values. `unknown`: something in it is not known."""

    shade: str
    title: str
    value: str
    size: int
    unknown: bool


# ---- the figure ---------------------------------------------------------------------------------------------------------


def draw(picture: Picture) -> str:
    """The figure as the text of an SVG document."""
    words = {**WORDS, **picture.words}
    layers = layer_boxes(picture.frame, words) if picture.frame is not None else []
    taking_part = picture.nodes[:1] if picture.same_node else picture.nodes[:2]
    bystanders = picture.nodes[len(taking_part) :]
    shown = (*taking_part, *bystanders[:BYSTANDERS])
    roles = [role for role in ROLES if role == "container" or any(node.device(role) is not None for node in shown)]
    widths = [node_width(node, words) for node in shown]
    packet_width = max([text_width(layer.value, 12, mono=True) + 76 for layer in layers] + [330]) if layers else 150

    top = TITLE_HEIGHT
    node_height = HEAD + len(roles) * DEVICE_HEIGHT + (len(roles) - 1) * DEVICE_GAP + NODE_PADDING
    places: list[Box] = []
    x = float(MARGIN)
    packet_x = x
    for place, width in enumerate(widths):
        places.append(Box(x, top, width, node_height))
        x += width + COLUMN_GAP
        if place == 0:
            packet_x = x
            x += packet_width + 70 + COLUMN_GAP  # the measure at its right
    right = x - COLUMN_GAP
    stack_y = top + HEAD + DEVICE_HEIGHT / 2 + WIRE_ROOM
    if picture.same_node:  # beside the bridge and its containers
        stack_y += max(len(roles) - 2, 0) * (DEVICE_HEIGHT + DEVICE_GAP) - WIRE_ROOM
    depth = max(node_height + top, stack_y + len(layers) * LAYER_HEIGHT + 30)
    steps_y = depth + 34
    title_width = max(text_width(picture.title, 21), text_width(picture.subtitle, 14)) + 2 * MARGIN
    rows_x = MARGIN + 34 + max((text_width(mark.node, 13) for mark in picture.marks), default=0) + 18
    steps_width = rows_x + max((min(text_width(mark.text, 13, mono=True), LONGEST_ROW) for mark in picture.marks), default=0) + MARGIN
    width = max(right + MARGIN, title_width, steps_width)
    height = steps_y + len(picture.marks) * STEP_HEIGHT + (0 if picture.marks else -20)

    boxes = {(node.name, device.role, device.name): at for node, place in zip(shown, places, strict=True) for device, at in device_boxes(node, place, roles)}
    ink: list[str] = []
    ink += network(shown, boxes, bool(picture.same_node))
    for place, (node, at) in enumerate(zip(shown, places, strict=True)):
        ink += node_ink(node, at, boxes, words, faded=place >= len(taking_part))
    ink += way(picture, shown, boxes)
    if layers and picture.frame is not None:
        ink += packet_ink(picture, picture.frame, layers, Box(packet_x, stack_y, packet_width, len(layers) * LAYER_HEIGHT), words)
    if len(bystanders) > BYSTANDERS:
        ink.append(say(right, top + node_height + 20, words["more nodes"].format(count=len(bystanders) - BYSTANDERS), 12, ink=QUIET, anchor="end"))
    for place, mark in enumerate(picture.marks):
        y = steps_y + place * STEP_HEIGHT
        colour = INK if mark.good else BAD
        ink += [
            number(MARGIN + 11, y - 4.5, mark.number, colour),
            say(MARGIN + 34, y, mark.node, 13, ink=colour),
            say(rows_x, y, shortened(mark.text, LONGEST_ROW, 13), 13, mono=True, ink=colour),
        ]
    return document(width, height, picture, ink)


def document(width: float, height: float, picture: Picture, ink: Sequence[str]) -> str:
    heads = "".join(
        f'<marker id="head-{colour[1:]}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="13" markerHeight="13" markerUnits="userSpaceOnUse" '
        f'orient="auto"><path d="M0 0.5 L9.5 5 L0 9.5 z" fill="{colour}"/></marker>'
        for colour in (INNER, OUTER, GREY)
    )
    hatch = (
        '<pattern id="unknown" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path d="M0 0 V7" stroke="#ffffff" stroke-width="5" stroke-opacity="0.65"/></pattern>'
    )
    verdict = INK if picture.delivered else BAD
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
            f'role="img" font-family={quoteattr(SANS)}>',
            f"<title>{clean(picture.title)}</title><desc>{clean(picture.subtitle)}</desc>",
            f"<defs>{heads}{hatch}</defs>",
            f'<rect width="100%" height="100%" fill="{PAPER}"/>',
            say(MARGIN, 42, picture.title, 21, bold=True),
            say(MARGIN, 66, picture.subtitle, 14, ink=verdict, bold=not picture.delivered),
            *ink,
            "</svg>\n",
        ]
    )


def node_width(node: NodeBox, words: Mapping[str, str]) -> float:
    """Wide enough for what its devices say, and for its containers side by side."""
    widest = max([text_width(text, 11.5, mono=True) for device in (*node.devices, *node.containers) for text in device.lines[:2]] + [0.0])
    names = max([text_width(f"{device.name}  {words[device.role]}", 14) for device in (*node.devices, *node.containers)] + [0.0])
    device = max(widest + 28, names + 28, DEVICE_LEAST)
    return max(len(node.containers), 1) * (device + 16) - 16 + 2 * NODE_PADDING


def device_boxes(node: NodeBox, place: Box, roles: Sequence[Role]) -> list[tuple[Device, Box]]:
    """Where each device is. A row is empty where this node lacks what another has, so that rows are level across nodes."""
    room = place.width - 2 * NODE_PADDING
    rows = {role: place.y + HEAD + row * (DEVICE_HEIGHT + DEVICE_GAP) for row, role in enumerate(roles)}
    found = [(device, Box(place.x + NODE_PADDING, rows[device.role], room, DEVICE_HEIGHT)) for device in node.devices]
    count = len(node.containers)
    each = (room - 16 * (count - 1)) / max(count, 1)
    for number_, container in enumerate(node.containers):
        found.append((container, Box(place.x + NODE_PADDING + number_ * (each + 16), rows["container"], each, DEVICE_HEIGHT)))
    return found


def node_ink(node: NodeBox, place: Box, boxes: Boxes, words: Mapping[str, str], *, faded: bool) -> list[str]:
    ink = [
        f'<g opacity="{0.4 if faded else 1:g}">',
        box(place, "none", "#b8c2cc", radius=14),
        say(place.x + NODE_PADDING, place.y + 27, node.name, 16, bold=True),
    ]
    for device in (*node.devices, *node.containers):
        at = boxes[node.name, device.role, device.name]
        stroke = INNER if device.role in ("container", "bridge") else OUTER if device.role == "nic" else "#5f6b78"
        fill = {"container": "#e3eefc", "bridge": "#f1f6fd", "vtep": "#e4e8ed", "nic": "#dff3e6"}[device.role]
        quiet = not device.used and not faded
        ink += [f'<g opacity="{0.45 if quiet else 1:g}">', box(at, fill, stroke, dashed=quiet)]
        ink.append(say(at.x + 14, at.y + 21, device.name, 14, bold=True))
        ink.append(say(at.right - 14, at.y + 20, words[device.role], 12, ink=stroke, bold=device.role == "vtep", anchor="end"))
        for row, text in enumerate(device.lines[:2]):
            ink.append(say(at.x + 14, at.y + 38 + row * 15, shortened(text, at.width - 26, 11.5), 11.5, mono=True))
        ink.append("</g>")
    return [*ink, "</g>"]


def network(shown: Sequence[NodeBox], boxes: Boxes, same_node: bool) -> list[str]:
    """The underlay: one quiet line through all NICs."""
    nics = [boxes[node.name, device.role, device.name] for node in shown if (device := node.device("nic")) is not None]
    if len(nics) < 2 or same_node:
        return []
    y = nics[0].y + nics[0].height / 2
    return [line([(nics[0].right, y), (nics[-1].x, y)], "#cfd6dd", width=2, head=False)]


class Leg(NamedTuple):
    """An arrow from one device to the next; `role` and `node` say which device it leaves."""

    node: str
    role: Role
    points: tuple[tuple[float, float], ...]
    ink: str


def way(picture: Picture, shown: Sequence[NodeBox], boxes: Boxes) -> list[str]:
    """The arrows that the packet takes, up to where it stops; numbers at those that a row decided."""
    all_legs = same_node_legs(shown[0], boxes) if picture.same_node else legs(picture, shown, boxes)
    ink: list[str] = []
    stopped = False
    end = question if picture.unknown else cross
    numbers = {(mark.node, mark.role): [m for m in picture.marks if (m.node, m.role) == (mark.node, mark.role)] for mark in picture.marks}
    for leg in all_legs:
        here = (leg.node, leg.role)
        if picture.stop == here:
            stopped = True
        ink.append(line(leg.points, leg.ink if not stopped else GREY, dashed=stopped, width=2 if stopped else 3.5))
        (x0, y0), (x1, y1) = leg.points[:2]
        for place, mark in enumerate(numbers.get(here, ())):
            across = abs(x1 - x0) > abs(y1 - y0)
            ink.append(number(*((x0 + 24 + 26 * place, y0 - 18) if across else (x0 + 22 + 26 * place, (y0 + y1) / 2)), mark.number, INK if mark.good else BAD))
        if picture.stop == here:
            ink.append(end(*at_start(leg.points)))
    if picture.stop is not None and not stopped:  # at a device that nothing leaves: the last one
        node = next((node for node in shown if node.name == picture.stop[0]), None)
        device = next((d for d in (*node.devices, *node.containers) if d.role == picture.stop[1]), None) if node is not None else None
        if node is not None and device is not None:
            at = boxes[node.name, device.role, device.name]
            ink.append(end(at.middle, at.y))
    return ink


def legs(picture: Picture, shown: Sequence[NodeBox], boxes: Boxes) -> list[Leg]:
    """Up through the first node, across, down through the second; by the devices that are used."""
    found: list[Leg] = []
    chains = []
    for node, up in zip(shown[:2], (True, False), strict=False):
        used = [node.device(role) for role in ROLES if role != "container"]
        chain = [device for device in (*used, *node.containers[:1]) if device is not None and device.used]
        chains.append((node, chain[::-1] if up else chain))
    tunnelled = picture.frame is None or picture.frame.added > 0
    for (node, chain), up in zip(chains, (True, False), strict=False):
        for device, onward in itertools.pairwise(chain):
            here, there = boxes[node.name, device.role, device.name], boxes[node.name, onward.role, onward.name]
            outer = tunnelled and "nic" in (device.role, onward.role)
            points = ((here.middle, here.y - 1), (here.middle, there.bottom + 3)) if up else ((there.middle, here.bottom + 1), (there.middle, there.y - 3))
            found.append(Leg(node.name, device.role, points, OUTER if outer else INNER))
        if up and len(chains) == 2 and chain and chains[1][1]:
            here, there = (boxes[n.name, d.role, d.name] for n, d in ((node, chain[-1]), (chains[1][0], chains[1][1][0])))
            y = here.y + here.height / 2
            found.append(Leg(node.name, chain[-1].role, ((here.right + 1, y), (there.x - 3, y)), OUTER if tunnelled else INNER))
    return found


def same_node_legs(node: NodeBox, boxes: Boxes) -> list[Leg]:
    """From one container to the bridge and down to the other."""
    bridge = node.device("bridge")
    if bridge is None:
        return []
    at = boxes[node.name, bridge.role, bridge.name]
    places = [boxes[node.name, "container", container.name] for container in (*node.containers[:1], *node.containers[1:][-1:])]
    up = [Leg(node.name, "container", ((first.middle, first.y - 1), (first.middle, at.bottom + 3)), INNER) for first in places[:1]]
    return up + [Leg(node.name, "bridge", ((last.middle, at.bottom + 1), (last.middle, last.y - 3)), INNER) for last in places[1:]]


# ---- the packet ---------------------------------------------------------------------------------------------------------


def layer_boxes(frame: Frame, words: Mapping[str, str]) -> list[LayerBox]:
    """The layers from the outside in; what the container's IP packet carries is one box."""
    packet = frame.packet
    tunnelled = packet.levels > 1
    found: list[LayerBox] = []
    for layer in packet.layers:
        outer = tunnelled and layer.level == 0
        which = f"{words['outer'] if outer else words['inner']} " if tunnelled and layer.name != "vxlan" else ""
        unknown = any(field.text == "?" and field.name not in ("checksum", "flow_label", "id") for field in layer.fields)
        if layer.name in ("ethernet", "ipv4", "ipv6"):
            kind = "ethernet" if layer.name == "ethernet" else "ip"
            found.append(LayerBox(f"outer {kind}" if outer else kind, which + layer.title, ends(layer, words), layer.length, unknown))
        elif outer and layer.name in ("udp", "vxlan", "fragment"):
            value = ends(layer, words) if layer.name == "udp" else layer.brief.replace("vni", "VNI").replace("?", words["unknown"])
            found.append(LayerBox("vxlan" if layer.name == "vxlan" else "udp", which + layer.title, value, layer.length, unknown))
        elif found and found[-1].shade == "payload":
            found[-1] = found[-1]._replace(size=found[-1].size + layer.length)
        else:
            value = layer.brief.replace("?", words["unknown"]) if layer.name != "payload" else words["bytes"].format(size=layer.length)
            found.append(LayerBox("payload", layer.title, value, layer.length, unknown))
    return found


def ends(layer: Layer, words: Mapping[str, str]) -> str:
    """`source → destination`, of UDP its ports."""
    names = ("src_port", "dst_port") if layer.name == "udp" else ("src", "dst")
    texts = [field.text if (field := layer.get(name)) is not None else "?" for name in names]
    shown = " → ".join(words["unknown"] if text == "?" else text for text in texts)
    left = layer.get("ttl") or layer.get("hop_limit")
    return f"{shown} · TTL {left.text}" if left is not None and left.text != "?" else shown


def packet_ink(picture: Picture, frame: Frame, layers: Sequence[LayerBox], at: Box, words: Mapping[str, str]) -> list[str]:
    """The stack of layers below the wire, with brackets that say how many bytes are whose."""
    key = "on the wire" if frame.added else "inside"
    said = words[key].format(size=len(frame))
    if picture.fragments > 1:
        said += ", " + words["of fragments"].format(count=picture.fragments)
    ink = [say(at.middle, at.y - 14, said, 13, bold=True, ink=OUTER if frame.added else INNER, anchor="middle")]
    for row, layer in enumerate(layers):
        place = Box(at.x, at.y + row * LAYER_HEIGHT, at.width, LAYER_HEIGHT - 3)
        fill, edge = SHADES[layer.shade]
        ink.append(box(place, fill, edge, radius=5, width=1))
        if layer.unknown:
            ink.append(box(place, "url(#unknown)", edge, radius=5, width=1, dashed=True))
        ink.append(f'<rect x="{place.x:.1f}" y="{place.y:.1f}" width="6" height="{place.height:.1f}" rx="3" fill="{edge}"/>')
        ink.append(say(place.x + 18, place.y + 17, layer.title, 12.5, bold=True))
        ink.append(say(place.x + 18, place.y + 34, layer.value, 12, mono=True))
        ink.append(say(place.right - 10, place.y + 17, str(layer.size), 11, ink=QUIET, anchor="end"))
    outer = sum(layer.shade in ("outer ethernet", "outer ip", "udp", "vxlan") for layer in layers) if frame.added else 0
    if outer:
        ink += bracket(at, 0, outer, words["added"].format(size=frame.added), OUTER)
    if len(layers) > outer:
        ink += bracket(at, outer, len(layers), words["bytes"].format(size=len(frame) - frame.added), INNER)
    return ink


def bracket(at: Box, first: int, last: int, text: str, ink: str) -> list[str]:
    top, bottom, x = at.y + first * LAYER_HEIGHT + 2, at.y + last * LAYER_HEIGHT - 5, at.right + 8
    middle = (top + bottom) / 2
    words = text.split(" ", 1)
    return [
        line([(x, top), (x + 7, top), (x + 7, bottom), (x, bottom)], ink, width=2, head=False),
        *(say(x + 14, middle + 4 + 15 * row, word, 12.5 if row == 0 else 11, bold=row == 0, ink=ink) for row, word in enumerate(words)),
    ]
