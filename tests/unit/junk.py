"""JSON that nobody should send, for tests of what reads it: any value at all, and documents that are right but for a few places."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from tests.unit.spelling import Choices

SCALARS = (None, "", 0, True, False, 1, -1, 7, 2**31, 2**63, 2**70, 0.5, 1e300, "null", "7", "x\ny", "\0", "ä\u2028", "9" * 25)


def value(choose: Choices, words: Sequence[str], depth: int = 3) -> Any:
    """Any JSON value; `words` as keys and as texts."""
    kind = choose.one_of(("scalar", "object", "list", "scalar", "object")) if depth else "scalar"
    if kind == "scalar":
        return choose.one_of((*SCALARS, *words))
    if kind == "list":
        return choose.several(3, lambda: value(choose, words, depth - 1))
    return {choose.one_of(words): value(choose, words, depth - 1) for _ in range(choose.below(4))}


def damaged(choose: Choices, document: Any, words: Sequence[str]) -> Any:
    """A document with up to three values replaced, removed or added, at any depth."""
    whole = [deepcopy(document)]
    for _ in range(choose.below(4)):
        inside, key = whole, 0
        while isinstance(inside[key], dict | list) and inside[key] and choose.below(3):
            inside = inside[key]
            key = choose.one_of(list(inside) if isinstance(inside, dict) else range(len(inside)))
        match choose.one_of(("replace", "replace", "remove", "add")):
            case "remove" if inside is not whole:
                del inside[key]
            case "add" if isinstance(inside, dict):
                inside[choose.one_of(words)] = value(choose, words)
            case _:
                inside[key] = value(choose, words)
    return whole[0]
