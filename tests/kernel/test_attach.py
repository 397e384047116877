"""Attaching real namespaces to a real bridge: what they get, that nothing is left when a step fails, that detaching always works."""

import errno
import itertools
import json
import os
import re
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest
from scapy.layers.inet6 import ICMPv6ND_NA
from scapy.layers.l2 import ARP, Ether
from tests.kernel.conftest import Namespace

from tweed.addr import Prefix, format_mac, parse_address, parse_mac
from tweed.agent import attachments
from tweed.agent.attachments import Attachments
from tweed.agent.ledger import Ledger
from tweed.errors import KernelError, TweedError
from tweed.kernel import links
from tweed.kernel.container import Container
from tweed.kernel.netns import run_in
from tweed.plan import attach as plan
from tweed.plan.addresses import place
from tweed.plan.attachment import AttachRequest, NoAddress, NodeNetwork, Refused

NETWORK = NodeNetwork(
    Prefix.parse("10.244.1.0/24"),
    Prefix.parse("fd00:10:244:1::/64"),
    1430,
    networks=(Prefix.parse("10.244.0.0/16"), Prefix.parse("fd00:10:244::/56")),
)
STEPS = range(len(plan.groups(plan.steps(place(AttachRequest("a", "eth0", "/n"), NETWORK, (), (), 0.0), NETWORK, plan.Facts(bridge=None)))))


class Node:
    """A node's namespace, and containers beside it. Calls run inside the node, where the agent's process would be."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "attachments.json"
        self.space = Namespace()
        self.pods: list[Namespace] = []
        self.attachments = self.open()

    def open(self) -> Attachments:
        return Attachments(self.path, self.space.nl)

    def inside(self, function, *args):
        return run_in(self.space.fd, lambda: function(*args))

    def pod(self) -> Namespace:
        pod = Namespace()
        pod.run("ip link set lo down")
        self.pods.append(pod)
        return pod

    def request(self, pod: Namespace, container_id: str = "a", **more) -> AttachRequest:
        return AttachRequest(container_id, "eth0", f"/run/netns/{pod.name}", **more)

    def attach(self, pod: Namespace, container_id: str = "a", network: NodeNetwork = NETWORK, **more):
        return self.inside(self.attachments.attach, self.request(pod, container_id, **more), network)

    def detach(self, container_id: str) -> None:
        self.inside(self.attachments.detach, container_id, "eth0")

    def state(self) -> list[str]:
        """Everything an attachment touches, as the tools show it, without what changes by itself."""
        commands = "ip -d addr; ip route show table all; ip -6 route show table all; bridge fdb; ip neigh; ip -6 neigh"
        lines = [f"{space.name}: {line}" for space in (self.space, *self.pods) for line in space.lines(commands)]
        return [re.sub(r"\w+_timer +\S+| (REACHABLE|STALE|DELAY|PROBE)$", "", line) for line in lines]

    def remove(self) -> None:
        for space in (*self.pods, self.space):
            space.remove()


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    try:
        yield made
    finally:
        made.remove()


def say(source: Namespace, sender: str, target: Namespace, to: str, bind: str | None = None) -> bool:
    """One datagram, sent once and not repeated: whether it arrives, from `sender`. Loss would be an error, so the wait is generous."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    make = lambda: socket.socket(family, socket.SOCK_DGRAM)  # noqa: E731
    with run_in(target.fd, make) as receiving, run_in(source.fd, make) as sending:
        receiving.settimeout(3)
        receiving.bind((to, 7))
        if bind:
            sending.bind((bind, 0))
        sending.sendto(b"hello", (to, 7))
        try:
            data, address = receiving.recvfrom(100)
        except TimeoutError:
            return False
        return data == b"hello" and address[0] == sender


