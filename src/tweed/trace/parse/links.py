"""`ip link`, `ip -d link`, `ip addr` and `bridge link`: blocks that begin with `7: cni0: <BROADCAST,UP> mtu 1450 ...`."""

from __future__ import annotations

import re
from typing import Any

from tweed.addr import Prefix, parse_address
from tweed.trace.parse.words import Where, Words, mac_or_none, number, number_or_none, optional, prefix, string, strings, vocabulary
from tweed.trace.snapshot import AddressRow, DeviceRow, PortRow, VlanRow, VxlanAttributes

HEADER = re.compile(r"(\d+):\s+([^\s:@]+)(?:\s+state\s+\S+\s+)?(?:@([^\s:]+))?\s?:\s*<([^>]*)>\s*(.*)")
BRIEF = re.compile(r"(\S+?)(?:@(\S+))?\s+(UP|DOWN|UNKNOWN|LOWERLAYERDOWN|DORMANT|NOTPRESENT|TESTING)(?:\s+(.*))?")
ADDRESS_FLAGS = vocabulary("secondary temporary tentative deprecated dadfailed dynamic permanent noprefixroute mngtmpaddr home nodad optimistic stable-privacy")
# First words of the lines of a block that are neither an address nor the kind of the device.
NO_KIND = vocabulary("alias altname vf RX: TX: RX TX addrgenmode valid_lft numtxqueues gso_max_size parentbus link-netns promiscuity")
STATES = ("disabled", "listening", "learning", "forwarding", "blocking")


def block(where: Where) -> tuple[DeviceRow, list[AddressRow]]:
    """A device and its addresses, from all lines of its block."""
    head, *rest = where.text.split("\n")
    matched = HEADER.fullmatch(head.strip())
    if matched is None:
        raise ValueError("it is no header of a device")
    index, name, lower, flags, tail = matched.groups()
    fields = device(flags.split(","), {"name": name, "index": int(index), "lower": lower}, tail)
    base, _, start = where.source.rpartition(":")
    addresses = []
    detailed = any("promiscuity" in line for line in (tail, *rest))
    for offset, line in enumerate(rest, 1):
        text = line.strip()
        first = text.split(maxsplit=1)[0] if text else ""
        if first.startswith("link/"):
            link_line(Words(text), fields)
        elif first in ("inet", "inet6"):
            addresses.append(address(Words(text), {"source": f"{base}:{int(start) + offset}", "text": text}, name))
        elif first == "vxlan" and " id " in f" {text} ":
            fields |= {"kind": "vxlan", "vxlan": vxlan(Words(text))}
        elif first == "vlan" and " id " in text:
            fields |= {"kind": "vlan", "vlan_id": number(text.split(" id ")[1].split()[0])}
        elif first == "bridge" and ("forward_delay" in text or "ageing_time" in text):
            filtering = re.search(r"vlan_filtering (\d)", text)
            fields |= {"kind": "bridge", "vlan_filtering": None if filtering is None else filtering[1] == "1"}
        elif detailed and "kind" not in fields and first and first not in NO_KIND and not first.endswith("_slave") and first[0].isalpha():
            fields["kind"] = first
    if detailed:
        fields.setdefault("kind", "")
    text = "\n".join(line.rstrip() for line in where.text.split("\n"))
    return DeviceRow(source=where.source, text=text, **fields), addresses


def device(flags: list[str], fields: dict[str, Any], tail: str) -> dict[str, Any]:
    """What the flags and the words after them say. "NO-CARRIER" and missing LOWER_UP: no carrier."""
    fields |= {"up": "UP" in flags, "running": "LOWER_UP" in flags, "point_to_point": "POINTOPOINT" in flags}
    words = Words(tail)
    while words:
        word = words.take()
        if word == "mtu":
            fields["mtu"] = words.number()
        elif word == "master":
            fields["master"] = words.take()
    return fields


def link_line(words: Words, fields: dict[str, Any]) -> None:
    """`link/ether 86:22:66:41:77:3d brd ff:ff:ff:ff:ff:ff link-netnsid 0 promiscuity 1`"""
    words.take()
    if words:
        fields["mac"] = mac_or_none(words.take())
    while words:
        if words.take() in ("link-netnsid", "link-netns") and words:
            fields["lower_netns"] = words.take()


