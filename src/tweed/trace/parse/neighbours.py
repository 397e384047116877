"""`ip neigh`, `bridge fdb`, `ss -uln` and `sysctl -a`: tables whose rows are one line."""

from __future__ import annotations

import re
from typing import Any

from tweed.addr import parse_address, parse_mac
from tweed.model import NUD_NAMES
from tweed.trace.parse.words import Where, Words, mac_or_none, number, number_or_none, optional, string, strings, vocabulary
from tweed.trace.snapshot import FdbRow, NeighbourRow, SocketRow, SysctlRow

NUD = frozenset(NUD_NAMES.values()) | {"NONE"}
NEIGHBOUR_FLAGS = vocabulary("router proxy extern_learn offload managed extern_valid")
FDB_STATES = vocabulary("permanent static stale dynamic")
FDB_FLAGS = vocabulary("offload extern_learn sticky added_by_user router locked activity_notify inactive")
SYSCTL = re.compile(r"((?:net|kernel|fs|vm|dev|user|debug|abi|sunrpc|crypto)[./][^\s=]+)\s*=\s*(.*)")
SOCKET_STATES = ("UNCONN", "ESTAB", "LISTEN")


def neighbour(where: Where) -> NeighbourRow:
    """`10.244.2.0 dev flannel.1 lladdr 86:22:66:41:77:3d PERMANENT`. The device is left out when the command names it."""
    words = Words(where.text)
    fields: dict[str, Any] = {"address": parse_address(words.take()), "device": where.device}
    flags = []
    while words:
        word = words.take()
        if word == "dev":
            fields["device"] = words.take()
        elif word == "lladdr":
            fields["mac"] = mac_or_none(words.take())
        elif word in ("ref", "probes", "used", "protocol", "proto"):
            words.take()
        elif word in NUD:
            fields["state"] = word
        elif word in NEIGHBOUR_FLAGS:
            flags.append(word)
        else:
            raise ValueError(f"{word!r} is no word of ip neigh")
    return NeighbourRow(**where.at, **fields, flags=tuple(flags))


def neighbour_json(fields: dict[str, Any], where: Where) -> NeighbourRow:
    states = strings(fields.get("state"))
    return NeighbourRow(
        **where.at,
        address=parse_address(string(fields["dst"])),
        device=optional(fields.get("dev")) or where.device,
        mac=mac_or_none(fields.get("lladdr")),
        state=states[0] if states else None,
        flags=tuple(flag for flag in sorted(NEIGHBOUR_FLAGS) if flag in fields),
    )


def fdb(where: Where) -> FdbRow:
    """`86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 self permanent`. The device is left out when the command names it."""
    words = Words(where.text)
    fields: dict[str, Any] = {"mac": parse_mac(words.take()), "master": where.master}
    device, flags = where.device, []
    while words:
        word = words.take()
        if word == "dev":
            device = words.take()
        elif word == "dst":
            fields["dst"] = parse_address(words.take())
        elif word in ("vlan", "port", "vni", "src_vni"):
            fields[word] = words.number()
        elif word in ("nhid", "nh_id"):
            fields["nexthop_id"] = words.number()
        elif word == "via":
            fields["via"] = words.take()
        elif word == "self":
            fields["own"] = True
        elif word == "master":
            # An old iproute2 names no bridge.
            fields["master"] = words.take() if words and words.peek() not in FDB_STATES | FDB_FLAGS | {"vlan", "self"} else where.master or ""
        elif word in FDB_STATES:
            fields["state"] = word
        elif word in ("used", "link-netnsid"):
            words.take()
        elif word in FDB_FLAGS:
            flags.append(word)
        else:
            raise ValueError(f"{word!r} is no word of bridge fdb")
    if device is None:
        raise ValueError("it names no device, and no command line before it does")
    if fields.get("own"):
        fields["master"] = fields["master"] if "master " in where.text else None
    return FdbRow(**where.at, device=device, **fields, flags=tuple(flags))


def fdb_json(fields: dict[str, Any], where: Where) -> FdbRow:
    flags = strings(fields.get("flags"))
    device = optional(fields.get("ifname")) or where.device
    if device is None:
        raise ValueError("it has no ifname, and no command line before it names a device")
    return FdbRow(
        **where.at,
        mac=parse_mac(string(fields["mac"])),
        device=device,
        dst=parse_address(fields["dst"]) if "dst" in fields else None,
        vlan=number_or_none(fields.get("vlan")),
        port=number_or_none(fields.get("port")),
        vni=number_or_none(fields.get("vni")),
        src_vni=number_or_none(fields.get("src_vni")),
        via=optional(fields.get("viaIf")),
        nexthop_id=number_or_none(fields.get("nhid")),
        master=optional(fields.get("master")) or (where.master if "self" not in flags else None),
        own="self" in flags,
        state=optional(fields.get("state")) or None,
        flags=tuple(flag for flag in flags if flag not in ("self", "master")),
    )


def socket(where: Where) -> SocketRow:
    """`UNCONN 0 0 0.0.0.0:8472 0.0.0.0:*`, of ss with or without its first column, or of netstat."""
    words = where.text.split()
    if words[0] in ("udp", "udp6"):
        words = words[1:]
    if words[0] in SOCKET_STATES:
        words = words[1:]
    if len(words) < 3:
        raise ValueError("it has too few columns for ss -uln")
    local = words[2]
    host, _, port = local.rpartition(":")
    host, _, device = host.replace("[", "").replace("]", "").partition("%")
    process = " ".join(words[4:]) or None
    return SocketRow(
        **where.at,
        port=number(port),
        address=None if host in ("*", "") else parse_address(host),
        device=device or None,
        process=process,
    )


def sysctl(where: Where) -> SysctlRow:
    """`net.ipv4.conf.flannel/1.rp_filter = 0`: a dot in a device's name is written as a slash (sysctl.d(5))."""
    matched = SYSCTL.fullmatch(where.text.strip())
    if matched is None:
        raise ValueError("it is no line of sysctl")
    key, value = matched.groups()
    if key.find("/") == -1 or 0 <= key.find(".") < key.find("/"):
        key = key.translate(str.maketrans("./", "/."))
    return SysctlRow(**where.at, key=key, value=value.strip())