def test_what_a_container_and_its_node_have(node):
    pod = node.pod()
    attachment = node.attach(pod)
    assert [str(a) for a in attachment.addresses] == ["10.244.1.2/24", "fd00:10:244:1::2/64"] and not attachment.pending
    addresses = {
        (r["local"], r["prefixlen"], r["scope"], r.get("tentative", False)) for d in json.loads(pod.run("ip -j addr show eth0")) for r in d["addr_info"]
    }
    assert addresses == {("10.244.1.2", 24, "global", False), ("fd00:10:244:1::2", 64, "global", False), ("fe80::858:aff:fef4:102", 64, "link", False)}
    assert pod.lines("ip route") == [
        "default via 10.244.1.1 dev eth0",
        "10.244.0.0/16 via 10.244.1.1 dev eth0",
        "10.244.1.0/24 dev eth0 proto kernel scope link src 10.244.1.2",
    ]
    six = [" ".join(line.split()[:5]) for line in pod.lines("ip -6 route show default; ip -6 route show fd00:10:244::/56")]
    assert six == ["default via fd00:10:244:1::1 dev eth0", "fd00:10:244::/56 via fd00:10:244:1::1 dev eth0"]
    assert pod.run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").strip() == "0"
    eth0, lo = links.link(pod.nl, "eth0"), links.link(pod.nl, "lo")
    assert (eth0.mac, eth0.mtu, eth0.up, eth0.running, lo.up) == (parse_mac("0a:58:0a:f4:01:02"), 1430, True, True, True)
    port, bridge = links.link(node.space.nl, attachment.host_name), links.link(node.space.nl, "cni0")
    assert (port.mtu, port.up, port.master, port.hairpin) == (1430, True, bridge.index, True)
    assert (bridge.kind, bridge.mac, bridge.mtu, bridge.up) == ("bridge", parse_mac("0a:58:0a:f4:01:01"), 1430, True)
    own = {(r["local"], r["prefixlen"], r.get("tentative", False)) for d in json.loads(node.space.run("ip -j addr show cni0")) for r in d["addr_info"]}
    assert own == {("10.244.1.1", 24, False), ("fd00:10:244:1::1", 64, False), ("fe80::858:aff:fef4:101", 64, False)}
    assert node.space.run("cat /proc/sys/net/ipv6/conf/cni0/accept_ra").strip() == "0"


def test_it_is_ready_when_attach_returns(node):
    first, second = node.pod(), node.pod()
    node.attach(first, "a")
    assert say(node.space, "10.244.1.1", first, "10.244.1.2")
    node.attach(second, "b")
    assert say(second, "10.244.1.3", first, "10.244.1.2")
    assert say(first, "fd00:10:244:1::2", second, "fd00:10:244:1::3")
    assert say(node.space, "fd00:10:244:1::1", second, "fd00:10:244:1::3")


@pytest.mark.parametrize("existing", [False, True], ids=["our bridge", "a bridge that was there"])
def test_a_container_that_has_not_spoken_yet_is_reached_from_elsewhere(node, netns, existing):
    """The node forwards, so it must resolve the container on behalf of a stranger's address."""
    if existing:
        node.space.run("ip link add cni0 type bridge; ip link set cni0 addrgenmode none; ip link set cni0 up")
    pod = node.pod()
    node.attach(pod)
    node.space.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    node.space.run(f"ip link add out type veth peer name eth0 netns {netns.name}; ip link set out up")
    node.space.run("ip addr add 192.0.2.1/24 dev out; ip addr add 2001:db8::1/64 dev out nodad")
    netns.run("ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad")
    netns.run("ip route add default via 192.0.2.1; ip route add default via 2001:db8::1")
    for space in (node.space, netns):
        space.run("while ip -6 addr | grep -q tentative; do sleep 0.05; done")
    assert say(netns, "192.0.2.2", pod, "10.244.1.2")
    assert say(netns, "2001:db8::2", pod, "fd00:10:244:1::2")


def test_the_bridge_keeps_its_mac_as_containers_come_and_go(node):
    node.attach(node.pod(), "a")
    mac = links.link(node.space.nl, "cni0").mac
    low = node.attach(node.pod(), "b", mac=parse_mac("02:00:00:00:00:01"))
    assert links.link(node.space.nl, "cni0").mac == mac and format_mac(low.mac) == "02:00:00:00:00:01"
    node.detach("a")
    node.detach("b")
    assert links.link(node.space.nl, "cni0").mac == mac


