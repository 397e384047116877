"""The walk over pasted tables: the seed's and a healthy cluster's, its branches, its size, and what tables do not say."""

from __future__ import annotations

import pytest
from tests.unit.tables import FDB20, ROUTE20, SEED, cluster, healthy, parsed
from tests.unit.walking import changed, decisions, walked

from tweed.addr import parse_address as ip
from tweed.addr import parse_mac as mac
from tweed.errors import UsageError
from tweed.trace.frames import Probe
from tweed.trace.messages import sayer
from tweed.trace.pcap import stages_of
from tweed.trace.result import Said

# ---- the seed ------------------------------------------------------------------------------------------------------------


def test_the_seed_ends_where_its_tables_end():
    found = walked(parsed(SEED, name="vxlan-mode.md"), "10.244.0.5", "10.244.2.5")
    assert (found.verdict, found.first_divergence, found.exit_code) == ("unknown", None, 3)
    assert [(step.node, step.device, step.decision.id, step.row.source if step.row else None, step.question) for step in found.steps] == [
        ("master", "cni0", "source-container", "vxlan-mode.md:31", 0),
        ("master", "cni0", "enters-bridge-port-unknown", None, 0),
        ("master", "cni0", "route-via", "vxlan-mode.md:33", 1),
        ("master", "flannel.1", "neighbour", "vxlan-mode.md:39", 2),
        ("master", "flannel.1", "fdb", "vxlan-mode.md:54", 3),
        ("master", "flannel.1", "encapsulated", None, 0),
        ("master", "ens33", "underlay-connected", "vxlan-mode.md:35", 4),
        ("master", "ens33", "leaves-vxlan-port-unknown", None, 0),
    ]
    last = found.steps[-1]
    assert sayer("en")("decision", last.decision) == "leaves ens33 for 192.168.2.202, UDP destination port unknown (flannel's default 8472)"
    route, fdb = found.steps[2], found.steps[4]
    assert [(loser.row.source, loser.why.id) for loser in (*route.losers, *fdb.losers)] == [
        ("vxlan-mode.md:30", "shorter-prefix"),
        ("vxlan-mode.md:53", "unused-mac"),
    ]
    assert [said.id for step in found.steps for said in step.unknowns] == ["container-mac", "source-mac", "port", "vni", "underlay-neighbour", "peer-tables"]
    tunnel = last.hop.tunnel
    assert (tunnel.dst, tunnel.src, tunnel.vni, tunnel.port, tunnel.dst_mac) == (ip("192.168.2.202"), ip("192.168.2.200"), None, None, None)


def test_the_seed_goes_on_as_far_as_the_other_nodes_tables_allow():
    text = "[root@node2 ~]# ip route\n10.244.2.0/24 dev cni0 proto kernel scope link src 10.244.2.1\n"
    text += "192.168.2.0/24 dev ens33 proto kernel scope link src 192.168.2.202\n"
    found = walked(parsed(SEED + text.encode()), "10.244.0.5", "10.244.2.5")
    assert (found.verdict, decisions(found)[-1][0]) == ("unknown", "node2")
    text += "[root@node2 ~]# ip -d addr show dev flannel.1\n4: flannel.1: <BROADCAST,UP,LOWER_UP> mtu 1450 qdisc noqueue\n"
    text += "    link/ether 86:22:66:41:77:3d brd ff:ff:ff:ff:ff:ff promiscuity 0\n    vxlan id 1 local 192.168.2.202 dev ens33 dstport 8472 nolearning\n"
    text += "[root@node2 ~]# ip neigh\n10.244.2.5 dev cni0 lladdr 0a:58:0a:f4:02:05 REACHABLE\n"
    text += "[root@node2 ~]# bridge fdb show br cni0\n0a:58:0a:f4:02:05 dev veth5 master cni0\n"
    found = walked(parsed(SEED + text.encode()), "10.244.0.5", "10.244.2.5")
    assert (found.verdict, decisions(found)[-3:]) == (
        "delivered",
        [("node2", "cni0", "neighbour"), ("node2", "cni0", "bridge-port"), ("node2", "veth5", "into-container")],
    )


