"""A walk there, the answer's way back, and a packet as large as its sender may make it: a network is right when all three arrive."""

from __future__ import annotations

import msgspec

from tweed.errors import UsageError
from tweed.trace.cluster import Cluster
from tweed.trace.diagnose import BAD, diagnose
from tweed.trace.frames import Probe
from tweed.trace.intent import Intent
from tweed.trace.result import Finding, Tier, Walk
from tweed.trace.walk import walk


def trip(cluster: Cluster, intent: Intent, probe: Probe, findings: tuple[Finding, ...] = (), tier: Tier = "text") -> Walk:
    """The walk there with `reply` and `whole`; verdict and first divergence are those of the first that fails.

    Raises UsageError as `walk` does. What tables do not tell of the way back changes no verdict.
    """
    there = diagnose(cluster, intent, walk(cluster, probe, findings, tier))
    if there.verdict in BAD or probe.src == probe.dst:
        return there
    back = answer(cluster, intent, probe, tier)
    whole = full_size(cluster, intent, probe, there, tier)
    failed = next((each for each in (back, whole) if each is not None and each.verdict in BAD), None)
    made = msgspec.structs.replace(there, reply=back, whole=whole)
    return made if failed is None else msgspec.structs.replace(made, verdict=failed.verdict, first_divergence=failed.first_divergence)


def answer(cluster: Cluster, intent: Intent, probe: Probe, tier: Tier) -> Walk | None:
    """The packet that answers; None where no table speaks of where that would begin."""
    try:
        found = diagnose(cluster, intent, walk(cluster, answering(probe), (), tier))
    except UsageError:
        return None
    return found if len(found.steps) > 1 or found.verdict != "unknown" else None


def answering(probe: Probe) -> Probe:
    """The packet that answers: of an echo the identifier stays, else the ports change places."""
    sport, dport = (probe.sport, None) if probe.proto == "icmp" else (probe.dport, probe.sport)
    return msgspec.structs.replace(probe, src=probe.dst, dst=probe.src, sport=sport, dport=dport, reply=True, payload=None, dont_fragment=None)


def full_size(cluster: Cluster, intent: Intent, probe: Probe, there: Walk, tier: Tier) -> Walk | None:
    """The same at the MTU of the device that it first leaves by, not to be cut; None where that is not known, or is no larger.

    Not of a container beside the overlay, which learns the tunnel's MTU from the first packet that does not fit (RFC 1191).
    """
    owner = cluster.owner(probe.src)
    if owner is not None and cluster.host_of(owner.tables) is not owner.tables and intent.peers and intent.of(probe.src) is None:
        return None
    first = next((step.hop for step in there.steps if step.hop is not None and step.hop.direction == "out"), None)
    if first is None or first.mtu is None or first.mtu <= probe.size or there.verdict != "delivered":
        return None
    large = msgspec.structs.replace(probe, size=min(first.mtu, 65535), dont_fragment=True, payload=None)
    return diagnose(cluster, intent, walk(cluster, large, (), tier))
