"""Leases to program, and what is wrong with the others."""

import msgspec
import pytest
from hypothesis import strategies as st
from msgspec import structs
from tests.oracles.screen import standing
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.model import Endpoint, Junk, Lease, LeaseRecord, Owner
from tweed.plan.screen import Screening, screen

P = Prefix.parse
NETWORKS = (P("10.244.0.0/16"), P("fd00:244::/32"))


def mac(n: int) -> bytes:
    return (0x02_00_00_00_00_00 + n).to_bytes(6, "big")


def end(subnet: str, ip: str | None, n: int | None) -> Endpoint:
    return Endpoint(P(subnet), parse_address(ip) if ip else None, mac(n) if n is not None else None, 1)


def record(n: int, subnet: str | None, subnet6: str | None = None, *, ip: str = "", m: int | None = None, created: int = 0, **fields) -> LeaseRecord:
    """Lease number `n`: MAC, host, owner and age follow from it unless they are given."""
    number = n if m is None else m
    v4 = end(subnet, ip or f"192.168.2.{n}", number) if subnet else None
    v6 = end(subnet6, f"fd00:192::{n}", number) if subnet6 else None
    return LeaseRecord(Lease(v4, v6, **fields), Owner(f"node{n}", "boot"), 1, created or n, 100.0)


OWN = record(1, "10.244.1.0/24", "fd00:244:1::/64", created=500)


def screened(*records: LeaseRecord, junk: tuple[Junk, ...] = (), own: LeaseRecord | None = OWN):
    """Keys of the peers, and (id, subject) of the problems."""
    result = screen([*records, *([own] if own else [])], junk, own, "vxlan", NETWORKS)
    return result, list(result.peers), [(p.id, p.subject) for p in result.problems]


def test_good_leases_become_peers_and_our_own_does_not():
    two, three = record(2, "10.244.2.0/24"), record(3, None, "fd00:244:3::/64")
    result, _, _ = screened(two, three)
    assert result.peers == {two.key: two.lease, three.key: three.lease}
    assert result.problems == ()


def test_before_we_have_a_lease_everybody_is_a_peer():
    assert screened(OWN, own=None)[1] == [OWN.key]


def test_junk_is_named_and_harms_nobody():
    two = record(2, "10.244.2.0/24")
    result, peers, _ = screened(two, junk=(Junk("10.244.9.0-24", "VtepMAC 'xyz': not a MAC address"),))
    assert peers == [two.key]
    assert [str(p) for p in result.problems] == ["junk-lease: 10.244.9.0-24: VtepMAC 'xyz': not a MAC address"]


@pytest.mark.parametrize("backend", ["host-gw", "udp", "", "wireguard", "VXLAN"])
def test_another_backends_lease_is_named_with_both(backend: str):
    other, two = record(9, "10.244.9.0/24", backend=backend), record(2, "10.244.2.0/24")
    result, peers, problems = screened(other, two)
    assert peers == [two.key]
    assert problems == [("other-backend", other.key)]
    assert (backend or "udp") in result.problems[0].text and "vxlan" in result.problems[0].text


def test_a_reservation_without_its_node_is_no_problem():
    waiting = LeaseRecord(Lease(end("10.244.7.0/24", "192.168.2.7", None)), None, 1, 7, None)
    assert screened(waiting)[1:] == ([], [])
    come = LeaseRecord(msgspec.structs.replace(waiting.lease, backend="host-gw"), None, 1, 7, None)
    assert screened(come)[2] == [("other-backend", come.key)] and screen([come], (), None, "host-gw", NETWORKS).peers == {come.key: come.lease}
    ended = LeaseRecord(waiting.lease, waiting.owner, 1, 7, 100.0)
    assert screened(ended)[2] == [("bad-lease", ended.key)]


BAD = {
    "10.245.1.0/24": "outside the cluster network 10.244.0.0/16",
    "10.244.0.0/16": "is the whole cluster network",
    "10.0.0.0/8": "outside",
    "10.244.9.1/24": "host bits",
    "fd00:245::/64": "outside the cluster network fd00:244::/32",
}


