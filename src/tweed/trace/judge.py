"""What should have become of a packet and what became of it: equal, or where they first part. Pure.

    judge(...) -> Walk      the predicted steps with their sights, the verdict of what was seen, the first divergence and what it rests on

Tables that are wrong are the prediction's to find (trace.diagnose); that counts when the packet was seen to come just so far, or past the wrong
decision. A packet that ends earlier, or where tables say that it goes on, ended for the reason that the kernel gave.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tweed.addr import format_address
from tweed.trace import xfrm
from tweed.trace.beside import Laid, beside, in_tunnel, translated
from tweed.trace.cluster import Cluster
from tweed.trace.drops import ETHERNET, FORWARDS_TO_PEER, SEND_ERRORS, explain
from tweed.trace.events import DROPPED
from tweed.trace.firewall import Facts, evaluate, target
from tweed.trace.frames import PROTOCOLS, TTL, Probe
from tweed.trace.result import Divergence, Fix, Quote, Said, Seen, Tier, Verdict, Walk
from tweed.trace.sights import Sight, is_error
from tweed.trace.tables import quote
from tweed.trace.vocabulary import kind_of

OUR_TABLES = "tweed-"


class Ways(msgspec.Struct, frozen=True):
    """What tables predict of a probe and of its answer, held against leases (trace.diagnose). `back` None: no way back is known."""

    there: Walk
    back: Walk | None = None


class Outcome(msgspec.Struct, frozen=True):
    """`refused`: the name of the errno with which the sender's kernel refused to send, "" when it took the packet."""

    sights: tuple[Sight, ...]
    began_ns: int
    refused: str = ""


def judge(ways: Ways, probe: Probe, answer: Probe | None, cluster: Cluster, seen: Outcome, tier: Tier, blind: tuple[Said, ...] = ()) -> Walk:
    """`answer`: the packet that answers, where it is known what that is (an echo)."""
    answered = any(sight.leg == "back" and sight.moves and not refusing(sight, probe, ways.there) for sight in seen.sights)
    laid = beside(ways.there, probe, cluster, seen.sights, "there", seen.began_ns)
    there = conclude(ways.there, laid, cluster, seen, arrived=answered or arrived(ways.there, laid, cluster, probe))
    made = msgspec.structs.replace(there, tier=tier, blind=blind, probe=probe)
    moved = next((sight for sight in seen.sights if redirected(sight, probe)), None)
    if moved is not None:
        return elsewhere(made, ways.there, moved, laid, cluster, seen, probe, answered=answered)
    if not answered and ignored(ways, laid):
        return unanswered(made, ways, laid, cluster, seen, probe)
    other = next((sight for sight in seen.sights if sight.moves and translated(sight, probe)), None)
    if other is not None and made.first_divergence is not None and made.first_divergence.cause.id == "bytes-differ":
        made = msgspec.structs.replace(made, first_divergence=None)  # masquerading is no fault while answers find their way
    if other is not None and other.inner is not None and other.inner.octets("src") != probe.src:
        return made if answered and returned(seen.sights, cluster, probe) else replaced(made, other, probe, cluster)
    if there.verdict not in ("delivered", "detour") or ways.back is None or probe.src == probe.dst:
        return made
    if not answered and not any(sight.leg == "back" and sight.event.kind == DROPPED for sight in seen.sights):
        return made if probe.proto == "udp" else unanswered(made, ways, laid, cluster, seen, probe)
    back = answer or msgspec.structs.replace(probe, src=probe.dst, dst=probe.src, reply=True)
    behind = beside(ways.back, back, cluster, seen.sights, "back", seen.began_ns)
    reply = conclude(
        ways.back,
        behind,
        cluster,
        seen,
        arrived=arrived(ways.back, behind, cluster, back) or returned(seen.sights, cluster, probe),
        compare=answer is not None and other is None and not errors(seen.sights),
    )
    reply = msgspec.structs.replace(reply, tier=tier)
    made = msgspec.structs.replace(made, reply=reply)
    if reply.verdict != "delivered":
        return msgspec.structs.replace(made, verdict=reply.verdict, first_divergence=made.first_divergence or reply.first_divergence)
    return msgspec.structs.replace(made, first_divergence=made.first_divergence or reply.first_divergence)


def refusing(sight: Sight, probe: Probe, there: Walk) -> bool:
    """Whether it is the destination's ICMP error, and no answer: to an echo there is another one, and a firewall rule that tables tell of made it."""
    ruled = there.first_divergence is not None and there.first_divergence.cause.id == "firewall-drops"
    return (probe.proto == "icmp" or ruled) and sight.packet is not None and is_error(sight.packet)


