"""Many agents at one moment, too few subnets, two nodes with one address, junk in the store: named loudly, and nobody takes what is another's."""

from __future__ import annotations

import contextlib
import json
import shlex
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from tests.system.cluster import DUAL, V4, Cluster, Node, wait_for

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.agent.client import call
from tweed.kernel import tables
from tweed.kernel.netlink import Netlink
from tweed.model import Endpoint, Lease, LeaseRecord, Owner
from tweed.plan.rows import peer_rows
from tweed.stores.sqlite import SqliteStore

MANY = 40


def subnet(node: Node, family: int = 4) -> str:
    return str(node.status()["subnet" if family == 4 else "subnet6"])


def store_path(cluster: Cluster) -> Path:
    return Path(cluster.store.removeprefix("sqlite://"))


def write(cluster: Cluster, key: str, value: str, node: str | None = "stranger") -> None:
    """As somebody with sqlite3 at hand writes a lease, the log included, so that watchers see it."""
    with contextlib.closing(sqlite3.connect(store_path(cluster), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        (revision,) = connection.execute("UPDATE counter SET revision = revision + 1 RETURNING revision").fetchone()
        row = (key, value, revision, revision, node)
        connection.execute("REPLACE INTO lease (key, value, revision, created, owner_node) VALUES (?, ?, ?, ?, ?)", row)
        connection.execute("INSERT INTO log (key, value, revision, created, owner_node) VALUES (?, ?, ?, ?, ?)", row)
        connection.execute("COMMIT")


def value(ip: str, mac: str = "02:00:00:00:00:99", **fields: object) -> str:
    return json.dumps({"PublicIP": ip, "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": mac}, **fields})


async def put(cluster: Cluster, *leases: tuple[Lease, str]) -> list[LeaseRecord]:
    store = SqliteStore(store_path(cluster))
    try:
        return [await store.create(lease, Owner(node, "")) for lease, node in leases]
    finally:
        await store.close()


def said(node: Node, problem: str, *words: str) -> str:
    """The problem's text, once status, log and metrics all have it, with all the words."""

    def everywhere() -> str:
        for found in node.status()["problems"]:
            if found["id"] == problem and all(word in found["text"] for word in words):
                metrics = call(node.socket, "GET", "/metrics")
                if f'tweed_problems{{id="{problem}"}}' in metrics and found["text"] in node.log.read_text():
                    return str(found["text"])
        return ""

    return wait_for(everywhere, f"{node.node} says {problem} {words}: {[(p['id'], p['text']) for p in node.status()['problems']]}")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    with Cluster(tmp_path, 2) as cluster:
        yield cluster.nodes[0], cluster.nodes[1]


# ---- many at once ------------------------------------------------------------------------------------------------------


def test_forty_agents_at_the_same_moment(tmp_path: Path) -> None:
    """Every pair can talk: each has the three rows of every other, with the MAC and the address that the other really has."""
    with Cluster(tmp_path, MANY) as cluster:
        started = time.monotonic()
        for node in cluster.nodes:
            node.start(ready=False)
        endpoints = {}
        for node in cluster.nodes:
            status = wait_for(lambda node=node: (s := node.status())["ready"] and s, f"{node.node} ready", 120.0)
            endpoints[node.node] = Endpoint(Prefix.parse(status["subnet"]), parse_address(node.ip), parse_mac(status["vtep_mac"]))
        assert len({e.subnet for e in endpoints.values()}) == len({e.mac for e in endpoints.values()}) == MANY
        wanted = {name: {row for other, e in endpoints.items() if other != name for row in peer_rows(e, "flannel.1")} for name in endpoints}
        for node in cluster.nodes:
            with Netlink(node.fd) as nl:

                def rows(nl: Netlink = nl) -> set[object]:
                    routes = tables.routes(nl, 4, device="flannel.1")
                    return {*tables.fdb(nl, "flannel.1"), *tables.neighbours(nl, "flannel.1", 4), *(r for r in routes if r.protocol == 83)}

                wait_for(lambda name=node.node, rows=rows: rows() == wanted[name], f"{node.node} has every other's rows", 60.0)
        print(f"\n{MANY} agents: all pairs programmed {time.monotonic() - started:.1f} s after the first was started")


def test_out_of_subnets_is_said_and_waited_for(tmp_path: Path) -> None:
    one = {**V4, "SubnetMin": "10.244.5.0", "SubnetMax": "10.244.5.0"}
    with Cluster(tmp_path, 2, one) as cluster:
        a, b = cluster.nodes
        a.start()
        b.start(ready=False)
        wait_for(lambda: "out of subnets: every /24 from 10.244.5.0/24 to 10.244.5.0/24 is leased" in b.status()["reason"], "it says so")
        status = b.status()
        assert not status["ready"] and status["subnet"] is None
        assert "out of subnets" in b.tweed("status").stdout and b.tables() == []
        assert a.tweed("cleanup", *a.flags).returncode == 0
        wait_for(lambda: b.status()["ready"], "b gets it")
        assert subnet(b) == "10.244.5.0/24" and b.status()["reason"] is None
        assert b.log.read_text().count("out of subnets") == 1  # not every time it tried


# ---- two of one thing ------------------------------------------------------------------------------------------------------


def test_two_nodes_with_one_public_ip(tmp_path: Path) -> None:
    """As VirtualBox gives every machine 10.0.2.15 on its first interface."""
    with Cluster(tmp_path, 2) as cluster:
        a, b = cluster.nodes
        for node in (a, b):
            node.sh(f"ip addr del {node.ip}/16 dev ens33; ip addr add 10.0.2.15/24 dev ens33")
            node.start()
        wait_for(lambda: a.status()["peers"] and b.status()["peers"], "they know each other")
        for node, other in permutations((a, b)):
            said(node, "duplicate-public-ip", "10.0.2.15", node.node, other.node, "--iface", "--public-ip")
        assert subnet(a) != subnet(b) and a.status()["vtep_mac"] != b.status()["vtep_mac"]
        before = [(n.status()["subnet"], n.status()["vtep_mac"]) for n in (a, b)]
        for node in (a, b):  # and neither takes the other's when it starts again, with and without its memory
            node.end()
            node.subnet_file.unlink()
            node.start()
        assert [(n.status()["subnet"], n.status()["vtep_mac"]) for n in (a, b)] == before


def test_two_machines_with_one_name(tmp_path: Path) -> None:
    with Cluster(tmp_path, 2) as cluster:
        a, b = cluster.nodes
        a.start()
        b.start("--node-name", "n1")
        wait_for(lambda: a.status()["peers"] and b.status()["peers"], "they know each other")
        assert subnet(a) != subnet(b)
        assert "belongs to another node named n1" in b.log.read_text()


def test_a_clone_with_name_and_files_fences_the_first(tmp_path: Path) -> None:
    """A machine copied while it ran: same name, same subnet.env. One of the two has to stop writing, or both flap for ever."""
    with Cluster(tmp_path, 3) as cluster:
        a, b, c = cluster.nodes
        a.start()
        c.start()
        b.subnet_file.write_text(a.subnet_file.read_text())
        b.start("--node-name", "n1")
        text = said(a, "fenced", "now belongs to another machine named n1", "another name (--node-name)")
        assert text in a.tweed("status").stdout and a.tweed("status").returncode == 1
        assert not a.status()["ready"]
        passes = [n.status()["reconcile"]["passes"] for n in (a, b, c)]
        wait_for(lambda: c.tables() and "192.168.2.2" in "".join(c.tables()), "the third follows the clone")
        time.sleep(1)  # nothing may happen any more, and nothing announces that
        assert all(n.status()["reconcile"]["passes"] - before < 10 for n, before in zip((a, b, c), passes, strict=True))
        a.end()
        a.subnet_file.unlink()
        a.start("--node-name", "n4")  # as it says
        assert subnet(a) != subnet(b)
        wait_for(lambda: not a.problems() and not b.problems() and not c.problems(), "all is well")


def test_two_agents_on_one_node(tmp_path: Path) -> None:
    """Left to it, they would take each other's address and rows away for ever. The second waits, and takes over when the first ends."""
    with Cluster(tmp_path, 1) as cluster:
        (a,) = cluster.nodes
        a.start()
        before = a.tables()
        flags = [word.replace("/n1/", "/second/") for word in a.flags]
        (tmp_path / "second").mkdir()
        with (tmp_path / "second/log").open("wb") as log:
            command = a.argv(sys.executable, "-m", "tweed", "agent", *flags, "--node-name", "other", "--healthz-port", "0")
            second = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
        cluster.callback(second.wait)
        cluster.callback(second.kill)

        def status() -> dict[str, Any]:
            return call(tmp_path / "second/run/agent.sock", "GET", "/v1/status")

        wait_for(lambda: "another agent keeps flannel.1 in this network namespace" in status()["reason"], "it says so")
        assert leases(a) == ["n1"] and a.tables() == before and a.problems() == set()
        a.end(9)
        wait_for(lambda: status()["ready"], "the second is it")


def leases(node: Node) -> list[str]:
    return [lease["node"] for lease in json.loads(node.tweed("lease", "list", "--json").stdout)["leases"]]


async def test_two_leases_with_one_subnet(tmp_path: Path) -> None:
    """Two keys for one IPv4 subnet, each with its own IPv6 one: how it happens where somebody wrote leases by hand."""
    with Cluster(tmp_path, 3, DUAL) as cluster:
        a, b, c = cluster.nodes
        shared = Prefix.parse("10.244.9.0/24")
        leases = []
        for n, node in ((1, a), (2, b)):
            v4 = Endpoint(shared, parse_address(node.ip), parse_mac(f"02:00:00:00:04:0{n}"), 1)
            v6 = Endpoint(Prefix.parse(f"fd00:244:0:{n}::/64"), parse_address(node.ip6), parse_mac(f"02:00:00:00:06:0{n}"), 1)
            leases.append((Lease(v4, v6), node.node))
        await put(cluster, *leases)
        for node in cluster.nodes:
            node.start()
        for node, other in permutations((a, b)):
            said(node, "duplicate-subnet", "10.244.9.0/24", node.node, other.node)
        assert [node.status()["vtep_mac"] for node in (a, b)] == ["02:00:00:00:04:01", "02:00:00:00:04:02"]
        # The third believes the elder, and reaches the younger one's other family all the same.
        said(c, "duplicate-subnet", "n1", "n2", "which is older")
        rows = "".join(c.tables())
        assert "02:00:00:00:04:01" in rows and "02:00:00:00:04:02" not in rows and "02:00:00:00:06:02" in rows


def test_a_duplicate_vtep_mac(tmp_path: Path) -> None:
    """Somebody else's lease gets our MAC: we keep it; and a node that finds its own taken when it starts takes another one."""
    with Cluster(tmp_path, 2) as cluster:
        a, b = cluster.nodes
        a.start()
        mac = a.status()["vtep_mac"]
        write(cluster, "10.244.200.0-24", value("192.168.2.200", mac))
        said(a, "duplicate-vtep-mac", mac, "stranger", "n1")
        assert a.status()["vtep_mac"] == mac and "10.244.200.0/24" not in "".join(a.tables())
        b.start()
        said(b, "duplicate-vtep-mac", mac, "stranger", "n1")
        assert mac in "".join(b.tables()) and "10.244.200.0/24" not in "".join(b.tables())
        a.end()
        a.start()
        assert a.status()["vtep_mac"] != mac
        wait_for(lambda: a.status()["vtep_mac"] in "".join(b.tables()), "b follows")


# ---- what a machine has too little of ----------------------------------------------------------------------------------------

NO_INOTIFY = """
import ctypes, errno, os, sys
from tweed.config import load
from tweed.agent.main import run
from tweed.kernel import inotify

class Exhausted:
    def inotify_init1(self, flags):
        ctypes.set_errno(errno.EMFILE)
        return -1

inotify.libc = Exhausted()
run(load(sys.argv[1:], os.environ, "")[0])
"""


def test_without_inotify_it_polls_and_says_so(two: tuple[Node, Node]) -> None:
    """fs.inotify.max_user_instances is 128 for all of a user's processes; a desktop alone may use them up."""
    a, b = two
    a.start("--resync", "0", driver=NO_INOTIFY)
    said(a, "store", "no inotify", "fs.inotify.max_user_instances")
    b.start()
    wait_for(lambda: b.ip in "".join(a.tables()), "it hears of others all the same")
    assert a.status()["ready"]


def test_a_full_disk_under_the_state_directory(two: tuple[Node, Node]) -> None:
    """Nothing may be done that cannot be noted for cleanup; it waits, says so, and goes on when there is room."""
    a, _ = two
    a.state.mkdir()
    full = f"mount -t tmpfs -o size=64k tmpfs {a.state} && ! dd if=/dev/zero of={a.state}/fill bs=1k count=200 2>/dev/null && exec "
    command = a.argv("unshare", "--mount", "sh", "-c", full + shlex.join([sys.executable, "-m", "tweed", "agent", *a.flags]))
    with a.log.open("ab") as log:
        a.process = subprocess.Popen(command, env=a.cluster.environment, stdout=log, stderr=log)
    wait_for(lambda: "notes.json: No space left on device" in a.status()["reason"], "it says so")
    assert a.tables() == [] and not a.status()["ready"]
    subprocess.run(["nsenter", "-t", str(a.process.pid), "--mount", "rm", str(a.state / "fill")], check=True)
    wait_for(lambda: a.status()["ready"], "ready")


FEW_FILES = """
import os, resource, sys
from tweed.cli import main

resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))
sys.argv[1:1] = ["agent"]
main()
"""


@pytest.mark.parametrize("limit", [10, 16])
def test_too_few_file_descriptors(two: tuple[Node, Node], limit: int) -> None:
    """Some of these are too few to start, some to open the store: it ends with one line, or says why it waits."""
    a, _ = two
    a.start(driver=FEW_FILES.format(limit), ready=False)
    process = a.process
    assert process is not None
    wait_for(lambda: process.poll() is not None or a.status()["reason"] not in ("starting", None), "an end or a reason")
    lines = a.log.read_text().splitlines()
    assert all(line.startswith(("2", "tweed: ")) for line in lines) and process.poll() in (None, 1)
    assert process.poll() is None or lines[-1].startswith("tweed: ")


# ---- junk ------------------------------------------------------------------------------------------------------------------

JUNK = {
    "10.244.101.0-24": ("not json at all", "junk-lease"),
    "10.244.102.0-24": (value("192.168.2.102", "zz:zz:zz:zz:zz:zz"), "junk-lease"),
    "10.244.103.0-24": (value("not an address"), "junk-lease"),
    "10.244.104.0-24": (json.dumps({"PublicIP": "192.168.2.104", "BackendType": "host-gw"}), "other-backend"),
    "10.244.105.1-24": (value("192.168.2.105"), "junk-lease"),
    "10.245.1.0-24": (value("192.168.2.106"), "bad-lease"),
    "10.244.0.0-16": (value("192.168.2.107"), "bad-lease"),
    "10.244.108.0-24": (value("127.0.0.1"), "bad-lease"),
    "10.244.109.0-24": (value("192.168.2.109", "ff:ff:ff:ff:ff:ff"), "junk-lease"),
    "not a subnet\n2026-01-01T00:00:00Z INFO forged": (value("192.168.2.110"), "junk-lease"),
    "10.244.111.0-24": ("[" * 100_000, "junk-lease"),
    "10.244.112.0-24": (json.dumps({"PublicIP": 17, "BackendType": ["vxlan"], "BackendData": "x"}), "junk-lease"),
}


@pytest.mark.parametrize("before", [True, False])
def test_junk_in_the_store_is_named_and_skipped(two: tuple[Node, Node], before: bool) -> None:
    """There when the agent starts, or written while it runs; everything else goes on."""
    a, b = two
    if not before:
        a.start()
    for key, (text, _) in JUNK.items():
        write(a.cluster, key, text)
    if before:
        a.start()
    b.start()
    for node, other in permutations((a, b)):
        wait_for(lambda node=node: len(node.status()["problems"]) == len(JUNK), "all of it is named")
        found = {p["subject"].strip('"').split("\\n")[0]: p["id"] for p in node.status()["problems"]}
        assert found == {key.split("\n")[0]: kind for key, (_, kind) in JUNK.items()}
        wait_for(lambda node=node, other=other: subnet(other).split("/")[0] in "".join(node.tables()), "the good one is programmed")
        assert sum("lladdr" in line for line in node.tables()) == 1
        assert node.status()["ready"] and node.status()["failures"] == []
        assert not any(line.startswith("2026-01-01") for line in node.log.read_text().splitlines())
    shown = a.tweed("lease", "list")
    assert shown.returncode == 0 and "not a lease: 10.244.101.0-24" in shown.stderr
    assert a.tweed("status").returncode == 1
    with contextlib.closing(sqlite3.connect(store_path(a.cluster), isolation_level=None)) as connection:
        connection.execute("DELETE FROM lease WHERE owner_node = 'stranger'")
        connection.execute("UPDATE counter SET compacted = revision")
    write(a.cluster, "10.244.113.0-24", value("192.168.2.113"))
    for node in (a, b):
        wait_for(lambda node=node: "192.168.2.113" in "".join(node.tables()), "life goes on")


def test_our_own_lease_turned_to_junk(two: tuple[Node, Node]) -> None:
    """It is put back, once: it must not write and be spoiled and write for ever; what is programmed stays."""
    a, b = two
    for node in (a, b):
        node.start()
    wait_for(lambda: "lladdr" in "".join(a.tables()) and "lladdr" in "".join(b.tables()), "they know each other")
    before, theirs, key = a.tables(), b.tables(), subnet(a).replace("/", "-")
    write(a.cluster, key, "garbage", None)
    wait_for(lambda: f"lease {subnet(a)} was overwritten with something that is no lease" in a.log.read_text(), "a says so")
    wait_for(lambda: a.status()["peers"] and not a.problems() and not b.problems() and b.tables() == theirs, "all is as it was")
    assert a.status()["ready"] and a.status()["lease"]["expires_in_s"] > 80_000
    write(a.cluster, key, "garbage", None)
    said(a, "fenced", "something that is no lease, and comes again")
    said(b, "junk-lease", "the lease that was there stays in force")
    assert b.tables() == theirs
    passes = a.status()["reconcile"]["passes"]
    time.sleep(0.5)  # nothing may happen any more, and nothing announces that
    assert a.status()["reconcile"]["passes"] - passes < 5
    assert a.tables() == before


def test_a_configuration_without_backend_beside_leases_without_type(two: tuple[Node, Node]) -> None:
    """flannel's documentation reads it as vxlan, its code as udp: whoever guesses wrong cuts the cluster in two."""
    a, _ = two
    a.cluster.configure('{"Network": "10.244.0.0/16"}')
    write(a.cluster, "10.244.7.0-24", '{"PublicIP":"192.168.2.7"}')
    done = a.tweed("agent", *a.flags)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("tweed: ")
    assert all(word in last for word in ("no Backend", '"vxlan"', '"udp"', "10.244.7.0/24", '{"Backend": {"Type": '))
    assert a.tables() == []
    a.cluster.configure(json.dumps(V4))
    a.start()
    assert a.problems() == {"other-backend"}


@pytest.mark.parametrize("address", ["10.244.77.7/24", "10.244.0.1/32", "fd00:244:0:9::1/64"])
def test_a_network_that_holds_an_address_of_the_host(tmp_path: Path, address: str) -> None:
    with Cluster(tmp_path, 1, DUAL) as cluster:
        (node,) = cluster.nodes
        node.sh(f"ip link add lan type bridge; ip link set lan up; ip addr add {address} dev lan nodad")
        done = node.tweed("agent", *node.flags)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and last.startswith("tweed: "), done.stderr
        assert address in last and "lan" in last and "use another network" in last
        assert node.tables() == []


def test_metrics_over_tcp_tell_the_same(two: tuple[Node, Node]) -> None:
    a, b = two
    for node in (a, b):
        node.start()
    wait_for(lambda: a.status()["peers"], "they know each other")
    text = a.do(lambda: urllib.request.urlopen("http://127.0.0.1:9472/metrics", timeout=5).read().decode())
    assert "tweed_peers 1.0" in text and "tweed_ready 1.0" in text
