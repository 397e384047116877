"""How the demo draws steps and frames."""

from __future__ import annotations

from tweed.addr import parse_address as ip
from tweed.addr import parse_mac as mac
from tweed.lab.picture import evidence, frame_lines, step_lines, text
from tweed.lab.steps import Step
from tweed.model import FdbEntry
from tweed.wire.packet import Ethernet, Icmp, Ipv4, Tcp, Udp, Vxlan, decode, encode
from tweed.wire.packet import tables as t

POD1, POD2, HOST1, HOST2 = ip("10.244.0.2"), ip("10.244.2.2"), ip("192.168.2.200"), ip("192.168.2.202")
VTEP1, VTEP2, NIC1, NIC2 = mac("ca:59:7d:c2:5e:0f"), mac("86:22:66:41:77:3d"), mac("52:54:c0:a8:02:c8"), mac("52:54:c0:a8:02:ca")
INNER = Ethernet(VTEP2, VTEP1), Ipv4(POD1, POD2, t.ICMP, ttl=63), Icmp.echo(7, 1)
OUTER = Ethernet(NIC2, NIC1), Ipv4(HOST1, HOST2, t.UDP), Udp(53768, 8472, checksum=False), Vxlan(1)
FRAME = decode(encode(*OUTER, *INNER, payload=bytes(range(56))))


def step(number: int, value: bytes | None) -> Step:
    return Step(number, "?", "", None, "", value)


STEPS = [step(1, ip("10.244.2.0")), step(2, VTEP2), step(3, HOST2), step(4, HOST2), step(4, NIC2)]


def test_a_frame_is_drawn_header_by_header():
    assert text(frame_lines(FRAME, evidence(STEPS, FRAME))).splitlines() == [
        "        52 54 c0 a8 02 ca 52 54 c0 a8 02 c8   Ethernet 52:54:c0:a8:02:c8 > 52:54:c0:a8:02:ca IPv4",
        "        08 00                                 ✓ the destination that step 4 decided",
        "        45 00 00 86 00 00 00 00 40 11 f3 84   IPv4 192.168.2.200 > 192.168.2.202 ttl 64 UDP",
        "        c0 a8 02 c8 c0 a8 02 ca               ✓ the destination that step 3 decided",
        "        d2 08 21 18 00 72 00 00               UDP 53768 > 8472 length 114",
        "        08 00 00 00 00 00 01 00               VXLAN vni 1",
        "        86 22 66 41 77 3d ca 59 7d c2 5e 0f   Ethernet ca:59:7d:c2:5e:0f > 86:22:66:41:77:3d IPv4",
        "        08 00                                 ✓ the destination that step 2 decided",
        "        45 00 00 54 00 00 00 00 3f 01 63 be   IPv4 10.244.0.2 > 10.244.2.2 ttl 63 ICMP",
        "        0a f4 00 02 0a f4 02 02                 the destination that step 1 looks up",
        "        08 00 00 e5 00 07 00 01               ICMP echo request id 7 seq 1",
        "        00 01 02 03 04 05 06 07 08 09 0a 0b … payload 56 bytes",
    ]


def styles(packet, notes=None) -> list[str]:
    return [line[1][1] for line in frame_lines(packet, notes or {})]


def test_layers_have_the_figures_colours():
    assert styles(FRAME) == ["outer"] * 5 + ["vxlan"] + ["inner"] * 6
    assert styles(decode(encode(*INNER))) == ["inner"] * 5, "before it is in a tunnel it is the inner frame already"


def test_a_frame_that_differs_from_the_decision_is_marked():
    notes = evidence([*STEPS[:1], step(2, mac("86:22:66:41:77:99")), step(3, None), step(4, HOST2), step(4, NIC1)], FRAME)
    assert notes == {
        0: [("✗ step 4 decided another destination", "bad")],
        4: [("✗ step 2 decided another destination", "bad")],
        5: [("  the destination that step 1 looks up", "quiet")],
    }
    assert evidence(STEPS, decode(b"\1\2\3")) == {}


def test_checksums_are_told_apart():
    whole = encode(*INNER[:1], Ipv4(POD1, POD2, t.TCP), Tcp(1, 2))
    assert "checksum" not in text(frame_lines(decode(whole), {}))
    assert text(frame_lines(decode(whole[:-1] + b"\1"), {})).endswith(" its checksum is wrong")
    left = whole[:50] + b"\x18\x06" + whole[52:]  # 0af4+0002+0af4+0202+0006+0014
    assert text(frame_lines(decode(left), {})).endswith(" its checksum is left to the network card")


def test_what_cannot_be_read_is_said():
    assert text(frame_lines(decode(FRAME.data[:40]), {})).splitlines()[-2:] == [
        "        d2 08 21 18 00 72                     UDP 53768 > 8472 length 114",
        "                                              6 of 8 bytes are here",
    ]


def test_a_step_is_question_command_row_answer():
    row = FdbEntry(VTEP2, "flannel.1", HOST2)
    assert text(step_lines(Step(3, "which host?", "bridge fdb get", row, "host 192.168.2.202", HOST2), "master")).splitlines() == [
        "step 3  which host?",
        "        [root@master ~]# bridge fdb get",
        "        86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 self permanent",
        "        → host 192.168.2.202",
    ]
    missing = step_lines(Step(3, "which host?", "bridge fdb get", None, "no row"), "master")
    assert text(missing).splitlines()[2:] == ["        (nothing)", "        → no row"]
    assert [line[-1][1] for line in missing[2:]] == ["bad", "bad"]
    assert text(step_lines(Step(3, "which host?", "", None, "not asked: why"), "master")).splitlines() == ["step 3  which host?", "        → not asked: why"]