def returned(sights: Sequence[Sight], cluster: Cluster, probe: Probe) -> bool:
    owner = cluster.owner(probe.src)
    return owner is not None and any(sight.leg == "back" and sight.node == owner.tables.name and sight.direction == "in" for sight in sights)


def replaced(walk: Walk, sight: Sight, probe: Probe, cluster: Cluster) -> Walk:
    """Masqueraded and not answered: the way back from the other address is not the sender's."""
    network = sight.inner
    assert network is not None
    params = {"src": format_address(probe.src), "seen": format_address(network.octets("src")), "device": sight.event.device}
    rows, fixes = translating(cluster, sight.node, probe, ("snat", "masquerade"), network.octets("src"))
    found = Divergence(sight.node, sight.event.device, Said("source-replaced", params), rows, fixes)
    known = walk.first_divergence
    return msgspec.structs.replace(walk, verdict=walk.verdict if known is not None else "lost", first_divergence=known or found)


def ignored(ways: Ways, laid: Laid) -> bool:
    """Whether it came to a namespace that answers no echo request, and nothing else is in its way. IPv6 frees it with no reason where it reads it."""
    found = ways.back.first_divergence if ways.back is not None else None
    if found is None or found.cause.id != "echo-ignored" or ways.there.first_divergence is not None or laid.last is None:
        return False
    return (laid.last.node, laid.last.direction) == (found.node, "in") and (laid.drop is None or laid.drop.event.function.startswith("icmpv6_rcv"))


def redirected(sight: Sight, probe: Probe) -> bool:
    """Whether it shows the probe with another destination."""
    network = sight.inner
    there = sight.moves and sight.leg == "there" and sight.packet is not None and not is_error(sight.packet)
    return there and network is not None and network.octets("src") == probe.src and network.octets("dst") != probe.dst


def elsewhere(walk: Walk, predicted: Walk, sight: Sight, laid: Laid, cluster: Cluster, seen: Outcome, probe: Probe, *, answered: bool) -> Walk:
    """A rule gave it another destination. What is for a node or a service is passed on so; what is for a container should have got there."""
    network = sight.inner
    assert network is not None
    to = network.octets("dst")
    params = {"dst": format_address(probe.dst), "seen": format_address(to), "device": sight.event.device}
    rows, fixes = translating(cluster, sight.node, probe, ("dnat", "redirect"), to)
    found = Divergence(sight.node, sight.event.device, Said("destination-replaced", params), rows)
    if not cluster.container(probe.dst):
        known = walk.first_divergence
        return walk if known is not None and known.cause.id != "bytes-differ" else msgspec.structs.replace(walk, first_divergence=found)
    told = predicted.first_divergence
    if told is not None and told.cause.id == "destination-replaced" and told.node == found.node:
        found = msgspec.structs.replace(told, cause=found.cause)
    else:
        found = msgspec.structs.replace(found, fix=fixes)
    ends = {each.tables.name for each in cluster.owners.get(to, ())}
    there = laid.last is not None and laid.last.node in ends and laid.last.direction == "in" and laid.drop is None
    verdict: Verdict = "elsewhere" if answered or there else "dropped" if laid.drop is not None else "lost"
    return ended(walk, laid, verdict, with_evidence(found, laid, seen))


def translating(cluster: Cluster, node: str, probe: Probe, words: tuple[str, ...], address: bytes) -> tuple[tuple[Quote, ...], tuple[Fix, ...]]:
    """The rules of a node, not our own, that may have put an address in place of the probe's (by these words), and what takes the one away that did.

    Those that name the address, else those that name none; of several nobody can tell which it was.
    """
    tables = cluster.tables.get(node)
    icmp = "echo-request" if probe.proto == "icmp" else ""
    facts = Facts(probe.src, probe.dst, PROTOCOLS[probe.proto, probe.family], probe.sport, probe.dport, None, None, "new", icmp)
    chains = [chain for chain in tables.firewall.chains.values() if not chain.table.startswith(OUR_TABLES)] if tables is not None else []
    rules = [(chain, rule) for chain in chains for rule in chain.rules if {*words} & {*rule.words} and evaluate(rule, facts)[0] is not False]
    rules = [each for each in rules if target(each[1]) == address] or [each for each in rules if target(each[1]) is None]
    commands = [chain.removal(rule) for chain, rule in rules] if len(rules) == 1 else []
    return tuple(rule.quote for _, rule in rules), tuple(Fix(node, command) for command in commands if command is not None)


def errors(sights: Sequence[Sight]) -> bool:
    """Whether the answer is an ICMP error."""
    return any(sight.leg == "back" and sight.moves and sight.packet is not None and is_error(sight.packet) for sight in sights)


