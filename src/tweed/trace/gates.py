"""What on a node lets a packet pass, or does not, beside its routes: firewall rules, IPsec's policies, the check of its source, a setting."""

from __future__ import annotations

from tweed.addr import format_address
from tweed.trace import xfrm
from tweed.trace.cluster import Cluster
from tweed.trace.firewall import Facts, target
from tweed.trace.frames import PROTOCOLS, Probe
from tweed.trace.result import Fix, Said
from tweed.trace.rules import Flow
from tweed.trace.tables import quote
from tweed.trace.trail import Packet, Trail


class Gates(Trail):
    """The trail of one probe with what it has to pass. A question is answered True when it ends there, which the trail then has."""

    def __init__(self, cluster: Cluster, probe: Probe) -> None:
        super().__init__()
        self.cluster = cluster
        self.probe = probe
        self.src, self.dst = probe.src, probe.dst
        self.flow = Flow(PROTOCOLS[probe.proto, probe.family], probe.sport, probe.dport)

    def facts(self, iif: str, oif: str) -> Facts:
        """Of the container's packet at two devices."""
        icmp = ("echo-reply" if self.probe.reply else "echo-request") if self.probe.proto == "icmp" else ""
        state = "established" if self.probe.reply else "new"
        return Facts(self.src, self.dst, self.flow.proto or 0, self.flow.sport, self.flow.dport, iif, oif, state, icmp)

    def silent(self, packet: Packet, device: str) -> bool:
        """Whether the namespace answers no echo request at all, so that the answer that is asked for is never made."""
        key = "net/ipv4/icmp_echo_ignore_all" if len(self.src) == 4 else "net/ipv6/icmp/echo_ignore_all"
        if not self.probe.reply or self.probe.proto != "icmp" or packet.at.sysctl(key) != 1:
            return False
        params = {"address": format_address(self.src), "key": key}
        self.fail(packet, device, "dropped", "echo-ignored", params, quote(packet.at.sysctls[key]), fix=(Fix(packet.at.name, f"sysctl -w {key}=0"),))
        return True

    def stopped_by_rules(self, packet: Packet, facts: Facts, *hooks: str) -> bool:
        """Whether a firewall rule drops it, which is the end. What it cannot tell is assumed, and said with the step before."""
        at = packet.at
        for hook in hooks if at.firewall.hooked else ():
            ruling = at.firewall.verdict(hook, facts)
            if ruling.kind == "unknown" and self.steps:
                self.assume_last(Said("nft-not-evaluated"))
            if ruling.kind != "drop" or ruling.chain is None:
                continue
            chain, rule = ruling.chain, ruling.rule
            commands = chain.passage(facts.dst) if rule is None else (chain.removal(rule),)
            fix = tuple(Fix(at.name, command) for command in commands if command is not None)
            device = facts.iif or facts.oif or ""
            row = rule.quote if rule is not None else chain.quote
            self.fail(packet, device, "dropped", "firewall-drops", {"device": device, "hook": hook}, row, evidence=(chain.quote,) if rule else (), fix=fix)
            return True
        return False

    def stopped_by_policy(self, packet: Packet, facts: Facts, *directions: str) -> bool:
        """Whether a policy of IPsec blocks it, which is the end. What one does that transforms it is not known, and said with the step before."""
        at = packet.at
        for direction in directions if at.node.policies else ():
            policy, certain = xfrm.stopped(at.node.policies, direction, facts) or (None, False)
            if policy is None:
                continue
            if not certain:
                self.assume_last(Said("ipsec-not-evaluated", {"policy": xfrm.selector(policy)}))
                continue
            device = (facts.oif if direction == "out" else facts.iif) or ""
            fix = (Fix(at.name, xfrm.removal(policy)),)
            self.fail(packet, device, "dropped", "ipsec-blocks", {"device": device, "direction": direction}, quote(policy), fix=fix)
            return True
        return False

    def diverted(self, packet: Packet, facts: Facts, hook: str) -> bool:
        """Whether a rule gives what is for a container another destination, which is the end: it is not for whom it was."""
        at = packet.at
        ruling = at.firewall.translation(hook, facts) if at.firewall.hooked and self.cluster.container(facts.dst) else None
        if ruling is None or ruling.chain is None or ruling.rule is None:
            return False
        to, device = target(ruling.rule), facts.iif or facts.oif or ""
        if to == facts.dst:
            return False
        params = {"dst": format_address(facts.dst), "seen": format_address(to) if to is not None else at.name, "device": device}
        command = ruling.chain.removal(ruling.rule)
        fix = (Fix(at.name, command),) if command is not None else ()
        self.fail(packet, device, "elsewhere", "destination-replaced", params, ruling.rule.quote, evidence=(ruling.chain.quote,), fix=fix)
        return True

    def filtered(self, packet: Packet) -> bool:
        """The kernel's check of the source (fib_validate_source): an address of its own, or rp_filter. True when it ends there."""
        at, device = packet.at, packet.device
        if self.src in at.own:
            params = {"address": format_address(self.src), "device": device}
            self.fail(packet, device, "dropped", "underlay-source-dropped", params, quote(at.own[self.src]))
            return True
        if len(self.src) == 16:
            return False  # Linux has no rp_filter for IPv6
        values = [at.sysctl(f"net/ipv4/conf/{name}/rp_filter") for name in ("all", device)]
        mode = max((value for value in values if value is not None), default=None)
        if mode == 0 and None in values:
            mode = None
        if mode == 0:
            return False
        if packet.masked:
            self.note_unknown(Said("rp-filter", {"device": device}))
            return False
        back = at.lookup(self.src, src=self.dst, flow=Flow(self.flow.proto, self.flow.dport, self.flow.sport))
        if back.kind == "unknown" or device in {hop.device for hop in back.hops}:
            return False
        other = back.hops[0].device or "?" if back.hops else "?"
        strict = mode == 1 or (mode == 2 and back.kind != "unicast")
        if strict:
            key = "all" if values[0] == mode else device
            row = at.sysctls.get(f"net/ipv4/conf/{key}/rp_filter")
            fix = (Fix(at.name, f"sysctl -w net/ipv4/conf/{device}/rp_filter=2"),)
            evidence = (quote(back.row),) if back.row is not None else ()
            params = {"src": format_address(self.src), "device": device, "other": other}
            self.fail(packet, device, "dropped", "rp-filter", params, quote(row) if row is not None else None, evidence=evidence, fix=fix)
            return True
        if mode is None:
            self.note_unknown(Said("rp-filter", {"device": device}))
        return False
