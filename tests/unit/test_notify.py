"""Word to the service manager: what is said, where to, and that nobody listening is no harm."""

import os
import socket
from pathlib import Path

import pytest

from tweed.agent.notify import Notifier, watchdog_s


class Agent:
    """What the notifier asks of an agent."""

    ready = False
    word = "not ready: starting"


def listener(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind(address)
    return sock


def heard(sock: socket.socket) -> list[list[str]]:
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return found


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_is_said_once_and_the_word_when_it_changes(tmp_path: Path, abstract: bool):
    name = f"tweed-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with listener("\0" + name if abstract else name) as sock:
        notifier, agent = Notifier({"NOTIFY_SOCKET": "@" + name if abstract else name}), Agent()
        notifier.see(agent)
        notifier.see(agent)
        agent.ready, agent.word = True, "ready: 2 peers\nREADY=0"
        notifier.see(agent)
        agent.ready, agent.word = False, "not ready: flannel.1: gone"
        notifier.see(agent)
        agent.ready, agent.word = True, "ready: 3 peers"
        notifier.see(agent)
        notifier.see(agent)
        notifier.tell("STOPPING=1")
        assert heard(sock) == [
            ["STATUS=not ready: starting"],
            ["READY=1", "STATUS=ready: 2 peers READY=0"],
            ["STATUS=not ready: flannel.1: gone"],
            ["STATUS=ready: 3 peers"],
            ["STOPPING=1"],
        ]


def test_what_a_manager_did_not_take_is_said_again(tmp_path: Path):
    name = str(tmp_path / "notify")
    with listener(name) as sock:
        notifier, agent = Notifier({"NOTIFY_SOCKET": name}), Agent()
        while notifier.tell("STATUS=x"):
            pass
        agent.ready, agent.word = True, "ready: 2 peers"
        notifier.see(agent)
        assert heard(sock)[-1] == ["STATUS=x"]
        notifier.see(agent)
        notifier.see(agent)
        assert heard(sock) == [["READY=1", "STATUS=ready: 2 peers"]]


def test_signs_of_life_for_a_watchdog(tmp_path: Path):
    name = str(tmp_path / "notify")
    with listener(name) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
        notifier.see(Agent())
        notifier.see(Agent())
        assert notifier.every_s == 1.5 and heard(sock) == [["STATUS=not ready: starting", "WATCHDOG=1"], ["WATCHDOG=1"]]


WATCHDOGS = [({}, 0), ({"WATCHDOG_USEC": "x"}, 0), ({"WATCHDOG_USEC": "500000"}, 0.5), ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0)]


@pytest.mark.parametrize(("environment", "seconds"), WATCHDOGS)
def test_whose_watchdog(environment, seconds):
    assert watchdog_s(environment) == seconds


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative", "/nowhere/at/all"])
def test_nobody_to_tell(address, caplog):
    Notifier({"NOTIFY_SOCKET": address}).tell("READY=1")
    assert len(caplog.records) == (address == "/nowhere/at/all")


def test_a_manager_that_does_not_read_stops_nobody(tmp_path: Path, caplog):
    """The queue of a unix datagram socket is ten long."""
    name = str(tmp_path / "notify")
    with listener(name):
        notifier = Notifier({"NOTIFY_SOCKET": name})
        for _ in range(1000):
            notifier.tell("STATUS=x")
    assert caplog.records