@pytest.mark.parametrize("subnet", BAD)
def test_a_subnet_that_is_no_nodes(subnet: str):
    six = ":" in subnet
    bad = record(9, None if six else subnet, subnet if six else None)
    result, peers, problems = screened(bad, record(2, "10.244.2.0/24"))
    assert (peers, problems) == (["10.244.2.0-24"], [("bad-lease", bad.key)])
    assert BAD[subnet] in result.problems[0].text and result.problems[0].text.endswith("skipped")


HOSTILE = ["0.0.0.1", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "10.244.2.3", "::1", "ff02::1", "fd00:244::5"]


@pytest.mark.parametrize("ip", HOSTILE)
def test_a_host_address_that_no_host_can_have(ip: str):
    """Programmed as it is, it would send our frames to ourselves, to everybody, or round and round through the tunnel."""
    subnet = "fd00:244:9::/64" if ":" in ip else "10.244.9.0/24"
    e = end(subnet, ip, 9)
    bad = LeaseRecord(Lease(v6=e) if ":" in ip else Lease(e), None, 1, 1, 100.0)
    result, peers, problems = screened(bad, record(2, "10.244.2.0/24"))
    assert (peers, problems) == (["10.244.2.0-24"], [("bad-lease", bad.key)])
    assert ip in result.problems[0].text


