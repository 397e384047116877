import re

import pytest
from tests.oracles.subnets import free_subnets
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix, is_unicast_mac, parse_address, parse_mac
from tweed.model import Endpoint, Lease, LeaseRecord, Owner
from tweed.plan.subnets import CANDIDATES, OutOfSubnets, adopt, choose, elder_rival, fits, vtep_mac
from tweed.wire.flannel import SubnetEnv, parse_network

NET = parse_network('{"Network": "10.244.0.0/16", "SubnetMin": "10.244.0.0", "Backend": {"Type": "vxlan"}}')
DUAL = parse_network('{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10::/48", "Backend": {"Type": "vxlan"}}')
SIX = parse_network('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10::/48", "Backend": {"Type": "vxlan"}}')
P = Prefix.parse
MAC = parse_mac("56:4e:6b:10:49:50")


def first(n):
    return 0


def last(n):
    return n - 1


# ---- choose -------------------------------------------------------------------------------------------------------


def test_the_first_and_the_last_of_a_hundred_candidates():
    assert choose(NET, [], None, first) == (P("10.244.0.0/24"), None)
    assert choose(NET, [], None, last) == (P("10.244.99.0/24"), None)
    assert choose(NET, [P("10.244.0.0/24"), P("10.244.2.0/23")], None, first) == (P("10.244.1.0/24"), None)


def test_a_free_previous_subnet_is_kept():
    assert choose(NET, [P("10.244.0.0/24")], SubnetEnv(subnet=P("10.244.7.0/24")), first)[0] == P("10.244.7.0/24")


@pytest.mark.parametrize("previous", ["10.244.7.0/25", "10.245.7.0/24", "10.244.9.0/24", "fd00::/64"])
def test_a_previous_subnet_that_is_taken_or_does_not_fit_is_not(previous):
    assert choose(NET, [P("10.244.9.128/25")], SubnetEnv(subnet=P(previous)), first)[0] == P("10.244.0.0/24")


def test_both_families_have_the_same_place_where_it_is_free():
    assert choose(DUAL, [], None, lambda n: 4) == (P("10.244.5.0/24"), P("fd00:10:0:5::/64"))
    assert choose(DUAL, [P("fd00:10:0:5::/64")], None, lambda n: 4) == (P("10.244.5.0/24"), P("fd00:10:0:6::/64"))
    assert choose(DUAL, [], SubnetEnv(subnet=P("10.244.9.0/24")), first) == (P("10.244.9.0/24"), P("fd00:10:0:9::/64"))


def test_one_family_alone():
    assert choose(SIX, [], None, first) == (None, P("fd00:10:0:1::/64"))


def test_out_of_subnets_names_the_range():
    one = parse_network('{"Network": "10.244.0.0/16", "SubnetMin": "10.244.3.0", "SubnetMax": "10.244.3.0"}')
    assert choose(one, [], None, first)[0] == P("10.244.3.0/24")
    with pytest.raises(OutOfSubnets, match=r"^out of subnets: every /24 from 10\.244\.3\.0/24 to 10\.244\.3\.0/24 is leased"):
        choose(one, [P("10.244.3.0/24")], None, first)
    with pytest.raises(OutOfSubnets):
        choose(NET, [P("10.0.0.0/8")], None, first)


def test_a_large_network_with_many_leases_is_not_walked():
    taken = [Prefix.of(P("fd00:10::/48").value + (i << 64), 64, 6) for i in range(5000)]
    wide = parse_network('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10::/32"}')
    assert choose(wide, [*taken, P("fd00:10:8000::/33")], None, first)[1] == P("fd00:10:0:1388::/64")


@spelled(70)
def spans_and_leases(pick: Choices):
    low, high = sorted((pick.number(0, 63), pick.number(0, 63)))
    net = parse_network(f'{{"Network": "10.1.0.0/24", "SubnetLen": 30, "SubnetMin": "10.1.0.{low * 4}", "SubnetMax": "10.1.0.{high * 4}"}}')
    leases = pick.several(20, lambda: Prefix(bytes((10, pick.below(3), 0, pick.below(256))), 25 + pick.below(8)))
    return net, leases, pick.below(1001)


@cases(33, spans_and_leases)
def test_choose_agrees_with_looking_at_everything(case):
    net, taken, index = case
    free = free_subnets(net.range(4), taken)[:CANDIDATES]
    if free:
        assert choose(net, taken, None, lambda n: index % n)[0] == free[index % len(free)]
    else:
        with pytest.raises(OutOfSubnets):
            choose(net, taken, None, first)


# ---- MAC ----------------------------------------------------------------------------------------------------------


def test_a_vtep_mac_depends_on_everything_it_is_made_of():
    macs = [
        vtep_mac(P(n), vni, P(s), attempt)
        for n in ("10.244.0.0/16", "10.0.0.0/8")
        for vni in (1, 2)
        for s in ("10.244.1.0/24", "10.244.2.0/24", "fd00::/64")
        for attempt in (0, 1)
    ]
    assert len(set(macs)) == 24
    assert all(is_unicast_mac(m) and m[0] & 2 for m in macs)


