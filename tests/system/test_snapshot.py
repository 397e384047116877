"""Walks over a lab's live tables, and the same from a snapshot file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.system.conftest import TWEED, Lab, eventually, tweed


def walk(*words: str, code: int = 0) -> dict[str, Any]:
    done = tweed("walk", *words, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def decisions(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(step["node"], step["device"], step["decision"]) for step in document["steps"]]


@pytest.mark.parametrize(
    ("src", "dst"), [("master/pod1", "node2/pod2"), ("node1/pod1", "node1/pod2"), ("master", "node1/pod1"), ("node1/pod2", "node2"), ("master", "node2")]
)
def test_the_kernel_answers_as_we_do(lab: Lab, src: str, dst: str):
    found = walk(src, dst, "--lab", lab.name)
    assert (found["verdict"], found["tier"]) == ("delivered", "tables")
    told = [step["kernel"] for step in found["steps"]]
    assert "agrees" in told and "differs" not in told
    assert not [each for each in found["findings"] if each["id"] == "evaluation-differs"]


def test_ipv6_and_a_large_packet(lab6: Lab):
    pod = lab6.pod("node2/pod1")
    found = walk("master/pod1", pod.ip(6), "--lab", lab6.name, "--size", "2000")
    assert (found["verdict"], found["dst"]) == ("delivered", pod.ip(6))
    assert {step["kernel"] for step in found["steps"]} == {"agrees", None}


def test_a_snapshot_holds_all_that_a_live_walk_sees(lab: Lab, tmp_path):
    file = tmp_path / "lab.json"
    done = tweed("snapshot", "--lab", lab.name, "-o", str(file))
    assert done.returncode == 0 and "10 namespaces" in done.stdout and "3 leases" in done.stdout, done.stdout + done.stderr
    for src, dst in (("master/pod1", "node2/pod1"), ("node1", "node1/pod1")):
        live, kept = walk(src, dst, "--lab", lab.name), walk("--tables", str(file), src, dst)
        assert decisions(live) == decisions(kept)
        assert kept["tier"] == "text"
    snapshot = json.loads(file.read_text())["snapshot"]
    assert {row["node"] for row in snapshot["leases"]} == {node.name for node in lab.nodes}
    master = snapshot["nodes"][0]
    assert master["name"] == "master" and any(row["text"].startswith("table ip tweed-") for row in master["nft"])


def test_inside_a_nodes_namespace_it_is_that_node_with_its_pods(lab: Lab, tmp_path):
    file = tmp_path / "node.json"
    done = lab.tweed("exec", "node1", "--", *TWEED, "snapshot", "-o", str(file))
    assert done.returncode == 0, done.stderr
    names = [node["name"] for node in json.loads(file.read_text())["snapshot"]["nodes"]]
    assert names == ["node1", "node1/pod1", "node1/pod2"]
    assert walk("--tables", str(file), "pod1", "pod2")["verdict"] == "delivered"


def test_a_row_that_is_gone_is_missed_by_both(lab: Lab):
    lab.tweed("pause", "master")
    try:
        subnet = lab.node_status("node2")["subnet"]
        lab.run("master", f"ip route del {subnet}; ip route add blackhole {subnet} metric 1")
        found = walk("master/pod1", "node2/pod1", "--lab", lab.name, code=1)
        assert found["first_divergence"]["cause"] == "route-blackhole"
        assert [step["kernel"] for step in found["steps"]][-1] == "agrees"
        for fix in found["first_divergence"]["fix"]:
            lab.run(fix["node"], fix["command"])
    finally:
        lab.tweed("resume", "master")
    eventually(lambda: tweed("walk", "master/pod1", "node2/pod1", "--lab", lab.name).returncode == 0, "the agent puts the route back")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("pod1", "node2/pod2"), "pod1 is on several nodes: say master/pod1, node1/pod1, node2/pod1"),
        (("master/pod9", "node2"), "master/pod9: neither an address nor one of the namespaces here"),
        (("10.244.0.999", "node2"), "SRC: "),
        (("master", "fd00::1"), "it has no address of IPv6"),
        (("8.8.8.8", "master"), "8.8.8.8: no table here speaks of this address"),
    ],
)
def test_who_is_not_there_is_one_line(lab: Lab, words: tuple[str, ...], why: str):
    done = tweed("walk", "--lab", lab.name, *words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert why in done.stderr


def test_with_several_labs_one_must_be_named(lab: Lab, lab6: Lab):
    done = tweed("walk", "master/pod1", "node2/pod1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--lab" in done.stderr and lab.name in done.stderr and lab6.name in done.stderr
