"""`--iptables-forward-rules` against real firewalls: what drops the overlay is opened or named, and goes back as it was."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest
from tests.kernel.overlay import OVERLAYS, POD, QUIET_S, Network, Space, network

from tweed.kernel import iptables, nft
from tweed.kernel.nft import Nft
from tweed.plan.forward_rules import Decision, decide, removal

PROGRAM = {(4, "nft"): "iptables-nft", (6, "nft"): "ip6tables-nft", (4, "legacy"): "iptables-legacy", (6, "legacy"): "ip6tables-legacy"}


@pytest.fixture(scope="module")
def built() -> Iterator[Network]:
    with network("f") as net:
        yield net


@pytest.fixture
def net(built: Network) -> Iterator[Network]:
    """Node a without any filter; node b never has one."""
    yield built
    built["a"].sh("nft flush ruleset")
    for word in ("iptables-legacy", "ip6tables-legacy"):
        built["a"].sh(f"{word} -P FORWARD ACCEPT; {word} -F; {word} -X")


def look(space: Space) -> Decision:
    def run() -> Decision:
        with Nft() as handle:
            listing = nft.forward_listing(handle)
        return decide(listing, list(OVERLAYS.values()), iptables.read(listing), vni=1)

    return space.do(run)


def keep_open(space: Space) -> Decision:
    """What the agent does on every look. Returns what it saw."""
    decision = look(space)
    space.do(lambda: iptables.apply(decision.edits))
    return decision


def clean_up(space: Space) -> None:
    def run() -> None:
        with Nft() as handle:
            saved = iptables.read(nft.forward_listing(handle))
        iptables.apply(removal(saved, 1))

    space.do(run)


def everything(space: Space) -> str:
    """nft's and both iptables' rules, without counters, handles and dates."""
    text = space.sh("nft list ruleset 2>&1; for p in iptables ip6tables; do for k in nft legacy; do $p-$k-save; done; done")
    return "\n".join(
        re.sub(r"\[\d+:\d+\]|packets \d+ bytes \d+", "", line)
        for line in text.splitlines()
        if not line.startswith("# Generated") and not line.startswith("# Comp")
    )


@pytest.mark.parametrize(("family", "kind"), PROGRAM)
class TestIptables:
    def test_a_policy_of_drop_is_opened_kept_open_and_closed_by_cleanup(self, net: Network, family: int, kind: str) -> None:
        space, program = net["a"], PROGRAM[family, kind]
        space.sh(f"{program} -A FORWARD -s 192.0.2.0/24 -j ACCEPT" if family == 4 else f"{program} -A FORWARD -s 2001:db8::/32 -j ACCEPT")
        space.sh(f"{program} -P FORWARD DROP")
        before = everything(space)
        assert net.closed(family)
        decision = keep_open(space)
        assert [edit.program for edit in decision.edits] == [program] * 2 and not decision.obstacles
        assert net.open(family)
        rules = space.sh(f"{program} -S FORWARD").splitlines()
        assert [rule.endswith('--comment "tweed forward 1" -j ACCEPT') for rule in rules] == [False, True, True, False]
        assert look(space) == Decision()

        space.sh(f"{program} -D FORWARD 1")
        assert len(keep_open(space).edits) == 3
        space.sh(f"{program} -D FORWARD 1; {program} -D FORWARD 1")
        assert net.closed(family)
        keep_open(space)
        assert net.open(family)

        space.sh(f"{program} -I FORWARD 1 -j DROP")
        assert net.closed(family)
        keep_open(space)
        assert net.open(family)
        assert space.sh(f"{program} -S FORWARD").splitlines()[3] == "-A FORWARD -j DROP"
        space.sh(f"{program} -D FORWARD -j DROP")

        clean_up(space)
        assert everything(space) == before
        assert net.closed(family)

    def test_a_chain_that_drops_nothing_is_left_alone(self, net: Network, family: int, kind: str) -> None:
        space, program = net["a"], PROGRAM[family, kind]
        space.sh(f"{program} -A FORWARD -i docker0 -j DROP; {program} -A FORWARD -m conntrack --ctstate INVALID -j DROP")
        before = everything(space)
        assert keep_open(space) == Decision()
        assert everything(space) == before

    def test_rules_are_taken_out_when_nothing_drops_any_more(self, net: Network, family: int, kind: str) -> None:
        space, program = net["a"], PROGRAM[family, kind]
        space.sh(f"{program} -P FORWARD DROP")
        keep_open(space)
        space.sh(f"{program} -P FORWARD ACCEPT")
        assert keep_open(space).edits
        assert "tweed" not in everything(space)
        assert look(space) == Decision()

    def test_with_docker_the_rules_are_in_its_chain_for_users(self, net: Network, family: int, kind: str) -> None:
        space, program = net["a"], PROGRAM[family, kind]
        space.sh(f"""
            {program} -P FORWARD DROP
            for chain in DOCKER-USER DOCKER-FORWARD DOCKER-CT DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER; do {program} -N $chain; done
            {program} -A FORWARD -j DOCKER-USER; {program} -A FORWARD -j DOCKER-FORWARD
            {program} -A DOCKER-FORWARD -j DOCKER-CT; {program} -A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
            {program} -A DOCKER-FORWARD -i docker0 -j ACCEPT
            {program} -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            {program} -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
            {program} -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
            {program} -A DOCKER ! -i docker0 -o docker0 -j DROP
            {program} -A DOCKER-USER -i ens34 -j DROP
        """)
        before = everything(space)
        assert net.closed(family)
        keep_open(space)
        assert net.open(family)
        assert [("tweed" in rule) for rule in space.sh(f"{program} -S DOCKER-USER").splitlines()] == [False, True, True, False]
        assert "tweed" not in space.sh(f"{program} -S FORWARD")
        # Docker puts its jumps back to the head of FORWARD whenever it starts.
        space.sh(f"{program} -D FORWARD -j DOCKER-USER; {program} -I FORWARD 1 -j DOCKER-USER")
        assert look(space) == Decision()
        clean_up(space)
        assert everything(space) == before

    def test_a_rule_that_drops_a_part_keeps_its_effect(self, net: Network, family: int, kind: str) -> None:
        """As a network policy does, whose chain is at the head too."""
        space, program = net["a"], PROGRAM[family, kind]
        other = POD[family]["a2"]
        space.sh(f"{program} -P FORWARD DROP; {program} -N POLICY; {program} -A FORWARD -j POLICY; {program} -A POLICY -s {other} -j REJECT")
        keep_open(space)
        assert net.open(family)
        assert not net.talks("a2", "b1", family, POD[family]["b1"], QUIET_S)
        assert look(space).edits == ()


RULESETS = {
    "policy": """table inet fw {
        chain forward { type filter hook forward priority filter; policy drop; ct state established,related accept; }
    }""",
    "reject in another chain": """table FAMILY own {
        chain last { reject; }
        chain middle { type filter hook forward priority 10; iifname != "lo" jump last; }
    }""",
    "set of devices": """table inet fw {
        set up { type ifname; elements = { "ens33", "flannel.1", "flannel-v6.1", "cni0" }; }
        chain forward { type filter hook forward priority -5; iifname @up oifname { "cni0", "flannel*" } counter drop; }
    }""",
    "only a part": """table inet fw {
        chain fresh { tcp dport 80 accept; udp dport 8000-9000 drop; }
        chain forward { type filter hook forward priority 0; ct state vmap { established: accept, new: jump fresh }; }
    }""",
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", RULESETS)
def test_somebodys_nft_chain_is_named_and_the_command_opens_it(net: Network, family: int, name: str) -> None:
    space = net["a"]
    word = {4: "ip", 6: "ip6"}[family]
    space.sh(f"nft -f - <<'END'\n{RULESETS[name].replace('FAMILY', word)}\nEND")
    before = everything(space)
    assert net.closed(family)
    decision = keep_open(space)
    assert not decision.edits and everything(space) == before
    (obstacle,) = [o for o in decision.obstacles if f" {word} saddr" in o.command]
    assert (obstacle.table, obstacle.chain) == {"reject in another chain": ("own", "middle")}.get(name, ("fw", "forward"))
    assert obstacle.certain == (name != "only a part")
    space.sh(obstacle.command)
    assert net.open(family)
    assert obstacle.command not in [o.command for o in look(space).obstacles]


def test_an_accept_in_iptables_does_not_undo_a_drop_of_nft(net: Network) -> None:
    """Which is why both are looked at, and why the obstacle is named even while our rules stand."""
    space = net["a"]
    space.sh("iptables-nft -P FORWARD DROP; nft 'table inet fw { chain f { type filter hook forward priority 5; policy drop; }; }'")
    (obstacle,) = [o for o in keep_open(space).obstacles if " ip " in o.command]
    assert (obstacle.family, obstacle.table, obstacle.chain, obstacle.certain) == ("inet", "fw", "f", True)
    assert net.closed(4)
    space.sh(obstacle.command)
    assert net.open(4)


def test_both_kinds_of_iptables_at_once(net: Network) -> None:
    space = net["a"]
    space.sh("iptables-nft -P FORWARD DROP; iptables-legacy -P FORWARD DROP")
    before = everything(space)
    assert {edit.program for edit in keep_open(space).edits} == {"iptables-nft", "iptables-legacy"}
    assert net.open(4)
    clean_up(space)
    assert everything(space) == before


def test_native_rules_in_iptables_own_table_are_somebodys_nft_rules(net: Network) -> None:
    """iptables-save then prints something else (here an accept for all), or nothing. Ours are still found by cleanup."""
    space = net["a"]
    space.sh("iptables-nft -P FORWARD DROP")
    before = everything(space)
    keep_open(space)
    space.sh("nft 'table ip filter { set s { type ipv4_addr; }; }'; nft insert rule ip filter FORWARD ip daddr @s accept")
    assert "-A FORWARD -j ACCEPT" in space.sh("iptables-nft-save")
    decision = look(space)
    assert decision == Decision()
    clean_up(space)
    (obstacle,) = look(space).obstacles
    assert (obstacle.family, obstacle.table, obstacle.chain) == ("ip", "filter", "FORWARD")
    assert net.closed(4)
    space.sh(obstacle.command)
    assert net.open(4)
    space.sh("nft flush chain ip filter FORWARD; nft delete set ip filter s")
    assert everything(space) == before


def test_another_agents_rules_stay(net: Network) -> None:
    space = net["a"]
    space.sh('iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -s 10.9.0.0/16 -m comment --comment "tweed forward 2" -j ACCEPT')
    before = everything(space)
    keep_open(space)
    clean_up(space)
    assert everything(space) == before


def test_looking_at_an_untouched_namespace_creates_nothing(net: Network) -> None:
    """Not even the empty tables that `iptables -L` leaves behind: asked of the kernel itself, in a namespace nobody has used."""
    space = net["b1"]
    before = space.do(nft.generation)
    assert keep_open(space) == Decision()
    assert space.do(nft.generation) == before
    assert space.do(lambda: "".join(path.read_text() for path in iptables.LEGACY_TABLES.values() if path.exists())) == ""


def test_an_edit_that_cannot_be_made_changes_nothing_and_says_so(net: Network) -> None:
    from tweed.errors import KernelError
    from tweed.plan.forward_rules import Edit

    space = net["a"]
    space.sh("iptables-nft -P FORWARD DROP")
    before = everything(space)
    edits = [Edit("iptables-nft", "-I FORWARD 1 -s 10.0.0.0/8 -j ACCEPT"), Edit("iptables-nft", "-D FORWARD -s 192.0.2.1/32 -j DROP")]
    with pytest.raises(KernelError, match=r"^iptables-nft-restore: ") as caught:
        space.do(lambda: iptables.apply(edits))
    assert "\n" not in str(caught.value)
    assert everything(space) == before


def test_programs_are_found_outside_of_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = nft.find_program("nft")
    assert found is not None and "nftables" in subprocess.run([found, "--version"], capture_output=True, text=True).stdout