def arrived(walk: Walk, laid: Laid, cluster: Cluster, probe: Probe) -> bool:
    """Whether it was seen at the device that has its destination, and nothing there threw it away."""
    owner = cluster.owner(probe.dst)
    if laid.drop is not None:
        return False
    last = laid.last
    if owner is None:  # a container that nobody can look into: its node's last device
        return walk.verdict == "delivered" and last is not None and last.direction == "out" and laid.far >= last_place(laid)
    ends = {each.tables.name for each in cluster.owners[probe.dst]}
    return last is not None and last.node in ends and last.direction == "in" and not in_tunnel(last)


def last_place(laid: Laid) -> int:
    return max((number for number, step in enumerate(laid.steps) if step.hop is not None), default=-1)


def conclude(walk: Walk, laid: Laid, cluster: Cluster, seen: Outcome, *, arrived: bool, compare: bool = True) -> Walk:
    """One leg's verdict and divergence."""
    steps = laid.steps if compare else tuple(without_differences(laid))
    made = msgspec.structs.replace(walk, steps=steps, outcomes={laid.branch: walk.outcomes.get(laid.branch, walk.verdict)})
    if arrived:
        if walk.first_divergence is not None and walk.first_divergence.cause.id == "address-twice":
            return ended(made, laid, walk.verdict, walk.first_divergence)
        if walk.verdict == "detour" or (walk.first_divergence is not None and kind_of(walk.steps[-1].decision.id) != "cause"):
            # Past a wrong decision: somebody brought it back on its way, or answers in its place.
            return ended(made, laid, "elsewhere" if walk.verdict == "elsewhere" else "detour", walk.first_divergence)
        return ended(made, laid, "delivered", unlike(made) or overtaken(walk, laid))
    predicted = walk.first_divergence
    if predicted is not None and (came_so_far(laid) or passed(laid, predicted) or unanswered_question(laid, predicted) or just_there(laid, predicted)):
        verdict: Verdict = walk.verdict if walk.verdict in ("dropped", "lost") else "lost"
        if laid.drop is not None or seen.refused:
            verdict = "dropped"
        return ended(made, laid, verdict, with_evidence(predicted, laid, seen))
    if seen.refused and laid.last is None:
        return ended(made, laid, "dropped", refusal(laid, seen.refused, format_address(walk.dst)))
    if laid.drop is not None:
        if (narrow := too_narrow(laid, laid.drop, cluster)) is not None:
            return ended(made, laid, "dropped", narrow)
        node, device = where(laid, laid.drop)
        cause, fix = explain(laid.drop, laid.errors, cluster, node, device)
        if cause.id == "ttl-exceeded" and (short := short_lived(laid, cause)) is not None:
            return ended(made, laid, "dropped", short)
        if (policed := by_policy(laid, laid.drop, cluster)) is not None:
            return ended(made, laid, "dropped", with_evidence(policed, laid, seen))
        if cause.id == "route-missing" and predicted is None:  # there is one: the kernel says so of what a policy of xfrm blocks, too
            params = {"device": device, "reason": laid.drop.event.reason or "?", "function": laid.drop.event.function.partition("+")[0] or "?"}
            cause = Said("kernel-drops", params)
        return ended(made, laid, "dropped", Divergence(node, device, cause, evidence(laid, seen), fix))
    last = laid.last
    node, device = (last.node, last.event.device) if last is not None else (laid.steps[0].node, laid.steps[0].device)
    return ended(
        made,
        laid,
        "lost",
        predicted or waiting(laid, seen) or silent(walk, laid, cluster) or Divergence(node, device, Said("vanished", {"device": device}), evidence(laid, seen)),
    )


def waiting(laid: Laid, seen: Outcome) -> Divergence | None:
    """It was seen until a neighbour had to be asked for, and no more: nobody answers."""
    for step in laid.steps[laid.far + 1 :]:
        if step.decision.id == "neighbour-asked":
            return Divergence(step.node, step.device, Said("neighbour-failed", step.decision.params | {"state": "INCOMPLETE"}), evidence(laid, seen))
        if step.hop is not None:
            break
    return None


def silent(walk: Walk, laid: Laid, cluster: Cluster) -> Divergence | None:
    """The kernel gave it to the process of UDP mode, from the TUN device or from the socket, and dropped nothing: it is there."""
    if walk.tier != "bpf" or laid.far < 0:
        return None
    step = laid.steps[laid.far]
    tun = step if step.decision.id == "encapsulated-udp" else next((each for each in laid.steps[laid.far :] if each.decision.id == "decapsulated-udp"), None)
    if tun is None or step.decision.id not in ("encapsulated-udp", "arrives-udp"):
        return None
    port = step.decision.params["port"]
    sockets = tuple(quote(row) for row in cluster.tables[step.node].node.sockets if str(row.port) == port)
    return Divergence(step.node, tun.device, Said("process-silent", {"device": tun.device, "port": port}), sockets)


