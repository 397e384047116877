"""The figure: valid XML whatever the names, the packet's values in it, arrows where the packet goes and nowhere else."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import strategies as st
from tests.unit.spelling import Choices, cases, spelled
from tests.unit.test_frames import KNOWN, TUNNEL, WAY, one

from tweed.addr import parse_address as ip
from tweed.trace.frames import Probe, Tunnel, frames
from tweed.trace.messages import FIGURE_ZH
from tweed.trace.svg import GREY, INNER, OUTER, Device, Mark, NodeBox, Picture, draw

SVG = "{http://www.w3.org/2000/svg}"
WIRE = frames(KNOWN, WAY)[3].frames[0]


def node(name: str, number: int, containers: tuple[str, ...] = ("pod1",), used: bool = True) -> NodeBox:
    devices = (
        Device("nic", "ens33", (f"192.168.2.20{number}/24",), used),
        Device("vtep", "flannel.1", (f"10.244.{number}.0/32",), used),
        Device("bridge", "cni0", (f"10.244.{number}.1/24",)),
    )
    return NodeBox(name, devices, tuple(Device("container", pod, (f"10.244.{number}.{place + 2}",)) for place, pod in enumerate(containers)))


TWO = Picture("10.244.0.2 → 10.244.2.2", "delivered", (node("master", 0), node("node2", 2)), WIRE, marks=(Mark(1, "master", "bridge", "10.244.2.0/24 ..."),))


def texts(picture: Picture) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(draw(picture).encode()).iter(f"{SVG}text")]


def arrows(picture: Picture) -> list[str]:
    """The colours of all arrows with a head, in order."""
    paths = ElementTree.fromstring(draw(picture).encode()).iter(f"{SVG}path")
    return [path.get("stroke", "") for path in paths if path.get("marker-end")]


def test_the_values_of_the_packet_are_in_the_figure():
    said = texts(TWO)
    for expected in (
        "master", "node2", "ens33", "flannel.1", "cni0", "pod1", "VTEP", "10.244.0.2", "192.168.2.202/24",
        "outer Ethernet", "52:54:c0:a8:02:c8 → 52:54:c0:a8:02:ca", "192.168.2.200 → 192.168.2.202 · TTL 64", "53768 → 8472", "VNI 1",
        "inner Ethernet", "ca:59:7d:c2:5e:0f → 86:22:66:41:77:3d", "10.244.0.2 → 10.244.2.2 · TTL 63", "echo request id 4660 seq 1",
        "on the wire: 148 bytes", "+50", "98", "10.244.2.0/24 ...",
    ):  # fmt: skip
        assert expected in said, expected


def test_blue_up_to_the_vtep_green_between_the_hosts():
    assert arrows(TWO) == [INNER, INNER, OUTER, OUTER, OUTER, INNER, INNER]


def test_without_a_tunnel_all_is_the_containers_own_frame():
    bare = tuple(msgspec.structs.replace(box, devices=tuple(d for d in box.devices if d.role != "vtep")) for box in TWO.nodes)
    picture = msgspec.structs.replace(TWO, nodes=bare, frame=one(KNOWN))
    assert arrows(picture) == [INNER] * 5 and "container's frame: 98 bytes" in texts(picture)


@pytest.mark.parametrize(("stop", "solid"), [(("master", "container"), 0), (("master", "vtep"), 2), (("node2", "vtep"), 5), (("node2", "container"), 7)])
def test_behind_the_place_where_it_stops_arrows_are_grey(stop: tuple, solid: int):
    picture = msgspec.structs.replace(TWO, stop=stop, delivered=False)
    found = arrows(picture)
    assert len(found) == 7 and GREY not in found[:solid] and set(found[solid:]) <= {GREY}
    assert draw(picture).count("l18 18") == 1  # the cross


def test_both_containers_on_one_node():
    picture = Picture("a → b", "delivered", (node("master", 0, ("pod1", "pod2"), used=False),), one(KNOWN), same_node=True)
    assert arrows(picture) == [INNER, INNER] and "+50" not in texts(picture)


def test_bystanders_have_no_arrows_and_many_are_counted():
    picture = msgspec.structs.replace(TWO, nodes=(*TWO.nodes, *(node(f"n{number}", 3) for number in range(7))))
    said = texts(picture)
    assert arrows(picture) == arrows(TWO)
    assert {"n0", "n1", "and 5 more nodes"} <= set(said) and "n2" not in said


def test_what_is_unknown_is_hatched_and_said():
    frame = one(Probe(KNOWN.src, KNOWN.dst, sport=1, sequence=1), msgspec.structs.replace(WAY[3], tunnel=Tunnel(TUNNEL.dst, TUNNEL.src, vni=1)))
    picture = msgspec.structs.replace(TWO, frame=frame)
    assert "unknown → unknown" in texts(picture) and "unknown → 192.168.2.202" not in texts(picture)
    assert draw(picture).count("url(#unknown)") == 2  # outer Ethernet and UDP
    assert "url(#unknown)" not in draw(TWO)


def test_ipv6_is_wider_and_seventy_bytes_more():
    tunnel = msgspec.structs.replace(TUNNEL, dst=ip("fd00:192:168:2::202"), src=ip("fd00:192:168:2::200"))
    picture = msgspec.structs.replace(TWO, frame=one(Probe(ip("fd00::2"), ip("fd00:2::2")), msgspec.structs.replace(WAY[3], tunnel=tunnel)))
    assert {"+70", "fd00:192:168:2::200 → fd00:192:168:2::202 · TTL 64"} <= set(texts(picture))
    inside(picture)


def test_chinese():
    assert {"容器", "网桥", "网卡", "外层 Ethernet", "线路上：148 字节"} <= set(texts(msgspec.structs.replace(TWO, words=FIGURE_ZH)))


def inside(picture: Picture) -> None:
    """No box leaves the page."""
    root = ElementTree.fromstring(draw(picture).encode())
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for rect in list(root.iter(f"{SVG}rect"))[1:]:
        x, y, w, h = (float(rect.get(name, 0)) for name in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height


@spelled(200)
def names(choose: Choices) -> tuple[str, str, list[str]]:
    return choose.text(20), choose.text(20), choose.several(3, lambda: choose.text(20))


@cases(30, names, st.sampled_from([None, WIRE]))
def test_any_names_are_valid_xml(those: tuple[str, str, list[str]], frame):
    title, device, lines = those
    boxes = tuple(NodeBox(f"{place} {title}", (Device("nic", device, tuple(lines)),), (Device("container", title, tuple(lines)),)) for place in range(2))
    picture = Picture(title, device, boxes, frame, marks=(Mark(1, boxes[0].name, "nic", title, good=False),))
    inside(picture)
    assert not re.search(r"<script|href|javascript:", draw(picture))


def test_a_row_without_end_does_not_make_a_page_without_end():
    picture = msgspec.structs.replace(TWO, marks=(Mark(1, "master", "nic", "nexthop via 10.0.0.1 " * 200),))
    inside(picture)
    assert float(ElementTree.fromstring(draw(picture).encode()).get("width", 0)) < 1400 and any(text.endswith("…") for text in texts(picture))


def test_from_a_host_there_is_no_container():
    host = NodeBox("master", node("master", 0).devices[:2])
    assert arrows(msgspec.structs.replace(TWO, nodes=(host, TWO.nodes[1]))) == [OUTER, OUTER, OUTER, INNER, INNER]
