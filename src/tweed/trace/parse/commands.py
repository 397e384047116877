"""Command lines and prompts: which node speaks, and which table its next lines are.

[root@master ~]# ip neigh show dev flannel.1 //对应步骤2.
root@node1:~$ sudo ip netns exec pod1 ip -6 route
### bridge fdb show br cni0
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from tweed.trace.parse.words import vocabulary
from tweed.trace.snapshot import Shown, Table

HOST = r"(?P<host>[A-Za-z0-9][\w.-]*)"
PROMPTS = [
    re.compile(rf"\[\S+@{HOST}[^\]]*\]\s?[#$%](?:\s+|$)(?P<rest>.*)"),
    re.compile(rf"(?:\([^)]*\)\s*)?[\w.-]+@{HOST}(?::[^#$%\s]*|\s\S+)?\s?[#$%>](?:\s+|$)(?P<rest>.*)"),
    re.compile(rf"{HOST}:[~/][^#$%\s]*\s?[#$%>](?:\s+|$)(?P<rest>.*)"),
    re.compile(r"(?:(?:[bkz]?a?sh|csh)-[\d.]+|[~/]\S*\s)[#$%](?:\s+|$)(?P<rest>.*)"),  # `sh-4.2# `, `/ # `: nobody's name
    re.compile(rf"{HOST}[#>]\s+(?P<rest>(?:sudo |ip |bridge |ss |sysctl |nft ).*)"),
]
# What people put before a command to mark it as one, or to make a heading of it.
MARKS = re.compile(r"^(?:[#$%>=+*\-`:|❯➜λ~]|\d+[.)])[#$%>=+*\-`:|❯➜λ~\s]*")
# A command that we do not know, behind a prompt without a name: what follows is its output.
OTHER = re.compile(r"[$❯➜%]\s+[A-Za-z./][\w./-]*(\s.*)?")
TOOL = re.compile(r"(?:\S*/)?(ip|bridge|ss|sysctl|nft|netstat|ip6?tables(?:-legacy|-nft)?-save)$")
SUDO_WITH_VALUE = frozenset({"-u", "-g"})
EXEC = frozenset({"kubectl", "docker", "podman", "crictl", "nerdctl", "oc"})
WITH_VALUE = frozenset({"-n", "-c", "--namespace", "--container", "-p", "-l", "-u", "--context", "--kubeconfig"})

OBJECTS: dict[Table, tuple[str, ...]] = {
    "address": ("address", "addr", "a", "ad", "add", "addre"),
    "link": ("link", "l", "li", "lin"),
    "route": ("route", "r", "ro", "rou", "rout"),
    "rule": ("rule", "ru", "rul"),
    "nexthop": ("nexthop", "nexth", "nh"),
    "neighbour": ("neighbour", "neighbor", "neigh", "n", "ne", "nei"),
}
SHOW = vocabulary("show list ls lst s sh sho l li lis")


class Command(msgspec.Struct, frozen=True):
    """A prompt or a command line. `shown` None: not one whose output can be read. `netns`: `ip netns exec NETNS`, the namespace inside the node."""

    host: str | None = None
    netns: str | None = None
    shown: Shown | None = None
    family: int | None = None
    master: str | None = None
    text: str = ""


def command(line: str) -> Command | None:
    """What a line says as a prompt or command; None when it is neither."""
    text = line.strip()
    for prompt in PROMPTS:
        if (matched := prompt.fullmatch(text)) is not None:
            found = parse(matched["rest"])
            found = found or Command(text=matched["rest"])
            host = matched.groupdict().get("host")
            return msgspec.structs.replace(found, host=found.host or (host.partition(".")[0] if host else None))
    found = parse(MARKS.sub("", text).strip().rstrip("#:=`* "))
    return Command(text=text) if found is None and OTHER.fullmatch(text) else found


def parse(text: str) -> Command | None:
    """A command line of a tool that we read, without its prompt. None: it is none."""
    text = re.split(r"\s+(?://|#)|\s*;\s*$", text, maxsplit=1)[0].strip()
    pieces = re.split(r"\s*(?:\||;|&&|>)\s*", text)
    words, host, netns = unwrapped(pieces[0].split())
    if not words:
        return None
    matched = TOOL.fullmatch(words[0])
    assert matched is not None
    tool, arguments = matched[1], words[1:]
    options = []
    while arguments and arguments[0].startswith("-") and tool not in ("ss", "netstat", "sysctl"):
        options.append(arguments.pop(0))
        if options[-1] in ("-f", "-family") and arguments:
            options.append(arguments.pop(0))
        elif options[-1] in ("-n", "-netns") and arguments and tool != "nft":
            netns = arguments.pop(0)
    if tool == "ip" and arguments[:2] == ["netns", "exec"] and len(arguments) > 3:
        inner = parse(" ".join([*arguments[3:], *("|" for _ in pieces[1:2])]))
        return None if inner is None else msgspec.structs.replace(inner, host=host, netns=arguments[2], text=text)
    family = 6 if {"-6", "inet6"} & set(options) else 4 if {"-4", "inet"} & set(options) else None
    table = which(tool, arguments)
    if table is None:
        return None
    kind, arguments = table
    if kind == "":
        return Command(text=text, host=host, netns=netns)
    after = {name: arguments[at + 1] for at, name in enumerate(arguments[:-1])}
    partly = len(pieces) > 1 or narrowed(kind, arguments)
    shown = Shown(
        table=kind,
        device=after.get("dev") or after.get("oif"),
        family=family or (4 if kind in ("route", "rule") else None),
        route_table=after.get("table", "main") if kind == "route" else None,
        # Of what a pipe let through nobody knows how much is missing; words like `grep` narrow a table in ways that we do not evaluate.
        command=None if partly else text,
        excerpt=partly,
    )
    return Command(host=host, netns=netns, shown=shown, family=family, master=after.get("br") or after.get("brport"), text=text)


def unwrapped(words: list[str]) -> tuple[list[str], str | None, str | None]:
    """A command without what runs it elsewhere, and where that is: a host (ssh), a container or process (exec, nsenter). No words: no tool of ours."""
    host = netns = None
    at = next((at for at, word in enumerate(words) if TOOL.fullmatch(word)), None)
    if at is None:
        return [], None, None
    before = words[:at]
    while before[:1] == ["sudo"]:
        del before[: 3 if before[1:2] and before[1] in SUDO_WITH_VALUE else 1]
    if before:
        names = [word for number, word in enumerate(before) if not word.startswith("-") and (number == 0 or before[number - 1] not in WITH_VALUE)]
        if before[0] == "ssh" and len(names) == 2:
            host = names[1].rpartition("@")[2].partition(".")[0]
        elif before[0] in EXEC and names[1:2] == ["exec"] and len(names) == 3:
            netns = names[2].rpartition("/")[2]
        elif before[0] == "nsenter":
            netns = "-".join(re.findall(r"[A-Za-z0-9]+", " ".join(before[1:])))
        else:
            return [], None, None
    return words[at:], host, netns


def narrowed(kind: Table, arguments: list[str]) -> bool:
    """Whether arguments select rows by something else than what Shown tells."""
    told = {"route": {"dev", "table", "oif"}, "neighbour": {"dev"}, "fdb": {"dev"}, "address": {"dev"}, "link": {"dev"}, "port": {"dev"}}
    words = [word for at, word in enumerate(arguments) if word not in told.get(kind, set()) and (at == 0 or arguments[at - 1] not in told.get(kind, set()))]
    if kind == "sysctl":
        return "-a" not in arguments and "--all" not in arguments
    if kind == "socket":
        return not any(word.startswith("-") and "u" in word and "l" in word for word in arguments) and not {"-l", "-u"} <= set(arguments)
    # `bridge fdb show flannel.1` without `dev`: the old bridge takes no notice of the name.
    return kind not in ("nft", "iptables", "fdb") and bool(words)


def which(tool: str, arguments: list[str]) -> tuple[Table | Literal[""], list[str]] | None:
    """The table that a tool's output is, and the arguments that narrow it. "" for a command that shows none; None for what is no command of it."""
    if tool in ("ss", "netstat"):
        return "socket", arguments
    if tool == "sysctl":
        return ("sysctl", arguments) if arguments else None
    if tool.endswith("-save"):
        return "iptables", arguments
    if tool == "nft":
        return ("nft", arguments) if arguments[:2] == ["list", "ruleset"] or arguments[:2] == ["list", "table"] else None
    if not arguments:
        return None
    what, *rest = arguments
    verb = rest[0] if rest else "show"
    if tool == "bridge":
        kinds: dict[str, Table] = {"fdb": "fdb", "f": "fdb", "link": "port", "l": "port", "vlan": "vlan", "v": "vlan"}
        if what not in kinds and what != "mdb":
            return None
        return (kinds[what], rest[1:]) if what in kinds and verb in SHOW else ("", [])
    name = next((name for name, forms in OBJECTS.items() if what in forms), None)
    if name is None:
        return None
    if verb in SHOW:
        rest = rest[1:]
    elif rest and verb in ("get", "add", "del", "delete", "replace", "change", "append", "flush", "set", "save"):
        return "", []
    if name in ("address", "link") and rest and "dev" not in rest and rest[0] not in ("up", "type", "master", "scope", "to", "label"):
        rest = ["dev", *rest]
    return name, rest
