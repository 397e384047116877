"""What people paste, as a snapshot: text of any number of commands, JSON of `-j`, bundles.

    read([Source(None, "vxlan-mode.md", data)]) -> Snapshot

Three questions are asked of each line: is it a prompt or command (then it says what follows), does it go on with the row before it, and
which table has rows of its shape? What answers none of them is prose; what has the shape of a row and cannot be read is reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from tweed.trace import snapshot as s
from tweed.trace.parse import commands, links, routes, shapes
from tweed.trace.parse.nodes import Table, build
from tweed.trace.parse.parsers import PARSE, PARSE_JSON, UNREADABLE, elements_of, json_kind
from tweed.trace.parse.words import Where, Words

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COMMENT = re.compile(r"(?:^|\s+)(?://|#).*")
# What people write behind a row without marking it: words that are not ASCII, arrows, parentheses.
NOTE = re.compile(r"\s+(?:[^\x00-\x7f]|<[-=]|[-=]+>|--|\().*")
QUOTED = re.compile(r"(?:\s*>)+\s?|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\s+")  # of a mail or of a log
HOST_BEFORE = re.compile(r"(?:\[([A-Za-z][\w.-]*)\]|([A-Za-z][\w.-]*)\s*[:|])(?=\s)")  # of pdsh, of compose
BULLET = re.compile(r"(?:[-*+•]|\d+[.)、])\s+(?=\S)")
ONE_LINE_ADDRESS = re.compile(r"\d+:\s+(\S+)\s+(inet6?\s.*)")  # of `ip -o addr`
OLD_ROUTE = re.compile(r"(default|[\d.]+)\s+(\S+)\s+(\d+(?:\.\d+){3})\s+([UGHRDMAC!]+)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\S+)")  # route -n, netstat -rn
NFT = re.compile(r"table (?:ip|ip6|inet|bridge|arp|netdev) \S+ \{.*")
LARGEST = 256 << 20


class Source(msgspec.Struct, frozen=True):
    """A file: the node that the user gave it to (None: its prompts say), its name for `source`, and its bytes."""

    node: str | None
    name: str
    data: bytes


class Pending(msgspec.Struct):
    """A row that later lines may still belong to."""

    kind: s.Table
    number: int
    lines: list[str]
    device: bool = False  # a block of ip link, whose further lines are indented


def read(sources: Sequence[Source]) -> s.Snapshot:
    """All sources as one snapshot. Raises UsageError for a bundle that is none."""
    reader = Reader()
    bundles = []
    for source in sources:
        if looks_like_bundle(source.data):
            bundles.append(s.decode(source.data, source.name))
        else:
            reader.file(source)
    return merged(reader.snapshot(), bundles)


def looks_like_bundle(data: bytes) -> bool:
    return s.FORMAT.encode() in data[:200] and data.lstrip()[:1] == b"{"


def merged(first: s.Snapshot, others: Sequence[s.Snapshot]) -> s.Snapshot:
    """The tables of all. Of a node that two have, the rows of both."""
    nodes = {node.name: node for node in first.nodes}
    for other in others:
        for node in other.nodes:
            before = nodes.get(node.name)
            if before is None:
                nodes[node.name] = node
                continue
            fields = (name for name in node.__struct_fields__ if name != "name")
            nodes[node.name] = msgspec.structs.replace(before, **{name: getattr(before, name) + getattr(node, name) for name in fields})
    return s.Snapshot(
        nodes=tuple(nodes.values()),
        leases=first.leases + sum((other.leases for other in others), ()),
        config=next((each.config for each in (first, *others) if each.config is not None), None),
        prose=first.prose + sum((other.prose for other in others), ()),
        unread=first.unread + sum((other.unread for other in others), ()),
    )


class Reader:
    """Reads file after file. `tables` by node; None is whoever the rest of the input turns out to be about."""

    def __init__(self) -> None:
        self.tables: dict[str | None, list[Table]] = {}
        self.prose: list[s.EvidenceRow] = []
        self.unread: list[s.Unread] = []

    # ---- a file -------------------------------------------------------------------------------------------------

    def file(self, source: Source) -> None:
        self.name, self.given = source.name, source.node
        self.node: str | None = source.node
        self.host: str | None = source.node
        self.command: commands.Command | None = None
        self.table: Table | None = None
        self.pending: Pending | None = None
        self.nft_depth = 0
        self.prefix = ""
        if len(source.data) > LARGEST:
            self.unread.append(s.Unread(source=f"{source.name}:1", text="", why=f"it has more than {LARGEST >> 20} MiB"))
            return
        utf16 = source.data[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = source.data.decode("utf-16" if utf16 else "utf-8-sig", "replace")
        lines = re.split(r"\r\n|\n|\r", ANSI.sub("", text))
        at = 0
        while at < len(lines):
            at = self.line(lines, at)
        self.finish()

    def line(self, lines: list[str], at: int) -> int:
        """Take the line at an index; returns the index of the next."""
        line = lines[at].replace("\t", "    ").replace("\u00a0", " ").rstrip()
        if (quoted := QUOTED.match(line)) is not None:
            line = line[quoted.end() :]
        line = self.without_host(line)
        text = line.strip()
        number = at + 1
        if self.nft_depth or NFT.fullmatch(text):
            self.nft(line, number)
            return at + 1
        if not text or text.startswith("```"):
            return at + 1
        if text[0] in "[{" and (after := self.json(lines, at)) is not None:
            return after
        if (found := commands.command(line)) is not None:
            self.take_command(found, number)
            return at + 1
        if self.one_line(line, number):
            return at + 1
        row = COMMENT.sub("", line, count=1).replace("\\", " ").rstrip()
        if row.strip():
            self.take_row(row, line, number)
        else:
            self.take_prose(text, number)
        return at + 1

    def without_host(self, line: str) -> str:
        """A line behind its node's name (`node1: default via ...`): the name counts when what is behind it is a command or a row."""
        if self.prefix and line.startswith(self.prefix):
            return line.removeprefix(self.prefix).removeprefix(" ")
        if (matched := HOST_BEFORE.match(line)) is None:
            return line
        rest = line[matched.end() :].removeprefix(" ")
        text = rest.strip()
        if not text or (commands.command(rest) is None and self.shape(text) is None):
            return line
        self.finish()
        self.prefix, self.command, self.table = matched[0], None, None
        if self.given is None:
            self.node = self.host = (matched[1] or matched[2]).partition(".")[0]
        return rest

    def take_command(self, found: commands.Command, number: int) -> None:
        self.finish()
        self.command, self.table = found, None
        if found.host is not None and self.given is None:
            self.host = found.host
        self.node = "/".join(part for part in (self.host, found.netns) if part) or None
        if found.shown is not None:
            self.open(msgspec.structs.replace(found.shown, source=f"{self.name}:{number}"))

    def open(self, shown: s.Shown) -> Table:
        self.table = Table(shown)
        self.tables.setdefault(self.node, []).append(self.table)
        return self.table

    # ---- lines --------------------------------------------------------------------------------------------------

    def take_row(self, row: str, line: str, number: int) -> None:
        text = row.strip()
        if self.goes_on(row):
            assert self.pending is not None
            if self.pending.device:  # so that each line keeps its number
                self.pending.lines += [""] * (number - self.pending.number - len(self.pending.lines))
            self.pending.lines.append(row.strip() if not self.pending.device else row)
            return
        kind = self.shape(text)
        if kind is None and (bullet := BULLET.match(text)) is not None and (kind := self.shape(text[bullet.end() :])) is not None:
            row = text = text[bullet.end() :]
        if kind in ("route", "neighbour", "fdb", "rule"):
            text = NOTE.sub("", text)
        if kind is None:
            if shapes.is_header(text):
                self.finish()
            elif (shapes.is_suspicious(text) and (self.command is None or self.command.shown is not None)) or (
                self.table is not None and self.table.shown.command and text.isascii() and not self.table.rows and self.pending is None
            ):
                self.finish()
                table = self.command.text if self.command else "any table"
                self.skip(f"{self.name}:{number}", line.strip(), f"it is no row of {table}")
            else:
                self.take_prose(line.strip(), number)
            return
        self.finish()
        self.pending = Pending(kind, number, [row if kind in ("link", "address") else text], kind in ("link", "address", "port"))

    def one_line(self, line: str, number: int) -> bool:
        """`ip -o`: a device in one line, its parts divided by backslashes; an address behind its device's name; and `route -n`."""
        text = line.strip()
        if links.HEADER.fullmatch(text.partition("\\")[0].strip()) is not None and "\\" in text:
            head, *rest = text.split("\\")
            self.finish()
            self.pending = Pending("link", number, [head, *(f"    {part.strip()}" for part in rest)], True)
            self.finish()
            return True
        if (matched := ONE_LINE_ADDRESS.fullmatch(text.partition("\\")[0].strip())) is not None:
            self.finish()
            self.add("address", number, text, partial(address_of, matched[1], matched[2]))
            return True
        if (matched := OLD_ROUTE.fullmatch(text)) is not None and (self.table is None or self.table.shown.table == "route"):
            self.finish()
            self.add("route", number, text, partial(old_route, matched))
            return True
        return False

    def add(self, kind: s.Table, number: int, text: str, parse: Callable[[Where], list[s.Row]]) -> None:
        """The rows of one line."""
        table = self.table_of(kind, number)
        where = self.where(table, f"{self.name}:{number}", text)
        try:
            table.rows += parse(where)
        except UNREADABLE as error:
            self.skip(where.source, text, reason(error), table)

    def skip(self, source: str, text: str, why: str, table: Table | None = None) -> None:
        """A row that cannot be read: its table (else the open one) is not all there, so that nothing follows from what is missing in it."""
        self.unread.append(s.Unread(source=source, text=text, why=why))
        if (of := table or self.table) is not None:
            of.shown = msgspec.structs.replace(of.shown, excerpt=True)

    def take_prose(self, text: str, number: int) -> None:
        self.prose.append(s.EvidenceRow(source=f"{self.name}:{number}", text=text))

    def shape(self, text: str) -> s.Table | None:
        return shapes.shape(text, self.table.shown.table if self.table is not None else None)

    def goes_on(self, row: str) -> bool:
        """Whether a line belongs to the row before it: an indented line of a device, a next hop, or what a terminal wrapped."""
        if self.pending is None:
            return False
        text = row.strip()
        first = text.split(maxsplit=1)[0]
        if self.pending.device:
            return row[0] == " " and shapes.is_more_of_link(text)
        if self.pending.kind not in ("route", "neighbour", "fdb", "rule"):
            return False
        return shapes.goes_on(self.pending.lines[-1].split()[-1], first)

    def finish(self) -> None:
        """Make a row of the pending lines."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        joined = "\n".join(pending.lines) if pending.device or pending.kind == "route" else " ".join(pending.lines)
        if pending.kind == "route":
            joined = join_wrapped(pending.lines)
        self.add(pending.kind, pending.number, joined, PARSE[pending.kind])

    def where(self, table: Table, source: str, text: str) -> Where:
        shown, command = table.shown, self.command
        family = command.family if command is not None and shown.command is not None else None
        told = shown.route_table if shown.route_table not in (None, "all") else None
        master = command.master if command is not None and shown.table == "fdb" else None
        last = table.rows[-1] if table.rows else None
        if isinstance(last, s.VlanRow):  # a line of `bridge vlan` without a port goes on with the one before
            return Where(source, text, last.device)
        # `bridge fdb show flannel.1` lists all devices and names each.
        return Where(source, text, shown.device, family or (shown.family if shown.table == "rule" else None), told, master)

    def table_of(self, kind: s.Table, number: int) -> Table:
        """The open table if it has rows of this kind, else one that nobody announced."""
        if self.table is None or not (self.table.shown.table == kind or {self.table.shown.table, kind} == {"link", "address"}):
            self.command = None if self.table is not None else self.command
            return self.open(s.Shown(table=kind, source=f"{self.name}:{number}"))
        return self.table

    def nft(self, line: str, number: int) -> None:
        """A ruleset, kept line by line until its braces close."""
        self.finish()
        table = self.table_of("nft", number)
        table.rows.append(s.EvidenceRow(source=f"{self.name}:{number}", text=line.strip()))
        self.nft_depth = max(0, self.nft_depth + line.count("{") - line.count("}"))

    # ---- JSON ---------------------------------------------------------------------------------------------------

    def json(self, lines: list[str], at: int) -> int | None:
        """Read what begins at a line as JSON; the index after it, None when it is none."""
        if QUOTED.match(lines[at]) is not None:  # as mails quote
            lines = [QUOTED.sub("", line, count=1) for line in lines]
        first = lines[at]
        if not re.match(r'\s*(\[\s*($|[{\]])|\{\s*($|"))', first):
            return None
        text = "\n".join(lines[at:])
        start = len(text) - len(text.lstrip())
        # An encapsulation has a second "dst" and "src" behind the route's own: the first counts.
        decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: dict(reversed(pairs)))
        try:
            elements = list(elements_of(text, start, decoder))
        except (ValueError, RecursionError):
            if re.match(r'\s*\[\s*\{\s*"|\s*\[\s*$', first) or self.table is not None:
                self.skip(f"{self.name}:{at + 1}", first.strip()[:200], "it begins like JSON and is none")
                return at + 1
            return None
        self.finish()
        end = start
        for element, begin, end in elements:
            number = at + 1 + text.count("\n", 0, begin)
            if isinstance(element, dict) and element:
                self.take_json(element, " ".join(text[begin:end].split()), number)
        return at + 1 + text.count("\n", 0, end)

    def take_json(self, element: dict[str, Any], text: str, number: int) -> None:
        kind = json_kind(element, self.table.shown.table if self.table is not None else None)
        if kind is None:
            self.skip(f"{self.name}:{number}", text[:200], "it is no row of a table that is read here")
            return
        table = self.table_of(kind, number)
        where = self.where(table, f"{self.name}:{number}", text)
        try:
            table.rows += PARSE_JSON[kind](element, where)
        except UNREADABLE as error:
            self.skip(where.source, text[:200], reason(error), table)

    # ---- all together -------------------------------------------------------------------------------------------

    def snapshot(self) -> s.Snapshot:
        """The nodes. Rows that nobody's prompt claimed are those of the only node there is, else of one called "node"."""
        named = [name for name in self.tables if name is not None]
        hosts = [name for name in named if "/" not in name]
        nameless = hosts[0] if len(hosts) == 1 else "node"
        nodes: dict[str, list[Table]] = {}
        for name, tables in self.tables.items():
            nodes.setdefault(nameless if name is None else name, []).extend(tables)
        # A namespace inside a node of which there are no tables is a node: somebody keeps his nodes in namespaces.
        built = [build(name, tables) for name, tables in nodes.items()]
        return s.Snapshot(nodes=tuple(node for node in built if len(node) or node.shown), prose=tuple(self.prose), unread=tuple(self.unread))


def address_of(device: str, words: str, where: Where) -> list[s.Row]:
    return [links.address(Words(words), where.at, device)]


def old_route(matched: re.Match[str], where: Where) -> list[s.Row]:
    return [routes.old_route(matched, where)]


def join_wrapped(lines: list[str]) -> str:
    """Lines of a route: each next hop keeps its own, others are one."""
    joined = lines[0]
    for line in lines[1:]:
        joined += ("\n" if line.startswith("nexthop") else " ") + line
    return joined


def reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    return " ".join(str(error).split())[:200] or type(error).__name__
