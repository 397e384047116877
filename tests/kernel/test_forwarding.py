"""Forwarding turned on in the real kernel: the host's own way out survives, and everything goes back as it was."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether
from tests.kernel.overlay import Space

from tweed.addr import Prefix, parse_address
from tweed.errors import KernelError
from tweed.kernel import sysctl
from tweed.model import Route
from tweed.plan.forwarding import PROTOCOL_RA, Note, Write

PROTOCOLS = {"ra": PROTOCOL_RA, "boot": 3, "static": 4}


class Host:
    """A namespace `host` with a NIC `ens33` towards `router` (fe80::1), and another NIC `ens34` that leads nowhere."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.space = Space(f"tweednft-{os.getpid()}-host")
        stack.callback(self.space.remove)
        self.router = Space(f"tweednft-{os.getpid()}-router")
        stack.callback(self.router.remove)
        self.space.sh("ip link add ens34 type bridge; ip link set ens34 up")
        self.space.sh(f"ip link add ens33 type veth peer name eth0 address 02:00:00:00:00:01 netns {self.router.name}; ip link set ens33 up")
        self.router.sh("sysctl -qw net.ipv6.conf.eth0.addr_gen_mode=1; ip link set eth0 up; ip addr add fe80::1/64 dev eth0 nodad")
        self.lost: list[Route] = []
        self.noted: list[Note] = []

    def advertise(self) -> None:
        """The router advertises itself once: a lifetime of 1800 s, and a prefix for autoconfiguration."""
        mac = "02:00:00:00:00:01"
        packet = Ether(src=mac, dst="33:33:00:00:00:01") / IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=1800)
        packet = packet / ICMPv6NDOptSrcLLAddr(lladdr=mac) / ICMPv6NDOptPrefixInfo(prefix="2001:db8:1::", prefixlen=64)

        def send() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind(("eth0", 0))
                sock.send(bytes(packet))  # through a veth: the host has handled it before this returns

        self.router.do(send)

    def default_routes(self) -> list[Route]:
        listed = json.loads(self.space.sh("ip -6 -j route show default table all") or "[]")
        zero = Prefix(bytes(16), 0)
        return [Route(zero, r["dev"], parse_address(r["gateway"]), metric=r["metric"], protocol=PROTOCOLS[r["protocol"]]) for r in listed if "gateway" in r]

    def put_back(self, route: Route) -> None:
        self.lost.append(route)
        self.space.sh(f"ip -6 route replace {route}")

    def turn_on(self, *ours: str) -> tuple[list[Write], list[Route]]:
        return self.space.do(
            lambda: sysctl.turn_on_forwarding((4, 6), ours, note=self.noted.extend, default_routes=self.default_routes, put_back=self.put_back)
        )

    def restore(self) -> list[Write]:
        return self.space.do(lambda: sysctl.restore(self.noted))

    def all_sysctls(self) -> dict[str, str]:
        """Every readable value below /proc/sys/net in this namespace."""

        def read() -> dict[str, str]:
            found = {}
            for directory, _, files in os.walk("/proc/sys/net"):
                for name in files:
                    with contextlib.suppress(OSError):  # a few can only be written
                        path = os.path.join(directory, name)
                        with open(path) as file:
                            found[path] = file.read()
            return found

        return self.space.do(read)


@pytest.fixture
def host() -> Iterator[Host]:
    with contextlib.ExitStack() as stack:
        yield Host(stack)


def test_the_route_of_a_router_advertisement_survives(host: Host) -> None:
    host.advertise()
    before = host.default_routes()
    assert [(r.device, r.protocol) for r in before] == [("ens33", PROTOCOL_RA)]
    written, lost = host.turn_on()
    assert written[-1] == Write("net/ipv6/conf/all/forwarding", "1") and not lost
    assert host.default_routes() == before
    assert host.space.do(lambda: (sysctl.read_int("net.ipv4.ip_forward"), sysctl.read_int("net.ipv6.conf.all.forwarding"))) == (1, 1)
    # The next advertisement is listened to as well: it brings back a route that somebody deleted.
    host.space.sh("ip -6 route flush default")
    host.advertise()
    assert host.default_routes() == before


def test_without_us_it_would_not(host: Host) -> None:
    """The kernel's own behaviour, on which the test above rests."""
    host.advertise()
    assert host.default_routes()
    host.space.sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
    assert host.default_routes() == []


def test_an_advertisement_that_comes_only_later_is_heard(host: Host) -> None:
    """An agent that starts at boot is faster than the first advertisement."""
    host.turn_on()
    assert host.default_routes() == []
    host.advertise()
    assert [r.device for r in host.default_routes()] == ["ens33"]


def test_a_route_handled_in_user_space_stays_and_its_interface_is_left_alone(host: Host) -> None:
    host.space.sh("sysctl -qw net.ipv6.conf.ens33.accept_ra=0; ip -6 route add default via fe80::1 dev ens33 proto ra metric 100")
    before = host.default_routes()
    _, lost = host.turn_on()
    assert not lost and host.default_routes() == before
    assert host.space.do(lambda: sysctl.read("net.ipv6.conf.ens33.accept_ra")) == "0"


def test_a_route_that_the_kernel_drops_all_the_same_is_put_back_and_said(host: Host) -> None:
    """Learned by the kernel before a daemon took over and set accept_ra to 0."""
    host.advertise()
    host.space.sh("sysctl -qw net.ipv6.conf.ens33.accept_ra=0")
    before = host.default_routes()
    _, lost = host.turn_on()
    assert lost == before == host.lost
    assert host.default_routes() == before


