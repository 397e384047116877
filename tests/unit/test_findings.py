"""What is odd about tables: the seed's, none of a healthy cluster's, and one at a time."""

from __future__ import annotations

import pytest
from tests.unit.tables import SEED, cluster, healthy, parsed

from tweed.addr import Prefix
from tweed.addr import parse_address as ip
from tweed.model import Endpoint, Lease
from tweed.trace import snapshot as s
from tweed.trace.cluster import Cluster
from tweed.trace.findings import MOST_OF_A_KIND, find
from tweed.trace.messages import sayer
from tweed.trace.result import Finding
from tweed.trace.vocabulary import FINDINGS


def found(snapshot: s.Snapshot) -> tuple[Finding, ...]:
    findings = find(Cluster(snapshot))
    for finding in findings:
        assert set(finding.said.params) == set(FINDINGS[finding.said.id])
        assert sayer("en")("finding", finding.said) and sayer("zh")("finding", finding.said)
    return findings


def test_all_oddities_of_the_seed():
    findings = found(parsed(SEED, name="seed.md"))
    assert [(each.said.id, *each.said.params.values(), *(row.source for row in each.rows)) for each in findings] == [
        ("fdb-stale", "ca:59:7d:c2:5e:0f", "flannel.1", "192.168.2.202", "seed.md:53"),
        ("fdb-stale", "f2:21:6b:d8:af:b0", "flannel.1", "192.168.2.201", "seed.md:56"),
        (
            "fdb-show-without-dev",
            "bridge fdb show flannel.1",
            "flannel.1",
            "cni0, docker0, ens33, ens34, flannel.1, veth375d278, veth8ea02941, vethfcef72c2",
            "seed.md:42",
        ),
        ("table-repeated", "ip route", "seed.md:29", "seed.md:80", "seed.md:29"),
        ("bridge-outside-overlay", "docker0", "172.17.0.0/16", "veth375d278", "seed.md:34", "seed.md:62"),
        ("vtep-mac-unknown", "flannel.1", "ip -d link show dev flannel.1"),
        ("vni-unknown", "flannel.1", "ip -d link show dev flannel.1"),
        ("port-unknown", "flannel.1", "ip -d link show dev flannel.1"),
        ("mtu-unknown", "flannel.1, ens33, cni0", "ip link"),
        ("underlay-neighbours-unknown", "ens33", "ip neigh show dev ens33"),
        ("prose-names-other-bridge", "docker0", "cni0", "seed.md:11", "seed.md:34"),
    ]


def test_neighbours_that_name_no_device_are_those_of_one():
    """`ip neigh show dev flannel.1` leaves the name out, so these rows say nothing of the underlay."""
    text = "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink\n192.168.2.0/24 dev ens33 scope link\n10.244.2.0 lladdr 86:22:66:41:77:3d PERMANENT\n"
    text += "86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 self permanent\n"
    ids = {finding.said.id for finding in found(parsed(text))}
    assert "underlay-neighbours-unknown" in ids


def test_a_healthy_cluster_has_nothing_odd():
    assert found(cluster(**healthy())) == ()


NEIGHBOUR = "10.244.20.0 dev flannel.1 lladdr 0e:00:00:00:00:20 PERMANENT\n"
FDB = "0e:00:00:00:00:20 dev flannel.1 dst 192.168.2.20 self permanent\n"
ROUTE = "10.244.20.0/24 via 10.244.20.0 dev flannel.1 onlink\n"
SECOND = """\
8: vx9: <BROADCAST,UP> mtu 1450 qdisc noqueue
    link/ether 0e:00:00:00:00:99 brd ff:ff:ff:ff:ff:ff promiscuity 0
    vxlan id 9 dev ens33 dstport 8472
"""


@pytest.mark.parametrize(
    ("old", "new", "ids"),
    [
        (NEIGHBOUR, "", {"gateway-without-neighbour", "fdb-stale"}),
        (FDB, "", {"neighbour-without-fdb"}),
        (FDB, FDB + FDB.replace("2.20", "2.30"), {"fdb-two-hosts"}),
        (ROUTE, "", {"neighbour-unused"}),
        (ROUTE, ROUTE + "10.244.20.0/24 via 192.168.2.1 dev ens33 metric 9\n", set()),
        (ROUTE, ROUTE.replace("onlink", "metric 19 onlink") + "10.244.20.0/24 via 192.168.2.1 dev ens33\n", {"route-shadowed"}),
        ("mtu 1450 qdisc noqueue state UNKNOWN", "mtu 1500 qdisc noqueue state UNKNOWN", {"mtu-too-large"}),
        ("3: flannel.1: <BROADCAST,MULTICAST,UP", "3: flannel.1: <BROADCAST,MULTICAST", {"device-down"}),
        ("ip_forward = 1", "ip_forward = 0", {"forwarding-off"}),
        ("1: lo:", SECOND + "1: lo:", {"vtep-second"}),
        ("vxlan id 1 ", "vxlan id 2 ", {"vni-differs"}),
        ("dstport 8472", "dstport 4789", {"port-differs"}),
        ("link/ether 0e:00:00:00:00:10", "link/ether 0e:00:00:00:00:20", {"vtep-mac-duplicate", "vtep-mac-differs"}),
        ("0e:00:00:00:00:20", "0e:00:00:00:00:77", {"vtep-mac-differs"}),
        ("10.244.10.0/24 dev cni0", "10.244.20.0/24 dev cni0", {"subnet-twice"}),
        ("[root@n10 ~]# ss -ulpn", "[root@n10 ~]# nft list ruleset\ntable ip x {\n}\n[root@n10 ~]# ss -ulpn", {"nft-evidence"}),
    ],
)
def test_one_thing_odd(old: str, new: str, ids: set[str]):
    texts = healthy()
    assert old in texts["n10"]
    texts["n10"] = texts["n10"].replace(old, new)
    findings = found(cluster(**texts))
    told = {finding.said.id for finding in findings}
    assert (told == ids) if "subnet-twice" not in ids else told >= ids
    assert all(finding.rows for finding in findings)


def test_a_lease_without_a_row():
    lease = s.LeaseRow(source="leases:1", text="10.244.77.0-24", lease=Lease(v4=Endpoint(Prefix(ip("10.244.77.0"), 24), ip("192.168.2.77"))))
    snapshot = cluster(**healthy())
    findings = found(s.Snapshot(nodes=snapshot.nodes, leases=(lease,)))
    assert {(finding.node, finding.said.id, finding.said.params["subnet"]) for finding in findings} == {
        (name, "lease-row-missing", "10.244.77.0/24") for name in ("n10", "n20", "n30")
    }


def test_what_repeats_is_cut():
    texts = healthy()
    texts["n10"] = texts["n10"].replace(FDB, FDB + "".join(f"0e:00:00:00:01:{n:02x} dev flannel.1 dst 192.168.2.30 self permanent\n" for n in range(99)))
    assert len(found(cluster(**texts))) == MOST_OF_A_KIND
