"""Backend.Type udp with real agents and pods: the forwarding process is found, told, and started again."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest
from tests.system.conftest import TWEED, Lab, all_pairs, eventually, ping, running


@pytest.fixture(scope="module")
def udp() -> Iterator[Lab]:
    with running("udpmode", "--nodes", "2", "--pods-per-node", "1", "--backend", "udp") as made:
        yield made


def test_pods_talk_through_the_processes(udp: Lab) -> None:
    assert ping(all_pairs(udp.pods, 4), rounds=3) == set()
    for node in udp.nodes:
        said = udp.agent(node.name)
        assert said["mtu"] == 1472 and said["problems"] == []
        assert said["forwarding"]["data_path"] == "fast"
        assert set(said["forwarding"]["offloads"].values()) == {"on"}
        assert said["forwarding"]["counters"]["rx-packets"] >= 3
        assert udp.lines(node.name, "ip route show proto 83") == ["10.244.0.0/16 dev flannel0 scope link"]
        text = udp.tweed("exec", node.name, "--", *TWEED, "status").stdout
        assert f"process    {said['forwarding']['pid']}: data path fast; outer packets have no DF" in text and "without" not in text


def test_a_process_that_is_killed_is_started_again(udp: Lab) -> None:
    ends(udp, signal.SIGKILL)


def test_a_process_that_hangs_is_killed_and_another_started(udp: Lab) -> None:
    ends(udp, signal.SIGSTOP)


def ends(udp: Lab, how: signal.Signals) -> None:
    name = udp.nodes[0].name
    before = udp.agent(name)["forwarding"]
    os.kill(before["pid"], how)
    udp.agent(name, "POST", "/v1/resume")  # one of its looks

    def another() -> bool:
        with contextlib.suppress(KeyError, TypeError):
            return bool(udp.agent(name)["forwarding"]["pid"] != before["pid"])
        return False

    eventually(another, "another process forwards")
    assert udp.agent(name)["forwarding"]["starts"] == before["starts"] + 1
    # The kernel looks at carriers once a second: what was sent before that is lost, and not to be waited for.
    eventually(lambda: ping(all_pairs(udp.pods, 4), rounds=3, patience_s=1.0) == set(), "pods talk again")
