"""A walk on a terminal: golden texts in both languages, verdicts, losers, fixes; and its frames as hex and fields."""

from __future__ import annotations

import msgspec
from tests.unit.walks import DELIVERED, DROPPED, ROUTE, SEED, SENT

from tweed.trace.frames import Probe
from tweed.trace.pcap import stages_of
from tweed.trace.render import hex_lines, stage_lines, text, walk_lines
from tweed.trace.result import Finding, Loser, Quote, Said, Seen, Walk

PROBE = Probe(DELIVERED.src, DELIVERED.dst, sport=1, sequence=2)

GOLDEN = """\
10.244.0.2 → 10.244.2.2   not known to the end   predicted from pasted tables

  #  where                 decided by
  1  master/pod1 eth0      leaves its container by eth0
  2  master cni0           enters bridge cni0 by port veth1
  3                        step 1  routed by 10.244.2.0/24 (table main) to flannel.1, gateway 10.244.2.0
                           10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink   [ip-route.txt:5]
                           not default via 192.168.2.1 dev ens33 proto static metric 100   [ip-route.txt:2]   /0 is shorter than /24
                           assumed: no `ip rule` is here: the kernel's three default rules are assumed
  4  master flannel.1      step 2  10.244.2.0 is at MAC 86:22:66:41:77:3d (PERMANENT)
                           10.244.2.0 lladdr 86:22:66:41:77:3d PERMANENT   [ip-neigh.txt:2]
  5                        step 3  VTEP 86:22:66:41:77:3d is on host 192.168.2.202
                           86:22:66:41:77:3d dev flannel.1 dst 192.168.2.202 self permanent   [bridge-fdb.txt:13]
                           not ca:59:7d:c2:5e:0f dev flannel.1 dst 192.168.2.202 self permanent   [bridge-fdb.txt:12]   another MAC for 192.168.2.202, \
no neighbour points to it
  6  master ens33          step 4  host 192.168.2.202 is directly on ens33 (table main)
                           192.168.2.0/24 dev ens33 proto kernel scope link src 192.168.2.200 metric 100   [ip-route.txt:7]
  7                        leaves ens33 for 192.168.2.202, UDP destination port unknown (flannel's default 8472)
                           unknown: UDP port of flannel.1 (flannel's default 8472; `ip -d link` shows it)
                           unknown: what host 192.168.2.202 does with it: its tables are not here

About the tables
  ! master: flannel.1: the fdb row ca:59:7d:c2:5e:0f -> 192.168.2.202 is a leftover: no neighbour points to it
    ca:59:7d:c2:5e:0f dev flannel.1 dst 192.168.2.202 self permanent   [bridge-fdb.txt:12]"""


def test_the_seeds_walk_in_english():
    assert text(walk_lines(SEED, "en")) == GOLDEN


def test_the_seeds_walk_in_chinese():
    lines = text(walk_lines(SEED, "zh")).splitlines()
    assert lines[0] == "10.244.0.2 → 10.244.2.2   无法推演到底   由粘贴的表推演"
    assert lines[5] == "  3                        步骤 1  查路由表 main：10.244.2.0/24 经网关 10.244.2.0，从 flannel.1 发出"
    assert "ip-route.txt:5" in lines[6] and "UDP 目的端口未知（flannel 默认 8472）" in "\n".join(lines)
    assert len(lines) == len(GOLDEN.splitlines())


def test_what_stops_it_and_what_mends_it():
    lines = walk_lines(DROPPED, "en")
    assert text(lines).splitlines()[-3:] == [
        "cause     node2 flannel.1: the frame is for VTEP MAC 86:22:66:41:77:3d, the peer's flannel.1 has be:ef:00:00:00:01: its kernel drops it",
        "evidence  10.244.2.0 lladdr 86:22:66:41:77:3d PERMANENT   [ip-neigh.txt:2]",
        "fix       [root@master ~]# ip neigh replace 10.244.2.0 lladdr be:ef:00:00:00:01 dev flannel.1 nud permanent",
    ]
    assert ("dropped", "bad") in lines[0] and sum(style == "bad" for line in lines for _, style in line) == 3
    assert "原因  node2 flannel.1: 帧发往" in text(walk_lines(DROPPED, "zh"))


def test_many_losers_are_counted():
    loser = Loser(Quote("x:1", "a row"), Said("later-row"))
    step = msgspec.structs.replace(SENT[2], losers=(loser,) * 9)
    lines = text(walk_lines(msgspec.structs.replace(DELIVERED, steps=(step,)), "en"))
    assert lines.count("not a row") == 4 and "not and 5 more rows" in lines


def seen(walk: Walk, *differs: str) -> Walk:
    """The same as if a real packet had gone that way."""
    steps = tuple(msgspec.structs.replace(step, seen=(Seen("packet", step.node, step.device, "in", 1.0, 1.0, 98, "", differs),)) for step in walk.steps)
    return msgspec.structs.replace(walk, tier="bpf", steps=steps, probe=msgspec.structs.replace(PROBE, size=1450))