def address(words: Words, at: dict[str, str], device: str) -> AddressRow:
    """`inet 10.244.0.1/24 brd 10.244.0.255 scope global cni0`, `inet 10.0.0.1 peer 10.0.0.2/32 ...`"""
    words.take()
    own, peer = prefix(words.take()), None
    scope, flags = None, []
    while words:
        word = words.take()
        if word == "peer":
            peer = prefix(words.take())
            own = Prefix(own.address, 8 * len(own.address))
        elif word == "scope":
            scope = words.take()
        elif word in ("brd", "any", "metric", "proto"):
            words.take()
        elif word in ADDRESS_FLAGS:
            flags.append(word)
    return AddressRow(**at, device=device, address=own, peer=peer, scope=scope, flags=tuple(flags))


def vxlan(words: Words) -> VxlanAttributes:
    """The vxlan line of `ip -d link`. Before iproute2 5.x an absent `nolearning` was all that told learning."""
    fields: dict[str, Any] = {"learning": True, "gbp": False, "external": False}
    while words:
        word = words.take()
        if word == "id":
            fields["vni"] = words.number()
        elif word in ("local", "local6"):
            fields["local"] = parse_address(words.take())
        elif word in ("group", "remote", "group6", "remote6"):
            fields["group"] = parse_address(words.take())
        elif word == "dev":
            fields["underlay"] = words.take()
        elif word == "srcport":
            words.take()
            words.take()
        elif word == "dstport":
            fields["port"] = words.number()
        elif word in ("learning", "nolearning"):
            fields["learning"] = word == "learning"
        elif word == "ttl":
            value = words.take()
            fields["ttl"] = None if value in ("auto", "inherit") else number(value)
        elif word == "df":
            fields["df"] = words.take()
        elif word in ("udpcsum", "noudpcsum"):
            fields["checksum"] = word == "udpcsum"
        elif word in ("gbp", "external"):
            fields[word] = True
        elif word == "addrgenmode":
            break
    return VxlanAttributes(**fields)


def brief(where: Where) -> tuple[DeviceRow, list[AddressRow]]:
    """A line of `ip -br link` or `ip -br addr`: name, state, then a MAC and flags, or addresses."""
    matched = BRIEF.fullmatch(where.text.strip())
    if matched is None:
        raise ValueError("it is no line of ip -br")
    name, lower, state, rest = matched.groups()
    fields: dict[str, Any] = {"name": name, "lower": lower}
    addresses = []
    for word in (rest or "").split():
        if word.startswith("<"):
            device(word.strip("<>").split(","), fields, "")
        elif (mac := mac_or_none(word)) is not None:
            fields["mac"] = mac
        elif "/" in word:
            addresses.append(AddressRow(**where.at, device=name, address=prefix(word)))
    if state == "UP":
        fields |= {"up": True, "running": True}
    return DeviceRow(**where.at, **fields), addresses


def block_json(fields: dict[str, Any], where: Where) -> tuple[DeviceRow, list[AddressRow]]:
    """One element of `ip -j link`, `ip -d -j link` or `ip -j addr`."""
    name = string(fields["ifname"])
    index = fields.get("link_index")
    flags = strings(fields.get("flags"))
    info = fields.get("linkinfo") or {}
    data = info.get("info_data") or {}
    kind = info.get("info_kind", "" if "promiscuity" in fields else None)
    row = DeviceRow(
        **where.at,
        name=name,
        index=number_or_none(fields.get("ifindex")),
        kind=kind,
        mac=mac_or_none(fields.get("address")),
        mtu=number_or_none(fields.get("mtu")),
        up="UP" in flags,
        running="LOWER_UP" in flags,
        point_to_point="POINTOPOINT" in flags,
        master=optional(fields.get("master")),
        lower=optional(fields.get("link")) or (f"if{number(index)}" if index is not None else None),
        lower_netns=str(fields["link_netnsid"]) if "link_netnsid" in fields else None,
        vxlan=vxlan_json(data) if kind == "vxlan" else None,
        vlan_filtering=bool(data["vlan_filtering"]) if "vlan_filtering" in data else None,
        vlan_id=number(data["id"]) if kind == "vlan" and "id" in data else None,
    )
    addresses = []
    for each in fields.get("addr_info") or []:
        if not each:
            continue
        own = Prefix.parse(f"{string(each['local'])}/{number(each['prefixlen'])}")
        peer = each.get("address")
        addresses.append(
            AddressRow(
                **where.at,
                device=name,
                address=Prefix(own.address, own.bits) if peer else own,
                peer=Prefix.parse(f"{peer}/{own.length}") if peer else None,
                scope=optional(each.get("scope")),
                flags=tuple(flag for flag in sorted(ADDRESS_FLAGS) if each.get(flag) is True),
            )
        )
    return row, addresses


