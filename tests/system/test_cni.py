"""The plugin as runtimes execute it, in C and in Python, against a real agent: the specification point by point."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess

import pytest
from tests.system.cluster import DUAL, Cluster, wait_for
from tests.system.conftest import ping
from tests.system.runtime import DEBIAN, PluginFailed, Runtime, Sandbox

from tweed.agent.client import call

VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


def conflist(version="1.0.0", **plugin):
    return {"cniVersion": version, "name": "tweed", "plugins": [{"type": "tweed", **plugin}]}


def conf(version="1.0.0", **plugin):
    return {"cniVersion": version, "name": "tweed", "type": "tweed", **plugin}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cni"), 1, DUAL) as made:
        made.nodes[0].start()
        yield made.nodes[0]


@pytest.fixture(scope="module", params=["c", "python"])
def runtime(request, node):
    return installed(node, request.param)


@pytest.fixture(scope="module")
def fast(node):
    """For what does not depend on the relay."""
    return installed(node, "c")


def installed(node, relay, *words):
    directory = node.directory / f"bin-{relay}"
    done = node.tweed("cni", "install", "--bin-dir", str(directory), "--conf-dir", str(node.directory / "net.d"), "--relay", relay, *words)
    assert done.returncode == 0, done.stderr
    return Runtime(node, directory)


@pytest.fixture(autouse=True)
def nothing_attached(node):
    """Each test cleans up; one that failed must not make others fail."""
    yield
    for pod in call(node.socket, "GET", "/v1/attachments"):
        call(node.socket, "DELETE", f"/v1/attachments/{pod['container_id']}/{pod['ifname']}")


@pytest.fixture
def sandbox():
    made = Sandbox()
    yield made
    made.remove()


@pytest.fixture
def sandbox2():
    made = Sandbox()
    yield made
    made.remove()


def pods(runtime):
    return {(pod["container_id"], pod["ifname"]) for pod in call(runtime.node.socket, "GET", "/v1/attachments")}


def traces(node):
    """What attaching leaves on a node: devices, addresses, the ledger's entries."""
    return node.sh("ip -o link | cut -d: -f2; ip -o addr | awk '{print $2, $4}'"), call(node.socket, "GET", "/v1/attachments")


def variables(command, sandbox, container="c1", ifname="eth0", **more):
    return {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": sandbox.path, "CNI_IFNAME": ifname, **more}


# ---- ADD and DEL ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
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


def test_an_interface_that_exists_is_refused_and_nothing_is_left(runtime, sandbox):
    sandbox.sh("ip link add eth0 type veth peer name other")
    before = traces(runtime.node)
    answer = runtime.run("tweed", conf(), **variables("ADD", sandbox))
    assert answer.error == 100 and "File exists" in answer.document["msg"] and answer.stderr == ""
    assert traces(runtime.node) == before


def test_a_second_add_of_the_same_is_refused_and_the_first_stays(runtime, sandbox):
    first = runtime.add(conflist(), "c1", sandbox.path)
    answer = runtime.run("tweed", conf(), **variables("ADD", sandbox))
    assert answer.error == 102 and "detach it first" in answer.document["msg"]
    assert not ping([(sandbox.name, first["ips"][0]["gateway"])])
    runtime.delete(conflist(), "c1", sandbox.path)


def test_del_of_a_container_whose_device_was_renamed(runtime, sandbox):
    """Else its address would be another's, and the container would still have it."""
    result = runtime.add(conflist(), "c1", sandbox.path)
    port = result["interfaces"][1]["name"]
    runtime.node.sh(f"ip link set {port} down; ip link set {port} name other; ip link set other up")
    runtime.delete(conflist(), "c1", sandbox.path)
    assert "eth0" not in sandbox.sh("ip link") and "other" not in runtime.node.sh("ip link") and pods(runtime) == set()


@pytest.mark.parametrize("loss", ["nothing", "netns unset", "netns gone", "interface", "ledger", "prevResult", "everything"])
def test_del_frees_the_address_whatever_is_missing(runtime, sandbox2, loss):
    node, box = runtime.node, Sandbox()
    result = runtime.add(conflist(), "gone", box.path)
    address, netns = result["ips"][0]["address"].partition("/")[0], box.path
    assert not ping([(box.name, result["ips"][0]["gateway"])])
    assert result["interfaces"][2]["mac"] in node.sh("bridge fdb show br cni0") and address in node.sh("ip neigh")
    if loss in ("netns gone", "everything"):
        box.remove()
    if loss == "interface":
        node.sh(f"ip link del {result['interfaces'][1]['name']}")
    if loss in ("ledger", "everything"):
        node.end()
        (node.state / "attachments.json").unlink()
        node.start()
    if loss in ("prevResult", "everything"):
        runtime.results.clear()
    if loss in ("netns unset", "everything"):
        netns = ""
    for _ in range(2):
        runtime.delete(conflist(), "gone", netns)
    assert ("gone", "eth0") not in pods(runtime)
    assert result["interfaces"][1]["name"] not in node.sh("ip link") and result["interfaces"][2]["mac"] not in node.sh("bridge fdb show br cni0")
    assert loss in ("ledger", "everything") or address not in node.sh("ip neigh")  # (a row that nobody knows of ages out like any other)
    runtime.add(conflist(), "next", sandbox2.path, args=f"IP={address}")  # so it is free
    runtime.delete(conflist(), "next", sandbox2.path)
    if loss not in ("netns gone", "everything"):
        box.remove()


def test_a_plugin_that_fails_after_us_undoes_the_chain(fast, sandbox, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] && exit 0\necho \'{"cniVersion":"1.0.0","code":100,"msg":"no"}\'; exit 1\n')
    broken.chmod(0o755)
    runtime = Runtime(fast.node, *fast.directories[:1], tmp_path)
    before = traces(fast.node)
    network = conflist() | {"plugins": [{"type": "tweed"}, {"type": "broken"}]}
    with pytest.raises(PluginFailed):
        runtime.add(network, "c1", sandbox.path)
    assert traces(fast.node)[1] == before[1] and "eth0" not in sandbox.sh("ip link")


