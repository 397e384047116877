"""Tables as values: a bundle read back is what was written, and one that is not ours is refused in one line."""

from __future__ import annotations

import msgspec
import pytest

from tweed.addr import Prefix
from tweed.addr import parse_address as ip
from tweed.addr import parse_mac as mac
from tweed.errors import UsageError
from tweed.model import Endpoint, Lease
from tweed.trace import snapshot as s
from tweed.trace.snapshot import Node, Snapshot

AT = {"source": "a.txt:1", "text": "words"}
MAC, HOST, HOST6 = mac("86:22:66:41:77:3d"), ip("192.168.2.202"), ip("fd00::2")
NODE = Node(
    name="master",
    devices=(s.DeviceRow(**AT, name="flannel.1", kind="vxlan", mac=MAC, mtu=1450, up=True, vxlan=s.VxlanAttributes(vni=1, local=HOST, group=HOST6)),),
    addresses=(s.AddressRow(**AT, device="eth0", address=Prefix(HOST, 24), peer=Prefix(HOST, 32), flags=("dynamic",)),),
    rules=(s.RuleRow(**AT, family=4, priority=7, src=Prefix(HOST, 32), fwmark=1),),
    routes=(s.RouteRow(**AT, dst=Prefix(bytes(16), 0), hops=(s.NextHop(device="eth0", gateway=HOST6, flags=("onlink",)),), src=HOST6),),
    neighbours=(s.NeighbourRow(**AT, address=HOST, device="flannel.1", mac=MAC, state="PERMANENT"),),
    fdb=(s.FdbRow(**AT, mac=MAC, device="flannel.1", dst=HOST, own=True),),
    shown=(s.Shown(table="neighbour", device="flannel.1"),),
)
LEASE = s.LeaseRow(**AT, lease=Lease(v4=Endpoint(Prefix(ip("10.244.2.0"), 24), HOST, MAC)), node="node2")
WHOLE = Snapshot(nodes=(NODE, Node(name="master/pod1")), leases=(LEASE,), unread=(s.Unread(source="a.txt:2", text="1.2.3", why="no address"),))


def test_a_bundle_read_back_is_what_was_written():
    assert s.decode(s.encode(WHOLE), "x") == WHOLE


def test_a_bundle_is_readable():
    document = msgspec.json.decode(s.encode(WHOLE))
    route = document["snapshot"]["nodes"][0]["routes"][0]
    assert (route["dst"], route["hops"][0]["gateway"], route["source"]) == ("::/0", "fd00::2", "a.txt:1")
    assert document["snapshot"]["nodes"][0]["fdb"][0] == AT | {"mac": "86:22:66:41:77:3d", "device": "flannel.1", "dst": "192.168.2.202", "own": True}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "no format"),
        (b'{"format": "tweed-bundle", "version": 9}', "version 9 is not 1"),
        (b'{"format": "tweed-bundle", "version": 1}', "snapshot"),
        (b'{"format": "tweed-bundle", "version": 1, "snapshot": {"nodes": [{"name": 5}]}}', "name"),
        (b'{"format": "tweed-bundle", "version": 1, "snapshot": {"nodes": [{"name": "a"}, {"name": "a"}]}}', "two nodes"),
        (s.encode(WHOLE).replace(b"192.168.2.202", b"192.168.2.999"), "192.168.2.999"),
        (b"[" * 100_000, "no bundle"),
    ],
)
def test_what_is_no_bundle_is_refused_in_one_line(data: bytes, why: str):
    with pytest.raises(UsageError, match=r"^x\.json: no bundle that tweed can read: ") as caught:
        s.decode(data, "x.json")
    assert why in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_containers_namespace_names_its_node():
    assert [node.host for node in WHOLE.nodes] == [None, "master"]
