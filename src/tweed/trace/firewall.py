"""nft rules as far as they are plain: addresses, protocols, ports, devices, connection states, verdicts, jumps.

    Firewall(node.nft).verdict("forward", Facts(...)) -> Ruling     "drop" with its rule, "pass", or "unknown"

What a rule says beyond that makes it unknown. It is then taken for one that does not apply, unless it could have let the packet pass
before the rule that drops it: a drop is only told when it is certain.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from tweed.addr import Prefix, format_address, parse_address
from tweed.trace import snapshot as s
from tweed.trace.result import Quote

PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100, "out": 100}
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "ipv6-icmp": 58, "sctp": 132, "gre": 47, "esp": 50}
FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "netdev": (4, 6)}
TABLE = re.compile(r"table (?P<family>\w+) (?P<name>\S+) \{(?:\s*# handle \d+)?")
CHAIN = re.compile(r"chain (?P<name>\S+) \{(?:\s*# handle \d+)?")
HOOK = re.compile(
    r'type (?P<type>\w+) hook (?P<hook>\w+)(?: devices? = ?(?P<devices>\{[^}]*\})| device "?(?P<device>[^" ]+)"?)?'
    r" priority (?P<priority>[^;]+);(?: policy (?P<policy>\w+);)?"
)
HANDLE = re.compile(r"\s*# handle (\d+)$")
WORD = re.compile(r'"[^"]*"|\{[^}]*\}|\S+')
ENDS = ("accept", "drop", "reject", "return", "continue", "jump", "goto", "masquerade", "snat", "dnat", "redirect", "notrack", "tproxy", "queue")
MAY_PASS = ("accept", "return", "jump", "goto", "queue", "masquerade", "snat", "dnat", "redirect", "tproxy")
DEEPEST = 16  # nft refuses jumps deeper than that


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What rules can ask about a packet. None: unknown. `state`: of its connection. `icmp`: the name of its type."""

    src: bytes
    dst: bytes
    proto: int
    sport: int | None = None
    dport: int | None = None
    iif: str | None = ""
    oif: str | None = ""
    state: str = "new"
    icmp: str = ""


class Rule(msgspec.Struct, frozen=True):
    words: tuple[str, ...]
    quote: Quote
    handle: str = ""


class Chain(msgspec.Struct):
    family: str
    table: str
    name: str
    rules: list[Rule]
    type: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    devices: tuple[str, ...] = ()
    quote: Quote = Quote("", "")
    program: str = ""  # of iptables' old tables the one that writes them, else it is nft's

    @property
    def place(self) -> str:
        """As `nft` names it, and the program of one that is not its."""
        return f"{self.program or self.family} {self.table} {self.name}"

    def removal(self, rule: Rule) -> str | None:
        """The command that takes exactly this rule away; None for one that was listed without its handle."""
        if self.program:
            # A shell does more with what iptables-save puts in double quotes than iptables does.
            with contextlib.suppress(ValueError):
                return " ".join([self.program, "-t", typed(self.table), "-D", *map(typed, shlex.split(rule.quote.text)[1:])])
        return f"nft delete rule {self.typed} handle {rule.handle}" if rule.handle else None

    @property
    def typed(self) -> str:
        return f"{self.family} {typed(self.table)} {typed(self.name)}"

    def passage(self, address: bytes) -> tuple[str, str]:
        """The commands that let pass what is for an address and what comes from there, whatever follows in this chain."""
        ip, text = "ip" if len(address) == 4 else "ip6", format_address(address)
        if self.program:
            head = f"{self.program} -t {typed(self.table)} -I {typed(self.name)}"
            return (f"{head} -d {text} -j ACCEPT", f"{head} -s {text} -j ACCEPT")
        return (f"nft insert rule {self.typed} {ip} daddr {text} accept", f"nft insert rule {self.typed} {ip} saddr {text} accept")


def typed(word: str) -> str:
    """As a shell takes it for one word, whatever somebody has put into it."""
    return word if word == "!" else shlex.quote(word)


class Ruling(msgspec.Struct, frozen=True):
    """`rule` and `chain` of what drops it, without a rule it is the chain's policy; or of what gives it another destination."""

    kind: Literal["drop", "pass", "unknown", "replace"]
    chain: Chain | None = None
    rule: Rule | None = None


PASSED = Ruling("pass")


