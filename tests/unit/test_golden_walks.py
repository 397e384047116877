"""Whole answers, word for word: the seed's tables in both languages, a healthy cluster, broken ones, IPv6, one node alone, host-gw.

`python -m tests.unit.test_golden_walks` writes tests/golden anew. Read the difference before you commit it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from tests.unit.tables import SEED, healthy, parsed
from tests.unit.tables import cluster as nodes
from tests.unit.test_diagnose import FDB20, LEASES, NEIGH20, ROUTE20

from tweed.addr import parse_address as ip
from tweed.trace.cluster import Cluster
from tweed.trace.findings import find
from tweed.trace.frames import Probe
from tweed.trace.intent import Intent
from tweed.trace.messages import Language
from tweed.trace.render import text, walk_lines
from tweed.trace.snapshot import Snapshot
from tweed.trace.trip import trip

GOLDEN = Path(__file__).parents[1] / "golden"


class Case(NamedTuple):
    snapshot: Snapshot
    src: str
    dst: str
    language: Language = "en"
    leases: bool = True


def changed(**changes: list[tuple[str, str]]) -> Snapshot:
    texts = healthy()
    for name, replacements in changes.items():
        for old, new in replacements:
            assert old in texts[name], (name, old)
            texts[name] = texts[name].replace(old, new)
    return nodes(**texts)


def six(text: str) -> str:
    """The same tables in IPv6: 10.244.N.M is fd00:244:N::M, 192.168.2.N is fd00:192::N."""
    for n in ("10", "20", "30"):
        for old, new in (
            (f"10.244.{n}.0/24", f"fd00:244:{n}::/64"),
            (f"10.244.{n}.0/32", f"fd00:244:{n}::/128"),
            (f"10.244.{n}.0 ", f"fd00:244:{n}:: "),
            (f"10.244.{n}.1/24", f"fd00:244:{n}::1/64"),
            (f"10.244.{n}.2/24", f"fd00:244:{n}::2/64"),
            (f"10.244.{n}.1", f"fd00:244:{n}::1"),
            (f"10.244.{n}.2", f"fd00:244:{n}::2"),
            (f"192.168.2.{n}/24", f"fd00:192::{n}/64"),
            (f"192.168.2.{n}", f"fd00:192::{n}"),
        ):
            text = text.replace(old, new)
    text = text.replace("default via 192.168.2.1", "default via fd00:192::1").replace("192.168.2.0/24", "fd00:192::/64")
    text = (
        text.replace("    inet fd", "    inet6 fd")
        .replace("ip route", "ip -6 route")
        .replace("ip rule", "ip -6 rule")
        .replace("32767:	from all lookup default\n", "")
    )
    return (
        text.replace("0.0.0.0:8472      0.0.0.0:*", "*:8472      *:*")
        .replace("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
        .replace("mtu 1450", "mtu 1430")
    )


def direct() -> Snapshot:
    """host-gw: no VXLAN device, routes to the hosts."""
    texts = {}
    for name, each in healthy().items():
        lines = [line for line in each.splitlines(keepends=True) if "flannel.1" not in line and "vxlan id" not in line and "link/ether 0e:" not in line]
        n = name.partition("__")[0].removeprefix("n")
        for other in ("10", "20", "30"):
            if other != n and "__" not in name:
                at = next(i for i, line in enumerate(lines) if line.startswith("default via"))
                lines.insert(at + 1, f"10.244.{other}.0/24 via 192.168.2.{other} dev ens33\n")
        texts[name] = "".join(line for line in lines if not line.startswith("    inet 10.244.") or "/32" not in line)
    return nodes(**texts)


def two_on_one_node() -> Snapshot:
    """A second container on n10."""
    texts = healthy()
    veth = "7: veth2@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue master cni0 state UP group default\n"
    veth += "    link/ether 0a:59:00:00:10:02 brd ff:ff:ff:ff:ff:ff link-netnsid 1 promiscuity 1\n    veth\n"
    row = "0a:58:0a:f4:10:02 dev veth1 master cni0\n"
    texts["n10"] = (
        texts["n10"].replace("[root@n10 ~]# ip route\n", veth + "[root@n10 ~]# ip route\n").replace(row, row + "0a:58:0a:f4:10:03 dev veth2 master cni0\n")
    )
    pod = texts["n10__pod1"].replace("@if6", "@if7").replace("0a:58:0a:f4:10:02", "0a:58:0a:f4:10:03").replace("10.244.10.2", "10.244.10.3")
    return nodes(**texts, n10__pod2=pod)


HEALTHY = changed()
A, B = "10.244.10.2", "10.244.20.2"
CASES = {
    "seed-en": Case(parsed(SEED, name="vxlan-mode.md"), "10.244.0.2", "10.244.2.2", "en", False),
    "seed-zh": Case(parsed(SEED, name="vxlan-mode.md"), "10.244.0.2", "10.244.2.2", "zh", False),
    "healthy": Case(HEALTHY, A, B),
    "healthy-zh": Case(HEALTHY, A, B, "zh"),
    "host-to-container": Case(HEALTHY, "192.168.2.10", B),
    "to-the-gateway": Case(HEALTHY, A, "10.244.10.1"),
    "same-node": Case(two_on_one_node(), A, "10.244.10.3"),
    "ipv6": Case(nodes(**{name: six(each) for name, each in healthy().items()}), "fd00:244:10::2", "fd00:244:20::2", "en", False),
    "host-gw": Case(direct(), A, B, "en", False),
    "route-missing": Case(changed(n10=[(ROUTE20, "")]), A, B),
    "route-wrong-node": Case(changed(n10=[(ROUTE20, ROUTE20.replace("via 10.244.20.0", "via 10.244.30.0"))]), A, B),
    "blackhole": Case(changed(n10=[(ROUTE20, ROUTE20 + "blackhole 10.244.20.2\n")]), A, B),
    "policy-rule": Case(changed(n10=[("32766:	from all lookup main\n", "99:	from 10.244.10.0/24 prohibit\n32766:	from all lookup main\n")]), A, B),
    "neighbour-missing": Case(changed(n10=[(NEIGH20, "")]), A, B),
    "vtep-mac-stale": Case(changed(n10=[(NEIGH20, NEIGH20.replace(":20 ", ":99 ")), (FDB20, FDB20.replace(":20 ", ":99 "))]), A, B),
    "vtep-mac-stale-zh": Case(changed(n10=[(NEIGH20, NEIGH20.replace(":20 ", ":99 ")), (FDB20, FDB20.replace(":20 ", ":99 "))]), A, B, "zh"),
    "fdb-wrong-host": Case(changed(n10=[(FDB20, FDB20.replace("2.20", "2.30"))]), A, B),
    "vni-mismatch": Case(changed(n20=[("vxlan id 1 ", "vxlan id 2 ")]), A, B),
    "vtep-down": Case(changed(n20=[("3: flannel.1: <BROADCAST,MULTICAST,UP,LOWER_UP>", "3: flannel.1: <BROADCAST,MULTICAST>")]), A, B),
    "mtu-too-large": Case(changed(n10__pod1=[("mtu 1450", "mtu 1500")]), A, B),
    "reply-lost": Case(changed(n20=[("10.244.10.0/24 via 10.244.10.0 dev flannel.1 onlink\n", "")]), A, B),
}


def answer(case: Case) -> str:
    cluster = Cluster(msgspec.structs.replace(case.snapshot, leases=LEASES) if case.leases else case.snapshot)
    return text(walk_lines(trip(cluster, Intent(cluster), Probe(ip(case.src), ip(case.dst)), find(cluster)), case.language)) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_word_for_word(name: str):
    assert answer(CASES[name]) == (GOLDEN / f"{name}.txt").read_text()


def test_no_golden_text_is_left_over():
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


if __name__ == "__main__":
    for name, case in CASES.items():
        (GOLDEN / f"{name}.txt").write_text(answer(case))