def test_what_came_before_us_stays_in_the_result(fast, sandbox):
    earlier = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "sandbox": sandbox.path}],
        "ips": [{"address": "192.0.2.5/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.1"]},
    }
    answer = fast.run("tweed", conf(prevResult=earlier), **variables("ADD", sandbox))
    result = answer.document
    assert [i["name"] for i in result["interfaces"]][::3] == ["net1", "eth0"] and [ip["interface"] for ip in result["ips"]] == [0, 3, 3]
    assert result["routes"][0] == {"dst": "192.0.2.0/24"} and result["dns"] == earlier["dns"]
    fast.run("tweed", conf(), **variables("DEL", sandbox))


# ---- the other commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [*VERSIONS, "0.2.0", "9.9.9", None])
def test_version_needs_nothing_but_the_plugin(runtime, tmp_path, given):
    """As podman asks: dummies, an empty container id, and no agent."""
    directory = shutil.copytree(runtime.directories[0], tmp_path / "bin")
    (directory / "tweed.agent").write_text("/nonexistent\n")
    alone = Runtime(runtime.node, directory)
    dummies = {"CNI_COMMAND": "VERSION", "CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_CONTAINERID": ""}
    answer = alone.run("tweed", {} if given is None else {"cniVersion": given}, **dummies)
    assert (answer.code, answer.stderr) == (0, "")
    assert answer.document == {"cniVersion": given or "1.1.0", "supportedVersions": VERSIONS}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("ip link del {port}", "is gone"),
        ("ip link set {port} nomaster", "is not a port of cni0"),
        ("ip link set {port} mtu 1300", "has MTU 1300 instead of 1430"),
        ("ip link set {port} down", "is down"),
        ("bridge link set dev {port} hairpin off", "has lost its hairpin mode"),
        ("ip addr del {gateway}/24 dev cni0", "has lost its address {gateway}/24"),
        ("in: ip addr del {address} dev eth0", "eth0 has lost its address {address}"),
        ("in: ip route del default", "the container has lost its route default via {gateway}"),
        ("in: ip -6 route del fd00:244::/48", "the container has lost its route fd00:244::/48"),
        ("in: ip link set eth0 mtu 1000", "eth0 has MTU 1000 instead of 1430"),
        ("in: ip link set eth0 address 02:00:00:00:00:09", "eth0 has the MAC 02:00:00:00:00:09"),
        ("in: ip link set eth0 name other", "eth0 is gone from the container"),
    ],
)
def test_check_finds_what_is_wrong(fast, sandbox, damage, said):
    result = fast.add(conflist(), "c1", sandbox.path)
    words = {"port": result["interfaces"][1]["name"], "gateway": result["ips"][0]["gateway"], "address": result["ips"][0]["address"]}
    sandbox.sh("ip addr add 192.0.2.9/24 dev eth0; ip route add 198.51.100.0/24 via 192.0.2.1")  # what a later plugin might add
    fast.check(conflist(), "c1", sandbox.path)
    with fast.node.paused(), pytest.raises(PluginFailed) as failed:  # else the agent would mend what is on the node
        (sandbox if damage.startswith("in: ") else fast.node).sh(damage.removeprefix("in: ").format(**words))
        fast.check(conflist(), "c1", sandbox.path)
    answer = failed.value.answer
    assert answer.error == 103 and said.format(**words) in answer.document["details"]
    fast.delete(conflist(), "c1", sandbox.path)


