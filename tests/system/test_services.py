"""Services as kube-proxy makes them (iptables mode): a cluster IP leads to a pod on another node, on the same node, and to oneself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from tests.system.conftest import Lab

CLUSTER_IP, PORT, TARGET_PORT = "10.96.0.10", 80, 8080
# What kube-proxy writes for one service with one endpoint: marks what comes from the endpoint itself (hairpin), and masquerades the marked.
RULES = """
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-TWEEDTEST - [0:0]
:KUBE-SEP-TWEEDTEST - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -d {cluster_ip}/32 -p tcp -m tcp --dport {port} -j KUBE-SVC-TWEEDTEST
-A KUBE-SVC-TWEEDTEST ! -s 10.244.0.0/16 -d {cluster_ip}/32 -p tcp -m tcp --dport {port} -j KUBE-MARK-MASQ
-A KUBE-SVC-TWEEDTEST -j KUBE-SEP-TWEEDTEST
-A KUBE-SEP-TWEEDTEST -s {endpoint}/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-TWEEDTEST -p tcp -m tcp -j DNAT --to-destination {endpoint}:{target_port}
COMMIT
"""


@pytest.fixture
def proxied(lab: Lab) -> Iterator[Lab]:
    """The shared lab, whose nodes have no nat table of iptables before and afterwards."""
    yield lab
    for node in lab.nodes:
        lab.run(node.name, "if nft list table ip nat >/dev/null 2>&1; then nft delete table ip nat; fi")


def serve(listener: socket.socket, answers: int) -> None:
    """Tell each client the address that it comes from."""
    for _ in range(answers):
        connection, peer = listener.accept()
        with connection:
            connection.sendall(peer[0].encode())


@pytest.mark.parametrize(
    ("client", "endpoint", "seen_as"),
    [
        ("master/pod1", "node2/pod1", "master/pod1"),
        ("master/pod1", "master/pod2", "master/pod1"),
        ("master/pod1", "master/pod1", None),  # masqueraded: its own address would not come back by the bridge
        ("master", "node2/pod1", None),
        ("master", "master/pod1", None),
    ],
)
def test_a_cluster_ip_leads_to_its_endpoint(proxied: Lab, client: str, endpoint: str, seen_as: str | None) -> None:
    lab, address = proxied, proxied.pod(endpoint).ip()
    rules = RULES.format(cluster_ip=CLUSTER_IP, port=PORT, endpoint=address, target_port=TARGET_PORT)
    lab.run(client.partition("/")[0], f"iptables-restore --noflush <<'EOF'\n{rules}EOF")
    with lab.socket(endpoint, socket.AF_INET, socket.SOCK_STREAM) as listener, lab.socket(client, socket.AF_INET, socket.SOCK_STREAM) as caller:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, TARGET_PORT))
        listener.listen()
        listener.settimeout(10)
        server = threading.Thread(target=serve, args=(listener, 1))
        server.start()
        try:
            caller.settimeout(10)
            caller.connect((CLUSTER_IP, PORT))
            seen = caller.recv(64).decode()
        finally:
            server.join()
    if seen_as is not None:
        assert seen == lab.pod(seen_as).ip()
    else:
        assert seen not in (lab.pod("master/pod1").ip(), "")
