"""Starting, ending, dying and leaving: what stays, what comes back, and what is gone afterwards. Real agents, real kernel."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.cluster import DUAL, V4, Cluster, Node, wait_for
from tests.system.stream import Stream

from tweed.agent.client import call

STATE = """
ip -d link show; ip addr show; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; nft list ruleset; iptables-save; ip6tables-save
grep -rs '' /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf | sort
"""


def everything(node: Node) -> list[str]:
    """All that tweed may touch in a node's namespace, without counters, timers, lifetimes and device numbers."""
    lines = node.sh(STATE).splitlines()
    volatile = r"^\d+: |^#.*|\[\d+:\d+\]|expires \d+sec|valid_lft.*|[a-z_]+_timer +[0-9.]+| qlen \d+"
    return [line for line in (re.sub(volatile, "", line).rstrip() for line in lines) if line]


def vtep(node: Node) -> str:
    return str(node.status()["subnet"]).split("/")[0]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes, both families, agents not started."""
    with Cluster(tmp_path, 2, DUAL) as cluster:
        yield cluster.nodes[0], cluster.nodes[1]


FLAGS = ("--resync", "0.2", "--ip-masq")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("lifecycle"), 2) as cluster:
        yield cluster


@pytest.fixture
def running(shared: Cluster) -> tuple[Node, Node]:
    """Two nodes, IPv4, agents that know each other; the same two for many tests, brought back to that by each."""
    a, b = shared.nodes
    for node in (a, b):
        if node.process is None or node.process.poll() is not None:
            node.start(*FLAGS)
    if any(d["name"] != "flannel.1" for d in a.status()["devices"]) or a.status()["network"]["networks"] != ["10.244.0.0/16"]:
        shared.configure(json.dumps(V4))
    for node in (a, b):
        wait_for(lambda node=node: [d["name"] for d in node.status()["devices"]] == ["flannel.1"], "one device")
        wait_for(lambda node=node: "10.244." in str(node.status()["subnet"]), "the usual network")
        wait_for(lambda node=node: sum("lladdr" in line for line in node.tables()) == 1 and not node.problems() and node.status()["ready"], "one peer")
    return a, b


# ---- ending and coming back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_packet_is_lost_however_an_agent_ends_and_when_it_comes_back(running: tuple[Node, Node], number: int) -> None:
    a, b = running
    before, mac, subnet = a.tables(), a.status()["vtep_mac"], a.status()["subnet"]
    with Stream(a, vtep(a), b, vtep(b)) as there, Stream(b, vtep(b), a, vtep(a)) as back:
        wait_for(lambda: len(there.came) > 5, "the stream runs")
        assert a.end(number) == (0 if number != signal.SIGKILL else -9)
        assert a.tables() == before
        dead = there.sent
        wait_for(lambda: there.sent > dead + 20, "a while without an agent")
        a.start(*FLAGS)
        started = there.sent
        wait_for(lambda: there.sent > started + 20, "a while with the new one")
    assert there.lost == [] and back.lost == []
    assert (a.tables(), a.status()["vtep_mac"], a.status()["subnet"]) == (before, mac, subnet)
    assert a.status()["reconcile"]["repairs"] == 0 and a.problems() == set()


def test_subnet_and_mac_survive_a_reboot(pair: tuple[Node, Node]) -> None:
    """A reboot leaves the files in /var, not the kernel's state, and not those in /run: the store alone knows the node by its name and address."""
    a, _ = pair
    a.start()
    before, status = a.tables(), a.status()
    for forget in ([a.directory / "run"], [a.directory / "run", a.subnet_file]):
        a.end(signal.SIGKILL)
        a.sh("ip link del flannel.1; ip link del flannel-v6.1; nft flush ruleset; rm -rf " + " ".join(map(str, forget)))
        a.start()
        again = a.status()
        assert [again[k] for k in ("subnet", "subnet6", "vtep_mac", "vtep_mac6")] == [status[k] for k in ("subnet", "subnet6", "vtep_mac", "vtep_mac6")]
        assert a.tables() == before


def test_a_lost_lease_is_not_a_lost_subnet(pair: tuple[Node, Node]) -> None:
    """The store was wiped while the agent was down: subnet.env remembers."""
    a, b = pair
    a.start()
    subnet = a.status()["subnet"]
    a.end()
    assert b.tweed("lease", "release", subnet).returncode == 0
    a.start()
    assert a.status()["subnet"] == subnet


