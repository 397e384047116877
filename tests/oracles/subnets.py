"""Choosing a subnet, slowly and obviously: look at every subnet of the range, ask every lease."""

from __future__ import annotations

from tweed.addr import Prefix
from tweed.wire.flannel import Range


def free_subnets(span: Range, taken: list[Prefix]) -> list[Prefix]:
    return [s for s in span.network.subnets(span.subnet_len) if span.first <= s <= span.last and not any(s.overlaps(t) for t in taken)]