def without_differences(laid: Laid) -> list[object]:
    return [msgspec.structs.replace(step, seen=tuple(msgspec.structs.replace(each, differs=()) for each in step.seen)) for step in laid.steps]


def ended(walk: Walk, laid: Laid, verdict: Verdict, divergence: Divergence | None) -> Walk:
    if divergence is not None and not divergence.device and laid.last is not None and laid.last.node == divergence.node:
        divergence = msgspec.structs.replace(divergence, device=laid.last.event.device)
    return msgspec.structs.replace(walk, verdict=verdict, first_divergence=divergence, outcomes={laid.branch: verdict})


def came_so_far(laid: Laid) -> bool:
    """Whether it was seen at the last place before the step that fails, or there are none before it."""
    places = [number for number, step in enumerate(laid.steps[:-1]) if step.hop is not None]
    return not places or laid.far >= places[-1]


def unanswered_question(laid: Laid, found: Divergence) -> bool:
    """Whether it was dropped because nobody answered for its next hop, on the very node where tables say what is in the way."""
    drop = laid.drop
    asked = drop is not None and drop.event.function.startswith("neigh_")
    return drop is not None and asked and drop.node.partition("/")[0] == found.node.partition("/")[0]


def just_there(laid: Laid, found: Divergence) -> bool:
    """Whether it was dropped at the very device that tables name, though it was not seen on all of its way there."""
    return laid.drop is not None and (laid.drop.node, laid.drop.event.device) == (found.node, found.device)


def too_narrow(laid: Laid, drop: Sight, cluster: Cluster) -> Divergence | None:
    """The wire had no room: the next device on the way has a smaller MTU than the one that sent the frame."""
    following = next((step for step in laid.steps[laid.far + 1 :] if step.hop is not None), None)
    if drop.node or following is None or laid.last is None or not drop.event.function.startswith(FORWARDS_TO_PEER):
        return None
    size, tables = drop.event.size - ETHERNET, cluster.tables[following.node]
    mtu, other = tables.mtu(following.device), cluster.tables[laid.last.node].mtu(laid.last.event.device)
    if mtu is None or other is None or mtu >= size or other < size:
        return None
    row = tables.devices[following.device]
    params = {"size": str(size), "mtu": str(mtu), "device": following.device}
    evidence = (Quote(row.source, row.text.split("\n")[0]), Quote("kfree_skb", f"{drop.event.device}: {drop.event.reason} {drop.event.function}"))
    fix = (Fix(following.node, f"ip link set {following.device} mtu {other}"),)
    return Divergence(following.node, following.device, Said("mtu-exceeded", params), evidence, fix)


def by_policy(laid: Laid, drop: Sight, cluster: Cluster) -> Divergence | None:
    """The IPsec policy that stopped it, where tables do not tell whether one does: what it asks is not known, or it transforms and has no keys."""
    if not (drop.event.reason.startswith("XFRM_POLICY") or drop.event.function.startswith("dst_discard")):
        return None
    told = ((step, said) for step in laid.steps if step.node == drop.node for said in step.assumptions if said.id == "ipsec-not-evaluated")
    for step, said in told:
        for row in cluster.tables[step.node].node.policies:
            if xfrm.selector(row) == said.params["policy"]:
                blocks = Said("ipsec-blocks", {"device": step.device, "direction": row.direction})
                cause = Said("ipsec-without-keys", {"device": step.device}) if row.transforms and row.direction == "out" else blocks
                return Divergence(step.node, step.device, cause, (Quote(row.source, row.text),), (Fix(step.node, xfrm.removal(row)),))
    return None


def short_lived(laid: Laid, cause: Said) -> Divergence | None:
    """The sender itself gave it too small a TTL."""
    first = next((step for step in laid.steps if step.seen and step.hop is not None), None)
    names = [name for sight in first.seen for name in sight.differs] if first is not None else []
    if first is None or not any(name.endswith(("ttl", "hop_limit")) for name in names):
        return None
    key = "net/ipv4/ip_default_ttl" if any(name.endswith("ttl") for name in names) else f"net/ipv6/conf/{first.device}/hop_limit"
    evidence = tuple(Quote(sight.event, f"{sight.node} {sight.device}: {', '.join(sight.differs)}") for sight in first.seen if sight.differs)
    return Divergence(first.node, first.device, cause, evidence, (Fix(first.node, f"sysctl -w {key}={TTL}"),))


