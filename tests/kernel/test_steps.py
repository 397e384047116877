"""The four look-ups, on a node made by hand: what they find, that `ip` and `bridge` say the same, and how each fault shows."""

from __future__ import annotations

import pytest
from tests.kernel.conftest import Namespace

from tweed.addr import parse_address
from tweed.lab.picture import step_lines, text
from tweed.lab.steps import Step, four_steps

NODE = """
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0
ip link add ens33 address 52:54:c0:a8:02:c8 type veth peer name wire
ip link add pod type veth peer name container
ip link add cni0 type bridge
ip link set pod master cni0
for device in wire ens33 pod container cni0; do ip link set $device up; done
ip addr add 192.168.2.200/24 dev ens33
ip addr add 10.244.0.1/24 dev cni0
ip addr add fd00:2::200/64 dev ens33 nodad
ip addr add fd00:10:244::1/64 dev cni0 nodad
ip link add flannel.1 type vxlan id 1 dev ens33 local 192.168.2.200 dstport 8472 nolearning
ip link add flannel-v6.1 type vxlan id 1 dev ens33 local fd00:2::200 dstport 8472 nolearning
ip addr add 10.244.0.0/32 dev flannel.1
ip addr add fd00:10:244::/128 dev flannel-v6.1 nodad
ip link set flannel.1 up
ip link set flannel-v6.1 up
ip route add default via 192.168.2.1 dev ens33
ip neigh add 192.168.2.202 lladdr 52:54:c0:a8:02:ca dev ens33 nud permanent
ip neigh add fd00:2::202 lladdr 52:54:c0:a8:02:ca dev ens33 nud permanent
bridge fdb add 86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 self permanent
ip neigh add 10.244.2.0 lladdr 86:22:66:41:77:3d dev flannel.1 nud permanent
ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 83
bridge fdb add 86:22:66:41:77:3e dev flannel-v6.1 dst fd00:2::202 self permanent
ip neigh add fd00:10:244:2:: lladdr 86:22:66:41:77:3e dev flannel-v6.1 nud permanent
ip route add fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 onlink proto 83
"""
POD = {4: (parse_address("10.244.0.2"), parse_address("10.244.2.2")), 6: (parse_address("fd00:10:244::2"), parse_address("fd00:10:244:2::2"))}


@pytest.fixture
def node(netns: Namespace) -> Namespace:
    netns.run(NODE)
    return netns


def ask(node: Namespace, family: int = 4) -> tuple[Step, ...]:
    src, dst = POD[family]
    return four_steps(node.nl, dst, src=src, iif="cni0")


def shown(steps: tuple[Step, ...]) -> list[tuple[int, str, str]]:
    return [(step.number, str(step.row or ""), step.answer) for step in steps]


def printed(steps: tuple[Step, ...]) -> list[str]:
    """The steps as the demo prints them."""
    return [text(step_lines(step, "master")) for step in steps]


HEALTHY = {
    4: [
        (1, "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 83 onlink", "gateway 10.244.2.0 on flannel.1"),
        (2, "10.244.2.0 dev flannel.1 lladdr 86:22:66:41:77:3d PERMANENT", "VTEP 86:22:66:41:77:3d: the inner Ethernet destination"),
        (3, "86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 self permanent", "host 192.168.2.202: the outer IP destination"),
        (4, "192.168.2.0/24 dev ens33 proto kernel scope link src 192.168.2.200", "by ens33, straight to 192.168.2.202"),
        (4, "192.168.2.202 dev ens33 lladdr 52:54:c0:a8:02:ca PERMANENT", "MAC 52:54:c0:a8:02:ca: the outer Ethernet destination"),
    ],
    6: [
        (1, "fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 proto 83 metric 1024 onlink", "gateway fd00:10:244:2:: on flannel-v6.1"),
        (2, "fd00:10:244:2:: dev flannel-v6.1 lladdr 86:22:66:41:77:3e PERMANENT", "VTEP 86:22:66:41:77:3e: the inner Ethernet destination"),
        (3, "86:22:66:41:77:3e dev flannel-v6.1 dst fd00:2::202 self permanent", "host fd00:2::202: the outer IP destination"),
        (4, "fd00:2::/64 dev ens33 proto kernel metric 256", "by ens33, straight to fd00:2::202"),
        (4, "fd00:2::202 dev ens33 lladdr 52:54:c0:a8:02:ca PERMANENT", "MAC 52:54:c0:a8:02:ca: the outer Ethernet destination"),
    ],
}


@pytest.mark.parametrize("family", [4, 6])
def test_the_rows_that_decide(node: Namespace, family: int):
    assert shown(ask(node, family)) == HEALTHY[family]


@pytest.mark.parametrize("family", [4, 6])
def test_the_commands_show_the_same_rows(node: Namespace, family: int):
    for step in ask(node, family):
        (line,) = node.lines(step.command)
        assert line.startswith(str(step.row))