@pytest.mark.parametrize("address", ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", None])
def test_a_mac_that_no_device_can_have(address: str | None):
    e = Endpoint(P("10.244.9.0/24"), parse_address("192.168.2.9"), parse_mac(address) if address else None, 1)
    assert screened(LeaseRecord(Lease(e), None, 1, 1, 100.0))[1:] == ([], [("bad-lease", "10.244.9.0-24")])


def test_a_lease_without_a_host():
    assert screened(LeaseRecord(Lease(Endpoint(P("10.244.9.0/24"), None, mac(9), 1)), None, 1, 1, 100.0))[2] == [("bad-lease", "10.244.9.0-24")]


def test_one_bad_family_does_not_take_the_other_with_it():
    half = record(9, "10.245.9.0/24", "fd00:244:9::/64")
    result, _, problems = screened(half)
    assert result.peers == {half.key: Lease(v6=half.lease.v6)}
    assert problems == [("bad-lease", half.key)]


def test_a_family_that_is_off_here_is_no_problem():
    dual = record(9, "10.244.9.0/24", "fd00:244:9::/64")
    assert screen([dual], (), None, "vxlan", NETWORKS[:1]).peers == {dual.key: Lease(dual.lease.v4)}
    six = record(9, None, "fd00:244:9::/64")
    assert screen([six], (), None, "vxlan", NETWORKS[:1]) == screen([], (), None, "vxlan", NETWORKS)


# ---- rivals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("elder", "younger"), [("10.244.9.0/25", "10.244.9.0/24"), ("10.244.8.0/23", "10.244.9.0/24"), ("10.244.9.0/24", "10.244.8.0/22")])
def test_the_elder_of_two_overlapping_leases_is_believed(elder: str, younger: str):
    old, new = record(30, elder, created=5), record(20, younger, created=6)
    for order in ((old, new), (new, old)):
        result, peers, problems = screened(*order)
        assert (peers, problems) == ([old.key], [("duplicate-subnet", new.key)])
        assert all(word in result.problems[0].text for word in (elder, younger, "node30", "node20", "192.168.2.30", "192.168.2.20"))


def test_our_own_subnet_is_ours_however_young_we_are():
    for subnet in ("10.244.1.0/24", "10.244.0.0/23", "10.244.1.128/25"):
        # The same IPv4 subnet under another key is how it happens: with and without IPv6, or by another SubnetLen.
        rival = record(2, subnet, "fd00:244:2::/64", created=1)
        result, _, problems = screened(rival)
        assert problems == [("duplicate-subnet", rival.key)]
        assert result.peers == {rival.key: Lease(v6=rival.lease.v6)}


def test_both_keys_of_a_dual_stack_overlap():
    a, b = record(2, "10.244.9.0/24", "fd00:244:2::/64"), record(3, "10.244.3.0/24", "fd00:244:2::/63")
    result, _, problems = screened(a, b)
    assert problems == [("duplicate-subnet", b.key)]
    assert result.peers == {a.key: a.lease, b.key: Lease(b.lease.v4)}


def test_a_vtep_mac_belongs_to_the_elder_and_ours_to_us():
    old, new, thief = record(2, "10.244.2.0/24", m=77), record(3, "10.244.3.0/24", m=77), record(4, "10.244.4.0/24", m=1)
    result, peers, problems = screened(new, old, thief)
    assert peers == [old.key]
    assert problems == [("duplicate-vtep-mac", new.key), ("duplicate-vtep-mac", thief.key)]
    assert "02:00:00:00:00:4d" in result.problems[0].text and "node2" in result.problems[0].text


def test_the_same_mac_on_the_two_devices_of_one_node_is_fine():
    assert screened(record(2, "10.244.2.0/24", "fd00:244:2::/64"))[2] == []


def test_two_nodes_with_one_host_address_are_named_on_both_and_both_stay():
    """Each sees the other's lease: what it says of its own address stands in its own lease."""
    a, b = record(1, "10.244.1.0/24", ip="10.0.2.15"), record(2, "10.244.2.0/24", ip="10.0.2.15")
    for own, other in ((a, b), (b, a)):
        result, peers, problems = screened(other, own=own)
        assert (peers, problems) == ([other.key], [("duplicate-public-ip", other.key)])
        assert all(word in result.problems[0].text for word in ("10.0.2.15", "node1", "node2", "--iface"))


def test_a_third_node_names_the_younger_of_two_with_one_host_address():
    a, b = record(5, "10.244.5.0/24", ip="10.0.2.15"), record(6, "10.244.6.0/24", ip="10.0.2.15")
    assert screened(b, a)[2] == [("duplicate-public-ip", b.key)]


def test_what_was_refused_takes_nothing_away():
    refused = record(2, "10.244.1.0/24", m=2, created=2)  # our subnet
    late = record(3, "10.244.3.0/24", m=2, ip="192.168.2.2", created=3)  # has the refused one's MAC and host
    assert screened(refused, late)[1:] == ([late.key], [("duplicate-subnet", refused.key)])


def some_lease(choose: Choices, n: int) -> LeaseRecord:
    subnet = Prefix.of(P("10.244.0.0/18").value + (choose.number(0, 63) << 8), choose.number(20, 26), 4).network
    six = Prefix.of(P("fd00:244::/48").value + (choose.number(0, 15) << 64), choose.number(60, 65), 6).network
    m = mac(100 + choose.number(0, 30))
    v4, v6 = Endpoint(subnet, bytes((192, 168, 2, n)), m, 1), Endpoint(six, parse_address(f"fd00:192::{n + 1}"), m, 1)
    families = choose.one_of(((True, True), (True, False), (False, True)))
    lease = Lease(v4 if families[0] else None, v6 if families[1] else None)
    return LeaseRecord(lease, None, 1, 1 + choose.below(10**6), 100.0)


@spelled(160)
def leases(choose: Choices) -> list[LeaseRecord]:
    found = [some_lease(choose, n) for n in range(choose.below(13))]
    return list({r.key: r for r in found if len({q.created for q in found}) == len(found)}.values())


@cases(27, leases, st.booleans(), st.sampled_from([frozenset(), frozenset({24}), frozenset({24, 64}), frozenset({22})]))
def test_overlaps_against_the_slow_oracle(records: list[LeaseRecord], with_own: bool, lengths: frozenset[int]):
    own = OWN if with_own else None
    records = [r for r in records if r.key != OWN.key]
    result = screen(records, (), own, "vxlan", NETWORKS, lengths)
    assert {(key, e.subnet) for key, lease in result.peers.items() for e in lease.endpoints} == standing(records, own, lengths)


def change(choose: Choices):
    """One key, and the lease under it from now on, None: it goes. Everything from small pools, so that they get in each other's way."""
    subnet = choose.one_of(["10.244.8.0/23", "10.244.8.0/24", "10.244.9.0/24", "10.244.10.0/24", "10.245.1.0/24"])
    six = choose.one_of([None, "fd00:244:8::/63", "fd00:244:8:1::/64"])
    number, host = 2 + choose.below(4), 2 + choose.below(4)
    new = record(number, subnet, six, ip=f"192.168.2.{host}", backend=choose.one_of(["vxlan", "vxlan", "vxlan", "host-gw"]))
    return new.key, choose.one_of([new, new, None])


@spelled(100)
def rounds(choose: Choices):
    own = [OWN, OWN, OWN, record(1, "10.244.8.0/24", created=500)]
    return choose.several(6, lambda: (choose.several(3, lambda: change(choose)), choose.one_of(own)))


@cases(33, rounds, st.sampled_from([frozenset(), frozenset({24, 64})]))
def test_seen_one_change_after_another_or_all_at_once(some, lengths):
    kept, records = Screening("vxlan", NETWORKS, lengths), {}
    kept.see(records, (), OWN)
    for number, (changes, own) in enumerate(some):
        for at, (key, new) in enumerate(changes):
            records.pop(key, None)
            if new is not None:
                records[key] = structs.replace(new, created=10 * number + at)
        assert kept.see(records, (), own, {key for key, _ in changes}) == screen(records.values(), (), own, "vxlan", NETWORKS, lengths)


def test_an_old_lease_of_many_subnets_takes_none_away():
    """Somebody's mistake, or worse: in a network of /24s a /16 is no node's."""
    wide, one, two = record(9, "10.244.0.0/17", created=1), record(5, "10.244.5.0/24", created=50), record(6, "10.244.6.0/24", created=60)
    result = screen([wide, one, two], (), None, "vxlan", NETWORKS, frozenset({24}))
    assert set(result.peers) == {one.key, two.key}
    assert [(p.id, p.subject) for p in result.problems] == [("duplicate-subnet", wide.key)]


def test_the_elder_keeps_its_host_address_when_the_younger_goes():
    a, b, c = (record(n, f"10.244.{n}.0/24", ip="10.0.2.15") for n in (5, 6, 7))
    kept, records = Screening("vxlan", NETWORKS), {a.key: a, b.key: b}
    kept.see(records, (), OWN)
    del records[b.key]
    kept.see(records, (), OWN, {b.key})
    records[c.key] = c
    assert [p.subject for p in kept.see(records, (), OWN, {c.key}).problems] == [c.key]


def test_one_change_among_leases_in_nobodys_way_costs_a_look_at_that_one_only(monkeypatch: pytest.MonkeyPatch):
    records = {r.key: r for r in (record(n, f"10.244.{n}.0/24") for n in range(2, 50))}
    kept = Screening("vxlan", NETWORKS)
    kept.see(records, (), OWN)
    judged = []
    monkeypatch.setattr(Screening, "_judge", lambda self, key, new: judged.append(key))
    new = record(60, "10.244.60.0/24")
    kept.see(records | {new.key: new}, (), OWN, {new.key})
    assert judged == [new.key]


def test_ten_thousand_leases_and_as_many_wider_newcomers():
    """Nothing is asserted of the time, but pairing each with each would be noticed: it takes minutes."""

    def numbered(i: int, length: int, created: int) -> LeaseRecord:
        subnet = Prefix.of((10 << 24) + (i << (32 - length)), length, 4)
        lease = Lease(Endpoint(subnet, bytes((172, 16 + (i >> 16), i >> 8 & 255, i & 255)), mac(created), 1))
        return LeaseRecord(lease, None, 1, created, 100.0)

    narrow = [numbered(i, 24, 10 + i) for i in range(10_000)]
    wide = [numbered(5_000 + i, 23, 20_010 + i) for i in range(3_000)]
    covering = [numbered(i, 23, 30_000 + i) for i in range(1_000)]
    result = screen([*covering, *wide, *narrow], (), None, "vxlan", (P("10.0.0.0/8"),))
    assert set(result.peers) == {r.key for r in [*narrow, *wide]}
    assert {p.subject for p in result.problems} >= {r.key for r in covering}


def test_a_lease_of_another_vni_is_programmed_and_named():
    two = record(2, "10.244.2.0/24")
    other = structs.replace(two, lease=Lease(structs.replace(two.lease.v4, vni=2)))
    unknown = structs.replace(two, lease=Lease(structs.replace(two.lease.v4, vni=None)))
    assert screened(other)[1:] == ([two.key], [("other-vni", two.key)])
    assert screened(unknown)[1:] == ([two.key], []) and screened(other, own=None)[2] == []
