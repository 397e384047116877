"""The live walk without a kernel: events that `tweed walk --record` wrote on the nodes of a lab, joined and judged; and the pure parts by themselves."""

from __future__ import annotations

import itertools
import struct

import msgspec
import pytest
from tests.unit.recorded import changed, judged, recordings
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix, parse_address
from tweed.errors import UsageError
from tweed.trace import snapshot
from tweed.trace.beside import translated
from tweed.trace.clocks import Crossing, compare
from tweed.trace.cluster import Cluster
from tweed.trace.drops import cause_of, explain
from tweed.trace.events import DROPPED, FIXED, RECEIVED, Event
from tweed.trace.events import decode as decode_event
from tweed.trace.frames import Probe
from tweed.trace.join import coarse, join
from tweed.trace.probe import agreed, load
from tweed.trace.recording import Recording, decode, encode
from tweed.trace.sights import MOST_LOOK_UPS, Recognised, sights
from tweed.trace.snapshot import AddressRow, DeviceRow, NeighbourRow, Node, Snapshot
from tweed.wire.packet import Ethernet, Ipv4, Udp, Vxlan
from tweed.wire.packet import encode as encode_packet

SRC, DST = parse_address("10.244.0.2"), parse_address("10.244.2.2")
ETHERNET = Ethernet(bytes(6), bytes(6))


def test_a_healthy_walk_is_the_predicted_one_byte_for_byte() -> None:
    walk = judged(recordings("healthy"))
    assert (walk.verdict, walk.first_divergence) == ("delivered", None) and walk.reply is not None and walk.reply.verdict == "delivered"
    for each in (walk, walk.reply):
        places = [step for step in each.steps if step.hop is not None]
        assert len(places) == 8 and all(any(sight.event == "net_dev_queue" or sight.event == "netif_receive_skb" for sight in step.seen) for step in places)
        assert not [sight.differs for step in each.steps for sight in step.seen if sight.differs]
        times = [sight.t_us for step in each.steps for sight in step.seen if sight.hop_us is not None]
        assert times == sorted(times)
    routes = [(step.node, step.decision.id, sight.text) for step in walk.steps for sight in step.seen if sight.event == "fib_table_lookup"]
    assert not [sight for step in walk.steps for sight in step.seen if sight.event == "cached" and step.question == 1]
    assert ("master", "route-via", "table main: 10.244.2.2 via 10.244.2.0 dev flannel.1") in routes


@pytest.mark.parametrize(
    ("name", "node", "device", "cause", "words"),
    [
        ("vtep-mac-stale", "master", "flannel.1", "vtep-mac-stale", "OTHERHOST ip_rcv_core"),
        ("udp-dropped", "master", "ens33", "firewall-drops", "NETFILTER_DROP nft_do_chain"),
        ("route-blackhole", "master", "flannel.1", "route-blackhole", "ip_error"),
    ],
)
def test_faults(name: str, node: str, device: str, cause: str, words: str) -> None:
    those = recordings(name)
    # A kernel with fewer reasons says less, and the cause is the same.
    for variant in (those, changed(those, lambda event: msgspec.structs.replace(event, reason="NOT_SPECIFIED") if event.kind == DROPPED else event)):
        walk = judged(variant)
        found = walk.first_divergence
        assert walk.verdict == "dropped" and found is not None
        assert (found.node, found.device, found.cause.id) == (node, device, cause)
        assert found.fix and any(words.split()[-1] in row.text for row in found.evidence)


def test_a_drop_that_tables_know_nothing_of_is_the_kernels_word() -> None:
    """The healthy tables, and a packet that ends at the other node's firewall."""

    def arrives(event: Event) -> bool:
        return event.kind == RECEIVED and event.device == "flannel.1" and event.frame[26:30] == SRC

    def end(event: Event) -> Event | None:
        if arrives(event):
            return msgspec.structs.replace(event, kind="dropped", reason="NETFILTER_DROP", function="nft_do_chain+0x1")
        return event if event.t_ns < last else None

    those = recordings("healthy")
    last = max(event.t_ns for each in those for event in each.events if arrives(event))
    walk = judged(changed(those, end))
    assert walk.verdict == "dropped" and walk.first_divergence is not None
    assert (walk.first_divergence.node, walk.first_divergence.device, walk.first_divergence.cause.id) == ("node2", "flannel.1", "firewall-drops")


