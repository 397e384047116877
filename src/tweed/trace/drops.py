"""Why a packet was dropped, by what the kernel said of it: its reason and its function. Pure.

Kernels differ in how many reasons they tell apart (6.1 knows a third of those of 6.18, and says NOT_SPECIFIED for the rest), their functions
have kept their names: the reason is asked first, then the place.
"""

from __future__ import annotations

from collections.abc import Mapping

from tweed.addr import format_address, format_mac, parse_address
from tweed.trace.cluster import Cluster
from tweed.trace.events import ICMP_SENT
from tweed.trace.inside import veth_of
from tweed.trace.result import Fix, Said
from tweed.trace.sights import NETWORKS, Sight
from tweed.trace.snapshot import DeviceRow
from tweed.trace.tables import Tables

# A reason's first words, or a function's, and the cause. The first that fits decides.
REASONS = (
    ("NETFILTER_DROP", "firewall-drops"),
    ("IP_RPFILTER", "rp-filter"),
    ("PKT_TOO_BIG", "mtu-exceeded"),
    ("VXLAN_VNI_NOT_FOUND", "vni-mismatch"),
    ("VXLAN_NO_REMOTE", "fdb-missing"),
    ("LOCAL_MAC", "vtep-mac-duplicate"),
    ("OTHERHOST", "wrong-mac"),
    ("NEIGH_", "neighbour-failed"),
    ("IP_OUTNOROUTES", "route-missing"),
    ("IP_INNOROUTES", "route-missing"),
    ("IP_NOROUTES", "route-missing"),
    ("IP_LOCAL_SOURCE", "underlay-source-dropped"),
    ("IP_INVALID_SOURCE", "underlay-source-dropped"),
    ("BRIDGE_INGRESS_STP_STATE", "bridge-port-blocked"),
)
FUNCTIONS = (
    (("nf_hook_slow", "nft_do_chain", "ipt_do_table", "ip6t_do_table", "ebt_do_table"), "firewall-drops"),
    (("vxlan_rcv",), "vni-mismatch"),
    (("vxlan_xmit",), "fdb-missing"),
    (("neigh_", "arp_error_report", "ndisc_error_report"), "neighbour-failed"),
    (("ip_error", "ip6_pkt_drop", "ip6_pkt_discard"), "route-missing"),
)
FORWARDS_TO_PEER = ("__dev_forward_skb", "veth_forward_skb", "veth_xmit")
ETHERNET = 14
# ICMP type and code, of IPv4 and IPv6 (RFC 792, RFC 4443), where they say more than the place.
ERRORS = {
    4: {(11, 0): "ttl-exceeded", (3, 4): "mtu-exceeded", (3, 13): "firewall-drops"},
    6: {(3, 0): "ttl-exceeded", (2, 0): "mtu-exceeded", (1, 1): "firewall-drops"},
}
# What a filter is removed with, by the first words of the drop's reason.
REMOVALS = {
    "TC_INGRESS": "tc filter del dev {device} ingress",
    "TC_EGRESS": "tc filter del dev {device} egress",
    "QDISC_": "tc qdisc del dev {device} root",
    "XDP": "ip link set dev {device} xdp off",
}
# sendto(2) that fails says it of the sender's own namespace.
SEND_ERRORS: Mapping[str, str] = {
    "ENETUNREACH": "route-missing",
    "EINVAL": "route-blackhole",
    "EACCES": "route-prohibit",
    "EHOSTUNREACH": "route-unreachable",
    "EMSGSIZE": "mtu-exceeded",
    "EPERM": "firewall-drops",
    "ENETDOWN": "device-down",
}


def cause_of(reason: str, function: str, error: tuple[int, int] | None = None, family: int = 4) -> str:
    """An id of vocabulary.CAUSES, or "wrong-mac" where the device decides which. `error`: type and code of the ICMP error of a family about it."""
    name = function.partition("+")[0]
    for words, cause in REASONS:
        if reason.startswith(words):
            return cause
    for names, cause in FUNCTIONS:
        if name.startswith(names):
            return cause
    return ERRORS[family].get(error, "kernel-drops") if error is not None else "kernel-drops"


