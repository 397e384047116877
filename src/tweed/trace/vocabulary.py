"""Every id that a walk can hold, with the names of its parameters: what is decided, why a packet goes no further, what is assumed.

Programs may rely on the ids (docs/walk.md); their sentences in each language are in messages.SENTENCES.
"""

from __future__ import annotations

# What was decided at a device. Those of CAUSES end the walk.
DECISIONS: dict[str, tuple[str, ...]] = {
    # where it starts
    "source-container": ("address", "device"),
    "source-host": ("address",),
    "source-namespace": ("address", "device"),
    # ip rule, ip route. `table` is the one that answered; `gateway` is the next hop
    "route-via": ("dst", "device", "gateway", "table"),
    "route-connected": ("dst", "device", "table"),
    "route-local": ("dst", "table"),
    # ip neigh
    "neighbour": ("address", "device", "mac", "state"),
    "neighbour-asked": ("address", "device"),
    "neighbour-unknown": ("address", "device"),
    # vxlan
    "fdb": ("mac", "device", "host"),
    "fdb-default": ("mac", "device", "host"),
    "fdb-unknown": ("mac", "device"),
    "encapsulated": ("device", "host", "vni", "port"),
    "encapsulated-udp": ("device", "host", "port"),
    "underlay-via": ("host", "device", "gateway", "table"),
    "underlay-connected": ("host", "device", "table"),
    # the wire. `port` known; its sibling: nothing says which, `default` is flannel's
    "leaves-vxlan": ("device", "host", "port"),
    "leaves-vxlan-port-unknown": ("device", "host", "default"),
    "leaves-plain": ("device", "host"),
    "arrives-vxlan": ("device", "port", "vni"),
    "arrives-udp": ("device", "port"),
    "arrives-plain": ("device",),
    "decapsulated": ("device", "mac"),
    "decapsulated-udp": ("device",),
    # bridges and containers
    "enters-bridge": ("bridge", "port"),
    "enters-bridge-port-unknown": ("bridge",),
    "bridge-port": ("mac", "bridge", "port"),
    "bridge-flood": ("mac", "bridge"),
    "bridge-unknown": ("mac", "bridge"),
    "into-container": ("address", "device"),
    "delivered-host": ("address", "device"),
    "delivered-container": ("address",),
    # where the tables end
    "ends-container-unknown": ("address", "device"),
    "ends-device-kind": ("device", "kind"),
    "ends-no-routes": ("dst",),
    "ends-remote-unknown": ("address", "device"),
    "ends-source-elsewhere": ("address",),
    "ends-nexthop-object": ("id",),
    "ends-encap": ("encap", "device"),
    "ends-multicast": ("group", "device"),
}

# Why it goes no further, or not where it should: `cause` of the first divergence, and a step's decision.
CAUSES: dict[str, tuple[str, ...]] = {
    "route-missing": ("dst",),
    "route-blackhole": ("dst", "prefix"),
    "route-unreachable": ("dst", "prefix"),
    "route-prohibit": ("dst", "prefix"),
    "route-dead": ("dst", "device"),
    "route-wrong-node": ("dst", "prefix", "host"),
    "routing-loop": ("dst", "node"),
    "rule-drops": ("dst", "action"),
    "device-down": ("device",),
    "device-missing": ("device",),
    "neighbour-missing": ("address", "device"),
    "neighbour-failed": ("address", "device", "state"),
    "fdb-missing": ("mac", "device"),
    "fdb-wrong-host": ("mac", "host", "right"),
    "fdb-own-host": ("mac", "host"),
    "vtep-mac-stale": ("mac", "right", "device"),
    "vtep-mac-duplicate": ("mac", "device"),
    "vni-mismatch": ("vni", "right", "device"),
    "port-mismatch": ("port", "right", "device"),
    "port-closed": ("port", "host"),
    "process-missing": ("device",),
    "vtep-missing": ("host",),
    "local-not-ours": ("local", "device"),
    "encapsulation-loop": ("host", "device"),
    "underlay-neighbour-wrong": ("address", "mac", "right"),
    "underlay-source-dropped": ("address", "device"),
    "mtu-exceeded": ("size", "mtu", "device"),
    "rp-filter": ("src", "device", "other"),
    "forwarding-off": ("device", "key"),
    "bridge-port-blocked": ("port", "state"),
    "bridge-port-missing": ("bridge", "address"),
    "bridge-fdb-wrong": ("mac", "port", "right"),
    "bridge-port-isolated": ("port", "other"),
    "bridge-vlan": ("port", "vlan"),
    "ttl-exceeded": ("dst",),
    "ipsec-blocks": ("device", "direction"),
    "echo-ignored": ("address", "key"),
    "detour": ("node",),
    # tables against leases
    "rule-diverts": ("dst", "table", "priority"),
    "mtu-too-large": ("device", "mtu", "room"),
    "local-wrong": ("local", "right", "device"),
    "vtep-mac-wrong": ("mac", "right", "device"),
    "underlay-route-wrong": ("host", "way", "right"),
    "route-throw": ("dst", "prefix"),
    "route-leftover": ("dst", "way"),
    "gateway-wrong": ("gateway", "right", "device"),
    "address-missing": ("address", "device"),
    "address-elsewhere": ("address", "device"),
    "address-twice": ("address", "other", "device"),
    "vtep-second": ("device", "other", "port"),
    # what only a real packet shows. `function`: of the kernel, where it dropped the packet; `hook`: whose rules did
    "firewall-drops": ("device", "hook"),
    "kernel-drops": ("device", "reason", "function"),
    "ipsec-without-keys": ("device",),
    "vanished": ("device",),
    "process-silent": ("device", "port"),
    "no-answer": ("address",),
    "source-replaced": ("src", "seen", "device"),
    "destination-replaced": ("dst", "seen", "device"),
    "bytes-differ": ("device", "fields"),
    "evaluation-differs": ("question", "ours", "kernel"),
}

