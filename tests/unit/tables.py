"""Tables as people paste them, for tests of the reader and the walk. The seed's are in tests/seed, as they were written."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tweed.trace.read import Source, merged, read
from tweed.trace.snapshot import Node, Snapshot

SEED = (Path(__file__).parents[1] / "seed" / "vxlan-mode.md").read_bytes()


def parsed(text: str | bytes, node: str | None = None, name: str = "a.txt") -> Snapshot:
    return read([Source(node, name, text.encode() if isinstance(text, str) else text)])


def only(text: str | bytes) -> Node:
    """The single node of a text of which all lines can be read."""
    found = parsed(text)
    assert found.unread == ()
    (node,) = found.nodes
    return node


def cluster(**texts: str) -> Snapshot:
    """Nodes by name; `__` in a name stands for the slash of a container's. Each text is read once, whatever many tests change in the others."""
    return merged(Snapshot(), [of_node(name, text) for name, text in texts.items()])


@cache
def of_node(name: str, text: str) -> Snapshot:
    return read([Source(name.replace("__", "/"), f"{name}.txt", text.encode())])


# ---- a healthy cluster ------------------------------------------------------------------------------------------------------

NODE = """\
[root@{name} ~]# ip -d addr
1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default
    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00 promiscuity 0
    inet 127.0.0.1/8 scope host lo
2: ens33: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc fq state UP group default
    link/ether 52:54:c0:a8:02:{n} brd ff:ff:ff:ff:ff:ff promiscuity 0
    inet 192.168.2.{n}/24 scope global ens33
3: flannel.1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UNKNOWN group default
    link/ether 0e:00:00:00:00:{n} brd ff:ff:ff:ff:ff:ff promiscuity 0
    vxlan id 1 local 192.168.2.{n} dev ens33 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum
    inet 10.244.{n}.0/32 scope global flannel.1
5: cni0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UP group default
    link/ether 0a:58:0a:f4:{n}:01 brd ff:ff:ff:ff:ff:ff promiscuity 0
    bridge forward_delay 1500 hello_time 200 max_age 2000 ageing_time 30000 stp_state 0 priority 32768 vlan_filtering 0
    inet 10.244.{n}.1/24 scope global cni0
6: veth1@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue master cni0 state UP group default
    link/ether 0a:59:00:00:{n}:01 brd ff:ff:ff:ff:ff:ff link-netnsid 0 promiscuity 1
    veth
[root@{name} ~]# ip route
default via 192.168.2.1 dev ens33 proto static metric 100
{routes}10.244.{n}.0/24 dev cni0 proto kernel scope link src 10.244.{n}.1
192.168.2.0/24 dev ens33 proto kernel scope link src 192.168.2.{n} metric 100
[root@{name} ~]# ip rule
0:	from all lookup local
32766:	from all lookup main
32767:	from all lookup default
[root@{name} ~]# ip neigh
{neighbours}10.244.{n}.2 dev cni0 lladdr 0a:58:0a:f4:{n}:02 STALE
[root@{name} ~]# bridge fdb
{fdb}0a:58:0a:f4:{n}:01 dev cni0 master cni0 permanent
0a:58:0a:f4:{n}:02 dev veth1 master cni0
[root@{name} ~]# bridge link
6: veth1@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 master cni0 state forwarding priority 32 cost 2
[root@{name} ~]# ss -ulpn
State  Recv-Q Send-Q Local Address:Port Peer Address:Port
UNCONN 0      0            0.0.0.0:8472      0.0.0.0:*
[root@{name} ~]# sysctl -a
net.ipv4.ip_forward = 1
net.ipv4.conf.all.rp_filter = 0
net.ipv4.conf.ens33.rp_filter = 1
net.ipv4.conf.flannel/1.rp_filter = 0
net.ipv4.conf.cni0.rp_filter = 0
"""
POD = """\
# ip -d addr
2: eth0@if6: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UP group default
    link/ether 0a:58:0a:f4:{n}:02 brd ff:ff:ff:ff:ff:ff link-netnsid 0 promiscuity 0
    veth
    inet 10.244.{n}.2/24 scope global eth0
# ip route
default via 10.244.{n}.1 dev eth0
10.244.{n}.0/24 dev eth0 proto kernel scope link src 10.244.{n}.2
# ip neigh
10.244.{n}.1 dev eth0 lladdr 0a:58:0a:f4:{n}:01 REACHABLE
"""
NAMES = {"n10": "10", "n20": "20", "n30": "30"}
# The three rows by which n10 and n30 reach n20, and a device's flags: what tests replace.
ROUTE20 = "10.244.20.0/24 via 10.244.20.0 dev flannel.1 onlink\n"
NEIGH20 = "10.244.20.0 dev flannel.1 lladdr 0e:00:00:00:00:20 PERMANENT\n"
FDB20 = "0e:00:00:00:00:20 dev flannel.1 dst 192.168.2.20 self permanent\n"
UP = "<BROADCAST,MULTICAST,UP,LOWER_UP>"


def healthy(*, pods: bool = True) -> dict[str, str]:
    """Tables by node of three nodes with a container each, `n10` to `n30`: 192.168.2.10, 10.244.10.0/24, 10.244.10.2 and so on."""
    texts = {}
    for name, n in NAMES.items():
        others = [other for other in NAMES.values() if other != n]
        routes = "".join(f"10.244.{o}.0/24 via 10.244.{o}.0 dev flannel.1 onlink\n" for o in others)
        neighbours = "".join(f"10.244.{o}.0 dev flannel.1 lladdr 0e:00:00:00:00:{o} PERMANENT\n" for o in others)
        neighbours += "".join(f"192.168.2.{o} dev ens33 lladdr 52:54:c0:a8:02:{o} REACHABLE\n" for o in others)
        fdb = "".join(f"0e:00:00:00:00:{o} dev flannel.1 dst 192.168.2.{o} self permanent\n" for o in others)
        texts[name] = NODE.format(name=name, n=n, routes=routes, neighbours=neighbours, fdb=fdb)
        if pods:
            texts[f"{name}__pod1"] = POD.format(n=n)
    return texts


def udp_mode() -> dict[str, str]:
    """The same where `n10` and `n20` are joined by flannel's UDP mode instead."""
    tun = "9: flannel0: <POINTOPOINT,MULTICAST,NOARP,UP,LOWER_UP> mtu 1472 qdisc fq\n    link/none promiscuity 0\n    tun type tun pi off\n"
    texts = healthy()
    for name, n in (("n10", "10"), ("n20", "20")):
        text = texts[name].replace("1: lo:", tun + f"    inet 10.244.{n}.0/16 scope global flannel0\n1: lo:")
        for other in NAMES.values():
            text = text.replace(f"10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink\n", "")
        texts[name] = text.replace("default via", "10.244.0.0/16 dev flannel0 proto kernel scope link\ndefault via").replace("0.0.0.0:8472", "0.0.0.0:8285")
    return texts