def test_neighbours_are_told(node):
    listener = node.pod()
    node.attach(listener, "a")
    with run_in(listener.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))) as packet:
        packet.bind(("eth0", 3))
        packet.settimeout(3)
        attachment = node.attach(node.pod(), "b")
        seen = set()
        for _ in range(20):
            frame = Ether(packet.recv(2000))
            if frame.src == format_mac(attachment.mac):
                if ARP in frame and frame[ARP].psrc == frame[ARP].pdst:
                    seen.add(frame[ARP].psrc)
                elif ICMPv6ND_NA in frame and frame[ICMPv6ND_NA].O:
                    seen.add(frame[ICMPv6ND_NA].tgt)
            if len(seen) == 2:
                break
    assert seen == {"10.244.1.3", "fd00:10:244:1::3"}


@pytest.mark.parametrize("existing", [False, True], ids=["first", "second"])
def test_a_failed_step_leaves_nothing(node, existing, monkeypatch):
    if existing:
        node.attach(node.pod(), "z")
    pod = node.pod()
    before, ledger = node.state(), node.path.read_bytes() if existing else None
    do, failed = attachments.do, 0
    for number in STEPS:
        calls = iter(range(1000))

        def fail_once(group, *more, calls=calls, number=number):
            if next(calls) == number:
                raise KernelError(str(group), errno.EPERM, "injected")
            do(group, *more)

        with monkeypatch.context() as patch:
            patch.setattr(attachments, "do", fail_once)
            try:
                node.attach(pod, "a")
            except TweedError as error:
                failed += 1
                assert "injected" in str(error)
            else:  # with a bridge that exists there are fewer steps than that
                node.detach("a")
                pod.run("ip link set lo down")
        assert node.state() == before, f"after step {number}"
        if ledger is None:
            assert json.loads(node.path.read_bytes()) == {
                "boot_id": node.attachments.ledger.boot_id,
                "last": [],
                "bridges": {},
                "attachments": [],
                "freed": {},
            }
        else:
            assert [a.container_id for a in node.open().list()] == ["z"]
    assert failed == len(STEPS) if not existing else failed > 6


@pytest.mark.parametrize("existing", [False, True], ids=["first", "second"])
def test_a_refused_setting_leaves_nothing(node, existing, monkeypatch):
    """By the kernel itself, which then carries out what is behind it in the same send."""
    if existing:
        node.attach(node.pod(), "z")
    pod, steps = node.pod(), plan.steps
    before = node.state()
    for place_in_order in itertools.count():
        sizes = []

        def with_one_more(*facts, at=place_in_order, sizes=sizes):
            found = steps(*facts)
            sizes.append(len(found))
            refused = plan.Step(plan.SetLink("nothing", up=True), inside=found[min(at, len(found) - 1)].inside)
            return (*found[:at], refused, *found[at:])

        with monkeypatch.context() as patch:
            patch.setattr(plan, "steps", with_one_more)
            with pytest.raises(KernelError, match="ip link set nothing up: No such device"):
                node.attach(pod, "a")
        assert node.state() == before, f"before step {place_in_order}"
        if place_in_order == sizes[0]:
            break
    assert place_in_order > 8


def test_killed_at_any_step_it_is_undone_at_the_next_start(node):
    pod = node.pod()
    before = node.state()
    do, killed = attachments.do, 0
    for number in STEPS:
        child = os.fork()
        if child == 0:
            calls = iter(range(1000))

            def die(group, *more, calls=calls, number=number):
                if next(calls) == number:
                    os._exit(9)
                do(group, *more)

            attachments.do = die
            try:
                node.attach(pod, "a")
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 9
        killed += 1
        again = node.open()
        assert again.list() == ()
        again.reconcile()
        # The container's loopback stays up: its namespace is not looked for again, it may be gone by then.
        pod.run("ip link set lo down")
        assert node.state() == before, f"after step {number}"
        assert json.loads(node.path.read_bytes())["attachments"] == []
    assert killed == len(STEPS)


def test_attachments_survive_a_restart_and_their_addresses_are_not_handed_out_again(node):
    node.attach(node.pod(), "a")
    node.attachments = node.open()
    node.inside(node.attachments.reconcile)
    assert [(a.container_id, a.ifname, str(a.addresses[0])) for a in node.attachments.list()] == [("a", "eth0", "10.244.1.2/24")]
    assert str(node.attach(node.pod(), "b").addresses[0]) == "10.244.1.3/24"