# What a tier of observation cannot see.
BLIND: dict[str, tuple[str, ...]] = {
    "drops": (),
    "decisions": (),
    "times-inside": (),
    "bursts": (),
    "everything-sent": (),
    "other-machines": ("nodes",),
    "clock": ("machine", "offset", "uncertainty"),
    "clock-unknown": ("machine",),
}

# Why a row that also fits did not decide.
LOSSES: dict[str, tuple[str, ...]] = {
    "shorter-prefix": ("length", "winner"),
    "higher-metric": ("metric", "winner"),
    "later-row": (),
    "later-rule": ("table",),
    "dead": ("device",),
    "other-device": ("device",),
    "suppressed": ("length",),
    "unused-mac": ("host",),
    "other-branch": (),
    "other-vlan": ("vlan",),
    "other-table": (),
}

# What a step rests on beyond rows (assumptions), or what no table says (unknowns).
ASSUMPTIONS: dict[str, tuple[str, ...]] = {
    "default-rules": (),
    "local-from-addresses": (),
    "container-sends-to-gateway": ("device",),
    "container-same-subnet": ("device",),
    "forwarding-on": ("device",),
    "device-is-vxlan": ("device",),
    "device-is-bridge": ("device",),
    "table-may-be-excerpt": ("table",),
    "neighbour-device": ("address", "device"),
    "neighbour-will-confirm": ("state",),
    "neighbour-will-ask": ("address",),
    "bridge-vlans-ignored": ("bridge",),
    "nft-not-evaluated": (),
    "ipsec-not-evaluated": ("policy",),
    "rule-not-evaluated": ("selector",),
    "only-vtep": ("device",),
    "branch": ("number", "count", "weight"),
    "copy": ("number", "count"),
    "fragmented": ("size", "mtu", "device"),
    "snat-possible": ("address",),
    "container-end-unknown": ("address",),
    "address-from-route": ("address", "device"),
    "udp-remote-from-tables": ("address",),
}
UNKNOWNS: dict[str, tuple[str, ...]] = {
    "port": ("device", "default"),
    "vni": ("device",),
    "vtep-mac": ("device",),
    "mtu": ("device",),
    "underlay-neighbour": ("address", "device"),
    "source-address": ("device",),
    "source-mac": ("device",),
    "rp-filter": ("device",),
    "container-mac": ("address",),
    "bridge-port": ("address", "bridge"),
    "peer-tables": ("host",),
}

# About the tables themselves, whatever walks.
FINDINGS: dict[str, tuple[str, ...]] = {
    "fdb-stale": ("mac", "device", "host"),
    "fdb-show-without-dev": ("command", "device", "devices"),
    "prose-names-other-bridge": ("named", "bridge"),
    "bridge-outside-overlay": ("bridge", "prefix", "ports"),
    "table-repeated": ("command", "first"),
    "vtep-mac-unknown": ("device", "command"),
    "vni-unknown": ("device", "command"),
    "port-unknown": ("device", "command"),
    "mtu-unknown": ("devices", "command"),
    "underlay-neighbours-unknown": ("devices", "command"),
    "neighbour-unused": ("address", "device"),
    "neighbour-without-fdb": ("address", "mac", "device"),
    "gateway-without-neighbour": ("address", "device"),
    "vtep-mac-differs": ("mac", "right", "host"),
    "vtep-mac-duplicate": ("mac", "nodes"),
    "vni-differs": ("vnis",),
    "port-differs": ("ports",),
    "vtep-second": ("device", "other", "port"),
    "mtu-too-large": ("device", "mtu", "underlay", "room"),
    "device-down": ("device",),
    "forwarding-off": ("key",),
    "route-shadowed": ("winner",),
    "subnet-twice": ("prefix", "nodes"),
    "fdb-two-hosts": ("mac", "device", "hosts"),
    "lease-row-missing": ("subnet",),
    "nft-evidence": ("lines",),
    "evaluation-differs": ("question", "ours", "kernel"),
}

WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "decision": DECISIONS,
    "cause": CAUSES,
    "loss": LOSSES,
    "assumption": ASSUMPTIONS,
    "unknown": UNKNOWNS,
    "finding": FINDINGS,
    "blind": BLIND,
}


def kind_of(decision: str) -> str:
    """In which table of WORDS a step's decision is."""
    return "cause" if decision in CAUSES else "decision"
