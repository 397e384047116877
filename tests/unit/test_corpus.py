"""Tables from distributions and clusters of all kinds (tests/corpus): every row is read, and nothing that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tweed.trace.read import Source, read
from tweed.trace.snapshot import Node, Snapshot

CORPUS = Path(__file__).parents[1] / "corpus"
TABLES = ("devices", "addresses", "rules", "routes", "neighbours", "fdb", "sockets", "sysctls")
EXPECTED = {
    # iproute2 6.x with -o, systemd's sockets, kubectl's output in between
    "k3s.txt": {"k3s-server": {"devices": 5, "addresses": 6, "routes": 5, "neighbours": 4, "fdb": 1, "sockets": 5}},
    # busybox, and `route -n`, which repeats two rows in its own way
    "busybox.txt": {"node": {"devices": 2, "addresses": 2, "rules": 3, "routes": 3, "neighbours": 1}},
    "calico.txt": {"kubeadm-cp1": {"devices": 2, "rules": 10, "routes": 22, "neighbours": 1, "fdb": 1}},
    "bond.txt": {"metal-07": {"devices": 6, "addresses": 4, "routes": 6, "neighbours": 2, "fdb": 4}},
    # a cloud's /32 addresses; files and iptables shown in between
    "cloud.txt": {"fsn1-worker-3": {"devices": 5, "addresses": 5, "routes": 5, "neighbours": 1, "fdb": 1, "sysctls": 2}},
    # iproute2 of CentOS 6, netstat, UDP mode
    "old.txt": {"centos6": {"devices": 1, "routes": 5, "neighbours": 2, "fdb": 3, "sockets": 2}},
    # lines of several nodes mixed
    "pdsh.txt": {"node1": {"routes": 3}, "node2": {"devices": 1}},
    # notes in Chinese, quotes, bullets, a table of markdown
    "zh.md": {"master": {"routes": 4, "neighbours": 2, "fdb": 2}},
    "ci.log": {"node1": {"routes": 2}},
}


def counts(node: Node) -> dict[str, int]:
    return {table: len(rows) for table in TABLES if (rows := getattr(node, table))}


def corpus(name: str) -> Snapshot:
    return read([Source(None, name, (CORPUS / name).read_bytes())])


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_every_row_is_read(name: str, ending: bytes):
    found = read([Source(None, name, (CORPUS / name).read_bytes().replace(b"\n", ending))])
    assert found.unread == ()
    assert {node.name: counts(node) for node in found.nodes} == EXPECTED[name]


def test_the_corpus_is_whole():
    assert {path.name for path in CORPUS.iterdir()} == set(EXPECTED)


def test_utf16_of_windows():
    text = (CORPUS / "zh.md").read_text()
    found = read([Source(None, "zh.md", text.encode("utf-16"))])
    assert found.unread == () and {node.name: counts(node) for node in found.nodes} == EXPECTED["zh.md"]


def test_one_line_devices_are_whole_devices():
    devices = {row.name: row for row in corpus("k3s.txt").nodes[0].devices}
    vtep, veth = devices["flannel.1"], devices["veth12ab34cd"]
    assert vtep.vxlan is not None and (vtep.kind, vtep.mtu, vtep.vxlan.vni, vtep.vxlan.port) == ("vxlan", 1450, 1, 8472)
    assert (veth.kind, veth.master, veth.lower, veth.lower_netns) == ("veth", "cni0", "if2", "cni-0a1b2c3d")
    assert {(row.device, str(row.address)) for row in corpus("k3s.txt").nodes[0].addresses} >= {("flannel.1", "10.42.0.0/32"), ("cni0", "10.42.0.1/24")}


def test_notes_behind_a_row_are_not_of_it():
    routes = {str(row.dst): row for row in corpus("zh.md").nodes[0].routes}
    assert routes["10.244.1.0/24"].text == "10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink"
    assert all(row.hops[0].flags == ("onlink",) for dst, row in routes.items() if dst in ("10.244.1.0/24", "10.244.2.0/24"))


def test_routes_of_the_old_command_are_routes():
    found = read(
        [
            Source(
                "n",
                "a.txt",
                b"Destination     Gateway         Genmask         Flags Metric Ref    Use Iface\n"
                b"0.0.0.0         10.0.0.1        0.0.0.0         UG    100    0        0 eth0\n"
                b"10.0.0.0        0.0.0.0         255.255.255.0   U     0      0        0 eth0\n"
                b"10.9.0.0        -               255.255.0.0     !     0      -        0 -\n"
                b"10.1.0.0        10.0.0.9        255.0.255.0     UG    0      0        0 eth0\n",
            )
        ]
    )
    rows = [(str(row.dst), row.type, row.metric, [(hop.device, hop.gateway) for hop in row.hops]) for row in found.nodes[0].routes]
    assert rows[:2] == [("0.0.0.0/0", "unicast", 100, [("eth0", b"\x0a\0\0\1")]), ("10.0.0.0/24", "unicast", None, [("eth0", None)])]
    assert [line.source for line in found.unread] == ["a.txt:4", "a.txt:5"]
