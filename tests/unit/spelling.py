"""Random values spelled by bytes: hypothesis draws one string of bytes, and each decision is read from it.

    @spelled(40)
    def routes(choose: Choices) -> Route:
        return Route(choose.one_of(PREFIXES), metric=choose.number(0, 2**32 - 1))

    @cases(100, routes)
    def test_routes_round_trip(route: Route) -> None: ...

A strategy of hypothesis' own makes dozens of draws for a value with dozens of fields, and those are what takes the time. Here it is one, and
what fails still shrinks, toward zeros: write the simplest choice first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from hypothesis import given, note, settings
from hypothesis import strategies as st

T = TypeVar("T")
TOGETHER = 10
# Of each kind that readers tell apart: letters, digits, blanks, what is not printed or not ASCII, quotes and what parts words.
CHARACTERS = "aZ0 9\n\t\0\x1b\x7f\"'\\/.:,-+&=%{[<>äß路\u00a0\u2028\u202e\ufeff\U0001f600"


class Choices:
    """Decisions that a string of bytes makes, the first byte first. Where it ends, each is the first of its choices."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def below(self, count: int) -> int:
        start = self.at
        self.at += ((count - 1).bit_length() + 7) // 8
        return int.from_bytes(self.data[start : self.at], "little") % count

    def flag(self) -> bool:
        return self.below(2) == 1

    def one_of(self, several: Sequence[T]) -> T:
        return several[self.below(len(several))]

    def number(self, low: int, high: int) -> int:
        """Both ends often: that is where mistakes are."""
        end = self.below(8)
        return low if end == 0 else high if end == 1 else low + self.below(high - low + 1)

    def bytes(self, size: int) -> bytes:
        return self.below(1 << 8 * size).to_bytes(size, "little")

    def text(self, most: int) -> str:
        """Of any characters but halves of surrogate pairs; a third of them of CHARACTERS."""
        return "".join(self.character() for _ in range(self.below(most + 1)))

    def character(self) -> str:
        if self.below(3) == 0:
            return self.one_of(CHARACTERS)
        number = self.below(0x110000 - 0x800)
        return chr(number if number < 0xD800 else number + 0x800)

    def maybe(self, make: Callable[[], T]) -> T | None:
        return make() if self.flag() else None

    def several(self, most: int, make: Callable[[], T], *, least: int = 0) -> list[T]:
        return [make() for _ in range(least + self.below(most - least + 1))]


def spelled(size: int) -> Callable[[Callable[[Choices], T]], st.SearchStrategy[T]]:
    """A strategy of what a function makes of the choices of `size` bytes."""
    return lambda make: st.binary(min_size=size, max_size=size).map(lambda data: make(Choices(data)))


def cases(count: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`@given` of at least `count` cases, ten to an example: what hypothesis does around an example takes longer than most cases."""
    example = st.tuples(*[st.tuples(*strategies)] * TOGETHER)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        def run(example: tuple[tuple[Any, ...], ...]) -> None:
            for case in example:
                try:
                    test(*case)
                except Exception:
                    note(f"The failing case: {case!r}")
                    raise

        run.__name__, run.__qualname__, run.__module__, run.__doc__ = test.__name__, test.__qualname__, test.__module__, test.__doc__
        return settings(max_examples=-(-count // TOGETHER))(given(example)(run))

    return decorate


class Damage(NamedTuple):
    """Bytes that are overwritten, as (place, byte), and how many are lost at the end. Places and losses count round and round."""

    places: list[tuple[int, int]]
    lost: int

    def done_to(self, data: bytes, head: int = 0) -> bytes:
        """All but the first `head` bytes may be hit."""
        room = len(data) - head
        changed = bytearray(data)
        for place, byte in self.places:
            changed[head + place % room] = byte
        return bytes(changed[: len(data) - self.lost % (room + 1)])


@spelled(24)
def damages(choose: Choices) -> Damage:
    return Damage(choose.several(4, lambda: (choose.below(1 << 16), choose.number(0, 255))), choose.one_of((0, choose.below(1 << 16))))
