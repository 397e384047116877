"""The table of sentences is complete: every id of a walk, both languages, the same parameters."""

from __future__ import annotations

import string

import pytest

from tweed.trace.messages import FIGURE_ZH, LABELS, LANGUAGES, SENTENCES, label, language_of, sayer
from tweed.trace.result import Said
from tweed.trace.svg import WORDS as FIGURE
from tweed.trace.vocabulary import WORDS


def parameters(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_every_id_has_a_sentence_and_every_sentence_an_id():
    assert {kind: set(ids) for kind, ids in WORDS.items()} == {kind: set(ids) for kind, ids in SENTENCES.items()}


@pytest.mark.parametrize("kind", WORDS)
def test_both_languages_use_the_same_parameters_and_only_those_that_there_are(kind: str):
    for id, texts in SENTENCES[kind].items():
        assert len(texts) == len(LANGUAGES)
        english, chinese = map(parameters, texts)
        assert english == chinese, id
        assert english <= set(WORDS[kind][id]), id


def test_a_sentence_leaves_out_only_where_it_is():
    """The line that a sentence is on names the device."""
    for kind, ids in WORDS.items():
        for id, names in ids.items():
            left_out = set(names) - parameters(SENTENCES[kind][id][0])
            assert left_out <= {"device"} or (kind, id) == ("decision", "source-namespace"), (kind, id, left_out)


def test_chinese_is_chinese():
    for texts in (*(texts for ids in SENTENCES.values() for texts in ids.values()), *LABELS.values()):
        assert texts[0].isascii() and texts[0] != texts[1]
    lacking = [texts[1] for ids in SENTENCES.values() for texts in ids.values() if not any("\u4e00" <= c <= "\u9fff" for c in texts[1])]
    assert all(parameters(text) for text in lacking) and len(lacking) <= 2, lacking


def test_labels_and_figure():
    assert all(parameters(texts[0]) == parameters(texts[1]) for texts in LABELS.values())
    assert FIGURE_ZH.keys() == FIGURE.keys() and all(parameters(FIGURE_ZH[key]) == parameters(FIGURE[key]) for key in FIGURE)
    assert label("zh", "fragment", number=1, count=2) == "分片 1/2" and label("en", "step", number=3) == "step 3"


def test_a_sentence_in_each_language():
    said = Said("fdb", {"mac": "86:22:66:41:77:3d", "device": "flannel.1", "host": "192.168.2.202"})
    assert sayer("en")("decision", said) == "VTEP 86:22:66:41:77:3d is on host 192.168.2.202"
    assert sayer("zh")("decision", said) == "VTEP 86:22:66:41:77:3d 位于主机 192.168.2.202"
    with pytest.raises(KeyError):
        sayer("en")("decision", Said("no-such-id"))


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C", "LC_MESSAGES": "zh_TW"}, "zh"),
        ({"LC_ALL": "", "LANG": "zh"}, "zh"),
    ],
)
def test_the_language_of_the_locale(environment: dict[str, str], language: str):
    assert language_of(environment) == language