def test_after_a_reboot_only_the_order_of_addresses_is_remembered(node):
    node.attach(node.pod(), "a")
    ledger = json.loads(node.path.read_bytes())
    node.path.write_text(json.dumps(ledger | {"boot_id": "another"}))
    again = node.open()
    assert again.list() == () and again.ledger.bridges == {}
    assert again.ledger.last == (parse_address("10.244.1.2"), parse_address("fd00:10:244:1::2"))


@pytest.mark.parametrize("loss", ["nothing", "namespace", "interface", "ledger", "everything"])
def test_detach_works_whatever_is_missing_and_twice(node, loss):
    keeper, pod = node.pod(), node.pod()
    node.attach(keeper, "keeper")
    attachment = node.attach(pod, "a")
    assert say(node.space, "10.244.1.1", pod, "10.244.1.3")
    if loss in ("namespace", "everything"):
        node.pods.remove(pod)
        pod.remove()
    if loss == "interface":
        node.space.run(f"ip link del {attachment.host_name}")
    if loss in ("ledger", "everything"):
        node.path.unlink()
        node.attachments = node.open()
    for _ in range(2):
        node.detach("a")
        assert links.link(node.space.nl, attachment.host_name) is None
        assert "a" not in [a.container_id for a in node.attachments.list()]
    # (Without a ledger the address is not known any more; such a row ages out like any other.)
    if loss not in ("ledger", "everything"):
        assert node.space.run("ip neigh show 10.244.1.3") == ""
    assert "a" not in [a.container_id for a in node.open().list()]
    assert links.link(node.space.nl, "cni0") is not None and say(node.space, "10.244.1.1", keeper, "10.244.1.2")


def test_containers_that_vanished_are_freed_at_the_next_start_or_attach(node):
    gone, pod = node.pod(), node.pod()
    attachment = node.attach(gone, "a")
    node.space.run(f"ip link del {attachment.host_name}")
    assert str(node.attach(pod, "a").addresses[0]) == "10.244.1.3/24"
    node.space.run(f"ip link del {attachment.host_name}")
    node.inside(node.attachments.reconcile)
    assert node.attachments.list() == ()


def test_an_interface_that_exists_is_refused_and_left_alone(node):
    pod = node.pod()
    pod.run("ip link add eth0 type veth peer name other")
    before = node.state()
    with pytest.raises(KernelError, match="File exists"):
        node.attach(pod)
    assert node.state() == before and node.attachments.list() == ()


def test_a_namespace_that_does_not_exist(node):
    with pytest.raises(KernelError, match="open network namespace /run/netns/tweedt-none"):
        node.inside(node.attachments.attach, AttachRequest("a", "eth0", "/run/netns/tweedt-none"), NETWORK)
    assert node.attachments.list() == () and links.link(node.space.nl, "cni0") is None


FILE, BOUND, ROUTING, PACKET = "file", "bound", (socket.AF_NETLINK, socket.SOCK_RAW), (socket.AF_PACKET, socket.SOCK_RAW)
OTHER = (socket.AF_INET, socket.SOCK_DGRAM)


@pytest.mark.parametrize(
    ("sent", "works"),
    [
        ((ROUTING,), True),
        ((FILE, PACKET, ROUTING), True),
        ((FILE,), False),
        ((PACKET,), False),
        ((ROUTING, OTHER), False),
        ((ROUTING, ROUTING), False),
        ((ROUTING, PACKET, PACKET), False),
        ((ROUTING, FILE, FILE), False),
        ((BOUND, FILE), False),
    ],
)
def test_what_a_caller_sends_is_used_or_closed(sent, works):
    def opened(what):
        if what == FILE:
            return os.open("/proc", os.O_RDONLY)
        made = socket.socket(*(ROUTING if what == BOUND else what))
        if what == BOUND:
            made.bind((0, 0))
        return made.detach()

    before = set(os.listdir("/proc/self/fd"))  # some of which a thread may close meanwhile: packet sockets of earlier tests
    descriptors = [opened(FILE), *map(opened, sent)]
    given = [*descriptors]
    if works:
        with Container.received(descriptors) as made:
            made.packet, packet = None, made.packet  # else a thread closes it, a moment later
            if packet is not None:
                packet.close()
    else:
        with pytest.raises(KernelError, match="take what the plugin opened"):
            Container.received(descriptors)
    assert set(os.listdir("/proc/self/fd")) <= before
    assert not [descriptor for descriptor in given if os.path.exists(f"/proc/self/fd/{descriptor}")]


