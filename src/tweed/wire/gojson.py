"""JSON as Go's encoding/json reads it into a struct: keys match in any case, unknown keys are ignored, null leaves the default.

What is read comes from a store or a file that anybody may have written: every surprise is a ValueError of one short line.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T", bool, int, str, dict[str, Any])

# etcd's own limit is 1.5 MiB; flannel's records are below 300 bytes.
SIZE_LIMIT = 65536
NOUNS: dict[type, str] = {bool: "true or false", int: "a whole number", str: "a string", dict: "an object"}


def shown(value: Any) -> str:
    """A foreign value in one short printable line, as JSON writes it."""
    try:
        text = msgspec.json.encode(value).decode() if not isinstance(value, bytes) else value.decode("utf-8", "backslashreplace")
    except (ValueError, RecursionError):
        text = ascii(value) if isinstance(value, str) else type(value).__name__
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:81])
    return text if len(text) <= 80 else text[:77] + "..."


def printable(key: bytes) -> str:
    """A store's key for people: as it is where that is one short line, else as JSON shows it."""
    text = key.decode("utf-8", "backslashreplace")
    return text if text.isprintable() and len(text) <= 80 else shown(text)


def read_object(data: bytes | str) -> dict[str, Any]:
    """The object in `data`, its keys lower-cased. Raises ValueError for anything but one JSON object of at most SIZE_LIMIT bytes."""
    if len(data) > SIZE_LIMIT:
        raise ValueError(f"is {len(data)} bytes long, more than {SIZE_LIMIT}")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"is not JSON: {'nested too deeply' if isinstance(error, RecursionError) else str(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is not a JSON object")
    return lower_keys(value)


def lower_keys(value: dict[str, Any]) -> dict[str, Any]:
    return {key.lower(): item for key, item in value.items()}


def field(fields: dict[str, Any], key: str, kind: type[T], default: T) -> T:
    """The value of `key` in an object with lower-cased keys. Raises ValueError naming key and value where Go would refuse its type."""
    value = fields.get(key.lower())
    if value is None:
        return default
    if type(value) is not kind:
        raise ValueError(f"{key} {shown(value)}: expected {NOUNS[kind]}")
    return value
