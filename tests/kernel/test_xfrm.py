"""IPsec policies: what is read of them, which of them decides, and the command that takes one away, beside the kernel's own answers."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import random
import socket
import subprocess

import pytest
from tests.kernel.conftest import Namespace

from tweed.addr import parse_address as ip
from tweed.kernel.netns import run_in
from tweed.trace import xfrm
from tweed.trace.dump import node
from tweed.trace.firewall import Facts

POLICIES = [
    "src 10.1.0.0/16 dst 10.9.9.9/32 proto tcp dport 80 dir out priority 5 action block",
    "src 0.0.0.0/0 dst 10.9.9.9/32 proto udp sport 53 dev lo dir out mark 0x7 mask 0xff action block",
    "src 0.0.0.0/0 dst 10.9.9.9/32 dir out if_id 0x9 action block",
    "src 0.0.0.0/0 dst 10.9.9.8/32 dir in tmpl dst 10.9.9.8 proto esp mode tunnel",
    "src 0.0.0.0/0 dst 10.9.9.8/32 dir fwd tmpl dst 10.9.9.8 proto esp mode tunnel level use",
    "src ::/0 dst fd00::/64 proto ipv6-icmp dir out action block",
    "src fd00:1::1/128 dst ::/0 dir in action allow",
]


@pytest.fixture
def policed(netns: Namespace) -> Namespace:
    if subprocess.run(["ip", "-n", netns.name, "xfrm", "policy"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel has no IPsec")
    return netns


def test_each_is_read_and_its_command_takes_it_away_alone(policed: Namespace) -> None:
    for policy in POLICIES:
        policed.run(f"ip xfrm policy add {policy}")
    rows = node("n", policed.fd).policies
    assert {(row.direction, row.action, row.templates, row.transforms) for row in rows if str(row.dst) == "10.9.9.8/32"} == {
        ("in", "allow", 1, True),
        ("fwd", "allow", 0, True),
    }
    for left in range(len(rows), 0, -1):
        row = node("n", policed.fd).policies[left // 2]
        policed.run(xfrm.removal(row))
        after = node("n", policed.fd).policies
        assert len(after) == left - 1 and xfrm.selector(row) not in {xfrm.selector(each) for each in after}


def test_the_one_that_decides_is_the_kernels(policed: Namespace) -> None:
    """Any policies, and datagrams to where they meet: refused exactly where a policy is said to block."""
    chance = random.Random(7)
    policed.run("ip link add v type veth peer w; ip link set v arp off up; ip link set w up; ip addr add 10.7.0.1/32 dev v; ip route add 10.9.0.0/16 dev v")
    blocked = 0
    for _ in range(12):
        policed.run("ip xfrm policy flush")
        lines = []
        for _ in range(6):
            length = chance.choice((0, 16, 29, 30, 31, 32))
            dst = ipaddress.ip_network(f"10.9.0.{chance.randrange(4)}/{length}", strict=False)
            words = chance.choice(("", "proto udp", "proto udp dport 7", "proto tcp", "proto udp sport 5353"))
            src = chance.choice(("0.0.0.0/0", "10.7.0.1/32", "10.7.0.0/24", "10.8.0.0/16"))
            lines.append(f"ip xfrm policy update src {src} dst {dst} {words} dir out priority {chance.randrange(2)} action {chance.choice(('block', 'allow'))}")
        policed.run("; ".join(lines))
        rows = node("n", policed.fd).policies
        for last in range(4):
            for port in (7, 8):
                target = f"10.9.0.{last}"
                decided = xfrm.stopped(rows, "out", Facts(ip("10.7.0.1"), ip(target), 17, 5353, port, "", "v"))
                assert refused(policed, target, port) == (decided is not None and decided[1]), (lines, target, port)
                blocked += decided is not None
    assert blocked > 10


def refused(space: Namespace, target: str, port: int) -> bool:
    def send() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("10.7.0.1", 5353))
            with contextlib.suppress(ConnectionRefusedError):
                try:
                    made.sendto(b"x", (target, port))
                except PermissionError as error:
                    assert error.errno == errno.EPERM
                    return True
        return False

    return run_in(space.fd, send)
