"""Pasted tables: every table, plain and as JSON, in the state in which people paste them."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from tests.unit.spelling import Choices, cases, spelled
from tests.unit.tables import SEED, healthy, only, parsed

from tweed.addr import Prefix, format_address, format_mac
from tweed.addr import parse_address as ip
from tweed.addr import parse_mac as mac
from tweed.trace import iptables
from tweed.trace import snapshot as s
from tweed.trace.read import Source, read


def test_the_seed_as_it_stands():
    found = parsed(SEED, name="vxlan-mode.md")
    (node,) = found.nodes
    assert (node.name, found.unread) == ("master", ())
    assert [(table.table, table.command, table.source, table.repeats) for table in node.shown] == [
        ("route", "ip route", "vxlan-mode.md:29", None),
        ("neighbour", "ip neigh show dev flannel.1", "vxlan-mode.md:38", None),
        ("fdb", "bridge fdb show flannel.1", "vxlan-mode.md:42", None),
        ("route", "ip route", "vxlan-mode.md:80", "vxlan-mode.md:29"),
    ]
    assert (len(node.routes), len(node.neighbours), len(node.fdb)) == (6, 2, 36)
    route = node.routes[3]
    assert (route.source, route.text) == ("vxlan-mode.md:33", "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink")
    assert (str(route.dst), route.hops[0].device, format_address(route.hops[0].gateway), route.hops[0].flags) == (
        "10.244.2.0/24",
        "flannel.1",
        "10.244.2.0",
        ("onlink",),
    )
    neighbour = node.neighbours[0]
    assert (neighbour.source, neighbour.device, format_mac(neighbour.mac), neighbour.state) == (
        "vxlan-mode.md:39",
        "flannel.1",
        "86:22:66:41:77:3d",
        "PERMANENT",
    )
    learned = [row for row in node.fdb if row.master == "cni0" and row.state is None]
    assert [(row.device, format_mac(row.mac)) for row in learned] == [("veth8ea02941", "7a:74:56:6b:40:e8"), ("vethfcef72c2", "06:aa:68:89:d6:17")]
    (remote,) = [row for row in node.fdb if row.mac == mac("86:22:66:41:77:3d")]
    assert (remote.dst, remote.own, remote.master, remote.state) == (ip("192.168.2.202"), True, None, "permanent")


ROUTES = [
    ("default via 192.168.2.1 dev ens33 proto static metric 100", {"dst": "0.0.0.0/0", "metric": 100, "protocol": "static"}),
    ("10.0.0.1 dev eth0 scope link src 10.0.0.2 mtu lock 1400 advmss 1360", {"dst": "10.0.0.1/32", "scope": "link", "src": "10.0.0.2", "mtu": 1400}),
    ("blackhole 10.244.9.0/24 proto 83 metric 5", {"type": "blackhole", "protocol": "83", "metric": 5}),
    ("unreachable default dev lo table 7 metric 4294967295 error -101", {"type": "unreachable", "table": "7", "dst": "0.0.0.0/0"}),
    ("local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1", {"type": "local", "table": "local"}),
    ("169.254/16 dev eth0 scope link metric 1002", {"dst": "169.254.0.0/16"}),
    ("default via fe80::1 dev eth0 proto ra metric 100 expires 1797sec hoplimit 64 pref medium", {"dst": "::/0", "metric": 100}),
    ("fd00:1::/64 via fd00:1:: dev flannel-v6.1 metric 1024 onlink pref medium", {"dst": "fd00:1::/64"}),
    ("10.1.0.0/16 via inet6 fe80::1 dev eth0 table 255", {"dst": "10.1.0.0/16", "table": "local"}),
    ("10.0.0.0/8 nhid 7 via 10.0.0.1 dev eth0", {"nexthop_id": 7}),
    ("10.0.0.0/8 dev wg0 proto static scope link dead linkdown", {"scope": "link"}),
    ("10.2.0.0/16  encap ip id 5 src 0.0.0.0 dst 1.2.3.4 ttl 0 tos 0 via 10.0.0.1 dev eth0", {"encap": "ip"}),
]


def shown(value: object) -> object:
    return str(value) if isinstance(value, Prefix) else format_address(value) if isinstance(value, bytes) else value


@pytest.mark.parametrize(("line", "fields"), ROUTES[:-1])
def test_a_route(line: str, fields: dict[str, object]):
    (row,) = only(line).routes
    assert {name: shown(getattr(row, name)) for name in fields} == fields
    assert (row.text, row.source) == (line, "a.txt:1")


def test_a_multipath_route_keeps_where_each_next_hop_was():
    (row,) = only("$ ip route\n10.0.0.0/8 proto static\n\tnexthop via 10.1.0.1 dev eth0 weight 1\n\tnexthop via 10.1.0.2 dev eth1 weight 3 onlink\n").routes
    assert [(hop.device, format_address(hop.gateway), hop.weight, hop.source) for hop in row.hops] == [
        ("eth0", "10.1.0.1", 1, "a.txt:3"),
        ("eth1", "10.1.0.2", 3, "a.txt:4"),
    ]


def test_a_device_that_the_command_names_is_left_out_of_its_rows():
    node = only(
        "ip route show dev eth0\ndefault via 10.0.0.1\n\nip neigh show dev flannel.1\n10.244.2.0 lladdr 86:22:66:41:77:3d PERMANENT\n"
        "bridge fdb show dev flannel.1\n86:22:66:41:77:3d dst 192.168.2.202 self permanent\n"
        "bridge fdb show br cni0\n0a:58:0a:f4:00:02 dev veth1 master cni0\n"
    )
    assert (node.routes[0].hops[0].device, node.neighbours[0].device) == ("eth0", "flannel.1")
    assert [(row.device, row.master) for row in node.fdb] == [("flannel.1", None), ("veth1", "cni0")]
    assert [table.device for table in node.shown] == ["eth0", "flannel.1", "flannel.1", None]


def test_the_state_that_people_paste_tables_in():
    text = (
        "这是我的集群:\r\n\r\n```\r\nroot@node1:~# sudo ip  route   | grep flannel // 步骤1\r\n"
        "\x1b[32m10.244.2.0/24\x1b[0m   via  10.244.2.0\tdev flannel.1\u00a0onlink   # 到 node2\r\n\r\n"
        "10.244.3.0/24 via 10.244.3.0 dev flannel.1\r\n    onlink\r\n```\r\n"
        "# 以下是邻居表\r\n10.244.2.0 dev flannel.1 lladdr\r\n86:22:66:41:77:3d PERMANENT\r\n"
    )
    found = parsed(text)
    (node,) = found.nodes
    assert node.name == "node1"
    assert [(str(row.dst), row.hops[0].flags, row.source) for row in node.routes] == [
        ("10.244.2.0/24", ("onlink",), "a.txt:5"),
        ("10.244.3.0/24", ("onlink",), "a.txt:7"),
    ]
    assert [(format_mac(row.mac), row.device) for row in node.neighbours] == [("86:22:66:41:77:3d", "flannel.1")]
    assert node.shown[0].command is None, "behind a pipe it may be an excerpt"


def test_devices_and_addresses():
    node = only("""\
