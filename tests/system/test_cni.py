"""The plugin as runtimes execute it, against a real agent."""

from __future__ import annotations

import json

import pytest
from tests.system.cluster import DUAL, Cluster
from tests.system.conftest import ping
from tests.system.runtime import Runtime, Sandbox

from tweed.agent.client import call


def conflist(version="1.0.0", **plugin):
    return {"cniVersion": version, "name": "tweed", "plugins": [{"type": "tweed", **plugin}]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cni"), 1, DUAL) as made:
        for node in made.nodes:
            node.start()
        yield made


@pytest.fixture(scope="module", params=["c", "python"])
def runtime(request, cluster):
    [node] = cluster.nodes
    directory = node.directory / f"bin-{request.param}"
    done = node.tweed("cni", "install", "--bin-dir", str(directory), "--conf-dir", str(node.directory / "net.d"), "--relay", request.param)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return Runtime(node, directory)


@pytest.fixture
def sandbox():
    made = Sandbox()
    yield made
    made.remove()


def pods(runtime):
    return {(pod["container_id"], pod["ifname"]) for pod in call(runtime.node.socket, "GET", "/v1/attachments")}


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_a_container_comes_and_goes(runtime, sandbox, version):
    network = conflist(version)
    result = runtime.add(network, "c1", sandbox.path)
    bridge, port, inside = result["interfaces"]
    assert (bridge["name"], inside["name"], inside["sandbox"]) == ("cni0", "eth0", sandbox.path) and result["cniVersion"] == version
    assert ("mtu" in inside) == (version == "1.1.0")
    assert port["mac"] == json.loads(runtime.node.sh(f"ip -j link show {port['name']}"))[0]["address"]
    assert [ip.get("version") for ip in result["ips"]] == ([None, None] if version[0] == "1" else ["4", "6"])
    have = {f"{a['local']}/{a['prefixlen']}" for a in json.loads(sandbox.sh("ip -j addr show eth0"))[0]["addr_info"] if a["scope"] == "global"}
    assert {ip["address"] for ip in result["ips"]} == have and {ip["interface"] for ip in result["ips"]} == {2}
    assert [route["dst"] for route in result["routes"]] == ["10.244.0.0/16", "0.0.0.0/0", "fd00:244::/48", "::/0"]
    assert not ping((sandbox.name, ip["gateway"]) for ip in result["ips"])
    assert ("c1", "eth0") in pods(runtime)
    if version >= "0.4.0":
        runtime.check(network, "c1", sandbox.path)
    for _ in range(2):
        runtime.delete(network, "c1", sandbox.path)
        assert ("c1", "eth0") not in pods(runtime) and "eth0" not in sandbox.sh("ip link") and port["name"] not in runtime.node.sh("ip link")