def test_the_pool_ends_and_begins_again(node):
    small = NodeNetwork(Prefix.parse("10.244.1.0/29"), None, 1450)
    pods = [node.pod() for _ in range(5)]
    assert [str(node.attach(pod, f"c{i}", small).addresses[0]) for i, pod in enumerate(pods)] == [f"10.244.1.{i}/29" for i in range(2, 7)]
    extra = node.pod()
    with pytest.raises(Refused, match=r"no address is left in 10\.244\.1\.0/29"):
        node.attach(extra, "extra", small)
    node.detach("c3")
    node.detach("c1")
    with pytest.raises(NoAddress, match=r"were in use until just now, the first is free in \d+ s") as error:
        node.attach(extra, "extra", small)
    assert 0 < error.value.wait_s <= 30 and f" {error.value.wait_s:.0f} s" in str(error.value)
    node.attachments.ledger.freed = {address: at - 61 for address, at in node.attachments.ledger.freed.items()}
    assert str(node.attach(extra, "extra", small).addresses[0]) == "10.244.1.3/29"


def test_removing_everything_leaves_the_node_as_it_was(node):
    pods = [node.pod(), node.pod()]
    before = node.state()
    for i, pod in enumerate(pods):
        node.attach(pod, f"c{i}")
    node.inside(node.attachments.remove_all)
    for pod in pods:
        pod.run("ip link set lo down")
    assert node.state() == before and not node.path.exists()


def test_a_bridge_that_was_there_keeps_its_mac_and_gets_back_what_it_had(node):
    """Such as flannel's, with a container of flannel's on it."""
    node.space.run(
        "ip link add cni0 address 02:00:00:00:00:99 mtu 1500 type bridge; ip link set cni0 addrgenmode none; ip addr add 10.244.1.1/24 dev cni0;"
        "ip link add v0 type veth peer name v1; ip link set v0 master cni0; ip link set v0 addrgenmode none up; ip link set v1 addrgenmode none up;"
        "ip link set cni0 up;"
        "while ip link show cni0 | grep -q NO-CARRIER; do sleep 0.02; done"
    )
    pod = node.pod()
    before = node.state()
    node.attach(pod)
    bridge = links.link(node.space.nl, "cni0")
    assert (format_mac(bridge.mac), bridge.mtu) == ("02:00:00:00:00:99", 1430)
    assert say(node.space, "10.244.1.1", pod, "10.244.1.2") and say(node.space, "fd00:10:244:1::1", pod, "fd00:10:244:1::2")
    node.attachments = node.open()
    node.inside(node.attachments.reconcile)
    node.inside(node.attachments.remove_all)
    pod.run("ip link set lo down")
    assert node.state() == before