def test_a_second_packet_that_goes_the_same_way_is_one_line():
    title = "A second packet, as large as the sender's MTU, not to be cut"
    back = msgspec.structs.replace(seen(DELIVERED), src=DELIVERED.dst, dst=DELIVERED.src)
    whole = msgspec.structs.replace(seen(DELIVERED), reply=back)
    first = msgspec.structs.replace(whole, whole=whole)
    lines = text(walk_lines(first, "en")).splitlines()
    assert lines[-1] == f"{title}: delivered   1450 bytes, the same way there and back" and sum("leaves its container" in line for line in lines) == 2
    masqueraded = msgspec.structs.replace(seen(DELIVERED, "IPv4 src"), reply=back)
    assert text(walk_lines(msgspec.structs.replace(masqueraded, whole=masqueraded), "en")).splitlines()[-1] == lines[-1]
    moved = msgspec.structs.replace(whole.steps[2], row=Quote("ip-route.txt:9", "another route"))
    for other in (
        seen(DELIVERED, "ttl"),
        msgspec.structs.replace(whole, reply=None),
        msgspec.structs.replace(whole, reply=seen(back, "ttl")),
        msgspec.structs.replace(whole, steps=(*whole.steps[:2], moved, *whole.steps[3:])),
    ):
        assert f"\n{title}\n" in text(walk_lines(msgspec.structs.replace(first, whole=other), "en")), other


def test_of_live_tables_only_what_matters_is_said():
    remarks = (
        Finding("master", Said("nft-evidence", {"lines": "11"}), ()),
        Finding("master", Said("bridge-outside-overlay", {"bridge": "docker0", "prefix": "172.17.0.0/16", "ports": "-"}), ()),
        Finding("master", Said("bridge-outside-overlay", {"bridge": "cni0", "prefix": "172.18.0.0/16", "ports": "-"}), ()),
        SEED.findings[0],
    )
    pasted = text(walk_lines(msgspec.structs.replace(SEED, findings=remarks), "en"))
    assert pasted.count("\n  ! ") == 4
    live = text(walk_lines(msgspec.structs.replace(DELIVERED, findings=remarks), "en"))
    assert live.count("\n  ! ") == 2 and "172.18" in live and "leftover" in live
    assert "About the tables" not in text(walk_lines(msgspec.structs.replace(DELIVERED, findings=remarks[:2]), "en"))


def test_branches_have_their_own_verdicts():
    steps = (*SENT[:3], *(msgspec.structs.replace(SENT[3], branch=branch) for branch in ("1", "2")))
    walk = msgspec.structs.replace(DELIVERED, verdict="lost", steps=steps, outcomes={"1": "delivered", "2": "lost"})
    lines = text(walk_lines(walk, "en")).splitlines()
    assert [line.strip() for line in lines if "way" in line and line.startswith("     way")] == ["way 1 delivered", "way 2 lost"]
    assert sum("master flannel.1" in line for line in lines) == 2


def test_the_row_is_verbatim_and_marked():
    assert ("10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink", "row") in [span for line in walk_lines(DELIVERED, "en") for span in line]
    assert ROUTE.text.endswith(" ")  # only the white space around it goes


def test_hex_says_what_is_unknown():
    frame = stages_of(SEED, PROBE)[-1].frames[0]
    lines = list(hex_lines(frame))
    assert (
        len(lines) == 10
        and text(lines[:2]) == "  0000  ?? ?? ?? ?? ?? ?? ?? ??  ?? ?? ?? ?? 08 00 45 00\n  0010  00 86 ?? ?? 00 00 40 11  ?? ?? c0 a8 02 c8 c0 a8"
    )
    styles = {style: "".join(part for line in lines for part, s in line if s == style).replace(" ", "") for style in ("outer", "vxlan", "inner", "unknown")}
    assert set(styles["unknown"]) == {"?"} and sum(map(len, styles.values())) == 2 * len(frame)
    assert styles["vxlan"] == "0800000000" and "86226641773d" in styles["inner"] and "c0a802ca" in styles["outer"]


def test_fields_and_equal_places():
    said = text(stage_lines(stages_of(DELIVERED, PROBE), "en", as_hex=False, fields=True))
    assert "master cni0 in   the same bytes as there" in said and "node2 ens33 in   the same bytes as there" in said
    assert "master ens33 out   148 bytes, 50 of them added by the tunnel" in said
    assert "\n  VXLAN  8 bytes at 42\n    flags      0x08\n    reserved   0x000000\n    vni        1\n" in said
    assert "    checksum         ?\n" in said and "    ttl              63\n" in said and "0000  " not in said
    assert "其中 50 字节由隧道添加" in text(stage_lines(stages_of(DELIVERED, PROBE), "zh", as_hex=True, fields=False))


def test_fragments_are_numbered():
    said = text(stage_lines(stages_of(DELIVERED, msgspec.structs.replace(PROBE, size=3000)), "en", as_hex=False, fields=False))
    assert "master/pod1 eth0 out   1458 bytes, fragment 1 of 3" in said and "node2/pod1 eth0 in   the same bytes as there" in said