def test_a_second_agent_with_the_same_run_directory_is_refused(running: tuple[Node, Node]) -> None:
    a, _ = running
    assert a.process is not None
    done = a.tweed("agent", *a.flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert f"another agent (pid {a.process.pid}) runs with --run-dir {a.socket.parent}" in done.stderr
    assert a.status()["pid"] == a.process.pid and a.status()["ready"]


def test_a_peer_that_left_while_the_agent_was_down_leaves_no_residue(pair: tuple[Node, Node]) -> None:
    a, b = pair
    for node in (a, b):
        node.start("--resync", "0")
    wait_for(lambda: a.status()["peers"] and "lladdr" in "".join(a.tables()), "a knows b")
    a.end(signal.SIGKILL)
    assert b.tweed("cleanup", *b.flags).returncode == 0
    a.start("--resync", "0")
    wait_for(lambda: not any(word in "".join(a.tables()) for word in ("lladdr", "proto 83", "dst ")), "nothing of b is left")
    assert a.status()["peers"] == []


def test_removing_a_peer_whose_rows_are_gone_already(running: tuple[Node, Node]) -> None:
    """flannel waits 100 s for that. Here it is not even a failure."""
    a, b = running
    call(a.socket, "POST", "/v1/pause")
    fdb = "for m in $(bridge fdb show dev flannel.1 | cut -d' ' -f1); do bridge fdb del $m dev flannel.1; done"
    a.sh(f"ip route flush dev flannel.1; ip neigh flush dev flannel.1 nud permanent; {fdb}")
    assert b.tweed("cleanup", *b.flags).returncode == 0
    call(a.socket, "POST", "/v1/resume")
    wait_for(lambda: a.status()["peers"] == [] and a.status()["reconcile"]["reason"] != "start", "a knows that b left")
    status = a.status()
    assert status["ready"] and status["failures"] == [] and "refused" not in a.log.read_text()


# ---- cleanup --------------------------------------------------------------------------------------------------------


def leases(node: Node) -> list[str]:
    return [lease["node"] for lease in json.loads(node.tweed("lease", "list", "--json").stdout)["leases"]]


@pytest.mark.parametrize("state", ["running", "ended", "killed", "paused"])
def test_cleanup_leaves_the_node_as_it_was(pair: tuple[Node, Node], state: str) -> None:
    a, b = pair
    a.sh("ip link add gre type bridge; ip route add 10.99.0.0/16 via 192.168.2.2; nft add table ip mine; nft add chain ip mine c")
    before, files = everything(a), sorted(a.directory.iterdir())
    for node in (a, b):
        node.start("--ip-masq")
    wait_for(lambda: "lladdr" in "".join(a.tables()), "a knows b")
    assert everything(a) != before
    if state == "paused":
        call(a.socket, "POST", "/v1/pause")
    elif state != "running":
        a.end(signal.SIGTERM if state == "ended" else signal.SIGKILL)
    done = a.tweed("cleanup", *a.flags)
    assert done.returncode == 0, done.stderr
    assert everything(a) == before
    assert [path.name for path in sorted(a.directory.iterdir()) if path not in files] == ["log"]
    assert leases(a) == ["n2"]
    assert "ip link del flannel.1" in done.stdout and "released lease" in done.stdout
    if state in ("running", "paused"):
        assert a.process is not None and a.process.wait(10) == 0
    again = a.tweed("cleanup", *a.flags)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "nothing of tweed's was found on this node\n")
    wait_for(lambda: b.status()["peers"] == [], "b knows that a left")