def explain(sight: Sight, errors: tuple[Sight, ...], cluster: Cluster, node: str, device: str) -> tuple[Said, tuple[Fix, ...]]:
    """The cause of a drop with its parameters, and what removes it where that follows from the drop alone. `node`, `device`: where it counts."""
    event = sight.event
    network = sight.inner
    cause = cause_of(event.reason, event.function, error_of(errors), 6 if network is not None and network.name == "ipv6" else 4)
    tables = cluster.tables.get(node)
    dst = format_address(network.octets("dst")) if network is not None else "?"
    src = format_address(network.octets("src")) if network is not None else "?"
    ethernet = sight.packet.find("ethernet", sight.packet.levels - 1) if sight.packet is not None else None
    mac = format_mac(ethernet.octets("dst")) if ethernet is not None else "?"
    own = tables.mac(device) if tables is not None else None
    right = format_mac(own) if own is not None else "?"
    if cause == "wrong-mac":
        vxlan = tables is not None and tables.kind(device)[0] == "vxlan"
        if vxlan:
            return Said("vtep-mac-stale", {"mac": mac, "right": right, "device": device}), ()
        return Said("underlay-neighbour-wrong", {"address": dst, "mac": mac, "right": right}), ()
    if event.function.startswith(FORWARDS_TO_PEER) and (peer := peer_of(cluster, node, device)) is not None:
        at, row = peer
        if row.up is False:
            return Said("device-down", {"device": row.name}), (Fix(at, f"ip link set {row.name} up"),)
        if row.mtu is not None and event.size - ETHERNET > row.mtu:
            return Said("mtu-exceeded", {"size": str(event.size - ETHERNET), "mtu": str(row.mtu), "device": row.name}), ()
    vxlan_layer = sight.packet.find("vxlan") if sight.packet is not None else None
    mtu = tables.mtu(device) if tables is not None else None
    params = {
        "firewall-drops": {"device": device, "hook": event.function.partition("+")[0] or "?"},
        "rp-filter": {"src": src, "device": device, "other": "?"},
        "mtu-exceeded": {"size": str(event.size - ETHERNET), "mtu": str(mtu or "?"), "device": device},
        "vni-mismatch": {"vni": str(vxlan_layer.number("vni")) if vxlan_layer is not None else "?", "right": "?", "device": device},
        "fdb-missing": {"mac": mac, "device": device},
        "vtep-mac-duplicate": {"mac": mac, "device": device},
        "neighbour-failed": {"address": next_hop(sight, tables) or dst, "device": device, "state": "FAILED"},
        "route-missing": {"dst": dst},
        "underlay-source-dropped": {"address": src, "device": device},
        "bridge-port-blocked": {"port": device, "state": "blocking"},
        "ttl-exceeded": {"dst": dst},
    }
    if cause == "neighbour-failed":
        return Said(cause, params[cause]), told_by_hand(cluster, node, device, params[cause]["address"])
    if cause in params:
        return Said(cause, params[cause]), ()
    fixes = tuple(Fix(node, command.format(device=device)) for words, command in REMOVALS.items() if event.reason.startswith(words) and device)
    return Said("kernel-drops", {"device": device, "reason": event.reason or "?", "function": event.function.partition("+")[0] or "?"}), fixes


def told_by_hand(cluster: Cluster, node: str, device: str, address: str) -> tuple[Fix, ...]:
    """Whose MAC is known need not answer for itself."""
    owner = cluster.owner(parse_address(address)) if address != "?" else None
    mac = owner.tables.mac(owner.device) if owner is not None else None
    if mac is None:
        return ()
    ip = "ip -6" if ":" in address else "ip"
    return (Fix(node, f"{ip} neigh replace {address} lladdr {format_mac(mac)} dev {device} nud permanent"),)


def next_hop(sight: Sight, tables: Tables | None) -> str:
    """Whom the node asks for with what it sends: the gateway, else the destination of the outermost header. "" where that is not to be told."""
    outer = next((layer for layer in sight.packet.layers if layer.name in NETWORKS), None) if sight.packet is not None else None
    if outer is None:
        return ""
    hops = tables.lookup(outer.octets("dst")).hops if tables is not None else ()
    return format_address((hops[0].gateway if hops else None) or outer.octets("dst"))


def error_of(errors: tuple[Sight, ...]) -> tuple[int, int] | None:
    """Type and code of the ICMP error: as it was born (IPv4 has a tracepoint for that), else as it was sent."""
    for sight in errors:
        if sight.event.kind == ICMP_SENT:
            return sight.event.code >> 8, sight.event.code & 255
        layer = sight.packet.find("icmpv6") or sight.packet.find("icmp") if sight.packet is not None else None
        if layer is not None and layer.get("type") is not None and layer.get("code") is not None:
            return layer.number("type"), layer.number("code")
    return None


def peer_of(cluster: Cluster, node: str, device: str) -> tuple[str, DeviceRow] | None:
    """The other end of a veth between a container and its node: where it is, and its row."""
    here = cluster.tables.get(node)
    if here is None:
        return None
    host = cluster.host_of(here)
    if host is not here:
        row = veth_of(host, here, device)
        return (host.name, row) if row is not None else None
    for name, inside in cluster.tables.items():
        if inside.node.host != node:
            continue
        for each in inside.devices.values():
            row = veth_of(here, inside, each.name)
            if row is not None and row.name == device:
                return name, each
    return None
