"""In the place of flannel's plugin: the same result as Debian's bridge and host-local, and a node that flannel had before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.system.cluster import DUAL, Cluster
from tests.system.conftest import ping
from tests.system.runtime import DEBIAN, Runtime, Sandbox

from tweed import cni as plugin
from tweed.agent.client import call

pytestmark = pytest.mark.skipif(not (DEBIAN / "bridge").exists(), reason="Debian's plugins are not installed")
SHIPPED = {"hairpinMode": True, "isDefaultGateway": True}  # what flannel's own conflist has


@pytest.fixture
def node(tmp_path):
    with Cluster(tmp_path, 1, DUAL) as made:
        made.nodes[0].start()
        yield made.nodes[0]


@pytest.fixture
def boxes():
    made = [Sandbox() for _ in range(4)]
    yield made
    for box in made:
        box.remove()


def conflist(delegate, **more):
    return {"cniVersion": "0.3.1", "name": "cbr0", "plugins": [{"type": "flannel", "delegate": delegate, **more}]}


def environment(node):
    return dict(line.split("=") for line in node.subnet_file.read_text().splitlines())


def generated(node, delegate):
    """What flannel's plugin makes of the shipped configuration and subnet.env (flannel 1.9.1), for Debian's bridge."""
    env = environment(node)
    ranges = [
        [{"subnet": f"{address.rpartition('1/')[0]}{'0' if key == 'FLANNEL_SUBNET' else ''}/{address.rpartition('/')[2]}"}]
        for key in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")
        for address in [env[key]]
    ]
    return {
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "bridge",
        "ipMasq": env["FLANNEL_IPMASQ"] != "true",
        "mtu": int(env["FLANNEL_MTU"]),
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(node.state.parent / "cni" / "networks"),
            "ranges": ranges,
            "routes": [{"dst": env["FLANNEL_NETWORK"]}, {"dst": env["FLANNEL_IPV6_NETWORK"]}],
        },
    } | delegate


def shape(node, box, result):
    """What a container and its node have, without what is chosen freely: MACs, the device's name on the node, the link's own addresses."""
    port = result["interfaces"][1]["name"]
    [inside] = json.loads(box.sh("ip -j -d addr show eth0"))
    [bridge] = json.loads(node.sh("ip -j -d addr show cni0"))
    routes = sorted(line.replace(" proto kernel", "").strip() for line in (box.sh("ip route") + box.sh("ip -6 route")).splitlines() if "fe80" not in line)

    def addresses(device):
        return sorted(f"{a['local']}/{a['prefixlen']} {a['scope']} {a.get('tentative', False)}" for a in device["addr_info"] if a["scope"] == "global")

    return {
        "inside": (inside["mtu"], inside["operstate"], inside["linkinfo"]["info_kind"], addresses(inside)),
        "bridge": (bridge["mtu"], bridge["linkinfo"]["info_kind"], bridge["promiscuity"], addresses(bridge)),
        "port": (json.loads(node.sh(f"ip -j link show {port}"))[0]["mtu"], "hairpin on" in node.sh(f"bridge -d link show dev {port}")),
        "routes": routes,
        "result": [
            [(i["name"] if i["name"] != port else "port", "sandbox" in i) for i in result["interfaces"]],
            result["ips"],
            sorted((r["dst"], r.get("gw")) for r in result["routes"]),
        ],
    }


@pytest.mark.parametrize(
    "delegate",
    [SHIPPED, {}, {"promiscMode": True, "isDefaultGateway": True}, SHIPPED | {"mtu": 1400}],
    ids=["as shipped", "nothing set", "promiscuous", "another MTU"],
)
def test_the_same_as_bridge_and_host_local(node, boxes, delegate):
    """One after the other on the same node, each with a bridge of its making; the address is the first one both times."""
    before = node.sh("ip -o link | cut -d: -f2")
    debian = Runtime(node)
    config = generated(node, delegate)
    address = environment(node)["FLANNEL_SUBNET"].rpartition("1/")[0] + "2"
    with_bridge = config | {"ipMasq": False}  # iptables is not what is compared
    theirs_result = debian.add({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [with_bridge]}, "c1", boxes[0].path)
    boxes[0].sh("while ip -6 addr show eth0 | grep -q tentative; do sleep 0.1; done")
    theirs = shape(node, boxes[0], theirs_result)
    debian.delete({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [with_bridge]}, "c1", boxes[0].path)
    node.sh("ip link del cni0")
    assert node.sh("ip -o link | cut -d: -f2") == before

    runtime = drop_in(node)
    ours_result = runtime.add(conflist(delegate), "c1", boxes[1].path)
    ours = shape(node, boxes[1], ours_result)
    assert address in str(theirs["result"]) and address in str(ours["result"])
    # Ours says of each route the gateway that it has; host-local leaves it out, and the kernel has the same.
    gateways = {"4": theirs_result["ips"][0]["gateway"], "6": theirs_result["ips"][1]["gateway"]}
    theirs["result"][2] = [(dst, gw or gateways["6" if ":" in dst else "4"]) for dst, gw in theirs["result"][2]]
    assert ours == theirs
    assert not ping((boxes[1].name, ip["gateway"]) for ip in ours_result["ips"])


def drop_in(node):
    directory = node.directory / "bin"
    done = node.tweed("cni", "install", "--bin-dir", str(directory), "--conf-dir", str(node.directory / "net.d"), "--flannel")
    assert done.returncode == 0, done.stderr
    return Runtime(node, directory)


@pytest.mark.parametrize(
    ("delegate", "more", "code", "said"),
    [
        ({"type": "ipvlan"}, {}, 2, "delegate.type"),
        ({"type": 5}, {}, 6, "delegate.type"),
        ({"name": "x"}, {}, 7, "must not have 'name' field"),
        ({"ipam": {}}, {}, 7, "must not have 'ipam' field"),
        ({"isGateway": False}, {}, 2, "isGateway"),
        ({"hairpinMode": True, "promiscMode": True}, {}, 7, "at the same time"),
        ({}, {"ipam": {"type": "dhcp"}}, 2, "ipam.type"),
    ],
)
def test_what_flannel_refuses_or_we_cannot_do(node, boxes, delegate, more, code, said):
    runtime = drop_in(node)
    config = conflist(delegate, **more)["plugins"][0] | {"cniVersion": "0.3.1", "name": "cbr0"}
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": boxes[0].path, "CNI_IFNAME": "eth0"}
    answer = runtime.run("flannel", config, **variables)
    assert answer.error == code and said in answer.document["msg"] and "cni0" not in node.sh("ip link")


def test_another_nodes_subnet_env_is_refused_and_none_is_no_error(node, boxes, tmp_path):
    runtime = drop_in(node)
    other = tmp_path / "other.env"
    other.write_text("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.250.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": boxes[0].path, "CNI_IFNAME": "eth0"}
    config = {"cniVersion": "0.3.1", "name": "cbr0", "type": "flannel", "delegate": SHIPPED}
    answer = runtime.run("flannel", config | {"subnetFile": str(other)}, **variables)
    assert answer.error == 7 and "10.244.250.0/24" in answer.document["msg"]
    node.subnet_file.unlink()
    assert runtime.run("flannel", config, **variables).code == 0


def test_masquerading_as_flannel_would_without_the_agents(node, boxes):
    """FLANNEL_IPMASQ=false makes flannel's plugin ask the bridge plugin for it; here the agent does it, for as long as such containers are there."""
    runtime = drop_in(node)
    assert "FLANNEL_IPMASQ=false" in node.subnet_file.read_text() and "tweed-1" not in node.sh("nft list tables")
    runtime.add(conflist(SHIPPED), "c1", boxes[0].path)
    assert "masquerade" in node.sh("nft list ruleset")
    runtime.delete(conflist(SHIPPED), "c1", boxes[0].path)


