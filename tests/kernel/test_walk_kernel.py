"""Our route choice equals the kernel's over random tables and rules, read back as the text that `ip` prints of them."""

from __future__ import annotations

import errno
import random

import pytest

from tweed.addr import Prefix, format_address
from tweed.errors import KernelError
from tweed.kernel.tables import lookup_route
from tweed.trace.fib import metric
from tweed.trace.read import Source, read
from tweed.trace.rules import Flow
from tweed.trace.tables import Tables

KINDS = {errno.EINVAL: "blackhole", errno.EHOSTUNREACH: "unreachable", errno.EACCES: "prohibit", errno.ENETUNREACH: "missing"}
DEVICES = ("x0", "x1", "x2")


def random_address(rng: random.Random, family: int) -> bytes:
    return (
        bytes([10, 9, rng.choice((0, 1, 128, 255)), rng.choice((0, 1, 7, 128))])
        if family == 4
        else bytes.fromhex("fd000009") + bytes(10) + bytes([rng.choice((0, 1, 128, 255)), rng.choice((0, 1, 7, 128))])
    )


def random_prefix(rng: random.Random, family: int) -> Prefix:
    bits = 32 if family == 4 else 128
    return Prefix(random_address(rng, family), rng.choice((0, 8, bits - 16, bits - 9, bits - 8, bits - 1, bits))).network


def commands(rng: random.Random, family: int) -> list[str]:
    """`ip` commands that make random routes and rules; those that clash are refused and do no harm."""
    found = []
    via = {device: f"10.8.{n}.2" if family == 4 else f"fd00:8:{n}::2" for n, device in enumerate(DEVICES)}
    for _ in range(40):
        dst, table = random_prefix(rng, family), rng.choice(("main", "main", "77", "78"))
        verb = rng.choice(("add", "add", "append"))
        kind = rng.choice(("unicast",) * 8 + ("blackhole", "unreachable", "prohibit", "throw"))
        end = f"table {table}" + rng.choice(("", "", " metric 5", " metric 2000"))
        device = rng.choice(DEVICES)
        if kind != "unicast":
            found.append(f"ip -{family} route {verb} {kind} {dst} {end}")
        elif rng.random() < 0.15:
            one, two = rng.sample(DEVICES, 2)
            found.append(f"ip -{family} route add {dst} {end} nexthop via {via[one]} dev {one} nexthop via {via[two]} dev {two} weight 2")
        elif rng.random() < 0.5:
            found.append(f"ip -{family} route {verb} {dst} via {via[device]} dev {device} {end}")
        else:
            found.append(f"ip -{family} route {verb} {dst} dev {device} {end}")
    for _ in range(rng.choice((0, 3))):
        selectors = rng.choice(
            (
                f"from {random_prefix(rng, family)}",
                f"to {random_prefix(rng, family)}",
                f"iif {rng.choice(DEVICES)}",
                "fwmark 7",
                "not fwmark 7",
                "tos 0x10",
                "ipproto tcp dport 80",
                f"not ipproto udp to {random_prefix(rng, family)}",
                "sport 1000-2000",
            )
        )
        action = rng.choice(("lookup 77", "lookup 78", "lookup main suppress_prefixlength 8", "prohibit"))
        found.append(f"ip -{family} rule add {selectors} {action} priority {rng.randrange(100, 200)}")
    return found


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("seed", range(6))
def test_our_choice_is_the_kernels(netns, family: int, seed: int):
    rng = random.Random(seed * 10 + family)
    netns.run(
        "".join(
            f"ip link add {d} type veth peer name {d}p; ip link set {d} up; ip link set {d}p up; echo 0 > /proc/sys/net/ipv4/conf/{d}/rp_filter;"
            f"ip addr add 10.8.{n}.1/24 dev {d}; ip -6 addr add fd00:8:{n}::1/64 dev {d} nodad;"
            for n, d in enumerate(DEVICES)
        )
        + "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
    )
    netns.run("\n".join(f"{command} 2>/dev/null || true" for command in commands(rng, family)))
    text = "".join(f"$ {c}\n{netns.run(c)}" for c in (f"ip -{family} route show table all", f"ip -{family} rule"))
    snapshot = read([Source("n", "dump.txt", text.encode())])
    assert snapshot.unread == ()
    tables = Tables(snapshot.nodes[0])
    compared = set()
    for _ in range(150):
        dst = random_address(rng, family)
        src, iif = (None, None) if rng.random() < 0.5 else (random_address(rng, family), rng.choice(DEVICES))
        proto, sport, dport = rng.choice(((6, 1500, 80), (17, 99, 80), (6, 99, 443)))
        ours = tables.lookup(dst, src=src, iif=iif, flow=Flow(proto, sport, dport))
        told = f"{format_address(dst)} from {src and format_address(src)} iif {iif}: {ours}"
        try:
            theirs = lookup_route(netns.nl, dst, src=src, iif=iif, proto=proto, sport=sport, dport=dport)
        except KernelError as error:
            assert KINDS.get(error.errno) in (ours.kind, "missing" if ours.kind == "prohibit" and ours.row is None else None), f"{told}\n{error}"
            compared.add(KINDS[error.errno])
            continue
        assert ours.row is not None, f"{told}\n{theirs}"
        assert (str(ours.row.dst), metric(ours.row)) == (str(theirs.dst), theirs.metric), f"{told}\n{theirs}"
        # Of a multipath route IPv6 tells the next hop that the flow's hash chose.
        assert (theirs.gateway, theirs.device) in [(hop.gateway, hop.device) for hop in ours.hops], f"{told}\n{theirs}"
        compared.add("multipath" if len(ours.hops) > 1 else ours.kind)
    assert "unicast" in compared, "the tables were too poor to tell anything"
