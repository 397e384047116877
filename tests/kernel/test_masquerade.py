"""`--ip-masq`: who is seen with which address, in the real kernel."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from tests.kernel.overlay import NETWORK, NODE, POD, QUIET_S, SUBNET, VTEP, WORLD, Network, network

from tweed.kernel import nft, sysctl
from tweed.kernel.nft import Nft
from tweed.plan.nft import Table, masquerade

FAMILIES = [4, 6]


@pytest.fixture(scope="module")
def built() -> Iterator[Network]:
    with network("m") as net:
        # So that the world can call pods by their own addresses.
        net["world"].sh("ip route add 10.244.1.0/24 via 192.168.2.201; ip -6 route add fd00:10:244:1::/64 via fd00:2::201")
        yield net


@pytest.fixture
def net(built: Network) -> Iterator[Network]:
    """Both nodes with their tables and nothing else."""
    for node in ("a", "b"):
        built[node].sh("nft flush ruleset")
        for family in FAMILIES:
            ensure(built, node, table(node, family))
    yield built
    for name in ("net.ipv4.conf.all.rp_filter", "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"):
        built["a"].do(lambda name=name: sysctl.write(name, 0))
        built["b"].do(lambda name=name: sysctl.write(name, 0))


def table(node: str, family: int, fully_random: bool = True) -> Table:
    return masquerade(NETWORK[family], SUBNET[family][node], vni=1, fully_random=fully_random)


def ensure(net: Network, node: str, want: Table) -> bool:
    def run() -> bool:
        with Nft() as handle:
            return nft.ensure(handle, want)

    return net[node].do(run)


@pytest.fixture(params=[0, 1], ids=["br_netfilter off", "br_netfilter on"])
def bridged(request: pytest.FixtureRequest, net: Network) -> None:
    """Whether packets between ports of cni0 pass through nftables as well."""
    for node in ("a", "b"):
        net[node].do(lambda: [sysctl.write(f"net.bridge.bridge-nf-call-{name}", request.param) for name in ("iptables", "ip6tables")])


@pytest.mark.usefixtures("bridged")
@pytest.mark.parametrize("family", FAMILIES)
class TestWhoIsSeen:
    """Each case: from, to, to which address, and the address that arrives."""

    def test_pod_to_world_is_the_node(self, net: Network, family: int) -> None:
        assert net.seen("a1", "world", family, WORLD[family]) == NODE[family]["a"]

    def test_pod_to_another_node_is_the_node(self, net: Network, family: int) -> None:
        assert net.seen("a1", "b", family, NODE[family]["b"]) == NODE[family]["a"]

    def test_pod_to_pod_of_another_node_is_itself(self, net: Network, family: int) -> None:
        assert net.seen("a1", "b1", family, POD[family]["b1"]) == POD[family]["a1"]

    def test_pod_to_pod_on_the_same_bridge_is_itself(self, net: Network, family: int) -> None:
        assert net.seen("a1", "a2", family, POD[family]["a2"]) == POD[family]["a1"]

    def test_world_to_pod_keeps_the_client_address(self, net: Network, family: int) -> None:
        assert net.seen("world", "a1", family, POD[family]["a1"]) == WORLD[family]

    def test_host_to_its_own_pod_is_the_host(self, net: Network, family: int) -> None:
        assert net.seen("a", "a1", family, POD[family]["a1"], bind=NODE[family]["a"]) == NODE[family]["a"]

    def test_host_to_remote_pod_from_its_own_address_is_the_vtep(self, net: Network, family: int) -> None:
        assert net.seen("a", "b1", family, POD[family]["b1"], bind=NODE[family]["a"]) == VTEP[family]["a"]


def test_host_to_remote_pod_is_answered_under_strict_rp_filter_and_only_because_of_us(net: Network) -> None:
    for node in ("a", "b"):
        net[node].do(lambda: sysctl.write("net.ipv4.conf.all.rp_filter", 1))
    # In effect is the larger of `all` and the device's own (ip-sysctl.rst).
    assert net["b"].do(lambda: max(sysctl.read_int(f"net/ipv4/conf/{name}/rp_filter") or 0 for name in ("all", "flannel.1"))) == 1
    assert net.seen("a", "b1", 4, POD[4]["b1"], bind=NODE[4]["a"]) == VTEP[4]["a"]
    net["a"].sh("nft flush ruleset")
    assert net.seen("a", "b1", 4, POD[4]["b1"], bind=NODE[4]["a"], wait_s=QUIET_S) is None


@pytest.mark.usefixtures("bridged")
@pytest.mark.parametrize("family", FAMILIES)
class TestNodePort:
    """A DNAT as kube-proxy makes it for a NodePort, with its mark where it will masquerade and without where it will not."""

    def service(self, net: Network, family: int, pod: str, mark: str, masquerades: bool) -> str | None:
        word, target = {4: ("ip", POD[4][pod]), 6: ("ip6", f"[{POD[6][pod]}]")}[family]
        net["a"].sh(f"""nft -f - <<'END'
            table {word} kube {{
                chain services {{ type nat hook prerouting priority dstnat; udp dport 30080 {mark} dnat to {target}:8080; }}
                chain post {{
                    type nat hook postrouting priority srcnat;
                    {"meta mark & 0x4000 == 0x4000 masquerade" if masquerades else ""}
                }}
            }}