def test_a_node_taken_over_from_flannel(node, boxes):
    """Its containers keep their addresses and are deleted by us; what leaked is freed; nobody gets an address twice."""
    debian, old = Runtime(node), {"cniVersion": "0.3.1", "name": "cbr0", "plugins": [generated(node, SHIPPED) | {"ipMasq": False}]}
    node.end()
    running = debian.add(old, "running", boxes[0].path)
    networks = node.state.parent / "cni" / "networks" / "cbr0"
    base = environment(node)["FLANNEL_SUBNET"].rpartition("1/")[0]
    for number, age in ((9, 3600), (3, 3600), (4, 0)):  # two that leaked, one that is being attached just now
        (networks / f"{base}{number}").write_text(f"leaked{number}\r\neth0")
        os.utime(networks / f"{base}{number}", (time.time() - age, time.time() - age))
    unknown = boxes[1]  # a container whose file was lost (k3s#5885)
    node.sh(f"ip link add v5 type veth peer name eth0 netns {unknown.name}; ip link set v5 master cni0 up")
    unknown.sh(f"ip link set eth0 up; ip addr add {base}5/24 dev eth0")
    boxes[3].sh(f"ip addr add {base}6/24 dev lo")  # of another node (or lab) on this machine
    node.start()
    runtime = drop_in(node)
    mac = json.loads(node.sh("ip -j link show cni0"))[0]["address"]
    assert {path.name for path in networks.glob(f"{base}*")} == {f"{base}2", f"{base}4"}
    got = [runtime.add(conflist(SHIPPED), "new", boxes[2].path)["ips"][0]["address"]]
    assert got == [f"{base}3/24"]
    for address in (2, 4, 5):
        answer = runtime.run(
            "flannel",
            {"cniVersion": "0.3.1", "name": "cbr0", "type": "flannel", "delegate": SHIPPED},
            CNI_COMMAND="ADD",
            CNI_CONTAINERID="x",
            CNI_NETNS=boxes[2].path,
            CNI_IFNAME="eth1",
            CNI_ARGS=f"IP={base}{address}",
        )
        assert answer.error == 102 and "attached already" in answer.document["msg"]
    assert json.loads(node.sh("ip -j link show cni0"))[0]["address"] == mac
    assert runtime.add(conflist(SHIPPED), "new", boxes[2].path, ifname="eth1", args=f"IP={base}6")["ips"][0]["address"] == f"{base}6/24"
    runtime.delete(conflist(SHIPPED), "new", boxes[2].path, ifname="eth1")
    assert not ping([(boxes[2].name, f"{base}2"), (boxes[0].name, f"{base}3")])
    runtime.results["running", "eth0"] = running
    runtime.delete(conflist(SHIPPED), "running", boxes[0].path)
    assert "eth0" not in boxes[0].sh("ip link") and not (networks / f"{base}2").exists()
    assert {pod["container_id"] for pod in call(node.socket, "GET", "/v1/attachments")} == {"new"}


