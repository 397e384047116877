"""Devices against the real kernel, compared with what `ip` shows."""

from __future__ import annotations

import errno
import json

import pytest

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.errors import KernelError
from tweed.kernel import attach, links
from tweed.model import Vtep, Vxlan
from tweed.plan.attach import Hairpin, SetLink
from tweed.wire import link as wire

MAC = parse_mac("02:aa:bb:cc:dd:01")
MAC2 = parse_mac("02:aa:bb:cc:dd:02")


def vtep4(**fields) -> Vtep:
    given = {"name": "flannel.1", "vni": 1, "port": 8472, "local": parse_address("192.0.2.1"), "underlay": "u0", "mac": MAC, "mtu": 1450}
    return Vtep(**{**given, "address": Prefix.parse("10.244.0.0/32"), **fields})


def vtep6(**fields) -> Vtep:
    return vtep4(name="flannel-v6.1", local=parse_address("2001:db8::1"), mtu=1430, address=Prefix.parse("fd00:1::/128"), **fields)


def underlay(netns) -> None:
    netns.run(
        "ip link add u0 type veth peer name u1; ip addr add 192.0.2.1/24 dev u0; ip -6 addr add 2001:db8::1/64 dev u0 nodad; "
        "ip link set u0 up; ip link set u1 up"
    )


def shown(netns, name: str) -> dict:
    return json.loads(netns.run(f"ip -d -j link show {name}"))[0]


def test_vtep_is_flannels_device(netns):
    underlay(netns)
    links.create_vtep(netns.nl, vtep4())
    golden = "vxlan id 1 local 192.0.2.1 dev u0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx"
    assert golden in netns.run("ip -d link show flannel.1")
    device = shown(netns, "flannel.1")
    assert (device["mtu"], device["address"]) == (1450, "02:aa:bb:cc:dd:01")
    assert "UP" not in device["flags"]
    link = links.link(netns.nl, "flannel.1")
    below = links.link(netns.nl, "u0")
    assert link.vxlan == Vxlan(vni=1, port=8472, local=parse_address("192.0.2.1"), underlay=below.index)
    assert (link.name, link.kind, link.mac, link.mtu, link.up, link.lower, link.master) == ("flannel.1", "vxlan", MAC, 1450, False, below.index, 0)
    assert links.link(netns.nl, link.index) == link


def test_vtep_prints_as_the_command_that_makes_the_same(netns):
    underlay(netns)
    wanted = vtep4(learning=True, gbp=True)
    netns.run(f"ip link add {wanted}")
    typed = links.link(netns.nl, wanted.name)
    links.delete_link(netns.nl, wanted.name)
    links.create_vtep(netns.nl, wanted)
    ours = links.link(netns.nl, wanted.name)
    assert ours.vxlan == typed.vxlan
    assert (ours.mac, ours.mtu, ours.kind) == (typed.mac, typed.mtu, typed.kind)
    assert ours.vxlan.gbp and ours.vxlan.learning


def test_ipv6_vtep_has_checksums_and_no_address_of_its_own(netns):
    underlay(netns)
    links.create_vtep(netns.nl, vtep4())
    links.create_vtep(netns.nl, vtep6())  # same VNI and port, the other family
    assert "vxlan id 1 local 2001:db8::1 dev u0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx" in (
        netns.run("ip -d link show flannel-v6.1")
    )
    assert shown(netns, "flannel-v6.1")["inet6_addr_gen_mode"] == "none"
    links.set_link(netns.nl, "flannel-v6.1", up=True)
    assert netns.run("ip -6 addr show dev flannel-v6.1") == ""
    assert links.link(netns.nl, "flannel-v6.1").vxlan.local == parse_address("2001:db8::1")


def test_vtep_refused_in_the_kernels_words(netns):
    underlay(netns)
    links.create_vtep(netns.nl, vtep4())
    with pytest.raises(KernelError, match=r"^ip link add flannel.1 address .*: ") as refused:
        links.create_vtep(netns.nl, vtep4())
    assert refused.value.errno == errno.EEXIST
    with pytest.raises(KernelError, match="A VXLAN device with the specified VNI already exists"):
        links.create_vtep(netns.nl, vtep4(name="other"))
    with pytest.raises(KernelError, match="no device nosuch") as refused:
        links.create_vtep(netns.nl, vtep4(name="other", underlay="nosuch"))
    assert refused.value.errno == errno.ENODEV


def test_change_vtep_in_place_keeps_rows(netns):
    underlay(netns)
    netns.run("ip addr add 192.0.2.2/24 dev u0; ip link add u2 type veth peer name u3")
    links.create_vtep(netns.nl, vtep4())
    links.set_link(netns.nl, "flannel.1", up=True)
    netns.run(
        "ip addr add 10.244.0.0/32 dev flannel.1; bridge fdb add 00:11:22:33:44:55 dev flannel.1 dst 192.0.2.9; "
        "ip neigh add 10.244.1.0 lladdr 00:11:22:33:44:55 dev flannel.1; ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink"
    )
    tables = "ip route show dev flannel.1; ip neigh show dev flannel.1; bridge fdb show dev flannel.1"
    before = netns.run(tables)
    links.change_vtep(netns.nl, "flannel.1", local=parse_address("192.0.2.2"), learning=True)
    vxlan = links.link(netns.nl, "flannel.1").vxlan
    assert (vxlan.local, vxlan.learning, vxlan.port, vxlan.vni) == (parse_address("192.0.2.2"), True, 8472, 1)
    links.change_vtep(netns.nl, "flannel.1", underlay="u2")
    link = links.link(netns.nl, "flannel.1")
    assert link.vxlan.underlay == link.lower == links.link(netns.nl, "u2").index
    assert netns.run(tables) == before
    assert before.count("\n") == 3