class Firewall:
    """A node's rules, parsed once."""

    def __init__(self, lines: Iterable[s.EvidenceRow], others: Iterable[Chain] = ()) -> None:
        """`others`: chains of iptables' old tables (trace.iptables)."""
        self.chains: dict[tuple[str, str, str, str], Chain] = {}
        for chain in (*read_chains(lines), *others):
            self.chains[chain.program, chain.family, chain.table, chain.name] = chain
        self.hooked = sorted((chain for chain in self.chains.values() if chain.hook), key=lambda chain: chain.priority)

    def verdict(self, hook: str, facts: Facts) -> Ruling:
        """Of all base chains of a hook, in their order: one that drops ends it, one that accepts only itself."""
        family = 4 if len(facts.dst) == 4 else 6
        unknown = False
        for chain in self.hooked:
            if chain.hook != hook or family not in FAMILIES.get(chain.family, ()) or chain.type == "nat":
                continue
            if chain.devices and not {facts.iif, facts.oif} & {*chain.devices}:
                continue
            ruling = self.run(chain, chain, facts, 0, set())
            if ruling is not None and ruling.kind == "drop":
                return ruling
            unknown |= ruling is not None and ruling.kind == "unknown"
        return Ruling("unknown") if unknown else PASSED

    def translation(self, hook: str, facts: Facts) -> Ruling | None:
        """The rule that certainly gives it another destination there, None where there is none or that is not certain."""
        family = 4 if len(facts.dst) == 4 else 6
        for chain in self.hooked if facts.state == "new" else ():
            if chain.hook == hook and chain.type == "nat" and family in FAMILIES.get(chain.family, ()):
                ruling = self.run(chain, chain, facts, 0, set())
                if ruling is not None and ruling.kind in ("replace", "unknown"):
                    return ruling if ruling.kind == "replace" else None
        return None

    def run(self, chain: Chain, base: Chain, facts: Facts, depth: int, passed: set[tuple[int, int]]) -> Ruling | None:
        """None: it came to the end of a chain that was jumped to, which is remembered: ten jumps on each of 16 levels are 10**16 ways."""
        doubtful = unknown = False
        for rule in chain.rules:
            fits, action = evaluate(rule, facts)
            if fits is False or not action:
                continue
            if fits is None:
                unknown = True
                doubtful |= action[0] in MAY_PASS
                continue
            word = action[0]
            if word in ("drop", "reject"):
                return Ruling("unknown") if doubtful else Ruling("drop", chain, rule)
            if word in ("dnat", "redirect"):
                return Ruling("unknown") if unknown else Ruling("replace", chain, rule)
            if word in ("accept", "masquerade", "snat", "tproxy", "queue"):
                return Ruling("unknown") if unknown else PASSED
            if word in ("jump", "goto"):
                target = self.chains.get((chain.program, chain.family, chain.table, action[1] if len(action) > 1 else ""))
                if target is None or depth >= DEEPEST:
                    return Ruling("unknown")
                if (id(target), depth) not in passed:
                    ruling = self.run(target, base, facts, depth + 1, passed)
                    if ruling is not None:
                        return Ruling("unknown") if ruling.kind == "drop" and doubtful else ruling
                    passed.add((id(target), depth))
                if word == "goto":
                    break
            elif word == "return":
                break
        if depth:
            return Ruling("unknown") if unknown else None
        if base.policy == "drop":
            return Ruling("unknown") if doubtful else Ruling("drop", base)
        return Ruling("unknown") if unknown else PASSED


def target(rule: Rule) -> bytes | None:
    """The address that a rule puts in place of a packet's own, where it names one."""
    at = next((number for number, word in enumerate(rule.words) if word in ("dnat", "snat")), None)
    words = [word for word in rule.words[at + 1 :] if word not in ("ip", "ip6", "to")] if at is not None else []
    text = words[0] if words else ""
    bare = text[1:].partition("]")[0] if text.startswith("[") else text if text.count(":") > 1 else text.partition(":")[0]
    try:
        return parse_address(bare)
    except ValueError:  # none, a range, or a map
        return None


# ---- text to chains -------------------------------------------------------------------------------------------------------


def read_chains(lines: Iterable[s.EvidenceRow]) -> Iterator[Chain]:
    table: tuple[str, str] | None = None
    chain: Chain | None = None
    skipping = 0  # inside a set, map or the like
    for row in lines:
        text = row.text.strip()
        if skipping:
            skipping += text.count("{") - text.count("}")
        elif (found := TABLE.fullmatch(text)) is not None:
            table = (found["family"], found["name"])
        elif table is not None and (found := CHAIN.fullmatch(text)) is not None:
            chain = Chain(*table, found["name"], [])
        elif text == "}":
            if chain is not None:
                yield chain
                chain = None
            else:
                table = None
        elif chain is None:
            skipping = max(0, text.count("{") - text.count("}"))
        elif (found := HOOK.match(text)) is not None:
            names = tuple(word.strip(' "') for word in (found["devices"] or found["device"] or "").strip("{} ").split(",") if word.strip())
            chain.type, chain.hook, chain.devices = found["type"], found["hook"], names
            chain.priority, chain.policy, chain.quote = priority(found["priority"]), found["policy"] or "accept", Quote(row.source, text)
        elif text and not text.startswith("#"):
            handle = HANDLE.search(text)
            bare = HANDLE.sub("", text)
            chain.rules.append(Rule(tuple(WORD.findall(bare)), Quote(row.source, bare), handle[1] if handle else ""))


