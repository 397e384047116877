"""From walks to figures: which devices are drawn, where it ends, which rows are numbered."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec
from tests.unit.walks import DELIVERED, DROPPED, PASTED, SEED, SENT, SNAPSHOT, at, device

from tweed.addr import parse_address as ip
from tweed.trace.figure import figure, picture
from tweed.trace.frames import Hop, Probe
from tweed.trace.pcap import stages_of
from tweed.trace.result import Said, Step, Walk
from tweed.trace.snapshot import Node, Snapshot
from tweed.trace.svg import NodeBox, Picture

PROBE = Probe(DELIVERED.src, DELIVERED.dst, sport=1, sequence=2)


def drawn(walk: Walk, snapshot: Snapshot = SNAPSHOT, language: str = "en") -> Picture:
    made = picture(walk, snapshot, stages_of(walk, Probe(walk.src, walk.dst)), language)
    ElementTree.fromstring(figure(walk, snapshot, stages_of(walk, Probe(walk.src, walk.dst)), language).encode())
    return made


def names(box: NodeBox) -> dict[str, str]:
    return {device.role: device.name for device in (*box.devices, *box.containers)}


ALL = {"nic": "ens33", "vtep": "flannel.1", "bridge": "cni0"}


def test_a_delivered_packet_passes_everything():
    made = drawn(DELIVERED)
    assert [box.name for box in made.nodes] == ["master", "node2", "node1"]
    assert [names(box) for box in made.nodes] == [ALL | {"container": "pod1"}, ALL | {"container": "pod1"}, ALL]
    assert made.nodes[0].device("nic").lines == ("192.168.2.200/24", "52:54:c0:a8:02:c8")
    assert made.nodes[1].device("nic").lines[0] == "192.168.2.202/24"  # and not the VTEP that takes what arrives there
    assert made.nodes[1].containers[0].lines == ("10.244.2.2", "0a:58:0a:f4:02:02")
    assert [(mark.number, mark.node, mark.role) for mark in made.marks] == [
        (1, "master", "bridge"),
        (2, "master", "vtep"),
        (3, "master", "vtep"),
        (4, "master", "nic"),
    ]
    assert (made.stop, made.delivered, made.frame.added, made.subtitle) == (None, True, 50, "delivered, predicted from live tables")


def test_addresses_are_those_of_the_walks_family():
    both = [msgspec.structs.replace(node, addresses=(*node.addresses, at("cni0", f"fd00:10:244:{number}::1/64"))) for number, node in enumerate(SNAPSHOT.nodes)]
    snapshot = msgspec.structs.replace(SNAPSHOT, nodes=tuple(both))
    made = drawn(msgspec.structs.replace(DELIVERED, src=ip("fd00:10:244::2"), dst=ip("fd00:10:244:2::2"), steps=SENT[:3]), snapshot)
    assert [box.device("bridge").lines[0] for box in made.nodes] == ["fd00:10:244::1/64", "fd00:10:244:2::1/64", "fd00:10:244:3::1/64"]
    assert drawn(DELIVERED, snapshot).nodes[0].device("bridge").lines[0] == "10.244.0.1/24"


def test_where_it_is_dropped():
    made = drawn(DROPPED)
    assert made.stop == ("node2", "vtep") and not made.delivered and not made.unknown
    assert names(made.nodes[1]) == ALL | {"container": "pod1"}
    assert (made.marks[-1].number, made.marks[-1].node, made.marks[-1].good) == (5, "node2", False)
    assert made.subtitle.startswith("dropped: node2 flannel.1: the frame is for VTEP MAC")


def test_pasted_tables_end_at_a_host_of_which_nothing_is_known():
    made = drawn(SEED, PASTED, "zh")
    assert [names(box) for box in made.nodes] == [ALL | {"container": "pod1"}, {"nic": "未知", "container": "10.244.2.2"}]
    assert made.stop == ("192.168.2.202", "nic") and made.unknown and made.subtitle.startswith("无法推演到底: 主机 192.168.2.202 如何处理：没有它的表")


def test_two_containers_of_one_node():
    steps = (
        SENT[0],
        msgspec.structs.replace(SENT[1], decision=Said("bridge-port", {"mac": "x", "bridge": "cni0", "port": "veth2"})),
        Step("master/pod2", "eth0", Said("delivered-container", {"address": "10.244.0.3"}), hop=Hop("master/pod2", "eth0", "in", ttl=64)),
    )
    walk = Walk(ip("10.244.0.2"), ip("10.244.0.3"), "delivered", "tables", steps, outcomes={"": "delivered"})
    pod2 = Node(name="master/pod2", devices=(device("eth0", "veth", bytes(5) + b"\1"),), addresses=(at("eth0", "10.244.0.3/24"),))
    made = drawn(walk, msgspec.structs.replace(SNAPSHOT, nodes=(*SNAPSHOT.nodes, pod2)))
    assert made.same_node and [container.name for container in made.nodes[0].containers] == ["pod1", "pod2"]
    assert made.frame.added == 0


def test_a_packet_that_never_leaves_its_bridge():
    cause = Step("master", "cni0", Said("route-missing", {"dst": "10.244.2.2"}))
    walk = msgspec.structs.replace(DELIVERED, verdict="dropped", steps=(*SENT[:2], cause), outcomes={"": "dropped"})
    made = drawn(walk)
    assert made.stop == ("master", "bridge") and made.marks[-1].text == "no route leads to 10.244.2.2"


def test_nothing_known_at_all():
    walk = Walk(ip("10.0.0.1"), ip("10.0.0.2"), "unknown", "text", (Step("", "", Said("ends-source-elsewhere", {"address": "10.0.0.1"})),))
    assert drawn(walk, Snapshot()).nodes == ()


def test_a_container_that_no_table_has_is_drawn_behind_a_question_mark():
    ends = Step("master", "cni0", Said("ends-container-unknown", {"address": "10.244.0.3", "device": "cni0"}))
    walk = Walk(ip("10.244.0.2"), ip("10.244.0.3"), "unknown", "text", (*SENT[:2], ends), outcomes={"": "unknown"})
    made = drawn(walk, PASTED)
    assert [names(box) for box in made.nodes] == [{"bridge": "cni0", "container": "10.244.0.3"}]
    assert [container.name for container in made.nodes[0].containers] == ["pod1", "10.244.0.3"]
    assert made.same_node and made.stop == ("master", "bridge") and made.unknown
