"""What an agent answers on its socket and its port, to friends and to whoever else can reach them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from tests.system.cluster import V4, Cluster, Node, wait_for

from tweed.agent.client import AgentError, call

BASE = "http://127.0.0.1:9472"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("api"), 2) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Node]:
    """Alive and right before and after each test."""
    node = cluster.nodes[0]
    yield node
    assert node.process is not None and node.process.poll() is None
    wait_for(lambda: node.status()["ready"], "still ready")


def get(node: Node, path: str, base: str = BASE) -> tuple[int, str]:
    """Status and body over TCP, from inside the node."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(base + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return node.do(ask)


def raw(node: Node, data: bytes) -> bytes:
    """What the unix socket answers to these bytes, until it closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(node.socket))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                answer += part
        return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# ---- what it is for ------------------------------------------------------------------------------------------------------


def test_health_over_tcp_and_the_socket(node: Node) -> None:
    assert get(node, "/healthz") == (200, "tweed is running\n")
    assert get(node, "/readyz") == (200, "tweed is ready\n")
    assert call(node.socket, "GET", "/healthz") == "tweed is running\n"
    assert call(node.socket, "GET", "/readyz") == "tweed is ready\n"


def test_metrics_are_prometheus_text(node: Node) -> None:
    code, text = get(node, "/metrics")
    assert code == 200 and "tweed_ready 1.0" in call(node.socket, "GET", "/metrics")
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples["tweed_ready"]) == 1 and float(samples["tweed_peers"]) == 1 and float(samples["tweed_leases"]) == 2
    assert float(samples["tweed_failures"]) == 0 and float(samples["tweed_store_up"]) == 1
    assert 86000 < float(samples["tweed_lease_expires_in_seconds"]) <= 86400
    for name in {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}:
        assert f"# HELP {name} " in text and f"# TYPE {name} " in text


def test_status_says_what_is_programmed_for_whom(node: Node, cluster: Cluster) -> None:
    other = cluster.nodes[1]
    status, theirs = node.status(), other.status()
    assert status["encryption"].startswith("none") and "not encrypted" in status["encryption"]
    (peer,) = status["peers"]
    assert (peer["node"], peer["state"], peer["why"]) == ("n2", "programmed", None)
    way = "tunnel because DirectRouting is off"
    assert peer["endpoints"] == [{"subnet": theirs["subnet"], "public_ip": other.ip, "vtep_mac": theirs["vtep_mac"], "way": way}]
    shown = node.sh("bridge fdb show; ip neigh; ip route")
    fdb, neighbour, route = peer["rows"]
    assert fdb in shown
    assert neighbour in shown and " ".join(route.split()) in " ".join(shown.split())


def test_the_status_command(node: Node) -> None:
    done = node.tweed("status")
    assert done.returncode == 0, done.stdout
    words = done.stdout
    assert all(text in words for text in ("n1: ready", node.status()["subnet"], "1 of 1 programmed", "not encrypted", "ens33 192.168.2.1, MTU 1500"))
    assert json.loads(node.tweed("status", "--json").stdout)["node"] == "n1"


def test_pause_and_resume(node: Node) -> None:
    before, passes = node.tables(), node.status()["reconcile"]["passes"]
    assert call(node.socket, "POST", "/v1/pause") == {"paused": True}
    node.sh("ip route flush dev flannel.1 proto 83")
    assert node.status()["paused"] and "paused" in node.tweed("status").stdout
    code, text = get(node, "/metrics")
    assert code == 200 and "tweed_paused 1.0" in text
    with pytest.raises(AgentError, match="paused: resume it first"):
        call(node.socket, "POST", "/v1/attachments", {})
    assert node.tables() != before and node.status()["reconcile"]["passes"] == passes
    assert call(node.socket, "POST", "/v1/resume") == {"paused": False}
    wait_for(lambda: node.tables() == before, "healed after it")
    assert not node.status()["paused"]


def test_not_ready_until_the_peers_are_programmed(cluster: Cluster) -> None:
    """A store that is away, then no configuration, then peers: 503 with the reason, until all of it is there."""
    node = cluster.nodes[0]
    node.end()
    node.sh("ip link del flannel.1; ip link add flannel.1 type bridge")
    try:
        node.start(ready=False)
        wait_for(lambda: node.status()["failures"], "it says what is in the way")
        assert get(node, "/healthz")[0] == 200
        code, text = get(node, "/readyz")
        assert code == 503 and text.startswith("tweed is not ready: flannel.1: a device named flannel.1 exists") and text.endswith("\n")
        with pytest.raises(AgentError, match="not ready"):
            call(node.socket, "GET", "/readyz")
        assert node.status()["peers"][0]["state"] == "pending"
        assert node.tweed("status").returncode == 1
    finally:
        node.sh("ip link del flannel.1")
    wait_for(lambda: get(node, "/readyz")[0] == 200, "ready")
    assert node.status()["peers"][0]["state"] == "programmed" and "lladdr" in "".join(node.tables())


# ---- who may ask, and where --------------------------------------------------------------------------------------------------


def test_the_socket_is_for_root_alone(node: Node) -> None:
    found = node.socket.stat()
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600 and found.st_uid == os.geteuid()


def test_changing_things_is_not_possible_over_tcp(node: Node) -> None:
    def post(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", 9472, timeout=10)
        try:
            connection.request("POST", path, b"{}")
            return connection.getresponse().status
        finally:
            connection.close()

    assert {node.do(lambda path=path: post(path)) for path in ("/v1/stop", "/v1/pause", "/v1/attachments")} == {404}
    assert get(node, "/v1/status")[0] == 404
    assert not node.status()["paused"]


def test_it_listens_on_loopback_only(node: Node) -> None:
    assert [line.split()[3] for line in node.sh("ss -Hltn").splitlines()] == ["127.0.0.1:9472"]


def test_at_the_limit_of_open_files_it_says_so_and_goes_on(node: Node) -> None:
    pid = node.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    assert before[0] == before[1], "as many as it may have"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        node.sh("ip link set flannel.1 down")
        wait_for(lambda: "WARNING open files: Too many open files: raise LimitNOFILE" in node.log.read_text(), "the limit is named")
        wait_for(lambda: "UP" in node.sh("ip link show flannel.1"), "and what needs no file is mended")
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_port_that_is_taken_is_a_problem_but_no_end(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.end()
    taken = node.do(lambda: socket.create_server(("127.0.0.1", 9472)))
    try:
        node.start()
        (problem,) = node.status()["problems"]
        assert problem["id"] == "healthz" and "127.0.0.1:9472" in problem["subject"] and "Address already in use" in problem["text"]
        assert "--healthz-port" in problem["text"]
        assert call(node.socket, "GET", "/readyz") == "tweed is ready\n"
    finally:
        taken.close()
    node.end()
    node.start("--healthz-port", "0")
    assert node.problems() == set() and node.sh("ss -Hltn") == ""
    node.end()
    node.start("--healthz-ip", "::1", "--healthz-port", "1234")
    assert get(node, "/healthz", "http://[::1]:1234") == (200, "tweed is running\n")


def test_a_socket_left_behind_by_a_crash_is_no_obstacle(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.end(9)
    assert node.socket.exists()
    assert "ended; look at its log" in node.tweed("status").stderr
    node.start()
    node.end()
    assert not node.socket.exists()
    done = node.tweed("status")
    assert (done.returncode, done.stdout) == (1, "") and "start one with `tweed agent`" in done.stderr
    node.start()


# ---- hostile ------------------------------------------------------------------------------------------------------------------


ATTACH = b"POST /v1/attachments HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
DOCKER = b"PUT /v1/docker HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
HOSTILE = {
    "no HTTP at all": (b"\x00\xff\x00\xff\r\n\r\n", {400}),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, {400}),
    "an endless header": (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", {400, 431}),
    "ten thousand headers": (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + b"".join(b"X%d: 1\r\n" % n for n in range(10_000)) + b"\r\n", {200, 400, 431}),
    "an unknown path": (b"GET /v2/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
    "a path outside": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
    "another method": (b"PUT /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {405}),
    "no body": (ATTACH + b"\r\n", {400}),
    "no JSON": (ATTACH + b"Content-Length: 5\r\n\r\nhello", {400}),
    "JSON of a wrong kind": (ATTACH + b"Content-Length: 4\r\n\r\n[17]", {400, 409}),
    "null": (ATTACH + b"Content-Length: 4\r\n\r\nnull", {400, 409}),
    "wrong types": (ATTACH + b"Content-Length: 43\r\n\r\n" + b'{"container_id":1,"netns":[],"ifname":null}', {400, 409}),
    "a body that is too large": (ATTACH + b"Content-Length: 2000000\r\n\r\n" + b"x" * 2_000_000, {400, 413}),
    "a deep body": (ATTACH + b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000, {400, 409}),
    "no UTF-8": (ATTACH + b'Content-Length: 4\r\n\r\n"\xff\xfe"', {400}),
    "a container id that is a path": (b"DELETE /v1/attachments/..%2f..%2fetc/eth0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {200, 400, 404, 409}),
    "a subnet for Docker that is none": (DOCKER + b'Content-Length: 13\r\n\r\n["10.0.0/33"]', {409}),
    "subnets for Docker without end": (DOCKER + b"Content-Length: 24001\r\n\r\n[" + b",".join([b'"fd00::/64"'] * 2000) + b"]", {409}),
    "a number for Docker": (DOCKER + b"Content-Length: 3\r\n\r\n[1]", {400}),
    "an ifname that is too long": (b"DELETE /v1/attachments/c/" + b"e" * 300 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {200, 400, 404, 409}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_request_gets_an_answer_and_harms_nobody(node: Node, what: str) -> None:
    data, codes = HOSTILE[what]
    before, log = node.tables(), len(node.log.read_text())
    answer = raw(node, data)
    assert status_of(answer) in codes, answer[:200]
    body = answer.partition(b"\r\n\r\n")[2]
    if b"application/json" in answer.partition(b"\r\n\r\n")[0]:
        error = json.loads(body).get("error", "")
        assert "\n" not in error and "Traceback" not in error and "internal error" not in error
    assert node.tables() == before and "Traceback" not in node.log.read_text()[log:]


def test_a_wrong_request_to_attach_is_one_line(node: Node) -> None:
    for body in (
        {},
        {"container_id": "c1"},
        {"container_id": "c1", "netns": "/nonexistent", "ifname": "eth0"},
        {"container_id": "../x", "netns": "a", "ifname": "b"},
    ):
        with pytest.raises(AgentError) as caught:
            call(node.socket, "POST", "/v1/attachments", body)
        assert "\n" not in str(caught.value) and "internal" not in str(caught.value)
    assert call(node.socket, "GET", "/v1/attachments") == []


def test_two_hundred_clients_that_say_nothing(node: Node) -> None:
    clients = []
    try:
        for _ in range(200):
            clients.append(client := socket.socket(socket.AF_UNIX))
            client.settimeout(10)
            client.connect(str(node.socket))
        assert node.status()["ready"]
        assert get(node, "/healthz")[0] == 200
    finally:
        for client in clients:
            client.close()


def test_the_agent_ends_when_told_through_the_socket(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    assert call(node.socket, "POST", "/v1/stop") == {"stopping": True}
    assert node.process is not None and node.process.wait(10) == 0
    assert "told to end through the socket" in node.log.read_text()
    node.start()


def test_a_configuration_is_waited_for_and_named(tmp_path: object) -> None:
    """Nothing in the store yet: alive, not ready, and the reason says what to type."""
    with Cluster(tmp_path, 1, None) as cluster:  # type: ignore[arg-type]
        (node,) = cluster.nodes
        node.start(ready=False)
        wait_for(lambda: "tweed net init" in str(node.status()["reason"]), "it says what to do")
        assert get(node, "/healthz")[0] == 200 and get(node, "/readyz")[0] == 503
        assert "tweed_ready 0.0" in get(node, "/metrics")[1]
        with pytest.raises(AgentError, match="no subnet yet"):
            call(node.socket, "POST", "/v1/attachments", {"container_id": "c", "netns": f"/run/netns/{node.name}", "ifname": "eth0"})
        cluster.configure(json.dumps(V4))
        wait_for(lambda: get(node, "/readyz")[0] == 200, "ready")


def test_a_socket_that_cannot_be_made_is_one_line(cluster: Cluster) -> None:
    """The kernel's limit for the path of a unix socket is 107 bytes."""
    node = cluster.nodes[1]
    done = node.tweed("agent", *node.flags, "--run-dir", str(node.directory / ("x" * 120)), "--node-name", "n9")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("tweed: cannot listen on /") and "choose another --run-dir" in done.stderr
