"""The plugin while agents come, go and are killed, and on a node that flannel had before."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.system.cluster import DUAL, V4, Cluster, wait_for
from tests.system.conftest import ping
from tests.system.runtime import PluginFailed, Runtime, Sandbox

from tweed.agent.client import call

NETWORK = {"cniVersion": "1.0.0", "name": "tweed", "plugins": [{"type": "tweed"}]}
SOURCE = Path(__file__).parents[2] / "src" / "tweed"


def conf(version="1.0.0", **plugin):
    return {"cniVersion": version, "name": "tweed", "type": "tweed", **plugin}


def variables(command, netns, container="c1", ifname="eth0", **more):
    return {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname, **more}


@pytest.fixture(params=[V4], ids=["v4"])
def node(request, tmp_path):
    with Cluster(tmp_path, 1, request.param) as made:
        made.nodes[0].start()
        yield made.nodes[0]


def installed(node, relay="c", *words):
    directory = node.directory / f"bin-{relay}"
    done = node.tweed("cni", "install", "--bin-dir", str(directory), "--conf-dir", str(node.directory / "net.d"), "--relay", relay, *words)
    assert done.returncode == 0, done.stderr
    return Runtime(node, directory)


@contextlib.contextmanager
def sandboxes(count):
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            box = Sandbox()
            stack.callback(box.remove)
            made.append(box)
        yield made


def attached(node):
    return {pod["container_id"]: pod for pod in call(node.socket, "GET", "/v1/attachments")}


def queued(node):
    return sorted(path.name for path in (node.socket.parent / "cni-queue").iterdir())


# ---- without an agent -------------------------------------------------------------------------------------------


def test_an_agent_that_is_away(node):
    """DEL is taken down and done later; everything else is refused after ten seconds, in the words that the agent left."""
    runtimes = {relay: installed(node, relay) for relay in ("c", "python")}
    said = re.compile(r"the tweed agent of this node does not answer; when it was last heard of, the agent of n1 \(pid \d+\) was ready")
    with sandboxes(3) as boxes:
        before = {relay: runtime.add(NETWORK, relay, box.path) for (relay, runtime), box in zip(runtimes.items(), boxes, strict=False)}
        node.end(signal.SIGKILL)
        calls, never = [], []
        for relay, runtime in runtimes.items():  # two that belong to an agent which never was
            lost = Runtime(node, node.directory / f"lost-{relay}")
            shutil.copytree(runtime.directories[0], lost.directories[0])
            (lost.directories[0] / "tweed.agent").write_text("/nonexistent/run\n")
            never.append(lost.popen("tweed", conf(), **variables("ADD", boxes[2].path, "never")))
        for (relay, runtime), box in zip(runtimes.items(), boxes, strict=False):
            calls.append(("ADD", runtime.popen("tweed", conf(), **variables("ADD", boxes[2].path, "third"))))
            calls.append(("STATUS", runtime.popen("tweed", conf("1.1.0"), CNI_COMMAND="STATUS")))
            calls.append(("CHECK", runtime.popen("tweed", conf(prevResult=before[relay]), **variables("CHECK", box.path, relay))))
            assert runtime.run("tweed", conf(prevResult=before[relay]), **variables("DEL", box.path, relay)) == (0, "", "")
            assert "eth0" in box.sh("ip link")  # not yet
        assert queued(node) == ["0", "1"] and all(process.poll() is None for _, process in calls)
        for command, process in calls:
            out, err = process.communicate(timeout=60)
            document = json.loads(out)
            assert (process.returncode, document["code"], err) == (1, 50 if command == "STATUS" else 11, "")
            assert said.match(document["msg"]) and "see whether tweed agent runs" in document["details"]
            assert document["cniVersion"] == ("1.1.0" if command == "STATUS" else "1.0.0")
        for process in never:
            out, _ = process.communicate(timeout=60)
            assert json.loads(out)["code"] == 11 and "none has since it was started" in json.loads(out)["msg"]
        node.start()
        # The queue comes first of all: the address is free, so that the new one does not come beside it.
        address = before["c"]["ips"][0]["address"]
        result = runtimes["c"].add(NETWORK, "third", boxes[2].path, args=f"IP={address}")
        assert result["ips"][0]["address"] == address
        assert queued(node) == [] and set(attached(node)) == {"third"} and not any("eth0" in box.sh("ip link") for box in boxes[:2])


def test_a_node_on_which_no_agent_ever_ran(node, tmp_path):
    """Not even a directory: DEL succeeds. A queue that is full refuses."""
    for relay in ("c", "python"):
        runtime = installed(node, relay)
        run_dir = tmp_path / f"never-{relay}"
        (runtime.directories[0] / "tweed.agent").write_text(f"{run_dir}\n")
        assert runtime.run("tweed", conf(), **variables("DEL", "")).code == 0
        queue = run_dir / "cni-queue"
        assert [path.name for path in queue.iterdir()] == ["0"] and queue.stat().st_mode & 0o777 == 0o700
        assert (queue / "0").stat().st_mode & 0o777 == 0o600
        for number in range(1, 1000):
            (queue / str(number)).touch()
        full = runtime.run("tweed", conf(), **variables("DEL", ""))
        assert full.error == 11 and "full" in full.document["msg"] and len([*queue.iterdir()]) == 1000


CLEAR = """
import os, sys, time
while os.getppid() == int(sys.argv[2]):
    for name in os.listdir(sys.argv[1]):
        if name.startswith("."):
            try:
                os.unlink(f"{sys.argv[1]}/{name}")
                print(name, flush=True)
            except FileNotFoundError:
                pass
    time.sleep(0.0005)
