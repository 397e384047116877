"""From a walk to its figure: which nodes and devices the packet passes, what the tables say of them, and where each row decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tweed.addr import format_address, format_mac
from tweed.trace.bits import Frame
from tweed.trace.frames import Stage
from tweed.trace.messages import FIGURE_ZH, Language, label, sayer
from tweed.trace.render import sentence
from tweed.trace.result import NOT_ARRIVED, Step, Walk
from tweed.trace.snapshot import Node, Snapshot
from tweed.trace.svg import Device, Mark, NodeBox, Picture, Role, draw
from tweed.trace.vocabulary import CAUSES

# What a decision says about the device that it names ("": about the one that it is made at).
BY_DECISION: dict[str, tuple[Role, str]] = {
    "source-container": ("container", "device"),
    "source-namespace": ("container", "device"),
    "into-container": ("container", "device"),
    "delivered-container": ("container", ""),
    "enters-bridge": ("bridge", "bridge"),
    "enters-bridge-port-unknown": ("bridge", "bridge"),
    "bridge-port": ("bridge", "bridge"),
    "bridge-flood": ("bridge", "bridge"),
    "bridge-unknown": ("bridge", "bridge"),
    "fdb": ("vtep", "device"),
    "fdb-default": ("vtep", "device"),
    "fdb-unknown": ("vtep", "device"),
    "encapsulated": ("vtep", "device"),
    "encapsulated-udp": ("vtep", "device"),
    "decapsulated": ("vtep", "device"),
    "decapsulated-udp": ("vtep", "device"),
    "underlay-via": ("nic", "device"),
    "underlay-connected": ("nic", "device"),
    "leaves-vxlan": ("nic", "device"),
    "leaves-vxlan-port-unknown": ("nic", "device"),
    "leaves-plain": ("nic", "device"),
    "arrives-vxlan": ("nic", ""),  # its `device` is who takes it
    "arrives-udp": ("nic", ""),  # its `device` is who takes it
    "arrives-plain": ("nic", ""),
}
KINDS: dict[str, Role] = {"bridge": "bridge", "vxlan": "vtep"}


class Passed(msgspec.Struct):
    """A node that the packet passes: its device of each role, by name."""

    name: str
    devices: dict[Role, str]
    container: str | None = None


def figure(walk: Walk, snapshot: Snapshot, stages: Sequence[Stage], language: Language) -> str:
    """The figure of one branch of a walk (the first) as an SVG document. `stages`: its frames, those of `pcap.stages_of`."""
    return draw(picture(walk, snapshot, stages, language))


def picture(walk: Walk, snapshot: Snapshot, stages: Sequence[Stage], language: Language) -> Picture:
    steps = walk.way()
    passed = passed_nodes(steps, snapshot)
    same_node = len(passed) == 1
    unknown_peer = next((said for step in steps for said in step.unknowns if said.id == "peer-tables"), None)
    if walk.verdict in NOT_ARRIVED:
        passed = [with_what_lies_ahead(each, snapshot) for each in passed]
    size = len(walk.src)
    boxes = [node_box(each, snapshot, size) for each in passed]
    source, target = format_address(walk.src), format_address(walk.dst)
    if boxes:
        boxes[0] = with_container(boxes[0], passed[0].container, source, snapshot, first=True)
        if same_node and (walk.verdict == "delivered" or steps[-1].decision.id == "ends-container-unknown"):
            boxes[0] = with_container(boxes[0], None, target, snapshot, first=False)
        elif len(passed) > 1:
            boxes[1] = with_container(boxes[1], passed[1].container, target, snapshot, first=True)
    stop: tuple[str, Role] | None = None
    if unknown_peer is not None and same_node:
        host = unknown_peer.params.get("host", "")
        boxes.append(NodeBox(host, (Device("nic", label(language, "not known"), (host,)),), (Device("container", target, (target,)),)))
        same_node, stop = False, (host, "nic")
    elif walk.verdict in (*NOT_ARRIVED, "unknown") and steps:
        stop = stop_at(steps[-1], passed, snapshot)
    names = {box.name for box in boxes}
    used: dict[Role, str] = {role: name for each in reversed(passed) for role, name in each.devices.items()}
    bystanders = [node_box(every_device(node, used), snapshot, size) for node in snapshot.nodes if node.host is None and node.name not in names]
    frame, count = largest(stages)
    subtitle = label(language, walk.verdict)
    if walk.first_divergence is not None:
        subtitle += f": {walk.first_divergence.node} {walk.first_divergence.device}: {sentence(walk.first_divergence.cause, language)}"
    elif unknown_peer is not None:
        subtitle += f": {sayer(language)('unknown', unknown_peer)}"
    elif walk.verdict == "unknown" and steps:
        subtitle += f": {sentence(steps[-1].decision, language)}"
    else:
        subtitle += f", {label(language, walk.tier)}"
    return Picture(
        f"{source} → {target}",
        subtitle,
        (*boxes, *bystanders),
        frame,
        same_node=same_node,
        fragments=count,
        marks=marks(steps, passed, snapshot, language),
        stop=stop,
        delivered=walk.verdict not in NOT_ARRIVED,
        unknown=walk.verdict == "unknown",
        words=FIGURE_ZH if language == "zh" else {},
    )


def host_of(name: str) -> str:
    """The machine of a namespace: "master" of "master/pod1"."""
    return name.partition("/")[0]


def role_of(step: Step, snapshot: Snapshot) -> tuple[Role, str] | None:
    """The device that a step is at, and what it is; None where the tables do not tell."""
    if "/" in step.node:
        return "container", step.device
    if (known := BY_DECISION.get(step.decision.id)) is not None:
        return known[0], step.decision.params.get(known[1], step.device)
    if step.hop is not None and step.hop.tunnel is not None:
        return "nic", step.device
    node = snapshot.node(step.node)
    row = next((row for row in node.devices if row.name == step.device), None) if node is not None else None
    return (KINDS[row.kind], step.device) if row is not None and row.kind in KINDS else None


def passed_nodes(steps: Sequence[Step], snapshot: Snapshot) -> list[Passed]:
    """In the order in which the packet comes to them: the first sends, the last receives. Those between are left out."""
    found: dict[str, Passed] = {}
    for step in steps:
        if not step.node:
            continue
        each = found.setdefault(host_of(step.node), Passed(host_of(step.node), {}))
        if "/" in step.node:
            each.container = each.container or step.node.partition("/")[2]
        elif (known := role_of(step, snapshot)) is not None and known[0] != "container":
            each.devices.setdefault(*known)
    nodes = list(found.values())
    return [nodes[0], nodes[-1]] if len(nodes) > 2 else nodes


def with_what_lies_ahead(passed: Passed, snapshot: Snapshot) -> Passed:
    """A node at which, or before which, the packet stopped: with the devices that it would have passed there."""
    node = snapshot.node(passed.name)
    ahead = every_device(node, passed.devices).devices if node is not None else {}
    return Passed(passed.name, ahead | passed.devices, passed.container)


def every_device(node: Node, used: Mapping[Role, str]) -> Passed:
    """The devices of a node, whatever the packet passes: VTEP, bridge and the NIC below, those that are `used` (elsewhere) before others."""
    there = {row.name for row in node.devices}
    found: dict[Role, str] = {role: name for role, name in used.items() if name in there}
    for row in node.devices:
        if row.kind in KINDS:
            found.setdefault(KINDS[row.kind], row.name)
            if row.vxlan is not None and row.vxlan.underlay is not None:
                found.setdefault("nic", row.vxlan.underlay)
    return Passed(node.name, found)


def node_box(passed: Passed, snapshot: Snapshot, size: int) -> NodeBox:
    """`size`: bytes of an address of the walk's family."""
    node = snapshot.node(passed.name)
    return NodeBox(passed.name, tuple(Device(role, name, facts(node, name, size)) for role, name in passed.devices.items()))