END""")
        return net.seen("world", pod, family, NODE[family]["a"], port=30080)

    def test_a_marked_one_is_left_to_kube_proxy(self, net: Network, family: int) -> None:
        assert self.service(net, family, "b1", "meta mark set 0x14000", masquerades=False) == WORLD[family]

    def test_kube_proxy_masquerades_it_itself(self, net: Network, family: int) -> None:
        gateway = {4: "10.244.1.1", 6: "fd00:10:244:1::1"}[family]
        assert self.service(net, family, "a1", "meta mark set 0x4000", masquerades=True) == gateway

    def test_an_unmarked_one_to_a_local_pod_keeps_the_client(self, net: Network, family: int) -> None:
        assert self.service(net, family, "a1", "", masquerades=True) == WORLD[family]

    def test_an_unmarked_one_to_a_remote_pod_comes_back_through_this_node(self, net: Network, family: int) -> None:
        assert self.service(net, family, "b1", "", masquerades=True) == VTEP[family]["a"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flow_keeps_its_address_when_the_table_is_written_again(net: Network, family: int) -> None:
    server = net["world"].socket(family, socket.SOCK_STREAM, ("", 8080))
    client = net["a1"].socket(family, socket.SOCK_STREAM)
    with server, client:
        server.listen()
        client.connect((WORLD[family], 8080))
        accepted, peer = server.accept()
        with accepted:
            assert peer[0] == NODE[family]["a"]
            # As a restarted agent would with other flags; twice, so that both generations of the kernel's rules have been replaced.
            assert ensure(net, "a", table("a", family, fully_random=False))
            assert ensure(net, "a", table("a", family, fully_random=True))
            client.sendall(b"still")
            assert accepted.recv(100) == b"still"
            accepted.sendall(b"here")
            assert client.recv(100) == b"here"


def test_no_moment_without_rules_while_the_table_is_replaced(net: Network) -> None:
    """New flows all through 200 replacements: every one of them leaves with the node's address."""
    done = threading.Event()

    def replace() -> None:
        with Nft() as handle:
            for _ in range(200):
                handle.apply(table("a", 4).text)

    def replacing() -> None:
        try:
            net["a"].do(replace)
        finally:
            done.set()

    thread = threading.Thread(target=replacing)
    server = net["world"].socket(4, bind=("", 8080))
    peers = []
    with server:
        thread.start()
        try:
            while not done.is_set() and len(peers) < 20000:
                with net["a1"].socket(4) as client:
                    client.sendto(b"x", (WORLD[4], 8080))
                    peers.append(server.recvfrom(10)[1][0])
        finally:
            thread.join()
    assert len(peers) > 10 and set(peers) == {NODE[4]["a"]}


def test_a_right_table_is_not_touched_and_every_foreign_edit_is_undone(net: Network) -> None:
    want = table("a", 4)
    space = net["a"]
    before = space.do(nft.generation)
    assert not ensure(net, "a", want)
    assert space.do(nft.generation) == before
    listing = space.sh("nft list ruleset")
    edits = [
        "nft flush table ip tweed-1",
        "nft flush chain ip tweed-1 postrouting",
        "nft delete table ip tweed-1",
        "nft insert rule ip tweed-1 postrouting accept",
        "nft add rule ip tweed-1 postrouting ip saddr 1.2.3.4 accept",
        "nft add chain ip tweed-1 other",
        "nft 'add set ip tweed-1 s { type ipv4_addr; }'",
        "nft 'add chain ip tweed-1 postrouting { policy drop; }'",
        "nft delete table ip tweed-1; nft 'table ip tweed-1 { chain postrouting { type nat hook postrouting priority 101; }; }'",
        "nft delete rule ip tweed-1 postrouting handle $(nft -a list table ip tweed-1 | sed -n 's/.*mark.*handle //p')",
    ]
    for edit in edits:
        space.sh(edit)
        assert space.sh("nft list ruleset") != listing, edit
        assert ensure(net, "a", want), edit
        assert sorted(space.sh("nft list ruleset").split("table")) == sorted(listing.split("table")), edit
        assert not ensure(net, "a", want), edit


def test_removal_leaves_the_ruleset_as_it_was(net: Network) -> None:
    space = net["a"]
    space.sh("nft flush ruleset; nft 'table inet somebody { chain c { counter; }; }'; nft add table ip tweed-12")
    before = space.sh("nft list ruleset")

    def add_and_remove() -> list[str]:
        with Nft() as handle:
            for family in FAMILIES:
                nft.ensure(handle, table("a", family))
            assert nft.remove(handle, 1, keep=frozenset({"ip"})) == ["nft delete table ip6 tweed-1"]
            return nft.remove(handle, 1) + nft.remove(handle, 1)

    assert space.do(add_and_remove) == ["nft delete table ip tweed-1"]
    assert space.sh("nft list ruleset") == before