@pytest.mark.parametrize(
    ("src", "dst", "last", "device"),
    [
        ("10.244.0.5", "10.244.1.9", "leaves-vxlan-port-unknown", "ens33"),
        ("192.168.2.200", "10.244.1.9", "leaves-vxlan-port-unknown", "ens33"),
        ("172.17.0.2", "10.244.1.9", "leaves-vxlan-port-unknown", "ens33"),
        ("10.244.0.5", "192.168.2.200", "delivered-host", "ens33"),
        ("10.244.0.5", "10.244.0.6", "ends-container-unknown", "cni0"),
        ("10.244.0.5", "8.8.8.8", "leaves-plain", "ens33"),
        ("10.244.0.5", "172.17.0.2", "ends-container-unknown", "docker0"),
    ],
)
def test_other_ways_through_the_seed(src: str, dst: str, last: str, device: str):
    assert decisions(walked(parsed(SEED), src, dst))[-1] == ("master", device, last)


@pytest.mark.parametrize(
    ("text", "src", "dst", "why"),
    [
        (SEED, "8.8.8.8", "10.244.1.9", "8.8.8.8: no table here speaks of this address"),
        (SEED, "10.244.0.5", "fd00::1", "one address is IPv4 and the other IPv6"),
        (b"hello", "10.244.0.5", "10.244.1.9", "no tables"),
        (b"10.244.0.0/24 dev cni0 scope link", "10.244.0.5", "10.99.0.1", "10.99.0.1: no table here speaks of this address"),
    ],
)
def test_what_cannot_be_asked_is_one_line(text: bytes, src: str, dst: str, why: str):
    with pytest.raises(UsageError) as caught:
        walked(parsed(text), src, dst)
    assert str(caught.value).startswith(why) and "\n" not in str(caught.value)


# ---- healthy -------------------------------------------------------------------------------------------------------------


def test_a_healthy_cluster_delivers_with_nothing_unknown():
    found = walked(changed({}), "10.244.10.2", "10.244.20.2")
    assert (found.verdict, found.outcomes, found.exit_code) == ("delivered", {"": "delivered"}, 0)
    assert decisions(found) == [
        ("n10/pod1", "eth0", "source-namespace"),
        ("n10/pod1", "eth0", "route-via"),
        ("n10/pod1", "eth0", "neighbour"),
        ("n10", "cni0", "enters-bridge"),
        ("n10", "cni0", "route-via"),
        ("n10", "flannel.1", "neighbour"),
        ("n10", "flannel.1", "fdb"),
        ("n10", "flannel.1", "encapsulated"),
        ("n10", "ens33", "underlay-connected"),
        ("n10", "ens33", "leaves-vxlan"),
        ("n20", "ens33", "arrives-vxlan"),
        ("n20", "flannel.1", "decapsulated"),
        ("n20", "flannel.1", "route-connected"),
        ("n20", "cni0", "neighbour"),
        ("n20", "cni0", "bridge-port"),
        ("n20", "veth1", "into-container"),
        ("n20/pod1", "eth0", "route-local"),
        ("n20/pod1", "eth0", "delivered-container"),
    ]
    assert not [said for step in found.steps for said in step.unknowns]
    hops = [step.hop for step in found.steps if step.hop is not None]
    assert [(hop.node, hop.device, hop.direction, hop.ttl, hop.tunnel is not None) for hop in hops] == [
        ("n10/pod1", "eth0", "out", 64, False),
        ("n10", "cni0", "in", 64, False),
        ("n10", "flannel.1", "out", 63, False),
        ("n10", "ens33", "out", 63, True),
        ("n20", "ens33", "in", 63, True),
        ("n20", "flannel.1", "in", 63, False),
        ("n20", "cni0", "out", 62, False),
        ("n20/pod1", "eth0", "in", 62, False),
    ]
    by_decision = {step.decision.id: step.row for step in found.steps if step.row is not None}
    lines = {name: text.splitlines() for name, text in healthy().items()}
    for decision, node in (("encapsulated", "n10"), ("decapsulated", "n20"), ("arrives-vxlan", "n20")):
        file, _, number = by_decision[decision].source.partition(":")
        assert (file, lines[node][int(number) - 1].strip()) == (f"{node}.txt", by_decision[decision].text)
    assert by_decision["decapsulated"].text.startswith("link/ether 0e:00:00:00:00:20")
    wire = hops[3]
    assert (wire.dst_mac, wire.src_mac, wire.tunnel.dst_mac, wire.tunnel.vni) == (
        mac("0e:00:00:00:00:20"),
        mac("0e:00:00:00:00:10"),
        mac("52:54:c0:a8:02:20"),
        1,
    )
    assert (hops[0].dst_mac, hops[0].src_mac, hops[6].dst_mac, hops[6].src_mac) == tuple(
        map(mac, ("0a:58:0a:f4:10:01", "0a:58:0a:f4:10:02", "0a:58:0a:f4:20:02", "0a:58:0a:f4:20:01"))
    )