1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default qlen 1000
    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00 promiscuity 0 minmtu 0 maxmtu 0 addrgenmode eui64 numtxqueues 1
    inet 127.0.0.1/8 scope host lo
       valid_lft forever preferred_lft forever
4: flannel.1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UNKNOWN mode DEFAULT group default
    link/ether 26:5e:87:0a:7b:91 brd ff:ff:ff:ff:ff:ff promiscuity 0
    vxlan id 1 local 192.168.2.200 dev ens33 srcport 0 0 dstport 8472 nolearning ttl inherit ageing 300 udpcsum noudp6zerocsumtx
    inet 10.244.0.0/32 brd 10.244.0.0 scope global flannel.1
7: veth1@if3: <BROADCAST,MULTICAST,UP> mtu 1450 qdisc noqueue master cni0 state UP group default
    link/ether 0a:59:00:00:00:01 brd ff:ff:ff:ff:ff:ff link-netnsid 2 promiscuity 1
    veth
    bridge_slave state forwarding priority 32 cost 2 hairpin on
8: tun0: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1472 qdisc fq
    link/none  promiscuity 0
    tun type tun pi off
    inet 10.244.0.0 peer 10.244.0.9/16 scope global tun0
""")
    lo, vtep, veth, tun = node.devices
    assert (vtep.kind, vtep.mtu, vtep.up, format_mac(vtep.mac)) == ("vxlan", 1450, True, "26:5e:87:0a:7b:91")
    assert vtep.vxlan == s.VxlanAttributes(
        vni=1, port=8472, local=ip("192.168.2.200"), underlay="ens33", learning=False, checksum=True, gbp=False, external=False
    )
    assert (lo.kind, veth.kind, veth.master, veth.lower, veth.lower_netns, veth.running) == ("", "veth", "cni0", "if3", "2", False)
    assert (tun.kind, tun.mac, tun.point_to_point) == ("tun", None, True)
    assert [(row.device, str(row.address), row.source) for row in node.addresses] == [
        ("lo", "127.0.0.1/8", "a.txt:3"),
        ("flannel.1", "10.244.0.0/32", "a.txt:8"),
        ("tun0", "10.244.0.0/32", "a.txt:16"),
    ]


def test_the_same_device_told_twice_is_one():
    node = only("""\
