"""Follow one real packet: predict, attach, send, watch, and judge.

with watcher(...) as watch:
    live(cluster, spaces, probe, watch) -> Walk
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from tweed.addr import format_address
from tweed.errors import KernelError, UsageError
from tweed.kernel import tables as kernel
from tweed.kernel.capture import Capture, Frame
from tweed.kernel.netlink import Netlink
from tweed.kernel.netns import inode
from tweed.kernel.tracer import Tracer
from tweed.model import NUD_INCOMPLETE
from tweed.trace import probe as shots
from tweed.trace.ask import ask
from tweed.trace.blame import blame
from tweed.trace.cluster import Cluster
from tweed.trace.diagnose import diagnose
from tweed.trace.drops import peer_of
from tweed.trace.events import CAPTURED, DROPPED, RECEIVED, ROUTED, Event
from tweed.trace.frames import Probe
from tweed.trace.intent import Intent
from tweed.trace.judge import Outcome, Ways, judge
from tweed.trace.probe import Shot
from tweed.trace.result import Divergence, Fix, Quote, Said, Tier, Walk
from tweed.trace.sights import Recognised, Sight, sights
from tweed.trace.udpmode import udp_port
from tweed.trace.underlay import FLANNEL_PORT
from tweed.trace.walk import walk as follow
from tweed.wire.packet import Carried

Spaces = Mapping[str, int | None]  # file descriptors by node or container; None: our own

QUIET_S = 0.25  # after the last event: nothing more comes unless somebody waits for a neighbour
SETTLE_S = 0.02  # after the answer: what belongs to it is told at once
UNRESOLVED_S = 4.0  # the kernel asks for a neighbour three times, a second apart (net.ipv4.neigh.*.mcast_solicit)
SLICE_S = 0.05
LOOK_S = 0.002
DATA = 256  # of a frame, as much as the tracer keeps
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOSYS, errno.EINVAL, errno.ESRCH, errno.EOPNOTSUPP)


class Watch(Protocol):
    """What sees packets, and what it cannot see."""

    tier: Tier
    blind: tuple[Said, ...]

    def look_for(self, shot: Shot, tunnels: Mapping[int, Carried], addresses: tuple[bytes, ...]) -> None: ...
    def drain(self, wait_s: float) -> list[Event]: ...


class Traced:
    """By tracepoints: everything, in all namespaces of this machine."""

    tier: Tier = "bpf"

    def __init__(self, tracer: Tracer, udp_mode: bool = False) -> None:
        self.tracer = tracer
        self.blind: tuple[Said, ...] = (Said("bursts"),) if udp_mode and not tracer.bursts else ()
        self.drain = tracer.drain

    def look_for(self, shot: Shot, tunnels: Mapping[int, Carried], addresses: tuple[bytes, ...]) -> None:
        self.tracer.look_for(shot.protocol, shot.nonce, shot.answer, tunnels, addresses)


class Captured:
    """By packet sockets at every device of the namespaces that are here: frames, and neither drops nor decisions."""

    tier: Tier = "packet"
    blind: tuple[Said, ...] = (Said("drops"), Said("decisions"), Said("times-inside"))

    def __init__(self, captures: Mapping[int, Capture]) -> None:
        """`captures` by the inode of their namespace."""
        self.captures = captures
        self.ours: Recognised | None = None

    def look_for(self, shot: Shot, tunnels: Mapping[int, Carried], addresses: tuple[bytes, ...]) -> None:
        self.drain(0)
        self.ours = Recognised(shot.nonce if shot.probe.proto != "tcp" else b"", shot.probe, tunnels)

    def drain(self, wait_s: float) -> list[Event]:
        """The sockets of several namespaces are several sets, so it looks at each in turn."""
        deadline = time.monotonic() + wait_s
        while True:
            whole = [captured(netns, frame) for netns, capture in self.captures.items() for frame in capture.drain()]
            mine = (event for each in whole for event in self.ours.those_of(each)) if self.ours is not None else ()
            events = [msgspec.structs.replace(event, data=event.data[:DATA]) for event in mine]
            if events or time.monotonic() >= deadline:
                return events
            time.sleep(LOOK_S)


def captured(netns: int, frame: Frame) -> Event:
    return Event(
        t_ns=frame.t_ns,
        kind=CAPTURED,
        netns=netns,
        device=frame.device,
        length=len(frame.data),
        data=frame.data,
        network=frame.network,
        direction=frame.direction,
    )


@contextlib.contextmanager
def watching(cluster: Cluster, spaces: Spaces) -> Iterator[Watch | None]:
    """The best that this process may use: tracepoints, else packet sockets; None where it has neither CAP_BPF with CAP_PERFMON nor CAP_NET_RAW."""
    with contextlib.ExitStack() as stack:
        yield best(cluster, spaces, stack)


def best(cluster: Cluster, spaces: Spaces, stack: contextlib.ExitStack) -> Watch | None:
    try:
        return Traced(stack.enter_context(Tracer(bursts=udp_mode(cluster))), udp_mode(cluster))
    except KernelError as error:
        if error.errno not in REFUSED:
            raise
    try:
        return Captured({netns(spaces[name]): stack.enter_context(Capture(up(cluster, name), spaces[name])) for name in spaces})
    except KernelError as error:
        if error.errno not in REFUSED:
            raise
    return None


def up(cluster: Cluster, name: str) -> list[str]:
    """The devices of a namespace that frames can pass."""
    return [row.name for row in cluster.tables[name].node.devices if row.up is not False and row.name != "lo"]


def netns(descriptor: int | None) -> int:
    return inode(descriptor) if descriptor is not None else os.stat("/proc/self/ns/net").st_ino


def live(cluster: Cluster, spaces: Spaces, probe: Probe, watch: Watch) -> Walk:
    """Send it, and judge what was seen of it and of its answer. Where all is well a second one follows, as large as the sender's MTU.

    Raises UsageError when the source is on no node that is here.
    """
    first = with_rule(shoot(cluster, spaces, shots.load(probe), watch, asking=True), cluster, spaces, probe)
    if first.verdict != "delivered" or first.first_divergence is not None or probe.proto == "tcp":
        return first
    size = first_mtu(cluster, probe)
    if size is None or size <= probe.size or probe.dont_fragment is False:
        return first
    large = shoot(cluster, spaces, shots.load(msgspec.structs.replace(probe, size=size, dont_fragment=True, sport=None)), watch)
    large = with_rule(large, cluster, spaces, msgspec.structs.replace(probe, size=size, dont_fragment=True))
    if large.verdict == "delivered":
        return msgspec.structs.replace(first, whole=large)
    return msgspec.structs.replace(first, whole=large, verdict=large.verdict, first_divergence=too_large(cluster, probe, large))


def with_rule(found: Walk, cluster: Cluster, spaces: Spaces, probe: Probe) -> Walk:
    """Where a firewall dropped it, or its answer, and tables do not tell by which rule, that rule."""
    divergence, source = found.first_divergence, cluster.owner(probe.src)
    if divergence is None or divergence.cause.id != "firewall-drops" or divergence.fix or divergence.node not in spaces or source is None:
        return found
    shot = shots.load(probe)
    blamed = blame(divergence, shot, tunnels(cluster), spaces[source.tables.name], spaces[divergence.node])
    return msgspec.structs.replace(found, first_divergence=blamed)


def shoot(cluster: Cluster, spaces: Spaces, shot: Shot, watch: Watch, *, asking: bool = False) -> Walk:
    """One probe. `asking`: the kernel is asked for each decision, before the packet itself makes it learn neighbours."""
    probe = shot.probe
    source = cluster.owner(probe.src)
    if source is None or source.tables.name not in spaces:
        raise UsageError(f"{format_address(probe.src)}: no namespace here has this address, so nothing can be sent from it: run this on its node")
    ways = predict(cluster, shot, watch.tier)
    if asking:
        ways = Ways(ask(ways.there, cluster, spaces), None if ways.back is None else ask(ways.back, cluster, spaces))
    carried = tunnels(cluster)
    watch.look_for(shot, carried, addresses(cluster, shot, watch.tier))
    places = {netns(descriptor): name for name, descriptor in spaces.items()}
    with shots.opened(shot, spaces[source.tables.name]) as opened:
        refused = shots.send(opened, shot)
        events = watch_until(watch, Unresolved(cluster, spaces, ways.there), source_netns(places, source.tables.name), bool(refused), places)
    seen = sights(events, places, probe, carried)
    return judge(ways, probe, shots.reply_to(shot), cluster, Outcome(seen, first_seen(seen), refused), watch.tier, watch.blind)


def predict(cluster: Cluster, shot: Shot, tier: Tier) -> Ways:
    """What tables say of the probe and of its answer, held against the leases."""
    intent, probe = Intent(cluster), shot.probe
    there = diagnose(cluster, intent, follow(cluster, probe, (), tier))
    back = shots.reply_to(shot) or msgspec.structs.replace(
        probe, src=probe.dst, dst=probe.src, sport=probe.dport, dport=probe.sport, reply=True, payload=None, size=max(probe.least, shots.UNREACHABLE_SIZE)
    )
    try:
        return Ways(there, diagnose(cluster, intent, follow(cluster, back, (), tier)))
    except UsageError:  # no table speaks of where the answer would begin
        return Ways(there)


def first_seen(seen: Sequence[Sight]) -> int:
    """When the probe, or the look-up for it, was seen first."""
    return next((sight.event.t_ns for sight in seen if sight.leg), 0)


def addresses(cluster: Cluster, shot: Shot, tier: Tier) -> tuple[bytes, ...]:
    """Whose look-ups belong to a probe: its ends, and the hosts that tunnels lead to, as far as tables tell of them."""
    try:
        ways = predict(cluster, shot, tier)
    except UsageError:  # the source is another machine's: the leases say which
        ends = (shot.probe.src, shot.probe.dst)
        leases = [endpoint for each in cluster.snapshot.leases for endpoint in each.lease.endpoints]
        return (*ends, *(each.public_ip for each in leases if each.public_ip is not None and any(each.subnet.contains(end) for end in ends)))
    return (shot.probe.src, shot.probe.dst, *outer_hosts(ways.there), *outer_hosts(ways.back))


def source_netns(places: Mapping[int, str], name: str) -> int:
    return next(netns for netns, place in places.items() if place == name)


def of_places(events: list[Event], places: Collection[int]) -> list[Event]:
    """Without look-ups that other namespaces made for the same addresses: they have no nonce."""
    return [event for event in events if event.kind != ROUTED or event.netns in places or (event.netns == 0 and event.code)]


def watch_until(watch: Watch, unresolved: Unresolved, source: int, refused: bool, places: Collection[int]) -> list[Event]:
    """Events until the answer is back at the source, or until nothing comes any more."""
    events: list[Event] = []
    started = last = time.monotonic()
    while True:
        new = of_places(watch.drain(SLICE_S), places)
        events += new
        now = time.monotonic()
        if new:
            last = now
        if any(event.netns == source and event.kind in (RECEIVED, CAPTURED) and event.direction in ("", "in") for event in new):
            time.sleep(SETTLE_S)
            return events + of_places(watch.drain(0), places)
        waiting = now - last
        if waiting < QUIET_S and not (refused and waiting >= SLICE_S):
            continue
        if now - started < UNRESOLVED_S and not any(event.kind == DROPPED for event in events[-1:]) and unresolved():
            continue
        return events


class Unresolved:
    """Whether a node on the way is still asking for a neighbour: a packet that waits for the answer is seen nowhere."""

    def __init__(self, cluster: Cluster, spaces: Spaces, walk: Walk) -> None:
        self.family = 4 if len(walk.dst) == 4 else 6
        names = dict.fromkeys(step.node for step in walk.steps if step.node in spaces)
        self.devices = [(spaces[name], device) for name in names for device in cluster.tables[name].devices]

    def __call__(self) -> bool:
        for netns, devices in self.by_space().items():
            with Netlink(netns) as nl:
                for device in devices:
                    if any(row.state == NUD_INCOMPLETE for family in {4, self.family} for row in kernel.neighbours(nl, device, family)):
                        return True
        return False

    def by_space(self) -> dict[int | None, list[str]]:
        found: dict[int | None, list[str]] = {}
        for netns, device in self.devices:
            found.setdefault(netns, []).append(device)
        return found


def tunnels(cluster: Cluster) -> dict[int, Carried]:
    """The UDP ports that carry packets on any node here."""
    ports: dict[int, Carried] = {}
    for tables in cluster.tables.values():
        for row in tables.node.devices:
            if row.vxlan is not None and row.vxlan.port:
                ports[row.vxlan.port] = "vxlan"
        for fdb in tables.node.fdb:
            if fdb.port:
                ports[fdb.port] = "vxlan"
    if udp_mode(cluster):
        ports.setdefault(udp_port(cluster), "ip")
    return ports or {FLANNEL_PORT: "vxlan"}


def udp_mode(cluster: Cluster) -> bool:
    """Whether a process carries packets on any node here."""
    return any(tables.kind(row.name)[0] == "tun" for tables in cluster.tables.values() for row in tables.node.devices)


def outer_hosts(walk: Walk | None) -> list[bytes]:
    """The hosts that tunnels lead to on a way."""
    return [] if walk is None else [step.hop.tunnel.dst for step in walk.steps if step.hop is not None and step.hop.tunnel is not None]


def first_mtu(cluster: Cluster, probe: Probe) -> int | None:
    """The MTU of the device that a container of the overlay first sends by. None for all else: a node has devices of many sizes, and what is
    beside the overlay learns the way's MTU from its first packet that is too large."""
    source = cluster.owner(probe.src)
    subnets = [endpoint.subnet for each in cluster.snapshot.leases for endpoint in each.lease.endpoints]
    if source is None or source.tables.node.host is None or (subnets and not any(subnet.contains(probe.src) for subnet in subnets)):
        return None
    answer = source.tables.lookup(probe.dst, src=probe.src)
    device = answer.hops[0].device if answer.hops else None
    if device is None or answer.kind != "unicast":
        return None
    return source.tables.mtu(device)