def with_container(box: NodeBox, name: str | None, address: str, snapshot: Snapshot, *, first: bool) -> NodeBox:
    """The node with one more container; one that only forwards, or talks itself, has none."""
    if name is None:
        name = next((node.name.partition("/")[2] for node in snapshot.nodes if node.host == box.name and has(node, address)), None)
        node = snapshot.node(box.name)
        if name is None and node is not None and has(node, address):
            return box
    space = snapshot.node(f"{box.name}/{name}") if name is not None else None
    mac = next((format_mac(row.mac) for row in space.devices if row.mac and row.name != "lo"), "") if space is not None else ""
    container = Device("container", name or address, (address, mac) if mac else (address,))
    return msgspec.structs.replace(box, containers=(*box.containers, container))


def has(node: Node, address: str) -> bool:
    return any(format_address(row.address.address) == address for row in node.addresses)


def facts(node: Node | None, device: str, size: int) -> tuple[str, ...]:
    """What is to be said of a device: its global address, best of the walk's family, and its MAC; the source of its connected route where only
    routes were pasted."""
    if node is None:
        return ()
    own = (row.address for row in node.addresses if row.device == device and row.scope not in ("link", "host"))
    addresses = [str(address) for address in sorted(own, key=lambda each: len(each.address) != size)]
    if not addresses:
        rows = (row for row in node.routes if row.src is not None and any(hop.device == device for hop in row.hops))
        addresses = [format_address(row.src) for row in rows if row.src is not None]
    mac = next((format_mac(row.mac) for row in node.devices if row.name == device and row.mac), None)
    return (*addresses[:1], *([mac] if mac else []))


def stop_at(step: Step, passed: Sequence[Passed], snapshot: Snapshot) -> tuple[str, Role] | None:
    """The device that the packet does not leave."""
    name = host_of(step.node)
    each = next((each for each in passed if each.name == name), None)
    if each is None:
        return None
    if "/" in step.node:
        return name, "container"
    role = next((role for role, device in each.devices.items() if device == step.device), None)
    if role is not None:
        return name, role
    known = role_of(step, snapshot)
    return None if known is None else (name, known[0])


def largest(stages: Sequence[Stage]) -> tuple[Frame | None, int]:
    """The packet at the place where it is longest, and in how many fragments it is there."""
    best = max((stage for stage in stages if stage.frames), key=lambda stage: (stage.frames[0].added, len(stage.frames[0])), default=None)
    return (best.frames[0], len(best.frames)) if best is not None else (None, 1)


def marks(steps: Sequence[Step], passed: Sequence[Passed], snapshot: Snapshot, language: Language) -> tuple[Mark, ...]:
    """The rows that answered one of the four questions, and what stopped the packet; each at the device whose way out it decided."""
    found: list[Mark] = []
    for step in steps:
        broken = step.decision.id in CAUSES
        if not (step.question and step.row is not None) and not broken:
            continue
        node, role = stop_at(step, passed, snapshot) or (host_of(step.node), "bridge")
        text = sentence(step.decision, language) if broken or step.row is None else step.row.text.strip()
        found.append(Mark(len(found) + 1 if broken else step.question, node, role, text, good=not broken))
    return tuple(found)
