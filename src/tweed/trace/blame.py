"""Which firewall rule drops a probe: more are sent, and the node's nftables are asked about them, and the counters of iptables' old tables."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping

import msgspec

from tweed.errors import KernelError
from tweed.kernel import iptables
from tweed.kernel.netns import run_in
from tweed.kernel.nfttrace import Culprit, RuleTrace
from tweed.trace import probe as shots
from tweed.trace.firewall import Chain, Rule
from tweed.trace.probe import Shot
from tweed.trace.result import Divergence, Fix, Quote, Said
from tweed.wire.packet import INNER_AT, Carried

ANSWER_S = 0.5
SETTLE_S = 0.05
SHOTS = 3  # whose counter rises by as many has met them all; other traffic seldom does that in so short a time
COUNTED = re.compile(r"\[(?P<packets>\d+):\d+\] (?P<rule>-A (?P<chain>\S+) .*-j (?:DROP|REJECT)\b.*)|:(?P<base>\S+) DROP \[(?P<passed>\d+):\d+\]")
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
    if culprit is not None:
        return named(found, culprit)
    counted = by_counters(shot, source, node)
    return found if counted is None else counted_out(found, *counted, shot.probe.dst)


def by_counters(shot: Shot, source: int | None, node: int | None) -> tuple[Chain, Rule | None] | None:
    """The one rule (or policy: None) of the old tables that dropped all of a few probes; None where there are several such, or none."""
    with contextlib.suppress(KernelError), shots.opened(shot, source) as opened:
        before = counters() if node is None else run_in(node, counters)
        for _ in range(SHOTS if before else 0):
            shots.send(opened, shot)
        time.sleep(SETTLE_S)
        after = counters() if node is None else run_in(node, counters)
        risen = [(chain, rule) for place, (packets, chain, rule) in after.items() if place in before and packets - before[place][0] >= SHOTS]
        if len(risen) == 1:
            return risen[0]
    return None


def counters() -> dict[tuple[str, str, int], tuple[int, Chain, Rule | None]]:
    """How many packets each rule and policy of the old tables dropped so far, by program, table and line."""
    found: dict[tuple[str, str, int], tuple[int, Chain, Rule | None]] = {}
    for program, text in iptables.legacy_rules(counters=True):
        table = ""
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("*"):
                table = line[1:]
            elif (told := COUNTED.fullmatch(line)) is not None:
                family, chain, source = ("ip6" if program.startswith("ip6") else "ip"), told["chain"] or told["base"], f"{program}-save:{number}"
                rule = Rule((), Quote(source, told["rule"])) if told["rule"] else None
                quote = Quote(source, line.partition(" [")[0])
                found[program, table, number] = int(told["packets"] or told["passed"]), Chain(family, table, chain, [], quote=quote, program=program), rule
    return found


def counted_out(found: Divergence, chain: Chain, rule: Rule | None, dst: bytes) -> Divergence:
    said = Said("firewall-drops", found.cause.params | {"hook": chain.place})
    commands = chain.passage(dst) if rule is None else (chain.removal(rule),)
    fix = tuple(Fix(found.node, command) for command in commands if command is not None)
    return Divergence(found.node, found.device, said, (chain.quote if rule is None else rule.quote, *found.evidence), fix)


def named(found: Divergence, culprit: Culprit) -> Divergence:
    hook = f"{culprit.family} {culprit.table} {culprit.chain}"
    said = Said("firewall-drops", found.cause.params | {"hook": hook})
    rule = Quote(f"nft {hook}{f' handle {culprit.handle}' if culprit.handle is not None else ''}", culprit.text)
    return Divergence(found.node, found.device, said, (rule, *found.evidence), (Fix(found.node, culprit.command),))