def test_a_packet_that_is_seen_no_more_has_vanished_where_it_was_last() -> None:
    those = [each for each in recordings("healthy") if each.heading.machine == "master"]
    other = [msgspec.structs.replace(each, events=()) for each in recordings("healthy") if each.heading.machine != "master"]
    went = changed(those, lambda event: event if not (event.data and event.frame[26:30] == DST) else None)
    out = max(event.t_ns for event in went[0].events if event.device == "ens33" and event.kind == "queued")
    walk = judged([*changed(went, lambda event: event if event.t_ns <= out else None), *other])
    assert walk.verdict == "lost" and walk.first_divergence is not None
    assert (walk.first_divergence.node, walk.first_divergence.device, walk.first_divergence.cause.id) == ("master", "ens33", "vanished")


def test_a_packet_that_waits_for_a_neighbour_is_told_from_one_that_vanished() -> None:
    """The healthy packet up to the peer's VTEP, where tables have no MAC for the container, or have one."""
    those = recordings("healthy")
    into = next(event for each in those for event in each.events if event.kind == RECEIVED and event.device == "flannel.1" and event.frame[26:30] == SRC)
    cut = changed(those, lambda event: event if event.t_ns <= into.t_ns else None)

    def with_neighbours(keep: bool) -> list[Recording]:
        def node(each: Node) -> Node:
            rows = tuple(row for row in each.neighbours if row.address != DST)
            known = NeighbourRow(source="x:1", text="", address=DST, device="cni0", mac=bytes(5) + b"\1", state="REACHABLE")
            return msgspec.structs.replace(each, neighbours=(*rows, known) if keep else rows) if each.name == "node2" else each

        def tables(each: Recording) -> Recording:
            found = snapshot.decode(each.heading.bundle.encode(), "x")
            bundle = snapshot.encode(msgspec.structs.replace(found, nodes=tuple(map(node, found.nodes)))).decode()
            return msgspec.structs.replace(each, heading=msgspec.structs.replace(each.heading, bundle=bundle))

        return [tables(each) for each in cut]

    waits = judged(with_neighbours(False)).first_divergence
    assert waits is not None and (waits.node, waits.device, waits.cause.id) == ("node2", "cni0", "neighbour-failed")
    knows = judged(with_neighbours(True)).first_divergence
    assert knows is not None and knows.cause.id != "neighbour-failed"


@pytest.mark.parametrize(
    ("at", "bits", "fields"), [(1, 0x48, "IPv4 dscp"), (1, 0x49, "IPv4 dscp, IPv4 ecn"), (6, 0x40, "IPv4 dont_fragment"), (8, 1, "IPv4 ttl")]
)
def test_other_bytes_than_predicted_are_the_divergence(at: int, bits: int, fields: str) -> None:
    def remark(event: Event) -> Event:
        """What nobody predicted, on the wire."""
        if event.kind != RECEIVED or event.device != "flannel.1" or event.frame[26:30] != SRC:
            return event
        data = bytearray(event.data)
        data[event.network + at] ^= bits
        return msgspec.structs.replace(event, data=bytes(data))

    walk = judged(changed(recordings("healthy"), remark))
    assert walk.verdict == "delivered" and walk.first_divergence is not None
    assert walk.first_divergence.cause.id == "bytes-differ" and (walk.first_divergence.node, walk.first_divergence.device) == ("node2", "flannel.1")
    assert walk.first_divergence.cause.params["fields"] == fields