def too_large(cluster: Cluster, probe: Probe, large: Walk) -> Divergence | None:
    """What is wrong when only a packet of the sender's MTU does not get through: the sender's MTU, where that of the way is right."""
    found = large.first_divergence
    source = cluster.owner(probe.src)
    if found is None or source is None or found.cause.id not in ("mtu-exceeded", "mtu-too-large") or (found.cause.id == "mtu-exceeded" and found.fix):
        return found
    peer = peer_of(cluster, source.tables.name, source.device)
    limits = [found.cause.params.get("room", found.cause.params["mtu"]), str(peer[1].mtu) if peer is not None else ""]
    room = min((int(limit) for limit in limits if limit.isdigit()), default=None)
    if room is None or (found.cause.id == "mtu-too-large" and (found.node != source.tables.name or str(room) == found.cause.params["room"])):
        return found
    at = source.tables.devices[source.device]
    params = {"device": source.device, "mtu": str(at.mtu), "room": str(room)}
    evidence = tuple(dict.fromkeys((Quote(at.source, at.text.split("\n")[0]), *found.evidence)))
    fix = (Fix(source.tables.name, f"ip link set {source.device} mtu {room}"),)
    return Divergence(source.tables.name, source.device, Said("mtu-too-large", params), evidence, fix)
