"""What this process may not do and what this kernel does not have, by what does not work without it. Nothing of it ends the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tweed.kernel import sysctl
from tweed.plan.screen import Problem

# linux/capability.h; what needs SYS_ADMIN says so when it is asked for.
CAPABILITIES = (
    (12, "NET_ADMIN", "devices, routes, neighbours and nftables cannot be changed"),
    (13, "NET_RAW", "rules of legacy iptables are neither read nor written"),
)
BRIDGE_CALLS = {4: "net.bridge.bridge-nf-call-iptables", 6: "net.bridge.bridge-nf-call-ip6tables"}


def capabilities() -> int:
    """The effective ones of this process, as a bit each (proc(5), CapEff)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("CapEff:")[2].split(maxsplit=1)[0], 16)


def problems(families: tuple[int, ...], *, services: bool) -> Iterator[Problem]:
    """`services`: kube-proxy's rules on this node have to see what pods on one bridge send each other."""
    held = capabilities()
    for bit, name, consequence in CAPABILITIES:
        if not held >> bit & 1:
            yield Problem("capability", name, f"this process lacks it: {consequence}; give it to the container (securityContext.capabilities.add)")
    if services:
        yield from past_iptables(families)


def past_iptables(families: tuple[int, ...]) -> Iterator[Problem]:
    """What comes of packets between the ports of a bridge passing iptables by."""
    for family in families:
        key = BRIDGE_CALLS[family]
        if sysctl.read(key) != "1":
            why = "the module br_netfilter is not loaded" if sysctl.read(key) is None else "it is 0"
            text = f"{why}: a pod gets no answer from a Service that leads to a pod of its own node; modprobe br_netfilter, sysctl -w {key}=1"
            yield Problem("br-netfilter", key, text)