@pytest.mark.parametrize("shift_ns", [0, 123_456_789, -3_600_000_000_000])
def test_clocks_that_differ_change_nothing_that_is_shown(shift_ns: int) -> None:
    """The lab's nodes share a clock: node2's is set to another time, and found out by the frames that crossed."""
    those = recordings("healthy")
    moved = [each if each.heading.sent else changed([each], lambda event: msgspec.structs.replace(event, t_ns=event.t_ns + shift_ns))[0] for each in those]
    together = join(moved)
    clock = together.clocks["node2"]
    assert clock.uncertainty_ns is not None and abs(clock.offset_ns - shift_ns) <= clock.uncertainty_ns
    walk = coarse(judged(moved), together.clocks, "master")
    assert walk.verdict == "delivered"
    unit = clock.uncertainty_ns / 1000
    for sight in (sight for step in walk.steps for sight in step.seen if sight.node.startswith("node2") and sight.event != "cached"):
        assert sight.t_us is not None and abs(sight.t_us / unit - round(sight.t_us / unit)) < 1e-6


def test_without_an_answer_there_are_no_times_between_machines() -> None:
    those = recordings("vtep-mac-stale")
    together = join(those)
    assert together.clocks["node2"].uncertainty_ns is None
    walk = coarse(judged(those), together.clocks, "master")
    assert {sight.t_us for step in walk.steps for sight in step.seen if sight.node == "node2"} == {None}


@spelled(120)
def crossed(choose: Choices) -> tuple[dict[str, int], list[Crossing]]:
    """What machines' clocks truly are ahead of the first one's, and frames that went between neighbours."""
    true = {"a": 0} | dict(zip("bcd", choose.several(3, lambda: choose.number(-(10**9), 10**9), least=1), strict=False))
    crossings = []
    for out, into in itertools.pairwise(true):
        for one, other in ((out, into), (into, out)):
            for _ in range(choose.below(3)):
                left, took = choose.number(0, 10**9), choose.number(0, 10**6)
                crossings.append(Crossing(one, other, left + true[one], left + took + true[other]))
    return true, crossings


@cases(100, crossed)
def test_the_true_offset_is_within_what_the_frames_allow(case: tuple[dict[str, int], list[Crossing]]) -> None:
    true, crossings = case
    for name, clock in compare("a", crossings).items():
        if clock.uncertainty_ns is not None:
            assert abs(clock.offset_ns - true[name]) <= clock.uncertainty_ns


def test_four_time_stamps() -> None:
    """t1 to t4 of a probe and its answer: offset ((t2 - t1) + (t3 - t4)) / 2."""
    clock = compare("a", [Crossing("a", "b", 1000, 5300), Crossing("b", "a", 5400, 1700)])["b"]
    assert (clock.offset_ns, clock.uncertainty_ns) == (((5300 - 1000) + (5400 - 1700)) // 2, 300)


def test_recordings_that_do_not_belong_together_are_refused() -> None:
    healthy, stale = recordings("healthy"), recordings("vtep-mac-stale")
    with pytest.raises(UsageError, match="two files are of machine master"):
        join([healthy[0], stale[0]])
    with pytest.raises(UsageError, match="none of the files is of the machine that sent"):
        join(healthy[1:])
    other = msgspec.structs.replace(healthy[1].heading, probe=msgspec.structs.replace(healthy[1].heading.probe, sport=1))
    with pytest.raises(UsageError, match="different packets"):
        join([healthy[0], msgspec.structs.replace(healthy[1], heading=other)])


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b"null\n", b'{"format": "tweed-recording"}', b"{" * 10_000])
def test_garbage_is_no_recording(data: bytes) -> None:
    with pytest.raises(UsageError, match="x: no recording that tweed can read"):
        decode(data, "x")


def test_a_recording_is_what_was_written() -> None:
    one = recordings("healthy")[0]
    assert decode(encode(one), "x") == one
    broken = encode(one).splitlines()
    with pytest.raises(UsageError):
        decode(b"\n".join([broken[0], broken[1].replace(b'"t_ns":', b'"t_ns":"x","y":')]), "x")
    with pytest.raises(UsageError, match="is not where it says"):
        decode(b"\n".join([broken[0], b'{"t_ns":1,"kind":"queued","network":99}']), "x")


