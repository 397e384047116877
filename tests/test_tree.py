"""The tree as a whole: lint, formatting, types, what is generated, and what is imported only when it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_clean(command: str) -> None:
    tool, *arguments = command.split()
    done = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{command}:\n{done.stdout}{done.stderr}", pytrace=False)


def test_the_committed_stubs_are_what_the_proto_says(tmp_path: Path) -> None:
    subprocess.run([ROOT / "script/protos", tmp_path], check=True, timeout=60)
    for name in ("rpc_pb2.py", "rpc_pb2.pyi"):
        made, committed = (root / "tweed/stores/etcd" / name for root in (tmp_path, ROOT / "src"))
        assert made.read_text() == committed.read_text(), f"{name} is not what script/protos makes of rpc.proto"


def test_nobody_pays_for_grpc_who_has_no_etcd() -> None:
    code = (
        "import sys, tweed.cli, tweed.agent.main, tweed.commands.lease, tweed.lab.cluster; sys.exit('grpc' in sys.modules or 'google.protobuf' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
