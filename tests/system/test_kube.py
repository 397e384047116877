"""Real agents on Nodes: the seed's lab on the stand-in API server, and what a cluster's life does to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.cluster import Cluster, wait_for
from tests.system.conftest import Lab, all_pairs, eventually, ping, running

from tweed.kernel.netns import open_netns, run_in
from tweed.lab import processes, wiring
from tweed.lab.stores import kube
from tweed.wire.kubenode import Names

NAMES = Names.under("flannel.alpha.coreos.com")
NODES = ("master", "node1", "node2")
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running(f"k{os.getpid()}", "--store", "kube", "--ipv6") as made:
        yield made


def token(lab: Lab, name: str) -> str:
    return str(json.loads((lab.directory / "kube" / name).read_text())["users"][0]["user"]["token"])


def ask(lab: Lab, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
    """As an operator, from the lab's world."""
    headers = {"Authorization": f"Bearer {token(lab, 'admin')}", "Content-Type": kind}

    def call() -> Any:
        connection = http.client.HTTPConnection("192.168.2.1", kube.PORT, timeout=20)
        connection.request(method, f"/api/v1/nodes/{path}".rstrip("/"), json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        data = json.loads(answer.read())
        assert answer.status < 300, data
        return data

    descriptor = open_netns(lab.netns("world"))
    try:
        return run_in(descriptor, call)
    finally:
        os.close(descriptor)


def node(name: str, *cidrs: str) -> Any:
    return {"metadata": {"name": name}, "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}}


def rows(lab: Lab, where: str) -> str:
    return lab.run(where, "ip route; ip -6 route; ip neigh; bridge fdb")


def problems(lab: Lab, name: str) -> dict[str, str]:
    return {problem["id"]: problem["text"] for problem in lab.agent(name)["problems"]}


def test_a_lab_on_kubernetes_carries_packets_in_both_families(lab: Lab) -> None:
    assert lab.whole()
    assert not ping(all_pairs(lab.pods)) and not ping(all_pairs(lab.pods, 6))
    assert lab.node("master").name in lab.run("master", f"{sys.executable} -m tweed lease list")


def test_nodes_say_what_flannel_would_and_are_available(lab: Lab) -> None:
    for made in ask(lab, "GET", "")["items"]:
        name, annotations = made["metadata"]["name"], made["metadata"]["annotations"]
        status = lab.node_status(name)
        data = {family: f'{{"VNI":1,"VtepMAC":"{status[key]}"}}' for family, key in ((4, "vtep_mac"), (6, "vtep_mac6"))}
        owner = annotations.pop(NAMES.owner)
        assert annotations == {
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": data[4],
            "flannel.alpha.coreos.com/backend-v6-data": data[6],
            "flannel.alpha.coreos.com/public-ip": status["public_ip"],
            "flannel.alpha.coreos.com/public-ipv6": status["public_ip6"],
        }
        assert json.loads(owner)["node"] == name
        assert made["spec"]["podCIDRs"] == [status["subnet"], status["subnet6"]]
        (condition,) = [c for c in made["status"]["conditions"] if c["type"] == "NetworkUnavailable"]
        assert (condition["status"], condition["reason"]) == ("False", "FlannelIsUp")


def test_a_node_of_flannels_is_programmed_and_one_of_another_backend_named(lab: Lab) -> None:
    """As they stand in a cluster where flannel runs too."""
    flannel = {
        NAMES.managed: "true",
        NAMES.backend_type: "vxlan",
        NAMES.backend_data: '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}',
        NAMES.public_ip: "192.168.2.210",
    }
    others = {
        "fl1": ("10.244.50.0/24", flannel),
        "hg1": ("10.244.51.0/24", {NAMES.managed: "true", NAMES.backend_type: "host-gw", NAMES.backend_data: "null", NAMES.public_ip: "192.168.2.211"}),
    }
    try:
        for name, (cidr, annotations) in others.items():
            made = node(name, cidr)
            made["metadata"]["annotations"] = annotations
            ask(lab, "POST", "", made)
        eventually(lambda: "12:c6:65:89:b4:e3 dev flannel.1 dst 192.168.2.210 self permanent" in rows(lab, "master"), "flannel's node is programmed")
        assert "10.244.50.0/24 via 10.244.50.0 dev flannel.1" in rows(lab, "master") and "10.244.51.0" not in rows(lab, "master")
        eventually(lambda: "uses backend host-gw" in problems(lab, "master").get("other-backend", ""), "the other backend is named")
    finally:
        for name in others:
            ask(lab, "DELETE", name)
    eventually(lab.whole, "whole again")


def test_a_published_address_that_is_overwritten_is_followed_while_all_runs(lab: Lab) -> None:
    """The device keeps its own address, as behind NAT."""
    for address, expected in (("192.168.2.77", "192.168.2.77"), (None, "192.168.2.201")):
        ask(lab, "PATCH", "node1", {"metadata": {"annotations": {NAMES.overwrite: address}}}, MERGE)
        mac = lab.node_status("node1")["vtep_mac"]
        eventually(lambda mac=mac, expected=expected: f"{mac} dev flannel.1 dst {expected} self permanent" in rows(lab, "master"), f"dst {expected}")
        assert "local 192.168.2.201" in lab.run("node1", "ip -d link show flannel.1")
    eventually(lab.whole, "whole again")


def test_an_address_that_is_not_this_nodes_is_waited_for_while_traffic_flows(lab: Lab) -> None:
    ask(lab, "PATCH", "node1", {"metadata": {"annotations": {NAMES.node_ip: "203.0.113.5"}}}, MERGE)
    eventually(
        lambda: "annotation node-public-ip 203.0.113.5 is not an address of this host" in (lab.agent("node1")["reason"] or ""), "the wrong address is named"
    )
    assert not ping(all_pairs(lab.pods))
    ask(lab, "PATCH", "node1", {"metadata": {"annotations": {NAMES.node_ip: None}}}, MERGE)
    eventually(lab.whole, "whole again")


def test_annotations_that_somebody_removes_come_back(lab: Lab) -> None:
    before = ask(lab, "GET", "node1")["metadata"]["annotations"][NAMES.backend_data]
    ask(lab, "PATCH", "node1", {"metadata": {"annotations": dict.fromkeys(NAMES.of_lease)}}, MERGE)
    eventually(lambda: ask(lab, "GET", "node1")["metadata"]["annotations"].get(NAMES.backend_data) == before, "published again")
    eventually(lab.whole, "whole again")
    assert not ping(all_pairs(lab.pods))


def test_a_deleted_node_is_forgotten_and_comes_back_with_another_pod_cidr(lab: Lab) -> None:
    """Its own agent keeps forwarding, says what is missing, waits for the pod CIDR, and follows it."""
    old = lab.node_status("node2")
    ask(lab, "DELETE", "node2")
    for other in ("master", "node1"):
        eventually(
            lambda other=other: not any(word in rows(lab, other) for word in (old["subnet"], old["vtep_mac"], old["subnet6"])), f"no row left on {other}"
        )
    assert "via 10.244.0.0 dev flannel.1" in rows(lab, "node2")
    eventually(lambda: "Node node2 does not exist" in problems(lab, "node2").get("given", ""), "the missing Node is named")
    ask(lab, "POST", "", node("node2"))
    eventually(lambda: "--allocate-node-cidrs" in problems(lab, "node2").get("given", ""), "the missing pod CIDR is named")
    ask(lab, "PATCH", "node2", node("node2", "10.244.99.0/24", "fd00:10:244:99::/64"), MERGE)
    eventually(lambda: lab.node_status("node2")["subnet"] == "10.244.99.0/24", "the new subnet")
    eventually(lab.whole, "whole again")
    assert "10.244.99.0/24 via 10.244.99.0 dev flannel.1" in rows(lab, "master")
    assert "FLANNEL_SUBNET=10.244.99.1/24" in (lab.node("node2").directory / "subnet.env").read_text()
    assert "given" not in problems(lab, "node2")


def test_an_api_server_that_dies_and_is_restored_from_a_backup_costs_no_packet(lab: Lab) -> None:
    """Its versions begin anew, below those that the agents know: all is read again, and nothing is removed on the way."""
    kept = [pair for pair in all_pairs(lab.pods) if "node2" not in pair[0] and not pair[1].startswith("10.244.2.")]
    backup = [each | {"metadata": {key: each["metadata"][key] for key in ("name", "annotations")}} for each in ask(lab, "GET", "")["items"]]
    servers = [pid for pid in processes.inside({wiring.inode(lab.netns("world"))}) if "kubeserver" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(servers) == 1
    lines = {name: len(lab.node(name).log.read_text().splitlines()) for name in NODES}
    os.kill(servers[0], signal.SIGKILL)
    for name in NODES:
        eventually(lambda name=name: "store-away" in problems(lab, name), f"{name} says that the store is away")
    assert not ping(kept) and lab.agent("master")["ready"]
    kube.start(lab, "192.168.2.1", {"tokens": {token(lab, "kubeconfig"): kube.RULES, token(lab, "admin"): [("*", "*")]}, "nodes": backup})
    eventually(lambda: lab.whole() and all("store-away" not in problems(lab, name) for name in NODES), "whole again", 40.0)
    ask(lab, "PATCH", "node1", {"metadata": {"annotations": {NAMES.public_ip: "192.168.2.99"}}}, MERGE)
    eventually(lambda: ask(lab, "GET", "node1")["metadata"]["annotations"][NAMES.public_ip] == "192.168.2.201", "the agents see and write again")
    eventually(lambda: not ping(kept, patience_s=1.0), "all pods reached again")
    for name in NODES:
        assert not [line for line in lab.node(name).log.read_text().splitlines()[lines[name] :] if "route del" in line]


def test_a_dry_run_and_a_cleanup_of_a_kubernetes_node(lab: Lab) -> None:
    flags = [*lab.agent("node1")["store"]["flags"], f"--subnet-file={lab.node('node1').directory / 'subnet.env'}"]
    shown = lab.run("node1", f"{sys.executable} -m tweed agent --dry-run --config=/dev/null --node-name=node1 --iface=ens33 {' '.join(flags)}")
    assert "# would keep lease 10.244.1.0-24&" in shown
    done = lab.run("node1", f"{sys.executable} -m tweed cleanup")
    assert "released lease 10.244.1.0/24" in done
    assert not any(name in (ask(lab, "GET", "node1")["metadata"].get("annotations") or {}) for name in NAMES.of_lease)


# ---- an agent's start ---------------------------------------------------------------------------------------------

SERVER = [sys.executable, "-m", "tweed.lab.kubeserver", "127.0.0.1", "6443"]
ADDRESS = "http://127.0.0.1:6443/api/v1/nodes"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """One node with an API server in its own namespace, which knows the pod of its agent, and no Node."""
    with Cluster(tmp_path, 1, None) as cluster:
        (here,) = cluster.nodes
        content = json.dumps({"pods": [["kube-system", "tweed-x7", "worker-1"]]}).encode()
        server = subprocess.Popen(here.argv(*SERVER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=cluster.environment)
        try:
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write(content)
            server.stdin.close()
            server.stdout.readline()
            yield here
        finally:
            here.end()
            server.kill()
            server.wait()


def curl(here: Any, method: str, name: str, body: Any, kind: str = "application/json") -> None:
    here.sh(f"curl -sS --fail-with-body -o /dev/null -X {method} -H 'Content-Type: {kind}' -d '{json.dumps(body)}' {ADDRESS}/{name}".removesuffix("/"))


def test_an_agent_waits_for_all_that_it_needs_and_says_for_what(alone: Any, tmp_path: Path) -> None:
    """No Node, no pod CIDR, one outside the network, then one inside: no crash loop, and each reason in status and readiness."""
    (tmp_path / "net-conf.json").write_text('{"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan"}}')
    alone.cluster.environment |= {"POD_NAMESPACE": "kube-system", "POD_NAME": "tweed-x7"}
    alone.cluster.store, given = "kube", [f"--kube-api-url={ADDRESS.partition('/api')[0]}", f"--net-config-path={tmp_path / 'net-conf.json'}", "--node-name="]
    alone.start(*given, ready=False)

    def reason(words: str) -> bool:
        return words in (alone.status()["reason"] or "") and words in alone.sh(f"curl -s --unix-socket {alone.socket} http://agent/readyz || true")

    wait_for(lambda: reason("Node worker-1 does not exist"), "the pod's Node is looked for by its name")
    curl(alone, "POST", "", node("worker-1"))
    wait_for(lambda: reason('node "worker-1" pod cidr not assigned'), "the pod CIDR is waited for")
    curl(alone, "PATCH", "worker-1", node("worker-1", "10.244.7.0/25"), MERGE)
    wait_for(lambda: reason('subnet "10.99.0.0/16" specified in the flannel net config doesn\'t contain "10.244.7.0/25" PodCIDR'), "the wrong network is named")
    (tmp_path / "net-conf.json").write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
    wait_for(lambda: alone.status()["ready"], "ready without a restart")
    shown = subprocess.run(
        alone.argv(sys.executable, "-m", "tweed", "agent", "--dry-run", *alone.flags, *given), env=alone.cluster.environment, capture_output=True, text=True
    )
    assert "# would keep lease 10.244.7.0-25" in shown.stdout, shown.stderr
    status = alone.status()
    assert (status["node"], status["subnet"], status["store"]["url"]) == ("worker-1", "10.244.7.0/25", "kube")
    assert "FLANNEL_SUBNET=10.244.7.1/25" in alone.subnet_file.read_text()