@pytest.mark.parametrize(
    ("reason", "function", "error", "cause"),
    [
        ("NETFILTER_DROP", "nft_do_chain+0x1", None, "firewall-drops"),
        ("NOT_SPECIFIED", "nf_hook_slow+0x1", None, "firewall-drops"),
        ("IP_RPFILTER", "ip_rcv_finish_core+0x1", None, "rp-filter"),
        ("VXLAN_VNI_NOT_FOUND", "vxlan_rcv+0x1", None, "vni-mismatch"),
        ("NOT_SPECIFIED", "vxlan_rcv+0x1", None, "vni-mismatch"),
        ("NO_TX_TARGET", "vxlan_xmit+0x1", None, "fdb-missing"),
        ("NEIGH_FAILED", "neigh_invalidate+0x1", (3, 1), "neighbour-failed"),
        ("PKT_TOO_BIG", "ip_forward+0x1", (3, 4), "mtu-exceeded"),
        ("NOT_SPECIFIED", "ip_forward+0x1", (3, 4), "mtu-exceeded"),
        ("NOT_SPECIFIED", "ip_forward+0x1", (11, 0), "ttl-exceeded"),
        ("SOMETHING_NEW", "never_heard_of+0x1", None, "kernel-drops"),
        ("SOMETHING_NEW", "never_heard_of+0x1", (3, 0), "kernel-drops"),
        ("", "", None, "kernel-drops"),
    ],
)
def test_causes_by_reason_and_by_place(reason: str, function: str, error: tuple[int, int] | None, cause: str) -> None:
    assert cause_of(reason, function, error) == cause


def test_errors_are_of_their_family() -> None:
    """Type 3 is "unreachable" in IPv4 and "time exceeded" in IPv6."""
    assert [cause_of("IP_INHDR", "ip6_forward+0x1", (3, 0), family) for family in (4, 6)] == ["kernel-drops", "ttl-exceeded"]


def test_an_event_as_the_kernel_writes_it() -> None:
    function = b"ip_rcv_core.isra.0+0x1a2/0x3c0".ljust(64, b"\0")
    record = FIXED.pack(7, 8, 3, 1, 4026531840, 2, 60, 11, 0, 20, 14, b"ens33".ljust(16, b"\0"), function, bytes(16), bytes(16), bytes(16), 0, 0)
    event = decode_event(record + b"x" * 20 + bytes(236), {11: "SKB_DROP_REASON_OTHERHOST"})
    assert (event.kind, event.device, event.reason, event.function, event.data) == ("dropped", "ens33", "OTHERHOST", "ip_rcv_core+0x1a2", b"x" * 20)
    route = FIXED.pack(7, 0, 5, 1, 0, 0, 0, -11, 254, 0, 0, bytes(16), bytes(64), SRC.ljust(16, b"\0"), DST.ljust(16, b"\0"), bytes(16), 0, 0)
    event = decode_event(route + bytes(256), {})
    assert (event.kind, event.src, event.dst, event.code, event.table, event.gateway) == ("routed", SRC, DST, -11, 254, b"")


def test_a_shot_is_told_by_its_first_bytes() -> None:
    icmp, tcp = load(Probe(SRC, DST)), load(Probe(SRC, DST, "tcp", 40))
    assert icmp.probe.payload is not None and icmp.probe.payload.startswith(icmp.nonce) and len(icmp.nonce) == 8
    assert tcp.probe.sport is not None and struct.pack("!HHI", tcp.probe.sport, 80, tcp.probe.sequence or 0) == tcp.nonce
    assert agreed(Probe(SRC, DST)) == agreed(Probe(SRC, DST)) != agreed(Probe(DST, SRC))
    with pytest.raises(UsageError, match="at least 36"):
        load(Probe(SRC, DST, size=35))


def test_who_has_no_tracer_recognises_frames() -> None:
    those = recordings("healthy")
    probe = those[0].heading.probe
    ours = Recognised(probe.payload[:8] if probe.payload else b"", probe, {8472: "vxlan"})
    events = [event for each in those for event in each.events if event.data]
    assert events and all(ours(event.frame) for event in events)
    assert not ours(bytes(98)) and not Recognised(b"NONCE-00", probe, {8472: "vxlan"})(events[0].frame)


