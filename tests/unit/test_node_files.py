"""`tweed node-files`: what it writes it removes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tweed.commands.node_files import FILES, node_files
from tweed.errors import UsageError


def run(*words: str) -> str:
    return CliRunner().invoke(node_files, words, catch_exceptions=False, standalone_mode=False).output


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_written_once_and_removed(tmp_path: Path) -> None:
    assert "wrote" in run("--write", "--root", str(tmp_path))
    assert files(tmp_path) == {name: text for name, (text, _) in FILES.items()}
    assert run("--write", "--root", str(tmp_path)) == ""
    assert "removed" in run("--remove", "--root", str(tmp_path)) and files(tmp_path) == {}


def test_shown_only(tmp_path: Path) -> None:
    shown = run("--root", str(tmp_path))
    assert all(text in shown for text, _ in FILES.values()) and files(tmp_path) == {}


@pytest.mark.parametrize("what", ["--write", "--remove"])
def test_a_file_that_somebody_changed_is_left_alone(tmp_path: Path, what: str) -> None:
    run("--write", "--root", str(tmp_path))
    mine = tmp_path / "etc/systemd/network/10-tweed.link"
    mine.write_text("[Link]\nMACAddressPolicy=random\n")
    assert f"left alone {mine}" in run(what, "--root", str(tmp_path))
    assert mine.read_text() == "[Link]\nMACAddressPolicy=random\n"


def test_only_one_of_them() -> None:
    with pytest.raises(UsageError):
        run("--write", "--remove")