def test_a_container_namespace_with_ipv6_switched_off_gets_its_ipv6_address(node):
    pod = node.pod()
    pod.run("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    node.attach(pod)
    assert say(node.space, "fd00:10:244:1::1", pod, "fd00:10:244:1::2")


def test_a_container_reaches_itself_through_the_bridge(node):
    """What a Service needs whose only backend is the caller: the frame goes back out of the port that it came in by."""
    pod = node.pod()
    attachment = node.attach(pod)
    node.space.run("sysctl -qw net.ipv4.ip_forward=1")
    node.space.run(
        "nft 'add table ip t; add chain ip t pre { type nat hook prerouting priority dstnat; }; add rule ip t pre ip daddr 10.96.0.1 dnat to 10.244.1.2;"
        " add chain ip t post { type nat hook postrouting priority srcnat; }; add rule ip t post ip saddr 10.244.1.2 ip daddr 10.244.1.2 masquerade'"
    )
    make = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # noqa: E731
    with run_in(pod.fd, make) as receiving, run_in(pod.fd, make) as sending:
        receiving.settimeout(3)
        receiving.bind(("10.244.1.2", 7))
        sending.sendto(b"me", ("10.96.0.1", 7))
        assert receiving.recvfrom(10)[0] == b"me"
    assert links.link(node.space.nl, attachment.host_name).hairpin


def test_a_ledger_that_cannot_be_read_is_named(node):
    node.path.write_text('{"boot_id": 3}')
    with pytest.raises(TweedError) as error:
        node.open()
    assert str(node.path) in str(error.value) and "move it away" in str(error.value)


@pytest.mark.parametrize("torn", [b"", bytes(4096), b'{"boot_id":"another","last":["10.244.1.9"],"bri', b'{"boot_id":"another"}]}]}'])
def test_what_a_loss_of_power_left_half_written_counts_as_empty(node, torn):
    node.path.write_bytes(torn)
    again = node.open()
    assert again.list() == () and again.ledger.last == ()


def test_half_a_ledger_of_this_boot_is_refused(node):
    node.attach(node.pod())
    node.path.write_bytes(node.path.read_bytes()[:-9])
    with pytest.raises(TweedError, match="move it away"):
        node.open()


def test_a_ledger_that_cannot_be_written_undoes_the_attachment(node, monkeypatch):
    pod = node.pod()
    before = node.state()
    writes = []

    def full(self):
        writes.append(self.path)
        if len(writes) == 2:
            raise TweedError("no space left")

    monkeypatch.setattr(Ledger, "save", full)
    with pytest.raises(TweedError, match="no space left"):
        node.attach(pod)
    assert node.state() == before and len(writes) == 3 and node.attachments.list() == ()


def test_a_full_disk(node, tmp_path):
    """What has a file and its spare goes on within their blocks; what would need another is refused, with the kernel as before."""
    disk, pods = tmp_path / "disk", [node.pod() for _ in range(12)]
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=True)
    try:
        node.path = disk / "attachments.json"
        node.attachments = node.open()
        node.attach(pods[0], "0")
        with pytest.raises(OSError, match="No space left"), (disk / "theirs").open("wb", buffering=0) as theirs:
            while True:
                theirs.write(bytes(4096))
        with pytest.raises(TweedError, match=r"attachments\.json cannot be written: No space left on device"):
            for number in range(1, len(pods)):
                before = node.state()
                node.attach(pods[number], f"{number}" + "x" * 100)
        assert node.state() == before and len(node.attachments.list()) == len(node.open().list()) == number > 1
        (disk / "theirs").unlink()
        node.attach(pods[number], str(number))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_commands_that_are_printed_do_the_same(node, tmp_path):
    """The plan as text, typed into a shell, ends in the same kernel state as the agent's own calls."""
    pod = node.pod()
    pending = place(node.request(pod), NETWORK, (), (), 0.0)
    lines = plan.commands(plan.steps(pending, NETWORK, plan.Facts(bridge=None)), pending.netns)
    typed = "\n".join(line for line in lines if "arping" not in line and "ndsend" not in line)
    subprocess.run(["nsenter", f"--net=/run/netns/{node.space.name}", "sh", "-euc", typed], check=True, timeout=30)

    def rows(space, device):
        [found] = json.loads(space.run(f"ip -j addr show {device}"))
        addresses = sorted((a["local"], a["prefixlen"], a["scope"]) for a in found["addr_info"])
        return found["address"], found["mtu"], found["operstate"], addresses, space.run(f"ip route show dev {device}; ip -6 route show dev {device}")

    by_hand = rows(pod, "eth0"), rows(node.space, "cni0")
    node.space.run(f"ip link del {pending.host_name}; ip link del cni0")
    pod.run("ip link set lo down")
    node.attach(pod)
    assert (rows(pod, "eth0"), rows(node.space, "cni0")) == by_hand


def test_the_ledger_is_readable_json(node):
    node.attach(node.pod())
    ledger = msgspec.json.decode(node.path.read_bytes())
    assert ledger["attachments"][0]["addresses"] == ["10.244.1.2/24", "fd00:10:244:1::2/64"]
    assert os.stat(node.path).st_mode & 0o777 == 0o600