def vxlan_json(data: dict[str, Any]) -> VxlanAttributes:
    local = data.get("local") or data.get("local6")
    group = data.get("group") or data.get("group6") or data.get("remote") or data.get("remote6")
    ttl = data.get("ttl")
    return VxlanAttributes(
        vni=number_or_none(data.get("id")),
        port=number_or_none(data.get("port")),
        local=parse_address(local) if local else None,
        group=parse_address(group) if group else None,
        underlay=optional(data.get("link")),
        learning=bool(data["learning"]) if "learning" in data else None,
        ttl=ttl if isinstance(ttl, int) and ttl else None,
        checksum=data.get("udp_csum"),
        gbp=bool(data.get("gbp")),
        external=bool(data.get("external")),
        df=None if data.get("df") == "unset" else optional(data.get("df")),
    )


# ---- bridge link --------------------------------------------------------------------------------------------------------


def port(where: Where) -> PortRow:
    """`5: veth0@if4: <BROADCAST,UP> mtu 1450 master cni0 state forwarding priority 32 cost 2`, with `-d` more lines."""
    head, *rest = where.text.split("\n")
    matched = HEADER.fullmatch(head.strip())
    if matched is None:
        raise ValueError("it is no line of bridge link")
    words = f"{matched[5]} {' '.join(rest)}"
    master, state = (re.search(rf"\b{name} (\S+)", words) for name in ("master", "state"))
    hairpin, isolated = (re.search(rf"\b{name} (on|off)\b", words) for name in ("hairpin", "isolated"))
    return PortRow(
        **where.at,
        device=matched[2],
        master=master[1] if master else None,
        state=state[1] if state and state[1] in STATES else None,
        hairpin=hairpin[1] == "on" if hairpin else None,
        isolated=isolated[1] == "on" if isolated else None,
    )


def vlan(where: Where) -> VlanRow:
    """`veth1   1 PVID Egress Untagged`; a further VLAN of the same port is a line without its name, which `where.device` then has."""
    words = Words(where.text)
    device = where.device if words.peek()[:1].isdigit() and where.device is not None else words.take()
    first, _, last = words.take().partition("-")
    rest = words.words[words.position :]
    if not set(rest) <= {"PVID", "Egress", "Untagged"}:
        raise ValueError(f"{' '.join(rest)[:40]!r} is nothing that bridge vlan says")
    return VlanRow(**where.at, device=device, first=number(first), last=number(last or first), pvid="PVID" in rest, untagged="Untagged" in rest)


def vlans_json(fields: dict[str, Any], where: Where) -> list[VlanRow]:
    """One element of `bridge -j vlan`: a port with all its VLANs."""
    made = []
    for each in fields["vlans"]:
        flags = strings(each.get("flags"))
        first = number(each["vlan"])
        made.append(
            VlanRow(
                **where.at,
                device=string(fields["ifname"]),
                first=first,
                last=number(each.get("vlanEnd", first)),
                pvid="PVID" in flags,
                untagged="Egress Untagged" in flags,
            )
        )
    return made


def port_json(fields: dict[str, Any], where: Where) -> PortRow:
    return PortRow(
        **where.at,
        device=string(fields["ifname"]),
        master=optional(fields.get("master")),
        state=optional(fields.get("state")),
        hairpin=fields.get("hairpin"),
        isolated=fields.get("isolated"),
    )