def test_a_vtep_mac_stays_the_same_in_later_versions():
    assert vtep_mac(P("10.244.0.0/16"), 1, P("10.244.1.0/24")).hex(":") == "2a:82:fe:b3:4f:13"


# ---- adopt --------------------------------------------------------------------------------------------------------

IP, OTHER_IP = parse_address("192.0.2.1"), parse_address("192.0.2.2")
ME, OTHER, MARGIN_S = Owner("me", "boot-2"), Owner("other", "boot-9"), 3600.0


def record(subnet="10.244.5.0/24", ip=IP, owner=None, ttl_s=80000.0, created=1, mac=MAC):
    return LeaseRecord(Lease(Endpoint(P(subnet), ip, mac, 1)), owner, created, created, ttl_s)


def decide(*records, previous=None, macs=(), network=NET):
    return adopt(network, records, IP, None, ME, previous and SubnetEnv(subnet=P(previous)), macs, MARGIN_S)


@pytest.mark.parametrize(
    ("lease", "given"),
    [
        (record(owner=Owner("me", "boot-1")), {}),
        (record(owner=ME, ip=OTHER_IP), {"previous": "10.244.5.0/24"}),
        (record(ttl_s=None), {}),
        (record(), {"previous": "10.244.5.0/24"}),
        (record(), {"macs": {MAC}}),
        (record(ttl_s=MARGIN_S / 2 - 1), {}),
    ],
    ids=["owner", "owner, address changed", "reservation", "previous subnet", "VTEP has its MAC", "not renewed"],
)
def test_leases_that_are_ours(lease, given):
    assert decide(lease, **given).record == lease
    assert decide(lease, **given).rivals == ()


@pytest.mark.parametrize(
    ("lease", "given", "why"),
    [
        (record(owner=OTHER), {"previous": "10.244.5.0/24", "macs": {MAC}}, "node other has this node's public IP 192.0.2.1"),
        (record(owner=OTHER, ttl_s=None), {}, "node other has this node's public IP"),
        (record(), {"previous": "10.244.6.0/24"}, r"no owner record \(flannel\?\) has this node's public IP"),
        (record(ttl_s=MARGIN_S - 1), {}, "no owner record"),
        (record(owner=ME, ip=OTHER_IP), {"previous": "10.244.6.0/24"}, "another node named me"),
    ],
)
def test_leases_that_are_a_rivals(lease, given, why):
    decision = decide(lease, **given)
    assert decision.record is None
    assert decision.delete == ()
    assert [r.record for r in decision.rivals] == [lease]
    assert re.search(why, str(decision.rivals[0]))


def test_leases_of_others_are_no_rivals():
    assert decide(record(ip=OTHER_IP, owner=OTHER), record(ip=OTHER_IP), record(ip=None), previous="10.244.5.0/24", macs={MAC}) == decide()


def test_an_own_lease_that_no_longer_fits_is_deleted():
    stale = record("10.99.0.0/24", owner=ME)
    assert decide(stale).record is None
    assert decide(stale).delete == (stale,)
    reserved = record("10.244.4.0/25", ttl_s=None)
    assert decide(reserved).delete == (reserved,)


def test_of_several_own_leases_the_previous_then_the_owned_then_the_eldest_is_kept():
    a, b, c = record("10.244.1.0/24", owner=ME, created=3), record("10.244.2.0/24", owner=ME, created=2), record("10.244.3.0/24", ttl_s=None, created=1)
    assert decide(a, b, c).record == b
    assert decide(a, b, c).delete == (a,)
    assert decide(a, b, c, previous="10.244.3.0/24").record == c
    assert decide(a, c, previous="10.244.1.0/24").delete == ()


def test_ipv6_alone_is_matched_by_its_own_address():
    ip6 = parse_address("2001:db8::1")
    lease = LeaseRecord(Lease(None, Endpoint(P("fd00:10:0:5::/64"), ip6, MAC, 1)), ME, 1, 1, 80000.0)
    assert adopt(SIX, [lease], None, ip6, ME, None, (), MARGIN_S).record == lease
    assert adopt(DUAL, [lease], IP, ip6, ME, None, (), MARGIN_S).record is None


def test_a_lease_fits_only_with_exactly_the_families_that_are_on():
    v4, v6 = Endpoint(P("10.244.5.0/24")), Endpoint(P("fd00:10:0:5::/64"))
    both, four, six = (LeaseRecord(Lease(*pair), None, 1, 1) for pair in ((v4, v6), (v4, None), (None, v6)))
    assert [[fits(n, r) for r in (both, four, six)] for n in (DUAL, NET, SIX)] == [[True, False, False], [False, True, False], [False, False, True]]


def test_the_younger_of_two_overlapping_leases_gives_way():
    old = LeaseRecord(Lease(Endpoint(P("10.244.5.0/24")), Endpoint(P("fd00:10:0:5::/64"))), OTHER, 7, 4)
    new = LeaseRecord(Lease(Endpoint(P("10.244.5.0/24")), Endpoint(P("fd00:10:0:6::/64"))), ME, 5, 5)
    assert elder_rival(new, [new, old]) == old
    assert elder_rival(old, [new, old]) is None
    assert elder_rival(new, [new, record("10.244.6.0/24", created=1)]) is None
