"""`tweed walk --record` and `--join`: one probe followed across machines that share nothing but the network."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import click
import msgspec

from tweed.addr import format_address
from tweed.commands import spaces
from tweed.commands.walk_show import Wanted
from tweed.errors import TweedError, UsageError
from tweed.trace import probe as shots
from tweed.trace.clocks import Clock
from tweed.trace.cluster import Cluster
from tweed.trace.ends import ends
from tweed.trace.events import ROUTED, Event
from tweed.trace.findings import find
from tweed.trace.join import coarse, join
from tweed.trace.judge import Outcome, judge
from tweed.trace.live import Unresolved, Watch, addresses, first_seen, netns, predict, source_netns, tunnels, watch_until, watching
from tweed.trace.probe import Shot
from tweed.trace.recording import Heading, Recording, decode, encode
from tweed.trace.result import Said, Walk
from tweed.trace.snapshot import LeaseRow, Snapshot
from tweed.trace.snapshot import encode as bundle

LISTEN_S = 60.0  # for the packet, on a machine that does not send it
AFTER_S = 1.0  # since the last event: the answer may have to wait for a neighbour on another machine
SLICE_S = 0.2


def record(file: Path, src: str, dst: str, want: Wanted) -> None:
    """Send the packet if its source is here, else wait for it; write what was seen of it. Raises TweedError when nothing can be."""
    with spaces.opened(None) as opened:
        snapshot = spaces.take(None, opened)
        cluster = Cluster(snapshot)
        probe = want.probe(*ends(cluster, src, dst))
        shot = shots.load(probe, shots.agreed(probe))
        source = cluster.owner(probe.src)
        sends = source is not None and source.tables.name in opened
        carried = tunnels(cluster)
        places = {netns(descriptor): name for name, descriptor in opened.items()}
        machine = next(iter(opened))
        with watching(cluster, opened) as watch:
            if watch is None:
                raise TweedError("--record: it takes CAP_BPF and CAP_PERFMON, or CAP_NET_RAW, to see packets: run it as root")
            watch.look_for(shot, carried, addresses(cluster, shot, watch.tier))
            refused = ""
            if source is not None and sends:
                with shots.opened(shot, opened[source.tables.name]) as made:
                    refused = shots.send(made, shot)
                    unresolved = Unresolved(cluster, opened, predict(cluster, shot, watch.tier).there)
                    events = watch_until(watch, unresolved, source_netns(places, source.tables.name), bool(refused), places)
            else:
                events = listen(watch, shot, places)
            tier, blind = watch.tier, watch.blind
        seen = tuple(event for event in events if event.netns in places or event.netns == 0)
        heading = Heading(
            machine=machine,
            places=places,
            probe=shot.probe,
            sent=sends,
            refused=refused,
            tier=tier,
            blind=blind,
            tunnels=carried,
            bundle=bundle(snapshot).decode(),
        )
        try:
            file.write_bytes(encode(Recording(heading, seen)))
        except OSError as error:
            raise UsageError(f"{file}: cannot be written: {error.strerror}") from None
    click.echo(
        f"{file}: {len(seen)} events of the packet on {machine}{', which sent it' if sends else ''}; join the files with: tweed walk --join FILE...", err=True
    )


def listen(watch: Watch, shot: Shot, places: Collection[int]) -> list[Event]:
    """Until the packet has passed, or it is clear that it does not come."""
    ends_of_it = f"{format_address(shot.probe.src)} to {format_address(shot.probe.dst)}"
    click.echo(f"listening for the packet from {ends_of_it}, up to {LISTEN_S:g} s or Ctrl-C: now run the same command on the machine that has SRC", err=True)
    events: list[Event] = []
    started = last = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):  # who stops it wants what there is
        while time.monotonic() < (last + AFTER_S if events else started + LISTEN_S):
            new = [event for event in watch.drain(SLICE_S) if event.netns in places]
            if events or any(event.kind != ROUTED for event in new):  # look-ups alone may be anybody's for the same addresses
                events += new
            if new and events:
                last = time.monotonic()
    if not events:
        click.echo("it did not come by here; that is recorded too", err=True)
    return events


def joined(files: Sequence[str], want: Wanted) -> tuple[Walk, Snapshot]:
    """The walk that several recordings make together. Raises UsageError for files that do not belong together."""
    recordings = []
    for name in files:
        try:
            recordings.append(decode(Path(name).read_bytes(), name))
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}") from None
    together = join(recordings)
    sender = together.sender
    cluster = Cluster(together.snapshot)
    shot = Shot(sender.probe, b"")
    outcome = Outcome(together.sights, first_seen(together.sights), sender.refused)
    found = judge(predict(cluster, shot, sender.tier), sender.probe, shots.reply_to(shot), cluster, outcome, sender.tier, sender.blind)
    told = clocks(together.clocks.values(), sender.machine, [each.heading.machine for each in recordings], together.snapshot.leases)
    found = coarse(found, together.clocks, sender.machine)
    return msgspec.structs.replace(found, findings=find(cluster), blind=(*found.blind, *told)), together.snapshot


def clocks(known: Iterable[Clock], sender: str, recorded: Collection[str], leases: Sequence[LeaseRow]) -> tuple[Said, ...]:
    """What is known of the clocks, and the machines of which there is no file."""
    told = []
    for clock in known:
        if clock.machine == sender:
            continue
        if clock.uncertainty_ns is None:
            told.append(Said("clock-unknown", {"machine": clock.machine}))
        else:
            times = {"offset": f"{clock.offset_ns / 1000:+.1f} µs", "uncertainty": f"{clock.uncertainty_ns / 1000:.1f} µs"}
            told.append(Said("clock", {"machine": clock.machine} | times))
    others = sorted({lease.node for lease in leases if lease.node is not None} - set(recorded))
    return (*told, *((Said("other-machines", {"nodes": ", ".join(others)}),) if others else ()))
