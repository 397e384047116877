"""Rules of iptables' old tables (`iptables-legacy-save`) in nft's words, so that one evaluation judges both. Pure.

    chains(node.iptables) -> (Chain, ...)      as trace.firewall has them; `quote` of a chain or rule is its line

Rules of iptables-nft are nftables' own, and are read there.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from itertools import pairwise

from tweed.trace import snapshot as s
from tweed.trace.firewall import PRIORITIES, Chain, Rule
from tweed.trace.result import Quote

# Where the kernel calls each table, and in which order (linux/netfilter_ipv4.h); of nat the order alone differs by hook.
TABLES = {"raw": "raw", "mangle": "mangle", "nat": "dstnat", "filter": "filter", "security": "security"}
HOOKS = {"PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output", "POSTROUTING": "postrouting"}
# Targets that end a chain; LOG, MARK and the like do not, and every other name that is no chain's is one of those.
TARGETS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "QUEUE": "queue", "NFQUEUE": "queue", "TPROXY": "tproxy"}
TARGETS |= {"MASQUERADE": "masquerade", "SNAT": "snat", "NETMAP": "dnat", "DNAT": "dnat", "REDIRECT": "redirect", "SYNPROXY": "queue"}
WHERE_TO = ("--to-destination", "--to-source", "--to-ports", "--to")
PLAIN_MODULES = ("comment", "conntrack", "state", "tcp", "udp", "icmp", "icmp6")
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
ICMP = {4: {"8": "echo-request", "0": "echo-reply"}, 6: {"128": "echo-request", "129": "echo-reply"}}
NOT_TOLD = ("option", "?")  # no match of nft: whoever evaluates it cannot tell


def chains(lines: Iterable[s.EvidenceRow]) -> Iterator[Chain]:
    """`lines`: of any number of `-save`s, each row's source begins with its program."""
    made: dict[str, Chain] = {}
    table = ""
    for row in lines:
        text, program = row.text.strip(), row.source.partition("-save:")[0]
        family = "ip6" if program.startswith("ip6") else "ip"
        if text.startswith("*"):
            table, made = text[1:], {}
        elif text.startswith(":"):
            name, policy, *_ = (*text[1:].split(), "-")
            hook = HOOKS.get(name, "") if policy != "-" else ""
            kind, priority = "nat" if table == "nat" else "filter", PRIORITIES[TABLES.get(table, "filter")]
            quote = Quote(row.source, text.partition(" [")[0])
            made[name] = Chain(family, table, name, [], kind, hook, priority, "drop" if policy == "DROP" else "accept", (), quote, program)
        elif text.startswith("-A "):
            chain = made.get(text.split()[1])
            if chain is not None:
                chain.rules.append(Rule(words(text, family, made), Quote(row.source, text)))
        elif text == "COMMIT":
            yield from made.values()
            made = {}


def words(rule: str, family: str, known: Iterable[str]) -> tuple[str, ...]:
    """What a line `-A CHAIN ...` asks and does. `known`: the chains that it can jump to. What cannot be said comes last, since it hides what follows."""
    try:
        parts = shlex.split(rule)[2:]
    except ValueError:
        return (*NOT_TOLD, "drop")
    said: list[str] = []
    unsaid: tuple[str, ...] = ()
    protocol = ""
    for negated, option, values in options(parts):
        value = values[0] if values else ""
        if option in ("-j", "-g"):
            return (*said, *unsaid, *action(option, value, parts, known))
        if option == "-p":
            protocol = value
        told = match(option, values, family, protocol)
        if told is None:
            unsaid = NOT_TOLD
        elif told:
            said += [*told[:-1], "!=", told[-1]] if negated else told
    return (*said, *unsaid)


def options(parts: list[str]) -> Iterator[tuple[bool, str, list[str]]]:
    """(negated, option, its values) in order."""
    position = 0
    negated = False
    while position < len(parts):
        word = parts[position]
        position += 1
        if word == "!":
            negated = True
            continue
        values: list[str] = []
        # A comment may look like an option.
        while position < len(parts) and ((word == "--comment" and not values) or (parts[position] != "!" and not parts[position].startswith("-"))):
            values.append(parts[position])
            position += 1
        yield negated, word, values
        negated = False


def match(option: str, values: list[str], family: str, protocol: str) -> list[str] | None:
    """One option in nft's words, what it is compared with last; [] for one that asks nothing, None for one that nft's words here cannot say."""
    value = values[0] if values else ""
    if option in ("-s", "-d"):
        return [family, "saddr" if option == "-s" else "daddr", value]
    if option in ("-i", "-o"):
        return ["iifname" if option == "-i" else "oifname", f"{value[:-1]}*" if value.endswith("+") else value]
    if option == "-p":
        return ["meta", "l4proto", value] if value not in ("all", "0") else []
    if option == "--comment" or (option == "-m" and value in PLAIN_MODULES):
        return []
    if option in ("--sport", "--dport") and protocol in ("tcp", "udp"):
        return [protocol, option[2:], value.replace(":", "-")]
    if option in ("--ctstate", "--state") and {*value.split(",")} <= {*STATES}:
        return ["ct", "state", value.lower()]
    if option in ("--icmp-type", "--icmpv6-type"):
        names = ICMP[4 if family == "ip" else 6]
        return ["icmp" if family == "ip" else "icmpv6", "type", names.get(value, value)] if value != "any" else []
    return None


def action(option: str, target: str, parts: list[str], known: Iterable[str]) -> tuple[str, ...]:
    if target in known:
        return ("goto" if option == "-g" else "jump", target)
    word = TARGETS.get(target)
    if word is None:
        return ()
    following = parts[parts.index(target) :]
    to = next((after for before, after in pairwise(following) if before in WHERE_TO), "")
    return (word, "to", to) if to else (word,)