def test_a_client_that_never_finishes_its_request_holds_nothing_up(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    for end in ("cleanup", "signal"):
        a.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(a.socket))
            client.send(b"POST /v1/attachments HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            wait_for(lambda: a.status()["ready"], "the agent answers others")
            if end == "cleanup":
                done = a.tweed("cleanup", *a.flags)
                assert done.returncode == 0, done.stderr
                assert a.process is not None and a.process.wait(10) == 0
            else:
                assert a.end() == 0
    assert "Traceback" not in a.log.read_text()


def test_cleanup_can_keep_the_lease(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    before = everything(a)
    a.start()
    subnet = a.status()["subnet"]
    done = a.tweed("cleanup", *a.flags, "--keep-lease")  # wherever it stands
    assert done.returncode == 0 and "released" not in done.stdout
    assert everything(a) == before and leases(a) == ["n1"]
    a.start()
    assert a.status()["subnet"] == subnet


def test_cleanup_releases_the_lease_without_subnet_env(pair: tuple[Node, Node]) -> None:
    a, b = pair
    b.start()
    a.start()
    a.subnet_file.unlink()
    done = a.tweed("cleanup", *a.flags)
    assert done.returncode == 0 and "released lease" in done.stdout and leases(a) == ["n2"]


def test_cleanup_where_nothing_ever_was(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    before = everything(a)
    done = a.tweed("cleanup", *a.flags)
    assert (done.returncode, done.stdout) == (0, "")
    assert everything(a) == before and list(a.directory.iterdir()) == []


def overwrite(file: Path, data: bytes) -> None:
    """The index of the -wal, which SQLite maps, keeps its length: the kernel ends who touches a page that was cut off, once in a thousand times."""
    with file.open("r+b" if file.name.endswith("-shm") else "wb") as opened:
        opened.write(data)


def test_cleanup_without_its_store(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    before = everything(a)
    a.start()
    for file in a.cluster.directory.glob("store.db*"):
        overwrite(file, b"x" * 8192)
    for _ in range(2):
        done = a.tweed("cleanup", *a.flags)
        assert done.returncode == 1 and "the lease cannot be released: " in done.stderr and "--keep-lease" in done.stderr
        assert everything(a) == before  # all else is done
    assert a.tweed("cleanup", *a.flags, "--keep-lease").returncode == 0
    assert not a.state.exists() and not a.subnet_file.exists()


def test_a_device_in_the_place_of_the_subnet_file_survives(pair: tuple[Node, Node]) -> None:
    """`--subnet-file /dev/null` is what somebody types who has no use for the file."""
    a, _ = pair
    a.sh(f"mknod {a.subnet_file} c 1 3")
    a.start()
    (problem,) = a.status()["problems"]
    assert problem["id"] == "subnet-file" and "it exists and is no file" in problem["text"]
    assert a.tweed("cleanup", *a.flags).returncode == 0
    assert a.subnet_file.is_char_device()


def test_cleanup_keeps_what_somebody_changed_since(pair: tuple[Node, Node]) -> None:
    """A sysctl that has another value by now is somebody's; a device of our name that is no VTEP, too."""
    a, _ = pair
    a.start()
    a.end()
    a.sh("ip link del flannel.1; ip link add flannel.1 type bridge; sysctl -qw net.ipv4.ip_forward=0 net.ipv4.ip_forward=1")
    assert a.tweed("cleanup", *a.flags).returncode == 0
    assert "bridge" in a.sh("ip -d link show flannel.1")


# ---- dry run --------------------------------------------------------------------------------------------------------


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(directory.rglob("*")) if "shm" not in path.name}


@pytest.mark.parametrize("store", ["empty", "with a peer", "absent", "its own"])
def test_a_dry_run_changes_nothing(tmp_path: Path, store: str) -> None:
    with Cluster(tmp_path, 2, None if store == "absent" else DUAL) as cluster:
        a, b = cluster.nodes
        if store in ("with a peer", "its own"):
            b.start()
            b.end()
        if store == "its own":
            a.start("--ip-masq")
            a.end()
            a.sh("ip link del flannel.1")
        seed = tmp_path / "net.json"
        seed.write_text(json.dumps(DUAL))
        before, files = everything(a), tree(tmp_path)  # nobody has the store open, so even its file must stay the same
        done = a.tweed("agent", *a.flags, "--dry-run", "--ip-masq", "--net-config-path", str(seed))
        assert done.returncode == 0, done.stderr
        assert everything(a) == before and tree(tmp_path) == files
        lines = done.stdout.splitlines()
        assert any(line.startswith("ip link add flannel.1 ") for line in lines)
        assert any("ip_forward" in line or "forwarding=1" in line for line in lines) == (store != "its own")
        if store in ("with a peer", "its own"):
            assert sum(line.startswith("ip route replace 10.244.") for line in lines) == 1
        if store == "empty":
            a.start("--ip-masq")
            done = [line.partition(" did ")[2] for line in a.log.read_text().splitlines() if " did sysctl " in line]
            assert [line for line in lines if line.startswith("sysctl ")] == done and any("accept_ra=2" in line for line in done)


# ---- configuration ----------------------------------------------------------------------------------------------------


def test_a_changed_vni_is_followed_and_the_old_device_goes(running: tuple[Node, Node]) -> None:
    a, b = running
    subnets = [n.status()["subnet"] for n in (a, b)]
    a.cluster.configure(json.dumps({**V4, "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789}}))
    for node in (a, b):
        wait_for(lambda node=node: node.status()["ready"] and node.status()["devices"][0]["name"] == "flannel.7", "the new device")
        wait_for(lambda node=node: "lladdr" in "".join(node.tables()), "the peer on it")
        assert not any("flannel.1:" in line for line in node.tables())
        assert "tweed-1" not in node.sh("nft list tables") and "tweed-7" in node.sh("nft list tables")
    assert [n.status()["subnet"] for n in (a, b)] == subnets
    with Stream(a, vtep(a), b, vtep(b)) as stream:
        wait_for(lambda: len(stream.came) > 10, "traffic flows")
    assert stream.lost == []


def test_another_network_leaves_nothing_of_the_old_one(running: tuple[Node, Node]) -> None:
    a, b = running
    a.cluster.configure(json.dumps({**V4, "Network": "10.77.0.0/16"}))
    for node in (a, b):
        wait_for(lambda node=node: node.status()["ready"] and "10.77." in str(node.status()["subnet"]), "a new subnet")
        wait_for(lambda node=node: "lladdr" in "".join(node.tables()) and "10.244." not in "".join(node.tables()), "only the new one")
        assert "10.77." in node.subnet_file.read_text() and "10.244." not in node.subnet_file.read_text()
        assert "10.244." not in node.sh("nft list ruleset")
    assert [lease for lease in a.tweed("lease", "list").stdout.splitlines() if "10.244." in lease] == []


def test_ipv6_turned_on_and_off(running: tuple[Node, Node]) -> None:
    a, b = running
    before = [n.tables() for n in (a, b)]
    a.cluster.configure(json.dumps(DUAL))  # a new lease with the IPv4 subnet and MAC of the old one: nothing changes for IPv4
    for node in (a, b):
        wait_for(lambda node=node: sum("lladdr" in line for line in node.tables()) == 2, "a neighbour per family")
        assert set(before[node is b]) <= set(node.tables())
    a.cluster.configure(json.dumps(V4))
    for node, tables in zip((a, b), before, strict=True):
        wait_for(lambda node=node: "flannel-v6.1" not in "".join(node.tables()) and node.status()["ready"], "no IPv6 device")
        wait_for(lambda node=node, tables=tables: node.tables() == tables, "as before")


def test_a_cluster_of_ipv6_alone(tmp_path: Path) -> None:
    """On hosts that have no IPv4 address at all."""
    with Cluster(tmp_path, 2, {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}}) as cluster:
        a, b = cluster.nodes
        for node in (a, b):
            node.sh(f"ip addr del {node.ip}/16 dev ens33")
        before = everything(a)
        cluster.start("--ip-masq")
        status = a.status()
        assert (status["subnet"], status["public_ip"], [d["name"] for d in status["devices"]], status["problems"]) == (None, None, ["flannel-v6.1"], [])
        assert a.subnet_file.read_text().splitlines()[2:] == ["FLANNEL_MTU=1430", "FLANNEL_IPMASQ=true"]
        with Stream(a, status["subnet6"].split("/")[0], b, b.status()["subnet6"].split("/")[0]) as stream:
            a.end(signal.SIGKILL)
            a.start("--ip-masq")
        assert stream.lost == [] and stream.sent > 0
        assert [a.status()[key] for key in ("subnet6", "vtep_mac6")] == [status[key] for key in ("subnet6", "vtep_mac6")]
        assert a.tweed("cleanup", *a.flags).returncode == 0 and everything(a) == before


def test_events_that_never_pause_do_not_keep_the_tick_away(running: tuple[Node, Node]) -> None:
    """The renewals of ten thousand nodes are an event every few seconds: only the tick looks at the configuration."""
    a, _ = running
    enough = threading.Event()

    def renew_all_the_time() -> None:
        with contextlib.closing(sqlite3.connect(path_of(a), isolation_level=None, timeout=10)) as connection:
            while not enough.wait(0.01):
                connection.execute("BEGIN IMMEDIATE")
                (revision,) = connection.execute("UPDATE counter SET revision = revision + 1 RETURNING revision").fetchone()
                connection.execute("INSERT INTO log (revision, key) VALUES (?, '10.244.250.0-24')", (revision,))
                connection.execute("COMMIT")

    writer = threading.Thread(target=renew_all_the_time)
    writer.start()
    try:
        a.cluster.configure(json.dumps({**V4, "Backend": {"Type": "vxlan", "VNI": 8}}))
        wait_for(lambda: a.status()["devices"][0]["name"] == "flannel.8", "the configuration is noticed")
    finally:
        enough.set()
        writer.join()


WRONG = {
    "no JSON": "{",
    "no network": '{"Backend": {"Type": "vxlan"}}',
    "another backend": '{"Network": "10.244.0.0/16", "Backend": {"Type": "ipip"}}',
    "SubnetMin above SubnetMax": '{"Network": "10.244.0.0/16", "SubnetMin": "10.244.9.0", "SubnetMax": "10.244.3.0", "Backend": {"Type": "vxlan"}}',
    "an address of the host": '{"Network": "192.168.0.0/16", "Backend": {"Type": "vxlan"}}',
    "too large a VNI": '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 16777216}}',
}


def test_a_wrong_new_configuration_keeps_the_old_one_and_says_so(running: tuple[Node, Node]) -> None:
    a, _ = running
    before = a.tables()
    for what, text in WRONG.items():
        with contextlib.closing(sqlite3.connect(a.cluster.store.removeprefix("sqlite://"))) as connection:
            connection.execute("UPDATE config SET value = ?", (text,))
            connection.commit()
        problem = wait_for(lambda: [p for p in a.status()["problems"] if p["id"] == "config"], what)[0]
        assert "the old one stays in force" in problem["text"] and "\n" not in problem["text"]
        assert a.tables() == before and a.status()["ready"]
        a.cluster.configure(json.dumps(V4))
        wait_for(lambda: not a.problems(), f"no longer a problem: {what}")
    assert a.status()["network"]["networks"] == ["10.244.0.0/16"]


def test_a_configuration_that_is_gone_is_told_with_what_writes_it_again(running: tuple[Node, Node]) -> None:
    a, b = running
    before, said = a.tables(), [node.log.read_text().count("starting over") for node in running]
    with contextlib.closing(sqlite3.connect(a.cluster.store.removeprefix("sqlite://"))) as connection:
        connection.execute("DELETE FROM config")
        connection.commit()
    for node in (a, b):
        (problem,) = wait_for(lambda node=node: node.status()["problems"], "it is a problem")
        assert problem["id"] == "config-gone" and "the last one stays in force here" in problem["text"]
        assert call(node.socket, "GET", "/metrics").count('tweed_problems{id="config-gone"} 1.0') == 1
        wait_for(lambda node=node, text=problem["text"]: text in node.log.read_text(), "the log has it")
        assert node.status()["ready"]
    assert a.tables() == before
    command = problem["text"].partition("tweed ")[2]
    done = a.tweed(*shlex.split(command))
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not a.problems() and not b.problems(), "nothing is left to be said")
    assert a.tables() == before and [node.log.read_text().count("starting over") for node in running] == said


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_configuration_at_the_start_is_one_line_and_exit_2(tmp_path: Path, what: str) -> None:
    with Cluster(tmp_path, 1, None) as cluster:
        (node,) = cluster.nodes
        (tmp_path / "net.json").write_text(WRONG[what])
        done = node.tweed("agent", *node.flags, "--net-config-path", str(tmp_path / "net.json"))
        assert done.returncode == 2, done.stderr
        said = [line for line in done.stderr.splitlines() if line.startswith("tweed: ")]
        assert len(said) == 1 and "Traceback" not in done.stderr
        assert not node.tables()


# ---- the store goes away ---------------------------------------------------------------------------------------------


def path_of(node: Node) -> Path:
    return Path(node.cluster.store.removeprefix("sqlite://"))


@contextlib.contextmanager
def store_moved(node: Node) -> Iterator[None]:
    path, aside = path_of(node), node.cluster.directory / "aside"
    aside.mkdir()
    for file in path.parent.glob("store.db*"):
        file.rename(aside / file.name)
    yield
    for file in aside.iterdir():
        file.rename(path.parent / file.name)


@contextlib.contextmanager
def store_overwritten(node: Node) -> Iterator[None]:
    path = path_of(node)
    good = {file: file.read_bytes() for file in path.parent.glob("store.db*")}
    for file in good:
        overwrite(file, b"x" * 8192)
    yield
    for file, data in good.items():
        overwrite(file, data)


@contextlib.contextmanager
def store_unreadable(node: Node) -> Iterator[None]:
    """A directory in its place: root may read everything else."""
    path = path_of(node)
    path.rename(path.with_name("aside.db"))
    path.mkdir()
    yield
    path.rmdir()
    path.with_name("aside.db").rename(path)


@pytest.mark.parametrize("fault", [store_moved, store_overwritten, store_unreadable])
def test_a_store_that_goes_away_and_comes_back(running: tuple[Node, Node], fault) -> None:  # type: ignore[no-untyped-def]
    a, b = running
    before, repairs = a.tables(), a.status()["reconcile"]["repairs"]
    with Stream(a, vtep(a), b, vtep(b)) as stream:
        with fault(a):
            problem = wait_for(lambda: [p for p in a.status()["problems"] if p["id"] == "store-away"], "it is said")[0]
            store = a.status()["store"]
            assert not store["answers"] and store["away_since"] in problem["text"]
            flushed = stream.sent
            a.sh("ip route flush dev flannel.1 proto 83")  # drift is healed without a store
            wait_for(lambda: a.status()["reconcile"]["repairs"] > repairs and a.tables() == before, "healed meanwhile")
            healed = stream.sent
        wait_for(lambda: not a.problems() and a.status()["store"]["answers"], "it is back")
    assert all(flushed <= number <= healed for number in stream.lost), "only what the flushed route would have carried"
    assert a.process is not None and a.process.poll() is None
    assert a.tables() == before
    assert "the store answers again" in a.log.read_text()


def test_a_store_that_somebody_holds_locked(running: tuple[Node, Node]) -> None:
    """Reading goes on beside a writer; healing does not wait for it."""
    a, _ = running
    before, repairs = a.tables(), a.status()["reconcile"]["repairs"]
    with contextlib.closing(sqlite3.connect(path_of(a), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        a.sh("ip route flush dev flannel.1 proto 83")
        wait_for(lambda: a.status()["reconcile"]["repairs"] > repairs and a.tables() == before, "healed", 4.0)
        connection.execute("ROLLBACK")
    assert a.problems() == set()


def test_a_new_empty_store_in_the_place_of_the_old_one(running: tuple[Node, Node]) -> None:
    """Both write theirs again, with the subnets that they have, and are there for each other meanwhile."""
    a, b = running
    before, subnets = [n.tables() for n in (a, b)], {n.status()["subnet"] for n in (a, b)}
    with Stream(a, vtep(a), b, vtep(b)) as there, Stream(b, vtep(b), a, vtep(a)) as back:
        wait_for(lambda: len(there.came) > 5, "the stream runs")
        for file in a.cluster.directory.glob("store.db*"):
            file.unlink()
        wait_for(lambda: "store-away" in a.problems() and "store-away" in b.problems(), "both say so")
        a.cluster.configure(json.dumps(V4))
        for node in (a, b):
            wait_for(lambda node=node: len(json.loads(node.tweed("lease", "list", "--json").stdout)["leases"]) == 2, "both leases are there again")
            wait_for(lambda node=node: not node.problems(), "nothing is missed")
    assert there.lost == [] and back.lost == [] and there.sent > 20
    assert [n.tables() for n in (a, b)] == before
    listed = json.loads(a.tweed("lease", "list", "--json").stdout)["leases"]
    assert {lease["endpoints"][0]["subnet"] for lease in listed} == subnets
    assert any("store-emptied" in node.log.read_text() for node in (a, b))  # the second may find the first one's again


def test_a_store_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1, None) as cluster:
        (node,) = cluster.nodes
        node.start(ready=False)
        reason = wait_for(lambda: node.status()["reason"], "why it waits")
        wait_for(lambda: "no network configuration" in node.status()["reason"], "it waits for a configuration")
        assert reason and not node.status()["ready"]
        cluster.configure(json.dumps(V4))
        wait_for(lambda: node.status()["ready"], "ready")


def test_a_foreign_file_as_store_is_named_and_not_touched(tmp_path: Path) -> None:
    theirs = b"not a database, but somebody's only copy of something" * 100
    with Cluster(tmp_path, 1, None) as cluster:
        (node,) = cluster.nodes
        path_of(node).write_bytes(theirs)
        node.start(ready=False)
        wait_for(lambda: "store.db: not an SQLite file; name another one with --store" in node.status()["reason"], "it is named")
        assert path_of(node).read_bytes() == theirs
        path_of(node).unlink()
        cluster.configure(json.dumps(V4))
        wait_for(lambda: node.status()["ready"], "ready")
