"""Walks over pasted tables, for their tests: made, checked word by word, and shortened to what is compared."""

from __future__ import annotations

import msgspec
from tests.unit.tables import cluster, healthy

from tweed.addr import parse_address as ip
from tweed.trace import snapshot as s
from tweed.trace.cluster import Cluster
from tweed.trace.frames import Probe
from tweed.trace.messages import sayer
from tweed.trace.result import Said, Walk, as_json
from tweed.trace.vocabulary import WORDS, kind_of
from tweed.trace.walk import walk


def walked(snapshot: s.Snapshot, src: str, dst: str, **probe: object) -> Walk:
    found = walk(Cluster(snapshot), Probe(ip(src), ip(dst), **probe))
    check_words(found)
    return found


def check_words(found: Walk) -> None:
    """Every id that the walk speaks is a word with exactly its parameters, in both languages, and JSON."""

    def check(kind: str, said: Said) -> None:
        assert set(said.params) >= set(WORDS[kind][said.id]), said
        assert sayer("en")(kind, said) and sayer("zh")(kind, said)

    for step in found.steps:
        check(kind_of(step.decision.id), step.decision)
        for loser in step.losers:
            check("loss", loser.why)
        for said in step.assumptions:
            check("assumption", said)
        for said in step.unknowns:
            check("unknown", said)
    if found.first_divergence is not None:
        check("cause", found.first_divergence.cause)
    assert msgspec.json.encode(as_json(found, sayer("en")))


def decisions(found: Walk) -> list[tuple[str, str, str]]:
    return [(step.node, step.device, step.decision.id) for step in found.steps]


def changed(changes: dict[str, list[tuple[str, str]]], *, pods: bool = True) -> s.Snapshot:
    """The healthy cluster with texts replaced in a node's tables; each must have been there."""
    texts = healthy(pods=pods)
    for name, replacements in changes.items():
        for old, new in replacements:
            assert old in texts[name], (name, old)
            texts[name] = texts[name].replace(old, new)
    return cluster(**texts)