@pytest.mark.parametrize("pods", [True, False])
@pytest.mark.parametrize(
    ("src", "dst"), [("10.244.10.2", "10.244.30.2"), ("192.168.2.10", "10.244.20.2"), ("10.244.20.2", "192.168.2.10"), ("10.244.30.2", "10.244.30.1")]
)
def test_every_kind_of_pair_delivers(src: str, dst: str, pods: bool):
    assert walked(changed({}, pods=pods), src, dst).verdict == "delivered"


def test_containers_of_one_node_meet_on_the_bridge():
    second = "10.244.10.3 dev cni0 lladdr 0a:58:0a:f4:10:03 REACHABLE\n10.244.10.2 dev cni0"
    port = "0a:58:0a:f4:10:03 dev veth2 master cni0\n0a:58:0a:f4:10:02 dev veth1"
    snapshot = changed({"n10": [("10.244.10.2 dev cni0", second), ("0a:58:0a:f4:10:02 dev veth1", port)]})
    found = walked(snapshot, "10.244.10.2", "10.244.10.3")
    assert (found.verdict, decisions(found)[-1]) == ("delivered", ("n10", "veth2", "into-container"))
    assert not any(step.device == "flannel.1" for step in found.steps)


# ---- more than one way ---------------------------------------------------------------------------------------------------


def test_both_branches_of_a_multipath_route_are_followed():
    two = "10.244.20.0/24 proto static\n\tnexthop via 10.244.20.0 dev flannel.1 weight 1 onlink\n\tnexthop via 10.244.30.0 dev flannel.1 weight 3 onlink\n"
    found = walked(changed({"n10": [(ROUTE20, two)]}), "10.244.10.2", "10.244.20.2")
    assert (found.verdict, found.outcomes) == ("detour", {"1": "delivered", "2": "detour"})
    parts = [step for step in found.steps if step.decision.id == "route-via" and step.branch and step.node == "n10"]
    assert [step.row.text.partition(" nexthop ")[2] for step in parts] == [line.partition("nexthop ")[2] for line in two.splitlines()[1:]]
    assert [said.params["weight"] for step in parts for said in step.assumptions if said.id == "branch"] == ["1", "3"]
    assert {step.branch for step in found.way("1")} == {"", "1"}


def test_several_default_entries_are_copies():
    entries = "00:00:00:00:00:00 dev flannel.1 dst 192.168.2.20 self permanent\n00:00:00:00:00:00 dev flannel.1 dst 192.168.2.30 self permanent\n"
    found = walked(changed({"n10": [(FDB20, entries)]}), "10.244.10.2", "10.244.20.2")
    assert found.outcomes == {"1": "delivered", "2": "dropped"}
    assert [step.decision.id for step in found.steps if step.question == 3] == ["fdb-default", "fdb-default"]


@pytest.mark.parametrize(
    ("text", "losers"),
    [
        ("10.244.20.0/24 via 10.244.30.0 dev flannel.1 metric 50 onlink\n", ["higher-metric", "shorter-prefix"]),
        ("10.244.0.0/16 via 192.168.2.1 dev ens33\n", ["shorter-prefix", "shorter-prefix"]),
    ],
)
def test_the_losers_and_why(text: str, losers: list[str]):
    found = walked(changed({"n10": [(ROUTE20, text + ROUTE20)]}), "10.244.10.2", "10.244.20.2")
    (route,) = [step for step in found.steps if step.question == 1 and step.node == "n10"]
    assert [loser.why.id for loser in route.losers] == losers
    assert found.verdict == "delivered"


