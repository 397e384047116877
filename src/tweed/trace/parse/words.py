"""What all parsers need: words taken one by one, and where a row was."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.model import PROTOCOL_NAMES, TABLE_NAMES

ADDRESS = re.compile(r"(\d{1,3}(\.\d{1,3}){3}|\d{1,3}(\.\d{1,3}){0,2}(?=/\d)|[0-9a-fA-F]{0,4}:[0-9a-fA-F:.]*:?[0-9a-fA-F.]*)(/\d+)?")
MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")


def vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


class Where(msgspec.Struct, frozen=True):
    """What surrounds a row: its source and words, and what the command line said, None or "" where it did not."""

    source: str
    text: str
    device: str | None = None
    family: int | None = None
    table: str | None = None
    master: str | None = None

    @property
    def at(self) -> dict[str, Any]:
        return {"source": self.source, "text": self.text}


class Words:
    """The words of a row, from the left. A word that is missing is a ValueError that names the one before it."""

    def __init__(self, text: str) -> None:
        self.words = text.split()
        self.position = 0

    def __bool__(self) -> bool:
        return self.position < len(self.words)

    def peek(self) -> str:
        return self.words[self.position] if self else ""

    def take(self) -> str:
        if not self:
            raise ValueError(f"it ends after {self.words[-1]!r}" if self.words else "it is empty")
        self.position += 1
        return self.words[self.position - 1]

    def number(self) -> int:
        return number(self.take())


def number(word: Any) -> int:
    """A whole number, decimal or 0x. A value that is none is a ValueError."""
    try:
        return int(str(word), 0)
    except ValueError:
        raise ValueError(f"{str(word)[:40]!r} is not a number") from None


def number_or_none(word: Any) -> int | None:
    return None if word is None else number(word)


def prefix(word: str, family: int | None = None) -> Prefix:
    """A destination: `default` and `all` are everything of the family (4 if nobody says), a lone address is a host's."""
    if word in ("default", "all", "any"):
        return Prefix(bytes(4 if family in (4, None) else 16), 0)
    host, slash, length = word.partition("/")
    if not slash:
        address = parse_address(word)
        return Prefix(address, 8 * len(address))
    parts = host.split(".")
    if ":" not in host and len(parts) < 4:  # `ip` of long ago: 169.254/16
        host = ".".join(parts + ["0"] * (4 - len(parts)))
    return Prefix.parse(f"{host}/{number(length)}")


def looks_like_address(word: str) -> bool:
    """Digits and dots or colons in the form of an address or prefix; whether it is one, parsing says."""
    return ADDRESS.fullmatch(word) is not None and MAC.fullmatch(word) is None


def mac_or_none(word: str | None) -> bytes | None:
    """None for what is no Ethernet address: `ip` shows an IPv4 address as that of a tunnel."""
    return parse_mac(word) if word and MAC.fullmatch(word) else None


def table_name(word: Any) -> str:
    """Route tables by the names that iproute2 gives them out of the box."""
    text = str(word)
    return TABLE_NAMES.get(int(text), text) if text.isdigit() else text


def protocol_name(word: Any) -> str:
    text = str(word)
    return PROTOCOL_NAMES.get(int(text), text) if text.isdigit() else text


def strings(value: Any) -> tuple[str, ...]:
    """A JSON list of strings; anything else in it is a ValueError."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{str(value)[:40]} is not a list of words")
    return tuple(value)


def string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]} is not a word")
    return value


def optional(value: Any) -> str | None:
    return None if value is None else string(value)