def test_links_by_kind(netns):
    underlay(netns)
    links.create_vtep(netns.nl, vtep4())
    links.create_bridge(netns.nl, "cni0", mac=MAC2, mtu=1450)
    everything = links.links(netns.nl)
    assert {link.name for link in everything} == {"lo", "u0", "u1", "flannel.1", "cni0"}
    assert [link.index for link in everything] == sorted(link.index for link in everything)
    assert [link.name for link in links.links(netns.nl, "vxlan")] == ["flannel.1"]
    assert {link.name for link in links.links(netns.nl, "veth")} == {"u0", "u1"}
    assert links.links(netns.nl, "nosuchkind") == []
    lo = links.link(netns.nl, "lo")
    assert (lo.kind, lo.mac, lo.mtu, lo.up, lo.index) == ("", bytes(6), 65536, True, 1)


def test_veth_between_namespaces(netns, netns2):
    links.create_veth(netns.nl, "veth0", "eth0", mtu=1450, mac=MAC, peer_mac=MAC2, peer_netns=netns2.fd)
    here, there = links.link(netns.nl, "veth0"), links.link(netns2.nl, "eth0")
    assert (here.kind, here.mac, here.mtu, here.up) == ("veth", MAC, 1450, False)
    assert (there.kind, there.mac, there.mtu) == ("veth", MAC2, 1450)
    assert (here.lower, there.lower) == (there.index, here.index)
    assert here.lower_netns is not None and there.lower_netns is not None
    links.delete_link(netns.nl, "veth0")
    assert links.link(netns2.nl, "eth0") is None


def test_veth_with_both_ends_elsewhere(netns, netns2):
    links.create_veth(netns.nl, "a", "b", mtu=1400, netns=netns2.fd, peer_netns=netns2.fd)
    assert links.link(netns.nl, "a") is None
    assert {link.name for link in links.links(netns2.nl, "veth")} == {"a", "b"}
    assert {link.lower_netns for link in links.links(netns2.nl, "veth")} == {None}


def test_bridge_and_port(netns):
    links.create_bridge(netns.nl, "cni0", mac=MAC, mtu=1450)
    links.create_veth(netns.nl, "v0", "v1", mtu=1450)
    links.set_link(netns.nl, "cni0", up=True)
    attach.apply(netns.nl, [SetLink("v0", master="cni0", up=True), Hairpin("v0")], {})
    bridge, port = links.link(netns.nl, "cni0"), links.link(netns.nl, "v0")
    assert (bridge.kind, bridge.mac, bridge.mtu, bridge.up) == ("bridge", MAC, 1450, True)
    assert (port.master, port.hairpin, port.up) == (bridge.index, True, True)
    assert shown(netns, "v0")["linkinfo"]["info_slave_data"]["hairpin"] is True
    netns.nl.request(wire.set_hairpin("v0", False))
    assert links.link(netns.nl, "v0").hairpin is False
    links.set_link(netns.nl, "v0", master="")
    assert (links.link(netns.nl, "v0").master, links.link(netns.nl, "v0").hairpin) == (0, None)


def test_set_link_changes_what_is_given_and_nothing_else(netns, netns2):
    links.create_veth(netns.nl, "v0", "v1", mtu=1450, mac=MAC)
    links.set_link(netns.nl, "v0", mtu=1400)
    links.set_link(netns.nl, "v0", mac=MAC2)
    attach.apply(netns.nl, [SetLink("v0", alias="of pod 1", promisc=True, no_link_local=True)], {})
    link = links.link(netns.nl, "v0")
    assert (link.mtu, link.mac, link.alias, link.up) == (1400, MAC2, "of pod 1", False)
    assert "PROMISC" in shown(netns, "v0")["flags"]
    assert shown(netns, "v0")["inet6_addr_gen_mode"] == "none"
    links.set_link(netns.nl, "v0", up=True)
    attach.apply(netns.nl, [SetLink("v0", promisc=False)], {})
    assert "UP" in shown(netns, "v0")["flags"] and "PROMISC" not in shown(netns, "v0")["flags"]
    attach.apply(netns.nl, [SetLink("v0", up=False, alias="")], {})
    assert (links.link(netns.nl, "v0").alias, links.link(netns.nl, "v0").up) == ("", False)
    links.set_link(netns.nl, "v0", new_name="eth0", netns=netns2.fd)
    assert links.link(netns.nl, "v0") is None
    assert links.link(netns2.nl, "eth0").mtu == 1400


def test_missing_devices(netns):
    assert links.link(netns.nl, "nosuch") is None
    assert links.link(netns.nl, 4711) is None
    links.delete_link(netns.nl, "nosuch")
    with pytest.raises(KernelError, match=r"^ip link set nosuch up: No such device$"):
        links.set_link(netns.nl, "nosuch", up=True)
    with pytest.raises(KernelError, match=r"^ip link set lo master nosuch: no device nosuch$"):
        links.set_link(netns.nl, "lo", master="nosuch")


def test_names_longer_than_the_kernel_takes(netns):
    with pytest.raises(KernelError, match=r"^ip link add a-name-of-sixteen"):
        links.create_bridge(netns.nl, "a-name-of-sixteen", mac=MAC, mtu=1450)
    assert links.link(netns.nl, "a-name-of-sixteen") is None
