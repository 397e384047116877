"""A node's tables as netlink tells them are those that iproute2 prints: our reader makes the same rows of its text, and of our own."""

from __future__ import annotations

import msgspec
import pytest

from tweed.trace import snapshot as s
from tweed.trace.dump import node
from tweed.trace.read import Source, read

SETUP = """
echo 1 > /proc/sys/net/ipv6/conf/default/addr_gen_mode  # link-local addresses would be tentative for a while
ip link add cni0 type bridge
ip link add veth0 type veth peer name veth1
ip link set veth0 master cni0
ip link add x0 type veth peer name x1
ip link add flannel.1 mtu 1400 type vxlan id 1 local 192.168.2.200 dev x0 dstport 8472 nolearning df set ttl 9
ip link add flannel-v6.1 type vxlan id 1 local fd00:2::1 dev x0 dstport 8472 udp6zerocsumtx udp6zerocsumrx
ip link add vx2 type vxlan id 2 group 239.1.1.1 dev x0 dstport 4789
ip link add vx3 type vxlan external dstport 4790
ip tuntap add flannel0 mode tun
for d in cni0 veth0 veth1 x0 x1 flannel.1 flannel-v6.1 flannel0; do ip link set $d up; done
ip addr add 192.168.2.200/24 dev x0
ip addr add 10.244.0.0/32 dev flannel.1
ip addr add 10.9.0.1 peer 10.9.0.2/24 dev x1
ip -6 addr add fd00:2::1/64 dev x0 nodad
ip -6 addr add fd00:9::1/64 dev cni0 nodad preferred_lft 0
ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink metric 3 proto 83
ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
ip route add default proto static metric 100 nexthop via 192.168.2.1 dev x0 weight 3 nexthop via 10.9.0.2 dev x1
ip route add 10.1.0.0/16 via 192.168.2.1 table 100 mtu 1300
ip route add 10.2.0.0/16 via inet6 fd00:2::9 dev x0
ip route add blackhole 10.3.0.0/16 metric 7
ip route add throw 10.4.0.0/16 table 101
ip route add 10.5.0.0/16 tos 0x10 via 192.168.2.1
ip route add 10.6.0.0/16 encap ip id 9 dst 192.168.2.5 dev x0
ip nexthop add id 9 via 192.168.2.7 dev x0
ip route add 10.7.0.0/16 nhid 9
ip nexthop add id 8 via 10.9.0.2 dev x1
ip nexthop add id 20 group 9,3/8
ip nexthop add id 7 blackhole
ip nexthop add id 30 via 192.168.2.203 fdb
ip nexthop add id 31 group 30 fdb
ip route add 10.71.0.0/16 nhid 20
bridge fdb add 86:22:66:41:77:06 dev flannel.1 nhid 31 self
ip -6 route add fd00:8::/64 nexthop via fd00:2::5 dev x0 nexthop via fd00:2::6 dev x0 weight 2
ip -6 route add unreachable fd00:7::/64
ip -6 route add default via fd00:2::1:1 dev x0 metric 50
ip rule add from 10.244.0.0/16 to 10.1.0.0/16 iif cni0 fwmark 0x10/0xf0 lookup 100 priority 10
ip rule add not fwmark 7 lookup 101 suppress_prefixlength 0 priority 11
ip rule add prohibit to 10.99.0.0/16 priority 12
ip rule add goto 32766 tos 0x10 priority 13
ip rule add ipproto udp dport 53 sport 1000-2000 uidrange 0-99 lookup 102 priority 14
ip -6 rule add from fd00:8::/64 oif x0 blackhole priority 15
ip neigh add 10.244.1.0 lladdr 86:22:66:41:77:3d dev flannel.1 nud permanent
ip neigh add 192.168.2.9 dev x0 nud failed
ip neigh add 192.168.2.8 lladdr 86:22:66:41:77:01 dev x0 nud stale
ip -6 neigh add fd00:2::9 lladdr 86:22:66:41:77:02 router dev x0 nud permanent
ip neigh add 10.9.0.3 lladdr 02:00:00:00:00:01 extern_learn dev x1 nud reachable
bridge fdb add 86:22:66:41:77:3d dev flannel.1 dst 192.168.2.201 self permanent
bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.2.202 port 9999 vni 7 via x0 self
bridge fdb add 86:22:66:41:77:03 dev veth0 master static
bridge fdb add 86:22:66:41:77:04 dev flannel-v6.1 dst fd00:2::2 self
"""
SHOW = (
    "ip -d addr",
    "bridge -d link",
    "ip -4 rule",
    "ip -6 rule",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip neigh",
    "ip -6 neigh",
    "bridge fdb",
    "ip nexthop",
)
TABLES = ("nexthops", "devices", "addresses", "ports", "rules", "routes", "neighbours", "fdb")


