"""Our capture files, read by tshark."""

from __future__ import annotations

import json
import subprocess

from tests.unit.test_pcap import PROBE
from tests.unit.test_pcapng import SECTION
from tests.unit.walks import PARTED, SEED, SNAPSHOT

from tweed.commands.walk_show import Wanted, show
from tweed.trace.pcap import decode_command, section, stages_of
from tweed.wire import pcapng


def test_packets_times_devices_and_comments(tmp_path):
    path = tmp_path / "walk.pcapng"
    path.write_bytes(pcapng.write(SECTION))
    fields = ["frame.interface_name", "frame.comment", "frame.time_epoch", "frame.len", "frame.cap_len", "udp.dstport"]
    done = subprocess.run(
        ["tshark", "-r", path, "-T", "fields", "-E", "separator=|", *(word for field in fields for word in ("-e", field))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "cni0|forwarded: 路由|1700000000.123456789|45|45|2",
        "flannel.1||1700000000.123456790|46|46|2",
        "flannel.1||0.000000005|45|40|2",
    ]
    shown = subprocess.run(["capinfos", "-k", path], capture_output=True, text=True)
    assert "tshark -d udp.port==8472,vxlan -r FILE" in shown.stdout


def test_the_packet_is_followed_into_the_tunnel(tmp_path):
    path = tmp_path / "walk.pcapng"
    stages = stages_of(SEED, PROBE)
    path.write_bytes(pcapng.write(section(SEED, stages, str(path), "zh")))
    done = subprocess.run([*decode_command(stages, str(path)).split(), "-T", "json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    packets = [packet["_source"]["layers"] for packet in json.loads(done.stdout)]
    assert len(packets) == 4 and "malformed" not in done.stdout
    assert packets[-1]["vxlan"]["vxlan.vni"] == "1" and "icmp" in packets[-1]
    assert "未知：" in json.dumps(packets[-1], ensure_ascii=False)


def test_of_several_ways_and_of_the_answer_each_packet_is_read(tmp_path):
    capture = tmp_path / "w.pcapng"
    show(PARTED, SNAPSHOT, Wanted(pcapng_file=capture, lang="en"))
    tshark = subprocess.run(["tshark", "-r", str(capture), "-T", "fields", "-e", "icmp.type"], capture_output=True, text=True, timeout=60, check=False)
    assert tshark.returncode == 0, tshark.stderr
    assert len(tshark.stdout.splitlines()) == 3 * 8