def priority(text: str) -> int:
    """`0`, `filter`, `srcnat + 10`."""
    words = text.split()
    base = PRIORITIES.get(words[0], 0) if not words[0].lstrip("-").isdigit() else int(words[0])
    return base + (int(words[1] + words[2]) if len(words) == 3 and words[2].isdigit() and words[1] in "+-" else 0)


# ---- a rule ---------------------------------------------------------------------------------------------------------------


def evaluate(rule: Rule, facts: Facts) -> tuple[bool | None, tuple[str, ...]]:
    """Whether all of a rule's matches fit (None: not all can be told), and its verdict with what follows it."""
    words = list(rule.words)
    fits: bool | None = True
    while words:
        word = words.pop(0)
        if word in ENDS:
            return fits, (word, *words)
        if word == "counter":
            if words[:1] == ["packets"]:
                del words[:4]
            continue
        if word == "comment":
            del words[:1]
            continue
        if word == "log":
            while words and words[0] not in ENDS:
                words.pop(0)
            continue
        told = match(word, words, facts)
        if told is False:
            return False, ()
        if told is None:
            fits = None
            while words and words[0] not in ENDS:  # whatever belongs to it
                words.pop(0)
    return fits, ()


def match(word: str, words: list[str], facts: Facts) -> bool | None:
    """One match, whose words are taken. None: it is not understood, or asks what nobody knows."""
    family = 4 if len(facts.dst) == 4 else 6
    if word in ("ip", "ip6") and words[:1] in (["saddr"], ["daddr"]):
        address = facts.src if words.pop(0) == "saddr" else facts.dst
        wanted = value(words)
        if family != (4 if word == "ip" else 6):
            return False
        return wanted.holds(lambda text: in_range(text, address))
    if (word == "ip" and words[:1] == ["protocol"]) or (word == "ip6" and words[:1] == ["nexthdr"]) or (word == "meta" and words[:1] == ["l4proto"]):
        words.pop(0)
        return value(words).holds(lambda text: number(text, PROTOCOLS) == facts.proto)
    if word == "meta" and words[:1] == ["nfproto"]:
        words.pop(0)
        return value(words).holds(lambda text: text == f"ipv{family}")
    if word == "meta" and words[:1] in (["iifname"], ["oifname"], ["iif"], ["oif"]):
        word = words.pop(0)
    if word in ("iifname", "oifname", "iif", "oif"):
        device = facts.iif if word.startswith("iif") else facts.oif
        wanted = value(words)
        return None if device is None else wanted.holds(lambda text: device == text or (text.endswith("*") and device.startswith(text[:-1])))
    if word in ("tcp", "udp", "th", "sctp") and words[:1] in (["sport"], ["dport"]):
        port = facts.sport if words.pop(0) == "sport" else facts.dport
        wanted = value(words)
        if word != "th" and PROTOCOLS[word] != facts.proto:
            return False
        return None if port is None else wanted.holds(lambda text: in_numbers(text, port))
    if word in ("icmp", "icmpv6") and words[:1] == ["type"]:
        words.pop(0)
        wanted = value(words)
        if PROTOCOLS[word] != facts.proto:
            return False
        return wanted.holds(lambda text: text == facts.icmp) if facts.icmp else None
    if word == "ct" and words[:1] == ["state"]:
        words.pop(0)
        return value(words).holds(lambda text: text == facts.state)
    return None


class Value(msgspec.Struct):
    negated: bool
    items: list[str] | None

    def holds(self, fits: object) -> bool | None:
        assert callable(fits)
        if self.items is None:
            return None
        answers = [fits(item) for item in self.items]
        if True in answers:
            return not self.negated
        return None if None in answers else self.negated


def value(words: list[str]) -> Value:
    """`[!=] X`, `X,Y`, `{ X, Y }`. A named set holds nobody knows what."""
    negated = words[:1] == ["!="]
    if words and words[0] in ("!=", "=="):
        words.pop(0)
    text = words.pop(0) if words else ""
    while words and text.endswith(","):
        text += words.pop(0)
    if text.startswith("@") or not text:
        return Value(negated, None)
    return Value(negated, [item.strip().strip('"') for item in text.strip("{}").split(",") if item.strip()])


def number(text: str, names: dict[str, int]) -> int | None:
    return names[text] if text in names else int(text) if text.isdigit() else None


def in_numbers(text: str, port: int) -> bool | None:
    first, _, last = text.partition("-")
    if not first.isdigit() or not (last or first).isdigit():
        return None  # a name of /etc/services
    return int(first) <= port <= int(last or first)


def in_range(text: str, address: bytes) -> bool | None:
    if not address:
        return None
    try:
        if "/" in text:
            return Prefix.parse(text).contains(address)
        first, _, last = text.partition("-")
        return parse_address(first) <= address <= parse_address(last or first)
    except ValueError:
        return None
