"""`tweed lab demo` as a user runs it: piped, kept, interrupted, with a row broken."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest
from tests.system.conftest import SOURCE, TWEED, load, tweed

from tweed.kernel import netns
from tweed.lab import registry


def own_name(letter: str) -> str:
    return f"{letter}{os.getpid()}"


def nothing_left(name: str) -> bool:
    return name not in registry.names() and not [space for space in netns.names() if space.startswith(f"{name}-")]


def test_the_demo_holds_and_leaves_nothing():
    name = own_name("d")
    done = tweed("lab", "demo", "--name", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "" and nothing_left(name)
    text = done.stdout
    assert "\x1b" not in text, "no colours in a pipe"
    assert max(map(len, text.splitlines())) <= 100 and all(line == line.rstrip() for line in text.splitlines())
    for pattern in (
        r"✓ ping      3 of 3 answered: \d",
        r"✓ TCP       1,048,576 bytes in .* the same at both ends",
        r"\[root@master ~\]# ip route get fibmatch 10\.244\.2\.2 from 10\.244\.0\.2 iif cni0\n +10\.244\.2\.0/24 via 10\.244\.2\.0 dev flannel\.1 .*onlink\n",
        r"\[root@master ~\]# ip neigh get 10\.244\.2\.0 dev flannel\.1\n +10\.244\.2\.0 dev flannel\.1 lladdr (\S+) PERMANENT\n",
        r"\[root@master ~\]# bridge fdb get (\S+) dev flannel\.1 self\n +\1 dev flannel\.1 dst 192\.168\.2\.202 self permanent\n",
        r"\[root@master ~\]# ip route get fibmatch 192\.168\.2\.202 .*\n +192\.168\.2\.0/24 dev ens33 ",
        r"the frame at cni0, .*: 98 bytes\n",
        r"the frame at flannel\.1, .*: 98 bytes\n",
        r"the frame at ens33, .*: 148 bytes, 50 of them around the 98 before\n",
        r"08 00 00 00 00 00 01 00 +VXLAN vni 1\n",
        r"✓ steps     5 of 5 rows decide; 3 of 3 destinations",
        r"\[root@master ~\]# bridge fdb del (\S+) dev flannel\.1 dst 192\.168\.2\.202 self\n +\1 dev flannel\.1 dst 192\.168\.2\.202 self permanent\n",
        r"✓ repaired  by the agent: the row was back \d",
        r"\n5 of 5 checks held, ",
    ):
        assert re.search(pattern, text), pattern
    vtep = re.search(r"lladdr (\S+) PERMANENT", text)[1]
    assert f"{vtep.replace(':', ' ')} " in text.partition("the frame at flannel.1")[2].partition("step 3")[0], "the neighbour's MAC is on the frame"


def test_a_terminal_without_unicode(tmp_path):
    """Of another encoding's output all can be written."""
    from rich.console import Console

    from tweed.lab.demo import PLAIN, Voice

    with open(tmp_path / "out", "w", encoding="latin-1") as out:
        voice = Voice(Console(file=out))
        voice.check("ping", True, "a → b …")
        voice.check("ping", False, "")
    assert (tmp_path / "out").read_text() == "   + ping      a > b ~\n   ! ping      \n"
    used = {c for name in ("demo", "picture", "steps") for c in (SOURCE / "tweed" / "lab" / f"{name}.py").read_text() if ord(c) > 127}
    assert used == {chr(code) for code in PLAIN}


def test_what_is_kept_stays_and_every_printed_command_works():
    name = own_name("e")
    try:
        done = tweed("lab", "demo", "--keep", "--name", name)
        assert done.returncode == 0, done.stdout + done.stderr
        lab = load(name)
        rows = re.findall(r"\[root@master ~\]# ((?:ip|bridge) \S+ get .*)\n +(.*)\n", done.stdout)
        assert len(rows) == 5
        for command, row in rows:
            assert lab.lines("master", command) == [row]
        again = tweed("lab", "demo", "--name", name)
        assert again.returncode == 1
        assert again.stderr == f"tweed: lab {name} is up already: take it down with `tweed lab down --name {name}`\n"
        assert lab.whole(), "and the lab that was up is still there"
        _, _, explore = done.stdout.partition("Look around:\n")
        commands = [line[15:] for line in explore.splitlines()]
        assert commands[-1] == f"tweed lab down --name {name}" and len(commands) == 9
        for command in commands[:-1]:
            assert run(command).returncode == 0, command
    finally:
        assert tweed("lab", "down", "--name", name).returncode == 0
    assert nothing_left(name)


def run(command: str) -> subprocess.CompletedProcess[str]:
    """A command of the demo's, with this tree's `tweed` for `tweed`."""
    words = [word for part in command.split() for word in (TWEED if part == "tweed" else [part])]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(SOURCE)})


# What has been printed when the signal comes; "" is before anything.
@pytest.mark.parametrize(
    ("number", "until"),
    [
        (signal.SIGINT, ""),
        (signal.SIGINT, "namespaces joined"),
        (signal.SIGTERM, "pods attached"),
        (signal.SIGINT, "step 1"),
        (signal.SIGHUP, "# bridge fdb del"),
    ],
)
def test_a_signal_in_the_middle_leaves_nothing(number: int, until: str):
    name = own_name("f")
    words = [*TWEED, "lab", "demo", "--name", name]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        while until not in line:
            line = process.stdout.readline()
            assert line, process.stderr.read()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert nothing_left(name)
    assert (process.returncode, errors.strip()) == (130, "tweed: interrupted"), rest


def test_a_reader_that_goes_away_leaves_nothing():
    name = own_name("g")
    with subprocess.Popen([*TWEED, "lab", "demo", "--name", name], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(SOURCE)}) as process:
        for _ in range(4):
            process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
    assert nothing_left(name)


def test_an_agent_that_does_not_repair_is_a_failed_check(monkeypatch):
    """The demo's own verdict can be no: here every agent is told to change nothing before the row is deleted."""
    from rich.console import Console

    from tweed.lab import cluster, demo

    name = own_name("h")
    follow = demo.follow

    def paused(voice, lab):
        cluster.pause(lab, None)
        follow(voice, lab)

    monkeypatch.setattr(demo, "follow", paused)
    monkeypatch.setattr(demo, "REPAIRED_S", 0.5)
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=200)
        assert demo.demo(keep=False, name=name, console=console) == 1
    text = console.export_text()
    assert "✗ repaired  the row was not back after 0.5 s" in text
    assert "✗ ping      0 of 3 answered again" in text
    assert "3 of 5 checks held" in text
    assert nothing_left(name)