def passed(laid: Laid, found: Divergence) -> bool:
    """Whether it was seen at or behind the place of the wrong decision."""
    at = next((number for number, step in enumerate(laid.steps) if (step.node, step.device) == (found.node, found.device)), None)
    return at is not None and at <= laid.far


def unlike(walk: Walk) -> Divergence | None:
    """The first place with other bytes than predicted."""
    for step in walk.steps:
        for sight in step.seen:
            if not sight.differs:
                continue
            evidence = (Quote(sight.event, f"{sight.node} {sight.device} {sight.direction}: {', '.join(sight.differs)}"),)
            said = Said("bytes-differ", {"device": sight.device, "fields": ", ".join(sight.differs)})
            return Divergence(step.node, step.device, said, evidence)
    return None


def overtaken(walk: Walk, laid: Laid) -> Divergence | None:
    """Tables said that it would not get through, and it did: we are wrong about the kernel."""
    found = walk.first_divergence
    if found is None:
        return None
    params = {"question": f"{found.node} {found.device}".strip(), "ours": found.cause.id, "kernel": "delivered"}
    return Divergence(found.node, found.device, Said("evaluation-differs", params), found.evidence)


def where(laid: Laid, drop: Sight) -> tuple[str, str]:
    """A drop on the wire between nodes, or before a device is chosen, counts for the device that the packet was at last. What a daemon sends (UDP
    mode) is the outer packet from its birth on, and was at none: it counts for the one that it was to leave by."""
    if drop.node and drop.event.device:
        return drop.node, drop.event.device
    last = laid.last
    node = drop.node or (last.node if last is not None else laid.steps[0].node)
    if drop.node and in_tunnel(drop):
        leaves = next((step.device for step in laid.steps if step.node == node and step.hop is not None and step.hop.tunnel is not None), "")
        return node, leaves
    return node, drop.event.device if drop.node else last.event.device if last is not None else laid.steps[0].device


def evidence(laid: Laid, seen: Outcome) -> tuple[Quote, ...]:
    """The kernel's own words about how it ended."""
    told = [sight for step in laid.steps for sight in step.seen if sight.event in ("kfree_skb", "icmp_send")]
    rows = [Quote(sight.event, words(sight)) for sight in told]
    if seen.refused:
        rows.insert(0, Quote("sendto", seen.refused))
    return tuple(rows)


def words(sight: Seen) -> str:
    place = f"{sight.node} {sight.device}".strip()
    return f"{place}: {sight.text}" if place else sight.text


def with_evidence(found: Divergence, laid: Laid, seen: Outcome) -> Divergence:
    return msgspec.structs.replace(found, evidence=(*found.evidence, *evidence(laid, seen)))


def refusal(laid: Laid, refused: str, dst: str) -> Divergence:
    """The sender's own kernel takes nothing, and tables do not say why."""
    step = laid.steps[0]
    fitting = {"route-missing": {"dst": dst}, "route-unreachable": {"dst": dst, "prefix": "?"}, "route-prohibit": {"dst": dst, "prefix": "?"}}
    fitting |= {
        "route-blackhole": {"dst": dst, "prefix": "?"},
        "firewall-drops": {"device": step.device, "hook": "output"},
        "device-down": {"device": step.device},
    }
    cause = SEND_ERRORS.get(refused, "")
    said = Said(cause, fitting[cause]) if cause in fitting else Said("kernel-drops", {"device": step.device, "reason": refused, "function": "sendto"})
    return Divergence(step.node, step.device, said, (Quote("sendto", refused),))


def unanswered(made: Walk, ways: Ways, laid: Laid, cluster: Cluster, seen: Outcome, probe: Probe) -> Walk:
    """It arrived and nothing came back: the answer failed where it was made, or there is none."""
    owner = cluster.owner(probe.dst)
    node, device = (owner.tables.name, owner.device) if owner is not None else (laid.steps[-1].node, laid.steps[-1].device)
    back = ways.back
    if back is not None and back.verdict != "delivered" and back.first_divergence is not None and not any(step.hop for step in back.steps[:-1]):
        reply = msgspec.structs.replace(back, tier=made.tier)
        return msgspec.structs.replace(made, verdict="dropped", reply=reply, first_divergence=back.first_divergence)
    found = Divergence(node, device, Said("no-answer", {"address": format_address(probe.dst)}), evidence(laid, seen))
    return msgspec.structs.replace(made, verdict="lost", first_divergence=made.first_divergence or found)
