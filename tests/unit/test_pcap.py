"""A walk as a capture file: one packet for each place, one interface for each device."""

from __future__ import annotations

import msgspec
from tests.unit.walks import DELIVERED

from tweed.trace.frames import Probe, Tunnel
from tweed.trace.pcap import decode_command, section, stages_of
from tweed.wire import pcapng

PROBE = Probe(DELIVERED.src, DELIVERED.dst, sport=1, sequence=2)


def test_one_packet_a_place_one_interface_a_device_and_the_decisions():
    made = section(DELIVERED, stages_of(DELIVERED, PROBE), "walk.pcapng", "en")
    names = ["master/pod1 eth0", "master cni0", "master flannel.1", "master ens33", "node2 ens33", "node2 flannel.1", "node2 cni0", "node2/pod1 eth0"]
    assert [interface.name for interface in made.interfaces] == names
    assert [record.interface for record in made.records] == list(range(8))
    assert [len(record.data) for record in made.records] == [98, 98, 98, 148, 148, 98, 98, 98]
    assert made.comment.splitlines()[0] == "tshark -d udp.port==8472,vxlan -r walk.pcapng"
    comment = made.records[2].comment.splitlines()
    assert comment[0] == "master flannel.1 out" and "    10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink   [ip-route.txt:5]" in comment
    assert "VTEP 86:22:66:41:77:3d is on host 192.168.2.202" in comment and comment[-1] == "unknown: IPv4 id, IPv4 checksum"
    times = [record.t_ns for record in made.records]
    assert times == sorted(set(times))
    assert pcapng.read(pcapng.write(made)) == made


def test_measured_times_are_kept():
    steps = tuple(msgspec.structs.replace(step, t_us=number * 12.5) for number, step in enumerate(DELIVERED.steps))
    walk = msgspec.structs.replace(DELIVERED, steps=steps)
    made = section(walk, stages_of(walk, PROBE), "x", "en")
    assert made.records[1].t_ns == 12_500 and "\n" not in made.comment


def test_the_port_of_the_tunnel_is_in_the_command():
    stages = stages_of(DELIVERED, PROBE)
    assert decode_command(stages[:3], "x") == "tshark -d udp.port==8472,vxlan -r x"
    hop = stages[3].hop
    other = msgspec.structs.replace(DELIVERED.steps[6], hop=msgspec.structs.replace(hop, tunnel=msgspec.structs.replace(hop.tunnel or Tunnel(b""), port=4789)))
    assert decode_command(stages_of(msgspec.structs.replace(DELIVERED, steps=(other,)), PROBE), "x") == "tshark -d udp.port==4789,vxlan -r x"
