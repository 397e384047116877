"""The options that show a walk: what is printed, plain when piped, and the files."""

from __future__ import annotations

import io
import sys
from xml.etree import ElementTree

import click
import msgspec
import pytest
from click.testing import CliRunner
from tests.unit.walks import DELIVERED, PARTED, SEED, SNAPSHOT

from tweed.commands.walk_show import STYLES, Wanted, echo, show, show_options, wanted
from tweed.errors import UsageError
from tweed.wire import pcapng


@click.command()
@show_options
def walk(**arguments: object) -> None:
    show(SEED if arguments.get("proto") == "tcp" else DELIVERED, SNAPSHOT, wanted(arguments))
    assert not arguments


def run(*words: str, env: dict[str, str] | None = None, color: bool = False) -> str:
    result = CliRunner(env={"LC_ALL": "C.UTF-8"} | (env or {})).invoke(walk, words, color=color, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_plain_when_piped_and_coloured_on_a_terminal():
    assert "\x1b" not in run() and "\x1b[" in run(color=True)
    assert "step 2  10.244.2.0 is at MAC 86:22:66:41:77:3d (PERMANENT)" in run()


def test_the_language_is_the_option_else_the_locale():
    assert "已送达" in run("--lang", "zh") and "已送达" in run(env={"LC_ALL": "zh_CN.UTF-8"})
    assert "delivered" in run("--lang", "en", env={"LC_ALL": "zh_CN.UTF-8"})


def test_bytes_only_when_asked():
    assert "0000  " not in run() and "  0020  02 ca ?? ?? 21 18" in run("--hex") and "    vni        1" in run("--fields")
    assert "master/pod1 eth0 out   1014 bytes" in run("--fields", "--size", "1000") and "    dst port  53" in run("--fields", "--proto", "udp", "--dport", "53")
    assert "54 bytes" in run("--hex", "--proto", "tcp")


def test_files_and_how_to_read_them(tmp_path):
    capture, drawing = tmp_path / "a walk.pcapng", tmp_path / "walk.svg"
    said = run("--pcapng", str(capture), "--svg", str(drawing))
    command = f"tshark -d udp.port==8472,vxlan -r '{capture}'"
    assert f"decode the tunnel with: {command}" in said
    made = pcapng.read(capture.read_bytes())
    assert made.comment.startswith(command) and len(made.records) == 8
    assert ElementTree.fromstring(drawing.read_bytes()).tag.endswith("svg")


def test_what_cannot_be_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="--size 3: an IPv4 packet with ICMP"):
        show(DELIVERED, SNAPSHOT, Wanted(as_hex=True, size=3))
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        show(DELIVERED, SNAPSHOT, Wanted(svg_file=tmp_path / "none" / "x.svg"))


def test_a_terminal_without_utf8(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    echo([(("a → b 路", "bad"),)])
    sys.stdout.flush()
    assert raw.getvalue() == b"a > b ?\n"


def test_every_style_that_is_used_has_a_colour():
    from tweed.trace import render

    used = {word for line in render.walk_lines(SEED, "en") for _, style in line for word in style.split()}
    assert used <= STYLES.keys() and set(render.VERDICT_STYLES.values()) <= STYLES.keys()


def test_of_several_ways_and_of_the_answer_each_has_its_bytes_a_section_and_a_figure(tmp_path):
    capture, drawing = tmp_path / "w.pcapng", tmp_path / "w.svg"
    show(PARTED, SNAPSHOT, Wanted(pcapng_file=capture, svg_file=drawing, lang="en"))
    assert capture.read_bytes().count(b"\x0a\x0d\x0d\x0a") == 3  # the blocks that begin a section
    assert {path.name for path in tmp_path.iterdir()} == {"w.pcapng", "w.svg", "w-2.svg"}


def test_bytes_of_the_answer_are_shown_after_those_of_the_question(capsys):
    answered = msgspec.structs.replace(DELIVERED, reply=msgspec.structs.replace(DELIVERED, src=DELIVERED.dst, dst=DELIVERED.src))
    show(answered, SNAPSHOT, Wanted(fields=True, lang="en"))
    said = capsys.readouterr().out
    assert said.index("echo request") < said.rindex("The reply") < said.index("echo reply")
