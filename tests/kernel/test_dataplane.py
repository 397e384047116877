"""What the agent reports of a pass, against the real kernel."""

from __future__ import annotations

import logging

import msgspec

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.agent.dataplane import Dataplane
from tweed.model import Endpoint, FdbEntry, Lease, Neighbour, Route, Vtep
from tweed.plan.backend import Backend

OWN = Vtep("flannel.1", 1, 8472, parse_address("192.0.2.1"), "u0", parse_mac("02:aa:bb:cc:dd:01"), 1450, Prefix.parse("10.244.1.0/32"))
# Its gateway is this node's own address: the kernel takes the neighbour and the fdb entry, and refuses the route.
REFUSED = Lease(v4=Endpoint(Prefix.parse("10.244.1.0/24"), parse_address("192.0.2.2"), parse_mac("02:aa:bb:cc:dd:02"), 1), backend="vxlan")


def test_what_the_kernel_refuses_is_not_told_as_done(netns, caplog):
    netns.run(f"ip link add u0 type veth peer name u1; ip addr add 192.0.2.1/24 dev u0; ip link set u0 up; ip link add {OWN}; ip link set flannel.1 up")
    dataplane = Dataplane(netns.nl)
    dataplane.backend, dataplane.networks = Backend("vxlan", "u0", (4,), (OWN,)), (Prefix.parse("10.244.0.0/16"),)
    dataplane.look()
    caplog.clear()
    with caplog.at_level(logging.INFO, "tweed"):
        report = dataplane.change({"refused": REFUSED})
    assert [type(failure.change.row) for failure in report.failures] == [Route]
    assert {type(change.row) for change in report.changes} == {Neighbour, FdbEntry}
    assert not any("did ip route" in text for text in caplog.messages) and any("the kernel refused ip route" in text for text in caplog.messages)


def test_the_subnet_that_this_node_had_is_anothers_in_one_pass(netns):
    """Its own old address is the gateway of the route to whoever has the subnet now."""
    netns.run("ip link add u0 type veth peer name u1; ip addr add 192.0.2.1/24 dev u0; ip link set u0 up; ip link set u1 up")
    dataplane = Dataplane(netns.nl)
    dataplane.networks = (Prefix.parse("10.244.0.0/16"),)
    dataplane.backend = Backend("vxlan", "u0", (4,), (OWN,))
    dataplane.look()
    moved = msgspec.structs.replace(OWN, mac=parse_mac("02:aa:bb:cc:dd:09"), address=Prefix.parse("10.244.9.0/32"))
    dataplane.backend, dataplane.peers = Backend("vxlan", "u0", (4,), (moved,)), {"other": REFUSED}
    assert dataplane.look().failures == ()
    assert "10.244.1.0/24 via 10.244.1.0 dev flannel.1" in netns.run("ip route") and dataplane.look().changes == ()
