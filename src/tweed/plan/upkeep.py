"""What puts a bridge and its ports right for the containers that are on it, when somebody has changed or removed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tweed.model import Link
from tweed.plan.attach import Facts, Hairpin, SetLink, Step, bridge_steps
from tweed.plan.attachment import Attachment, NodeNetwork, Range


def network_of(attached: Sequence[Attachment], bridge: Link | None, *, ours: bool) -> NodeNetwork:
    """As much of a network as its containers (the newest last) tell: gateways, MTU, promiscuous mode. One that was adopted
    from a bridge without addresses tells no gateway.

    `ours`: we made the bridge; of another the MTU is left alone.
    """
    newest = attached[-1]
    pairs = ((prefix, gateway) for each in attached for prefix, gateway in zip(each.addresses, each.gateways, strict=False))
    ranges = dict.fromkeys(Range.whole(prefix, gateway) for prefix, gateway in pairs)
    mtu = newest.mtu if bridge is None or (ours and newest.mtu) else bridge.mtu
    return NodeNetwork(None, None, mtu, newest.bridge, ranges=tuple((each,) for each in ranges), promisc=any(each.promisc for each in attached))


def steps(attached: Sequence[Attachment], network: NodeNetwork, facts: Facts, ports: Mapping[str, Link]) -> tuple[Step, ...]:
    """All that is to be done, in order; nothing when all is as attaching left it.

    `attached`: the containers on one bridge, `network` what they tell of it, `ports` the node's veths by name; a container whose veth is
    gone is left to its runtime. Raises Refused when something that is no bridge has the bridge's name.
    """
    if facts.bridge is None and not network.ranges:
        return ()  # nobody knows what it was like
    found = list(bridge_steps(network, facts)) if network.ranges else []
    for each in attached:
        port = ports.get(each.host_name)
        if port is None:
            continue
        moved = facts.bridge is None or port.master != facts.bridge.index
        wrong = SetLink(
            port.name,
            up=None if port.up else True,
            mtu=each.mtu if each.mtu and port.mtu != each.mtu else None,
            master=each.bridge if moved else None,
        )
        if wrong != SetLink(port.name):
            found.append(Step(wrong))
        if each.hairpin and (moved or not port.hairpin):
            found.append(Step(Hairpin(port.name)))
    return tuple(found)