def test_a_rule_sends_it_by_another_table():
    rule = ("32766:", "90:	from 10.244.10.0/24 to 10.244.20.0/24 lookup 77\n32766:")
    unknown = walked(changed({"n10": [rule]}), "10.244.10.2", "10.244.20.2")
    assert (unknown.verdict, decisions(unknown)[-1]) == ("unknown", ("n10", "cni0", "ends-no-routes"))
    table = ("[root@n10 ~]# ip rule", "[root@n10 ~]# ip route show table 77\ndefault via 10.244.30.0 dev flannel.1 onlink\n[root@n10 ~]# ip rule")
    found = walked(changed({"n10": [rule, table]}), "10.244.10.2", "10.244.20.2")
    (route,) = [step for step in found.steps if step.question == 1 and step.node == "n10"]
    assert (route.decision.params["table"], found.verdict) == ("77", "detour")
    assert [loser.why.id for loser in route.losers] == ["later-rule"]


# ---- size ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "mtu", "df", "verdict", "cause"),
    [
        (1450, "1450", None, "delivered", None),
        (1451, "1450", True, "dropped", "mtu-exceeded"),
        (1451, "1450", None, "delivered", None),  # Linux does not set DF on what its own device has to cut
        (1500, "1500", None, "delivered", None),  # the outer packet is cut
    ],
)
def test_size_and_mtu(size: int, mtu: str, df: bool | None, verdict: str, cause: str | None):
    found = walked(changed({name: [("mtu 1450", f"mtu {mtu}")] for name in healthy()}), "10.244.10.2", "10.244.20.2", size=size, dont_fragment=df)
    assert (found.verdict, found.first_divergence and found.first_divergence.cause.id) == (verdict, cause)
    cut = [step.device for step in found.steps for said in step.assumptions if said.id == "fragmented"]
    assert bool(cut) == (verdict == "delivered" and size > 1450)


def test_a_container_whose_mtu_is_too_large_loses_what_may_not_be_cut():
    snapshot = changed({"n10__pod1": [("mtu 1450", "mtu 1500")]})
    assert walked(snapshot, "10.244.10.2", "10.244.20.2").verdict == "delivered"
    found = walked(snapshot, "10.244.10.2", "10.244.20.2", size=1500)
    assert (found.first_divergence.node, found.first_divergence.device, found.first_divergence.cause.id) == ("n10", "flannel.1", "mtu-exceeded")


# ---- what is not here --------------------------------------------------------------------------------------------------------


def without(text: str, command: str) -> str:
    """Tables without the one that a command showed."""
    parts = text.split("[root@")
    return "[root@".join(part for part in parts if f"# {command}\n" not in part)


@pytest.mark.parametrize(
    ("command", "last"),
    [
        ("ip neigh", ("n10", "flannel.1", "neighbour-unknown")),
        ("bridge fdb", ("n10", "flannel.1", "fdb-unknown")),
        ("ip route", ("n10", "cni0", "ends-no-routes")),
    ],
)
def test_a_table_that_is_not_here_is_unknown_and_no_fault(command: str, last: tuple[str, str, str]):
    texts = healthy()
    texts["n10"] = without(texts["n10"], command)
    found = walked(cluster(**texts), "10.244.10.2", "10.244.20.2")
    assert (found.verdict, found.first_divergence, decisions(found)[-1]) == ("unknown", None, last)


@pytest.mark.parametrize("command", ["ip rule", "bridge link", "ss -ulpn", "sysctl -a"])
def test_a_table_that_only_could_forbid_is_an_assumption(command: str):
    texts = {name: without(text, command) for name, text in healthy().items()}
    found = walked(cluster(**texts), "10.244.10.2", "10.244.20.2")
    assert found.verdict == "delivered"
    told = {said.id for step in found.steps for said in step.assumptions}
    assert {"ip rule": "default-rules", "sysctl -a": "forwarding-on"}.get(command, "neighbour-will-confirm") in told