NOWHERE = [(number, "", "not asked: the packet goes nowhere") for number in (2, 3, 4, 4)]
NO_MAC = [(number, "", "not asked: there is no VTEP MAC to look for") for number in (3, 4, 4)]
NO_HOST = [(4, "", "not asked: there is no host to reach")] * 2
NO_TUNNEL = [(number, "", "not asked: ens33 is no VXLAN device") for number in (2, 3)]
DEFAULT = "default via 192.168.2.1 dev ens33"
NO_NEIGHBOUR = "no row: the kernel asks through the tunnel, where nobody answers; the packet is dropped"
# Fault, how many steps stay as they are, and what the others then say.
FAULTS = {
    "ip route del 10.244.2.0/24": (
        0,
        [
            (1, DEFAULT, "by ens33 to 192.168.2.1: not through the overlay"),
            *NO_TUNNEL,
            (4, DEFAULT, "by ens33 to 192.168.2.1"),
            (4, "", "not known yet: the first packet asks for it"),
        ],
    ),
    "ip route del default; ip route del 10.244.2.0/24": (0, [(1, "", "no route: Network is unreachable; the packet is dropped"), *NOWHERE]),
    "ip route add blackhole 10.244.2.2": (0, [(1, "", "no route: Invalid argument; the packet is dropped"), *NOWHERE]),
    "sysctl -qw net.ipv4.ip_forward=0": (0, [(1, "", "no route: No route to host; the packet is dropped"), *NOWHERE]),
    "ip link set flannel.1 down; ip route del default": (0, [(1, "", "no route: Network is unreachable; the packet is dropped"), *NOWHERE]),
    "ip neigh del 10.244.2.0 dev flannel.1": (1, [(2, "", NO_NEIGHBOUR), *NO_MAC]),
    "ip neigh replace 10.244.2.0 lladdr 86:22:66:41:77:99 dev flannel.1 nud permanent": (
        1,
        [
            (2, "10.244.2.0 dev flannel.1 lladdr 86:22:66:41:77:99 PERMANENT", "VTEP 86:22:66:41:77:99: the inner Ethernet destination"),
            (3, "", "no row: flannel.1 does not know where to send the frame and drops it"),
            *NO_HOST,
        ],
    ),
    "ip neigh replace 10.244.2.0 lladdr 86:22:66:41:77:3d dev flannel.1 nud failed": (
        1,
        [(2, "10.244.2.0 dev flannel.1 FAILED", "FAILED: no MAC, the packet is dropped"), *NO_MAC],
    ),
    "bridge fdb del 86:22:66:41:77:3d dev flannel.1 self": (
        2,
        [(3, "", "no row: flannel.1 does not know where to send the frame and drops it"), *NO_HOST],
    ),
    "bridge fdb del 86:22:66:41:77:3d dev flannel.1 self; bridge fdb add 00:00:00:00:00:00 dev flannel.1 dst 192.168.2.202 self permanent": (
        2,
        [
            (
                3,
                "00:00:00:00:00:00 dev flannel.1 dst 192.168.2.202 self permanent",
                "host 192.168.2.202: the outer IP destination, by the entry for unknown MACs",
            ),
            *HEALTHY[4][3:],
        ],
    ),
    "bridge fdb replace 86:22:66:41:77:3d dev flannel.1 dst 192.168.2.200 self permanent": (
        2,
        [
            (3, "86:22:66:41:77:3d dev flannel.1 dst 192.168.2.200 self permanent", "host 192.168.2.200: the outer IP destination"),
            (4, "local 192.168.2.200 dev ens33 proto kernel scope host src 192.168.2.200", "it is this node itself"),
            (4, "", "not asked: it is this node itself"),
        ],
    ),
    "ip neigh del 192.168.2.202 dev ens33": (4, [(4, "", "not known yet: the first packet asks for it")]),
    "ip route add 192.168.2.202 via 192.168.2.1": (
        3,
        [
            (4, "192.168.2.202 via 192.168.2.1 dev ens33", "by ens33 to 192.168.2.1"),
            (4, "", "not known yet: the first packet asks for it"),
        ],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_its_step_and_those_behind_it(node: Namespace, fault: str):
    before = ask(node)
    node.run(fault)
    after = ask(node)
    same, changed = FAULTS[fault]
    assert shown(after) == HEALTHY[4][:same] + changed
    assert printed(after)[:same] == printed(before)[:same] and printed(after)[same] != printed(before)[same]
    assert shown(ask(node, 6)) == HEALTHY[6], "the other family is not concerned"


def test_a_packet_of_the_node_itself(node: Namespace):
    steps = four_steps(node.nl, POD[4][1])
    assert shown(steps) == HEALTHY[4]
    assert steps[0].command == "ip route get fibmatch 10.244.2.2"


def test_a_pod_of_this_node(node: Namespace):
    steps = four_steps(node.nl, parse_address("10.244.0.9"), src=POD[4][0], iif="cni0")
    assert shown(steps)[0] == (1, "10.244.0.0/24 dev cni0 proto kernel scope link src 10.244.0.1", "by cni0, straight to 10.244.0.9: not through the overlay")
    assert [step.answer for step in steps[1:3]] == ["not asked: cni0 is no VXLAN device"] * 2
    assert [step.answer for step in four_steps(node.nl, parse_address("10.244.0.1"))] == [
        "it is this node itself: not through the overlay",
        *["not asked: it is this node itself"] * 4,
    ]


def test_a_bridge_that_is_not_there(node: Namespace):
    assert four_steps(node.nl, POD[4][1], src=POD[4][0], iif="cni9")[0].answer == "no route: no device cni9; the packet is dropped"