ip link
2: eth0: <BROADCAST,UP,LOWER_UP> mtu 1500 qdisc fq state UP
    link/ether 02:00:00:00:00:01 brd ff:ff:ff:ff:ff:ff
ip -d link
2: eth0: <BROADCAST,UP,LOWER_UP> mtu 1500 qdisc fq state UP
    link/ether 02:00:00:00:00:01 brd ff:ff:ff:ff:ff:ff promiscuity 0 addrgenmode eui64
""")
    assert [(row.name, row.kind, row.source) for row in node.devices] == [("eth0", "", "a.txt:5")]


def test_rules():
    node = only("""\
0:	from all lookup local
100:	not from all fwmark 0x40000/0x40000 lookup 52
200:	from 10.244.0.0/16 to 10.0.0.1 iif cni0 [detached] unreachable
300:	from all lookup main suppress_prefixlength 0
400:	from all ipproto tcp dport 22 goto 32766
32766:	from all lookup main
""")
    assert [(row.priority, row.action, row.table) for row in node.rules] == [
        (0, "lookup", "local"),
        (100, "lookup", "52"),
        (200, "unreachable", None),
        (300, "lookup", "main"),
        (400, "goto", None),
        (32766, "lookup", "main"),
    ]
    assert (node.rules[1].fwmark, node.rules[1].fwmask, node.rules[1].negated) == (0x40000, 0x40000, True)
    assert (str(node.rules[2].src), str(node.rules[2].dst), node.rules[2].iif) == ("10.244.0.0/16", "10.0.0.1/32", "cni0")
    assert (node.rules[3].suppress_length, node.rules[4].ipproto, node.rules[4].dport) == (0, 6, (22, 22))


def test_sockets_ports_sysctls_and_rulesets():
    node = only("""\
[root@n1 ~]# ss -ulpn
State   Recv-Q  Send-Q    Local Address:Port   Peer Address:Port  Process
UNCONN  0       0               0.0.0.0:8472        0.0.0.0:*
UNCONN  0       0      127.0.0.53%lo:53         0.0.0.0:*     users:(("systemd-resolve",pid=1,fd=2))
UNCONN  0       0                  [::]:8472           [::]:*
[root@n1 ~]# bridge link
5: veth0@if4: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 master cni0 state forwarding priority 32 cost 2
6: veth1 state UP @if4: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 master cni0 state disabled priority 32 cost 2
[root@n1 ~]# sysctl -a
net.ipv4.ip_forward = 1
net.ipv4.conf.flannel/1.rp_filter = 2
net.ipv4.tcp_rmem = 4096	131072	6291456
[root@n1 ~]# nft list ruleset
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
[root@n1 ~]#
""")
    assert [(row.port, row.address, row.device) for row in node.sockets] == [(8472, bytes(4), None), (53, ip("127.0.0.53"), "lo"), (8472, bytes(16), None)]
    assert [(row.device, row.master, row.state) for row in node.ports] == [("veth0", "cni0", "forwarding"), ("veth1", "cni0", "disabled")]
    assert [(row.key, row.value.split()[0]) for row in node.sysctls] == [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/flannel.1/rp_filter", "2"),
        ("net/ipv4/tcp_rmem", "4096"),
    ]
    assert [row.text for row in node.nft][1] == "chain FORWARD {" and len(node.nft) == 5


SAVED = """\
# Generated by {program} v1.8.9 (nf_tables) on Wed Nov 25 21:19:58 2026
*nat
:PREROUTING ACCEPT [0:0]
COMMIT
# Completed on Wed Nov 25 21:19:58 2026
*filter
:FORWARD DROP [12:900]
:KUBE - [0:0]
[3:252] -A FORWARD -j KUBE
-A KUBE -d 10.244.2.2/32 -m comment --comment "# not a comment" -j DROP
COMMIT
10.244.0.0/24 dev cni0 proto kernel scope link src 10.244.0.1
"""


@pytest.mark.parametrize(
    ("command", "by", "program"),
    [
        ("[root@n1 ~]# iptables-save", "iptables-save", "iptables"),
        ("[root@n1 ~]# iptables-legacy-save -c", "iptables-save", "iptables-legacy"),
        ("[root@n1 ~]# sudo ip6tables-save", "ip6tables-save", "ip6tables"),
        ("", "ip6tables-save", "ip6tables"),
        ("as they are now:", "iptables-nft-save", "iptables-nft"),
    ],
)
def test_what_iptables_save_prints_is_evaluated(command: str, by: str, program: str):
    node = only(f"{command}\n{SAVED.format(program=by)}")
    assert len(node.routes) == 1 and len(list(iptables.chains(node.iptables))) == 3
    (dropped,) = [chain for chain in iptables.chains(node.iptables) if chain.name == "KUBE"]
    assert dropped.removal(dropped.rules[0]) == f"{program} -t filter -D KUBE -d 10.244.2.2/32 -m comment --comment '# not a comment' -j DROP"
    assert (dropped.family, dropped.rules[0].quote.source) == ("ip6" if program.startswith("ip6") else "ip", "a.txt:11")


def test_a_star_before_a_word_is_not_yet_a_table_of_iptables():
    node = only("*filter\n10.244.0.0/24 dev cni0 proto kernel scope link src 10.244.0.1\n* nat\n-A is an option\n10.9.0.0/24 dev cni0\n")
    assert [str(row.dst) for row in node.routes] == ["10.244.0.0/24", "10.9.0.0/24"] and not list(iptables.chains(node.iptables))


def test_json_says_the_same_as_text():
    text = only(
        "ip route\n10.0.0.0/8 via 10.1.0.1 dev eth0 proto static metric 5 onlink\nip neigh\n10.0.0.1 dev eth0 lladdr 02:00:00:00:00:01 STALE\n"
        "bridge fdb\n86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 vni 7 port 4789 self permanent\nip rule\n7:	from 10.0.0.0/8 lookup 5\n"
    )
    data = only("""\