def test_a_look_up_without_a_device_belongs_to_the_node_whose_packet_the_cpu_has() -> None:
    move = next(event for each in recordings("healthy") for event in each.events if event.kind == RECEIVED)
    places = recordings("healthy")[0].heading.places
    missed = Event(t_ns=move.t_ns + 1000, kind="routed", cpu=move.cpu, src=SRC, dst=DST, code=-11, table=254)
    seen = sights([move, missed, msgspec.structs.replace(missed, cpu=move.cpu + 1)], places, Probe(SRC, DST), {8472: "vxlan"})
    assert [sight.node for sight in seen] == [places[move.netns], places[move.netns], ""]


def test_of_many_look_ups_for_the_same_addresses_the_packets_own_stay() -> None:
    move = next(event for each in recordings("healthy") for event in each.events if event.kind == RECEIVED)
    places = recordings("healthy")[0].heading.places
    own = [Event(t_ns=move.t_ns + ns, kind="routed", netns=move.netns, cpu=move.cpu, src=SRC, dst=DST, table=254) for ns in (1000, 1200)]
    busy = [msgspec.structs.replace(own[0], t_ns=move.t_ns + 7000 * step) for step in range(-500, 500) if step]
    seen = sights([*busy, *own, move], places, Probe(SRC, DST), {8472: "vxlan"})
    times = [sight.event.t_ns - move.t_ns for sight in seen]
    assert len(times) == 1 + MOST_LOOK_UPS and {0, 1000, 1200} < set(times) and max(map(abs, times)) <= 7000 * 3
    few = sights([*busy[:6], *own, move], places, Probe(SRC, DST), {8472: "vxlan"})
    assert len(few) == 9


def test_a_later_fragment_of_a_tunnel_is_no_packet_with_another_source() -> None:
    """The outer packet was cut for the underlay: its second piece shows the hosts' addresses, and nothing of what is inside."""
    host, peer = parse_address("192.168.2.200"), parse_address("192.168.2.202")
    whole = encode_packet(ETHERNET, Ipv4(host, peer, 17, id=7), Udp(1, 8472), Vxlan(1), ETHERNET, Ipv4(SRC, DST, 1), payload=bytes(64))
    inside = whole[14 + 20 :]
    pieces = [
        encode_packet(ETHERNET, Ipv4(host, peer, 17, id=7, more_fragments=offset == 0, fragment_offset=offset), payload=inside[offset : offset + 80])
        for offset in (0, 80)
    ]
    events = [Event(t_ns=number, kind=RECEIVED, netns=1, device="ens33", length=len(data), data=data, network=14) for number, data in enumerate(pieces)]
    seen = sights(events, {1: "master"}, Probe(SRC, DST, sport=1), {8472: "vxlan"})
    assert [sight.leg for sight in seen] == ["there", "there"]
    assert not any(translated(sight, Probe(SRC, DST)) for sight in seen)


def test_the_neighbour_that_fails_on_the_wire_is_the_host_and_not_the_container() -> None:
    host, peer = parse_address("192.168.2.200"), parse_address("192.168.2.202")
    data = encode_packet(ETHERNET, Ipv4(host, peer, 17), Udp(1, 8472), Vxlan(1), ETHERNET, Ipv4(SRC, DST, 1), payload=bytes(64))
    event = Event(
        t_ns=1, kind=DROPPED, netns=1, device="ens33", length=len(data), data=data, network=14, reason="NEIGH_FAILED", function="neigh_invalidate+0x1"
    )
    (sight,) = sights([event], {1: "master"}, Probe(SRC, DST), {8472: "vxlan"})
    said, fix = explain(sight, (), Cluster(Snapshot()), "master", "ens33")
    assert fix == ()
    there = Node(
        name="node2",
        devices=(DeviceRow(source="x:1", text="", name="ens33", mac=bytes(5) + b"\2"),),
        addresses=(AddressRow(source="x:2", text="", device="ens33", address=Prefix.parse("192.168.2.202/24")),),
    )
    assert [each.command for each in explain(sight, (), Cluster(Snapshot(nodes=(there,))), "master", "ens33")[1]] == [
        "ip neigh replace 192.168.2.202 lladdr 00:00:00:00:00:02 dev ens33 nud permanent"
    ]
    assert (said.id, said.params["address"], said.params["device"]) == ("neighbour-failed", "192.168.2.202", "ens33")
