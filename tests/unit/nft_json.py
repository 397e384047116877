"""Short ways to write what `nft -j list` prints."""

from __future__ import annotations

from typing import Any


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def ip(field: str, protocol: str = "ip") -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def ct(key: str) -> dict[str, Any]:
    return {"ct": {"key": key}}


def prefix(text: str) -> dict[str, Any]:
    address, _, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}}