ip -j route
[{"dst":"10.0.0.0/8","gateway":"10.1.0.1","dev":"eth0","protocol":"static","metric":5,"flags":["onlink"]}]
ip -j neigh
[ {"dst":"10.0.0.1","dev":"eth0","lladdr":"02:00:00:00:00:01","state":["STALE"]} ]
bridge -j fdb
[{
    "mac": "86:22:66:41:77:3d", "ifname": "flannel.1",
    "dst": "192.168.2.202", "vni": 7, "port": 4789, "flags": ["self"], "master_": 1, "state": "permanent"
 }]
ip -j rule
[{"priority":7,"src":"10.0.0.0","srclen":8,"table":"5"}]
""")

    def told(rows: tuple[s.Row, ...]) -> list[dict[str, object]]:
        return [{name: getattr(row, name) for name in row.__struct_fields__ if name not in ("source", "text")} for row in rows]

    for table in ("routes", "neighbours", "fdb", "rules"):
        assert told(getattr(text, table)) == told(getattr(data, table))
    assert (data.fdb[0].source, data.routes[0].source) == ("a.txt:6", "a.txt:2")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("10.244.2.0/24 via 10.244.2.999 dev flannel.1", "'10.244.2.999' is not an IP address"),
        ("10.244.2.0/33 via 10.244.2.0 dev flannel.1", "'10.244.2.0/33' is not a network"),
        ("10.244.2.0/24 via", "it ends after 'via'"),
        ("10.244.2.0/24 vai 10.244.2.0 dev flannel.1", "it is no row of any table"),
        ("10.244.2.0/24 via 10.244.2.0 dev flannel.1 bogus", "'bogus' is no word of ip route"),
        ("10.244.2.0 dev flannel.1 lladdr 86:22 PERMANENTLY", "'PERMANENTLY' is no word of ip neigh"),
        ("86:22:66:41:77:3d dst 192.168.2.202 self permanent", "it names no device"),
        ("86:22:66:41:77:3d dev flannel.1 dst nowhere self", "'nowhere' is not an IP address"),
        ("100: from all", "it says no table"),
        ('[{"dst": "10.0.0.0/8", "dev": 5}]', "5 is not a word"),
        ('[{"dst": "10.0.0.0/8", "dev": "eth0"', "it begins like JSON"),
        ('[{"what": 1}]', "it is no row of a table"),
        ("UNCONN 0 0 here:there x:*", "'there' is not a number"),
    ],
)
def test_a_line_that_cannot_be_read_is_reported_with_its_number_and_skipped(line: str, why: str):
    found = parsed(f"some prose\n{line}\n10.9.0.0/16 dev cni0 scope link\n")
    assert [(each.source, each.text) for each in found.unread] == [("a.txt:2", line[1:-1] if line.endswith("}]") else line)]
    assert why in found.unread[0].why
    assert [str(row.dst) for row in found.nodes[0].routes] == ["10.9.0.0/16"]


def test_who_speaks():
    text = "[root@a ~]# ip route\n10.0.0.0/8 dev x\n[root@b ~]# ip route\n10.0.0.0/8 dev y\nb# ip netns exec pod1 ip route\n10.1.0.0/16 dev z\n"
    assert [(node.name, node.host, node.routes[0].hops[0].device) for node in parsed(text).nodes] == [("a", None, "x"), ("b", None, "y"), ("b/pod1", "b", "z")]
    given = read([Source("n1", "x", text.encode())])
    assert [node.name for node in given.nodes] == ["n1", "n1/pod1"]
    nameless = read([Source(None, "x", b"10.0.0.0/8 dev x\n"), Source(None, "y", b"[root@a ~]# ip neigh\n10.0.0.1 dev x FAILED\n")])
    assert [(node.name, len(node)) for node in nameless.nodes] == [("a", 2)]
    assert only("10.0.0.0/8 dev x").name == "node"


@pytest.mark.parametrize(
    ("line", "node", "command"),
    [
        ("$ ip route", "node", "ip route"),
        ("# ip r", "node", "ip r"),
        ("`ip route show`:", "node", "ip route show"),
        ("### ip route ###", "node", "ip route"),
        ("➜  ~ ip route", "node", "ip route"),
        ("[root@k8s-1.example.com ~]# /sbin/ip route", "k8s-1", "/sbin/ip route"),
        ("(venv) me@k8s-1:/etc/cni$ sudo -u root ip route //对应步骤1.", "k8s-1", "sudo -u root ip route"),
        ("k8s-1# ip route", "k8s-1", "ip route"),
        ("$ ssh root@k8s-1 ip route", "k8s-1", "ssh root@k8s-1 ip route"),
        ("root@k8s-1:~# ip netns exec web ip route", "k8s-1/web", "ip route"),
        ("root@k8s-1:~# ip -n web route", "k8s-1/web", "ip -n web route"),
        ("root@k8s-1:~# kubectl exec -n x web -c main -- ip route", "k8s-1/web", "kubectl exec -n x web -c main -- ip route"),
        ("root@k8s-1:~# docker exec -it web ip route", "k8s-1/web", "docker exec -it web ip route"),
    ],
)
def test_the_forms_of_a_command_line(line: str, node: str, command: str):
    found = only(f"{line}\n10.0.0.0/8 dev x\n")
    (shown,) = found.shown
    assert (found.name, shown.table, shown.source, shown.command) == (node, "route", "a.txt:1", command)


def test_output_of_other_commands_is_not_of_the_table_before():
    neighbours = "10.244.2.0 lladdr 86:22:66:41:77:3d PERMANENT\n"
    text = f"$ ip neigh show dev flannel.1\n{neighbours}$ kubectl get nodes\nmaster Ready\n{neighbours.replace('2.0', '3.0')}"
    assert [row.device for row in only(text).neighbours] == ["flannel.1", None]


def test_a_bundle_and_text_together():
    text = parsed(SEED, name="seed.md")
    found = read([Source(None, "b.json", s.encode(text)), Source("node2", "n.txt", b"10.244.2.0/24 dev cni0 scope link\n")])
    assert {node.name for node in found.nodes} == {"master", "node2"}
    assert found.node("master") == text.nodes[0]


LINES = [
    *SEED.decode().splitlines(),
    *(line for line, _ in ROUTES),
    *healthy()["n10"].splitlines(),
    *("ip -d link", "7: x: <UP>", "0: from all", "table ip x {", "}", "[", "{", "[{"),
]


@spelled(120)
def pastes(choose: Choices) -> str:
    """A few stretches of what people paste, and lines of anything."""

    def stretch() -> list[str]:
        at = choose.below(len(LINES))
        return choose.one_of((LINES[at : at + 1 + choose.below(6)], LINES[at : at + 1], [choose.text(8)]))

    return choose.one_of(("\n", "\r\n")).join(line for lines in choose.several(12, stretch) for line in lines)


@cases(40, pastes)
def test_whatever_is_pasted_every_line_is_read_reported_or_prose(text: str):
    found = parsed(text.encode("utf-8", "replace"))
    where = [int(row.source.rpartition(":")[2]) for row in (*found.unread, *found.prose)]
    assert all(1 <= number <= text.count("\n") + text.count("\r") + 1 for number in where)


@cases(21, st.binary(max_size=200))
def test_bytes_of_any_kind_are_no_crash(data: bytes):
    assert all(each.why for each in parsed(data).unread)
