"""`tweed bench` from outside: it measures, draws, and leaves nothing. No figure is judged here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.system.conftest import SOURCE, TWEED, tweed

from tweed.kernel import netns
from tweed.lab import registry


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = set(netns.names()), set(registry.names())
    yield
    assert (set(netns.names()), set(registry.names())) == before


def test_a_short_run_has_every_figure(tmp_path: Path) -> None:
    picture = tmp_path / "bars.svg"
    done = tweed("bench", "dataplane", "--modes", "bare,vxlan", "--rounds", "1", "--seconds", "1", "--svg", str(picture), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document["ways"]) == {"bare", "vxlan"} and document["limit"] == "bare" and document["baseline"] == "vxlan"
    for way in document["ways"].values():
        assert len(way) == 6 and all(len(measured["values"]) == 1 and measured["median"] > 0 for measured in way.values())
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")
    assert "round 1 of 1: vxlan" in done.stderr


def test_crossings_are_counted_on_real_packets() -> None:
    done = tweed("bench", "crossings", "--modes", "vxlan", "--json")
    assert done.returncode == 0, done.stderr
    datagrams, stream = json.loads(done.stdout)
    assert datagrams["packets"] == datagrams["received"] == 2000 and datagrams["app_send"]["useful"] == 2000
    assert datagrams["through_device"] >= 2000, "the kernel's own counter"
    assert stream["packets"] > stream["skbs"] > 0 and stream["received"] == 32 << 20
    assert datagrams["sender"]["useful"] < 200 and stream["sender"]["useful"] < 200, "nobody carries these packets"


def test_a_data_path_that_is_not_there_is_not_measured_under_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(SOURCE / "tweed", tmp_path / "tweed", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = [*TWEED, "bench", "crossings", "--modes", "udp-fast"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=180)
    said = "install tweed again where there is a C compiler; or leave it out: --modes bare,host-gw,vxlan,udp-naive,udp-numpy"
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith(said), done.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    (
        (("dataplane", "--modes", "ipip"), 2, "--modes ipip: choose from bare, host-gw, vxlan"),
        (("crossings", "--modes", ","), 2, "name at least one"),
        (("dataplane", "--rounds", "0"), 2, "--rounds"),
        (("dataplane", "--modes", "bare", "--against", "no-such", "nor-this", "10.0.0.1"), 1, "there is no network namespace no-such"),
    ),
)
def test_what_cannot_be_measured_is_said_in_a_line(words: tuple[str, ...], code: int, says: str) -> None:
    done = tweed("bench", *words)
    assert done.returncode == code and says in done.stderr.splitlines()[-1], done.stderr


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.environ["PATH"] == str(tmp_path)
    done = tweed("bench", "dataplane")
    assert done.returncode == 1 and done.stderr.strip() == "tweed: iperf3 and sockperf are missing: apt-get install iperf3 sockperf"
