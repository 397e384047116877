"""JSON that nobody should send, for tests of what reads it: any value at all, and documents that are right but for a few places.

A value is spelled by bytes: each decides one thing, 0 and the end of them always the simplest. So hypothesis draws one string of bytes instead of
dozens of choices as for `st.recursive`, which is what takes the time, and still shrinks what fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

SCALARS = (None, "", 0, True, False, 1, -1, 7, 2**31, 2**63, 2**70, 0.5, 1e300, "null", "7", "x\ny", "\0", "ä\u2028", "9" * 25)
CONTENTS = st.tuples(st.binary(min_size=20, max_size=60), st.text(max_size=20))


class Spelling:
    """Reads bytes as decisions. `words`: names and texts that mean something to the reader under test; `text`: one that need not."""

    def __init__(self, contents: tuple[bytes, str], words: Sequence[str]) -> None:
        self.bytes = iter(contents[0])
        self.names = (*words, contents[1])
        self.scalars = (*SCALARS, *self.names)

    def one_of(self, several: Sequence[Any]) -> Any:
        return several[next(self.bytes, 0) % len(several)]

    def value(self, depth: int = 3) -> Any:
        kind = self.one_of(("scalar", "object", "list", "scalar", "object")) if depth else "scalar"
        if kind == "scalar":
            return self.one_of(self.scalars)
        count = self.one_of(range(4))
        if kind == "list":
            return [self.value(depth - 1) for _ in range(count)]
        return {self.one_of(self.names): self.value(depth - 1) for _ in range(count)}

    def damaged(self, document: Any) -> Any:
        """A document with up to three values replaced, removed or added, at any depth."""
        whole = [deepcopy(document)]
        for _ in range(self.one_of(range(4))):
            inside, key = whole, 0
            while isinstance(inside[key], dict | list) and inside[key] and self.one_of((True, True, False)):
                inside = inside[key]
                key = self.one_of(list(inside) if isinstance(inside, dict) else range(len(inside)))
            match self.one_of(("replace", "replace", "remove", "add")):
                case "remove" if inside is not whole:
                    del inside[key]
                case "add" if isinstance(inside, dict):
                    inside[self.one_of(self.names)] = self.value()
                case _:
                    inside[key] = self.value()
        return whole[0]


def values(*words: str) -> st.SearchStrategy[Any]:
    """Any JSON value; `words` as keys and as texts."""
    return CONTENTS.map(lambda contents: Spelling(contents, words).value())


def damaged(documents: Sequence[Any], *words: str) -> st.SearchStrategy[Any]:
    """One of the documents, with something wrong at up to three places."""

    def spell(contents: tuple[bytes, str]) -> Any:
        spelling = Spelling(contents, words)
        return spelling.damaged(spelling.one_of(documents))

    return CONTENTS.map(spell)


def texts(some: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Values as JSON in bytes, or bytes that are none."""
    return some.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60)