def bare(rows):
    """Without where and in which words; a bridge's own rows of its MAC, which an old `bridge` prints in another form, apart."""
    found = []
    for row in rows:
        row = msgspec.structs.replace(row, source="", text="")
        if isinstance(row, s.AddressRow):
            row = msgspec.structs.replace(row, flags=tuple(sorted(row.flags)))
        if isinstance(row, s.RouteRow):
            row = msgspec.structs.replace(row, hops=tuple(msgspec.structs.replace(hop, source=None, text=None) for hop in row.hops))
        found.append(row)
    return sorted(found, key=repr)


def as_text(made: s.Node) -> str:
    """Our rows as somebody would paste them."""
    devices = "\n".join(row.text for row in made.devices)
    texts = {"ip -d link": devices, "ip -4 rule": lines(r for r in made.rules if r.family == 4), "ip -6 rule": lines(r for r in made.rules if r.family == 6)}
    for family in (4, 6):
        texts[f"ip -{family} route show table all"] = lines(r for r in made.routes if r.dst.family == family)
    texts |= {"bridge link": lines(made.ports), "ip neigh": lines(made.neighbours), "bridge fdb": lines(made.fdb), "ip nexthop": lines(made.nexthops)}
    texts |= {"ss -uln": lines(made.sockets), "sysctl -a": lines(made.sysctls), "nft list ruleset": lines(made.nft)}
    return "".join(f"$ {command}\n{text}\n" for command, text in texts.items())


def lines(rows) -> str:
    return "\n".join(row.text for row in rows)


@pytest.fixture
def furnished(netns):
    netns.run(SETUP)
    return netns


def test_what_netlink_tells_is_what_iproute2_prints(furnished):
    made = node("n", furnished.fd)
    text = "".join(f"$ {command}\n{furnished.run(command)}\n" for command in SHOW)
    pasted = read([Source("n", "dump.txt", text.encode())])
    assert pasted.unread == ()
    for table in TABLES:
        assert bare(getattr(made, table)) == bare(getattr(pasted.nodes[0], table)), table


def test_what_netlink_tells_is_what_iproute2_prints_as_json(furnished):
    made = node("n", furnished.fd)
    commands = ("ip -d -j addr", *(f"ip -j -{f} {t}" for f in (4, 6) for t in ("rule", "route show table all", "neigh")), "bridge -j fdb", "ip -j nexthop")
    pasted = read([Source("n", "dump.txt", "".join(f"$ {command}\n{furnished.run(command)}\n" for command in commands).encode())])
    assert pasted.unread == ()
    for table in TABLES:
        if table != "ports":
            assert bare(getattr(made, table)) == bare(getattr(pasted.nodes[0], table)), table


def test_our_words_read_back_are_our_rows(furnished):
    furnished.run("nft add table ip t; nft add chain ip t c '{ type filter hook forward priority 0; policy drop; }'")
    made = node("n", furnished.fd)
    pasted = read([Source("n", "ours.txt", as_text(made).encode())])
    assert pasted.unread == ()
    for table in (*TABLES, "sockets", "sysctls"):
        if table != "addresses":
            assert bare(getattr(made, table)) == bare(getattr(pasted.nodes[0], table)), table
    assert [row.text for row in made.nft] == [row.text for row in pasted.nodes[0].nft] != []