def test_our_own_devices_never_take_advertisements(host: Host) -> None:
    host.space.sh("ip link add cni0 type bridge; ip link set cni0 up; ip link add flannel.1 type bridge; ip link set flannel.1 up")
    host.turn_on("cni0", "flannel.1")
    assert host.space.do(lambda: [sysctl.read(f"net.ipv6.conf.{name}.accept_ra") for name in ("cni0", "flannel.1", "ens33")]) == ["1", "1", "2"]


def test_a_second_pass_does_nothing_and_every_foreign_change_is_mended(host: Host) -> None:
    host.space.sh("ip link add cni0 type bridge; ip link set cni0 up")
    host.advertise()
    host.turn_on("cni0")
    noted = list(host.noted)
    assert host.turn_on("cni0") == ([], []) and host.noted == noted
    for key in ("net/ipv4/conf/all/forwarding", "net/ipv4/conf/cni0/forwarding", "net/ipv6/conf/all/forwarding"):
        host.space.do(lambda key=key: sysctl.write(key, 0))
        written, _ = host.turn_on("cni0")
        assert Write(key, "1") in written
        assert host.turn_on("cni0") == ([], [])
    host.space.do(lambda: sysctl.write("net/ipv6/conf/ens33/accept_ra", 1))
    assert host.turn_on("cni0")[0] == [Write("net/ipv6/conf/ens33/accept_ra", "2")]
    assert [r.device for r in host.default_routes()] == ["ens33"]


@pytest.mark.parametrize(
    "setting",
    [
        "true",
        "sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.ens34.forwarding=1 net.ipv6.conf.ens34.forwarding=1 net.ipv6.conf.ens34.accept_ra=0",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.accept_redirects=1",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.ens34.forwarding=0 net.ipv6.conf.ens33.accept_ra=2",
        "sysctl -qw net.ipv6.conf.default.forwarding=1 net.ipv4.conf.default.forwarding=1",
    ],
    ids=["a plain host", "settings of single interfaces", "a router already", "half a router", "defaults"],
)
def test_restore_leaves_every_sysctl_as_it_was(host: Host, setting: str) -> None:
    host.space.sh(setting)
    host.advertise()
    before = host.all_sysctls()
    written, _ = host.turn_on("ens34")
    assert bool(written) == (host.all_sysctls() != before)
    host.restore()
    after = host.all_sysctls()
    assert {k: (v, after[k]) for k, v in before.items() if after[k] != v} == {}


def test_restore_leaves_what_somebody_else_has_set_since(host: Host) -> None:
    host.advertise()
    host.turn_on()
    host.space.sh("sysctl -qw net.ipv6.conf.ens33.accept_ra=0 net.ipv4.ip_forward=0 net.ipv4.conf.ens33.forwarding=1")
    assert host.restore()
    assert host.space.do(lambda: sysctl.read("net.ipv6.conf.ens33.accept_ra")) == "0"
    assert host.space.do(lambda: sysctl.read("net.ipv4.conf.ens33.forwarding")) == "1"
    assert host.space.do(lambda: sysctl.read("net.ipv6.conf.all.forwarding")) == "0"


def test_restore_of_an_interface_that_is_gone(host: Host) -> None:
    host.turn_on()
    assert ("net/ipv6/conf/ens34/accept_ra", "1") in host.noted
    host.space.sh("ip link del ens34")
    host.restore()
    assert host.space.do(lambda: sysctl.read("net.ipv6.conf.ens33.accept_ra")) == "1"


def test_reading_and_writing(host: Host) -> None:
    host.space.sh("ip link add flannel.1 type bridge")

    def check() -> None:
        for key in ("net.ipv6.conf.flannel.1.accept_ra", "net.ipv6.conf.flannel/1.accept_ra", "net/ipv6/conf/flannel.1/accept_ra"):
            sysctl.write(key, 0)
            assert sysctl.read(key) == "0" and sysctl.path(key) == sysctl.path("net/ipv6/conf/flannel.1/accept_ra")
            sysctl.write(key, "1")
            assert sysctl.read_int(key) == 1
        assert sysctl.read("net.ipv6.conf.nowhere.accept_ra") is None
        sysctl.write("net.ipv6.conf.nowhere.accept_ra", 0, missing_ok=True)
        with pytest.raises(KernelError, match=r"^sysctl -w net\.ipv6\.conf\.nowhere\.accept_ra=0: No such file"):
            sysctl.write("net.ipv6.conf.nowhere.accept_ra", 0)
        with pytest.raises(KernelError, match="Invalid argument"):
            sysctl.write("net.ipv4.ip_forward", "many")
        assert len(sysctl.boot_id()) == 36 and sysctl.has_ipv6()

    host.space.do(check)


def test_a_read_only_proc_is_one_clear_line(host: Host) -> None:
    """In a mount namespace of its own, as in a container that is not privileged."""
    script = "from tweed.kernel import sysctl; sysctl.write('net.ipv4.ip_forward', 1)"
    remount = "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys"
    out = host.space.sh(f"""unshare -m sh -ec '{remount}; exec {sys.executable} -c "$0"' "{script}" 2>&1 || true""")
    words = "Read-only file system (/proc/sys is mounted read-only here: run privileged, or set it on the host)"
    assert out.strip().splitlines()[-1] == f"tweed.errors.KernelError: sysctl -w net.ipv4.ip_forward=1: {words}"
