"""Beside flanneld, from it and back to it: real agents, etcd's real server, and a stand-in for flanneld (tests/flanneld.py).

    pod ── cni0 ── node 1, 2, 3 ── bridge ── etcd at 192.168.2.254

Pods are made as flannel's CNI plugin would, FORWARD drops what nobody lets through, and masquerading is on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import flanneld
from tests.system.cluster import DUAL, Cluster, Namespace, Node, wait_for
from tests.system.stream import Stream

ETCD = "http://192.168.2.254:2379"
PREFIX = "/coreos.com/network"
FLAGS = ("--ip-masq", "--resync", "1")


class Host:
    """A node, its pod, and the flanneld that may run on it."""

    def __init__(self, node: Node, stack: contextlib.ExitStack) -> None:
        self.node = node
        self.process: subprocess.Popen[bytes] | None = None
        self.pod = Namespace()
        stack.callback(self.pod.remove)
        stack.callback(self.end_flanneld, signal.SIGKILL)
        node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
        node.sh("ip link add cni0 type bridge; ip link set cni0 up")
        node.sh(f"ip link add pod type veth peer name eth0 netns {self.pod.name}; ip link set pod master cni0 up")
        self.pod.sh("ip link set eth0 up")

    def start_flanneld(self) -> None:
        """Returns when it has its subnets and knows its peers."""
        runs = self.log.count("I running")
        command = [sys.executable, flanneld.__file__, "--etcd-endpoints", ETCD, "--iface", "ens33", "--subnet-file", str(self.node.subnet_file), "--ip-masq"]
        with (self.node.directory / "flanneld.log").open("ab") as log:
            self.process = subprocess.Popen(self.node.argv(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self.log.count("I running") > runs, f"flanneld on {self.node.node} runs")

    @property
    def log(self) -> str:
        path = self.node.directory / "flanneld.log"
        return path.read_text() if path.exists() else ""

    def end_flanneld(self, number: int = signal.SIGTERM) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.wait(30)

    def connect(self) -> None:
        """The pod's and the bridge's addresses, as a CNI plugin takes them from subnet.env."""
        for words, default in ((self.gateway(4), "ip"), (self.gateway(6), "ip -6")):
            bridge, pod = words
            nodad = " nodad" if ":" in pod else ""
            self.node.sh(f"ip addr add {bridge} dev cni0{nodad}")
            self.pod.sh(f"ip addr add {pod} dev eth0{nodad}; {default} route add default via {bridge.split('/')[0]}")

    def gateway(self, family: int) -> tuple[str, str]:
        env = dict(line.split("=") for line in self.node.subnet_file.read_text().splitlines())
        bridge = env["FLANNEL_SUBNET" if family == 4 else "FLANNEL_IPV6_SUBNET"]
        address, length = bridge.split("/")
        return bridge, f"{address[:-1]}9/{length}"

    def ip(self, family: int) -> str:
        return self.gateway(family)[1].split("/")[0]

    def devices(self) -> list[str]:
        """What of the devices a move must not change: number, MAC, address."""
        return [line.split(" mtu ")[0] + line.split("link/ether")[1][:20] for line in self.node.sh("ip -o link show type vxlan").splitlines()]

    def peers(self) -> int:
        return self.node.sh("ip route show dev flannel.1; ip -6 route show dev flannel-v6.1").count(" via ")

    def straight(self) -> int:
        return self.node.sh("ip route show dev ens33; ip -6 route show dev ens33").count(" via ")

    def rules(self) -> str:
        """All rules that a flanneld or a tweed has made."""
        lines = self.node.sh("iptables-save; ip6tables-save; nft list tables").splitlines()
        return "\n".join(line for line in lines if "flannel" in line.lower() or "tweed" in line)


class Mixed(Cluster):
    """A cluster whose leases are in etcd: three nodes, each with a pod."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 3, None)
        try:
            self.start_etcd()
            self.hosts = [Host(node, self) for node in self.nodes]
            self.configure(json.dumps(DUAL))
        except BaseException:
            self.close()
            raise

    def start_etcd(self) -> None:
        self.switch.sh("ip addr add 192.168.2.254/16 dev switch")
        words = ["setpriv", "--pdeathsig", "KILL", "etcd", f"--data-dir={self.directory / 'etcd'}", f"--listen-client-urls={ETCD}"]
        words += [f"--advertise-client-urls={ETCD}", "--listen-peer-urls=http://127.0.0.1:2380", "--logger=zap", "--log-level=error"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        with (self.directory / "etcd.log").open("wb") as log:
            etcd = subprocess.Popen(self.switch.argv(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self.callback(etcd.wait, 30)
        self.callback(etcd.kill)
        self.store = "etcd"
        self.environment |= {"TWEED_ETCD_ENDPOINTS": ETCD}
        wait_for(lambda: self.ctl("get", "anything") == "", "etcd answers")

    def start_flannelds(self) -> None:
        """One after the other: flanneld compares keys only, so two that choose at once may share the subnet of one family."""
        for host in self.hosts:
            host.start_flanneld()

    def reached_at(self, address: str, by: list[Host]) -> bool:
        return all(f"dst {address} " in host.node.sh("bridge fdb show dev flannel.1") for host in by)

    def ctl(self, *words: str) -> str:
        return self.switch.sh(f"ETCDCTL_API=3 etcdctl --endpoints={ETCD} {' '.join(words)}")

    def leases(self) -> dict[str, str]:
        """Values as they are stored, by key."""
        lines = self.ctl("get", "--prefix", f"{PREFIX}/subnets/").splitlines()
        return {key.rpartition("/")[2]: value for key, value in zip(lines[::2], lines[1::2], strict=True)}


def test_straight_ways_go_over_too(tmp_path: Path) -> None:
    """DirectRouting: flanneld's routes by the nodes' own addresses become the agent's, and flanneld's again."""
    with Mixed(tmp_path) as cluster:
        cluster.configure(json.dumps(DUAL | {"Backend": {"Type": "vxlan", "DirectRouting": True}}))
        cluster.start_flannelds()
        for host in cluster.hosts:
            wait_for(lambda host=host: host.straight() == 4, f"flanneld on {host.node.node} has all peers")
            host.connect()
        host = cluster.hosts[0]
        before = host.node.sh("ip route; ip -6 route"), host.rules()
        with streams(cluster):
            host.end_flanneld()
            host.node.start(*FLAGS)
            done = host.node.tweed("cleanup", "--flannel", *host.node.flags)
            assert done.returncode == 0, done.stderr
            wait_for(lambda: not host.node.problems(), "nothing of flanneld's is left")
            assert host.straight() == 4 and host.node.sh("ip route; ip -6 route").count("proto 83") == 4
            assert host.node.tweed("cleanup", "--to-flannel", *host.node.flags, "--ip-masq").returncode == 0
            host.node.process = None
            assert (host.node.sh("ip route; ip -6 route"), host.rules()) == before
            host.start_flanneld()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    """Three flannelds that know each other, and pods that talk."""
    with Mixed(tmp_path_factory.mktemp("mixed")) as cluster:
        cluster.start_flannelds()
        for host in cluster.hosts:
            wait_for(lambda host=host: host.peers() == 4, f"flanneld on {host.node.node} has all peers")
            host.connect()
        yield cluster


@contextlib.contextmanager
def streams(cluster: Mixed) -> Iterator[list[Stream]]:
    """A datagram every 10 ms from every pod to every other, over both families; at the end none may be lost."""
    with contextlib.ExitStack() as stack:
        running = []
        for a, b in itertools.permutations(cluster.hosts, 2):
            family = 6 if a.node.node < b.node.node else 4
            running.append(stack.enter_context(Stream(a.pod, a.ip(family), b.pod, b.ip(family))))
        wait_for(lambda: all(len(stream.came) > 5 for stream in running), "all pods talk")
        yield running
    assert [stream.lost for stream in running] == [[]] * len(running)


def test_a_cluster_is_moved_node_by_node_forth_and_back_without_losing_a_packet(mixed: Mixed) -> None:
    before = [(host.devices(), host.node.subnet_file.read_text(), host.rules()) for host in mixed.hosts]
    keys = sorted(mixed.leases())
    with streams(mixed) as running:
        for host in mixed.hosts:
            host.end_flanneld()
            host.node.start(*FLAGS)
            status = host.node.status()
            (leftover,) = [p["text"] for p in status["problems"]]
            assert "tweed cleanup --flannel" in leftover and "FLANNEL-POSTRTG" in leftover
            done = host.node.tweed("cleanup", "--flannel", *host.node.flags)
            assert done.returncode == 0 and "FLANNEL-FWD" in done.stdout, done.stderr
            wait_for(lambda host=host: not host.node.problems(), "nothing of flanneld's is left")
            assert "FLANNEL" not in host.rules() and "tweed" in host.rules()
            again = host.node.tweed("cleanup", "--flannel", *host.node.flags)
            assert (again.returncode, again.stdout, again.stderr) == (0, "", "nothing of flanneld's was found on this node\n")
            wait_for(lambda host=host: [p["state"] for p in host.node.status()["peers"]] == ["programmed"] * 2, "all peers programmed")
        moved = [host.devices() for host in mixed.hosts]
        for host, (_, _, rules) in zip(mixed.hosts, before, strict=True):
            done = host.node.tweed("cleanup", "--to-flannel", *host.node.flags, "--ip-masq")
            assert done.returncode == 0, done.stderr
            host.node.process = None
            assert host.rules() == rules and host.peers() == 4 and "proto 83" not in host.node.sh("ip route; ip -6 route")
            assert not host.node.state.exists() and not host.node.socket.exists()
            host.start_flanneld()
            sent = running[0].sent
            wait_for(lambda sent=sent: running[0].sent > sent + 20, "a while with flanneld")
    assert moved == [devices for devices, _, _ in before]
    assert [(host.devices(), host.node.subnet_file.read_text().replace("1430", "1450"), host.rules()) for host in mixed.hosts] == before
    assert sorted(mixed.leases()) == keys
    assert all(host.log.count("I keeping") == 2 and " E " not in host.log for host in mixed.hosts)


OTHERS = {
    "10.244.240.0-24": '{"PublicIP":"192.168.2.40","PublicIPv6":null,"BackendType":"host-gw"}',
    "10.244.241.0-24": '{"PublicIP":"192.168.2.41","PublicIPv6":null}',
    "10.244.242.0-24": '{"PublicIP":"192.168.2.42","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"c2VjcmV0","Port":51820}}',
    "10.244.243.0-24": '{"PublicIP":"192.168.2.43","PublicIPv6":null,"BackendType":"extension","BackendData":"words of a command"}',
}


def named(node: Node) -> list[str]:
    """The leases that the node's log names for their backend, as often as it does."""
    return sorted(line.split("other-backend: ")[1].split(":")[0] for line in node.log.read_text().splitlines() if "other-backend" in line)


def test_beside_each_other(mixed: Mixed) -> None:
    """One tweed among flannelds: each reads the other's leases, nodes of other backends get one line each, and changes are followed."""
    moved, peer, _ = mixed.hosts
    key = next(key for key, value in mixed.leases().items() if '"192.168.2.1"' in value)
    flannels_value = mixed.leases()[key]
    moved.end_flanneld()
    moved.node.start(*FLAGS)
    assert mixed.leases()[key] == flannels_value, "to the byte"
    data = flannels_value.partition('"BackendData":')[2].partition("}")[0] + "}"
    assert flanneld.recover_mac(data) == moved.node.status()["vtep_mac"]
    done = moved.node.tweed("cleanup", "--flannel", *moved.node.flags)
    assert done.returncode == 0
    for name, value in OTHERS.items():
        mixed.ctl("put", f"--lease={mixed.ctl('lease', 'grant', '86400').split()[1]}", f"{PREFIX}/subnets/{name}", f"'{value}'")
    wait_for(lambda: {p["subject"] for p in moved.node.status()["problems"]} == set(OTHERS), "each is named")
    wait_for(lambda: peer.log.count("ignoring non-vxlan subnet") == len(OTHERS), "flanneld has seen them too")
    wait_for(lambda: set(named(moved.node)) == set(OTHERS), "the log names each")
    assert named(moved.node) == sorted(OTHERS), "one line each"
    for name in OTHERS:
        mixed.ctl("del", f"{PREFIX}/subnets/{name}")
    wait_for(lambda: not moved.node.status()["problems"], "they are gone")
    with streams(mixed):  # our address changes: flanneld on the others follows
        pass
    moved.node.sh("ip addr del 192.168.2.1/16 dev ens33; ip addr add 192.168.2.99/16 dev ens33")
    wait_for(lambda: mixed.reached_at("192.168.2.99", by=mixed.hosts[1:]), "both flannelds follow")
    with streams(mixed):
        pass
    moved.node.sh("ip addr del 192.168.2.99/16 dev ens33; ip addr add 192.168.2.1/16 dev ens33")
    wait_for(lambda: mixed.reached_at("192.168.2.1", by=mixed.hosts[1:]), "and back")
    assert moved.node.tweed("cleanup", "--to-flannel", *moved.node.flags).returncode == 0
    moved.node.process = None
    moved.start_flanneld()
    assert moved.log.rstrip().endswith(f"I running: {PREFIX}/subnets/{key}"), "it has its lease again"


def test_what_flanneld_left_in_tables_is_removed_and_what_it_needs_is_not(mixed: Mixed) -> None:
    """It never removes what went while it was down, and its routes of another time stand beside the device."""
    host = mixed.hosts[0]
    refused = host.node.tweed("cleanup", "--flannel", *host.node.flags)
    assert (refused.returncode, refused.stdout) == (1, "") and "still runs" in refused.stderr and "stop it first" in refused.stderr
    host.end_flanneld()
    own = host.gateway(4)[0].replace(".1/24", ".0/24")
    peers = sorted(line.split()[0] for line in host.node.sh("ip route show dev flannel.1").splitlines())
    host.node.sh("bridge fdb add 02:00:00:00:00:99 dev flannel.1 dst 192.168.2.88 self permanent")
    host.node.sh("ip neigh add 10.244.200.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent")
    host.node.sh("ip route add 10.244.200.0/24 via 10.244.200.0 dev flannel.1 onlink; ip route add 10.244.201.0/24 via 192.168.2.2 dev ens33")
    host.node.sh(f"ip route add blackhole {own} metric 5; ip route add 10.244.202.128/25 via 192.168.2.2 dev ens33")
    with streams(mixed):
        host.node.start(*FLAGS)
        shown = host.node.sh("ip route show dev flannel.1; ip neigh show dev flannel.1; bridge fdb show dev flannel.1")
        assert "10.244.200.0" not in shown and "02:00:00:00:00:99" not in shown
        (text,) = [p["text"] for p in host.node.status()["problems"]]
        assert " 1 routes " in text and "tweed cleanup --flannel" in host.node.tweed("status").stdout
        done = host.node.tweed("cleanup", "--flannel", *host.node.flags)
        assert "ip route del 10.244.201.0/24 via 192.168.2.2 dev ens33 proto boot" in done.stdout, done.stderr
        left = host.node.sh("ip route")
        assert "10.244.201.0/24" not in left and "10.244.202.128/25" in left and f"blackhole {own}" in left, "what flanneld does not write stays"
        host.node.sh(f"ip route del blackhole {own} metric 5; ip route del 10.244.202.128/25")
        host.end_flanneld()
        assert host.node.tweed("cleanup", "--to-flannel", *host.node.flags).returncode == 0
        host.node.process = None
    assert sorted(line.split()[0] for line in host.node.sh("ip route show dev flannel.1").splitlines()) == peers
    again = host.node.tweed("cleanup", "--to-flannel", *host.node.flags)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "nothing of tweed's was found on this node\n")
    host.start_flanneld()


def test_going_back_needs_the_store(mixed: Mixed) -> None:
    """Whether flanneld will use iptables or nftables is said there alone. Nothing is changed while it is away, and the agent goes on."""
    host = mixed.hosts[1]
    host.end_flanneld()
    host.node.start(*FLAGS)
    done = host.node.tweed("cleanup", "--to-flannel", *host.node.flags, "--etcd-endpoints", "http://192.168.2.253:1")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert host.node.status()["ready"]
    for words in (("--flannel", "--to-flannel"), ("--keep-lease", "--to-flannel")):
        done = host.node.tweed("cleanup", *words, *host.node.flags)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    host.node.end()


def test_the_device_that_is_there_keeps_its_mac_without_any_lease(tmp_path: Path) -> None:
    """The leases moved to another kind of store, or ended while nobody ran: subnet.env and the device say what this node was."""
    with Cluster(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        node.sh("ip link add flannel.1 address 4a:11:22:33:44:55 type vxlan id 1 dev ens33 local 192.168.2.1 dstport 8472 nolearning")
        node.sh("ip addr add 10.244.7.0/32 dev flannel.1; ip link set flannel.1 up")
        node.subnet_file.write_text("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
        number = node.sh("ip -o link show flannel.1").split(":")[0]
        node.start()
        status = node.status()
        assert (status["subnet"], status["vtep_mac"]) == ("10.244.7.0/24", "4a:11:22:33:44:55")
        assert node.sh("ip -o link show flannel.1").split(":")[0] == number
        # Back, by a command that was told nothing of the store: the agent says where its lease is.
        places = node.flags[node.flags.index("--run-dir") :]
        command = node.argv(sys.executable, "-m", "tweed", "cleanup", "--to-flannel", *places)
        told = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=60, check=False)
        assert told.returncode == 0 and "left flannel.1 as it is" in told.stdout, told.stderr
        node.process = None
        node.start()
        # Back without a store, as the container before flannel's in a pod: the file that flannel reads says enough, and an agent that is gone is no hindrance.
        node.end()
        config = tmp_path / "net-conf.json"
        config.write_text(json.dumps(DUAL | {"EnableIPv6": False, "EnableNFTables": True}))
        for path in tmp_path.glob("store.db*"):
            path.unlink()
        refused = node.tweed("cleanup", "--to-flannel", *node.flags)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1) and "no network configuration" in refused.stderr
        done = node.tweed("cleanup", "--to-flannel", *node.flags, "--net-config-path", str(config))
        assert done.returncode == 0, done.stderr
        assert not node.state.exists() and not list(tmp_path.glob("store.db*")) and node.subnet_file.exists()
        assert node.sh("ip -o link show flannel.1").split(":")[0] == number