def test_a_node_given_back_to_flannel(node, boxes):
    """Our containers stay; host-local gives nobody their addresses."""
    runtime = drop_in(node)
    ours = runtime.add(conflist(SHIPPED), "ours", boxes[0].path)
    config = generated(node, SHIPPED) | {"ipMasq": False}
    done = node.tweed("cleanup", "--to-flannel", *node.flags)
    assert done.returncode == 0 and "left 1 containers attached; their 2 addresses" in done.stdout, done.stdout + done.stderr
    node.end()
    theirs = Runtime(node).add({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [config]}, "theirs", boxes[1].path)
    assert not {ip["address"] for ip in ours["ips"]} & {ip["address"] for ip in theirs["ips"]}
    assert not ping([(boxes[1].name, ours["ips"][0]["address"].partition("/")[0])])


@pytest.mark.parametrize("theirs", [False, True], ids=["alone", "beside containers of flannel's"])
def test_a_node_given_back_taken_over_again_and_left(node, boxes, theirs):
    """Of what we made the first time nothing stays behind, unless somebody uses it: then that is said."""
    runtime = drop_in(node)
    runtime.add(conflist(SHIPPED), "ours", boxes[0].path)
    config = generated(node, SHIPPED) | {"ipMasq": False}
    assert node.tweed("cleanup", "--to-flannel", *node.flags).returncode == 0
    node.end()
    if theirs:
        Runtime(node).add({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [config]}, "theirs", boxes[1].path)
    node.start()
    assert {pod["container_id"] for pod in call(node.socket, "GET", "/v1/attachments")} == {"ours"}
    done = node.tweed("cleanup", *node.flags)
    assert done.returncode == 0 and "detached 1 containers" in done.stdout, done.stdout + done.stderr
    node.end()
    assert ("left cni0: devices of others are on it" in done.stdout) == theirs == ("cni0" in node.sh("ip link"))
    assert "eth0" not in boxes[0].sh("ip link") and ("eth0" in boxes[1].sh("ip link")) == theirs


