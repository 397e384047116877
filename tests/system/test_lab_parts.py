"""Parts of the lab by themselves: ending processes for certain, the registry, `down --all` in a directory of its own."""

import os
import subprocess
import sys

import msgspec
import pytest
from click.testing import CliRunner
from tests.system.conftest import ping

from tweed.commands.lab import lab as command
from tweed.errors import TweedError
from tweed.kernel import netns
from tweed.lab import agents, processes, registry, wiring
from tweed.lab.registry import Lab, Node, Pod


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "DIRECTORY", tmp_path / "tweed" / "labs")
    return registry.DIRECTORY


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_only_the_very_process_is_ended(sleeper):
    began = processes.started(sleeper.pid)
    assert began > 0
    assert processes.end([(sleeper.pid, began + 1), (sleeper.pid, 0)]) == [] and sleeper.poll() is None
    assert processes.end([(sleeper.pid, began)]) == [] and processes.started(sleeper.pid) == 0


def test_one_that_ignores_sigterm_is_killed(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    ignoring = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", ignoring], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        assert processes.end([(process.pid, processes.started(process.pid))]) == [] and processes.started(process.pid) == 0


def test_processes_inside_a_namespace_are_found():
    name = f"tweedt-{os.getpid()}-p"
    netns.create(name)
    try:
        with subprocess.Popen(["nsenter", f"--net=/run/netns/{name}", "sh", "-c", "echo on; exec sleep 1000"], stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"on\n"
            inode = wiring.inode(name)
            assert processes.inside({inode}) == [process.pid] and processes.inside({1}) == []
            assert processes.end((), {inode}) == [] and processes.inside({inode}) == []
    finally:
        netns.delete(name)
    assert wiring.inode(name) == 0


def entry(home="/nowhere"):
    return Node("master", "x-master", 77, home, "192.168.2.200", pods=(Pod("pod1", "x-master-pod1", ("10.0.0.2",)), Pod("box1", "x-master-box1", outside=True)))


def test_the_registry_is_read_as_written(directory):
    (directory / "x").mkdir(parents=True)
    assert registry.names() == ["x"] and registry.read("x") is None
    with pytest.raises(TweedError, match="lab x is being brought up, or was interrupted"):
        registry.load("x")
    lab = Lab("x", (entry(str(directory / "x/nodes/master")),))
    registry.write(lab)
    assert registry.read("x") == lab and registry.node_for_netns(77)[1].socket == directory / "x/nodes/master/run/agent.sock"
    assert registry.node_for_netns(78) is None
    registry.write(msgspec.structs.replace(lab, up=True))
    assert registry.load().name == "x" and registry.load("x").netns("master/box1") == "x-master-box1"
    (directory / "y").mkdir()
    with pytest.raises(TweedError, match=r"several labs are up \(x, y\): say which with --name"):
        registry.load()
    (directory / "x" / "lab.json").write_text("{")
    with pytest.raises(TweedError, match="cannot be read"):
        registry.load("x")
    assert registry.node_for_netns(77) is None


def test_without_any_lab(directory):
    assert registry.names() == [] and registry.node_for_netns(1) is None
    with pytest.raises(TweedError, match="lab tweed is not up: `tweed lab up` starts it"):
        registry.load()


def test_the_lock_is_one_per_lab_and_leaves_no_file(directory):
    with registry.locked("x"):
        with registry.locked("y"):
            pass
        with pytest.raises(TweedError, match="lab x is being brought up"), registry.locked("x"):
            pass
        assert [path.name for path in directory.iterdir()] == [".x.lock"]
    with registry.locked("x"):
        assert directory.exists()
    assert not directory.parent.exists()


def test_down_all_removes_what_crashed_runs_left_and_nothing_that_is_not_theirs(directory):
    """One lab died after its list was written and before its registry was, of another somebody made one namespace anew."""
    name = f"c{os.getpid()}"
    ours, anew, plain = f"{name}-underlay", f"{name}-world", f"{name}-node1"
    (directory / name).mkdir(parents=True)
    netns.create(ours)
    netns.create(anew)
    with open(os.path.join(netns.DIRECTORY, plain), "w"):
        pass
    try:
        registry.write_namespaces(name, {ours: 0, plain: 0, f"{name}-never": 0, anew: wiring.inode(anew) + 1})
        result = CliRunner().invoke(command, ["down", "--all"])
        assert isinstance(result.exception, TweedError) and f"network namespace {anew} is not the one that lab {name} made: left alone" in str(result.exception)
        assert [n for n in netns.names() if n.startswith(name)] == [anew] and registry.names() == []
        assert "no lab is up" in CliRunner().invoke(command, ["down", "--all"]).output
    finally:
        netns.delete(anew)


def test_an_agents_environment_has_no_settings_of_ours():
    given = {"PATH": "/bin", "TWEED_STORE": "x", "FLANNELD_IFACE": "y", "NODE_NAME": "z", "TWEED_CONFIG": "c", "TWEED_MACHINE_BEFORE": "kept"}
    assert set(agents.environment(given)) == {"PATH", "TWEED_MACHINE_BEFORE", "PYTHONPATH"}


def test_the_last_words_of_an_agent(tmp_path):
    node = entry(str(tmp_path))
    assert agents.last_words(node) == "it said nothing"
    node.log.write_text("first\nlast\n")
    assert agents.last_words(node) == "last"


def test_the_tests_own_ping_notices_silence():
    name = f"tweedt-{os.getpid()}-q"
    netns.create(name)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        pairs = [(name, "127.0.0.1"), (name, "::1")]
        assert ping(pairs, rounds=2) == set()
        subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1"], check=True)
        assert ping(pairs, rounds=2, patience_s=0.5) == {(name, "127.0.0.1")}
    finally:
        netns.delete(name)
