"""flanneld's firewall rules in a real kernel: what `--to-flannel` writes is what `--flannel` finds and removes, with both kinds of iptables and nft."""

from __future__ import annotations

import pytest
from tests.kernel.conftest import Namespace

from tweed.addr import Prefix
from tweed.agent.leftovers import firewall_leftovers
from tweed.kernel import iptables, netns
from tweed.kernel.nft import Nft
from tweed.plan.flannel_rules import Traffic, forward, masquerade, nft_tables

FAMILIES = {4: (Prefix.parse("10.244.0.0/16"), Prefix.parse("10.244.1.0/24")), 6: (Prefix.parse("fd00:244::/48"), Prefix.parse("fd00:244:0:1::/64"))}


def rules(space: Namespace) -> list[str]:
    script = "; ".join(f"{program}-save" for program in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"))
    return [line.partition(" [")[0] for line in space.lines(script) if not line.startswith("#")]


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_iptables_there_and_back(netns: Namespace, kind: str) -> None:
    programs = {4: f"iptables-{kind}", 6: f"ip6tables-{kind}"}
    for program in programs.values():  # other people's rules, before and behind the jumps
        netns.run(f"{program} -t nat -A POSTROUTING -o lo -j ACCEPT; {program} -P FORWARD DROP; {program} -A FORWARD -p tcp -j ACCEPT")
    before = rules(netns)

    def there() -> None:
        for family, (network, subnet) in FAMILIES.items():
            iptables.apply([*masquerade(programs[family], Traffic(network, subnet)), *forward(programs[family], network)])

    def back() -> list[str]:
        with Nft() as handle:
            found = firewall_leftovers(handle)
        iptables.apply(found.edits)
        return list(found)

    do(netns, there)
    for program in programs.values():
        netns.run(f"{program} -t nat -A POSTROUTING -o eth9 -j ACCEPT; {program} -A FORWARD -p udp -j ACCEPT")
    written = [line for line in rules(netns) if "FLANNEL" in line]
    assert sum("-j MASQUERADE --random-fully" in line for line in written) == 4 and sum("-A FORWARD" in line for line in written) == 2
    commands = do(netns, back)
    assert len(commands) == 12 and all(command.split()[0].endswith(kind) for command in commands), commands
    assert do(netns, back) == []
    for program in programs.values():
        netns.run(f"{program} -t nat -D POSTROUTING -o eth9 -j ACCEPT; {program} -D FORWARD -p udp -j ACCEPT")
    assert rules(netns) == before


def test_nftables_there_and_back(netns: Namespace) -> None:
    text = nft_tables([Traffic(*FAMILIES[4]), Traffic(*FAMILIES[6], fully_random=False)], masquerade=True, forward=True)
    netns.run("nft add table ip flannel-other")

    def there() -> list[str]:
        with Nft() as handle:
            handle.apply(text)
            handle.apply(text)  # twice is once
            return list(firewall_leftovers(handle).tables)

    assert do(netns, there) == ["delete table ip flannel-ipv4", "delete table ip6 flannel-ipv6"]
    shown = netns.run("nft list ruleset")
    assert "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random" in shown and shown.count("chain forward") == 2
    assert "ip6 saddr fd00:244::/48 ip6 daddr != ff00::/8 masquerade\n" in shown


def test_looking_makes_no_table(netns: Namespace) -> None:
    """Not even the empty ones that `iptables -L` leaves behind."""

    def look() -> list[str]:
        with Nft() as handle:
            return list(firewall_leftovers(handle))

    assert do(netns, look) == [] and netns.run("nft list tables") == ""
    assert do(netns, lambda: [path.read_text() for path in iptables.LEGACY_TABLES.values() if path.exists() and path.read_text()]) == []


def do(space: Namespace, function):  # type: ignore[no-untyped-def]
    return netns.run_in(space.fd, function)
