"""`tweed walk --tables` as it is typed: which words are files, what they name, exit codes, one line for what cannot be."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit.tables import SEED, healthy

from tweed.commands.walk import spread, walk
from tweed.errors import UsageError
from tweed.trace import snapshot
from tweed.trace.read import Source, read

SEED_FILE = str(Path(__file__).parents[1] / "seed" / "vxlan-mode.md")


def run(*words: str, standard_input: bytes | None = None) -> Result:
    return CliRunner().invoke(walk, words, input=io.BytesIO(standard_input or b""), catch_exceptions=False, standalone_mode=False)


def code(result: Result) -> int:
    return result.exit_code


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("--tables a b SRC DST", "--tables a --tables b SRC DST"),
        ("--tables a SRC DST --json", "--json --tables a SRC DST"),
        ("SRC DST --tables a b", "--tables a --tables b SRC DST"),
        ("SRC --tables a b DST", "--tables a --tables b SRC DST"),
        ("--lang zh --tables a --tables n=b SRC DST", "--lang zh --tables a --tables n=b SRC DST"),
        ("--tables=a b --lang zh SRC DST", "--lang zh --tables a --tables b SRC DST"),
        ("--tables - SRC DST", "--tables - SRC DST"),
        ("--tables a", "a"),
        ("SRC DST", "SRC DST"),
        ("", ""),
    ],
)
def test_which_words_are_files(args: str, expected: str):
    assert spread(args.split(), {"--lang"}) == expected.split()


def test_the_seed():
    result = run("--tables", SEED_FILE, "10.244.0.5", "10.244.2.5", "--json")
    document = json.loads(result.stdout)
    assert (code(result), document["verdict"], document["tier"], document["first_divergence"], document["unread"]) == (3, "unknown", "text", None, [])
    route = next(step for step in document["steps"] if step["question"] == 1)
    assert (route["node"], route["decision"], route["row"]) == ("master", "route-via", "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink")
    assert route["source"].endswith("vxlan-mode.md:33") and route["losers"][0]["why"] == "shorter-prefix"
    assert document["steps"][-1]["text"] == "leaves ens33 for 192.168.2.202, UDP destination port unknown (flannel's default 8472)"
    assert {"fdb-stale", "table-repeated", "bridge-outside-overlay"} <= {finding["id"] for finding in document["findings"]}
    assert all(finding["text"] and finding["node"] == "master" for finding in document["findings"])


def test_text_in_both_languages_and_from_stdin():
    english = run("--tables", "-", "10.244.0.5", "10.244.2.5", "--lang", "en", standard_input=SEED)
    chinese = run("--lang", "zh", "--tables", SEED_FILE, "10.244.0.5", "10.244.2.5")
    assert "leaves ens33 for 192.168.2.202, UDP destination port unknown (flannel's default 8472)" in english.stdout and "[-:33]" in english.stdout
    assert "UDP 目的端口未知（flannel 默认 8472）" in chinese.stdout


def test_nodes_by_name_by_directory_and_as_a_bundle(tmp_path: Path):
    names = []
    for name, text in healthy().items():
        path = tmp_path / "files" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        names.append(f"{name.replace('__', '/')}={path}")
        node, _, pod = name.partition("__")
        directory = tmp_path / "cluster" / node / pod
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "all.txt").write_text(text)
    bundle = tmp_path / "bundle.json"
    bundle.write_bytes(snapshot.encode(read([Source(word.partition("=")[0], word, Path(word.partition("=")[2]).read_bytes()) for word in names])))
    for files in (names, [str(tmp_path / "cluster")], [str(bundle)]):
        result = run("--tables", *files, "10.244.10.2", "10.244.20.2", "--json")
        document = json.loads(result.stdout)
        assert (code(result), document["verdict"]) == (0, "delivered")
        assert [step["node"] for step in document["steps"]][-1] == "n20/pod1"


def test_a_fault_has_exit_code_1_and_its_fix_is_typed_on_its_node(tmp_path: Path):
    file = tmp_path / "t.txt"
    file.write_text(
        "\n".join(text for name, text in healthy(pods=False).items()).replace("10.244.20.0 dev flannel.1 lladdr 0e:00:00:00:00:20 PERMANENT\n", "", 1)
    )
    result = run("--tables", str(file), "10.244.10.2", "10.244.20.2", "--json")
    found = json.loads(result.stdout)["first_divergence"]
    assert (code(result), found["cause"]) == (1, "neighbour-missing")
    assert found["fix"] == [{"node": "n10", "command": "ip neigh replace 10.244.20.0 dev flannel.1 lladdr 0e:00:00:00:00:20 nud permanent"}]


def test_lines_that_cannot_be_read_are_told_on_stderr(tmp_path: Path):
    file = tmp_path / "t.txt"
    file.write_bytes(SEED + b"10.244.2.0/33 via 10.244.2.0 dev flannel.1\n")
    result = run("--tables", str(file), "10.244.0.5", "10.244.2.5")
    number = SEED.count(b"\n") + 1
    assert f"tweed: {file}:{number}: skipped: '10.244.2.0/33' is not a network in CIDR form: 10.244.2.0/33" in result.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--tables", "/nonexistent", "10.0.0.1", "10.0.0.2"], "/nonexistent: No such file"),
        (["--tables", "n1=/nonexistent", "10.0.0.1", "10.0.0.2"], "/nonexistent: No such file"),
        (["--tables", SEED_FILE, "10.0.0", "10.0.0.2"], "SRC: '10.0.0' is not an IP address"),
        (["--tables", SEED_FILE, "10.244.0.5", "fd00::1"], "one address is IPv4 and the other IPv6"),
        (["--tables", SEED_FILE, "10.244.0.5", "224.0.0.1"], "DST: 224.0.0.1: a walk is between two hosts"),
        (["--tables", SEED_FILE, "0.0.0.0", "10.244.0.5"], "SRC: 0.0.0.0: a walk is between two hosts"),
        (["--tables", SEED_FILE, "9.9.9.9", "10.244.0.5"], "9.9.9.9: no table here speaks of this address"),
        (["--tables", __file__, "10.0.0.1", "10.0.0.2"], f"{__file__}: no tables"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], why: str):
    with pytest.raises(UsageError) as caught:
        run(*words)
    assert str(caught.value).startswith(why) and "\n" not in str(caught.value) and caught.value.exit_code == 2
