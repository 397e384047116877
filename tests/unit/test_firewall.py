"""nft rules, as far as they are plain: the verdict, and when it cannot be told."""

from __future__ import annotations

import pytest

from tweed.addr import parse_address as ip
from tweed.trace.firewall import Facts, Firewall
from tweed.trace.snapshot import EvidenceRow

PING = Facts(ip("10.244.0.2"), ip("10.244.2.2"), 1, iif="cni0", oif="flannel.1", icmp="echo-request")
WEB = Facts(ip("10.244.0.2"), ip("10.244.2.2"), 6, 40000, 80, "cni0", "flannel.1")
PING6 = Facts(ip("fd00::2"), ip("fd00:2::2"), 58, iif="cni0", oif="flannel-v6.1", icmp="echo-request")


def firewall(text: str) -> Firewall:
    return Firewall(EvidenceRow(source=f"nft:{n}", text=line) for n, line in enumerate(text.strip().splitlines(), 1))


def forward(*rules: str, policy: str = "accept", family: str = "inet", more: str = "") -> Firewall:
    lines = "\n".join(f"\t\t{rule}" for rule in rules)
    return firewall(
        f"table {family} t {{ # handle 1\n\tchain f {{ # handle 1\n\t\ttype filter hook forward priority filter; policy {policy};\n{lines}\n\t}}\n{more}\n}}"
    )


@pytest.mark.parametrize(
    ("rule", "facts", "kind"),
    [
        ("drop", PING, "drop"),
        ("counter packets 5 bytes 420 drop", PING, "drop"),
        ('counter packets 5 bytes 420 comment "no" drop', PING, "drop"),
        ('log prefix "x y" level info drop', PING, "drop"),
        ("reject with icmp port-unreachable", PING, "drop"),
        ("ip daddr 10.244.2.0/24 drop # handle 4", PING, "drop"),
        ("ip daddr != 10.244.2.0/24 drop", PING, "pass"),
        ("ip daddr { 10.244.7.0/24, 10.244.2.2 } drop", PING, "drop"),
        ("ip daddr 10.244.2.1-10.244.2.9 drop", PING, "drop"),
        ("ip saddr 10.244.2.0/24 drop", PING, "pass"),
        ("ip6 daddr fd00::/16 drop", PING, "pass"),
        ("ip6 daddr fd00::/16 drop", PING6, "drop"),
        ("meta nfproto ipv6 drop", PING, "pass"),
        ("meta nfproto ipv6 drop", PING6, "drop"),
        ("meta l4proto { tcp, udp } drop", PING, "pass"),
        ("meta l4proto { tcp, udp } drop", WEB, "drop"),
        ("ip protocol icmp drop", PING, "drop"),
        ("tcp dport 80 drop", WEB, "drop"),
        ("tcp dport { 22, 80 } drop", WEB, "drop"),
        ("tcp dport 1-100 drop", WEB, "drop"),
        ("tcp dport != 80 drop", WEB, "pass"),
        ("udp dport 80 drop", WEB, "pass"),
        ("tcp dport http drop", WEB, "unknown"),
        ('iifname "cni0" oifname "flannel*" drop', PING, "drop"),
        ('iifname != "cni0" drop', PING, "pass"),
        ("iif cni0 drop", PING, "drop"),
        ("icmp type echo-request drop", PING, "drop"),
        ("icmp type { echo-reply } drop", PING, "pass"),
        ("ct state new drop", PING, "drop"),
        ("ct state established,related accept", PING, "pass"),
        ("ct state invalid drop", PING, "pass"),
        ("ip daddr @blocked drop", PING, "unknown"),
        ("meta mark 0x4000 drop", PING, "unknown"),
        ("ip saddr 9.9.9.9 meta mark 7 drop", PING, "pass"),  # what does not fit does not, whatever else it asks
        ("limit rate 5/second accept", PING, "unknown"),
        ("jump nowhere", PING, "unknown"),
    ],
)
def test_a_rule(rule: str, facts: Facts, kind: str):
    assert forward(rule).verdict("forward", facts).kind == kind


def test_the_dropping_rule_is_told_with_its_handle():
    ruling = forward("ip daddr 10.9.0.0/16 drop # handle 3", "ip daddr 10.244.2.0/24 drop # handle 4").verdict("forward", PING)
    assert ruling.rule is not None and ruling.chain is not None
    assert (ruling.rule.handle, ruling.rule.quote.text, ruling.rule.quote.source) == ("4", "ip daddr 10.244.2.0/24 drop", "nft:5")


def test_policies_and_the_order_of_chains():
    assert forward(policy="drop").verdict("forward", PING).kind == "drop"
    assert forward("ip daddr 10.244.0.0/16 accept", policy="drop").verdict("forward", PING).kind == "pass"
    assert forward("meta mark 7 accept", policy="drop").verdict("forward", PING).kind == "unknown"  # it might have passed
    assert forward("meta mark 7 drop", policy="drop").verdict("forward", PING).kind == "drop"
    two = "\tchain g {\n\t\ttype filter hook forward priority filter + 10; policy drop;\n\t}"
    assert forward("accept", more=two).verdict("forward", PING).kind == "drop"  # an accept ends its own chain only
    assert forward("drop").verdict("input", PING).kind == "pass"
    assert forward("drop", family="ip").verdict("forward", PING6).kind == "pass"


def test_jumps():
    sub = "\tchain sub {\n\t\tip daddr 10.244.9.0/24 drop\n\t\tip daddr 10.244.2.0/24 return\n\t\tdrop\n\t}"
    assert forward("jump sub", "accept", policy="drop", more=sub).verdict("forward", PING).kind == "pass"
    assert forward("goto sub", policy="drop", more=sub).verdict("forward", PING).kind == "drop"  # a goto does not come back
    assert forward("jump f").verdict("forward", PING).kind == "unknown"  # round in circles


def test_sets_chains_of_nat_and_devices_are_passed_over():
    text = """
table inet t {
	set blocked {
		type ipv4_addr
		elements = { 10.244.2.2,
			10.244.2.3 }
	}
	chain nat {
		type nat hook prerouting priority dstnat; policy drop;
	}
	chain f {
		type filter hook forward priority -5; policy accept;
		ip daddr 10.244.2.2 drop
	}
}
table netdev n {
	chain i {
		type filter hook ingress device "ens34" priority 0; policy drop;
	}
}
"""
    made = firewall(text)
    assert made.verdict("forward", PING).kind == "drop"
    assert made.verdict("prerouting", PING).kind == "pass"
    assert made.verdict("ingress", Facts(PING.src, PING.dst, 17, iif="ens33")).kind == "pass"
    assert made.verdict("ingress", Facts(PING.src, PING.dst, 17, iif="ens34")).kind == "drop"