@pytest.mark.parametrize(("name", "words"), [("flannel", ("--flannel",)), ("tweed", ())])
def test_somebody_elses_plugin_is_kept_and_brought_back(node, name, words):
    """Also as a symbolic link, also the one that somebody put there after us: flannel's own DaemonSet copies its plugin at each start."""
    directory = node.directory / "opt"
    places = ("--bin-dir", str(directory), "--conf-dir", str(node.directory / "none"))
    directory.mkdir()
    (directory / name).write_bytes(b"\x7fELF theirs")

    def install():
        done = node.tweed("cni", "install", *places, *words)
        assert done.returncode == 0 and b"/tweed.agent" in (directory / name).read_bytes()
        return f"kept {directory / name}, which is not tweed's, as {name}.before-tweed; tweed cni uninstall brings it back" in done.stdout

    def uninstall():
        done = node.tweed("cni", "uninstall", *places)
        assert done.returncode == 0
        return sorted(path.name for path in directory.iterdir()), done.stdout, done.stderr

    assert [install(), install()] == [True, False]
    assert (directory / name).stat().st_mode & 0o777 == 0o755 and (node.directory / "none").exists() == (name == "tweed")
    (directory / name).unlink()
    (directory / name).write_bytes(b"\x7fELF theirs, newer")
    left, _, said = uninstall()
    assert left == [name, f"{name}.before-tweed"] and f"left alone {directory / name}: it is not tweed's" in said
    assert install()
    left, said, _ = uninstall()
    assert left == [name] and f"brought back {directory / name}" in said
    assert (directory / name).read_bytes() == b"\x7fELF theirs, newer"
    (directory / name).rename(directory / "elsewhere")
    (directory / name).symlink_to("elsewhere")
    assert install()
    assert (directory / "elsewhere").read_bytes() == b"\x7fELF theirs, newer"
    (directory / name).unlink()
    assert uninstall()[0] == ["elsewhere", name] and os.readlink(directory / name) == "elsewhere"


