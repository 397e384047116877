"""Nexthop objects, encapsulations and bridge VLANs: read, and walked."""

from __future__ import annotations

from tests.unit.tables import healthy, only
from tests.unit.walking import changed, decisions, walked

ROUTE20 = "10.244.20.0/24 via 10.244.20.0 dev flannel.1 onlink\n"
FDB20 = "0e:00:00:00:00:20 dev flannel.1 dst 192.168.2.20 self permanent\n"


def with_command(name: str, text: str, *changes: tuple[str, str]):
    """The healthy cluster with more output at the end of a node's, and texts replaced."""
    last = healthy()[name].splitlines()[-1] + "\n"
    return changed({name: [*changes, (last, last + text)]})


def test_objects_are_read():
    node = only("$ ip nexthop\nid 20 via 172.31.9.9 dev ens5 scope link proto bgp\nid 21 dev ens5 scope link\nid 100 group 20,3/21\nid 9 blackhole\n")
    assert [(row.id, row.hop is not None, row.group, row.blackhole) for row in node.nexthops] == [
        (20, True, (), False),
        (21, True, (), False),
        (100, False, ((20, 3), (21, 1)), False),
        (9, False, (), True),
    ]


def test_a_route_by_an_object_goes_where_the_object_says():
    by_object = (ROUTE20, "10.244.20.0/24 nhid 5\n")
    found = walked(with_command("n10", "$ ip nexthop\nid 5 via 10.244.20.0 dev flannel.1\n", by_object), "10.244.10.2", "10.244.20.2")
    assert found.verdict == "delivered"
    nobody = walked(with_command("n10", "", by_object), "10.244.10.2", "10.244.20.2")
    assert (nobody.verdict, nobody.steps[-1].decision.id) == ("unknown", "ends-nexthop-object")
    black = walked(with_command("n10", "$ ip nexthop\nid 5 blackhole\n", by_object), "10.244.10.2", "10.244.20.2")
    assert (black.verdict, black.steps[-1].decision.id) == ("dropped", "route-blackhole")


def test_a_group_parts_the_way():
    group = "$ ip nexthop\nid 5 via 10.244.20.0 dev flannel.1\nid 6 via 10.244.30.0 dev flannel.1\nid 7 group 5,2/6\n"
    found = walked(with_command("n10", group, (ROUTE20, "10.244.20.0/24 nhid 7\n")), "10.244.10.2", "10.244.20.2")
    assert found.outcomes == {"1": "delivered", "2": "detour"}
    weights = [said.params["weight"] for step in found.steps for said in step.assumptions if said.id == "branch"]
    assert weights == ["2", "1"]


def test_an_fdb_row_by_an_object():
    found = walked(
        with_command("n10", "$ ip nexthop\nid 12 via 192.168.2.20 fdb\n", (FDB20, "0e:00:00:00:00:20 dev flannel.1 nhid 12 self permanent\n")),
        "10.244.10.2",
        "10.244.20.2",
    )
    assert found.verdict == "delivered"


def test_an_encapsulation_of_a_route_is_not_followed():
    encap = ROUTE20.replace("via", " encap mpls  100 via")
    found = walked(changed({"n10": [(ROUTE20, encap)]}), "10.244.10.2", "10.244.20.2")
    assert (found.verdict, decisions(found)[-1]) == ("unknown", ("n10", "flannel.1", "ends-encap"))


FILTERING = ("stp_state 0 priority 32768 vlan_filtering 0", "stp_state 0 priority 32768 vlan_filtering 1")


def test_ports_of_one_vlan_reach_each_other_and_those_of_another_do_not():
    same = "$ bridge vlan\nport\tvlan ids\ncni0\t 1 PVID Egress Untagged\n\nveth1\t 1 PVID Egress Untagged\n\t 100\n"
    assert walked(with_command("n20", same, FILTERING), "10.244.10.2", "10.244.20.2").verdict == "delivered"
    other = walked(with_command("n20", same.replace("veth1\t 1", "veth1\t 7"), FILTERING), "10.244.10.2", "10.244.20.2")
    assert (other.verdict, decisions(other)[-1]) == ("dropped", ("n20", "veth1", "bridge-vlan"))
    assert other.first_divergence is not None and other.first_divergence.fix[0].command == "bridge vlan add dev veth1 vid 1 pvid untagged"
    host = walked(with_command("n10", same.replace("cni0\t 1", "cni0\t 7"), FILTERING), "10.244.10.2", "10.244.20.2")
    assert (host.verdict, decisions(host)[-1]) == ("dropped", ("n10", "cni0", "bridge-vlan"))
    off = walked(with_command("n20", same.replace("veth1\t 1", "veth1\t 7")), "10.244.10.2", "10.244.20.2")
    assert off.verdict == "delivered"  # a bridge that does not filter looks at no VLAN


def test_vlans_are_read_plain_and_as_json():
    plain = only("$ bridge vlan show\nport   vlan-id\ncni0   1 PVID Egress Untagged\nveth1   1 PVID Egress Untagged\n   100-110\n")
    rows = [(row.device, row.first, row.last, row.pvid, row.untagged) for row in plain.vlans]
    assert rows == [("cni0", 1, 1, True, True), ("veth1", 1, 1, True, True), ("veth1", 100, 110, False, False)]
    json = only(
        '$ bridge -j vlan\n[{"ifname":"cni0","vlans":[{"vlan":1,"flags":["PVID","Egress Untagged"]}]},'
        '{"ifname":"veth1","vlans":[{"vlan":1,"flags":["PVID","Egress Untagged"]},{"vlan":100,"vlanEnd":110}]}]\n'
    )
    assert [(row.device, row.first, row.last, row.pvid, row.untagged) for row in json.vlans] == rows