def test_check_of_a_container_that_nobody_knows_and_without_its_result(fast, sandbox):
    assert fast.run("tweed", conf(prevResult={}), **variables("CHECK", sandbox, "nobody")).error == 3
    assert fast.run("tweed", conf(), **variables("CHECK", sandbox, "nobody")).error == 7
    assert fast.run("tweed", conf("0.3.1", prevResult={}), **variables("CHECK", sandbox, "nobody")).error == 1


def test_gc_removes_exactly_what_is_not_listed(runtime, sandbox, sandbox2):
    third = Sandbox()
    try:
        for name, box in (("keep", sandbox), ("drop", sandbox2)):
            runtime.add(conflist(), name, box.path)
        runtime.add(conflist() | {"name": "another"}, "other", third.path)
        attached = pods(runtime)
        for keys in ({}, {"cni.dev/other": []}):  # nothing known: nothing wiped
            assert runtime.run("tweed", conf("1.1.0", **keys), CNI_COMMAND="GC", CNI_PATH="/").code == 0 and pods(runtime) == attached
        wrong = runtime.run("tweed", conf("1.1.0", **{"cni.dev/valid-attachments": [{"ifname": "eth0"}]}), CNI_COMMAND="GC")
        assert wrong.error == 6 and pods(runtime) == attached
        listed = {"cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}]}
        assert runtime.run("tweed", conf("1.1.0", **listed), CNI_COMMAND="GC") == (0, "", "")
        assert pods(runtime) == {("keep", "eth0"), ("other", "eth0")} and "eth0" not in sandbox2.sh("ip link")
        assert runtime.run("tweed", conf("1.1.0", **{"cni.dev/attachments": []}), CNI_COMMAND="GC").code == 0
        assert pods(runtime) == {("other", "eth0")}
    finally:
        runtime.delete(conflist(), "other", third.path)
        third.remove()


def test_gc_goes_on_past_what_it_cannot_free_and_says_all(fast, sandbox, sandbox2):
    """The ledger cannot be written: both containers are off the bridge all the same, both failures are told, and another GC succeeds."""
    for name, box in (("one", sandbox), ("two", sandbox2)):
        fast.add(conflist(), name, box.path)
    state, nothing = str(fast.node.state), conf("1.1.0", **{"cni.dev/valid-attachments": []})
    subprocess.run(["mount", "--bind", "-o", "ro", state, state], check=True)
    try:
        answer = fast.run("tweed", nothing, CNI_COMMAND="GC")
        assert answer.error == 100 and answer.document["msg"].startswith("2 could not be freed: ")
        assert answer.document["details"].count("attachments.json cannot be written") == 2
        assert "eth0" not in sandbox.sh("ip link") and "eth0" not in sandbox2.sh("ip link")
    finally:
        subprocess.run(["umount", state], check=True)
    assert fast.run("tweed", nothing, CNI_COMMAND="GC") == (0, "", "") and pods(fast) == set()


def test_the_nodes_own_namespace_is_no_containers(runtime):
    """Of ADD nothing comes, and DEL frees what flannel's plugin held without touching the node's eth0."""
    node = runtime.node
    node.sh("ip link add eth0 type bridge")
    held = node.state.parent / "cni/networks/cbr0" / node.status()["subnet"].replace(".0/24", ".240")
    held.parent.mkdir(parents=True)
    held.write_text("c1\r\neth0")
    try:
        before = traces(node)
        for netns in (f"/run/netns/{node.name}", f"/proc/{node.process.pid}/ns/net"):
            given = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth1", "CNI_NETNS": netns}
            answer = runtime.run("tweed", conf(), CNI_COMMAND="ADD", **given)
            assert answer.error == 3 and "of the node itself" in answer.document["msg"]
            assert runtime.run("tweed", conf(), CNI_COMMAND="DEL", **given | {"CNI_IFNAME": "eth0"}) == (0, "", "")
        assert traces(node) == before and not held.exists()
    finally:
        node.sh("ip link del eth0")
        shutil.rmtree(node.state.parent / "cni")


def test_status(runtime):
    answer = runtime.run("tweed", conf("1.1.0"), CNI_COMMAND="STATUS")
    assert (answer.code, answer.stdout) == (0, "")
    node = runtime.node
    call(node.socket, "POST", "/v1/pause")
    try:
        answer = runtime.run("tweed", conf("1.1.0"), CNI_COMMAND="STATUS")
        assert answer.error == 50 and "paused" in answer.document["msg"]
    finally:
        call(node.socket, "POST", "/v1/resume")
    assert runtime.run("tweed", conf("1.0.0"), CNI_COMMAND="STATUS").error == 1


def test_bridges_that_pass_iptables_by_are_said(fast, sandbox):
    """A Service's address would not work between containers of one node; told where Kubernetes is in play."""
    off = subprocess.run(fast.node.argv("sh", "-c", "grep -q 1 /proc/sys/net/bridge/bridge-nf-call-iptables"), capture_output=True, check=False).returncode != 0
    warning = fast.run("tweed", conf("1.1.0"), CNI_COMMAND="STATUS")
    assert warning.code == 0 and ("bridge-nf-call-iptables" in warning.stderr) == off
    fast.add(conflist(), "plain", sandbox.path, args="K8S_POD_NAME=podman;IgnoreUnknown=1")
    assert "br-netfilter" not in fast.node.problems()
    fast.delete(conflist(), "plain", sandbox.path)
    fast.add(conflist(), "c1", sandbox.path, args="K8S_POD_NAME=web-1;K8S_POD_NAMESPACE=shop;K8S_POD_UID=7")
    fast.node.sh("ip link add look type bridge; ip link del look")  # the next look is not far
    wait_for(lambda: ("br-netfilter" in fast.node.problems()) == off, "said, or not")
    assert ('tweed_problems{id="br-netfilter"}' in call(fast.node.socket, "GET", "/metrics")) == off
    shown, listed = fast.node.tweed("status"), fast.node.tweed("pods")
    for text in (shown.stdout, listed.stdout):
        assert "shop/web-1" in text and "SINCE" in text
    fast.delete(conflist(), "c1", sandbox.path)


def test_a_pool_that_is_exhausted(fast, sandbox, sandbox2):
    subnet = call(fast.node.socket, "GET", "/v1/status")["subnet"].partition("/")[0].rpartition(".")[0]
    small = conf("1.1.0", ipam={"ranges": [[{"subnet": f"{subnet}.0/24", "rangeStart": f"{subnet}.200", "rangeEnd": f"{subnet}.200"}]]})
    assert fast.run("tweed", small, CNI_COMMAND="STATUS").code == 0
    first = fast.run("tweed", small, **variables("ADD", sandbox)).document
    assert first["ips"][0]["address"] == f"{subnet}.200/24"
    assert fast.run("tweed", small, CNI_COMMAND="STATUS").error == 51
    before = traces(fast.node)
    assert fast.run("tweed", small, **variables("ADD", sandbox2, "c2")).error == 101
    assert traces(fast.node) == before
    fast.run("tweed", small, **variables("DEL", sandbox))
    later = fast.run("tweed", small, **variables("ADD", sandbox2, "c2"))
    assert later.error == 11 and "until just now" in later.document["msg"]  # in quarantine


# ---- what can be asked for --------------------------------------------------------------------------------------


def address_of(result, family=0):
    return result["ips"][family]["address"].partition("/")[0]


def test_addresses_and_macs_that_are_asked_for(runtime, sandbox):
    subnet = call(runtime.node.socket, "GET", "/v1/status")["subnet"].partition("/")[0].rpartition(".")[0]
    ways = [
        ({"args": f"IgnoreUnknown=1;K8S_POD_NAME=p;IP={subnet}.77;MAC=02:00:00:00:00:77"}, {}),
        ({"capabilities": {"ips": [f"{subnet}.77/24"], "mac": "02:00:00:00:00:77"}}, {"capabilities": {"ips": True, "mac": True}}),
    ]
    for more, plugin in ways:
        result = runtime.add(conflist(**plugin), "c1", sandbox.path, **more)
        assert address_of(result) == f"{subnet}.77" and result["interfaces"][2]["mac"] == "02:00:00:00:00:77"
        assert "02:00:00:00:00:77" in sandbox.sh("ip link show eth0")
        runtime.delete(conflist(), "c1", sandbox.path)
    undeclared = runtime.add(conflist(), "c1", sandbox.path, capabilities={"ips": [f"{subnet}.150/24"]})
    assert address_of(undeclared) != f"{subnet}.150"
    runtime.delete(conflist(), "c1", sandbox.path)


@pytest.mark.parametrize(
    ("args", "code"),
    [("IP=10.1.2.3", 102), ("IP=nonsense", 4), ("MAC=01:00:5e:00:00:01", 4), ("FOO=1", 4), ("FOO=1;IgnoreUnknown=0", 4), ("IP", 4), ("=;", 4)],
)
def test_args_are_honoured_or_refused_never_ignored(fast, sandbox, args, code):
    before = traces(fast.node)
    answer = fast.run("tweed", conf(), **variables("ADD", sandbox, CNI_ARGS=args))
    assert answer.error == code and traces(fast.node) == before
    assert code != 4 or "CNI_ARGS" in answer.document["msg"]


def test_reserved_addresses_are_given_to_who_names_them(fast, sandbox, sandbox2):
    subnet = call(fast.node.socket, "GET", "/v1/status")["subnet"].partition("/")[0].rpartition(".")[0]
    pool = {"subnet": f"{subnet}.0/24", "rangeStart": f"{subnet}.210", "rangeEnd": f"{subnet}.213"}
    network = conflist(ipam={"ranges": [[pool]], "reserved": [f"{subnet}.210-{subnet}.211", f"{subnet}.213"]})
    assert address_of(fast.add(network, "a", sandbox.path)) == f"{subnet}.212"
    assert address_of(fast.add(network, "b", sandbox2.path, args=f"IP={subnet}.211")) == f"{subnet}.211"
    for name, box in (("a", sandbox), ("b", sandbox2)):
        fast.delete(network, name, box.path)


def test_a_set_of_two_ranges(fast, sandbox, sandbox2):
    """As host-local has them: when the first is used up, the next; containers of both have their gateway and reach each other."""
    sets = [[{"subnet": "172.30.15.0/30"}, {"subnet": "172.30.16.0/24"}], [{"subnet": "fd05::/64"}]]
    network = conflist(bridge="side0", ipam={"ranges": sets})
    results = [fast.add(network, name, box.path) for name, box in (("a", sandbox), ("b", sandbox2))]
    assert [[ip["address"] for ip in result["ips"]] for result in results] == [["172.30.15.2/30", "fd05::2/64"], ["172.30.16.2/24", "fd05::3/64"]]
    assert results[1]["ips"][0]["gateway"] == "172.30.16.1"
    assert not ping((sandbox.name, address_of(results[1], family)) for family in (0, 1))
    for name, box in (("a", sandbox), ("b", sandbox2)):
        fast.check(network, name, box.path)
        fast.delete(network, name, box.path)
    fast.node.sh("ip link del side0")


def test_several_networks_on_bridges_side_by_side(runtime, sandbox, sandbox2):
    """The overlay's eth0 and a second network on a bridge of its own; the default route stays the first one's."""
    second = {"cniVersion": "1.0.0", "name": "side", "plugins": [{"type": "tweed", "bridge": "side0", "ipam": {"ranges": [[{"subnet": "172.30.5.0/24"}]]}}]}
    for name, box in (("a", sandbox), ("b", sandbox2)):
        runtime.add(conflist(), name, box.path)
        runtime.add(second, name, box.path, ifname="eth1")
    assert sandbox.sh("ip route show default").split()[4] == "eth0" and "172.30.5.0/24 dev eth1" in sandbox.sh("ip route")
    assert not ping([(sandbox.name, address_of(runtime.results["b", "eth1"])), (sandbox.name, address_of(runtime.results["b", "eth0"]))])
    runtime.check(second, "a", sandbox.path, ifname="eth1")
    overlapping = second | {"plugins": [{"type": "tweed", "bridge": "third0", "ipam": {"ranges": [[{"subnet": "172.30.0.0/16"}]]}}]}
    refused = runtime.run("tweed", overlapping["plugins"][0] | {"cniVersion": "1.0.0", "name": "x"}, **variables("ADD", sandbox, "a", "eth2"))
    assert refused.error == 102 and "side0" in refused.document["msg"] and "third0" not in runtime.node.sh("ip link")
    for name, box in (("a", sandbox), ("b", sandbox2)):
        runtime.delete(second, name, box.path, ifname="eth1")
        assert (name, "eth0") in pods(runtime)
        runtime.delete(conflist(), name, box.path)
    runtime.node.sh("ip link del side0")


def test_promiscuous_mode_instead_of_hairpin(fast, sandbox):
    both = fast.run("tweed", conf(hairpinMode=True, promiscMode=True), **variables("ADD", sandbox))
    assert both.error == 7 and "promiscMode" in both.document["msg"]
    result = fast.run("tweed", conf(promiscMode=True), **variables("ADD", sandbox)).document
    assert "hairpin off" in fast.node.sh(f"bridge -d link show dev {result['interfaces'][1]['name']}") and "PROMISC" in fast.node.sh("ip link show cni0")
    with fast.node.paused():  # else the agent would mend it
        fast.node.sh("ip link set cni0 promisc off")
        check = fast.run("tweed", conf(promiscMode=True, prevResult=result), **variables("CHECK", sandbox))
        assert check.error == 103 and "promiscuous" in check.document["msg"]
    wait_for(lambda: "PROMISC" in fast.node.sh("ip link show cni0"), "it is put back")
    fast.run("tweed", conf(), **variables("DEL", sandbox))
    fast.node.sh("ip link set cni0 promisc off")


# ---- malformed and hostile --------------------------------------------------------------------------------------

BIG = "x" * (1 << 21)
GOOD = {"cniVersion": "1.0.0", "name": "tweed", "type": "tweed"}
TEXTS = [
    *[(text, {6}) for text in ("", "{", "[]", "null", '"x"', "0", "{}" * 2, '{"cniVersion":1}', '{"cniVersion":"1.0.0","name":5}', "\udcff\udcfe", "\0")],
    *[(text, {6}) for text in ("[" * 50_000, '{"a":' * 30_000, BIG, json.dumps(GOOD | {"x": BIG}))],
    *[(json.dumps(GOOD | {"cniVersion": v}), {1}) for v in ("0.1.0", "0.2.0", "2.0.0", "", "1.0", "x" * 500)],
    (json.dumps({"name": "tweed", "type": "tweed"}), {1}),
    *[(json.dumps(GOOD | {"name": v}), {7}) for v in ("", "../x", "a/b", "-x", "a b", "\n", "x" * 300, "é")],
    *[(json.dumps(GOOD | {"bridge": v}), {7}) for v in ("", "..", "a/b", "a b", "x" * 16, "é" * 10, "a:b")],
    *[(json.dumps(GOOD | {key: v}), {6}) for key in ("ipam", "runtimeConfig", "mtu", "hairpinMode", "args") for v in (5.5, [1], "x")],
    *[(json.dumps(GOOD | {"bridge": v}), {6}) for v in (5, [], {})],
    *[(json.dumps(GOOD | {"mtu": v}), {7}) for v in (1, -1, 67, 70_000, 1 << 31)],
    (json.dumps(GOOD | {"mtu": 1 << 80}), {6, 7}),
    *[(json.dumps(GOOD | {"vlan": 5}), {2}), (json.dumps(GOOD | {"ipam": {"type": "dhcp"}}), {2})],
    *[(json.dumps(GOOD | {"ipam": {"part": v}}), {7}) for v in ("x", "1", "0/2", "3/2", "1/3", "1/512", "1/0", "-1/2", "1/2/3")],
    *[(json.dumps(GOOD | {"ipam": {"reserved": [v]}}), {7}) for v in ("x", "10.0.0.9-10.0.0.1", "10.0.0.1-fd00::1", "10.0.0.0/8", "")],
    *[(json.dumps(GOOD | {"ipam": {"routes": [{"dst": v}]}}), {7}) for v in ("x", "10.0.0.0/33", "")],
    (json.dumps(GOOD | {"ipam": {"routes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]}}), {7}),
    *[
        (json.dumps(GOOD | {"ipam": {"ranges": [[r]]}}), {7})
        for r in (
            {"subnet": "x"},
            {"subnet": "10.9.9.9/24"},
            {"subnet": "10.9.9.0/31"},
            {"subnet": "10.9.9.0/24", "rangeStart": "10.9.8.1"},
            {"subnet": "10.9.9.0/24", "rangeStart": "10.9.9.9", "rangeEnd": "10.9.9.1"},
            {"subnet": "10.9.9.0/24", "gateway": "fd00::1"},
            {"subnet": "10.244.255.0/25"},
        )
    ],
    (json.dumps(GOOD | {"ipam": {"ranges": [[{"subnet": "10.9.9.0/24"}], [{"subnet": "10.9.9.0/25"}]]}}), {7}),
    (json.dumps(GOOD | {"ipam": {"ranges": [[]]}}), {7}),
    (json.dumps(GOOD | {"ipMasq": True, "ipam": {"ranges": [[{"subnet": "10.9.9.0/24"}]]}}), {2}),
    *[(json.dumps(GOOD | {"runtimeConfig": v}), {7}) for v in ({"ips": ["x"]}, {"mac": "x"}, {"mac": "ff:ff:ff:ff:ff:ff"})],
    *[(json.dumps(GOOD | {"runtimeConfig": v}), {102}) for v in ({"ips": ["192.0.2.1"]}, {"ips": ["10.244.0.1"]})],
    (json.dumps(GOOD | {"args": {"cni": {"ips": ["x"]}}}), {7}),
]
NAMES = ["", "../x", "/etc/passwd", "-a", ".", "..", "a b", "a\nb", "a/b", "é", "x" * 4000, "$(reboot)", ";", "a;b", "%s%n", "\x1b[31m", "*", "a:b", "x" * 129]
CALLS = [
    *[("CNI_COMMAND", v, {4}) for v in ("", "add", "ADDX", "CMD ", "\x1b[2J", "x" * 5000, "../x", "DELETE")],
    *[("CNI_CONTAINERID", v, {4}) for v in NAMES],
    *[("CNI_IFNAME", v, {4}) for v in ("", "../x", ".", "..", "a b", "a\nb", "a/b", "x" * 16, "x" * 4000, "\x1b[31m", "a:b", "a\tb", "eth0 ")],
    *[("CNI_NETNS", v, {4}) for v in ("", "relative", "../x", "x" * 5000)],
    *[("CNI_NETNS", v, {3}) for v in ("/nonexistent", "/", "/etc/passwd", "/dev/null", "/proc/self/ns/mnt", "/proc/1/ns/user")],
    *[("CNI_ARGS", v, {4}) for v in ("x", ";;=", "A=B", "IP=1.2.3.4.5", "IP=::g", "MAC=zz", "IgnoreUnknown=1;x", "IP=%s%s", "x" * 100_000, "\x1b=1")],
]


def test_malformed_calls_are_answered_with_the_right_code_and_change_nothing(runtime, sandbox):
    before, ledger = traces(runtime.node), (runtime.node.state / "attachments.json").read_bytes()
    wrong = []
    cases = [(text, {}, codes) for text, codes in TEXTS] + [(json.dumps(GOOD), {name: value}, codes) for name, value, codes in CALLS]
    chance = random.Random(7)
    for _ in range(70):  # a good one with some bytes changed
        text = bytearray(json.dumps(GOOD | {"ipam": {"routes": []}}).encode())
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.choice(b'"{}[]:,\\x0\x7f ')
        try:
            json.loads(text)
        except ValueError:
            cases.append((text.decode(), {}, {6}))
    assert len(cases) >= 200
    for text, given, codes in cases:
        answer = runtime.run("tweed", text, **(variables("ADD", sandbox) | given))
        if answer.code != 1 or answer.document["code"] not in codes or answer.stderr or "\n" in answer.document["msg"] or len(answer.stdout) > 4000:
            wrong.append((text[:300], given, codes, answer.code, answer.stdout[:300], answer.stderr[:300]))
    assert not wrong
    assert traces(runtime.node) == before and (runtime.node.state / "attachments.json").read_bytes() == ledger and "eth0" not in sandbox.sh("ip link")


@pytest.mark.parametrize("missing", [c for n in (1, 2, 3) for c in itertools.combinations(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), n)], ids=",".join)
def test_missing_variables_are_named(fast, sandbox, missing):
    given = {name: value for name, value in variables("ADD", sandbox).items() if name not in missing}
    answer = fast.run("tweed", conf(), **given)
    assert answer.error == 4 and all(name in answer.document["msg"] for name in missing)


def test_no_stdin_is_an_empty_one(runtime, sandbox):
    """Not even a descriptor: the error document is on stdout all the same."""
    plugin = str(runtime.directories[0] / "tweed")
    done = subprocess.run(
        runtime.node.argv("sh", "-c", f"exec {plugin} <&-"), env=variables("ADD", sandbox), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (1, 6, "")


def test_a_relay_that_is_killed_before_it_has_said_all_has_not_called(fast, sandbox):
    before = traces(fast.node)
    process = subprocess.Popen(
        fast.node.argv(str(fast.directories[0] / "tweed")), env=variables("ADD", sandbox), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdin.write("{")
    process.stdin.flush()
    process.kill()
    process.communicate()
    assert traces(fast.node) == before


# ---- chains -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (DEBIAN / "tuning").exists(), reason="Debian's plugins are not installed")
def test_tuning_after_us(fast, sandbox):
    """It may give the device another MAC: CHECK looks for the one that the chain ended with, not for just any."""
    tuning = {"type": "tuning", "mac": "02:00:00:00:00:99", "sysctl": {"net.ipv4.conf.all.log_martians": "1"}, "promisc": True}
    network = conflist() | {"plugins": [{"type": "tweed"}, tuning]}
    assert fast.add(network, "c1", sandbox.path)["interfaces"][2]["mac"] == "02:00:00:00:00:99"
    fast.check(network, "c1", sandbox.path)
    for later in ({"interfaces": [{"name": "eth0", "sandbox": sandbox.path, "mac": mac}]} for mac in ("02:00:00:00:00:98", 5, "x")):
        answer = fast.run("tweed", conf(prevResult=later), **variables("CHECK", sandbox))
        assert answer.error == 103 and "eth0 has the MAC 02:00:00:00:00:99 instead of" in answer.document["msg"]
    fast.delete(network, "c1", sandbox.path)


@pytest.mark.skipif(not (DEBIAN / "tuning").exists(), reason="Debian's plugins are not installed")
def test_an_mtu_that_tuning_gave(fast, sandbox):
    """Its result says nothing of it; what it notes for its DEL does. The device's other end is none of its business."""
    network = conflist() | {"plugins": [{"type": "tweed"}, {"type": "tuning", "mtu": 1300}]}
    port = fast.add(network, "c1", sandbox.path)["interfaces"][1]["name"]
    assert "mtu 1300" in sandbox.sh("ip link show eth0")
    fast.check(network, "c1", sandbox.path)
    for box, device in ((fast.node, port), (sandbox, "eth0")):
        box.sh(f"ip link set {device} mtu 1290")
        with pytest.raises(PluginFailed, match="1290"):
            fast.check(network, "c1", sandbox.path)
        box.sh(f"ip link set {device} mtu {1430 if box is fast.node else 1300}")
    fast.delete(network, "c1", sandbox.path)


def test_an_mtu_that_the_result_tells(fast, sandbox):
    """As a plugin of specification 1.1 after us may say it."""
    result = fast.add(conflist("1.1.0"), "c1", sandbox.path)
    assert result["interfaces"][2]["mtu"] == 1430
    result["interfaces"][2]["mtu"] = 1300
    answer = fast.run("tweed", conf("1.1.0", prevResult=result), **variables("CHECK", sandbox))
    assert answer.error == 103 and "eth0 has MTU 1430 instead of 1300" in answer.document["msg"]
    sandbox.sh("ip link set eth0 mtu 1300")
    fast.check(conflist("1.1.0"), "c1", sandbox.path)
    fast.delete(conflist("1.1.0"), "c1", sandbox.path)


@pytest.mark.skipif(not (DEBIAN / "sbr").exists(), reason="Debian's plugins are not installed")
def test_source_based_routing_after_us(fast, sandbox, sandbox2):
    """sbr moves the routes into tables of each address's own: there they are, as long as the rules that lead to them."""
    network = conflist() | {"plugins": [{"type": "tweed"}, {"type": "sbr"}]}
    result = fast.add(network, "c1", sandbox.path)
    fast.add(conflist(), "other", sandbox2.path)
    assert "default" not in sandbox.sh("ip route; ip -6 route")
    assert not ping((sandbox2.name, address_of(result, family)) for family in (0, 1))
    fast.check(network, "c1", sandbox.path)
    [first, second] = [(address_of(result, family), sandbox.sh(f"ip -{v} rule show pref 32765").split()[-1]) for family, v in ((0, 4), (1, 6))]
    for damage, mended, said in (
        ("ip route del default table {first[1]}", "ip route add default via {gw} dev eth0 table {first[1]}", "default via {gw} dev eth0"),
        ("ip rule del pref 32765", "ip rule add pref 32765 from {first[0]} lookup {first[1]}", "10.244.0.0/16 via {gw} dev eth0"),
        ("ip -6 route del fd00:244::/48 table {second[1]}", "true", "fd00:244::/48 via"),
    ):
        words = {"first": first, "second": second, "gw": result["ips"][0]["gateway"]}
        sandbox.sh(damage.format(**words))
        with pytest.raises(PluginFailed) as failed:
            fast.check(network, "c1", sandbox.path)
        assert f"the container has lost its route {said.format(**words)}" in failed.value.answer.document["details"]
        sandbox.sh(mended.format(**words))
    for name, box in (("c1", sandbox), ("other", sandbox2)):
        fast.delete(network if name == "c1" else conflist(), name, box.path)


def test_a_route_that_the_chain_took_away(fast, sandbox):
    """As openshift's route-override does it: it is in the result no more, so nobody misses it."""
    result = fast.add(conflist(), "c1", sandbox.path)
    sandbox.sh("ip route del default; ip route add default via 10.244.0.9 dev eth0 onlink")
    with pytest.raises(PluginFailed, match="has lost its route default"):
        fast.check(conflist(), "c1", sandbox.path)
    result["routes"] = [route for route in result["routes"] if route["dst"] != "0.0.0.0/0"] + [{"dst": "0.0.0.0/0", "gw": "10.244.0.9"}]
    fast.check(conflist(), "c1", sandbox.path)
    fast.delete(conflist(), "c1", sandbox.path)


@pytest.mark.skipif(not (DEBIAN / "portmap").exists(), reason="Debian's plugins are not installed")
def test_first_of_a_chain_with_portmap_and_bandwidth(runtime, sandbox, sandbox2):
    network = conflist() | {
        "plugins": [
            {"type": "tweed"},
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000, "egressBurst": 8_000_000},
        ]
    }
    node = runtime.node
    mapping = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    result = runtime.add(network, "web", sandbox.path, capabilities=mapping)
    client = runtime.add(network, "client", sandbox2.path)
    assert "tbf" in node.sh(f"tc qdisc show dev {result['interfaces'][1]['name']}")
    server = subprocess.Popen(
        sandbox.argv("python3", "-c", "import socket; s = socket.create_server(('', 80)); print(flush=True)\nwhile True: s.accept()[0].sendall(b'hello')"),
        stdout=subprocess.PIPE,
    )
    try:
        server.stdout.readline()
        fetch = "python3 -c 'import socket; print(socket.create_connection((\"{}\", 8080), 10).recv(9).decode())'"
        assert node.sh(fetch.format("127.0.0.1")) == node.sh(fetch.format(node.ip)) == sandbox2.sh(fetch.format(node.ip)) == "hello\n"
        assert sandbox.sh(fetch.format(node.ip)) == "hello\n"  # to itself, through the node: hairpin
        runtime.check(network | {"plugins": network["plugins"][:1]}, "web", sandbox.path)  # (portmap 1.1.1 looks for IPv4's rules in IPv6's table)
    finally:
        server.kill()
        server.communicate()
    assert client["ips"][0]["address"] != result["ips"][0]["address"]
    for name, box in (("web", sandbox), ("client", sandbox2)):
        runtime.delete(network, name, box.path, capabilities=mapping if name == "web" else None)
    assert pods(runtime) == set() and "8080" not in node.sh("nft list ruleset")