def test_the_plugin_in_python_is_kept_compiled(node):
    """Each call would compile it otherwise. What somebody else has put there stays."""
    directory = node.directory / "opt"
    words = ("--bin-dir", str(directory), "--conf-dir", str(node.directory / "none"))
    for _ in range(2):
        assert node.tweed("cni", "install", *words, "--relay", "python").returncode == 0
    [compiled] = (directory / "tweed.d" / "__pycache__").iterdir()
    before = compiled.stat().st_mtime_ns
    (directory / "link").symlink_to("tweed")
    for name in ("tweed", "link"):
        answer = subprocess.run([directory / name], env={"CNI_COMMAND": "VERSION"}, input="{}", capture_output=True, text=True)
        assert "1.1.0" in json.loads(answer.stdout)["supportedVersions"] and not answer.stderr
    assert compiled.stat().st_mtime_ns == before
    compiled.unlink()
    subprocess.run([directory / "tweed"], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=True)
    assert compiled.exists()  # as after an upgrade of Python
    (directory / "tweed.d" / "relay.py").rename(directory / "elsewhere")
    answer = subprocess.run([directory / "tweed"], env={"CNI_COMMAND": "ADD"}, input="{}", capture_output=True, text=True)
    assert answer.returncode == 1 and json.loads(answer.stdout)["code"] == 5 and "tweed cni install" in answer.stdout
    (directory / "elsewhere").rename(directory / "tweed.d" / "relay.py")
    (directory / "tweed.d" / "theirs").touch()
    assert node.tweed("cni", "uninstall", *words).returncode == 0
    assert sorted(str(path.relative_to(directory)) for path in directory.rglob("*")) == ["link", "tweed.d", "tweed.d/theirs"]


def test_what_python_does_not_have_built_in_is_found(tmp_path):
    """Debian's has _socket, others keep it in a file of the standard library."""
    (tmp_path / "tweed.d").mkdir()
    copy = shutil.copy(Path(plugin.__file__).with_name("plugin.py"), tmp_path)
    (tmp_path / "tweed.d" / "relay.py").write_text("import colorsys\n\ndef run(path):\n    print(colorsys.__name__, path.decode())\n")
    done = subprocess.run(["/usr/bin/python3", "-IS", copy], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"colorsys {tmp_path}/tweed.agent\n", "")


def test_installing_and_uninstalling(node):
    directory, conf_dir = node.directory / "opt", node.directory / "net.d"
    conf_dir.mkdir()
    (conf_dir / "05-other.conflist").write_text("{}")
    words = ("--bin-dir", str(directory), "--conf-dir", str(conf_dir))
    done = node.tweed("cni", "install", *words)
    assert done.returncode == 0 and "05-other.conflist comes before 10-tweed.conflist and wins" in done.stdout
    written = json.loads((conf_dir / "10-tweed.conflist").read_text())
    assert written["cniVersion"] == "1.0.0" and [p["type"] for p in written["plugins"]] == ["tweed", "portmap", "bandwidth"]
    assert (directory / "tweed").stat().st_mode & 0o777 == 0o755 and (conf_dir / "10-tweed.conflist").stat().st_mode & 0o777 == 0o644
    ours = (conf_dir / "10-tweed.conflist").read_text()
    (conf_dir / "10-tweed.conflist").write_text(ours.replace('"tweed",', '"tweed", "ipam": {"part": "1/2"},', 2))
    assert "left alone" in node.tweed("cni", "install", *words).stdout and "1/2" in (conf_dir / "10-tweed.conflist").read_text()
    (conf_dir / "10-tweed.conflist").write_text(json.dumps(written | {"plugins": written["plugins"][:1]}, indent=2) + "\n")
    assert "wrote" in node.tweed("cni", "install", *words).stdout and (conf_dir / "10-tweed.conflist").read_text() == ours
    (conf_dir / "10-tweed.conflist").write_text('{"somebody": "else"}')
    assert "left alone" in node.tweed("cni", "install", *words).stdout
    done = node.tweed("cni", "uninstall", *words)
    assert "left alone" in done.stderr and (conf_dir / "10-tweed.conflist").exists() and [*directory.iterdir()] == []
    read_only = node.tweed("cni", "install", "--bin-dir", "/proc/x", "--conf-dir", str(conf_dir))
    assert read_only.returncode == 1 and "cannot be written" in read_only.stderr and read_only.stderr.count("\n") == 1
    without = subprocess.run(
        node.argv(
            "/usr/bin/env",
            "PATH=/nonexistent",
            sys.executable,
            "-m",
            "tweed",
            "cni",
            "install",
            *words,
            "--relay",
            "c",
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert without.returncode == 1 and "no C compiler" in without.stderr