@pytest.mark.parametrize(
    ("row", "cause", "last"),
    [
        ("10.244.2.0 lladdr 86:22:66:41:77:3d PERMANENT\n", "neighbour-missing", "neighbour-unknown"),
        ("86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 self permanent\n", "fdb-missing", "fdb-unknown"),
    ],
)
def test_rows_without_a_command_line_are_taken_for_the_whole_table_and_that_is_said(row: str, cause: str, last: str):
    lines = SEED.decode().replace(row, "").splitlines()
    bare = "\n".join(line for line in lines if not line.startswith("["))
    found = walked(parsed(bare), "10.244.0.5", "10.244.2.5")
    assert (found.verdict, found.first_divergence.cause.id) == ("dropped", cause)
    assert "table-may-be-excerpt" in [said.id for said in found.steps[-1].assumptions]
    grepped = "\n".join(line.replace(" //", " | grep 1 //") for line in lines)
    found = walked(parsed(grepped), "10.244.0.5", "10.244.2.5")
    assert (found.verdict, found.steps[-1].decision.id) == ("unknown", last)


@pytest.mark.parametrize(("device", "kind"), [("tunl0", "ipip"), ("flannel-wg", "wireguard")])
def test_tunnels_of_other_kinds_end_the_walk(device: str, kind: str):
    text = f"10.1.0.0/24 dev cni0 scope link\n10.2.0.0/24 via 192.168.0.2 dev {device} onlink\ndefault via 192.168.0.1 dev eth0\n"
    found = walked(parsed(text), "10.1.0.9", "10.2.0.9")
    assert (found.verdict, found.steps[-1].decision) == ("unknown", Said("ends-device-kind", {"device": device, "kind": kind}))


def test_fragments_are_one_where_a_bridge_hands_them_to_connection_tracking():
    """bridge-nf-call-iptables with rules that track: at cni0 the packet is whole again, and cut anew by flannel.1."""
    tracking = "[root@n10 ~]# nft list ruleset\ntable ip nat {\nchain post {\ntype nat hook postrouting priority srcnat; policy accept;\n}\n}\n"
    on = {"n10": [("net.ipv4.ip_forward = 1\n", "net.ipv4.ip_forward = 1\nnet.bridge.bridge-nf-call-iptables = 1\n")]}
    both = {"n10": [*on["n10"], ("[root@n10 ~]# ip rule\n", tracking + "[root@n10 ~]# ip rule\n")]}
    for changes, whole in ((on, False), (both, True)):
        found = walked(changed(changes), "10.244.10.2", "10.244.20.2", size=3000, dont_fragment=False)
        assert found.verdict == "delivered"
        stages = stages_of(found, Probe(ip("10.244.10.2"), ip("10.244.20.2"), size=3000, dont_fragment=False))
        pieces = {(stage.hop.node, stage.hop.device, stage.hop.direction): len(stage.frames) for stage in stages}
        assert (pieces["n10", "cni0", "in"] == 1) is whole
        assert pieces["n10/pod1", "eth0", "out"] == pieces["n10", "flannel.1", "out"] == 3


def test_nothing_follows_from_a_row_that_is_missing_where_one_could_not_be_read():
    row = "0e:00:00:00:00:20 dev flannel.1 dst 192.168.2.20 self permanent\n"
    for broken in ("0e:00:00:00:00:zz dev flannel.1 dst 192.168.2.20 self permanent\n", row.replace("2.20 ", "2.999 ")):
        texts = healthy()
        assert row in texts["n10"]
        gone = walked(cluster(**texts | {"n10": texts["n10"].replace(row, "")}), "10.244.10.2", "10.244.20.2")
        found = walked(cluster(**texts | {"n10": texts["n10"].replace(row, broken)}), "10.244.10.2", "10.244.20.2")
        assert (gone.verdict, found.verdict, decisions(found)[-1][2]) == ("dropped", "unknown", "fdb-unknown")


def test_json_that_a_mail_quotes():
    rows = '[{"mac":"0e:00:00:00:00:20","ifname":"flannel.1","dst":"192.168.2.20","flags":["self"],"state":"permanent"}]'
    node = parsed("> $ ip route\n> default via 10.0.0.1 dev eth0\n> $ bridge -j fdb\n> " + rows + "\n> $ ip neigh\n").nodes[0]
    assert [(row.dst, row.source) for row in node.fdb] == [(ip("192.168.2.20"), "a.txt:4")]
