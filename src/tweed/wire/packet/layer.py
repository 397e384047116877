"""A packet as a person reads it: headers from the outside in, each a list of fields that know where their bytes are."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tweed.wire.packet.tables import BRIEF, TITLES


class Field(msgspec.Struct, frozen=True):
    """One field of a header. `offset` is in bytes from the start of the frame; fields of a few bits share their bytes.

    `value` is a number, or bytes for addresses and for what has no meaning of its own; `text` is how a person writes it.
    """

    name: str
    value: int | bytes
    text: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class Layer(msgspec.Struct, frozen=True):
    """One header (or the payload, or padding): `length` bytes at `offset` of the frame; what it carries reaches to `end`.

    `level` counts the tunnels around it: 0 for the outermost frame, 1 for what is inside VXLAN. `quoted`: it belongs to the
    packet that an ICMP error repeats. `problems` say what is wrong or missing, "" nothing.
    """

    name: str
    offset: int
    length: int
    end: int
    fields: tuple[Field, ...] = ()
    level: int = 0
    quoted: bool = False
    problems: tuple[str, ...] = ()

    def get(self, name: str) -> Field | None:
        """The first field of that name; None when the header has none, or was cut off before it."""
        return next((field for field in self.fields if field.name == name), None)

    def number(self, name: str) -> int:
        """The value of a numeric field. Raises KeyError when it is missing."""
        field = self.get(name)
        if field is None or not isinstance(field.value, int):
            raise KeyError(f"{self.name} has no number {name}")
        return field.value

    def octets(self, name: str) -> bytes:
        """The value of an address or another field of bytes. Raises KeyError when it is missing."""
        field = self.get(name)
        if field is None or not isinstance(field.value, bytes):
            raise KeyError(f"{self.name} has no bytes {name}")
        return field.value

    @property
    def title(self) -> str:
        """Its name as people write it: `IPv4`."""
        return TITLES[self.name]

    @property
    def brief(self) -> str:
        """The few fields that matter, on one line: `10.244.0.2 > 10.244.2.2 ttl 64 ICMP`."""
        texts = {field.name: field.text for field in self.fields}
        for pattern in BRIEF.get(self.name, ()):
            try:
                return pattern.format_map(texts)
            except KeyError:  # another type of the same header, or one cut off in the middle
                continue
        return f"{self.length} bytes"

    def __str__(self) -> str:
        return f"{self.title} {self.brief}"


class Packet(msgspec.Struct, frozen=True):
    """A frame and its layers, outermost first, payload last, padding behind that. Every byte belongs to exactly one layer."""

    data: bytes
    layers: tuple[Layer, ...]
    truncated: bool = False

    def find(self, name: str, level: int | None = None) -> Layer | None:
        """The first layer of that name that is not a quotation; at a tunnel level when one is given."""
        return next((layer for layer in self.layers if layer.name == name and not layer.quoted and level in (None, layer.level)), None)

    @property
    def levels(self) -> int:
        """How many packets are inside each other: 1 for a plain one, 2 in a tunnel."""
        return max((layer.level for layer in self.layers), default=0) + 1

    @property
    def problems(self) -> Iterator[str]:
        for layer in self.layers:
            for problem in layer.problems:
                yield f"{layer.title}: {problem}"

    def __str__(self) -> str:
        return " | ".join(map(str, self.layers))
