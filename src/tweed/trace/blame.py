"""Which firewall rule drops a probe: another one is sent, and the node's nftables are asked about it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tweed.errors import KernelError
from tweed.kernel.netns import run_in
from tweed.kernel.nfttrace import Culprit, RuleTrace
from tweed.trace import probe as shots
from tweed.trace.probe import Shot
from tweed.trace.result import Divergence, Fix, Quote, Said
from tweed.wire.packet import INNER_AT, Carried

ANSWER_S = 0.5
# Bytes from a UDP header on: to the inner IP header, and the sizes of what follows.
IP_SIZES = {4: 20, 6: 40}
BEFORE_PAYLOAD = 8  # of an echo or a datagram; a SYN is told by its own first bytes


def matches(shot: Shot, tunnels: Mapping[int, Carried]) -> tuple[str, ...]:
    """nft expressions for the packet as it is, and inside a tunnel."""
    probe = shot.probe
    inside = 0 if probe.proto == "tcp" else BEFORE_PAYLOAD
    nonce = f"0x{shot.nonce.hex()}"
    plain = f"meta l4proto {shot.protocol} @th,{inside * 8},64 {nonce}"
    outer = (f"udp dport {port} @th,{(8 + INNER_AT[carried] + IP_SIZES[probe.family] + inside) * 8},64 {nonce}" for port, carried in tunnels.items())
    return (plain, *outer)


def blame(found: Divergence, shot: Shot, tunnels: Mapping[int, Carried], source: int | None, node: int | None) -> Divergence:
    """The divergence with the rule and what takes it away. `source`, `node`: namespaces of the sender and of where it is dropped."""
    try:
        made = RuleTrace(matches(shot, tunnels)) if node is None else run_in(node, lambda: RuleTrace(matches(shot, tunnels)))
    except KernelError as error:
        return msgspec.structs.replace(found, evidence=(*found.evidence, Quote("nft", str(error))))
    with made as trace, shots.opened(shot, source) as opened:
        shots.send(opened, shot)
        culprit = trace.culprit(ANSWER_S)
    return found if culprit is None else named(found, culprit)


def named(found: Divergence, culprit: Culprit) -> Divergence:
    hook = f"{culprit.family} {culprit.table} {culprit.chain}"
    said = Said("firewall-drops", found.cause.params | {"hook": hook})
    rule = Quote(f"nft {hook}{f' handle {culprit.handle}' if culprit.handle is not None else ''}", culprit.text)
    return Divergence(found.node, found.device, said, (rule, *found.evidence), (Fix(found.node, culprit.command),))