"""


@pytest.mark.parametrize("relay", ["c", "python"])
def test_an_agent_that_starts_clears_what_is_half_written_and_no_call_is_lost(node, tmp_path, relay):
    """It cannot tell a call that was killed from one that is still being written, which then takes another number."""
    runtime = installed(node, relay)
    queue, log = tmp_path / "never" / "cni-queue", tmp_path / "cleared"
    queue.mkdir(parents=True)
    (runtime.directories[0] / "tweed.agent").write_text(f"{queue.parent}\n")
    long = conf(padding="x" * 500_000)  # it takes a while to be written
    answers = []
    with log.open("w") as output:
        clearing = subprocess.Popen([sys.executable, "-c", CLEAR, str(queue), str(os.getpid())], stdout=output)
    try:
        with ThreadPoolExecutor(8) as pool:
            while len(answers) < 40 or (not log.stat().st_size and len(answers) < 800):
                answers += pool.map(lambda number: runtime.run("tweed", long, **variables("DEL", "", f"c{number}")), range(20))
    finally:
        clearing.kill()
        clearing.wait()
    assert log.stat().st_size and {answer.code for answer in answers} == {0}
    assert len([*queue.iterdir()]) == len(answers)


def test_an_agent_that_has_no_lease_says_why(tmp_path):
    with Cluster(tmp_path, 1, None) as cluster, sandboxes(1) as (box,):
        [node] = cluster.nodes
        node.start(ready=False)
        wait_for(lambda: "no network configuration" in node.status()["reason"], "it waits")
        runtime = installed(node)
        status, add = runtime.run("tweed", conf("1.1.0"), CNI_COMMAND="STATUS"), runtime.run("tweed", conf(), **variables("ADD", box.path))
        assert (status.error, add.error) == (50, 11)
        assert all("no network configuration in sqlite://" in answer.document["msg"] for answer in (status, add))
        assert runtime.run("tweed", conf(), **variables("DEL", box.path)).code == 0
        node.end(signal.SIGKILL)
        away = (node.socket.parent / "cni-away").read_text()
        assert "was not ready: no network configuration" in away and json.loads("{" + away)["details"]


def test_an_agent_that_comes_while_the_plugin_waits(node):
    runtime = installed(node)
    node.end()
    with sandboxes(1) as (box,):
        waiting = runtime.popen("tweed", conf(), **variables("ADD", box.path))
        time.sleep(0.3)
        node.start()
        out, _ = waiting.communicate(timeout=60)
        # It may have asked before the lease was renewed, and was told to try again.
        assert waiting.returncode == 0 or json.loads(out)["code"] == 11
        assert ("c1" in attached(node)) == (waiting.returncode == 0) == ("eth0" in box.sh("ip link"))


def test_a_queue_with_rubbish_in_it(node):
    runtime = installed(node)
    with sandboxes(1) as (box,):
        runtime.add(NETWORK, "c1", box.path)
        node.end(signal.SIGKILL)
        queue = node.socket.parent / "cni-queue"
        for name, content in {"0": b"", "1": b"\0" * 100, "2": b"CNI_CONTAINERID=../x\0CNI_IFNAME=e\0\0{}", "3": os.urandom(5000), ".4": b"half"}.items():
            (queue / name).write_bytes(content)
        (queue / "x").write_bytes(b"not ours")
        assert runtime.run("tweed", conf(), **variables("DEL", box.path)).code == 0
        node.start()
        assert runtime.run("tweed", conf("1.1.0"), CNI_COMMAND="STATUS").code == 0
        assert queued(node) == ["x"] and attached(node) == {}


# ---- a hundred at once ------------------------------------------------------------------------------------------


def test_a_hundred_at_once_with_the_agent_killed_in_the_middle(node):
    """Every answer is either complete or undone, no address is there twice, nothing is left over."""
    runtime = installed(node)
    count = 100
    with sandboxes(count) as boxes, ThreadPoolExecutor(24) as pool:

        def do(command, number):
            return runtime.run("tweed", conf(), **variables(command, boxes[number].path, f"c{number}"))

        futures = [pool.submit(do, "ADD", number) for number in range(count)]
        wait_for(lambda: sum(f.done() for f in futures) >= 10, "some are attached")
        kills = 0
        while not all(f.done() for f in futures) and kills < 4:
            node.end(signal.SIGKILL)
            kills += 1
            node.start(ready=False)
            seen = sum(f.done() for f in futures)
            wait_for(lambda seen=seen: sum(f.done() for f in futures) >= min(seen + 12, count), "some more are answered")
        answers = [f.result() for f in futures]
        assert kills >= 2
        wait_for(lambda: node.status()["ready"], "ready again")
        runtime.run("tweed", conf("1.1.0"), CNI_COMMAND="STATUS")  # whatever comes first plays the queue
        have = attached(node)
        good = {f"c{number}": answer.document for number, answer in enumerate(answers) if answer.code == 0}
        assert len(good) >= 10 and {answer.error for answer in answers if answer.code} <= {11}
        assert set(have) == set(good) and queued(node) == []
        given = [document["ips"][0]["address"] for document in good.values()]
        assert len(set(given)) == len(given)
        for number, box in enumerate(boxes):
            name = f"c{number}"
            assert f"inet {good[name]['ips'][0]['address']}" in box.sh("ip addr show eth0") if name in good else "eth0" not in box.sh("ip link"), name
        ports = {line.split()[1].partition("@")[0].rstrip(":") for line in node.sh("ip -o link show master cni0").splitlines()}
        assert ports == {document["interfaces"][1]["name"] for document in good.values()}
        assert not ping((boxes[int(name[1:])].name, node_gateway(document)) for name, document in good.items())
        assert all(answer.code == 0 for answer in pool.map(do, ["DEL"] * count, range(count)))
        assert attached(node) == {} and "veth" not in node.sh("ip link show master cni0")


def node_gateway(document):
    return document["ips"][0]["gateway"]


# ---- restarts ---------------------------------------------------------------------------------------------------


def test_traffic_and_check_survive_an_agent_that_is_killed_upgraded_and_started_again(node):
    def of_another_version():
        """What an earlier agent did not write yet, and a later one writes that this one does not know."""
        path = node.state / "attachments.json"
        ledger = json.loads(path.read_text())
        for entry in (ledger, *ledger["attachments"]):
            entry.pop("promisc", None)
            entry["of a later version"] = {"any": ["thing"]}
        path.write_text(json.dumps(ledger))

    runtime = installed(node)
    with sandboxes(2) as (first, second):
        runtime.add(NETWORK, "a", first.path)
        to = runtime.add(NETWORK, "b", second.path)["ips"][0]["address"].partition("/")[0]
        receiver = "import socket; s = socket.create_server(('', 7)); print(flush=True); c = s.accept()[0]\nwhile d := c.recv(65536): c.sendall(d)"
        server = subprocess.Popen(second.argv(sys.executable, "-c", receiver), stdout=subprocess.PIPE)
        server.stdout.readline()
        sender = f"import socket, sys; s = socket.create_connection(('{to}', 7), 10); s.settimeout(20)\n"
        sender += "for line in sys.stdin: s.sendall(line.encode()); print(s.recv(100).decode().strip(), flush=True)"
        client = subprocess.Popen(first.argv(sys.executable, "-c", sender), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def say(word):
            client.stdin.write(f"{word}\n")
            client.stdin.flush()
            return client.stdout.readline().strip()

        try:
            assert say("before") == "before"
            for number in (signal.SIGKILL, signal.SIGTERM):
                node.end(number)
                assert say("without an agent") == "without an agent"
                of_another_version()
                node.start()
                assert say("after") == "after"
            for name, box in (("a", first), ("b", second)):
                runtime.check(NETWORK, name, box.path)
            assert set(attached(node)) == {"a", "b"} and "WARNING container" not in node.log.read_text(), "the ledger was read"
        finally:
            for process in (client, server):
                process.kill()
                process.communicate()


def test_an_agent_that_has_just_been_started_attaches_as_soon_as_it_can(node):
    runtime = installed(node)
    with sandboxes(6) as boxes:
        for number, box in enumerate(boxes):
            node.end(signal.SIGKILL)
            node.start(ready=False)
            assert runtime.add(NETWORK, f"c{number}", box.path)["ips"]
        assert len(attached(node)) == len(boxes)


@pytest.mark.parametrize("lost", ["nothing", "ledger"])
def test_addresses_are_not_given_twice_after_a_restart(node, lost):
    runtime = installed(node)
    with sandboxes(3) as (first, second, third):
        one = runtime.add(NETWORK, "a", first.path)
        gone = runtime.add(NETWORK, "gone", third.path)
        runtime.delete(NETWORK, "gone", third.path)
        node.end(signal.SIGKILL)
        if lost == "ledger":
            (node.state / "attachments.json").write_bytes(b"")  # as a loss of power leaves it
        node.start()
        assert set(attached(node)) == {"a"} and attached(node)["a"]["addresses"] == [one["ips"][0]["address"]]
        asked = one["ips"][0]["address"].partition("/")[0]
        refused = runtime.run("tweed", conf(), **variables("ADD", second.path, "b", CNI_ARGS=f"IP={asked}"))
        assert refused.error == 102 and "attached already" in refused.document["msg"]
        if lost == "nothing":  # quarantine lives through it too
            address = gone["ips"][0]["address"].partition("/")[0]
            pool = {"subnet": f"{address}/24".replace(address.rpartition(".")[2] + "/", "0/"), "rangeStart": address, "rangeEnd": address}
            refused = runtime.run("tweed", conf(ipam={"ranges": [[pool]]}), **variables("ADD", second.path, "b"))
            assert refused.error == 11 and "until just now" in refused.document["msg"]
        runtime.check(NETWORK, "a", first.path)
        listed = [{"containerID": "a", "ifname": "eth0"}]
        for name, valid, left in (("another", [], {"a"}), ("tweed", listed, {"a"}), ("tweed", [], set())):  # by its network's name, which its device knows
            collected = runtime.run("tweed", conf("1.1.0", **{"name": name, "cni.dev/valid-attachments": valid}), CNI_COMMAND="GC")
            assert collected == (0, "", "") and set(attached(node)) == left
        runtime.delete(NETWORK, "a", first.path)
        assert attached(node) == {} and "veth" not in node.sh("ip link show master cni0")


def test_two_bridges_that_share_the_nodes_subnet(node):
    """Each has a part of it; containers of both reach each other through the node."""
    runtime = installed(node)
    left = NETWORK | {"name": "left", "plugins": [{"type": "tweed", "ipam": {"part": "1/2"}}]}
    right = NETWORK | {"name": "right", "plugins": [{"type": "tweed", "bridge": "cni1", "ipam": {"part": "2/2"}}]}
    with sandboxes(2) as (first, second):
        one, other = runtime.add(left, "a", first.path)["ips"][0], runtime.add(right, "b", second.path)["ips"][0]
        assert one["address"].endswith(".2/25") and other["address"].endswith(".130/25") and other["gateway"].endswith(".129")
        assert not ping([(first.name, other["address"].partition("/")[0]), (second.name, one["address"].partition("/")[0])])
        whole = runtime.run("tweed", conf(), **variables("ADD", second.path, "c", "eth1"))
        assert whole.error == 102 and "cni1" in whole.document["msg"] and '"part"' in whole.document["msg"]
        node.end(signal.SIGKILL)
        node.start()
        for network, name, box in ((left, "a", first), (right, "b", second)):
            runtime.check(network, name, box.path)
            runtime.delete(network, name, box.path)
        assert node.problems() == set()


def test_dockers_half_stays_dockers_over_a_restart(node):
    """Also without a docker0; and also where a configuration asks for it by name."""
    runtime = installed(node)
    done = node.tweed("docker-opts", "-f", str(node.subnet_file), "-d", str(node.directory / "options"), "--split")
    assert done.returncode == 0 and done.stdout.startswith("pods keep 10.244."), done.stderr
    node.end(signal.SIGKILL)
    node.start()
    with sandboxes(2) as (first, second):
        assert runtime.add(NETWORK, "a", first.path)["ips"][0]["address"].endswith(".2/25")
        refused = runtime.run("tweed", conf(ipam={"part": "2/2"}), **variables("ADD", second.path, "b"))
        assert refused.error == 7 and ".128/25 is not within 10.244." in refused.document["msg"] and "what Docker leaves to pods" in refused.document["msg"]


def test_a_node_that_gets_another_subnet(node):
    """Its old containers keep their addresses and their gateway while they live; with the last of them the old subnet is gone."""
    runtime = installed(node)
    with sandboxes(2) as (first, second):
        old = runtime.add(NETWORK, "old", first.path)["ips"][0]
        node.end()
        node.subnet_file.unlink()
        Path(node.cluster.store.removeprefix("sqlite://")).unlink()
        number = int(old["gateway"].split(".")[2])
        wanted = (number + 7) % 200 + 1
        node.cluster.configure(json.dumps(V4 | {"SubnetMin": f"10.244.{wanted}.0", "SubnetMax": f"10.244.{wanted}.0"}))
        node.start()
        new = runtime.add(NETWORK, "new", second.path)["ips"][0]
        assert new["address"] == f"10.244.{wanted}.2/24"
        assert not ping([(first.name, old["gateway"]), (second.name, new["gateway"])])
        runtime.check(NETWORK, "old", first.path)
        runtime.delete(NETWORK, "old", first.path)
        assert old["gateway"] not in node.sh("ip addr show cni0") and new["gateway"] in node.sh("ip addr show cni0")


def test_a_full_disk_undoes_and_says_so(node):
    runtime = installed(node)
    with sandboxes(2) as (first, second):
        runtime.add(NETWORK, "a", first.path)
        before = node.sh("ip -o link | cut -d: -f2")
        os.chmod(node.state, 0o500)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", node.state], check=True)
        try:
            answer = runtime.run("tweed", conf(), **variables("ADD", second.path, "b"))
            assert answer.error in (5, 100) and "cannot be written" in answer.document["msg"]
            assert node.sh("ip -o link | cut -d: -f2") == before and "eth0" not in second.sh("ip link")
            status = runtime.run("tweed", conf("1.1.0"), CNI_COMMAND="STATUS")
            assert status.error == 50 and "cannot be written" in status.document["msg"]
            node.sh("ip addr flush dev cni0; ip link set cni0 down")  # what is put back needs no file
            wait_for(lambda: "inet " in node.sh("ip addr show cni0 up"), "the bridge is as it was")
        finally:
            subprocess.run(["umount", node.state], check=True)
            os.chmod(node.state, 0o700)
        assert runtime.run("tweed", conf(), **variables("ADD", second.path, "b")).code == 0


# ---- an agent that may not enter --------------------------------------------------------------------------------


def test_an_agent_with_net_admin_alone_attaches_through_the_relay_that_enters(tmp_path):
    """Without CAP_SYS_ADMIN it cannot enter a namespace: relay.c does, and hands over what it opened there."""
    with Cluster(tmp_path, 1, DUAL) as cluster, sandboxes(2) as (first, second):
        [node] = cluster.nodes
        # What such a container has: everything root may do to its own files, and the network.
        kept = "net_admin,net_raw,net_bind_service,dac_override,chown,fowner,kill"
        with node.log.open("ab") as log:
            command = ["setpriv", f"--bounding-set=-all,+{kept.replace(',', ',+')}", sys.executable, "-m", "tweed", "agent", *node.flags]
            node.process = subprocess.Popen(node.argv(*command), env=cluster.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: node.status()["subnet"] and node.status()["devices"], f"it has a lease (log: {node.log})")
        status = Path(f"/proc/{node.status()['pid']}/status").read_text()
        assert not int(re.search(r"CapEff:\s+(\w+)", status)[1], 16) >> 21 & 1
        runtime, python = installed(node, "c"), installed(node, "python")
        result = wait_for(lambda: runtime.add(NETWORK, "a", first.path), "attached")
        assert not ping((first.name, ip["gateway"]) for ip in result["ips"])
        assert first.sh("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").strip() == "0"
        runtime.check(NETWORK, "a", first.path)
        with pytest.raises(PluginFailed) as failed:
            python.add(NETWORK, "b", second.path)
        assert failed.value.answer.error == 100 and "CAP_SYS_ADMIN" in failed.value.answer.document["msg"]
        # The Python relay does the same where Python can (3.12); here with a setns made of libc's.
        driver = "import ctypes, posix, sys; libc = ctypes.CDLL(None); posix.setns = lambda fd, kind: libc.setns(fd, kind)\n"
        driver += "path = sys.argv[1]; exec(compile(open(path).read(), path, 'exec'), {'__file__': path})"
        plugin = python.directories[0] / "tweed"
        process = subprocess.run(
            node.argv(sys.executable, "-c", driver, str(plugin)),
            env=variables("ADD", second.path, "b"),
            input=json.dumps(conf()),
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stdout
        assert not ping((second.name, ip["gateway"]) for ip in json.loads(process.stdout)["ips"])
        runtime.delete(NETWORK, "a", first.path)
        assert "eth0" not in first.sh("ip link")
